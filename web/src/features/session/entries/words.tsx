import { Brain, ChevronRight, CornerDownRight, StickyNote } from "lucide-react";
import { Collapsible } from "radix-ui";
import { lazy, memo, Suspense, useState, type ReactNode } from "react";
import { Ago } from "@/components/ago";
import { Spinner } from "@/components/spinner";
import { cn } from "@/lib/cn";
import { duration, limitsText } from "@/lib/format";
import type { NoteEntry, PromptEntry, ReasoningEntry, SteerEntry, TextEntry } from "../state";

const Markdown = lazy(() => import("@/components/markdown"));

/** What a person asked for. `children` stand below it. */
export const Prompt = memo(function Prompt({ entry, children }: { entry: PromptEntry; children?: ReactNode }) {
  const limits = limitsText(entry.limits);
  return (
    <article className="rounded-xl border bg-surface px-4 py-3 shadow-raised">
      <Byline author={entry.author} at_ms={entry.at_ms}>
        {entry.agent === "plan" && <span className="rounded bg-sunken px-1.5 py-px">plan only</span>}
        {limits && <span className="truncate">at most {limits}</span>}
      </Byline>
      <p className="max-h-96 overflow-y-auto whitespace-pre-wrap [overflow-wrap:anywhere]">{entry.text}</p>
      {children}
    </article>
  );
});

/** What a person said to the task while it ran. */
export const Steer = memo(function Steer({ entry }: { entry: SteerEntry }) {
  return (
    <article className="ml-4 rounded-xl border bg-surface px-4 py-2.5 shadow-raised">
      <Byline author={entry.author} at_ms={entry.at_ms}>
        <span className="inline-flex items-center gap-1">
          <CornerDownRight aria-hidden className="size-3" /> to the running task
        </span>
      </Byline>
      <p className="whitespace-pre-wrap [overflow-wrap:anywhere]">{entry.text}</p>
    </article>
  );
});

/** A note between people. */
export const Note = memo(function Note({ entry }: { entry: NoteEntry }) {
  return (
    <article className="ml-4 rounded-xl border border-warn/25 bg-warn-soft px-4 py-2.5">
      <Byline author={entry.author} at_ms={entry.at_ms}>
        <span className="inline-flex items-center gap-1">
          <StickyNote aria-hidden className="size-3" /> note, not for the agent
        </span>
      </Byline>
      <p className="whitespace-pre-wrap [overflow-wrap:anywhere]">{entry.text}</p>
    </article>
  );
});

/** What the agent said. */
export const AgentText = memo(function AgentText({ entry, growing }: { entry: TextEntry; growing: string }) {
  const text = entry.growing ? growing : entry.text;
  return (
    <div className="py-1">
      <Suspense fallback={<p className="whitespace-pre-wrap">{text}</p>}>
        <Markdown text={text} />
      </Suspense>
    </div>
  );
});

/** What the agent thought: folded away. */
export const Reasoning = memo(function Reasoning({ entry, growing }: { entry: ReasoningEntry; growing: string }) {
  const [isOpen, setOpen] = useState(false);
  const text = entry.growing ? growing : entry.text;
  return (
    <Collapsible.Root open={isOpen} onOpenChange={setOpen}>
      <Collapsible.Trigger className="group -mx-2 flex w-[calc(100%+1rem)] items-center gap-2 rounded-lg px-2 py-1 text-left text-[0.8125rem] transition-colors hover:bg-hover">
        {entry.growing ? (
          <Spinner className="size-3.5 shrink-0 text-accent" />
        ) : (
          <Brain aria-hidden className="size-3.5 shrink-0 text-ink-faint" />
        )}
        <span className="shrink-0 text-ink-soft">{entry.growing ? "Thinking" : "Thought"}</span>
        <span className="min-w-0 flex-1 truncate text-ink-faint">
          {isOpen ? "" : (entry.growing ? lastLine(text) : firstLine(text))}
        </span>
        {entry.took_ms >= 1000 && (
          <span className="shrink-0 font-mono text-xs text-ink-faint tabular-nums">{duration(entry.took_ms)}</span>
        )}
        <ChevronRight
          aria-hidden
          className={cn("size-3.5 shrink-0 text-ink-faint transition-transform", isOpen ? "rotate-90" : "opacity-40")}
        />
      </Collapsible.Trigger>
      <Collapsible.Content className="animate-fade-in">
        <p className="my-1 ml-1.5 border-l-2 pl-4 text-[0.8125rem] whitespace-pre-wrap text-ink-faint [overflow-wrap:anywhere]">
          {text}
        </p>
      </Collapsible.Content>
    </Collapsible.Root>
  );
});

const plain = (line: string): string => line.replace(/[*_`#]/g, "");
const firstLine = (text: string): string => plain(text.trimStart().split("\n", 1)[0] ?? "");
const lastLine = (text: string): string => plain(text.trimEnd().split("\n").at(-1) ?? "");

function Byline({ author, at_ms, children }: { author: string; at_ms: number; children?: ReactNode }) {
  return (
    <header className="mb-1 flex items-center gap-2 text-xs text-ink-faint">
      <span aria-hidden className="grid size-4.5 place-items-center rounded-full bg-hover text-2xs font-semibold text-ink-soft uppercase">
        {author.slice(0, 1) || "?"}
      </span>
      <span className="truncate font-medium text-ink-soft">{author}</span>
      <Ago at_ms={at_ms} className="shrink-0" />
      {children}
    </header>
  );
}
