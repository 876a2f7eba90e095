import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { CloudOff, Columns2, Download, FileDiff as DiffIcon, Rows2 } from "lucide-react";
import { useMemo, useRef, useState } from "react";
import { ApiError } from "@/api/http";
import { getDiff, type DiffSource } from "@/api/sessions";
import { Button } from "@/components/button";
import { DiffCounts } from "@/components/diff-counts";
import { asFailure } from "@/components/failure-box";
import { IconButton } from "@/components/icon-button";
import { Notice } from "@/components/notice";
import { Segmented, type Segment } from "@/components/segmented";
import { Skeleton } from "@/components/skeleton";
import { cn } from "@/lib/cn";
import { plural } from "@/lib/format";
import { useMedia, WIDE } from "@/lib/media";
import { isString, readStored, writeStored } from "@/lib/stored";
import { FileView } from "./file-view";
import type { Layout } from "./hunk-view";
import { parseDiff, type FileDiff } from "./parse";

/** While the agent works, the workspace is asked this often. */
const LIVE_EVERY_MS = 2500;

const LAYOUTS: Segment<Layout>[] = [
  { value: "unified", label: <Rows2 aria-hidden />, name: "Unified" },
  { value: "split", label: <Columns2 aria-hidden />, name: "Side by side" },
];

interface DiffPanelProps {
  sessionId: string;
  /** The newest checkpoint; empty: there is none. */
  checkpointId: string;
  /** The checkpoint itself is wanted, not what became of the workspace since. */
  isPast: boolean;
  /** The sandbox stands: the workspace itself can be asked. */
  hasWorkspace: boolean;
  isRunning: boolean;
}

/** What the session changed against where it began. */
export function DiffPanel({ sessionId, checkpointId, isPast, hasWorkspace, isRunning }: DiffPanelProps) {
  const diff = useQuery({
    queryKey: ["diff", sessionId, checkpointId, isPast, hasWorkspace],
    queryFn: async ({ signal }) => {
      if (!checkpointId && (isPast || !hasWorkspace)) return "";
      const source: DiffSource = hasWorkspace ? { live: true } : { checkpoint: isPast ? checkpointId : "" };
      try {
        return await getDiff(sessionId, source, signal);
      } catch (error) {
        // No checkpoint yet is no failure: there is nothing to show.
        if (error instanceof ApiError && (error.status === 404 || error.status === 409) && !checkpointId) return "";
        throw error;
      }
    },
    placeholderData: keepPreviousData,
    ...(isPast && { staleTime: Infinity }),
    refetchInterval: isRunning && hasWorkspace ? LIVE_EVERY_MS : false,
  });
  const files = useMemo(() => parseDiff(diff.data ?? ""), [diff.data]);
  if (diff.isPending) return <Loading />;
  if (diff.isError && files.length === 0) {
    const { reason, hint } = asFailure(diff.error);
    return (
      <Notice icon={CloudOff} title="The diff could not be loaded" action={<Button busy={diff.isFetching} onClick={() => { void diff.refetch(); }}>Try again</Button>}>
        {reason} {hint}
      </Notice>
    );
  }
  if (files.length === 0 && isPast) {
    return (
      <Notice icon={DiffIcon} title="No changes by then">
        {checkpointId ? "The last checkpoint before this moment changes nothing." : "No checkpoint was taken before this moment."}
      </Notice>
    );
  }
  if (files.length === 0) {
    return (
      <Notice icon={DiffIcon} title="No changes yet">
        {isRunning ? "What the agent changes appears here as it works." : "The workspace is as it was at the start."}
      </Notice>
    );
  }
  return <Files files={files} text={diff.data ?? ""} isLive={isRunning && hasWorkspace} sessionId={sessionId} />;
}

interface FilesProps {
  files: FileDiff[];
  text: string;
  isLive: boolean;
  sessionId: string;
}

function Files({ files, text, isLive, sessionId }: FilesProps) {
  const isWide = useMedia(WIDE);
  const [chosen, setChosen] = useState(() => readStored("diff", isString, "unified"));
  const layout: Layout = chosen === "split" && isWide ? "split" : "unified";
  const list = useRef<HTMLDivElement>(null);
  const total = (field: "additions" | "deletions"): number => files.reduce((sum, file) => sum + file[field], 0);
  return (
    <div className="flex h-full flex-col">
      <div className="flex shrink-0 items-center gap-3 border-b px-4 py-1.5 text-xs text-ink-faint">
        <span>{plural(files.length, "file")} changed</span>
        <DiffCounts additions={total("additions")} deletions={total("deletions")} />
        {isLive && (
          <span className="flex items-center gap-1.5 text-accent">
            <span aria-hidden className="size-1.5 animate-breathe rounded-full bg-current" /> live
          </span>
        )}
        <span className="flex-1" />
        {isWide && (
          <Segmented
            label="Layout"
            value={layout}
            segments={LAYOUTS}
            onChange={(next) => {
              setChosen(next);
              writeStored("diff", next);
            }}
          />
        )}
        <IconButton label="Download as a patch" size="icon-sm" onClick={() => { download(text, `${sessionId}.patch`); }}>
          <Download aria-hidden />
        </IconButton>
      </div>
      <div ref={list} className="min-h-0 flex-1 space-y-3 overflow-y-auto bg-canvas p-3 sm:p-4">
        {files.length > 1 && (
          <ul className="rounded-xl border bg-surface py-1.5">
            {files.map((file, index) => (
              <li key={file.path}>
                <button
                  type="button"
                  onClick={() => {
                    list.current?.querySelectorAll("section")[index]?.scrollIntoView({ block: "start" });
                  }}
                  className="flex w-full items-center gap-2 px-3 py-0.5 text-left -outline-offset-2 hover:bg-hover"
                >
                  <Letter status={file.status} />
                  <span className="min-w-0 flex-1 truncate font-mono text-code">{file.path}</span>
                  <DiffCounts additions={file.additions} deletions={file.deletions} />
                </button>
              </li>
            ))}
          </ul>
        )}
        {files.map((file) => (
          <FileView key={file.path} file={file} layout={layout} />
        ))}
      </div>
    </div>
  );
}

const LETTERS: Record<FileDiff["status"], string> = {
  added: "text-good",
  deleted: "text-bad",
  renamed: "text-accent",
  modified: "text-warn",
};

function Letter({ status }: { status: FileDiff["status"] }) {
  return (
    <span title={status} className={cn("w-3 shrink-0 text-center font-mono text-xs font-semibold uppercase", LETTERS[status])}>
      {status.slice(0, 1)}
    </span>
  );
}

function download(text: string, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/x-diff" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function Loading() {
  return (
    <div role="status" aria-label="Loading the diff" className="space-y-3 p-4">
      <Skeleton className="h-24 w-full rounded-xl" />
      <Skeleton className="h-56 w-full rounded-xl" />
    </div>
  );
}
