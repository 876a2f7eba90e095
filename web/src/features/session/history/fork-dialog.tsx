import { useMutation } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { GitFork } from "lucide-react";
import { useId, useRef, useState, type SyntheticEvent } from "react";
import { newKey } from "@/api/http";
import { forkSession } from "@/api/sessions";
import { Button } from "@/components/button";
import { Dialog } from "@/components/dialog";
import { asFailure, FailureBox } from "@/components/failure-box";
import { isSubmit } from "@/lib/hotkey";
import type { SavedPoint, SessionState } from "../state";
import { ModelSelect } from "../task-choices";
import { pointTitle } from "./moments";

interface ForkDialogProps {
  session: SessionState;
  /** Where the new session begins. */
  point: SavedPoint;
  onClose: () => void;
}

const FIELD = "ring-field mt-1 block w-full rounded-lg border bg-surface px-3 py-2 text-[0.8125rem] placeholder:text-ink-faint";

/** Starts a session of its own from a checkpoint, with what is to be different. */
export function ForkDialog({ session, point, onClose }: ForkDialogProps) {
  const navigate = useNavigate();
  const [title, setTitle] = useState("");
  const [prompt, setPrompt] = useState("");
  const [model, setModel] = useState(session.model);
  const key = useRef({ of: "", value: "" });
  const ids = { title: useId(), prompt: useId() };
  const fork = useMutation({
    mutationFn: () => {
      const wanted = {
        checkpoint_id: point.id,
        model,
        ...(title.trim() && { title: title.trim() }),
        ...(prompt.trim() && { prompt: prompt.trim() }),
      };
      const same = JSON.stringify(wanted);
      if (key.current.of !== same) key.current = { of: same, value: newKey() };
      return forkSession(session.id, wanted, key.current.value);
    },
    onSuccess: ({ id }) => navigate({ to: "/sessions/$id", params: { id } }),
  });
  const submit = (event: SyntheticEvent): void => {
    event.preventDefault();
    if (!fork.isPending) fork.mutate();
  };
  return (
    <Dialog
      isOpen
      onClose={onClose}
      title="Fork the session"
      text={
        <>
          A new session begins with the files and the conversation of this checkpoint: <q>{pointTitle(session, point)}</q>. This one stays as it is.
        </>
      }
    >
      <form onSubmit={submit} className="mt-4 space-y-3.5">
        <label htmlFor={ids.prompt} className="block text-xs font-medium text-ink-faint">
          First task
          <textarea
            id={ids.prompt}
            value={prompt}
            onChange={(event) => {
              setPrompt(event.target.value);
            }}
            onKeyDown={(event) => {
              if (isSubmit(event)) submit(event);
            }}
            rows={3}
            placeholder="What to do differently from here (optional)"
            className={`${FIELD} grow-with-text max-h-60 font-normal text-ink`}
          />
        </label>
        <label htmlFor={ids.title} className="block text-xs font-medium text-ink-faint">
          Title
          <input
            id={ids.title}
            value={title}
            maxLength={200}
            onChange={(event) => {
              setTitle(event.target.value);
            }}
            placeholder={session.title || "Untitled"}
            className={`${FIELD} font-normal text-ink`}
          />
        </label>
        {fork.isError && <FailureBox title="The session was not forked" failure={asFailure(fork.error)} />}
        <div className="flex items-center gap-2">
          <ModelSelect value={model} onChange={setModel} className="-ml-2 max-w-52" />
          <span className="flex-1" />
          <Button onClick={onClose}>Cancel</Button>
          <Button type="submit" look="primary" busy={fork.isPending}>
            {!fork.isPending && <GitFork aria-hidden />} Fork
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
