import { useEffect, useState, useSyncExternalStore } from "react";
import { eventSocketUrl, getEvents } from "@/api/sessions";
import { Feed, type Snapshot, type Wire } from "./feed";
import type { SessionState } from "./state";

export interface LiveSession extends Snapshot {
  /** The session as it was after so many events, of those that were read. */
  past: (seq: number) => SessionState;
}

/** The live session of that id. The caller remounts for another id. */
export function useSession(id: string): LiveSession {
  const [feed] = useState(() => new Feed(id, browserWire(id)));
  useEffect(() => feed.start(), [feed]);
  const snapshot = useSyncExternalStore(feed.subscribe, feed.read);
  return { ...snapshot, past: feed.past };
}

function browserWire(id: string): Wire {
  return {
    page: (after, signal) => getEvents(id, after, signal),
    socket: (after) => new WebSocket(eventSocketUrl(id, after)),
    wait: waitOrReturn,
    random: Math.random,
  };
}

function waitOrReturn(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      document.removeEventListener("visibilitychange", shown);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const shown = (): void => {
      if (!document.hidden) done();
    };
    const timer = setTimeout(done, ms);
    window.addEventListener("online", done);
    document.addEventListener("visibilitychange", shown);
    signal.addEventListener("abort", done);
  });
}
