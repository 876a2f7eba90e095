/** Tasks: their place in the queue, how they go and how they end. */

import type { Failure, LimitKind, Task, Usage } from "@/api/types";
import { count, dollars, limitsText, timeSpan } from "@/lib/format";
import { NO_LIMITS, NO_USAGE, type SessionState } from "../state";
import { add, failed, keyOf, line, patchTask, promptOf, settle } from "./changes";
import type { Handlers, TypesOf } from "./handler";

const MAX_CALLS = 200;

/** What is said of a task whose sandbox died; the line of its new sandbox would only repeat it. */
export const INTERRUPTED = "The task was interrupted and goes on in a new sandbox";

export const TASK: Handlers<TypesOf<"task" | "model">> = {
  "task.queued": (state, data, record) => {
    const task: Task = {
      id: data.task_id,
      status: "queued",
      prompt: data.prompt,
      author: record.actor.name,
      model: data.model,
      agent: data.agent,
      queued_at_ms: record.at_ms,
      started_at_ms: 0,
      ended_at_ms: 0,
      cancel_requested: false,
      failure: null,
      usage: NO_USAGE,
      limits: data.limits ?? NO_LIMITS,
      worked_ms: 0,
      working_since_ms: 0,
      limit: null,
      given_up: false,
      recovered: false,
    };
    return { ...state, tasks: [...state.tasks, task] };
  },
  "task.edited": (state, { task_id, prompt, model, agent, limits }, record) => {
    const next = patchTask(state, task_id, { prompt, model, agent, limits });
    if (!isRunning(state, task_id)) return next;
    return add(next, line(record, "info", `${record.actor.name} changed the limits`, limitsText(limits) || "none"));
  },
  "task.moved": (state, data) => {
    const moved = state.tasks.find((task) => task.id === data.task_id);
    const others = state.tasks.filter((task) => task !== moved);
    const place = others.findIndex((task) => task.id === data.before);
    return moved ? { ...state, tasks: others.toSpliced(place < 0 ? others.length : place, 0, moved) } : state;
  },
  "task.started": (state, data, record) => {
    const task = state.tasks.find((known) => known.id === data.task_id);
    const next = patchTask(state, data.task_id, { status: "running", started_at_ms: record.at_ms });
    if (!task) return next;
    return add({ ...next, status: "running" }, promptOf(task, record.at_ms));
  },
  "task.steered": (state, data, record) =>
    add(state, {
      kind: "steer",
      key: data.steer_id,
      at_ms: record.at_ms,
      author: record.actor.name,
      text: data.text,
    }),
  "task.interrupted": (state, data, record) =>
    add(patchTask(state, data.task_id, { recovered: true }), line(record, "info", INTERRUPTED)),
  "task.limit_reached": (state, data, record) =>
    add(
      patchTask(state, data.task_id, { limit: data.limit }),
      line(record, "warning", `The task reached its limit of ${LIMITS[data.limit](data.allowed)}`, "It is being ended."),
    ),
  "task.stuck": (state, data, record) => {
    const next = data.given_up ? patchTask(state, data.task_id, { given_up: true }) : { ...state, stuck: true };
    const detail = data.given_up ? "It is being ended." : "If that goes on, it is ended.";
    const text = `Nothing was heard of the task for ${timeSpan(data.idle_ms / 1000)}`;
    return add(next, line(record, "warning", text, detail));
  },
  "task.cancel_requested": (state, data) => patchTask(state, data.task_id, { cancel_requested: true }),
  "task.completed": (state, data, record) => {
    const next = endTask(state, data.task_id, { status: "completed", ended_at_ms: record.at_ms });
    return add(next, {
      kind: "outcome",
      key: keyOf(record),
      at_ms: record.at_ms,
      task_id: data.task_id,
      status: "completed",
    });
  },
  "task.failed": (state, data, record) => {
    const shown = withoutSaying(withPrompt(state, data.task_id, record.at_ms), data.failure);
    const next = endTask(shown, data.task_id, { status: "failed", ended_at_ms: record.at_ms, failure: data.failure });
    return add(next, failed(record, "task", data.failure));
  },
  "task.cancelled": (state, data, record) => {
    const shown = withPrompt(state, data.task_id, record.at_ms);
    const next = endTask(shown, data.task_id, { status: "cancelled", ended_at_ms: record.at_ms });
    return add(next, {
      kind: "outcome",
      key: keyOf(record),
      at_ms: record.at_ms,
      task_id: data.task_id,
      status: "cancelled",
    });
  },
  "model.called": (state, data, record) => {
    const { seq, at_ms } = record;
    const { model, status, took_ms, usage, failure } = data;
    const call = { seq, at_ms, model, status, took_ms, usage, failure };
    const next: SessionState = {
      ...state,
      calls: [...state.calls, call].slice(-MAX_CALLS),
      usage: plus(state.usage, data.usage),
      tasks: state.tasks.map((task) =>
        task.id === data.task_id ? { ...task, usage: plus(task.usage, data.usage) } : task,
      ),
    };
    // The agent ended it itself, when it was stopped; or it tries again and meets the same.
    if (!failure || failure.code === "model_call_cancelled") return next;
    const detail = [failure.reason, failure.hint].filter(Boolean).join(" ");
    const said = state.entries.slice(-2).some((entry) => entry.kind === "line" && entry.detail === detail);
    return said ? next : add(next, line(record, "warning", modelFailed(failure), detail));
  },
};

const LIMITS: Record<LimitKind, (allowed: number) => string> = {
  time: timeSpan,
  tokens: (allowed) => `${count(allowed)} tokens`,
  cost: dollars,
};

/** Without the line of the model call that the task failed with: the failure says the same, and more. */
function withoutSaying(state: SessionState, failure: Failure): SessionState {
  const last = state.entries.at(-1);
  const isSaid = last?.kind === "line" && last.text === modelFailed(failure) && last.detail.startsWith(failure.reason);
  return isSaid ? { ...state, entries: state.entries.slice(0, -1) } : state;
}

const modelFailed = ({ code }: Failure): string => `A model call failed: ${code}`;

function endTask(state: SessionState, id: string, patch: { [K in keyof Task]?: Task[K] }): SessionState {
  const ended = patchTask(
    settle(state, (task_id) => task_id === id),
    id,
    patch,
  );
  if (!isRunning(state, id)) return ended;
  return { ...ended, stuck: false, status: state.status === "running" ? "ready" : state.status };
}

const isRunning = (state: SessionState, id: string): boolean =>
  state.tasks.some((task) => task.id === id && task.status === "running");

/** A task that ends before it started was never shown: its prompt comes first. */
function withPrompt(state: SessionState, id: string, at_ms: number): SessionState {
  const task = state.tasks.find((known) => known.id === id);
  return task?.status === "queued" ? add(state, promptOf(task, at_ms)) : state;
}

function plus(one: Usage, other: Usage): Usage {
  return {
    model_calls: one.model_calls + other.model_calls,
    input_tokens: one.input_tokens + other.input_tokens,
    output_tokens: one.output_tokens + other.output_tokens,
    reasoning_tokens: one.reasoning_tokens + other.reasoning_tokens,
    cache_read_tokens: one.cache_read_tokens + other.cache_read_tokens,
    cache_write_tokens: one.cache_write_tokens + other.cache_write_tokens,
    cost_usd: one.cost_usd + other.cost_usd,
  };
}
