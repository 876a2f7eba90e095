import { getRouteApi, Link } from "@tanstack/react-router";
import { CloudOff, PanelRightClose, PanelRightOpen } from "lucide-react";
import { lazy, Suspense, useEffect, useMemo, useState } from "react";
import { Button } from "@/components/button";
import { DiffCounts } from "@/components/diff-counts";
import { asFailure } from "@/components/failure-box";
import { IconButton } from "@/components/icon-button";
import { Notice } from "@/components/notice";
import { Skeleton } from "@/components/skeleton";
import { Tab, TabList, TabPanel, Tabs } from "@/components/tabs";
import { DiffPanel } from "@/features/diff/diff-panel";
import { FilesPanel } from "@/features/files/files-panel";
import { SandboxPanel } from "@/features/sandbox/sandbox-panel";
import { Conversation } from "@/features/session/conversation";
import { Details } from "@/features/session/details";
import { Dock } from "@/features/session/dock";
import { Header } from "@/features/session/header";
import { PastBanner } from "@/features/session/history/past-banner";
import type { SessionState } from "@/features/session/state";
import { useSession, type LiveSession } from "@/features/session/use-session";
import { Moment } from "@/lib/clock";
import { useMedia, WIDE } from "@/lib/media";
import { NotFound } from "./not-found";
import { isPanel, type Panel } from "./panels";
import { SignIn } from "./sign-in";

const HistoryPanel = lazy(async () => ({
  default: (await import("@/features/session/history/history-panel")).HistoryPanel,
}));

const route = getRouteApi("/sessions/$id");

export function SessionPage() {
  const { id } = route.useParams();
  return <Watched key={id} id={id} />;
}

function Watched({ id }: { id: string }) {
  const live = useSession(id);
  const { session, phase, error } = live;
  if (error?.status === 401) return <SignIn />;
  if (error?.status === 404 || error?.status === 422) return <NotFound />;
  if (error) {
    const { reason, hint } = asFailure(error);
    return (
      <Notice isPage icon={CloudOff} title="The session could not be opened" action={<Button asChild><Link to="/">All sessions</Link></Button>}>
        {reason} {hint}
      </Notice>
    );
  }
  if (session.seq === 0) return <Loading isLate={phase === "reconnecting"} />;
  return <Loaded live={live} />;
}

/** While one scrubs, the address follows only when the hand rests. */
const SETTLED_MS = 250;

/** The moment that is looked at, as the address has it; without one, or past the end, it is now. */
function useMomentInLog(head: number): [at: number, goTo: (seq: number) => void] {
  const { at } = route.useSearch();
  const navigate = route.useNavigate();
  const [wanted, setWanted] = useState<number | null>(null);
  useEffect(() => {
    if (wanted === null) return;
    const timer = setTimeout(() => {
      void navigate({
        search: ({ at: _before, ...search }) => (wanted < head ? { ...search, at: wanted } : search),
        replace: true,
      }).then(() => {
        setWanted((latest) => (latest === wanted ? null : latest));
      });
    }, SETTLED_MS);
    return () => {
      clearTimeout(timer);
    };
  }, [wanted, head, navigate]);
  return [Math.min(wanted ?? at ?? head, head), setWanted];
}

function Loaded({ live }: { live: LiveSession }) {
  const { session, phase, past } = live;
  const isWide = useMedia(WIDE);
  const [hasPanel, setHasPanel] = useState(true);
  const [at, goTo] = useMomentInLog(session.seq);
  const isPast = at < session.seq;
  const then = useMemo(() => (isPast ? past(at) : null), [isPast, past, at]);
  const shown = then ?? session;
  const view: View = { session, shown, isPast, goTo };
  return (
    <Moment value={then?.updated_at_ms ?? 0}>
      <div className="flex h-full flex-col">
        <Header session={session} phase={phase}>
          {isWide && (
            <IconButton
              label={hasPanel ? "Hide the panel" : "Show the panel"}
              onClick={() => {
                setHasPanel(!hasPanel);
              }}
            >
              {hasPanel ? <PanelRightClose aria-hidden /> : <PanelRightOpen aria-hidden />}
            </IconButton>
          )}
        </Header>
        {isPast && <PastBanner session={session} at={at} at_ms={shown.updated_at_ms} onGo={goTo} />}
        {isWide ? (
          <main className="flex min-h-0 flex-1">
            <div className="min-w-0 flex-1">
              <Chat view={view} />
            </div>
            {hasPanel && (
              <aside aria-label="Work" className="w-[46%] max-w-4xl shrink-0 border-l bg-surface">
                <Panels view={view} isWide />
              </aside>
            )}
          </main>
        ) : (
          <main className="min-h-0 flex-1">
            <Panels view={view} isWide={false} />
          </main>
        )}
      </div>
    </Moment>
  );
}

/** The session as it is now, and as it was at the moment that is shown. */
interface View {
  session: SessionState;
  shown: SessionState;
  isPast: boolean;
  goTo: (seq: number) => void;
}

function Chat({ view: { shown, isPast } }: { view: View }) {
  return (
    <Conversation session={shown} isPast={isPast}>
      {!isPast && <Dock session={shown} />}
    </Conversation>
  );
}

function Panels({ view, isWide }: { view: View; isWide: boolean }) {
  const { tab } = route.useSearch();
  const navigate = route.useNavigate();
  const { session, shown, isPast, goTo } = view;
  const first: Panel = shown.sandbox.status === "creating" && !shown.checkpoint ? "sandbox" : "diff";
  const chosen: Panel = isWide && (tab === undefined || tab === "chat") ? first : (tab ?? "chat");
  const hasWorkspace = !isPast && shown.sandbox.status === "ready" && shown.status !== "archived";
  const files = shown.checkpoint?.files ?? [];
  return (
    <Tabs
      value={chosen}
      onValueChange={(next) => {
        if (isPanel(next)) void navigate({ search: (search) => ({ ...search, tab: next }), replace: true });
      }}
      className="flex h-full min-w-0 flex-col"
    >
      <TabList className="px-2" aria-label="Views">
        {!isWide && <Tab value="chat">Chat</Tab>}
        <Tab value="diff">
          Diff
          {files.length > 0 && (
            <DiffCounts
              additions={files.reduce((sum, file) => sum + file.additions, 0)}
              deletions={files.reduce((sum, file) => sum + file.deletions, 0)}
              className="font-normal"
            />
          )}
        </Tab>
        <Tab value="files">Files</Tab>
        <Tab value="history">History</Tab>
        <Tab value="sandbox">Sandbox</Tab>
        <Tab value="details">Details</Tab>
      </TabList>
      {!isWide && (
        <TabPanel value="chat">
          <Chat view={view} />
        </TabPanel>
      )}
      <TabPanel value="diff">
        <DiffPanel
          sessionId={session.id}
          checkpointId={shown.checkpoint?.id ?? ""}
          isPast={isPast}
          hasWorkspace={hasWorkspace}
          isRunning={!isPast && session.status === "running"}
        />
      </TabPanel>
      <TabPanel value="files">
        <FilesPanel sessionId={session.id} hasWorkspace={hasWorkspace} isPast={isPast} />
      </TabPanel>
      <TabPanel value="history">
        <Suspense>
          <HistoryPanel session={session} at={shown.seq} at_ms={shown.updated_at_ms} onScrub={goTo} />
        </Suspense>
      </TabPanel>
      <TabPanel value="sandbox">
        <SandboxPanel sandbox={shown.sandbox} calls={shown.calls} />
      </TabPanel>
      <TabPanel value="details">
        <Details session={shown} />
      </TabPanel>
    </Tabs>
  );
}

function Loading({ isLate }: { isLate: boolean }) {
  return (
    <div role="status" aria-label="Loading the session" className="flex h-full flex-col">
      <title>Session · Ship</title>
      <div className="flex items-center gap-3 border-b bg-surface px-4 py-3">
        <Skeleton className="h-7 w-64" />
        {isLate && <span className="text-xs text-warn">The server cannot be reached. Trying again…</span>}
      </div>
      <div className="mx-auto w-full max-w-3xl space-y-4 px-6 pt-8">
        <Skeleton className="h-20 w-full rounded-xl" />
        <Skeleton className="h-4 w-3/4" />
        <Skeleton className="h-4 w-2/3" />
        <Skeleton className="h-4 w-1/2" />
      </div>
    </div>
  );
}
