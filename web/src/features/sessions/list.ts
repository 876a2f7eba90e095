/** The list of sessions: pages from the server, kept true by its stream. */

import { infiniteQueryOptions, useQueryClient, type InfiniteData, type QueryClient } from "@tanstack/react-query";
import { useEffect } from "react";
import { listSessions, sessionListStream } from "@/api/sessions";
import type { SessionPage, SessionStatus, SessionSummary } from "@/api/types";

export type Filter = SessionStatus | "";

const KEY = "sessions";

export const sessionsQuery = (filter: Filter) =>
  infiniteQueryOptions({
    queryKey: [KEY, filter],
    queryFn: ({ pageParam, signal }) => listSessions(filter, pageParam, signal),
    initialPageParam: "",
    getNextPageParam: (last) => last.next_cursor ?? undefined,
  });

type Pages = InfiniteData<SessionPage, string>;

/** The pages with this session as it is now: in its place, new on top, or gone where the filter leaves it out. */
export function withSession(pages: Pages, summary: SessionSummary, filter: Filter): Pages {
  const belongs = filter === "" || summary.status === filter;
  const isKnown = pages.pages.some((page) => page.items.some((item) => item.id === summary.id));
  const updated = pages.pages.map((page) => ({
    ...page,
    items: page.items.flatMap((item) => (item.id === summary.id ? (belongs ? [newer(item, summary)] : []) : [item])),
  }));
  const [first, ...rest] = updated;
  if (isKnown || !belongs || !first) return { ...pages, pages: updated };
  const items = [summary, ...first.items].sort((a, b) => b.created_at_ms - a.created_at_ms);
  return { ...pages, pages: [{ ...first, items }, ...rest] };
}

const newer = (one: SessionSummary, other: SessionSummary): SessionSummary =>
  other.head_seq >= one.head_seq ? other : one;

/** Keeps every list in the cache true while the component is there. */
export function useLiveSessions(): void {
  const queries = useQueryClient();
  useEffect(() => {
    let stream: EventSource;
    let again: ReturnType<typeof setTimeout> | undefined;
    const connect = (): void => {
      stream = new EventSource(sessionListStream);
      // What changed while nobody listened is only in the list itself, also when the page was left and comes back.
      stream.onopen = () => {
        void queries.invalidateQueries({ queryKey: [KEY] });
      };
      stream.onmessage = (event: MessageEvent<string>) => {
        apply(queries, JSON.parse(event.data) as SessionSummary);
      };
      stream.onerror = () => {
        // The browser comes back by itself, except after an answer that was no stream.
        if (stream.readyState === EventSource.CLOSED) again = setTimeout(connect, 3000 + Math.random() * 3000);
      };
    };
    connect();
    return () => {
      clearTimeout(again);
      stream.close();
    };
  }, [queries]);
}

function apply(queries: QueryClient, summary: SessionSummary): void {
  for (const query of queries.getQueryCache().findAll({ queryKey: [KEY] })) {
    const filter = query.queryKey[1] as Filter;
    queries.setQueryData<Pages>(query.queryKey, (pages) => pages && withSession(pages, summary, filter));
  }
}
