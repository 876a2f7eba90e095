/** What the agent says, does and asks. */

import { add, find, finishPart, keyOf, line, put, settle } from "./changes";
import type { Handlers, TypesOf } from "./handler";
import type { SessionState, ToolEntry } from "../state";

export const AGENT: Handlers<TypesOf<"text" | "reasoning" | "tool" | "todos" | "request" | "agent">> = {
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
};

function closeRequest(state: SessionState, id: string): SessionState {
  return { ...state, requests: state.requests.filter((request) => request.id !== id) };
}
