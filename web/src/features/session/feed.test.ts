import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { LogRecord, StreamMessage } from "@/api/events";
import { ApiError } from "@/api/http";
import { backoffMs, Feed, type Wire } from "./feed";

const note = (seq: number): LogRecord => ({
  seq,
  at_ms: seq,
  type: "message.posted",
  v: 1,
  actor: { kind: "user", name: "ann" },
  data: { message_id: `n${String(seq)}`, text: String(seq) },
});
const archived = (seq: number): LogRecord => ({ ...note(seq), type: "session.archived", data: {} });

/** A server with a log, whose pages hold two events and whose sockets the test speaks through. */
class Server implements Wire {
  log: LogRecord[] = [];
  sockets: Socket[] = [];
  waits: number[] = [];
  refusal: Error | undefined;

  page(after: number) {
    if (this.refusal) return Promise.reject(this.refusal);
    const items = this.log.filter(({ seq }) => seq > after).slice(0, 2);
    return Promise.resolve({ items, head_seq: this.log.length });
  }

  socket(after: number): WebSocket {
    const socket = new Socket(after);
    this.sockets.push(socket);
    return socket as unknown as WebSocket;
  }

  wait(ms: number, signal: AbortSignal): Promise<void> {
    this.waits.push(ms);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      signal.addEventListener("abort", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  random = () => 1;

  get latest(): Socket {
    const socket = this.sockets.at(-1);
    if (!socket) throw new Error("nobody has opened a socket");
    return socket;
  }
}

class Socket {
  readonly CONNECTING = WebSocket.CONNECTING;
  readyState: number = WebSocket.OPEN;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;
  onerror: (() => void) | null = null;
  isClosed = false;

  constructor(readonly after: number) {}

  say(message: StreamMessage): void {
    this.onmessage?.({ data: JSON.stringify(message) });
  }

  drop(code = 1006): void {
    this.onclose?.({ code });
  }

  close(): void {
    this.isClosed = true;
  }
}

const texts = (feed: Feed): string[] =>
  feed.read().session.entries.map((entry) => (entry.kind === "note" ? entry.text : entry.kind));

describe("a feed", () => {
  let server: Server;
  let feed: Feed;
  let stop: () => void;

  beforeEach(() => {
    vi.useFakeTimers();
    server = new Server();
    server.log = [1, 2, 3, 4, 5].map(note);
    feed = new Feed("ses_1", server);
    stop = feed.start();
  });

  afterEach(() => {
    stop();
    vi.useRealTimers();
  });

  const settle = (ms = 50) => vi.advanceTimersByTimeAsync(ms);

  it("replays the log page by page, then follows from its head", async () => {
    await settle();
    expect(server.latest.after).toBe(5);
    server.latest.say({ t: "live", head_seq: 5 });
    server.latest.say(note(6));
    await settle();
    expect(feed.read().phase).toBe("live");
    expect(texts(feed)).toEqual(["1", "2", "3", "4", "5", "6"]);
  });

  it("shows each event once, also when the stream repeats some", async () => {
    await settle();
    for (const seq of [4, 5, 6, 6]) server.latest.say(note(seq));
    await settle();
    expect(texts(feed)).toEqual(["1", "2", "3", "4", "5", "6"]);
  });

  it("comes back after a lost connection, with what it missed in between", async () => {
    await settle();
    server.latest.say({ t: "live", head_seq: 5 });
    server.log.push(note(6), note(7), note(8));
    server.latest.drop();
    await settle(0);
    expect(feed.read().phase).toBe("reconnecting");
    await settle(1000);
    expect(server.sockets).toHaveLength(2);
    expect(server.latest.after).toBe(8);
    server.latest.say({ t: "live", head_seq: 8 });
    expect(texts(feed)).toEqual(["1", "2", "3", "4", "5", "6", "7", "8"]);
    expect(feed.read().phase).toBe("live");
  });

  it("reads the log again when the stream skips an event", async () => {
    await settle();
    server.log.push(note(6), note(7));
    server.latest.say(note(7));
    expect(server.latest.isClosed).toBe(true);
    await settle(1000);
    expect(texts(feed)).toEqual(["1", "2", "3", "4", "5", "6", "7"]);
    expect(server.latest.after).toBe(7);
  });

  it("reads the log again when a heartbeat knows more than it does", async () => {
    await settle();
    server.log.push(note(6));
    server.latest.say({ t: "head", head_seq: 6 });
    await settle(1000);
    expect(texts(feed).at(-1)).toBe("6");
  });

  it("takes silence for a dead connection", async () => {
    await settle();
    server.latest.say({ t: "live", head_seq: 5 });
    await settle(24_000);
    server.latest.say({ t: "head", head_seq: 5 });
    await settle(24_000);
    expect(server.sockets).toHaveLength(1);
    await settle(2_000);
    expect(server.sockets).toHaveLength(2);
  });

  it("comes back at once when it was too slow", async () => {
    await settle();
    server.latest.drop(4408);
    await settle(0);
    expect([server.sockets.length, server.waits]).toEqual([2, []]);
  });

  it("waits longer each time that it does not get through", async () => {
    await settle();
    server.refusal = new ApiError(0, "offline", "");
    server.latest.drop();
    await settle(10_000);
    expect(server.waits).toEqual([500, 1000, 2000, 4000, 8000]);
  });

  it("ends with an archived session", async () => {
    await settle();
    server.log.push(archived(6));
    server.latest.say(archived(6));
    server.latest.drop(4409);
    await settle(1000);
    expect(feed.read().phase).toBe("ended");
    expect(server.sockets).toHaveLength(1);
  });

  it("gives up where the server refuses", async () => {
    await settle();
    server.refusal = new ApiError(401, "unauthenticated", "Sign in.");
    server.latest.drop(4401);
    await settle(1000);
    expect(feed.read()).toMatchObject({ phase: "refused", error: { status: 401 } });
    await settle(60_000);
    expect(server.sockets).toHaveLength(1);
  });

  it("lets go of its connection when nobody looks", async () => {
    await settle();
    stop();
    expect(server.latest.isClosed).toBe(true);
    await settle(60_000);
    expect(server.sockets).toHaveLength(1);
  });

  it("lets a connection that is being made come about before it lets go", async () => {
    await settle();
    server.latest.readyState = WebSocket.CONNECTING;
    stop();
    expect(server.latest.isClosed).toBe(false);
    server.latest.onopen?.();
    expect(server.latest.isClosed).toBe(true);
  });
});

describe("the wait between attempts", () => {
  it("doubles up to 15 s, of which chance takes up to a half", () => {
    expect([1, 2, 3, 9].map((failures) => backoffMs(failures, 1))).toEqual([500, 1000, 2000, 15_000]);
    expect(backoffMs(2, 0)).toBe(500);
  });
});
