import { Link } from "@tanstack/react-router";
import { Check, CircleCheck, CircleStop, CircleX, Info, Network, TriangleAlert } from "lucide-react";
import type { ReactNode } from "react";
import type { Task } from "@/api/types";
import { DiffCounts } from "@/components/diff-counts";
import { count, dollars, duration } from "@/lib/format";
import type { AnsweredEntry, ChildEntry, LineEntry, Link as Target, OutcomeEntry } from "../state";

/** Something that explains what follows. */
export function QuietLine({ entry }: { entry: LineEntry }) {
  const Icon = entry.tone === "warning" ? TriangleAlert : Info;
  return (
    <p className="flex items-start gap-2 py-0.5 text-xs text-ink-faint">
      <Icon
        aria-hidden
        className={`mt-0.5 size-3.5 shrink-0 ${entry.tone === "warning" ? "text-warn" : ""}`}
      />
      <span className="min-w-0 [overflow-wrap:anywhere]">
        {entry.text}
        {entry.detail && <span> · {entry.detail}</span>}
        {entry.link && (
          <>
            {" · "}
            <Onward target={entry.link} />
          </>
        )}
      </span>
    </p>
  );
}

const LINK = "rounded text-ink-soft underline decoration-line-strong underline-offset-3 hover:text-ink hover:decoration-current";

function Onward({ target }: { target: Target }) {
  if (target.to === "past") {
    return (
      <Link to="." search={(search) => ({ ...search, at: target.seq })} className={LINK}>
        {target.text}
      </Link>
    );
  }
  return (
    <Link to="/sessions/$id" params={{ id: target.id }} search={target.seq > 0 ? { at: target.seq } : {}} className={LINK}>
      {target.text}
    </Link>
  );
}

const CHILD: Record<ChildEntry["status"], string> = {
  queued: "Started a session",
  running: "Started a session",
  completed: "The session is done",
  failed: "The session failed",
  cancelled: "The session was stopped",
};

/** A session that this one started, at its start or at its end. */
export function ChildLine({ entry }: { entry: ChildEntry }) {
  const { status } = entry;
  return (
    <div className="flex items-start gap-2 py-0.5 text-xs text-ink-faint">
      <Network aria-hidden className={`mt-0.5 size-3.5 shrink-0 ${status === "failed" ? "text-bad" : status === "completed" ? "text-good" : ""}`} />
      <div className="min-w-0 flex-1 [overflow-wrap:anywhere]">
        {CHILD[status]} ·{" "}
        <Link to="/sessions/$id" params={{ id: entry.child_id }} className={LINK}>
          {entry.title || "Untitled"}
        </Link>
        {entry.files_changed > 0 && <DiffCounts additions={entry.additions} deletions={entry.deletions} className="ml-2" />}
        {entry.text && entry.text !== entry.title && <p className="mt-0.5 line-clamp-3 whitespace-pre-wrap">{entry.text}</p>}
      </div>
    </div>
  );
}

/** What a person answered, in one line. */
export function Answered({ entry }: { entry: AnsweredEntry }) {
  const { request, author, answer } = entry;
  const isRejected = answer.reply === "reject";
  const Icon = isRejected ? CircleX : Check;
  return (
    <div className="flex items-start gap-2 py-0.5 text-xs text-ink-faint">
      <Icon aria-hidden className={`mt-0.5 size-3.5 shrink-0 ${isRejected ? "text-bad" : "text-good"}`} />
      <p className="min-w-0 [overflow-wrap:anywhere]">
        <span className="font-medium text-ink-soft">{author}</span> {saidOf(entry)} <q>{request.title}</q>
        {(answer.answers ?? []).map((labels, index) => (
          <span key={index} className="block">
            {request.questions[index]?.question} <span className="text-ink-soft">{labels.join(", ")}</span>
          </span>
        ))}
        {answer.message && <span className="block text-ink-soft">{answer.message}</span>}
      </p>
    </div>
  );
}

function saidOf({ request, answer }: AnsweredEntry): string {
  if (request.kind === "question") return answer.reply === "reject" ? "declined" : "answered";
  switch (answer.reply) {
    case "always":
      return "always allowed";
    case "reject":
      return "refused";
    default:
      return "allowed";
  }
}

/** How a task ended, what it took. */
export function Outcome({ entry, task }: { entry: OutcomeEntry; task: Task | undefined }) {
  const isDone = entry.status === "completed";
  const Icon = isDone ? CircleCheck : CircleStop;
  const facts: ReactNode[] = [];
  if (task && task.started_at_ms > 0) facts.push(duration(entry.at_ms - task.started_at_ms));
  if (task && task.usage.model_calls > 0) {
    facts.push(`${count(task.usage.input_tokens + task.usage.output_tokens)} tokens`);
    if (task.usage.cost_usd > 0) facts.push(dollars(task.usage.cost_usd));
  }
  return (
    <div className="flex items-center gap-2 text-xs text-ink-faint">
      <Icon aria-hidden className={`size-4 shrink-0 ${isDone ? "text-good" : ""}`} />
      <span className="font-medium text-ink-soft">{isDone ? "Done" : "Stopped"}</span>
      {facts.map((fact, index) => (
        <span key={index}>· {fact}</span>
      ))}
      <span aria-hidden className="h-px flex-1 bg-line" />
    </div>
  );
}
