import { useEffect, useRef, useState } from "react";
import type { Task } from "@/api/types";
import { Button } from "@/components/button";
import { isSubmit } from "@/lib/hotkey";
import { useEditTask, useTask } from "./actions";
import type { SessionState } from "./state";
import { TaskChoices, type Choices } from "./task-choices";

interface QueueEditorProps {
  session: SessionState;
  /** As it was when somebody began to edit it. */
  task: Task;
  /** It waits no more: what was written can still become a task of its own. */
  isGone?: boolean;
  onClose: () => void;
}

/** A waiting task, to be written anew. */
export function QueueEditor({ session, task, isGone = false, onClose }: QueueEditorProps) {
  const [prompt, setPrompt] = useState(task.prompt);
  const [choices, setChoices] = useState<Choices>({ agent: task.agent, model: task.model, limits: task.limits });
  const edit = useEditTask(session.id);
  const again = useTask(session.id);
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    field.current?.focus();
  }, []);
  const isPending = edit.isPending || again.isPending;
  const canSave = prompt.trim() !== "" && !isPending;
  const save = (): void => {
    const change = { prompt: prompt.trim(), ...choices };
    if (!canSave) return;
    if (isGone) again.mutate(change, { onSuccess: onClose });
    else edit.mutate({ taskId: task.id, change }, { onSuccess: onClose });
  };
  return (
    <div role="group" aria-label="Edit the task" className="my-1 rounded-xl border bg-canvas">
      {isGone && (
        <p role="status" className="border-b px-3 py-1.5 text-xs text-warn">
          This task waits no more. What you wrote can be queued as a new one.
        </p>
      )}
      <textarea
        ref={field}
        aria-label="What the task says"
        value={prompt}
        onChange={(event) => {
          setPrompt(event.target.value);
        }}
        onKeyDown={(event) => {
          if (event.key === "Escape") onClose();
          if (!isSubmit(event)) return;
          event.preventDefault();
          save();
        }}
        rows={2}
        className="grow-with-text block max-h-48 min-h-14 w-full resize-none bg-transparent px-3 pt-2 outline-none"
      />
      <div className="flex flex-wrap items-center gap-1 px-1.5 pb-1.5">
        <TaskChoices value={choices} onChange={setChoices} />
        <span className="ml-auto flex gap-1.5">
          <Button size="sm" look="ghost" onClick={onClose}>
            Cancel
          </Button>
          <Button size="sm" look="primary" disabled={!canSave} busy={isPending} onClick={save}>
            {isGone ? "Queue as new" : "Save"}
          </Button>
        </span>
      </div>
    </div>
  );
}
