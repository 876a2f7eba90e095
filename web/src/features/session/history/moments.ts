/** The moments of a session that are worth going to: its checkpoints, and now. */

import type { SavedPoint, SessionState } from "../state";

/** Where a step leads from that moment, or nothing where there is no further one. */
export function nextMoment(session: SessionState, at: number, step: -1 | 1): number | undefined {
  const moments = [...session.checkpoints.map(({ seq }) => seq), session.seq];
  return step < 0 ? moments.findLast((seq) => seq < at) : moments.find((seq) => seq > at);
}

/** The newest checkpoint that was there after so many events. */
export const pointAt = (session: SessionState, at: number): SavedPoint | undefined =>
  session.checkpoints.findLast(({ seq }) => seq <= at);

const REASONS: Record<Exclude<SavedPoint["reason"], "task">, string> = {
  time: "While the agent worked",
  asked: "Asked for",
  pause: "Before a pause",
  fork: "Where this fork began",
};

/** What a checkpoint is called: by the task after which it was taken, or by why. */
export function pointTitle(session: SessionState, point: SavedPoint): string {
  if (point.reason !== "task") return REASONS[point.reason];
  const task = session.tasks.find(({ id }) => id === point.task_id);
  return task ? `After “${firstLine(task.prompt)}”` : "After a task";
}

const firstLine = (text: string): string => text.trimStart().split("\n", 1)[0] ?? "";
