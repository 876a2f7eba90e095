/** The routes of sessions, one function each. */

import type { LogRecord } from "./events";
import { API, getJson, getText, patchJson, postJson } from "./http";
import type {
  Answer,
  FileEntry,
  FoundPage,
  Me,
  Models,
  NewFork,
  NewSession,
  NewTask,
  SearchMode,
  SessionPage,
  SessionStatus,
  TaskAccepted,
  TaskChange,
} from "./types";

const at = (id: string): string => `/sessions/${encodeURIComponent(id)}`;

export function listSessions(status: SessionStatus | "", cursor: string, signal?: AbortSignal) {
  const query = new URLSearchParams({ limit: "50" });
  if (status) query.set("status", status);
  if (cursor) query.set("cursor", cursor);
  return getJson<SessionPage>(`/sessions?${query.toString()}`, signal);
}

/** Sessions with a title or a message that has all these words, or that means something like them; the best first. */
export function searchSessions(words: string, mode: SearchMode, cursor: string, signal?: AbortSignal) {
  const query = new URLSearchParams({ q: words, mode, ...(cursor && { cursor }) });
  return getJson<FoundPage>(`/search?${query.toString()}`, signal);
}

export const sessionListStream = `${API}/sessions/stream`;

export function createSession(session: NewSession, key: string) {
  return postJson<{ id: string }>("/sessions", session, key);
}

export function getModels(signal?: AbortSignal) {
  return getJson<Models>("/models", signal);
}

export function getMe(signal?: AbortSignal) {
  return getJson<Me>("/me", signal);
}

/** A page of the log after `after`, in order. */
export function getEvents(id: string, after: number, signal?: AbortSignal) {
  return getJson<{ items: LogRecord[]; head_seq: number }>(
    `${at(id)}/events?after=${String(after)}&limit=1000`,
    signal,
  );
}

export function eventSocketUrl(id: string, after: number): string {
  const url = new URL(`${API}${at(id)}/events/ws?after=${String(after)}`, window.location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}

export function createTask(id: string, task: NewTask, key: string) {
  return postJson<TaskAccepted>(`${at(id)}/tasks`, task, key);
}

const taskAt = (id: string, taskId: string): string => `${at(id)}/tasks/${encodeURIComponent(taskId)}`;

export function cancelTask(id: string, taskId: string) {
  return postJson<unknown>(`${taskAt(id, taskId)}/cancel`);
}

/** Of a waiting task anything may change, of a running one only its limits. */
export function editTask(id: string, taskId: string, change: TaskChange) {
  return patchJson<unknown>(taskAt(id, taskId), change);
}

/** Puts a waiting task before another one, or with "" at the end. */
export function moveTask(id: string, taskId: string, before: string) {
  return postJson<unknown>(`${taskAt(id, taskId)}/move`, { before });
}

export function postNote(id: string, text: string, key: string) {
  return postJson<unknown>(`${at(id)}/messages`, { text }, key);
}

export function answerRequest(id: string, requestId: string, answer: Answer) {
  return postJson<unknown>(`${at(id)}/requests/${encodeURIComponent(requestId)}/answer`, answer);
}

export function retrySession(id: string) {
  return postJson<unknown>(`${at(id)}/retry`);
}

export function pauseSession(id: string) {
  return postJson<unknown>(`${at(id)}/pause`);
}

export function resumeSession(id: string) {
  return postJson<unknown>(`${at(id)}/resume`);
}

export function takeCheckpoint(id: string) {
  return postJson<unknown>(`${at(id)}/checkpoints`);
}

/** A new session that begins where that checkpoint was taken. */
export function forkSession(id: string, fork: NewFork, key: string) {
  return postJson<{ id: string }>(`${at(id)}/fork`, fork, key);
}

export function archiveSession(id: string) {
  return postJson<unknown>(`${at(id)}/archive`);
}

/** Of what a diff is wanted: the workspace as it stands, or a checkpoint; an empty id is the last one. */
export type DiffSource = { live: true } | { checkpoint: string };

/** The unified diff against the base commit. */
export function getDiff(id: string, source: DiffSource, signal?: AbortSignal) {
  const query = new URLSearchParams("live" in source ? { live: "true" } : source.checkpoint ? { checkpoint: source.checkpoint } : {});
  return getText(`${at(id)}/diff?${query.toString()}`, signal);
}

export function listFiles(id: string, path: string, signal?: AbortSignal) {
  return getJson<{ items: FileEntry[] }>(`${at(id)}/files?path=${encodeURIComponent(path)}`, signal);
}

export function fileUrl(id: string, path: string): string {
  return `${API}${at(id)}/files/content?path=${encodeURIComponent(path)}`;
}

export function artifactUrl(id: string, name: string): string {
  return `${API}${at(id)}/artifacts/${encodeURIComponent(name)}`;
}
