import { Archive } from "lucide-react";
import { Composer } from "./composer";
import { Queue } from "./queue";
import { Requests } from "./requests";
import type { SessionState } from "./state";
import { Todos } from "./todos";

/** Below the conversation: what needs a person, the plan, the queue and the composer. */
export function Dock({ session }: { session: SessionState }) {
  if (session.status === "archived") {
    return (
      <p className="flex items-center justify-center gap-2 border-t px-4 py-4 text-[0.8125rem] text-ink-faint">
        <Archive aria-hidden className="size-4" /> This session is archived: its log stays, its sandbox is gone.
      </p>
    );
  }
  return (
    <div className="px-3 pb-[max(0.75rem,env(safe-area-inset-bottom))] sm:px-4">
      <div className="ring-field mx-auto max-w-3xl rounded-2xl border bg-surface shadow-raised transition-[border-color,box-shadow]">
        <Requests id={session.id} requests={session.requests} />
        <Todos todos={session.todos} />
        <Queue session={session} />
        <Composer session={session} />
      </div>
    </div>
  );
}
