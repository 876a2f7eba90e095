/** The sandbox: its steps, its generations, what becomes of it. */

import type { Step } from "@/api/types";
import type { SessionState } from "../state";
import { add, atWork, failed, line, settle } from "./changes";
import type { Handlers, TypesOf } from "./handler";
import { INTERRUPTED } from "./task";

export const SANDBOX: Handlers<TypesOf<"sandbox">> = {
  "sandbox.requested": (state, data, record) => {
    const next: SessionState = {
      ...state,
      status: "provisioning",
      failure: null,
      pause_reason: "",
      sandbox: { generation: data.generation, sandbox_id: "", status: "creating", steps: [], restored: null },
    };
    const last = state.entries.at(-1);
    const isSaid = last?.kind === "line" && last.text === INTERRUPTED;
    if (data.generation === 1 || isSaid) return next;
    return add(next, line(record, "info", "A new sandbox is being made", data.reason));
  },
  "sandbox.created": (state, data) => inGeneration(state, data, { sandbox_id: data.sandbox_id }),
  "sandbox.step_started": (state, data, record) => {
    const step: Step = {
      step: data.step,
      status: "running",
      started_at_ms: record.at_ms,
      took_ms: 0,
      detail: data.detail,
    };
    const others = state.sandbox.steps.filter((known) => known.step !== data.step);
    return inGeneration(state, data, { steps: [...others, step] });
  },
  "sandbox.step_finished": (state, data) =>
    inGeneration(state, data, {
      steps: state.sandbox.steps.map((step) =>
        step.step === data.step
          ? { ...step, status: "done", took_ms: data.took_ms, detail: data.detail || step.detail }
          : step,
      ),
    }),
  "sandbox.ready": (state, data) => ({
    ...inGeneration(state, data, { status: "ready" }),
    status: atWork(state),
    base_commit: data.base_commit,
    work_branch: data.work_branch,
  }),
  "sandbox.failed": (state, data, record) => {
    const next = inGeneration(state, data, { status: "failed", steps: failRunning(state.sandbox.steps, record.at_ms) });
    return add(next, failed(record, "sandbox", data.failure));
  },
  "sandbox.lost": (state, data, record) => {
    const next = inGeneration(state, data, { status: "lost", steps: failRunning(state.sandbox.steps, record.at_ms) });
    return add(settle(next, () => true), line(record, "warning", "The sandbox was lost", data.reason));
  },
  "sandbox.paused": (state, data) => inGeneration(state, data, { status: "paused" }),
  "sandbox.resumed": (state, data, record) => {
    const next = inGeneration(state, data, { status: "ready" });
    if (data.memory) return next;
    return add(next, line(record, "warning", "Only the files came back", "What ran in the sandbox was lost."));
  },
  "sandbox.restored": (state, data, record) => {
    const { checkpoint_id, conversation, lost } = data;
    const next = inGeneration(state, data, { restored: { checkpoint_id, conversation, lost } });
    const point = state.checkpoints.find(({ id }) => id === checkpoint_id);
    const missed = conversation || lost.some((what) => what.includes("conversation")) ? lost : [...lost, FORGOTTEN];
    const detail = missed.length > 0 ? `Lost: ${missed.join(", ")}` : "Nothing was lost";
    const link = point ? { to: "past" as const, seq: point.seq, text: "Look at it" } : null;
    const title = checkpoint_id ? "Restored from a checkpoint" : "Begun anew, without a checkpoint";
    return add(next, line(record, missed.length > 0 ? "warning" : "info", title, detail, link));
  },
};

const FORGOTTEN = "the agent's memory of the conversation";

function inGeneration(
  state: SessionState,
  data: { generation: number },
  patch: { [K in keyof SessionState["sandbox"]]?: SessionState["sandbox"][K] },
): SessionState {
  if (data.generation !== state.sandbox.generation) return state;
  return { ...state, sandbox: { ...state.sandbox, ...patch } };
}

const failRunning = (steps: Step[], at_ms: number): Step[] =>
  steps.map((step) =>
    step.status === "running" ? { ...step, status: "failed", took_ms: at_ms - step.started_at_ms } : step,
  );
