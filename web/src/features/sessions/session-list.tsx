import { useInfiniteQuery } from "@tanstack/react-query";
import { CloudOff, Sailboat } from "lucide-react";
import { lazy, Suspense, useState } from "react";
import type { SearchMode } from "@/api/types";
import { Button } from "@/components/button";
import { asFailure } from "@/components/failure-box";
import { Notice } from "@/components/notice";
import { Segmented, type Segment } from "@/components/segmented";
import { Skeleton } from "@/components/skeleton";
import { cn } from "@/lib/cn";
import { sessionsQuery, useLiveSessions, type Filter } from "./list";
import { SearchField } from "./search-field";
import { useSearchMode } from "./search-mode";
import { SessionRow } from "./session-row";

const SearchResults = lazy(async () => ({ default: (await import("./search-results")).SearchResults }));

type Choice = Exclude<Filter, ""> | "all";

const FILTERS: Segment<Choice>[] = [
  { value: "all", label: "All" },
  { value: "running", label: "Running" },
  { value: "ready", label: "Ready" },
  { value: "paused", label: "Paused" },
  { value: "failed", label: "Failed" },
  { value: "archived", label: "Archived" },
];

const MODES: Segment<SearchMode>[] = [
  { value: "words", label: "Words" },
  { value: "meaning", label: "Meaning" },
];

interface SessionListProps {
  /** What is searched for; empty: nothing. */
  words: string;
  onSearch: (words: string) => void;
}

/** All sessions, newest first, live; or those in which something was said. */
export function SessionList({ words, onSearch }: SessionListProps) {
  const [choice, setChoice] = useState<Choice>("all");
  const { mode, isOffered, choose } = useSearchMode();
  useLiveSessions();
  return (
    <section aria-labelledby="sessions">
      <div className="mb-2 flex flex-wrap items-center gap-2">
        <h2 id="sessions" className="text-[0.8125rem] font-semibold">
          Sessions
        </h2>
        <div className={cn("order-last flex min-w-0 flex-1 basis-full gap-2 sm:order-none sm:ml-2", isOffered ? "sm:basis-80" : "sm:basis-40")}>
          <SearchField words={words} mode={mode} onSearch={onSearch} />
          {isOffered && <Segmented label="Search by" value={mode} segments={MODES} onChange={choose} className="shrink-0" />}
        </div>
        {!words && <Segmented label="Show" value={choice} segments={FILTERS} onChange={setChoice} className="max-w-full overflow-x-auto" />}
      </div>
      {words ? (
        <Suspense>
          <SearchResults words={words} mode={mode} onMode={choose} />
        </Suspense>
      ) : (
        <Newest choice={choice} />
      )}
    </section>
  );
}

function Newest({ choice }: { choice: Choice }) {
  const sessions = useInfiniteQuery(sessionsQuery(choice === "all" ? "" : choice));
  const items = sessions.data?.pages.flatMap((page) => page.items) ?? [];
  return (
    <>
      <div className="overflow-hidden rounded-2xl border bg-surface shadow-raised">
        {sessions.isPending && <Loading />}
        {sessions.isError && items.length === 0 && (
          <Notice
            icon={CloudOff}
            title="The sessions could not be loaded"
            action={
              <Button
                busy={sessions.isFetching}
                onClick={() => {
                  void sessions.refetch();
                }}
              >
                Try again
              </Button>
            }
          >
            {asFailure(sessions.error).reason} {asFailure(sessions.error).hint}
          </Notice>
        )}
        {sessions.isSuccess && items.length === 0 && <Empty choice={choice} />}
        {items.length > 0 && (
          <ul className="divide-y">
            {items.map((session) => (
              <li key={session.id}>
                <SessionRow session={session} />
              </li>
            ))}
          </ul>
        )}
      </div>
      {sessions.hasNextPage && (
        <div className="mt-3 flex justify-center">
          <Button
            busy={sessions.isFetchingNextPage}
            onClick={() => {
              void sessions.fetchNextPage();
            }}
          >
            Show older
          </Button>
        </div>
      )}
    </>
  );
}

function Empty({ choice }: { choice: Choice }) {
  if (choice !== "all") {
    return <Notice icon={Sailboat} title={`No session is ${choice}`} />;
  }
  return (
    <Notice icon={Sailboat} title="No sessions yet">
      Name a repository and a task above. The agent works on it in a sandbox of its own, and you watch, steer, or come
      back later for the diff.
    </Notice>
  );
}

function Loading() {
  return (
    <div role="status" aria-label="Loading sessions" className="divide-y">
      {[0, 1, 2, 3].map((row) => (
        <div key={row} className="flex items-center gap-4 px-4 py-3.5">
          <div className="flex-1 space-y-2">
            <Skeleton className="h-3.5 w-2/5" />
            <Skeleton className="h-3 w-1/4" />
          </div>
          <Skeleton className="h-5 w-16 rounded-full" />
        </div>
      ))}
    </div>
  );
}
