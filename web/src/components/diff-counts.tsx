import { cn } from "@/lib/cn";

/** Lines added and removed, in green and red. */
export function DiffCounts(props: { additions: number; deletions: number; className?: string }) {
  const { additions, deletions, className } = props;
  return (
    <span className={cn("inline-flex gap-1.5 font-mono text-xs tabular-nums", className)}>
      <span className="text-good">+{additions}</span>
      <span className="text-bad">−{deletions}</span>
    </span>
  );
}
