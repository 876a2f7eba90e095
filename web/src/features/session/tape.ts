/** A session's log as far as it was read, kept so that any moment of it can be shown again. */

import type { LogRecord } from "@/api/events";
import { reduce } from "./reducer";
import type { SessionState } from "./state";

/** So many events at most are folded to show a moment. */
const STRIDE = 500;

export class Tape {
  private readonly records: LogRecord[] = [];
  /** The state before each `STRIDE` events. */
  private readonly marks: SessionState[];

  constructor(start: SessionState) {
    this.marks = [start];
  }

  /** The next event, and the state after it. */
  add(record: LogRecord, after: SessionState): void {
    this.records.push(record);
    // What still grows is not in the log.
    if (this.records.length % STRIDE === 0) this.marks.push({ ...after, partials: {} });
  }

  /** The session after `seq` events; after all of them when there are not so many. */
  at(seq: number): SessionState {
    const wanted = Math.min(Math.max(0, seq), this.records.length);
    const mark = Math.floor(wanted / STRIDE);
    const start = this.marks[mark];
    if (!start) throw new Error(`The tape has no mark ${String(mark)}.`);
    return this.records.slice(mark * STRIDE, wanted).reduce(reduce, start);
  }
}
