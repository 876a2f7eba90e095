/** The session as a whole: rest and failure, checkpoints, children, what people tell each other. */

import type { LogRecord } from "@/api/events";
import type { Failure } from "@/api/types";
import { NO_LIMITS, NO_USAGE, type ChildEntry, type SavedPoint, type SessionState } from "../state";
import { add, atWork, failed, keyOf, line, settle } from "./changes";
import type { Handlers, TypesOf } from "./handler";

export const SESSION: Handlers<TypesOf<"session" | "message" | "checkpoint" | "artifact" | "child" | "effect">> = {
  "session.created": (state, data, record) => {
    const next: SessionState = {
      ...state,
      title: data.title,
      repository: data.repository,
      model: data.model,
      approval: data.approval,
      limits: data.limits ?? NO_LIMITS,
      origin: data.origin ?? null,
      parent: data.parent ?? null,
      created_by: record.actor.name,
      created_at_ms: record.at_ms,
    };
    const { origin, parent } = next;
    if (origin) {
      const link = { to: "session" as const, id: origin.session_id, seq: origin.seq, text: "See where it left" };
      return add(next, line(record, "info", "This session is a fork of another one", "", link));
    }
    if (!parent) return next;
    const link = { to: "session" as const, id: parent.session_id, seq: 0, text: "Open it" };
    return add(next, line(record, "info", "Another session started this one", "", link));
  },
  "session.failed": (state, data, record) => {
    const next: SessionState = { ...state, status: "failed", failure: data.failure };
    // The sandbox or the task that the session failed with has said the same just before.
    const last = state.entries.at(-1);
    if (last?.kind === "failure" && isSame(last.failure, data.failure)) return next;
    return add(next, failed(record, "session", data.failure));
  },
  "session.paused": (state, data, record) => {
    const isIdle = data.reason === "idle";
    const text = isIdle ? "Paused, as nothing was going on" : `${record.actor.name} paused the session`;
    const next: SessionState = { ...state, status: "paused", pause_reason: data.reason };
    return add(next, line(record, "info", text, "A message resumes it where it was."));
  },
  "session.resumed": (state, data, record) => {
    const next: SessionState = { ...state, status: atWork(state), pause_reason: "" };
    return add(next, line(record, "info", resumed(data.reason, record)));
  },
  "session.archived": (state) => ({
    ...settle(state, () => true),
    status: "archived",
    sandbox: { ...state.sandbox, status: "none" },
    pause_reason: "",
    wanted_checkpoint: null,
  }),

  "message.posted": (state, data, record) =>
    add(state, {
      kind: "note",
      key: data.message_id,
      at_ms: record.at_ms,
      author: record.actor.name,
      text: data.text,
    }),

  "checkpoint.requested": (state, data) => ({
    ...state,
    wanted_checkpoint: { id: data.checkpoint_id, reason: data.reason },
  }),
  "checkpoint.failed": (state, data, record) => {
    const isWanted = state.wanted_checkpoint?.id === data.checkpoint_id;
    const next = { ...state, wanted_checkpoint: isWanted ? null : state.wanted_checkpoint };
    return add(next, line(record, "warning", "No checkpoint could be made", data.failure.reason));
  },
  "checkpoint.created": (state, data, record) => {
    const { checkpoint_id: id, task_id, commit, base_commit, files, reason = "task" } = data;
    const { seq, at_ms } = record;
    const total = (field: "additions" | "deletions"): number => files.reduce((sum, file) => sum + file[field], 0);
    const point: SavedPoint = {
      ...{ id, seq, at_ms, task_id, reason, commit, base_commit },
      ...{ files_changed: files.length, additions: total("additions"), deletions: total("deletions") },
    };
    const next: SessionState = {
      ...state,
      checkpoint: { id, task_id, commit, base_commit, files },
      checkpoints: [...state.checkpoints.filter((known) => known.id !== id), point],
      wanted_checkpoint: state.wanted_checkpoint?.id === id ? null : state.wanted_checkpoint,
    };
    if (reason !== "asked") return next;
    return add(next, line(record, "info", "A checkpoint was taken", "", { to: "past", seq, text: "Look at it" }));
  },
  "artifact.stored": (state, data) => ({
    ...state,
    artifacts: [...state.artifacts.filter((known) => known.name !== data.name), data],
  }),

  "child.started": (state, data, record) => {
    const { child_id: id, task_id, title, prompt } = data;
    const child = { id, task_id, title, status: "running" as const, summary: "", ...NO_RESULT };
    return add({ ...state, children: [...state.children, child] }, childEntry(record, { ...child, text: prompt }));
  },
  "child.finished": (state, data, record) => {
    const { child_id, ...ended } = data;
    const known = state.children.find(({ id }) => id === child_id);
    const next = {
      ...state,
      children: state.children.map((child) => (child.id === child_id ? { ...child, ...ended } : child)),
    };
    return add(next, childEntry(record, { ...ended, id: child_id, title: known?.title ?? "", text: data.summary }));
  },

  "effect.failed": (state, data, record) => add(state, failed(record, "effect", data.failure)),
};

const NO_RESULT = { files_changed: 0, additions: 0, deletions: 0, usage: NO_USAGE };

const isSame = (one: Failure, other: Failure): boolean => one.code === other.code && one.reason === other.reason;

function resumed(reason: string, record: LogRecord): string {
  switch (reason) {
    case "task":
      return "Resumed by a task";
    case "steer":
      return "Resumed by a message";
    case "answer":
      return "Resumed by an answer";
    case "cancel":
      return "Resumed to stop the task";
    case "checkpoint":
      return "Resumed for a checkpoint";
    default:
      return `${record.actor.name} resumed the session`;
  }
}

function childEntry(record: LogRecord, child: Omit<ChildEntry, "kind" | "key" | "at_ms" | "child_id"> & { id: string }): ChildEntry {
  const { id, title, text, status, files_changed, additions, deletions } = child;
  const { at_ms } = record;
  return { kind: "child", key: keyOf(record), at_ms, child_id: id, title, text, status, files_changed, additions, deletions };
}
