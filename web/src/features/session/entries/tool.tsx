import { ChevronRight, CircleSlash, CircleX } from "lucide-react";
import { Collapsible } from "radix-ui";
import { memo, useState } from "react";
import { Code } from "@/components/code";
import { Elapsed } from "@/components/elapsed";
import { Spinner } from "@/components/spinner";
import { cn } from "@/lib/cn";
import { duration } from "@/lib/format";
import { languageOf } from "@/lib/language";
import type { ToolEntry } from "../state";
import { describeTool, fileText, plainText, type ToolLine } from "../tools";

/** Lines of a running command's output that are shown before anybody opens it. */
const TAIL_LINES = 6;
/** Durations below this are noise. */
const WORTH_TELLING_MS = 300;

/** One tool call: a line that opens to what went in and what came out. */
export const Tool = memo(function Tool({ entry, growing }: { entry: ToolEntry; growing: string }) {
  const [isOpen, setOpen] = useState(false);
  const line = describeTool(entry);
  const isRunning = entry.status === "running";
  return (
    <Collapsible.Root open={isOpen} onOpenChange={setOpen}>
      <Collapsible.Trigger
        className={cn(
          "group -mx-2 flex w-[calc(100%+1rem)] items-center gap-2 rounded-lg px-2 py-1 text-left text-[0.8125rem] transition-colors hover:bg-hover",
          isOpen && "bg-hover/60",
        )}
      >
        <line.icon aria-hidden className="size-3.5 shrink-0 text-ink-faint" />
        <span className="shrink-0 text-ink-soft">{line.verb}</span>
        <span className="min-w-0 flex-1 truncate font-mono text-code text-ink-faint">{line.subject}</span>
        <Status entry={entry} />
        <ChevronRight
          aria-hidden
          className={cn(
            "size-3.5 shrink-0 text-ink-faint transition-[transform,opacity] group-hover:opacity-100",
            isOpen ? "rotate-90" : "opacity-40",
          )}
        />
      </Collapsible.Trigger>
      {isRunning && !isOpen && growing && <Tail output={growing} />}
      <Collapsible.Content className="animate-fade-in pt-1 pb-2 pl-5.5">
        <Body entry={entry} line={line} output={plainText(isRunning ? growing : entry.output)} />
      </Collapsible.Content>
    </Collapsible.Root>
  );
});

function Status({ entry }: { entry: ToolEntry }) {
  const quiet = "shrink-0 font-mono text-xs text-ink-faint tabular-nums";
  switch (entry.status) {
    case "running":
      return (
        <span className={cn(quiet, "flex items-center gap-1.5 text-accent")}>
          <Elapsed since_ms={entry.at_ms} />
          <Spinner className="size-3.5" />
        </span>
      );
    case "failed":
      return <CircleX aria-label="failed" className="size-3.5 shrink-0 text-bad" />;
    case "interrupted":
      return (
        <span className={cn(quiet, "flex items-center gap-1.5 font-sans")}>
          interrupted <CircleSlash aria-hidden className="size-3.5" />
        </span>
      );
    case "done":
      return entry.took_ms >= WORTH_TELLING_MS ? <span className={quiet}>{duration(entry.took_ms)}</span> : null;
  }
}

function Tail({ output }: { output: string }) {
  const lines = plainText(output).trimEnd().split("\n").slice(-TAIL_LINES);
  return (
    <pre className="mt-0.5 mb-1 ml-5.5 overflow-hidden border-l-2 pl-3 font-mono text-xs text-ink-faint">
      {lines.map((line, index) => (
        <div key={index} className="truncate">
          {line || " "}
        </div>
      ))}
    </pre>
  );
}

function Body({ entry, line, output }: { entry: ToolEntry; line: ToolLine; output: string }) {
  const text = (name: string): string => {
    const value = entry.input[name];
    return typeof value === "string" ? value : "";
  };
  const isEdit = line.kind === "edit" && (text("oldString") !== "" || text("newString") !== "");
  const isWrite = line.kind === "write" && text("content") !== "";
  const file = line.kind === "read" ? fileText(output) : undefined;
  return (
    <div className="space-y-2">
      {file && (
        <Code
          code={file.text}
          firstLine={file.firstLine}
          language={languageOf(line.subject)}
          className="max-h-96 overflow-y-auto"
        />
      )}
      {line.kind === "bash" && <Output text={`$ ${text("command")}`} />}
      {isEdit && <Replacement before={text("oldString")} after={text("newString")} />}
      {isWrite && <Code code={text("content")} language={languageOf(line.subject)} className="max-h-96 overflow-y-auto" />}
      {line.kind !== "bash" && !isEdit && !isWrite && !file && <Input input={entry.input} />}
      {entry.error && <Output text={plainText(entry.error)} isError />}
      {output && !isWrite && !file && <Output text={output} />}
      {entry.truncated && <p className="text-xs text-ink-faint">The output was longer; only this much was kept.</p>}
      {!output && !entry.error && entry.status === "done" && line.kind === "bash" && (
        <p className="text-xs text-ink-faint">No output.</p>
      )}
    </div>
  );
}

function Output({ text, isError = false }: { text: string; isError?: boolean }) {
  return (
    <pre
      tabIndex={0}
      className={cn(
        "max-h-80 overflow-auto rounded-lg border bg-sunken/60 px-3 py-2 font-mono text-xs leading-5 whitespace-pre-wrap [overflow-wrap:anywhere]",
        isError && "border-bad/25 bg-bad-soft",
      )}
    >
      {text}
    </pre>
  );
}

function Input({ input }: { input: Record<string, unknown> }) {
  const fields = Object.entries(input);
  if (fields.length === 0) return null;
  return (
    <dl className="grid grid-cols-[auto_1fr] gap-x-3 gap-y-1 rounded-lg border bg-sunken/60 px-3 py-2 font-mono text-xs leading-5">
      {fields.map(([name, value]) => (
        <div key={name} className="contents">
          <dt className="text-ink-faint">{name}</dt>
          <dd className="max-h-48 overflow-auto whitespace-pre-wrap [overflow-wrap:anywhere]">
            {typeof value === "string" ? value : JSON.stringify(value, null, 2)}
          </dd>
        </div>
      ))}
    </dl>
  );
}

/** What an edit took out and put in. */
function Replacement({ before, after }: { before: string; after: string }) {
  const lines = (text: string, sign: string, look: string) =>
    text === ""
      ? null
      : text.split("\n").map((line, index) => (
          <div key={sign + String(index)} className={cn("min-w-max px-3", look)}>
            <span aria-hidden className="mr-2 select-none text-ink-faint">
              {sign}
            </span>
            {line}
          </div>
        ));
  return (
    <pre tabIndex={0} className="max-h-96 overflow-auto rounded-lg border bg-sunken/60 py-1.5 font-mono text-code">
      {lines(before, "−", "bg-removed")}
      {lines(after, "+", "bg-added")}
    </pre>
  );
}
