import { cn } from "@/lib/cn";

/** A grey stand-in for what is on its way. */
export function Skeleton({ className }: { className?: string }) {
  return <div aria-hidden className={cn("animate-pulse rounded-md bg-hover", className)} />;
}
