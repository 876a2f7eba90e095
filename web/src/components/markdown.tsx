import { memo, useDeferredValue, type ComponentProps } from "react";
import ReactMarkdown, { type Components } from "react-markdown";
import gfm from "remark-gfm";
import { Code } from "./code";

/** Untrusted text: no raw HTML, no images from elsewhere, and links that tell the other side nothing about us. */
const COMPONENTS: Components = {
  a: ({ href, children }) => (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow" title={href}>
      {children}
    </a>
  ),
  img: ({ src, alt }) => (
    <a href={typeof src === "string" ? src : undefined} target="_blank" rel="noopener noreferrer nofollow">
      {alt || "image"}
    </a>
  ),
  pre: ({ children }) => <>{children}</>,
  code: CodeOrWord,
};

function CodeOrWord({ className, children, node }: ComponentProps<"code"> & { node?: unknown }) {
  const text = typeof children === "string" ? children : "";
  const isBlock = className?.startsWith("language-") === true || text.endsWith("\n");
  if (!isBlock || !node) return <code>{children}</code>;
  return <Code code={text.replace(/\n$/, "")} language={className?.slice("language-".length) ?? ""} />;
}

const PLUGINS = [gfm];

/** Markdown from a model or a person. While it grows, drawing it never holds up typing or scrolling. */
const Markdown = memo(function Markdown({ text }: { text: string }) {
  const shown = useDeferredValue(text);
  return (
    <div className="prose-agent">
      <ReactMarkdown remarkPlugins={PLUGINS} components={COMPONENTS}>
        {shown}
      </ReactMarkdown>
    </div>
  );
});

export default Markdown;
