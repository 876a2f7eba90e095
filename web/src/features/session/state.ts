/** What a watcher knows of a session: the fold of its log, as the page shows it. */

import type {
  AgentMode,
  Answer,
  Approval,
  Artifact,
  Checkpoint,
  CheckpointReason,
  Child,
  Failure,
  Limits,
  OpenRequest,
  Origin,
  Parent,
  Repository,
  Sandbox,
  SessionStatus,
  Task,
  TaskStatus,
  Todo,
  Usage,
  WantedCheckpoint,
} from "@/api/types";

interface EntryOf<Kind extends string> {
  kind: Kind;
  /** Unique in the session; part ids for what the agent says, so that a finished part replaces its growing one. */
  key: string;
  at_ms: number;
}

export interface PromptEntry extends EntryOf<"prompt"> {
  task_id: string;
  author: string;
  text: string;
  agent: AgentMode;
  model: string;
  limits: Limits;
}

export interface SteerEntry extends EntryOf<"steer"> {
  author: string;
  text: string;
}

export interface NoteEntry extends EntryOf<"note"> {
  author: string;
  text: string;
}

/** While `growing`, the text so far is in `SessionState.partials` under the same key. */
export interface TextEntry extends EntryOf<"text"> {
  task_id: string;
  message_id: string;
  text: string;
  growing: boolean;
}

export interface ReasoningEntry extends EntryOf<"reasoning"> {
  task_id: string;
  message_id: string;
  text: string;
  took_ms: number;
  growing: boolean;
}

/** While `running`, the output so far is in `SessionState.partials` under the same key. */
export interface ToolEntry extends EntryOf<"tool"> {
  task_id: string;
  message_id: string;
  tool: string;
  title: string;
  input: Record<string, unknown>;
  output: string;
  error: string;
  truncated: boolean;
  status: "running" | "done" | "failed" | "interrupted";
  took_ms: number;
}

export interface AnsweredEntry extends EntryOf<"answered"> {
  request: OpenRequest;
  author: string;
  answer: Answer;
}

/** A quiet line: something happened that explains what follows. */
export interface LineEntry extends EntryOf<"line"> {
  tone: "info" | "warning";
  text: string;
  detail: string;
  link: Link | null;
}

/** Where a line leads: this session as it was after that event, or another session (`seq` 0: as it is now). */
export type Link = { to: "past"; seq: number; text: string } | { to: "session"; id: string; seq: number; text: string };

/** A session that this one started: at its start `text` is its prompt, at its end what its agent said last. */
export interface ChildEntry extends EntryOf<"child"> {
  child_id: string;
  title: string;
  text: string;
  status: TaskStatus;
  files_changed: number;
  additions: number;
  deletions: number;
}

export interface FailureEntry extends EntryOf<"failure"> {
  subject: "session" | "task" | "sandbox" | "effect";
  failure: Failure;
}

/** How a task ended, when it did not fail. */
export interface OutcomeEntry extends EntryOf<"outcome"> {
  task_id: string;
  status: "completed" | "cancelled";
}

export type Entry =
  | PromptEntry
  | SteerEntry
  | NoteEntry
  | TextEntry
  | ReasoningEntry
  | ToolEntry
  | AnsweredEntry
  | LineEntry
  | FailureEntry
  | OutcomeEntry
  | ChildEntry;

/** Growing text. `points` counts code points, the unit of a delta's `offset`. */
export interface Partial {
  task_id: string;
  text: string;
  points: number;
}

/** One call of a model, as the gateway counted it. */
export interface ModelCall {
  seq: number;
  at_ms: number;
  model: string;
  status: number;
  took_ms: number;
  usage: Usage;
  failure: Failure | null;
}

/** A checkpoint as a line of the time line: where in the log it stands and what it changed. */
export interface SavedPoint {
  id: string;
  seq: number;
  at_ms: number;
  /** Empty outside of a task. */
  task_id: string;
  reason: CheckpointReason;
  commit: string;
  base_commit: string;
  files_changed: number;
  additions: number;
  deletions: number;
}

export interface SessionState {
  id: string;
  /** The last event applied; 0 before the first. */
  seq: number;
  title: string;
  status: SessionStatus;
  failure: Failure | null;
  repository: Repository;
  model: string;
  approval: Approval;
  /** Of each task that names none. */
  limits: Limits;
  origin: Origin | null;
  parent: Parent | null;
  /** Why it is paused; empty when it is not. */
  pause_reason: string;
  created_by: string;
  created_at_ms: number;
  updated_at_ms: number;
  base_commit: string;
  work_branch: string;
  sandbox: Sandbox;
  tasks: Task[];
  requests: OpenRequest[];
  todos: Todo[];
  usage: Usage;
  /** The latest ones, newest last. */
  calls: ModelCall[];
  /** The newest one, with its files. */
  checkpoint: Checkpoint | null;
  /** Oldest first. */
  checkpoints: SavedPoint[];
  wanted_checkpoint: WantedCheckpoint | null;
  children: Child[];
  /** Nothing was heard of the running task for long. */
  stuck: boolean;
  artifacts: Artifact[];
  entries: Entry[];
  partials: Record<string, Partial>;
}

export const NO_USAGE: Usage = {
  model_calls: 0,
  input_tokens: 0,
  output_tokens: 0,
  reasoning_tokens: 0,
  cache_read_tokens: 0,
  cache_write_tokens: 0,
  cost_usd: 0,
};

export const NO_LIMITS: Limits = { time_s: 0, tokens: 0, cost_usd: 0 };

/** A session of which nothing is known yet. */
export function unknownSession(id: string): SessionState {
  return {
    id,
    seq: 0,
    title: "",
    status: "created",
    failure: null,
    repository: { source: "", branch: "" },
    model: "",
    approval: "auto",
    limits: NO_LIMITS,
    origin: null,
    parent: null,
    pause_reason: "",
    created_by: "",
    created_at_ms: 0,
    updated_at_ms: 0,
    base_commit: "",
    work_branch: "",
    sandbox: { generation: 0, sandbox_id: "", status: "none", steps: [], restored: null },
    tasks: [],
    requests: [],
    todos: [],
    usage: NO_USAGE,
    calls: [],
    checkpoint: null,
    checkpoints: [],
    wanted_checkpoint: null,
    children: [],
    stuck: false,
    artifacts: [],
    entries: [],
    partials: {},
  };
}

export const runningTask = (session: SessionState): Task | undefined =>
  session.tasks.find((task) => task.status === "running");

export const queuedTasks = (session: SessionState): Task[] => session.tasks.filter((task) => task.status === "queued");
