import { Link } from "@tanstack/react-router";
import { Archive, ArrowRight, ChevronLeft, GitBranch, GitFork, Network, Pause, Play, Unplug } from "lucide-react";
import type { ReactNode } from "react";
import { Confirm } from "@/components/confirm";
import { CopyButton } from "@/components/copy-button";
import { IconButton } from "@/components/icon-button";
import { StatusPill } from "@/components/status";
import { ThemeToggle } from "@/components/theme-toggle";
import { Tooltip } from "@/components/tooltip";
import { count, dollars, modelName, repositoryName } from "@/lib/format";
import { useArchive, usePause, useResume } from "./actions";
import type { Phase } from "./feed";
import type { SessionState } from "./state";

interface HeaderProps {
  session: SessionState;
  phase: Phase;
  /** Further buttons. */
  children?: ReactNode;
}

/** What this session is, where it stands, what it has used. */
export function Header({ session, phase, children }: HeaderProps) {
  const { repository, work_branch, usage, status } = session;
  return (
    <header className="flex shrink-0 items-center gap-2 border-b bg-surface px-2 py-2 sm:px-3">
      <title>{`${session.requests.length > 0 ? "Needs you: " : ""}${session.title || "Session"} · Ship`}</title>
      <IconButton label="All sessions" asChild>
        <Link to="/">
          <ChevronLeft aria-hidden />
        </Link>
      </IconButton>
      <div className="min-w-0 flex-1">
        <div className="flex min-w-0 items-center gap-2">
          <h1 className="truncate text-sm font-semibold" title={session.title}>
            {session.title || "Untitled"}
          </h1>
          <span role="status" className="shrink-0">
            <StatusPill status={status} openRequests={session.requests.length} />
          </span>
          {phase === "reconnecting" && <Reconnecting />}
        </div>
        <p className="flex min-w-0 items-center gap-1.5 text-xs text-ink-faint">
          <Descent session={session} />
          <span className="truncate" title={repository.source}>
            {repositoryName(repository.source)}
            {repository.branch && ` @ ${repository.branch}`}
          </span>
          {work_branch && (
            <span className="hidden min-w-0 items-center gap-1 sm:flex">
              <ArrowRight aria-hidden className="size-3 shrink-0" />
              <GitBranch aria-hidden className="size-3 shrink-0" />
              <span className="truncate font-mono text-2xs" title={work_branch}>
                {work_branch}
              </span>
            </span>
          )}
        </p>
      </div>
      <Tooltip
        text={`${count(usage.input_tokens)} tokens in, ${count(usage.output_tokens)} out, ${String(usage.model_calls)} model calls`}
      >
        <div tabIndex={0} className="hidden shrink-0 rounded-md px-1.5 text-right text-xs leading-4 text-ink-faint md:block">
          <p className="max-w-48 truncate text-ink-soft">{modelName(session.model)}</p>
          <p className="tabular-nums">
            {count(usage.input_tokens + usage.output_tokens)} tokens
            {usage.cost_usd > 0 && ` · ${dollars(usage.cost_usd)}`}
          </p>
        </div>
      </Tooltip>
      <div className="flex shrink-0 items-center">
        <span className="hidden items-center sm:flex">
          <CopyButton text={window.location.href.split("?")[0] ?? ""} label="Copy link" className="size-8" />
          <ThemeToggle />
        </span>
        <PauseButton session={session} />
        {status !== "archived" && <ArchiveButton id={session.id} />}
        {children}
      </div>
    </header>
  );
}

/** The way to the session that this one comes from. */
function Descent({ session: { origin, parent } }: { session: SessionState }) {
  const look = "inline-flex shrink-0 items-center gap-1 rounded underline decoration-line-strong underline-offset-3 hover:text-ink [&_svg]:size-3";
  if (origin) {
    return (
      <Link to="/sessions/$id" params={{ id: origin.session_id }} search={{ at: origin.seq }} className={look}>
        <GitFork aria-hidden /> fork
      </Link>
    );
  }
  if (!parent) return null;
  return (
    <Link to="/sessions/$id" params={{ id: parent.session_id }} className={look}>
      <Network aria-hidden /> child
    </Link>
  );
}

/** Freezes the sandbox with what runs in it, and lets it go on. */
function PauseButton({ session: { id, status } }: { session: SessionState }) {
  const pause = usePause(id);
  const resume = useResume(id);
  const isPaused = status === "paused";
  if (!isPaused && status !== "ready" && status !== "running") return null;
  const { mutate, isPending } = isPaused ? resume : pause;
  const Icon = isPaused ? Play : Pause;
  return (
    <IconButton
      label={isPaused ? "Resume" : "Pause: everything waits where it is"}
      busy={isPending}
      onClick={() => {
        mutate();
      }}
    >
      {!isPending && <Icon aria-hidden />}
    </IconButton>
  );
}

function ArchiveButton({ id }: { id: string }) {
  const archive = useArchive(id);
  return (
    <Confirm
      title="Archive this session?"
      text="Its sandbox is ended and what is not in the diff or on a branch goes with it. The conversation and the diff stay readable."
      confirm="Archive"
      onConfirm={() => {
        archive.mutate();
      }}
    >
      <IconButton label="Archive" busy={archive.isPending}>
        {!archive.isPending && <Archive aria-hidden />}
      </IconButton>
    </Confirm>
  );
}

/** Appears only when it takes longer than a blink. */
function Reconnecting() {
  return (
    <span
      role="status"
      className="inline-flex h-5.5 shrink-0 animate-[fade-in_200ms_ease-out_700ms_backwards] items-center gap-1.5 rounded-full bg-warn-soft px-2 text-xs font-medium text-warn"
    >
      <Unplug aria-hidden className="size-3 animate-breathe" /> Reconnecting
    </span>
  );
}
