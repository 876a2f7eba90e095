import { useMoment } from "@/lib/clock";
import { duration } from "@/lib/format";

/** The time since then, ticking each second as long as one looks at the present. */
export function Elapsed({ since_ms, className }: { since_ms: number; className?: string }) {
  const now = useMoment();
  const seconds = Math.max(0, Math.floor((now - since_ms) / 1000));
  return (
    <span className={className}>{seconds < 60 ? `${String(seconds)} s` : duration(seconds * 1000)}</span>
  );
}
