import { describe, expect, it } from "vitest";
import type { LogRecord } from "@/api/events";
import { reduce } from "./reducer";
import { unknownSession } from "./state";
import { Tape } from "./tape";

const PEOPLE = { kind: "user", name: "ann" } as const;

const note = (seq: number): LogRecord => ({
  ...{ seq, at_ms: seq * 10, v: 1, actor: PEOPLE },
  ...{ type: "message.posted", data: { message_id: `n${String(seq)}`, text: `note ${String(seq)}` } },
});

describe("a tape", () => {
  const start = unknownSession("ses_1");
  const records = Array.from({ length: 1203 }, (_, index) => note(index + 1));
  const tape = new Tape(start);
  records.reduce((state, record) => {
    const after = reduce(state, record);
    tape.add(record, after);
    return after;
  }, start);

  it.each([0, 1, 499, 500, 501, 1000, 1203])("shows the session as it was after %i events", (seq) => {
    expect(tape.at(seq)).toEqual(records.slice(0, seq).reduce(reduce, start));
  });

  it("shows the newest state for a moment that is yet to come", () => {
    expect(tape.at(5000).seq).toBe(1203);
  });
});
