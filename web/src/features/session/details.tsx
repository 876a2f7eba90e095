import { Link } from "@tanstack/react-router";
import { Download } from "lucide-react";
import { artifactUrl } from "@/api/sessions";
import type { Child, Task } from "@/api/types";
import { CopyButton } from "@/components/copy-button";
import { DiffCounts } from "@/components/diff-counts";
import { Facts, type Fact } from "@/components/facts";
import { count, dollars, duration, exactTime, fileSize, limitsText } from "@/lib/format";
import type { SessionState } from "./state";

/** Everything about the session that has no better place. */
export function Details({ session }: { session: SessionState }) {
  const { repository, usage } = session;
  const facts: Fact[] = [
    ["Session", session.id, "mono"],
    ["Repository", repository.source, "mono"],
    ["Branch", repository.branch, "mono"],
    ["Work branch", session.work_branch, "mono"],
    ["Base commit", session.base_commit.slice(0, 12), "mono"],
    ["Model", session.model, "mono"],
    ["Approval", session.approval === "ask" ? "The agent asks first" : "The agent works alone"],
    ["Started by", session.created_by],
    ["Started", session.created_at_ms > 0 ? exactTime(session.created_at_ms) : ""],
    ["Last event", `${exactTime(session.updated_at_ms)}, number ${String(session.seq)}`],
    ["Tokens", `${count(usage.input_tokens)} in, ${count(usage.output_tokens)} out, ${count(usage.cache_read_tokens)} from the cache`],
    ["Cost", dollars(usage.cost_usd)],
    ["Limits of a task", limitsText(session.limits)],
    ["Fork of", session.origin ? <SessionLink id={session.origin.session_id} seq={session.origin.seq} /> : "", "mono"],
    ["Started from", session.parent ? <SessionLink id={session.parent.session_id} /> : "", "mono"],
  ];
  return (
    <div className="h-full space-y-6 overflow-y-auto p-4">
      <Facts facts={facts} />
      <section>
        <h2 className="mb-2 text-xs font-semibold text-ink-faint">From a terminal</h2>
        <div className="space-y-1.5">
          <Command text={`ship attach ${session.id}`} />
          <Command text={`ship apply ${session.id}`} />
        </div>
      </section>
      {session.tasks.length > 0 && (
        <section>
          <h2 className="mb-2 text-xs font-semibold text-ink-faint">Tasks</h2>
          <ol className="divide-y rounded-xl border">
            {session.tasks.map((task) => (
              <TaskRow key={task.id} task={task} />
            ))}
          </ol>
        </section>
      )}
      {session.children.length > 0 && (
        <section>
          <h2 className="mb-2 text-xs font-semibold text-ink-faint">Sessions that it started</h2>
          <ul className="divide-y rounded-xl border">
            {session.children.map((child) => (
              <ChildRow key={child.id} child={child} />
            ))}
          </ul>
        </section>
      )}
      {session.artifacts.length > 0 && (
        <section>
          <h2 className="mb-2 text-xs font-semibold text-ink-faint">Artifacts</h2>
          <ul className="divide-y rounded-xl border">
            {session.artifacts.map((artifact) => (
              <li key={artifact.name}>
                <a
                  href={artifactUrl(session.id, artifact.name)}
                  download
                  className="flex items-center gap-2 px-3 py-2 text-[0.8125rem] -outline-offset-2 hover:bg-hover"
                >
                  <Download aria-hidden className="size-3.5 shrink-0 text-ink-faint" />
                  <span className="min-w-0 flex-1 truncate font-mono text-code">{artifact.name}</span>
                  <span className="text-xs text-ink-faint">{fileSize(artifact.size_bytes)}</span>
                </a>
              </li>
            ))}
          </ul>
        </section>
      )}
    </div>
  );
}

function Command({ text }: { text: string }) {
  return (
    <p className="flex items-center gap-2 rounded-lg border bg-sunken/60 py-0.5 pr-1 pl-3 font-mono text-code">
      <span className="min-w-0 flex-1 truncate">{text}</span>
      <CopyButton text={text} label="Copy" />
    </p>
  );
}

/** Another session, or with `seq` that session after so many events. */
function SessionLink({ id, seq = 0 }: { id: string; seq?: number }) {
  return (
    <Link to="/sessions/$id" params={{ id }} search={seq > 0 ? { at: seq } : {}} className="rounded underline decoration-line-strong underline-offset-3">
      {id}
    </Link>
  );
}

function ChildRow({ child }: { child: Child }) {
  return (
    <li>
      <Link to="/sessions/$id" params={{ id: child.id }} className="block px-3 py-2 text-[0.8125rem] -outline-offset-2 hover:bg-hover">
        <span className="block truncate" title={child.title}>
          {child.title || "Untitled"}
        </span>
        <span className="mt-0.5 flex flex-wrap gap-x-2 text-xs text-ink-faint">
          <span className={OUTCOMES[child.status]}>{child.status}</span>
          {child.files_changed > 0 && <DiffCounts additions={child.additions} deletions={child.deletions} />}
        </span>
        {child.summary && <span className="mt-0.5 line-clamp-2 text-xs text-ink-faint [overflow-wrap:anywhere]">{child.summary}</span>}
      </Link>
    </li>
  );
}

const OUTCOMES: Record<Task["status"], string> = {
  queued: "text-ink-faint",
  running: "text-accent",
  completed: "text-good",
  failed: "text-bad",
  cancelled: "text-ink-faint",
};

function TaskRow({ task }: { task: Task }) {
  const took = task.started_at_ms > 0 && task.ended_at_ms > 0 ? duration(task.ended_at_ms - task.started_at_ms) : "";
  const limits = limitsText(task.limits);
  return (
    <li className="px-3 py-2 text-[0.8125rem]">
      <p className="truncate" title={task.prompt}>
        {task.prompt}
      </p>
      <p className="mt-0.5 flex flex-wrap gap-x-2 text-xs text-ink-faint">
        <span className={OUTCOMES[task.status]}>{task.status}</span>
        <span>{task.author}</span>
        {took && <span>{took}</span>}
        {task.usage.model_calls > 0 && <span>{count(task.usage.input_tokens + task.usage.output_tokens)} tokens</span>}
        {limits && <span>at most {limits}</span>}
        {task.recovered && <span>recovered</span>}
      </p>
    </li>
  );
}
