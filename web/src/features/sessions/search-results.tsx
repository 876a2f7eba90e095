import { keepPreviousData, useInfiniteQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { CloudOff, SearchX } from "lucide-react";
import type { KeyboardEvent } from "react";
import { searchSessions } from "@/api/sessions";
import type { Found, SearchMode } from "@/api/types";
import { Ago } from "@/components/ago";
import { Button } from "@/components/button";
import { asFailure } from "@/components/failure-box";
import { Notice } from "@/components/notice";
import { Skeleton } from "@/components/skeleton";
import { StatusPill } from "@/components/status";
import { cn } from "@/lib/cn";
import { repositoryName } from "@/lib/format";
import { focusResult, RESULT } from "./focus-result";

const NOTHING: Record<SearchMode, string> = {
  words:
    "A session is found by the words of its title, its prompts, its notes and what the agent said. End a word with * to find what begins like it.",
  meaning:
    "In no title, prompt, note or answer of an agent is there anything near to this in meaning. Names, codes and errors are found better by their words.",
};

interface SearchResultsProps {
  words: string;
  mode: SearchMode;
  onMode: (mode: SearchMode) => void;
}

/** The sessions in which these words were said, or something that means as much, with the place that fits best. */
export function SearchResults({ words, mode, onMode }: SearchResultsProps) {
  const found = useInfiniteQuery({
    queryKey: ["search", mode, words],
    queryFn: ({ pageParam, signal }) => searchSessions(words, mode, pageParam, signal),
    initialPageParam: "",
    getNextPageParam: (last) => last.next_cursor ?? undefined,
    placeholderData: keepPreviousData,
  });
  if (found.isPending) return <Loading />;
  if (found.isError) {
    const { code, reason, hint } = asFailure(found.error);
    return (
      <Notice
        icon={CloudOff}
        title="The search did not work"
        className="rounded-2xl border bg-surface"
        action={
          code === "semantic_search_off" ? (
            <Button
              onClick={() => {
                onMode("words");
              }}
            >
              Search by words
            </Button>
          ) : (
            <Button
              busy={found.isFetching}
              onClick={() => {
                void found.refetch();
              }}
            >
              Try again
            </Button>
          )
        }
      >
        <p className="first-letter:uppercase">{reason}</p>
        {hint && <p>{hint}</p>}
      </Notice>
    );
  }
  const items = found.data.pages.flatMap((page) => page.items);
  if (items.length === 0) {
    return (
      <Notice icon={SearchX} title="Nothing was found" className="rounded-2xl border bg-surface">
        {NOTHING[mode]}
      </Notice>
    );
  }
  return (
    <>
      <ul aria-label="Found" className={cn("divide-y overflow-hidden rounded-2xl border bg-surface shadow-raised", found.isPlaceholderData && "opacity-60")}>
        {items.map((item) => (
          <li key={item.session.id}>
            <FoundRow found={item} />
          </li>
        ))}
      </ul>
      {found.hasNextPage && (
        <div className="mt-3 flex justify-center">
          <Button
            busy={found.isFetchingNextPage}
            onClick={() => {
              void found.fetchNextPage();
            }}
          >
            Show more
          </Button>
        </div>
      )}
    </>
  );
}

function walk(event: KeyboardEvent<HTMLAnchorElement>): void {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  event.preventDefault();
  focusResult(event.currentTarget, event.key === "ArrowDown" ? 1 : -1)?.focus();
}

function FoundRow({ found: { session, seq, matches, snippet } }: { found: Found }) {
  const isTitle = seq === 0;
  return (
    <Link
      to="/sessions/$id"
      params={{ id: session.id }}
      search={isTitle || seq >= session.head_seq ? {} : { at: seq }}
      {...{ [RESULT]: "" }}
      onKeyDown={walk}
      className="flex items-start gap-4 px-4 py-3 -outline-offset-2 transition-colors hover:bg-hover/60"
    >
      <div className="min-w-0 flex-1">
        <p className="truncate font-medium">{session.title || "Untitled"}</p>
        {!isTitle && (
          <p className="mt-0.5 line-clamp-2 text-[0.8125rem] text-ink-soft [overflow-wrap:anywhere]">
            {snippet.map(({ text, match }, index) =>
              match ? (
                <mark key={index} className="rounded-sm bg-warn-soft px-0.5 font-medium text-ink">
                  {text}
                </mark>
              ) : (
                <span key={index}>{text}</span>
              ),
            )}
          </p>
        )}
        <p className="mt-0.5 flex flex-wrap gap-x-1.5 text-xs text-ink-faint">
          <span className="truncate">{repositoryName(session.repository.source)}</span>
          <span>· {isTitle ? "in the title" : `at event ${String(seq)}`}</span>
          {matches > 1 && <span>· {`${String(matches)} places`}</span>}
          <span>
            · <Ago at_ms={session.updated_at_ms} />
          </span>
        </p>
      </div>
      <StatusPill status={session.status} openRequests={session.open_requests} />
    </Link>
  );
}

function Loading() {
  return (
    <div role="status" aria-label="Searching" className="divide-y rounded-2xl border bg-surface">
      {[0, 1, 2].map((row) => (
        <div key={row} className="space-y-2 px-4 py-3.5">
          <Skeleton className="h-3.5 w-2/5" />
          <Skeleton className="h-3 w-3/4" />
        </div>
      ))}
    </div>
  );
}
