/** The small changes that the event types are made of: entries in their place, tasks, parts that end. */

import type { LogRecord } from "@/api/events";
import type { Failure, Task } from "@/api/types";
import type { Entry, FailureEntry, LineEntry, Partial, ReasoningEntry, SessionState, TextEntry, ToolEntry } from "../state";

export type PartEntry = TextEntry | ReasoningEntry | ToolEntry;

export const keyOf = (record: LogRecord): string => `#${String(record.seq)}`;

export function line(
  record: LogRecord,
  tone: LineEntry["tone"],
  text: string,
  detail = "",
  link: LineEntry["link"] = null,
): LineEntry {
  return { kind: "line", key: keyOf(record), at_ms: record.at_ms, tone, text, detail, link };
}

export function failed(record: LogRecord, subject: FailureEntry["subject"], failure: Failure): FailureEntry {
  return { kind: "failure", key: keyOf(record), at_ms: record.at_ms, subject, failure };
}

export function promptOf(task: Task, at_ms: number): Entry {
  const { id, author, prompt, agent, model, limits } = task;
  return { kind: "prompt", key: id, at_ms, task_id: id, author, text: prompt, agent, model, limits };
}

export function add(state: SessionState, entry: Entry): SessionState {
  return { ...state, entries: [...state.entries, entry] };
}

function indexOf(state: SessionState, key: string): number {
  return state.entries.findLastIndex((entry) => entry.key === key);
}

export function find(state: SessionState, key: string): Entry | undefined {
  return state.entries[indexOf(state, key)];
}

export function isGrowing(entry: Entry): boolean {
  return entry.kind === "tool" ? entry.status === "running" : "growing" in entry && entry.growing;
}

/**
 * A part in its place: that of the entry with the same key, else before those parts of its message that began later.
 * An agent's words are finished when its message is, which may be after the tools of that message began; part ids sort
 * by when the part began.
 */
export function put(state: SessionState, entry: PartEntry): SessionState {
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

export function finishPart(state: SessionState, entry: PartEntry): SessionState {
  return { ...put(state, entry), partials: without(state.partials, entry.key) };
}

function without(partials: Record<string, Partial>, key: string): Record<string, Partial> {
  if (!(key in partials)) return partials;
  const { [key]: _gone, ...rest } = partials;
  return rest;
}

/** Whatever still grows will not finish: running tools are interrupted, growing text goes with its partial. */
export function settle(state: SessionState, concerns: (task_id: string) => boolean): SessionState {
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

export function patchTask(state: SessionState, id: string, patch: { [K in keyof Task]?: Task[K] }): SessionState {
  return { ...state, tasks: state.tasks.map((task) => (task.id === id ? { ...task, ...patch } : task)) };
}

/** Where a session stands that neither failed nor rests. */
export function atWork(state: SessionState): SessionState["status"] {
  if (state.sandbox.status === "creating" && state.status !== "provisioning") return "provisioning";
  return state.tasks.some((task) => task.status === "running") ? "running" : "ready";
}
