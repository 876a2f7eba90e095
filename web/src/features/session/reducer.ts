/** The fold of a session's stream: pure, and exhaustive over the event types by construction of `HANDLERS`. */

import type { Delta, EventData, EventType, LogRecord } from "@/api/events";
import type { Failure, Step, Task, Usage } from "@/api/types";
import {
  NO_LIMITS,
  NO_USAGE,
  type Entry,
  type LineEntry,
  type Partial,
  type ReasoningEntry,
  type SessionState,
  type TextEntry,
  type ToolEntry,
} from "./state";

type Handler<T extends EventType> = (
  state: SessionState,
  data: EventData[T],
  record: LogRecord,
) => SessionState;

type PartEntry = TextEntry | ReasoningEntry | ToolEntry;

const MAX_CALLS = 200;

const HANDLERS: { [T in EventType]: Handler<T> } = {
  "session.created": (state, data, record) => ({
    ...state,
    title: data.title,
    repository: data.repository,
    model: data.model,
    approval: data.approval,
    created_by: record.actor.name,
    created_at_ms: record.at_ms,
  }),
  "session.failed": (state, data, record) => {
    const next: SessionState = { ...state, status: "failed", failure: data.failure };
    // The sandbox or the task that the session failed with has said the same just before.
    const last = state.entries.at(-1);
    if (last?.kind === "failure" && isSame(last.failure, data.failure)) return next;
    return add(next, {
      kind: "failure",
      key: keyOf(record),
      at_ms: record.at_ms,
      subject: "session",
      failure: data.failure,
    });
  },
  "session.paused": (state) => ({ ...state, status: "paused" }),
  "session.resumed": (state) => ({ ...state, status: atWork(state) }),
  "session.archived": (state) => ({
    ...settle(state, () => true),
    status: "archived",
    sandbox: { ...state.sandbox, status: "none" },
  }),

  "sandbox.requested": (state, data, record) => {
    const next: SessionState = {
      ...state,
      status: "provisioning",
      failure: null,
      sandbox: { generation: data.generation, sandbox_id: "", status: "creating", steps: [], restored: null },
    };
    if (data.generation === 1) return next;
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
    status: state.tasks.some((task) => task.status === "running") ? "running" : "ready",
    base_commit: data.base_commit,
    work_branch: data.work_branch,
  }),
  "sandbox.failed": (state, data, record) => {
    const next = inGeneration(state, data, { status: "failed", steps: failRunning(state.sandbox.steps, record.at_ms) });
    const entry: Entry = {
      kind: "failure",
      key: keyOf(record),
      at_ms: record.at_ms,
      subject: "sandbox",
      failure: data.failure,
    };
    return add(next, entry);
  },
  "sandbox.lost": (state, data, record) => {
    const next = inGeneration(state, data, { status: "lost", steps: failRunning(state.sandbox.steps, record.at_ms) });
    return add(settle(next, () => true), line(record, "warning", "The sandbox was lost", data.reason));
  },

  "sandbox.paused": (state, data) => inGeneration(state, data, { status: "paused" }),
  "sandbox.resumed": (state, data) => inGeneration(state, data, { status: "ready" }),
  "sandbox.restored": (state, data) =>
    inGeneration(state, data, {
      restored: { checkpoint_id: data.checkpoint_id, conversation: data.conversation, lost: data.lost },
    }),

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
  "task.edited": (state, { task_id, prompt, model, agent, limits }) =>
    patchTask(state, task_id, { prompt, model, agent, limits }),
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
  "task.interrupted": (state, data) => patchTask(state, data.task_id, { recovered: true }),
  "task.limit_reached": (state, data) => patchTask(state, data.task_id, { limit: data.limit }),
  "task.stuck": (state, data) => (data.given_up ? patchTask(state, data.task_id, { given_up: true }) : state),
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
    const next = endTask(shown, data.task_id, {
      status: "failed",
      ended_at_ms: record.at_ms,
      failure: data.failure,
    });
    return add(next, {
      kind: "failure",
      key: keyOf(record),
      at_ms: record.at_ms,
      subject: "task",
      failure: data.failure,
    });
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

  "message.posted": (state, data, record) =>
    add(state, {
      kind: "note",
      key: data.message_id,
      at_ms: record.at_ms,
      author: record.actor.name,
      text: data.text,
    }),

  "text.finished": (state, data, record) =>
    finishPart(state, {
      kind: "text",
      key: data.part_id,
      at_ms: record.at_ms,
      task_id: data.task_id,
      message_id: data.message_id,
      text: data.text,
      growing: false,
    }),
  "reasoning.finished": (state, data, record) =>
    finishPart(state, {
      kind: "reasoning",
      key: data.part_id,
      at_ms: record.at_ms,
      task_id: data.task_id,
      message_id: data.message_id,
      text: data.text,
      took_ms: data.took_ms,
      growing: false,
    }),
  "tool.started": (state, data, record) =>
    put(state, {
      kind: "tool",
      key: data.part_id,
      at_ms: record.at_ms,
      task_id: data.task_id,
      message_id: data.message_id,
      tool: data.tool,
      title: data.title,
      input: data.input,
      output: "",
      error: "",
      truncated: false,
      status: "running",
      took_ms: 0,
    }),
  "tool.finished": (state, data, record) => {
    const started = find(state, data.part_id);
    const entry: ToolEntry = {
      kind: "tool",
      key: data.part_id,
      at_ms: started?.at_ms ?? record.at_ms,
      task_id: data.task_id,
      message_id: data.message_id,
      tool: data.tool,
      title: data.title || (started?.kind === "tool" ? started.title : ""),
      input: started?.kind === "tool" ? started.input : {},
      output: data.output,
      error: data.error,
      truncated: data.truncated,
      status: data.error ? "failed" : "done",
      took_ms: data.took_ms,
    };
    return finishPart(state, entry);
  },
  "todos.updated": (state, data) => ({ ...state, todos: data.todos }),

  "request.asked": (state, data, record) => ({
    ...state,
    requests: [
      ...closeRequest(state, data.request_id).requests,
      {
        id: data.request_id,
        task_id: data.task_id,
        kind: data.kind,
        title: data.title,
        detail: data.detail,
        questions: data.questions,
        asked_at_ms: record.at_ms,
      },
    ],
  }),
  "request.answered": (state, data, record) => {
    const request = state.requests.find((open) => open.id === data.request_id);
    const next = closeRequest(state, data.request_id);
    if (!request) return next;
    return add(next, {
      kind: "answered",
      key: keyOf(record),
      at_ms: record.at_ms,
      request,
      author: record.actor.name,
      answer: data.answer,
    });
  },
  "request.withdrawn": (state, data) => closeRequest(state, data.request_id),

  "agent.retried": (state, data, record) =>
    add(
      settle(state, (task_id) => task_id === data.task_id),
      line(record, "warning", `The agent calls its model again (attempt ${String(data.attempt)})`, data.reason),
    ),
  "agent.restarted": (state, data, record) =>
    add(
      settle(state, () => true),
      line(record, "warning", `The agent was restarted: ${data.code}`, data.reason),
    ),
  "checkpoint.requested": (state) => state,
  "checkpoint.created": (state, data) => ({
    ...state,
    checkpoint: {
      id: data.checkpoint_id,
      task_id: data.task_id,
      commit: data.commit,
      base_commit: data.base_commit,
      files: data.files,
    },
  }),
  "artifact.stored": (state, data) => ({
    ...state,
    artifacts: [...state.artifacts.filter((known) => known.name !== data.name), data],
  }),
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
  "child.started": (state) => state,
  "child.finished": (state) => state,
  "effect.failed": (state, data, record) =>
    add(state, {
      kind: "failure",
      key: keyOf(record),
      at_ms: record.at_ms,
      subject: "effect",
      failure: data.failure,
    }),
};

/** Applies the next event. An event type of a newer server moves `seq` on and changes nothing else. */
export function reduce(state: SessionState, record: LogRecord): SessionState {
  const handler = HANDLERS[record.type] as Handler<EventType> | undefined;
  const next = handler ? handler(state, record.data, record) : state;
  return { ...next, seq: record.seq, updated_at_ms: record.at_ms };
}

/** Merges growing text. What overlaps is known already; what would leave a hole waits for the finished part. */
export function grow(state: SessionState, delta: Delta): SessionState {
  const entry = find(state, delta.part_id);
  if (entry && !isGrowing(entry)) return state;
  const known = state.partials[delta.part_id] ?? { task_id: delta.task_id, text: "", points: 0 };
  const merged = merge(known, delta);
  if (!merged) return state;
  const next = { ...state, partials: { ...state.partials, [delta.part_id]: merged } };
  if (entry || delta.kind === "tool") return next;
  const { part_id, message_id, task_id } = delta;
  const part = { key: part_id, at_ms: state.updated_at_ms, task_id, message_id, text: "", growing: true };
  return put(next, delta.kind === "text" ? { kind: "text", ...part } : { kind: "reasoning", took_ms: 0, ...part });
}

/** The text with the delta in its place, or nothing when the delta says what is known or leaves a hole. */
function merge(known: Partial, delta: Delta): Partial | undefined {
  if (delta.offset > known.points) return undefined;
  const added = Array.from(delta.text).length;
  if (delta.offset === known.points) {
    return added === 0 ? undefined : { ...known, text: known.text + delta.text, points: known.points + added };
  }
  const points = Array.from(known.text);
  if (points.slice(delta.offset, delta.offset + added).join("") === delta.text) return undefined;
  const text = points.slice(0, delta.offset).join("") + delta.text;
  return { ...known, text, points: delta.offset + added };
}

/** Without the line of the model call that the task failed with: the failure says the same, and more. */
function withoutSaying(state: SessionState, failure: Failure): SessionState {
  const last = state.entries.at(-1);
  const isSaid = last?.kind === "line" && last.text === modelFailed(failure) && last.detail.startsWith(failure.reason);
  return isSaid ? { ...state, entries: state.entries.slice(0, -1) } : state;
}

const modelFailed = ({ code }: Failure): string => `A model call failed: ${code}`;

const isSame = (one: Failure, other: Failure): boolean => one.code === other.code && one.reason === other.reason;

const keyOf = (record: LogRecord): string => `#${String(record.seq)}`;

function line(record: LogRecord, tone: LineEntry["tone"], text: string, detail: string): LineEntry {
  return { kind: "line", key: keyOf(record), at_ms: record.at_ms, tone, text, detail };
}

function promptOf(task: Task, at_ms: number): Entry {
  const { id, author, prompt, agent, model } = task;
  return { kind: "prompt", key: id, at_ms, task_id: id, author, text: prompt, agent, model };
}

function add(state: SessionState, entry: Entry): SessionState {
  return { ...state, entries: [...state.entries, entry] };
}

function indexOf(state: SessionState, key: string): number {
  return state.entries.findLastIndex((entry) => entry.key === key);
}

function find(state: SessionState, key: string): Entry | undefined {
  return state.entries[indexOf(state, key)];
}

function isGrowing(entry: Entry): boolean {
  return entry.kind === "tool" ? entry.status === "running" : "growing" in entry && entry.growing;
}

/**
 * A part in its place: that of the entry with the same key, else before those parts of its message that began later.
 * An agent's words are finished when its message is, which may be after the tools of that message began; part ids sort
 * by when the part began.
 */
function put(state: SessionState, entry: PartEntry): SessionState {
  const index = indexOf(state, entry.key);
  if (index >= 0) return { ...state, entries: state.entries.with(index, entry) };
  let place = state.entries.length;
  for (let before = place - 1; before >= 0; before -= 1) {
    const other = state.entries[before];
    if (!other || !("message_id" in other)) continue;
    if (other.message_id !== entry.message_id || other.key < entry.key) break;
    place = before;
  }
  return { ...state, entries: state.entries.toSpliced(place, 0, entry) };
}

function finishPart(state: SessionState, entry: PartEntry): SessionState {
  return { ...put(state, entry), partials: without(state.partials, entry.key) };
}

function without(partials: Record<string, Partial>, key: string): Record<string, Partial> {
  if (!(key in partials)) return partials;
  const { [key]: _gone, ...rest } = partials;
  return rest;
}

/** Whatever still grows will not finish: running tools are interrupted, growing text goes with its partial. */
function settle(state: SessionState, concerns: (task_id: string) => boolean): SessionState {
  const entries = state.entries.flatMap((entry): Entry[] => {
    if (!isGrowing(entry) || !("task_id" in entry) || !concerns(entry.task_id)) return [entry];
    if (entry.kind !== "tool") return [];
    return [{ ...entry, status: "interrupted", output: state.partials[entry.key]?.text ?? "" }];
  });
  const partials = Object.fromEntries(
    Object.entries(state.partials).filter(([, partial]) => !concerns(partial.task_id)),
  );
  return { ...state, entries, partials };
}

function patchTask(state: SessionState, id: string, patch: { [K in keyof Task]?: Task[K] }): SessionState {
  return { ...state, tasks: state.tasks.map((task) => (task.id === id ? { ...task, ...patch } : task)) };
}

function endTask(state: SessionState, id: string, patch: { [K in keyof Task]?: Task[K] }): SessionState {
  const ended = patchTask(
    settle(state, (task_id) => task_id === id),
    id,
    patch,
  );
  return isRunning(state, id) && state.status === "running" ? { ...ended, status: "ready" } : ended;
}

/** Where a session stands that rests no more. */
function atWork(state: SessionState): SessionState["status"] {
  if (state.sandbox.status === "creating") return "provisioning";
  return state.tasks.some((task) => task.status === "running") ? "running" : "ready";
}

const isRunning = (state: SessionState, id: string): boolean =>
  state.tasks.some((task) => task.id === id && task.status === "running");

/** A task that ends before it started was never shown: its prompt comes first. */
function withPrompt(state: SessionState, id: string, at_ms: number): SessionState {
  const task = state.tasks.find((known) => known.id === id);
  return task?.status === "queued" ? add(state, promptOf(task, at_ms)) : state;
}

function closeRequest(state: SessionState, id: string): SessionState {
  return { ...state, requests: state.requests.filter((request) => request.id !== id) };
}

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
