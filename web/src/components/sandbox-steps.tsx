import { CircleCheck, CircleX } from "lucide-react";
import type { Step } from "@/api/types";
import { duration } from "@/lib/format";
import { Elapsed } from "./elapsed";
import { Spinner } from "./spinner";

const NAMES: Record<string, string> = {
  create: "Make the sandbox",
  runner: "Start the runner",
  clone: "Clone the repository",
  agent: "Start the agent",
};

/** The steps on the way to a ready sandbox and how long each took. */
export function SandboxSteps({ steps }: { steps: Step[] }) {
  return (
    <ol className="space-y-1.5">
      {steps.map((step) => (
        <li key={step.step} className="flex items-start gap-2.5 text-[0.8125rem]">
          <span className="mt-0.5">
            <StepIcon status={step.status} />
          </span>
          <span className="min-w-0 flex-1">
            {NAMES[step.step] ?? step.step}
            {step.detail && <span className="block truncate text-xs text-ink-faint" title={step.detail}>{step.detail}</span>}
          </span>
          <span className="font-mono text-xs text-ink-faint tabular-nums">
            {step.status === "running" && <Elapsed since_ms={step.started_at_ms} />}
            {step.status === "done" && duration(step.took_ms)}
          </span>
        </li>
      ))}
    </ol>
  );
}

function StepIcon({ status }: { status: Step["status"] }) {
  if (status === "running") return <Spinner className="size-4 text-accent" />;
  if (status === "done") return <CircleCheck aria-label="done" className="size-4 text-good" />;
  return <CircleX aria-label="failed" className="size-4 text-bad" />;
}
