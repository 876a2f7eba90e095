import { useQuery } from "@tanstack/react-query";
import { ChevronRight, CloudOff, File, Folder, FolderOpen, FolderSymlink } from "lucide-react";
import { useState } from "react";
import { listFiles } from "@/api/sessions";
import type { FileEntry } from "@/api/types";
import { Button } from "@/components/button";
import { asFailure } from "@/components/failure-box";
import { Notice } from "@/components/notice";
import { Skeleton } from "@/components/skeleton";
import { fileSize } from "@/lib/format";
import { FileContent } from "./file-content";

interface Place {
  path: string;
  kind: FileEntry["kind"];
}

const ROOT: Place = { path: "", kind: "directory" };

interface FilesPanelProps {
  sessionId: string;
  /** The sandbox stands: without one there are no files to look at. */
  hasWorkspace: boolean;
  isPast: boolean;
}

/** The workspace: folders to walk through, files to read. */
export function FilesPanel({ sessionId, hasWorkspace, isPast }: FilesPanelProps) {
  const [place, setPlace] = useState(ROOT);
  if (!hasWorkspace) {
    return (
      <Notice icon={FolderOpen} title="No workspace to look into">
        {isPast ? "The files can be read as they are now." : "The files can be read while the sandbox stands and is awake."} What changed is in the diff.
      </Notice>
    );
  }
  return (
    <div className="flex h-full flex-col">
      <Breadcrumbs place={place} onGo={setPlace} />
      <div className="min-h-0 flex-1 overflow-auto">
        {place.kind !== "directory" ? (
          <FileContent key={place.path} sessionId={sessionId} path={place.path} />
        ) : (
          <FolderView key={place.path} sessionId={sessionId} path={place.path} onGo={setPlace} />
        )}
      </div>
    </div>
  );
}

function Breadcrumbs({ place, onGo }: { place: Place; onGo: (place: Place) => void }) {
  const names = place.path.split("/").filter(Boolean);
  return (
    <nav aria-label="Path" className="flex h-11 shrink-0 items-center gap-0.5 overflow-x-auto border-b px-3 text-[0.8125rem] [scrollbar-width:none]">
      <Crumb name="workspace" isLast={names.length === 0} onClick={() => { onGo(ROOT); }} />
      {names.map((name, index) => (
        <span key={index} className="flex items-center gap-0.5">
          <ChevronRight aria-hidden className="size-3.5 shrink-0 text-ink-faint" />
          <Crumb
            name={name}
            isLast={index === names.length - 1}
            onClick={() => {
              onGo({ path: names.slice(0, index + 1).join("/"), kind: "directory" });
            }}
          />
        </span>
      ))}
    </nav>
  );
}

function Crumb({ name, isLast, onClick }: { name: string; isLast: boolean; onClick: () => void }) {
  if (isLast) return <span aria-current="page" className="px-1 font-medium whitespace-nowrap">{name}</span>;
  return (
    <button type="button" onClick={onClick} className="rounded px-1 whitespace-nowrap text-ink-faint hover:bg-hover hover:text-ink">
      {name}
    </button>
  );
}

interface FolderProps {
  sessionId: string;
  path: string;
  onGo: (place: Place) => void;
}

function FolderView({ sessionId, path, onGo }: FolderProps) {
  const files = useQuery({
    queryKey: ["files", sessionId, path],
    queryFn: ({ signal }) => listFiles(sessionId, path, signal),
    staleTime: 2000,
  });
  if (files.isPending) {
    return (
      <div role="status" aria-label="Loading files" className="space-y-2.5 p-4">
        {[64, 40, 52, 36, 48].map((width) => (
          <Skeleton key={width} className="h-4" />
        ))}
      </div>
    );
  }
  if (files.isError) {
    const { reason, hint } = asFailure(files.error);
    return (
      <Notice icon={CloudOff} title="The folder could not be read" action={<Button busy={files.isFetching} onClick={() => { void files.refetch(); }}>Try again</Button>}>
        {reason} {hint}
      </Notice>
    );
  }
  if (files.data.items.length === 0) return <Notice icon={FolderOpen} title="An empty folder" />;
  return (
    <ul className="py-1.5">
      {[...files.data.items].sort(foldersFirst).map((entry) => (
        <li key={entry.path}>
          <button
            type="button"
            onClick={() => {
              onGo({ path: entry.path, kind: entry.kind });
            }}
            className="flex w-full items-center gap-2.5 px-4 py-1 text-left text-[0.8125rem] -outline-offset-2 hover:bg-hover"
          >
            <EntryIcon kind={entry.kind} />
            <span className="min-w-0 flex-1 truncate">{entry.name}</span>
            {entry.kind === "file" && <span className="font-mono text-xs text-ink-faint tabular-nums">{fileSize(entry.size_bytes)}</span>}
          </button>
        </li>
      ))}
    </ul>
  );
}

const foldersFirst = (one: FileEntry, other: FileEntry): number =>
  Number(other.kind === "directory") - Number(one.kind === "directory") || one.name.localeCompare(other.name);

function EntryIcon({ kind }: { kind: FileEntry["kind"] }) {
  const look = "size-4 shrink-0";
  if (kind === "directory") return <Folder aria-label="folder" className={`${look} fill-accent/15 text-accent`} />;
  if (kind === "symlink") return <FolderSymlink aria-label="link" className={`${look} text-ink-faint`} />;
  return <File aria-label="file" className={`${look} text-ink-faint`} />;
}
