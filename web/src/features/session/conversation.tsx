import { ArrowDown, Clock, RotateCw } from "lucide-react";
import { useLayoutEffect, useRef, useState, type ReactNode } from "react";
import type { Task } from "@/api/types";
import { Button } from "@/components/button";
import { Elapsed } from "@/components/elapsed";
import { LimitsControl } from "@/components/limits";
import { SandboxSteps } from "@/components/sandbox-steps";
import { Spinner } from "@/components/spinner";
import { useMoment } from "@/lib/clock";
import { cn } from "@/lib/cn";
import { count, dollars, timeSpan } from "@/lib/format";
import { Entry } from "./entries/entry";
import { Prompt } from "./entries/words";
import { useEditTask, useRetry, useTask } from "./actions";
import { useFollowEnd } from "./scroll";
import { queuedTasks, runningTask, type Entry as AnyEntry, type PromptEntry, type SessionState } from "./state";

/** The page stays quick by drawing only so many entries until somebody asks for the earlier ones. */
const FIRST_SHOWN = 250;
const MORE_SHOWN = 500;

interface ConversationProps {
  session: SessionState;
  /** Nothing can be done about what is shown. */
  isPast: boolean;
  children: ReactNode;
}

/** Everything that was said and done, newest last, with the dock below. */
export function Conversation({ session, isPast, children }: ConversationProps) {
  const { scroller, content, isFollowing, follow } = useFollowEnd();
  const [limit, setLimit] = useState(FIRST_SHOWN);
  const fromEnd = useRef(0);
  useLayoutEffect(() => {
    const box = scroller.current;
    // What was in view stays in view when earlier entries come in above it.
    if (box && limit > FIRST_SHOWN) box.scrollTo({ top: box.scrollHeight - fromEnd.current });
  }, [limit, scroller]);
  const hidden = Math.max(0, session.entries.length - limit);
  const shown = session.entries.slice(hidden);
  return (
    <section aria-label="Conversation" className="flex h-full min-h-0 flex-col">
      <div className="relative min-h-0 flex-1">
        <div ref={scroller} tabIndex={-1} className="h-full overflow-x-hidden overflow-y-auto overscroll-contain outline-none">
          <div ref={content} className="mx-auto max-w-3xl px-4 pt-5 pb-6 sm:px-6" role="log" aria-live="off" aria-label="What happened">
            {hidden > 0 && (
              <div className="mb-4 flex justify-center">
                <Button
                  size="sm"
                  onClick={() => {
                    const box = scroller.current;
                    if (box) fromEnd.current = box.scrollHeight - box.scrollTop;
                    setLimit(limit + MORE_SHOWN);
                  }}
                >
                  Show earlier ({hidden})
                </Button>
              </div>
            )}
            <FirstPrompt session={session} />
            {shown.map((entry, index) => (
              <div key={entry.key} className={gap(shown[index - 1], entry)}>
                <Entry
                  entry={entry}
                  growing={session.partials[entry.key]?.text ?? ""}
                  task={entry.kind === "outcome" ? session.tasks.find((task) => task.id === entry.task_id) : undefined}
                />
              </div>
            ))}
            <Ending session={session} isPast={isPast} />
          </div>
        </div>
        {!isFollowing && (
          <Button size="sm" className="absolute bottom-3 left-1/2 -translate-x-1/2 animate-rise rounded-full shadow-float" onClick={follow}>
            <ArrowDown aria-hidden /> Jump to latest
          </Button>
        )}
      </div>
      {children}
    </section>
  );
}

const isCompact = (entry: AnyEntry): boolean => ["tool", "reasoning", "line", "answered", "child"].includes(entry.kind);

function gap(before: AnyEntry | undefined, entry: AnyEntry): string {
  if (!before) return "";
  if (isCompact(before) && isCompact(entry)) return "mt-0.5";
  if (entry.kind === "prompt") return "mt-8";
  return isCompact(before) || isCompact(entry) ? "mt-2.5" : "mt-4";
}

/** The prompt of a new session, while it waits for its sandbox. */
function FirstPrompt({ session }: { session: SessionState }) {
  const [first] = session.tasks;
  if (first?.status !== "queued") return null;
  const entry: PromptEntry = {
    kind: "prompt",
    key: first.id,
    at_ms: first.queued_at_ms,
    task_id: first.id,
    author: first.author,
    text: first.prompt,
    agent: first.agent,
    model: first.model,
    limits: first.limits,
  };
  return (
    <div className="mb-4">
      <Prompt entry={entry} />
    </div>
  );
}

/** What comes after the last entry: what waits, what works, or how to go on. */
function Ending({ session, isPast }: { session: SessionState; isPast: boolean }) {
  const running = runningTask(session);
  return (
    <>
      {(session.status === "provisioning" || session.sandbox.status === "failed") && <Provisioning session={session} />}
      {isPast ? <Waited session={session} /> : <WayOn session={session} />}
      {running && <Working session={session} task={running} isPast={isPast} />}
    </>
  );
}

/** The tasks that waited at a moment of the past; those of the present are in the queue. */
function Waited({ session }: { session: SessionState }) {
  const [first] = session.tasks;
  const waiting = queuedTasks(session).filter((task) => task !== first);
  if (waiting.length === 0) return null;
  return (
    <ul aria-label="Waited" className="mt-4 space-y-0.5 text-xs text-ink-faint">
      {waiting.map((task) => (
        <li key={task.id} className="flex items-start gap-2">
          <Clock aria-hidden className="mt-0.5 size-3.5 shrink-0" />
          <span className="line-clamp-3 [overflow-wrap:anywhere]">{task.prompt}</span>
        </li>
      ))}
    </ul>
  );
}

function Provisioning({ session }: { session: SessionState }) {
  return (
    <div className="mt-4 animate-fade-in rounded-xl border bg-surface p-4 shadow-raised">
      <p className="mb-3 flex items-center gap-2 text-[0.8125rem] font-medium">
        {session.sandbox.status === "creating" && session.sandbox.steps.length === 0 && <Spinner className="size-3.5 text-accent" />}
        {session.sandbox.status === "failed" ? "How far the sandbox came" : "Starting a sandbox"}
      </p>
      {session.sandbox.steps.length > 0 && <SandboxSteps steps={session.sandbox.steps} />}
    </div>
  );
}

/** After a failure: the same task again, or only a new sandbox. */
function WayOn({ session }: { session: SessionState }) {
  const retry = useRetry(session.id);
  const again = useTask(session.id);
  const last = session.tasks.findLast((task) => task.status !== "queued");
  const failed = last?.status === "failed" && queuedTasks(session).length === 0 ? last : undefined;
  const isFailed = session.status === "failed";
  if (!isFailed && !(failed && session.status === "ready")) return null;
  return (
    <div className="mt-3 flex flex-wrap items-center gap-2">
      {failed && (
        <Button
          look="primary"
          busy={again.isPending}
          onClick={() => {
            again.mutate(failed);
          }}
        >
          {!again.isPending && <RotateCw aria-hidden />} Run the task again
        </Button>
      )}
      {isFailed && (
        <Button
          look={failed ? "outline" : "primary"}
          busy={retry.isPending}
          onClick={() => {
            retry.mutate();
          }}
        >
          {!retry.isPending && !failed && <RotateCw aria-hidden />} {failed ? "Only a new sandbox" : "Retry"}
        </Button>
      )}
    </div>
  );
}

interface WorkingProps {
  session: SessionState;
  task: Task;
  isPast: boolean;
}

/** A sign of life while nothing else moves. */
function Working({ session, task, isPast }: WorkingProps) {
  const isPaused = session.status === "paused";
  const isStopping = task.cancel_requested || task.given_up || task.limit !== null;
  const waits = session.requests.length > 0;
  const isQuiet = session.status === "provisioning" || isPaused;
  return (
    <div className="mt-4 flex min-h-8 items-center gap-2 text-xs text-ink-faint">
      <p role="status" className="flex items-center gap-2">
        <span aria-hidden className={cn("size-1.5 rounded-full", waits ? "bg-warn" : isQuiet ? "bg-ink-faint" : "animate-breathe bg-accent")} />
        {isStopping ? "Stopping" : isPaused ? "Paused" : waits ? "Waiting for you" : isQuiet ? "Waiting for a sandbox" : "Working"}
        {!isPaused && <Elapsed since_ms={task.started_at_ms} className="font-mono tabular-nums" />}
        {session.stuck && !isStopping && <span className="text-warn">Nothing was heard for long</span>}
      </p>
      {!isPast && !isStopping && <Allowance session={session} task={task} />}
    </div>
  );
}

/** How much of its limits the running task has used; opens to change them. */
function Allowance({ session, task }: { session: SessionState; task: Task }) {
  const edit = useEditTask(session.id);
  const now = useMoment();
  const { limits, usage } = task;
  const worked_ms = task.worked_ms + (task.working_since_ms > 0 ? Math.max(0, now - task.working_since_ms) : 0);
  const used: string[] = [];
  if (limits.time_s > 0) used.push(`${timeSpan(worked_ms / 1000)} of ${timeSpan(limits.time_s)}`);
  if (limits.tokens > 0) used.push(`${count(usage.input_tokens + usage.output_tokens)} of ${count(limits.tokens)} tokens`);
  if (limits.cost_usd > 0) used.push(`${dollars(usage.cost_usd)} of ${dollars(limits.cost_usd)}`);
  return (
    <LimitsControl
      value={limits}
      onChange={(next) => {
        edit.mutate({ taskId: task.id, change: { limits: next } });
      }}
      className="h-7 px-1.5 text-xs text-ink-faint tabular-nums"
    >
      {used.join(" · ") || undefined}
    </LimitsControl>
  );
}
