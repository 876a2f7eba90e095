import { getRouteApi, Link } from "@tanstack/react-router";
import { CloudOff, PanelRightClose, PanelRightOpen } from "lucide-react";
import { useState } from "react";
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
import type { SessionState } from "@/features/session/state";
import { useSession } from "@/features/session/use-session";
import { useMedia, WIDE } from "@/lib/media";
import { NotFound } from "./not-found";
import { isPanel, type Panel } from "./panels";
import { SignIn } from "./sign-in";

const route = getRouteApi("/sessions/$id");

export function SessionPage() {
  const { id } = route.useParams();
  return <LiveSession key={id} id={id} />;
}

function LiveSession({ id }: { id: string }) {
  const { session, phase, error } = useSession(id);
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
  return <Loaded session={session} phase={phase} />;
}

function Loaded({ session, phase }: Pick<ReturnType<typeof useSession>, "session" | "phase">) {
  const isWide = useMedia(WIDE);
  const [hasPanel, setHasPanel] = useState(true);
  return (
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
      {isWide ? (
        <main className="flex min-h-0 flex-1">
          <div className="min-w-0 flex-1">
            <Chat session={session} />
          </div>
          {hasPanel && (
            <aside aria-label="Work" className="w-[46%] max-w-4xl shrink-0 border-l bg-surface">
              <Panels session={session} isWide />
            </aside>
          )}
        </main>
      ) : (
        <main className="min-h-0 flex-1">
          <Panels session={session} isWide={false} />
        </main>
      )}
    </div>
  );
}

function Chat({ session }: { session: SessionState }) {
  return (
    <Conversation session={session}>
      <Dock session={session} />
    </Conversation>
  );
}

function Panels({ session, isWide }: { session: SessionState; isWide: boolean }) {
  const { tab } = route.useSearch();
  const navigate = route.useNavigate();
  const first: Panel = session.sandbox.status === "creating" && !session.checkpoint ? "sandbox" : "diff";
  const chosen: Panel = isWide && (tab === undefined || tab === "chat") ? first : (tab ?? "chat");
  const hasWorkspace = session.sandbox.status === "ready" && session.status !== "archived";
  const files = session.checkpoint?.files ?? [];
  return (
    <Tabs
      value={chosen}
      onValueChange={(next) => {
        if (isPanel(next)) void navigate({ search: { tab: next }, replace: true });
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
        <Tab value="sandbox">Sandbox</Tab>
        <Tab value="details">Details</Tab>
      </TabList>
      {!isWide && (
        <TabPanel value="chat">
          <Chat session={session} />
        </TabPanel>
      )}
      <TabPanel value="diff">
        <DiffPanel
          sessionId={session.id}
          checkpointId={session.checkpoint?.id ?? ""}
          isPast={false}
          hasWorkspace={hasWorkspace}
          isRunning={session.status === "running"}
        />
      </TabPanel>
      <TabPanel value="files">
        <FilesPanel sessionId={session.id} hasWorkspace={hasWorkspace} />
      </TabPanel>
      <TabPanel value="sandbox">
        <SandboxPanel sandbox={session.sandbox} calls={session.calls} />
      </TabPanel>
      <TabPanel value="details">
        <Details session={session} />
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
