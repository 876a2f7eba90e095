import { useNow } from "@/lib/clock";
import { ago, exactTime } from "@/lib/format";

/** How long ago, kept true; the exact time on hover. */
export function Ago({ at_ms, className }: { at_ms: number; className?: string }) {
  const now = useNow(30_000);
  return (
    <time dateTime={new Date(at_ms).toISOString()} title={exactTime(at_ms)} className={className}>
      {ago(at_ms, now)}
    </time>
  );
}
