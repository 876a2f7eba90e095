import { ChevronDown } from "lucide-react";
import { memo, useState } from "react";
import { Button } from "@/components/button";
import { CopyButton } from "@/components/copy-button";
import { DiffCounts } from "@/components/diff-counts";
import { cn } from "@/lib/cn";
import { languageOf } from "@/lib/language";
import { HunkView, type Layout } from "./hunk-view";
import type { FileDiff } from "./parse";

/** A larger file is drawn when somebody asks for it. */
const LARGE_LINES = 800;

export const FileView = memo(function FileView({ file, layout }: { file: FileDiff; layout: Layout }) {
  const lines = file.hunks.reduce((sum, hunk) => sum + hunk.lines.length, 0);
  const [isOpen, setOpen] = useState(true);
  const [isShown, setShown] = useState(lines <= LARGE_LINES);
  return (
    <section aria-label={file.path} className="scroll-mt-2 rounded-xl border bg-surface">
      <h2 className={cn("sticky top-0 z-10 flex items-center gap-2 rounded-t-xl bg-surface px-2 py-1.5", isOpen ? "border-b" : "rounded-b-xl")}>
        <button
          type="button"
          aria-expanded={isOpen}
          onClick={() => {
            setOpen(!isOpen);
          }}
          className="flex min-w-0 flex-1 items-center gap-1.5 rounded-md text-left"
        >
          <ChevronDown aria-hidden className={cn("size-4 shrink-0 text-ink-faint transition-transform", !isOpen && "-rotate-90")} />
          <span className="truncate font-mono text-code font-medium" title={file.path}>
            {file.status === "renamed" && <span className="text-ink-faint">{file.oldPath} → </span>}
            {file.path}
          </span>
          {file.status !== "modified" && <span className="shrink-0 rounded bg-sunken px-1.5 text-xs font-normal text-ink-faint">{file.status}</span>}
        </button>
        <DiffCounts additions={file.additions} deletions={file.deletions} className="shrink-0" />
        <CopyButton text={file.path} label="Copy path" />
      </h2>
      {isOpen && (
        <div className="overflow-hidden rounded-b-xl">
          {!isShown && (
            <div className="px-4 py-5 text-center text-[0.8125rem] text-ink-faint">
              {lines} lines.{" "}
              <Button size="sm" className="ml-1" onClick={() => { setShown(true); }}>
                Show them
              </Button>
            </div>
          )}
          {isShown && lines > 0 && (
            <table className="w-full table-fixed border-collapse font-mono text-code">
              <colgroup>
                <col className="w-10" />
                <col className={layout === "unified" ? "w-10" : undefined} />
                <col className={layout === "unified" ? undefined : "w-10"} />
                <col className={layout === "unified" ? "w-0" : undefined} />
              </colgroup>
              <tbody>
                {file.hunks.map((hunk, index) => (
                  <HunkView key={index} hunk={hunk} language={languageOf(file.path)} layout={layout} />
                ))}
              </tbody>
            </table>
          )}
          {lines === 0 && (
            <p className="px-4 py-3 text-[0.8125rem] text-ink-faint">{file.isBinary ? "A binary file." : "Its content did not change."}</p>
          )}
        </div>
      )}
    </section>
  );
});
