import { ArrowDown, ArrowUp, Clock, Pencil, X } from "lucide-react";
import { useLayoutEffect, useRef, useState, type KeyboardEvent } from "react";
import type { Task } from "@/api/types";
import { IconButton } from "@/components/icon-button";
import { limitsText } from "@/lib/format";
import { useCancelTask, useMoveTask } from "./actions";
import { QueueEditor } from "./queue-editor";
import { queuedTasks, type SessionState } from "./state";

/** Tasks that wait for their turn: what they say and their order can be changed. */
export function Queue({ session }: { session: SessionState }) {
  const waiting = queuedTasks(session);
  const [edited, setEdited] = useState<Task | null>(null);
  const isGone = edited !== null && !waiting.some(({ id }) => id === edited.id);
  const { list, said, moveTo } = useMoving(session.id, waiting);
  // The only task of a new session stands in the conversation.
  const isFirst = waiting.length === 1 && session.tasks.every((task) => task.status === "queued");
  if ((waiting.length === 0 || isFirst) && !edited) return null;
  const stop = (): void => {
    setEdited(null);
  };
  return (
    <section aria-label="Queue" className="border-b px-3 py-2">
      <h2 className="mb-1 text-xs font-medium text-ink-faint">{waiting.length > 1 ? "Next, in this order" : "Next"}</h2>
      {isGone && <QueueEditor session={session} task={edited} isGone onClose={stop} />}
      <ol ref={list} className={edited ? "space-y-0.5" : "max-h-40 space-y-0.5 overflow-y-auto"}>
        {waiting.map((task, place) => (
          <li key={task.id}>
            {task.id === edited?.id ? (
              <QueueEditor session={session} task={edited} onClose={stop} />
            ) : (
              <Waiting
                sessionId={session.id}
                task={task}
                isFirst={place === 0}
                isLast={place === waiting.length - 1}
                onMove={(step) => {
                  moveTo(task, place, step);
                }}
                onEdit={() => {
                  setEdited(task);
                }}
              />
            )}
          </li>
        ))}
      </ol>
      <p role="status" className="sr-only">
        {said}
      </p>
    </section>
  );
}

type Step = -1 | 1;

/** Moving tasks by one place; the button that did it keeps the focus in the task's new place. */
function useMoving(sessionId: string, waiting: Task[]) {
  const move = useMoveTask(sessionId);
  const list = useRef<HTMLOListElement>(null);
  const pressed = useRef("");
  const [said, setSaid] = useState("");
  const order = waiting.map(({ id }) => id).join(" ");
  useLayoutEffect(() => {
    if (pressed.current) list.current?.querySelector<HTMLElement>(`[data-moves="${pressed.current}"]`)?.focus();
    pressed.current = "";
  }, [order]);
  const moveTo = (task: Task, place: number, step: Step): void => {
    const to = place + step;
    if (move.isPending || to < 0 || to >= waiting.length) return;
    const before = waiting[step < 0 ? to : to + 1]?.id ?? "";
    pressed.current = `${task.id} ${String(step)}`;
    setSaid("");
    move.mutate({ taskId: task.id, before }, { onSuccess: () => { setSaid(`Moved to place ${String(to + 1)} of ${String(waiting.length)}`); } });
  };
  return { list, said, moveTo };
}

interface WaitingProps {
  sessionId: string;
  task: Task;
  isFirst: boolean;
  isLast: boolean;
  onMove: (step: Step) => void;
  onEdit: () => void;
}

function Waiting({ sessionId, task, isFirst, isLast, onMove, onEdit }: WaitingProps) {
  const cancel = useCancelTask(sessionId);
  const limits = limitsText(task.limits);
  const onKeyDown = (event: KeyboardEvent): void => {
    if (!event.altKey || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
    event.preventDefault();
    onMove(event.key === "ArrowUp" ? -1 : 1);
  };
  const arrow = (step: Step, isEnd: boolean) => (
    <IconButton
      label={step < 0 ? "Earlier" : "Later"}
      size="icon-sm"
      data-moves={`${task.id} ${String(step)}`}
      aria-disabled={isEnd}
      className={isEnd ? "cursor-default opacity-30" : ""}
      onClick={() => {
        onMove(step);
      }}
    >
      {step < 0 ? <ArrowUp aria-hidden /> : <ArrowDown aria-hidden />}
    </IconButton>
  );
  return (
    <div role="group" aria-label={`Waiting: ${task.prompt.slice(0, 80)}`} onKeyDown={onKeyDown} className="flex items-center gap-2 text-[0.8125rem]">
      <Clock aria-hidden className="size-3.5 shrink-0 text-ink-faint" />
      <span className="min-w-0 flex-1 truncate" title={task.prompt}>
        {task.prompt}
      </span>
      {task.agent === "plan" && <span className="shrink-0 text-xs text-ink-faint">plan</span>}
      {limits && <span className="hidden shrink-0 text-xs text-ink-faint sm:inline">{limits}</span>}
      <span className="flex shrink-0 items-center">
        {!(isFirst && isLast) && arrow(-1, isFirst)}
        {!(isFirst && isLast) && arrow(1, isLast)}
        <IconButton label="Edit" size="icon-sm" onClick={onEdit}>
          <Pencil aria-hidden />
        </IconButton>
        <IconButton
          label="Take out of the queue"
          size="icon-sm"
          busy={cancel.isPending}
          onClick={() => {
            cancel.mutate(task.id);
          }}
        >
          {!cancel.isPending && <X aria-hidden />}
        </IconButton>
      </span>
    </div>
  );
}
