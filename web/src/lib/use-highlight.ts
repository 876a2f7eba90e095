import { useEffect, useMemo, useState } from "react";
import type { highlightLines, Token } from "./highlight";

type Highlighter = typeof highlightLines;

let loaded: Highlighter | undefined;

/** The highlighter once it has arrived; it is fetched when the first code is shown. */
export function useHighlighter(): Highlighter | undefined {
  const [highlighter, setHighlighter] = useState<Highlighter | undefined>(() => loaded);
  useEffect(() => {
    if (loaded) return;
    let wanted = true;
    void import("./highlight").then((module) => {
      loaded = module.highlightLines;
      if (wanted) setHighlighter(() => module.highlightLines);
    });
    return () => {
      wanted = false;
    };
  }, []);
  return highlighter;
}

/** Lines of tokens; plain lines until the highlighter is there or where it does not know the language. */
export function useHighlightedLines(code: string, language: string): Token[][] {
  const highlighter = useHighlighter();
  return useMemo(
    () => (language ? highlighter?.(code, language) : undefined) ?? plain(code),
    [highlighter, code, language],
  );
}

const plain = (code: string): Token[][] =>
  code.split("\n").map((text) => (text ? [{ text, className: "" }] : []));
