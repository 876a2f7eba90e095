/** The fold of a session's stream: pure, and exhaustive over the event types by construction of `HANDLERS`. */

import type { EventType, LogRecord } from "@/api/events";
import { AGENT } from "./fold/agent";
import type { Handler, Handlers } from "./fold/handler";
import { SANDBOX } from "./fold/sandbox";
import { SESSION } from "./fold/session";
import { TASK } from "./fold/task";
import { runningTask, type SessionState } from "./state";

export { grow } from "./fold/growth";

const HANDLERS: Handlers = { ...SESSION, ...SANDBOX, ...TASK, ...AGENT };

/** What is heard of a session, besides all that its runner reports. */
const SIGNS_OF_LIFE: EventType[] = [
  ...(["task.started", "task.steered", "request.answered"] as const),
  ...(["sandbox.resumed", "model.called", "child.finished"] as const),
];

/** Applies the next event. An event type of a newer server moves `seq` on and changes nothing else. */
export function reduce(state: SessionState, record: LogRecord): SessionState {
  const handler = HANDLERS[record.type] as Handler<EventType> | undefined;
  const next = handler ? handler(state, record.data, record) : state;
  const isHeard = record.frame != null || SIGNS_OF_LIFE.includes(record.type);
  const after = { ...next, seq: record.seq, updated_at_ms: record.at_ms, stuck: next.stuck && !isHeard };
  return isWorking(state) === isWorking(after) ? after : clocked(state, after, record.at_ms);
}

/** Whether time counts: the agent works and waits for nobody. */
const isWorking = ({ status, sandbox, requests }: SessionState): boolean =>
  status === "running" && sandbox.status === "ready" && requests.length === 0;

/** With the running task's clock started or stopped. */
function clocked(before: SessionState, after: SessionState, at_ms: number): SessionState {
  const starts = isWorking(after);
  const id = runningTask(starts ? after : before)?.id;
  const tasks = after.tasks.map((task) => {
    if (task.id !== id) return task;
    if (starts) return { ...task, working_since_ms: at_ms };
    const passed_ms = task.working_since_ms > 0 ? Math.max(0, at_ms - task.working_since_ms) : 0;
    return { ...task, worked_ms: task.worked_ms + passed_ms, working_since_ms: 0 };
  });
  return { ...after, tasks };
}
