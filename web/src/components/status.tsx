import { cva } from "class-variance-authority";
import { CircleSlash, CircleX } from "lucide-react";
import type { SessionStatus, TaskStatus } from "@/api/types";
import { cn } from "@/lib/cn";

const pill = cva("inline-flex h-5.5 shrink-0 items-center gap-1.5 rounded-full px-2 text-xs font-medium whitespace-nowrap", {
  variants: {
    tone: {
      quiet: "bg-sunken text-ink-faint",
      active: "bg-accent-soft text-accent",
      good: "bg-good-soft text-good",
      bad: "bg-bad-soft text-bad",
      warn: "bg-warn-soft text-warn",
    },
  },
});

type Tone = "quiet" | "active" | "good" | "bad" | "warn";

const LOOKS: Record<SessionStatus | "needs-you", { tone: Tone; text: string; breathes?: boolean }> = {
  created: { tone: "quiet", text: "Created" },
  provisioning: { tone: "active", text: "Starting", breathes: true },
  ready: { tone: "good", text: "Ready" },
  running: { tone: "active", text: "Running", breathes: true },
  paused: { tone: "quiet", text: "Paused" },
  failed: { tone: "bad", text: "Failed" },
  archived: { tone: "quiet", text: "Archived" },
  "needs-you": { tone: "warn", text: "Needs you" },
};

/** Where a session stands, in a word; open requests come before everything else. */
export function StatusPill(props: { status: SessionStatus; openRequests: number; className?: string }) {
  const { status, openRequests, className } = props;
  const look = LOOKS[openRequests > 0 && status !== "archived" ? "needs-you" : status];
  return (
    <span className={cn(pill({ tone: look.tone }), className)}>
      <span aria-hidden className={cn("size-1.5 rounded-full bg-current", look.breathes && "animate-breathe")} />
      {look.text}
    </span>
  );
}

/** How a session's last task ended, where that is not as it was meant to. */
export function TaskMark({ status }: { status: TaskStatus | null }) {
  if (status !== "failed" && status !== "cancelled") return null;
  const isFailed = status === "failed";
  const Icon = isFailed ? CircleX : CircleSlash;
  return (
    <span className={cn("inline-flex items-center gap-1 text-xs whitespace-nowrap", isFailed ? "text-bad" : "text-ink-faint")}>
      <Icon aria-hidden className="size-3.5" />
      {isFailed ? "Task failed" : "Stopped"}
    </span>
  );
}
