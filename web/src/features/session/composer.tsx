import { useMutation } from "@tanstack/react-query";
import { ArrowUp, Pause, Play, Square } from "lucide-react";
import { useRef, useState } from "react";
import { newKey } from "@/api/http";
import { createTask, postNote } from "@/api/sessions";
import { Button } from "@/components/button";
import { toastFailure } from "@/components/failure-toast";
import { Segmented, type Segment } from "@/components/segmented";
import { isSubmit, SUBMIT_KEYS, useSlashFocus } from "@/lib/hotkey";
import { useCancelTask, useResume } from "./actions";
import { runningTask, type SessionState } from "./state";
import { TaskChoices, type Choices } from "./task-choices";

type Mode = "queue" | "steer" | "note";

const PLACEHOLDERS: Record<Mode, string> = {
  queue: "What next?",
  steer: "Tell the running task…",
  note: "A note to the people here; the agent does not see it",
};

/** Where follow-ups, words to the running task and notes are written, and where it is stopped. */
export function Composer({ session }: { session: SessionState }) {
  const running = runningTask(session);
  const [chosenMode, setMode] = useState<Mode>("queue");
  const [text, setText] = useState("");
  const [chosen, setChosen] = useState<Partial<Choices>>({});
  const field = useRef<HTMLTextAreaElement>(null);
  const key = useRef({ of: "", value: "" });
  const cancel = useCancelTask(session.id);
  useSlashFocus(field);

  const mode = chosenMode === "steer" && !running ? "queue" : chosenMode;
  const choices: Choices = { agent: "build", model: session.model, limits: session.limits, ...chosen };
  // What the session says of limits anyway need not be said again.
  const wanted = { agent: choices.agent, model: choices.model, ...(chosen.limits && { limits: chosen.limits }) };
  const send = useMutation({
    mutationFn: async () => {
      const prompt = text.trim();
      const same = JSON.stringify([mode, prompt, wanted]);
      if (key.current.of !== same) key.current = { of: same, value: newKey() };
      if (mode === "note") await postNote(session.id, prompt, key.current.value);
      else await createTask(session.id, { prompt, mode, ...(mode === "queue" && wanted) }, key.current.value);
    },
    onSuccess: () => {
      setText("");
      key.current = { of: "", value: "" };
    },
    onError: toastFailure("It was not sent"),
  });
  const canSend = text.trim() !== "" && !send.isPending;
  const submit = (): void => {
    if (canSend) send.mutate();
  };
  const modes: Segment<Mode>[] = [
    { value: "queue", label: running ? "Queue" : "Task", name: running ? "Queue: after the running task" : "A task for the agent" },
    ...(running ? [{ value: "steer" as const, label: "Steer", name: "Steer: say it to the running task now" }] : []),
    { value: "note", label: "Note", name: "Note: to people only" },
  ];
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      {session.status === "paused" && <Paused session={session} />}
      <textarea
        ref={field}
        aria-label={PLACEHOLDERS[mode]}
        value={text}
        onChange={(event) => {
          setText(event.target.value);
        }}
        onKeyDown={(event) => {
          if (!isSubmit(event)) return;
          event.preventDefault();
          submit();
        }}
        placeholder={PLACEHOLDERS[mode]}
        rows={2}
        className="grow-with-text block max-h-60 min-h-14 w-full resize-none bg-transparent px-3.5 pt-3 pb-1 outline-none placeholder:text-ink-faint"
      />
      <div className="flex flex-wrap items-center gap-1 px-2 pb-2">
        <Segmented label="Send as" value={mode} segments={modes} onChange={setMode} />
        {mode === "queue" && <TaskChoices value={choices} onChange={setChosen} />}
        <div className="ml-auto flex items-center gap-1">
          <kbd className="hidden px-1.5 font-sans text-xs text-ink-faint sm:inline">{SUBMIT_KEYS}</kbd>
          {running && (
            <Button
              look="danger"
              busy={running.cancel_requested || cancel.isPending}
              onClick={() => {
                cancel.mutate(running.id);
              }}
            >
              {!(running.cancel_requested || cancel.isPending) && <Square aria-hidden className="fill-current" />}
              {running.cancel_requested ? "Stopping" : "Stop"}
            </Button>
          )}
          <Button type="submit" look="primary" size="icon" aria-label="Send" disabled={!canSend} busy={send.isPending}>
            {!send.isPending && <ArrowUp aria-hidden />}
          </Button>
        </div>
      </div>
    </form>
  );
}

/** The session rests; whatever is said to it wakes it. */
function Paused({ session }: { session: SessionState }) {
  const resume = useResume(session.id);
  return (
    <div className="flex items-center gap-2 border-b px-3 py-1.5 text-xs text-ink-faint">
      <Pause aria-hidden className="size-3.5 shrink-0" />
      <p className="min-w-0 flex-1">
        {session.pause_reason === "idle" ? "Paused, as nothing was going on." : "Paused."} A message resumes it.
      </p>
      <Button
        size="sm"
        busy={resume.isPending}
        onClick={() => {
          resume.mutate();
        }}
      >
        {!resume.isPending && <Play aria-hidden />} Resume
      </Button>
    </div>
  );
}
