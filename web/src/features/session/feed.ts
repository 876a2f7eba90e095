/**
 * A live session: replays the log, follows the stream, comes back by itself, and keeps the fold of it all.
 *
 * The seq decides: an event already known is dropped, and one that would leave a gap ends the connection, so that
 * the next round reads what is missing from the log.
 */

import type { Delta, LogRecord, StreamMessage } from "@/api/events";
import { ApiError } from "@/api/http";
import { grow, reduce } from "./reducer";
import { unknownSession, type SessionState } from "./state";
import { Tape } from "./tape";

/** `ended`: the session is archived and everything was read. `refused`: see `error`; trying again would not help. */
export type Phase = "replaying" | "live" | "reconnecting" | "ended" | "refused";

export interface Snapshot {
  session: SessionState;
  phase: Phase;
  error: ApiError | null;
}

/** What the feed needs of the outside. */
export interface Wire {
  /** A page of events after a seq. */
  page(after: number, signal: AbortSignal): Promise<{ items: LogRecord[]; head_seq: number }>;
  socket(after: number): WebSocket;
  /** Resolves after `ms`, or sooner when trying again makes sense (back online, page shown) or on abort. */
  wait(ms: number, signal: AbortSignal): Promise<void>;
  /** From 0 to 1. */
  random(): number;
}

const TOO_SLOW = 4408;
/** The server speaks at least each 10 s: longer silence is a dead connection. */
const SILENCE_MS = 25_000;
/** Watchers are told at most this often: token deltas come faster than anyone reads. */
const TELL_MS = 32;

export class Feed {
  private snapshot: Snapshot;
  private readonly listeners = new Set<() => void>();
  private telling: ReturnType<typeof setTimeout> | undefined;
  private session: SessionState;
  private readonly tape: Tape;

  constructor(
    id: string,
    private readonly wire: Wire,
  ) {
    this.session = unknownSession(id);
    this.tape = new Tape(this.session);
    this.snapshot = { session: this.session, phase: "replaying", error: null };
  }

  readonly read = (): Snapshot => this.snapshot;

  /** The session as it was after `seq` events. */
  readonly past = (seq: number): SessionState => this.tape.at(seq);

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  /** Runs until the returned function is called, the session is archived, or the server refuses. */
  start(): () => void {
    const stop = new AbortController();
    void this.run(stop.signal);
    return () => {
      stop.abort();
      clearTimeout(this.telling);
      this.telling = undefined;
    };
  }

  private async run(signal: AbortSignal): Promise<void> {
    for (let failures = 0; ; ) {
      try {
        signal.throwIfAborted();
        await this.catchUp(signal);
        if (this.session.status === "archived") {
          this.tell("ended");
          return;
        }
        if (this.snapshot.phase === "replaying") this.tell("reconnecting");
        const { code, wasLive } = await this.follow(signal);
        signal.throwIfAborted();
        if (code === TOO_SLOW) continue;
        failures = wasLive ? 1 : failures + 1;
      } catch (error) {
        if (signal.aborted) return;
        if (isFinal(error)) {
          this.tell("refused", error);
          return;
        }
        failures += 1;
      }
      this.tell("reconnecting");
      await this.wire.wait(backoffMs(failures, this.wire.random()), signal);
    }
  }

  private async catchUp(signal: AbortSignal): Promise<void> {
    for (;;) {
      const before = this.session.seq;
      const { items, head_seq } = await this.wire.page(before, signal);
      signal.throwIfAborted();
      for (const record of items) this.take(record);
      if (this.session.seq >= head_seq) return;
      if (this.session.seq === before) throw new Error(`The log has no event after ${String(before)}.`);
    }
  }

  /** Follows the stream until it closes, falls silent or skips an event. */
  private follow(signal: AbortSignal): Promise<{ code: number; wasLive: boolean }> {
    return new Promise((resolve) => {
      const socket = this.wire.socket(this.session.seq);
      let wasLive = false;
      let silence: ReturnType<typeof setTimeout>;
      const end = (code: number): void => {
        clearTimeout(silence);
        signal.removeEventListener("abort", abort);
        socket.onmessage = socket.onclose = socket.onerror = null;
        // Browsers complain of a socket that is closed before it has opened.
        if (socket.readyState === socket.CONNECTING) {
          socket.onopen = () => {
            socket.close();
          };
        } else socket.close();
        resolve({ code, wasLive });
      };
      const abort = (): void => {
        end(0);
      };
      const listen = (): void => {
        clearTimeout(silence);
        silence = setTimeout(abort, SILENCE_MS);
      };
      signal.addEventListener("abort", abort);
      socket.onclose = (event) => {
        end(event.code);
      };
      socket.onmessage = (event: MessageEvent<string>) => {
        listen();
        const message = JSON.parse(event.data) as StreamMessage;
        if (!this.hear(message)) end(0);
        else if ("t" in message && message.t === "live") {
          wasLive = true;
          this.tell("live");
        }
      };
      listen();
    });
  }

  /** False when the message shows that something is missing. */
  private hear(message: StreamMessage): boolean {
    if (!("t" in message)) return this.take(message);
    if (message.t === "delta") return this.takeDelta(message);
    return message.head_seq <= this.session.seq;
  }

  private take(record: LogRecord): boolean {
    if (record.seq <= this.session.seq) return true;
    if (record.seq > this.session.seq + 1) return false;
    this.session = reduce(this.session, record);
    this.tape.add(record, this.session);
    this.tellSoon();
    return true;
  }

  private takeDelta(delta: Delta): boolean {
    this.session = grow(this.session, delta);
    this.tellSoon();
    return true;
  }

  private tellSoon(): void {
    // During the replay the page shows nothing in between: one long list is drawn once.
    if (this.snapshot.phase === "replaying") return;
    this.telling ??= setTimeout(() => {
      this.tell(this.snapshot.phase);
    }, TELL_MS);
  }

  private tell(phase: Phase, error: ApiError | null = null): void {
    clearTimeout(this.telling);
    this.telling = undefined;
    this.snapshot = { session: this.session, phase, error };
    for (const listener of this.listeners) listener();
  }
}

/** Doubles from half a second to 15 s, of which a random half is taken off. */
export function backoffMs(failures: number, random: number): number {
  const full = Math.min(500 * 2 ** (failures - 1), 15_000);
  return full * (0.5 + random / 2);
}

function isFinal(error: unknown): error is ApiError {
  return error instanceof ApiError && [401, 403, 404, 422].includes(error.status);
}
