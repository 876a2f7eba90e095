/** Syntax highlighting of the languages that repositories are mostly made of. Heavy: load it lazily. */

import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import dockerfile from "highlight.js/lib/languages/dockerfile";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import kotlin from "highlight.js/lib/languages/kotlin";
import makefile from "highlight.js/lib/languages/makefile";
import markdown from "highlight.js/lib/languages/markdown";
import php from "highlight.js/lib/languages/php";
import python from "highlight.js/lib/languages/python";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import swift from "highlight.js/lib/languages/swift";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

const LANGUAGES = {
  bash, c, cpp, csharp, css, diff, dockerfile, go, ini, java, javascript, json, kotlin,
  makefile, markdown, php, python, ruby, rust, sql, swift, typescript, xml, yaml,
};
for (const [name, language] of Object.entries(LANGUAGES)) hljs.registerLanguage(name, language);
hljs.registerAliases("svelte", { languageName: "xml" });
hljs.registerAliases("vue", { languageName: "xml" });
hljs.registerAliases("scss", { languageName: "css" });

/** A stretch of one line in one colour. */
export interface Token {
  text: string;
  className: string;
}

/** More than this is shown plain: it would freeze the page. */
const MAX_CHARS = 200_000;

/** The lines of `code` as tokens, or nothing where the language is not known. */
export function highlightLines(code: string, language: string): Token[][] | undefined {
  if (!hljs.getLanguage(language) || code.length > MAX_CHARS) return undefined;
  const html = hljs.highlight(code, { language, ignoreIllegals: true }).value;
  return split(html);
}

/** Reads highlight.js's own output (nested `<span class>` and escaped text) into lines of flat tokens. */
function split(html: string): Token[][] {
  const lines: Token[][] = [[]];
  const open: string[] = [];
  for (const [piece] of html.matchAll(/<span class="[^"]*">|<\/span>|[^<]+/g)) {
    if (piece === "</span>") open.pop();
    else if (piece.startsWith("<")) open.push(piece.slice(13, -2));
    else {
      unescape(piece)
        .split("\n")
        .forEach((text, index) => {
          if (index > 0) lines.push([]);
          if (text) lines.at(-1)?.push({ text, className: open.at(-1) ?? "" });
        });
    }
  }
  return lines;
}

const unescape = (text: string): string =>
  text
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&#x27;", "'")
    .replaceAll("&amp;", "&");
