import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { EVENT_TYPES, type Delta, type EventData, type EventType, type LogRecord } from "@/api/events";
import { grow, reduce } from "./reducer";
import { unknownSession, type SessionState } from "./state";

const PEOPLE = { kind: "user", name: "ann" } as const;

/** A log of these events, numbered from 1, a second apart. */
function log(...events: { [T in EventType]: [T, EventData[T]] }[EventType][]): LogRecord[] {
  return events.map(
    ([type, data], index) =>
      ({ seq: index + 1, at_ms: (index + 1) * 1000, type, v: 1, actor: PEOPLE, data }) as LogRecord,
  );
}

const fold = (records: LogRecord[], from = unknownSession("ses_1")): SessionState => records.reduce(reduce, from);

const created: ["session.created", EventData["session.created"]] = [
  "session.created",
  { title: "Fix it", repository: { source: "/r", branch: "" }, model: "p/m", approval: "auto" },
];
const queued: ["task.queued", EventData["task.queued"]] = [
  "task.queued",
  { task_id: "t1", prompt: "Fix the test", model: "p/m", agent: "build" },
];
const started: ["task.started", EventData["task.started"]] = ["task.started", { task_id: "t1" }];
const part = { task_id: "t1", message_id: "m1" };
const tool = { ...part, part_id: "p2", tool: "bash", title: "" };
const failure = { code: "sandbox_lost", reason: "gone", hint: "Retry." };

const delta = (part_id: string, kind: Delta["kind"], offset: number, text: string): Delta => ({
  t: "delta",
  ...part,
  part_id,
  kind,
  offset,
  text,
});

const kinds = (state: SessionState): string[] => state.entries.map((entry) => entry.kind);

describe("the events", () => {
  it("are those of docs/protocol.md", () => {
    const page = readFileSync("../docs/protocol.md", "utf8");
    const table = page.slice(page.indexOf("| type | data |"), page.indexOf("## HTTP"));
    const documented = Array.from(table.matchAll(/^\| `([a-z_]+\.[a-z_]+)`/gm), ([, name]) => name);
    expect(documented).toEqual(EVENT_TYPES);
  });

  it("of every version that the server keeps can be applied", () => {
    const folder = "../tests/golden/events";
    const names = readdirSync(folder).filter((name) => name.endsWith(".json"));
    const types = names.map((name) => {
      const record = JSON.parse(readFileSync(`${folder}/${name}`, "utf8")) as LogRecord;
      const state = reduce(fold(log(created, queued, started)), record);
      expect(state.seq).toBe(record.seq);
      return record.type;
    });
    expect(new Set(types)).toEqual(new Set(EVENT_TYPES));
  });

  it("move on past a type that a newer server sends", () => {
    const unknown = { ...fold(log(created)), seq: 1 };
    const record = { seq: 2, at_ms: 5, type: "future.thing", v: 1, actor: PEOPLE, data: {} } as unknown as LogRecord;
    expect(reduce(unknown, record)).toEqual({ ...unknown, seq: 2, updated_at_ms: 5 });
  });
});

/** A log that is kept with the session it folds to; the server's tests fold the same files. */
function kept(name: string): { records: LogRecord[]; served: { id: string; head_seq: number } } {
  const file = (end: string): string => readFileSync(`../tests/golden/streams/${name}.${end}`, "utf8");
  const records = file("jsonl").trimEnd().split("\n");
  return {
    records: records.map((text) => JSON.parse(text) as LogRecord),
    served: JSON.parse(file("session.json")) as { id: string; head_seq: number },
  };
}

describe.each(["whole", "life"])("the log of a session (%s), as a server kept it", (name) => {
  const { records, served } = kept(name);

  it("folds to what the server folds it to", () => {
    const { id, head_seq, ...fields } = served;
    expect(fold(records, unknownSession(id))).toMatchObject({ ...fields, id, seq: head_seq });
  });

  it("comes out the same from anywhere in between", () => {
    const whole = fold(records);
    expect(new Set(whole.entries.map((entry) => entry.key)).size).toBe(whole.entries.length);
    for (let cut = 0; cut < records.length; cut += 7) {
      expect(fold(records.slice(cut), fold(records.slice(0, cut)))).toEqual(whole);
    }
  });
});

describe("the story of a session", () => {
  it("is told in order", () => {
    const state = fold(kept("whole").records);
    expect(kinds(state).filter((kind) => !["tool", "text"].includes(kind))).toEqual([
      ...["prompt", "answered", "outcome"],
      ...["prompt", "steer", "prompt", "outcome", "note", "outcome"],
      ...["prompt", "answered", "answered", "outcome"],
      "prompt",
    ]);
  });

  it("tells what befell it and how it went on", () => {
    const said = fold(kept("life").records).entries.flatMap((entry) => (entry.kind === "line" ? [[entry.text, entry.detail]] : []));
    expect(said).toEqual([
      ["This session is a fork of another one", ""],
      ["Restored from a checkpoint", "Lost: the agent's memory of the conversation"],
      ["A checkpoint was taken", ""],
      ["Nothing was heard of the task for 15m", "If that goes on, it is ended."],
      ["bob paused the session", "A message resumes it where it was."],
      ["Resumed by a message", ""],
      ["Only the files came back", "What ran in the sandbox was lost."],
      ["The sandbox was lost", "its host does not answer"],
      ["The task was interrupted and goes on in a new sandbox", ""],
      ["Restored from a checkpoint", "Lost: running processes, files that git ignores: node_modules/"],
      ["bob changed the limits", "1h · 500 tokens · $5.00"],
      ["The task reached its limit of 2.0k tokens", "It is being ended."],
      ["Nothing was heard of the task for 15m", "If that goes on, it is ended."],
      ["Nothing was heard of the task for 30m", "It is being ended."],
      ["Paused, as nothing was going on", "A message resumes it where it was."],
      ["Resumed by a task", ""],
    ]);
  });

  it("keeps every checkpoint in its place of the log", () => {
    const { checkpoints, entries } = fold(kept("life").records);
    expect(checkpoints.map(({ id, reason }) => [id, reason])).toEqual([
      ["cp0", "fork"],
      ["cp1", "asked"],
      ["cp2", "pause"],
      ["cp3", "task"],
    ]);
    expect(checkpoints.at(-1)).toMatchObject({ task_id: "t1", files_changed: 2, additions: 10, deletions: 2 });
    const taken = entries.find((entry) => entry.kind === "line" && entry.text === "A checkpoint was taken");
    expect(taken).toMatchObject({ link: { to: "past", seq: checkpoints[1]?.seq } });
  });

  it("follows its children", () => {
    const children = fold(kept("life").records).entries.filter((entry) => entry.kind === "child");
    expect(children.map(({ child_id, status, text }) => [child_id, status, text])).toEqual([
      ["ses_child1", "running", "Port the docs"],
      ["ses_child2", "running", "Port the rest"],
      ["ses_child1", "completed", "Ported."],
      ["ses_child2", "failed", "It broke."],
    ]);
  });
});

describe("a task", () => {
  it("shows its prompt when it starts and its outcome when it ends", () => {
    const records = log(created, queued, started, ["task.completed", { task_id: "t1" }]);
    expect(fold(records.slice(0, 2)).entries).toEqual([]);
    const running = fold(records.slice(0, 3));
    expect([running.status, kinds(running)]).toEqual(["running", ["prompt"]]);
    const done = fold(records);
    expect([done.status, kinds(done)]).toEqual(["ready", ["prompt", "outcome"]]);
    expect(done.tasks[0]).toMatchObject({ status: "completed", started_at_ms: 3000, ended_at_ms: 4000 });
  });

  it("that is taken out of the queue shows its prompt all the same and leaves the session as it is", () => {
    const state = fold(log(created, queued, ["task.cancelled", { task_id: "t1" }]));
    expect([state.status, kinds(state)]).toEqual(["created", ["prompt", "outcome"]]);
  });

  it("drops the words that were being said when the agent calls its model again, and no others", () => {
    const said = log(created, queued, started, ["text.finished", { ...part, part_id: "p1", text: "Done." }]);
    const deltas = [delta("p2", "reasoning", 0, "Hm"), delta("p3", "text", 0, "I am")];
    const talking = deltas.reduce(grow, fold(said));
    expect(kinds(talking)).toEqual(["prompt", "text", "reasoning", "text"]);
    const retried = { task_id: "t1", attempt: 1, reason: "429", next_at_ms: 0 };
    const again = reduce(talking, { ...log(["agent.retried", retried])[0], seq: 5 } as LogRecord);
    expect(kinds(again)).toEqual(["prompt", "text", "line"]);
    expect(again.partials).toEqual({});
    expect(grow(again, delta("p4", "text", 0, "I am")).entries.at(-1)).toMatchObject({ kind: "text", key: "p4" });
  });

  it("interrupts what still runs when it ends", () => {
    const records = log(created, queued, started, ["tool.started", { ...tool, input: { command: "sleep 9" } }]);
    const running = grow(fold(records), delta("p2", "tool", 0, "half"));
    const texting = grow(running, delta("p3", "text", 0, "I am"));
    expect(kinds(texting)).toEqual(["prompt", "tool", "text"]);
    const ended = reduce(texting, { ...log(["task.cancelled", { task_id: "t1" }])[0], seq: 5 } as LogRecord);
    expect(kinds(ended)).toEqual(["prompt", "tool", "outcome"]);
    expect(ended.entries[1]).toMatchObject({ status: "interrupted", output: "half" });
    expect(ended.partials).toEqual({});
  });
});

describe("growing text", () => {
  const running = fold(log(created, queued, started));

  it("stands in its place until the finished part replaces it", () => {
    const two = [delta("p1", "text", 0, "Hel"), delta("p1", "text", 3, "lo")].reduce(grow, running);
    expect(two.partials.p1?.text).toBe("Hello");
    const after = grow(two, delta("p9", "reasoning", 0, "hm"));
    const record = { ...log(["text.finished", { ...part, part_id: "p1", text: "Hello!" }])[0], seq: 4 } as LogRecord;
    const finished = reduce(after, record);
    expect(kinds(finished)).toEqual(["prompt", "text", "reasoning"]);
    expect(finished.entries[1]).toMatchObject({ text: "Hello!", growing: false });
    expect(finished.partials).not.toHaveProperty("p1");
    expect(grow(finished, delta("p1", "text", 5, "late"))).toBe(finished);
  });

  it("that is finished after the tools of its message stands before them, as it was said", () => {
    const state = fold(
      log(
        created,
        queued,
        started,
        ["tool.started", { ...tool, input: {} }],
        ["message.posted", { message_id: "n1", text: "look" }],
        ["text.finished", { ...part, part_id: "p1", text: "I run the tests." }],
        ["text.finished", { ...part, part_id: "p3", text: "Done." }],
        ["text.finished", { ...part, message_id: "m2", part_id: "p0", text: "Next." }],
      ),
    );
    expect(state.entries.map((entry) => entry.key)).toEqual(["t1", "p1", "p2", "n1", "p3", "p0"]);
  });

  it("takes what it knows already only once and nothing that leaves a hole", () => {
    const known = grow(running, delta("p1", "text", 0, "Hello"));
    expect(grow(known, delta("p1", "text", 0, "Hello"))).toBe(known);
    expect(grow(known, delta("p1", "text", 2, "ll"))).toBe(known);
    expect(grow(known, delta("p1", "text", 6, "x"))).toBe(known);
    expect(grow(known, delta("p1", "text", 3, "lo, you")).partials.p1?.text).toBe("Hello, you");
    expect(grow(known, delta("p1", "text", 0, "Bye")).partials.p1?.text).toBe("Bye");
  });

  it("counts characters as the server does: code points, not halves of them", () => {
    const ship = grow(running, delta("p1", "text", 0, "🚢🚢"));
    expect(grow(ship, delta("p1", "text", 2, " ahoy")).partials.p1?.text).toBe("🚢🚢 ahoy");
  });
});

describe("a sandbox", () => {
  it("goes through its steps and ignores an older generation", () => {
    const state = fold(
      log(
        created,
        ["sandbox.requested", { generation: 2, reason: "retry" }],
        ["sandbox.step_started", { generation: 2, step: "create", detail: "" }],
        ["sandbox.step_finished", { generation: 2, step: "create", took_ms: 40, detail: "" }],
        ["sandbox.step_started", { generation: 2, step: "clone", detail: "" }],
        ["sandbox.created", { generation: 1, sandbox_id: "old" }],
      ),
    );
    expect(state.status).toBe("provisioning");
    expect(state.sandbox.sandbox_id).toBe("");
    expect(state.sandbox.steps).toMatchObject([
      { step: "create", status: "done", took_ms: 40 },
      { step: "clone", status: "running" },
    ]);
  });

  it("that is lost ends its task and says why once", () => {
    const state = fold(
      log(
        created,
        queued,
        started,
        ["sandbox.lost", { generation: 0, reason: "gone" }],
        ["task.failed", { task_id: "t1", failure }],
        ["session.failed", { failure }],
      ),
    );
    expect(state).toMatchObject({ status: "failed", failure });
    expect(kinds(state)).toEqual(["prompt", "line", "failure"]);
  });
});

describe("a request", () => {
  const asked: ["request.asked", EventData["request.asked"]] = [
    "request.asked",
    { task_id: "t1", request_id: "r1", kind: "permission", title: "bash", detail: "rm -r build", questions: [] },
  ];

  it("is open until it is answered, and the answer stays in the conversation", () => {
    const records = log(created, queued, started, asked, ["request.answered", { request_id: "r1", answer: { reply: "once" } }]);
    expect(fold(records.slice(0, 4)).requests).toHaveLength(1);
    const state = fold(records);
    expect(state.requests).toEqual([]);
    expect(state.entries.at(-1)).toMatchObject({ kind: "answered", author: "ann", request: { title: "bash" } });
  });

  it("goes quietly when it is withdrawn", () => {
    const state = fold(log(created, queued, started, asked, ["request.withdrawn", { request_id: "r1" }]));
    expect([state.requests, kinds(state)]).toEqual([[], ["prompt"]]);
  });
});

describe("a failure", () => {
  it("takes the place of the model call that it came from", () => {
    const usage = { ...unknownSession("").usage, model_calls: 1 };
    const call = { task_id: "t1", provider: "p", model: "m", status: 401, took_ms: 9, usage, failure };
    const state = fold(log(created, queued, started, ["model.called", call], ["task.failed", { task_id: "t1", failure }]));
    expect(kinds(state)).toEqual(["prompt", "failure"]);
  });
});

describe("usage", () => {
  it("adds up for the session and for the task, and a failed call is shown", () => {
    const usage = {
      model_calls: 1,
      input_tokens: 10,
      output_tokens: 2,
      reasoning_tokens: 0,
      cache_read_tokens: 0,
      cache_write_tokens: 0,
      cost_usd: 0.5,
    };
    const call = { task_id: "t1", provider: "p", model: "m", status: 200, took_ms: 9, usage, failure: null };
    const state = fold(
      log(
        created,
        queued,
        started,
        ["model.called", call],
        ["model.called", { ...call, status: 429, failure }],
        ["agent.retried", { task_id: "t1", attempt: 1, reason: "429", next_at_ms: 0 }],
        ["model.called", { ...call, status: 429, failure }],
        ["model.called", { ...call, status: 0, failure: { ...failure, code: "model_call_cancelled" } }],
      ),
    );
    expect(state.usage).toMatchObject({ model_calls: 4, input_tokens: 40, cost_usd: 2 });
    expect(state.tasks[0]?.usage.output_tokens).toBe(8);
    expect(state.calls.map((one) => one.status)).toEqual([200, 429, 429, 0]);
    expect(kinds(state)).toEqual(["prompt", "line", "line"]);
    expect(state.entries[1]).toMatchObject({ text: "A model call failed: sandbox_lost", detail: "gone Retry." });
  });
});
