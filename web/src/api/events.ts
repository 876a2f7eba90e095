/** The events of a session's log and the frames of its stream, as `docs/protocol.md` lists them. */

import type {
  Actor,
  AgentMode,
  Answer,
  Approval,
  ChangedFile,
  CheckpointReason,
  Failure,
  LimitKind,
  Limits,
  Origin,
  Parent,
  Question,
  Repository,
  TaskStatus,
  Todo,
  Usage,
} from "./types";

interface Part {
  task_id: string;
  message_id: string;
  part_id: string;
}

/** What each event type carries. What a later version added is optional: a log keeps what was written. */
export interface EventData {
  "session.created": {
    title: string;
    repository: Repository;
    model: string;
    approval: Approval;
    limits?: Limits;
    origin?: Origin | null;
    parent?: Parent | null;
  };
  "session.failed": { failure: Failure };
  "session.paused": { reason: string };
  "session.resumed": { reason: string };
  "session.archived": Record<string, never>;
  "sandbox.requested": { generation: number; reason: string };
  "sandbox.created": { generation: number; sandbox_id: string };
  "sandbox.step_started": { generation: number; step: string; detail: string };
  "sandbox.step_finished": { generation: number; step: string; took_ms: number; detail: string };
  "sandbox.ready": { generation: number; base_commit: string; work_branch: string };
  "sandbox.failed": { generation: number; failure: Failure };
  "sandbox.lost": { generation: number; reason: string };
  "sandbox.paused": { generation: number };
  "sandbox.resumed": { generation: number; memory: boolean };
  "sandbox.restored": { generation: number; checkpoint_id: string; conversation: boolean; lost: string[] };
  "task.queued": { task_id: string; prompt: string; model: string; agent: AgentMode; limits?: Limits };
  "task.edited": { task_id: string; prompt: string; model: string; agent: AgentMode; limits: Limits };
  "task.moved": { task_id: string; before: string };
  "task.started": { task_id: string };
  "task.steered": { task_id: string; steer_id: string; text: string };
  "task.interrupted": { task_id: string; generation: number; reason: string };
  "task.limit_reached": { task_id: string; limit: LimitKind; value: number; allowed: number };
  "task.stuck": { task_id: string; idle_ms: number; given_up: boolean };
  "task.cancel_requested": { task_id: string };
  "task.completed": { task_id: string };
  "task.failed": { task_id: string; failure: Failure };
  "task.cancelled": { task_id: string };
  "message.posted": { message_id: string; text: string };
  "text.finished": Part & { text: string };
  "reasoning.finished": Part & { text: string; took_ms: number };
  "tool.started": Part & { tool: string; title: string; input: Record<string, unknown> };
  "tool.finished": Part & {
    tool: string;
    title: string;
    output: string;
    error: string;
    truncated: boolean;
    took_ms: number;
  };
  "todos.updated": { task_id: string; todos: Todo[] };
  "request.asked": {
    task_id: string;
    request_id: string;
    kind: "permission" | "question";
    title: string;
    detail: string;
    questions: Question[];
  };
  "request.answered": { request_id: string; answer: Answer };
  "request.withdrawn": { request_id: string };
  "agent.retried": { task_id: string; attempt: number; reason: string; next_at_ms: number };
  "agent.restarted": { code: string; reason: string };
  "checkpoint.requested": { checkpoint_id: string; reason: CheckpointReason };
  "checkpoint.created": {
    checkpoint_id: string;
    task_id: string;
    commit: string;
    base_commit: string;
    files: ChangedFile[];
    diff_artifact: string;
    bundle_artifact: string;
    reason?: CheckpointReason;
    agent_artifact?: string;
    parent_id?: string;
  };
  "checkpoint.failed": {
    checkpoint_id: string;
    task_id: string;
    reason: CheckpointReason;
    failure: Failure;
  };
  "artifact.stored": { name: string; sha256: string; size_bytes: number; media_type: string };
  "model.called": {
    task_id: string;
    provider: string;
    model: string;
    status: number;
    took_ms: number;
    usage: Usage;
    failure: Failure | null;
  };
  "child.started": { child_id: string; task_id: string; title: string; prompt: string; model: string };
  "child.finished": {
    child_id: string;
    status: TaskStatus;
    summary: string;
    files_changed: number;
    additions: number;
    deletions: number;
    usage: Usage;
  };
  "effect.failed": { effect_id: string; kind: string; attempts: number; failure: Failure };
}

export type EventType = keyof EventData;

/** Where an event that the runner reported stands among its own. */
interface Frame {
  generation: number;
  n: number;
}

/** One record of the log, as a union told apart by `type`. */
export type LogRecord = {
  [T in EventType]: { seq: number; at_ms: number; type: T; v: number; actor: Actor; data: EventData[T]; frame?: Frame | null };
}[EventType];

/** Text that grows: `text` belongs at character `offset` of the part. */
export interface Delta {
  t: "delta";
  task_id: string;
  message_id: string;
  part_id: string;
  kind: "text" | "reasoning" | "tool";
  offset: number;
  text: string;
}

/** `live`: the replay is over; `head`: a heartbeat. Everything up to `head_seq` was sent. */
export interface Head {
  t: "live" | "head";
  head_seq: number;
}

export type StreamMessage = LogRecord | Delta | Head;

/** The names at run time, checked against the type above by the compiler and against the documents by a test. */
export const EVENT_TYPES = Object.keys({
  "session.created": true,
  "session.failed": true,
  "session.paused": true,
  "session.resumed": true,
  "session.archived": true,
  "sandbox.requested": true,
  "sandbox.created": true,
  "sandbox.step_started": true,
  "sandbox.step_finished": true,
  "sandbox.ready": true,
  "sandbox.failed": true,
  "sandbox.lost": true,
  "sandbox.paused": true,
  "sandbox.resumed": true,
  "sandbox.restored": true,
  "task.queued": true,
  "task.edited": true,
  "task.moved": true,
  "task.started": true,
  "task.steered": true,
  "task.interrupted": true,
  "task.limit_reached": true,
  "task.stuck": true,
  "task.cancel_requested": true,
  "task.completed": true,
  "task.failed": true,
  "task.cancelled": true,
  "message.posted": true,
  "text.finished": true,
  "reasoning.finished": true,
  "tool.started": true,
  "tool.finished": true,
  "todos.updated": true,
  "request.asked": true,
  "request.answered": true,
  "request.withdrawn": true,
  "agent.retried": true,
  "agent.restarted": true,
  "checkpoint.requested": true,
  "checkpoint.created": true,
  "checkpoint.failed": true,
  "artifact.stored": true,
  "model.called": true,
  "child.started": true,
  "child.finished": true,
  "effect.failed": true,
} satisfies Record<EventType, true>) as EventType[];
