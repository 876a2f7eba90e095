import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { cleanup, renderHook } from "@testing-library/react";
import { createElement, type ReactNode } from "react";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { useLiveSessions } from "./list";

/** A stream that does what the test says. */
class Stream {
  static readonly CLOSED = 2;
  static readonly opened: Stream[] = [];
  readyState = 0;
  onopen?: () => void;
  onerror?: () => void;

  constructor() {
    Stream.opened.push(this);
  }

  close(): void {
    this.readyState = Stream.CLOSED;
  }

  lose(readyState: number): void {
    this.readyState = readyState;
    this.onerror?.();
  }
}

describe("the list's stream", () => {
  let queries: QueryClient;
  const isStale = (): boolean => queries.getQueryState(["sessions", ""])?.isInvalidated ?? false;

  const fetched = (): void => {
    queries.setQueryData(["sessions", ""], { pages: [], pageParams: [] });
  };

  beforeEach(() => {
    vi.useFakeTimers();
    vi.stubGlobal("EventSource", Stream);
    Stream.opened.length = 0;
    queries = new QueryClient();
    fetched();
    const wrapper = ({ children }: { children: ReactNode }) =>
      createElement(QueryClientProvider, { client: queries }, children);
    renderHook(useLiveSessions, { wrapper });
  });

  afterEach(() => {
    cleanup();
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  it("has the list fetched again when it opens: what is in the cache may be from an earlier visit", () => {
    expect(isStale()).toBe(false);
    Stream.opened[0]?.onopen?.();
    expect(isStale()).toBe(true);
  });

  it("has the list fetched again when the browser has come back to it", () => {
    Stream.opened[0]?.onopen?.();
    fetched();
    expect(isStale()).toBe(false);
    Stream.opened[0]?.lose(0);
    Stream.opened[0]?.onopen?.();
    expect(isStale()).toBe(true);
  });

  it("is opened anew when the browser gave it up, and the list is fetched again", () => {
    Stream.opened[0]?.onopen?.();
    fetched();
    Stream.opened[0]?.lose(Stream.CLOSED);
    vi.advanceTimersByTime(6000);
    expect(Stream.opened).toHaveLength(2);
    expect(isStale()).toBe(false);
    Stream.opened[1]?.onopen?.();
    expect(isStale()).toBe(true);
  });
});
