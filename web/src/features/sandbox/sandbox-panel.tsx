import { Box } from "lucide-react";
import type { Failure, Sandbox, Usage } from "@/api/types";
import { Facts, type Fact } from "@/components/facts";
import { Notice } from "@/components/notice";
import { SandboxSteps } from "@/components/sandbox-steps";
import { count, dollars, duration, modelName } from "@/lib/format";

interface Call {
  seq: number;
  model: string;
  status: number;
  took_ms: number;
  usage: Usage;
  failure: Failure | null;
}

const STANDS: Record<Sandbox["status"], string> = {
  none: "Not made yet",
  creating: "Being made",
  ready: "Ready",
  paused: "Paused",
  failed: "Failed",
  lost: "Lost",
};

/** Where the sandbox stands, how long each step took, and the model calls that left it. */
export function SandboxPanel({ sandbox, calls }: { sandbox: Sandbox; calls: Call[] }) {
  if (sandbox.status === "none") {
    return (
      <Notice icon={Box} title="No sandbox yet">
        The first task makes one.
      </Notice>
    );
  }
  const took = sandbox.steps.reduce((sum, step) => sum + step.took_ms, 0);
  const facts: Fact[] = [
    ["State", STANDS[sandbox.status]],
    ["Sandbox", sandbox.sandbox_id, "mono"],
    ["Generation", String(sandbox.generation)],
    ["Took", took > 0 ? duration(took) : ""],
  ];
  return (
    <div className="h-full space-y-6 overflow-y-auto p-4">
      <Facts facts={facts} />
      <section>
        <h2 className="mb-2.5 text-xs font-semibold text-ink-faint">Steps</h2>
        <SandboxSteps steps={sandbox.steps} />
      </section>
      {calls.length > 0 && <Calls calls={calls} />}
    </div>
  );
}

function Calls({ calls }: { calls: Call[] }) {
  return (
    <section>
      <h2 className="mb-2.5 text-xs font-semibold text-ink-faint">Model calls, newest first</h2>
      <div tabIndex={0} role="group" aria-label="Model calls" className="overflow-x-auto rounded-xl border">
        <table className="w-full text-left text-xs whitespace-nowrap">
          <thead className="bg-sunken text-ink-faint">
            <tr>
              <th className="px-3 py-1.5 font-medium">Model</th>
              <th className="px-3 py-1.5 font-medium">Answer</th>
              <th className="px-3 py-1.5 text-right font-medium">In</th>
              <th className="px-3 py-1.5 text-right font-medium">Out</th>
              <th className="px-3 py-1.5 text-right font-medium">Cost</th>
              <th className="px-3 py-1.5 text-right font-medium">Took</th>
            </tr>
          </thead>
          <tbody className="divide-y font-mono tabular-nums">
            {calls.toReversed().map((call) => (
              <tr key={call.seq}>
                <td className="px-3 py-1.5 font-sans">{modelName(call.model)}</td>
                <td className={call.failure ? "px-3 py-1.5 text-bad" : "px-3 py-1.5 text-good"} title={call.failure?.reason}>
                  {call.status || "not reached"}
                </td>
                <td className="px-3 py-1.5 text-right">{count(call.usage.input_tokens)}</td>
                <td className="px-3 py-1.5 text-right">{count(call.usage.output_tokens)}</td>
                <td className="px-3 py-1.5 text-right">{dollars(call.usage.cost_usd)}</td>
                <td className="px-3 py-1.5 text-right">{duration(call.took_ms)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
