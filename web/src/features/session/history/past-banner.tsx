import { ChevronLeft, ChevronRight, GitFork, History } from "lucide-react";
import { lazy, Suspense, useState } from "react";
import { Button } from "@/components/button";
import { IconButton } from "@/components/icon-button";
import { exactTime } from "@/lib/format";
import type { SessionState } from "../state";
import { nextMoment, pointAt } from "./moments";

const ForkDialog = lazy(async () => ({ default: (await import("./fork-dialog")).ForkDialog }));

interface PastBannerProps {
  /** As it is now. */
  session: SessionState;
  at: number;
  at_ms: number;
  onGo: (seq: number) => void;
}

/** Says that the page shows the past, and leads through it and back. */
export function PastBanner({ session, at, at_ms, onGo }: PastBannerProps) {
  const [isForking, setForking] = useState(false);
  const point = pointAt(session, at);
  const step = (by: -1 | 1, label: string) => {
    const to = nextMoment(session, at, by);
    return (
      <IconButton
        label={label}
        size="icon-sm"
        disabled={to === undefined}
        onClick={() => {
          if (to !== undefined) onGo(to);
        }}
      >
        {by < 0 ? <ChevronLeft aria-hidden /> : <ChevronRight aria-hidden />}
      </IconButton>
    );
  };
  return (
    <section aria-label="The past" className="flex shrink-0 flex-wrap items-center gap-x-3 gap-y-1 border-b border-warn/30 bg-warn-soft px-3 py-1.5 text-[0.8125rem] sm:px-4">
      <History aria-hidden className="size-4 shrink-0 text-warn" />
      <p role="status" className="min-w-0 flex-1 basis-40">
        <span className="font-medium">You look at the past</span>{" "}
        <span className="text-xs text-ink-soft tabular-nums">
          {exactTime(at_ms)}, event {at} of {session.seq}
        </span>
      </p>
      <span className="flex items-center gap-1">
        {step(-1, "Previous checkpoint")}
        {step(1, "Next checkpoint")}
        {point && (
          <Button
            size="sm"
            look="ghost"
            onClick={() => {
              setForking(true);
            }}
          >
            <GitFork aria-hidden /> Fork
          </Button>
        )}
        <Button
          size="sm"
          onClick={() => {
            onGo(session.seq);
          }}
        >
          Back to now
        </Button>
      </span>
      {isForking && point && (
        <Suspense>
          <ForkDialog
            session={session}
            point={point}
            onClose={() => {
              setForking(false);
            }}
          />
        </Suspense>
      )}
    </section>
  );
}
