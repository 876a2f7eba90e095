import { memo } from "react";
import { cn } from "@/lib/cn";
import type { Token } from "@/lib/highlight";
import { useHighlightedLines } from "@/lib/use-highlight";
import { CopyButton } from "./copy-button";

/** The coloured pieces of one line. */
export const Tokens = memo(function Tokens({ tokens }: { tokens: Token[] }) {
  return tokens.map((token, index) => (
    <span key={index} className={token.className || undefined}>
      {token.text}
    </span>
  ));
});

interface CodeProps {
  code: string;
  language: string;
  /** The number of the first line; without it lines have none. */
  firstLine?: number;
  className?: string;
}

/** Code in its colours, scrolling sideways, with a button that copies it. */
export function Code({ code, language, firstLine, className }: CodeProps) {
  const lines = useHighlightedLines(code, language);
  return (
    <div className={cn("group/code relative rounded-lg border bg-sunken/60", className)}>
      <pre tabIndex={0} className="overflow-x-auto p-3 font-mono text-code -outline-offset-2">
        <code>
          {lines.map((tokens, index) => (
            <div key={index} className={cn("min-h-5", firstLine !== undefined && "flex")}>
              {firstLine !== undefined && (
                <span aria-hidden className="mr-4 w-10 shrink-0 select-none text-right text-ink-faint tabular-nums">
                  {firstLine + index}
                </span>
              )}
              <span>
                <Tokens tokens={tokens} />
                {tokens.length === 0 && "\n"}
              </span>
            </div>
          ))}
        </code>
      </pre>
      <CopyButton
        text={code}
        label="Copy"
        className="absolute top-1.5 right-1.5 bg-surface/80 opacity-0 group-focus-within/code:opacity-100 group-hover/code:opacity-100"
      />
    </div>
  );
}
