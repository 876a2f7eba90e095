/** The records of `docs/protocol.md` as the server answers them. Times are milliseconds since the Unix epoch, money US dollars. */

export type SessionStatus = "created" | "provisioning" | "ready" | "running" | "failed" | "archived";
export type TaskStatus = "queued" | "running" | "completed" | "failed" | "cancelled";
export type AgentMode = "build" | "plan";
export type Approval = "auto" | "ask";
export type PermissionReply = "once" | "always" | "reject";

export interface Actor {
  kind: "user" | "agent" | "system";
  name: string;
}

/** `source` is an `http(s)://` URL, an absolute path on the server, or `upload:<sha256>`. */
export interface Repository {
  source: string;
  branch: string;
}

export interface Failure {
  code: string;
  reason: string;
  hint: string;
}

export interface Usage {
  model_calls: number;
  input_tokens: number;
  output_tokens: number;
  reasoning_tokens: number;
  cache_read_tokens: number;
  cache_write_tokens: number;
  cost_usd: number;
}

export interface Todo {
  content: string;
  status: string;
  priority: string;
}

/** `status` is git's letter: A, M, D, R, T. */
export interface ChangedFile {
  path: string;
  status: string;
  additions: number;
  deletions: number;
}

export interface Choice {
  label: string;
  description: string;
}

export interface Question {
  question: string;
  header: string;
  options: Choice[];
  multiple: boolean;
  custom: boolean;
}

export interface Answer {
  reply?: PermissionReply | null;
  answers?: string[][];
  message?: string;
}

export interface Step {
  step: string;
  status: "running" | "done" | "failed";
  started_at_ms: number;
  took_ms: number;
  detail: string;
}

export interface Sandbox {
  generation: number;
  sandbox_id: string;
  status: "none" | "creating" | "ready" | "failed" | "lost";
  steps: Step[];
}

export interface Task {
  id: string;
  status: TaskStatus;
  prompt: string;
  author: string;
  model: string;
  agent: AgentMode;
  queued_at_ms: number;
  started_at_ms: number;
  ended_at_ms: number;
  cancel_requested: boolean;
  failure: Failure | null;
  usage: Usage;
}

export interface OpenRequest {
  id: string;
  task_id: string;
  kind: "permission" | "question";
  title: string;
  detail: string;
  questions: Question[];
  asked_at_ms: number;
}

export interface Checkpoint {
  id: string;
  task_id: string;
  commit: string;
  base_commit: string;
  files: ChangedFile[];
}

export interface Artifact {
  name: string;
  sha256: string;
  size_bytes: number;
  media_type: string;
}

export interface SessionSummary {
  id: string;
  title: string;
  status: SessionStatus;
  failure: Failure | null;
  repository: Repository;
  model: string;
  created_by: string;
  created_at_ms: number;
  updated_at_ms: number;
  head_seq: number;
  open_requests: number;
  running_task: string | null;
  files_changed: number;
  additions: number;
  deletions: number;
}

export interface NewSession {
  repository: { source: string; branch?: string };
  prompt?: string;
  title?: string;
  model?: string;
  agent?: AgentMode;
  approval?: Approval;
}

export interface NewTask {
  prompt: string;
  model?: string;
  agent?: AgentMode;
  mode?: "queue" | "steer";
}

export interface Model {
  id: string;
  provider: string;
  name: string;
}

export interface Models {
  items: Model[];
  default: string;
}

export interface FileEntry {
  name: string;
  path: string;
  kind: "file" | "directory" | "symlink";
  size_bytes: number;
}

export interface Page<T> {
  items: T[];
  next_cursor: string | null;
}
