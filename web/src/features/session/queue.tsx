import { Clock, X } from "lucide-react";
import { IconButton } from "@/components/icon-button";
import { useCancelTask } from "./actions";
import { queuedTasks, type SessionState } from "./state";

/** Follow-ups that wait for their turn. The first task of a new session stands in the conversation instead. */
export function Queue({ session }: { session: SessionState }) {
  const cancel = useCancelTask(session.id);
  const waiting = queuedTasks(session);
  if (waiting.length === 0) return null;
  return (
    <section aria-label="Queue" className="border-b px-3 py-2">
      <h2 className="mb-1 text-xs font-medium text-ink-faint">Next, in this order</h2>
      <ol className="max-h-32 space-y-0.5 overflow-y-auto">
        {waiting.map((task) => (
          <li key={task.id} className="flex items-center gap-2 text-[0.8125rem]">
            <Clock aria-hidden className="size-3.5 shrink-0 text-ink-faint" />
            <span className="min-w-0 flex-1 truncate" title={task.prompt}>
              {task.prompt}
            </span>
            {task.agent === "plan" && <span className="shrink-0 text-xs text-ink-faint">plan</span>}
            <IconButton
              label="Take out of the queue"
              size="icon-sm"
              busy={cancel.isPending && cancel.variables === task.id}
              onClick={() => {
                cancel.mutate(task.id);
              }}
            >
              <X aria-hidden />
            </IconButton>
          </li>
        ))}
      </ol>
    </section>
  );
}
