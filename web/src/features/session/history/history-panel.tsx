import { Link } from "@tanstack/react-router";
import { Bookmark, CircleCheck, Clock, GitFork, History, Pause, type LucideIcon } from "lucide-react";
import { useState } from "react";
import { Ago } from "@/components/ago";
import { Button } from "@/components/button";
import { DiffCounts } from "@/components/diff-counts";
import { Notice } from "@/components/notice";
import { cn } from "@/lib/cn";
import { exactTime, plural } from "@/lib/format";
import { useTakeCheckpoint } from "../actions";
import type { SavedPoint, SessionState } from "../state";
import { ForkDialog } from "./fork-dialog";
import { pointAt, pointTitle } from "./moments";

interface HistoryPanelProps {
  /** As it is now. */
  session: SessionState;
  /** The moment that is shown; the last event's number is now. */
  at: number;
  /** When that was. */
  at_ms: number;
  onScrub: (seq: number) => void;
}

/** The session's time line: its checkpoints, each to look at, to compare and to fork from. */
export function HistoryPanel({ session, at, at_ms, onScrub }: HistoryPanelProps) {
  const [forked, setForked] = useState<SavedPoint | null>(null);
  const shown = pointAt(session, at);
  const points = session.checkpoints.toReversed();
  return (
    <div className="flex h-full flex-col">
      <div className="shrink-0 space-y-3 border-b px-4 py-3">
        <Scrubber session={session} at={at} at_ms={at_ms} onScrub={onScrub} />
        <TakeCheckpoint session={session} />
      </div>
      <div className="min-h-0 flex-1 overflow-y-auto">
        {points.length === 0 ? (
          <Notice icon={History} title="No checkpoint yet">
            One is taken after each task, before a pause, and whenever you ask for it. Each is a point to come back to.
          </Notice>
        ) : (
          <ol aria-label="Checkpoints, newest first" className="px-4 py-3">
            {points.map((point) => (
              <PointRow
                key={point.id}
                session={session}
                point={point}
                isShown={point.id === shown?.id && at < session.seq}
                onFork={() => {
                  setForked(point);
                }}
              />
            ))}
          </ol>
        )}
      </div>
      {forked && (
        <ForkDialog
          session={session}
          point={forked}
          onClose={() => {
            setForked(null);
          }}
        />
      )}
    </div>
  );
}

/** Moves through the log, event by event. */
function Scrubber({ session, at, at_ms, onScrub }: HistoryPanelProps) {
  const isNow = at >= session.seq;
  return (
    <label className="block">
      <span className="mb-1 flex items-baseline justify-between gap-3 text-xs text-ink-faint">
        <span className="font-semibold">Moment</span>
        <span className="truncate tabular-nums">
          {isNow ? "now" : `${exactTime(at_ms)} · event ${String(at)} of ${String(session.seq)}`}
        </span>
      </span>
      <input
        type="range"
        min={1}
        max={session.seq}
        value={at}
        aria-valuetext={isNow ? "now" : `event ${String(at)}, ${exactTime(at_ms)}`}
        onChange={(event) => {
          onScrub(event.target.valueAsNumber);
        }}
        className="block h-6 w-full accent-(--accent)"
      />
    </label>
  );
}

function TakeCheckpoint({ session }: { session: SessionState }) {
  const take = useTakeCheckpoint(session.id);
  const isWanted = session.wanted_checkpoint !== null || take.isPending;
  const isAlive = session.sandbox.status === "ready" || session.sandbox.status === "paused";
  if (session.status === "archived") return null;
  return (
    <div className="flex flex-wrap items-center gap-x-3 gap-y-1.5">
      <Button
        size="sm"
        busy={isWanted}
        disabled={!isAlive}
        onClick={() => {
          take.mutate();
        }}
      >
        {!isWanted && <Bookmark aria-hidden />} {isWanted ? "Taking a checkpoint" : "Take a checkpoint"}
      </Button>
      <p className="text-xs text-ink-faint">{isAlive ? "Of the workspace as it stands, also while the agent works." : "There is no workspace now."}</p>
    </div>
  );
}

const ICONS: Record<SavedPoint["reason"], LucideIcon> = {
  task: CircleCheck,
  time: Clock,
  asked: Bookmark,
  pause: Pause,
  fork: GitFork,
};

interface PointRowProps {
  session: SessionState;
  point: SavedPoint;
  isShown: boolean;
  onFork: () => void;
}

function PointRow({ session, point, isShown, onFork }: PointRowProps) {
  const Icon = ICONS[point.reason];
  const title = pointTitle(session, point);
  return (
    <li
      aria-current={isShown || undefined}
      className="relative flex gap-3 pb-4 before:absolute before:top-6 before:bottom-0 before:left-3 before:w-px before:bg-line last:before:hidden"
    >
      <span
        className={cn(
          "z-10 grid size-6 shrink-0 place-items-center rounded-full border bg-surface text-ink-faint",
          isShown && "border-accent bg-accent-soft text-accent",
        )}
      >
        <Icon aria-hidden className="size-3.5" />
      </span>
      <div className="min-w-0 flex-1">
        <div className="flex items-start gap-2">
          <Link
            to="."
            search={(search) => ({ ...search, at: point.seq })}
            title={`${title}\nLook at this moment`}
            className="line-clamp-2 min-w-0 flex-1 rounded text-[0.8125rem] leading-6 font-medium underline-offset-3 [overflow-wrap:anywhere] hover:underline"
          >
            {title}
          </Link>
          <span className="flex shrink-0 items-center gap-1">
            <Button size="sm" look="ghost" asChild>
              <Link to="." search={{ at: point.seq, tab: "diff" }} aria-label={`Diff of: ${title}`}>
                Diff
              </Link>
            </Button>
            <Button size="sm" look="ghost" onClick={onFork} aria-label={`Fork from: ${title}`}>
              <GitFork aria-hidden /> Fork
            </Button>
          </span>
        </div>
        <p className="flex flex-wrap items-center gap-x-2 text-xs text-ink-faint">
          <Ago at_ms={point.at_ms} />
          <span>{point.files_changed > 0 ? plural(point.files_changed, "file") : "no changes"}</span>
          {point.files_changed > 0 && <DiffCounts additions={point.additions} deletions={point.deletions} />}
          <code className="font-mono text-2xs">{point.commit.slice(0, 7)}</code>
        </p>
      </div>
    </li>
  );
}
