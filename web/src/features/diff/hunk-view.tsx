import { memo, useMemo } from "react";
import { Tokens } from "@/components/code";
import { cn } from "@/lib/cn";
import type { Token } from "@/lib/highlight";
import { useHighlighter } from "@/lib/use-highlight";
import { sideBySide, type DiffLine, type Hunk } from "./parse";

export type Layout = "unified" | "split";

interface HunkViewProps {
  hunk: Hunk;
  language: string;
  layout: Layout;
}

export const HunkView = memo(function HunkView({ hunk, language, layout }: HunkViewProps) {
  const tokens = useTokens(hunk, language);
  return (
    <>
      <tr>
        <td colSpan={4} className="border-y bg-accent-soft/50 px-3 py-0.5 text-xs text-ink-faint first:border-t-0">
          <span className="sticky left-3">
            Line {hunk.after || hunk.before}
            {hunk.section && <span className="ml-3">{hunk.section}</span>}
          </span>
        </td>
      </tr>
      {layout === "unified"
        ? hunk.lines.map((line, index) => <UnifiedRow key={index} line={line} tokens={tokens.get(line)} />)
        : sideBySide(hunk.lines).map(({ before, after }, index) => (
            <tr key={index}>
              <Side line={before} number={before?.before} tokens={before && tokens.get(before)} />
              <Side line={after} number={after?.after} tokens={after && tokens.get(after)} className="border-l" />
            </tr>
          ))}
    </>
  );
});

const LOOKS = { context: "", added: "bg-added", removed: "bg-removed" };
const NUMBER_LOOKS = { context: "bg-surface", added: "bg-added-edge/60", removed: "bg-removed-edge/60" };
const SIGNS = { context: " ", added: "+", removed: "−" };
const NUMBER = "select-none px-1.5 text-right align-top text-2xs leading-5 text-ink-soft tabular-nums";

function UnifiedRow({ line, tokens }: { line: DiffLine; tokens: Token[] | undefined }) {
  return (
    <tr className={LOOKS[line.kind]}>
      <td className={cn(NUMBER, NUMBER_LOOKS[line.kind])}>{line.before || ""}</td>
      <td className={cn(NUMBER, NUMBER_LOOKS[line.kind])}>{line.after || ""}</td>
      <Text line={line} tokens={tokens} colSpan={2} />
    </tr>
  );
}

interface SideProps {
  line: DiffLine | undefined;
  number: number | undefined;
  tokens: Token[] | undefined;
  className?: string;
}

function Side({ line, number, tokens, className }: SideProps) {
  if (!line) return <td colSpan={2} className={cn("bg-sunken/70", className)} />;
  return (
    <>
      <td className={cn(NUMBER, NUMBER_LOOKS[line.kind], className)}>{number}</td>
      <Text line={line} tokens={tokens} className={LOOKS[line.kind]} />
    </>
  );
}

interface TextProps {
  line: DiffLine;
  tokens: Token[] | undefined;
  colSpan?: number;
  className?: string;
}

function Text({ line, tokens, colSpan, className }: TextProps) {
  return (
    <td colSpan={colSpan} className={cn("relative py-0 pr-3 pl-6 align-top whitespace-pre-wrap [overflow-wrap:anywhere]", className)}>
      <span aria-hidden className="absolute top-0 left-2 select-none text-ink-soft">
        {SIGNS[line.kind]}
      </span>
      {tokens ? <Tokens tokens={tokens} /> : line.text}
    </td>
  );
}

/** The tokens of each line: both sides of a hunk are read as one text each, so that strings over lines come out right. */
function useTokens(hunk: Hunk, language: string): Map<DiffLine, Token[]> {
  const highlighter = useHighlighter();
  return useMemo(() => {
    const tokens = new Map<DiffLine, Token[]>();
    if (!highlighter || !language) return tokens;
    for (const skipped of ["added", "removed"] as const) {
      const side = hunk.lines.filter((line) => line.kind !== skipped);
      const lines = highlighter(side.map((line) => line.text).join("\n"), language);
      side.forEach((line, index) => {
        const found = lines?.[index];
        if (found) tokens.set(line, found);
      });
    }
    return tokens;
  }, [highlighter, hunk, language]);
}
