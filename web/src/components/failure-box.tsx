import { CircleAlert } from "lucide-react";
import type { ReactNode } from "react";
import { ApiError } from "@/api/http";
import type { Failure } from "@/api/types";
import { cn } from "@/lib/cn";

interface FailureBoxProps {
  title: string;
  failure: Failure;
  action?: ReactNode;
  className?: string;
}

/** What failed, why, what to do, and its stable code. */
export function FailureBox({ title, failure, action, className }: FailureBoxProps) {
  return (
    <div role="alert" className={cn("flex gap-3 rounded-xl border border-bad/25 bg-bad-soft px-3.5 py-3", className)}>
      <CircleAlert aria-hidden className="mt-0.5 size-4 shrink-0 text-bad" />
      <div className="min-w-0 flex-1 text-[0.8125rem]">
        <p className="flex flex-wrap items-baseline gap-x-2 font-medium">
          {title}
          {failure.code && <code className="font-mono text-2xs font-normal text-bad">{failure.code}</code>}
        </p>
        {failure.reason && (
          <p className="mt-0.5 max-h-48 overflow-y-auto whitespace-pre-wrap text-ink-soft [overflow-wrap:anywhere]">
            {failure.reason}
          </p>
        )}
        {failure.hint && <p className="mt-1.5 text-ink-soft [overflow-wrap:anywhere]">{failure.hint}</p>}
        {action && <div className="mt-2.5 flex flex-wrap gap-2">{action}</div>}
      </div>
    </div>
  );
}

/** Any thrown value as a failure that can be shown. */
export function asFailure(error: unknown): Failure {
  if (error instanceof ApiError) return { code: error.code, reason: error.message, hint: error.hint };
  const reason = error instanceof Error ? error.message : String(error);
  return { code: "unexpected", reason, hint: "" };
}
