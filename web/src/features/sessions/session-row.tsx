import { Link } from "@tanstack/react-router";
import { CornerDownRight, FolderGit2 } from "lucide-react";
import type { SessionSummary } from "@/api/types";
import { Ago } from "@/components/ago";
import { DiffCounts } from "@/components/diff-counts";
import { StatusPill, TaskMark } from "@/components/status";
import { modelName, plural, repositoryName } from "@/lib/format";

export function SessionRow({ session }: { session: SessionSummary }) {
  const { repository, status, failure } = session;
  return (
    <Link
      to="/sessions/$id"
      params={{ id: session.id }}
      className="group flex items-center gap-4 px-4 py-3 -outline-offset-2 transition-colors hover:bg-hover/60"
    >
      <div className="min-w-0 flex-1">
        <p className="truncate font-medium">
          {session.parent && <CornerDownRight role="img" aria-label="Started by another session:" className="mr-1.5 inline size-3.5 text-ink-faint" />}
          {session.title || "Untitled"}
        </p>
        <p className="mt-0.5 flex min-w-0 items-center gap-1.5 text-xs text-ink-faint">
          <FolderGit2 aria-hidden className="size-3.5 shrink-0" />
          <span className="truncate" title={repository.source}>
            {repositoryName(repository.source)}
            {repository.branch && ` @ ${repository.branch}`}
          </span>
          <span aria-hidden>·</span>
          <span className="hidden truncate sm:inline">{modelName(session.model)}</span>
          <span aria-hidden className="hidden sm:inline">·</span>
          <Ago at_ms={session.updated_at_ms} className="shrink-0" />
        </p>
        {status === "failed" && failure && <p className="mt-1 truncate text-xs text-bad">{failure.reason}</p>}
      </div>
      {session.files_changed > 0 && (
        <span className="hidden items-center gap-2 text-xs text-ink-faint sm:flex">
          {plural(session.files_changed, "file")}
          <DiffCounts additions={session.additions} deletions={session.deletions} />
        </span>
      )}
      <span className="flex shrink-0 flex-col items-end gap-1 sm:flex-row-reverse sm:items-center sm:gap-3">
        <StatusPill status={status} openRequests={session.open_requests} />
        {status === "ready" && <TaskMark status={session.last_task_status} />}
      </span>
    </Link>
  );
}
