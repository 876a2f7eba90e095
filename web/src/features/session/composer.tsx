import { useMutation, useQuery } from "@tanstack/react-query";
import { ArrowUp, Bot, Hammer, NotebookPen, Square } from "lucide-react";
import { useRef, useState } from "react";
import { newKey } from "@/api/http";
import { modelsQuery } from "@/api/queries";
import { createTask, postNote } from "@/api/sessions";
import type { AgentMode } from "@/api/types";
import { Button } from "@/components/button";
import { toastFailure } from "@/components/failure-toast";
import { Segmented, type Segment } from "@/components/segmented";
import { Select, type Option } from "@/components/select";
import { isSubmit, SUBMIT_KEYS, useSlashFocus } from "@/lib/hotkey";
import { useCancelTask } from "./actions";
import { runningTask, type SessionState } from "./state";

type Mode = "queue" | "steer" | "note";

const AGENTS: Option<AgentMode>[] = [
  { value: "build", label: <Labelled icon={Hammer} text="Build" />, description: "The agent changes files." },
  { value: "plan", label: <Labelled icon={NotebookPen} text="Plan" />, description: "The agent only reads." },
];

const PLACEHOLDERS: Record<Mode, string> = {
  queue: "What next?",
  steer: "Tell the running task…",
  note: "A note to the people here; the agent does not see it",
};

/** Where follow-ups, words to the running task and notes are written, and where it is stopped. */
export function Composer({ session }: { session: SessionState }) {
  const models = useQuery(modelsQuery);
  const running = runningTask(session);
  const [chosenMode, setMode] = useState<Mode>("queue");
  const [text, setText] = useState("");
  const [agent, setAgent] = useState<AgentMode>("build");
  const [chosenModel, setModel] = useState("");
  const field = useRef<HTMLTextAreaElement>(null);
  const key = useRef({ of: "", value: "" });
  const cancel = useCancelTask(session.id);
  useSlashFocus(field);

  const mode = chosenMode === "steer" && !running ? "queue" : chosenMode;
  const model = chosenModel || session.model;
  const items = models.data?.items ?? [];
  const send = useMutation({
    mutationFn: async () => {
      const prompt = text.trim();
      const same = JSON.stringify([mode, prompt, agent, model]);
      if (key.current.of !== same) key.current = { of: same, value: newKey() };
      if (mode === "note") await postNote(session.id, prompt, key.current.value);
      else await createTask(session.id, { prompt, mode, ...(mode === "queue" && { agent, model }) }, key.current.value);
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
        {mode === "queue" && (
          <>
            <Select label="Agent" value={agent} options={AGENTS} onChange={setAgent} />
            {items.length > 1 && (
              <Select
                label="Model"
                icon={<Bot aria-hidden />}
                value={model}
                options={items.map((known) => ({ value: known.id, label: known.name, description: known.provider }))}
                onChange={setModel}
                className="max-w-40"
              />
            )}
          </>
        )}
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

function Labelled({ icon: Icon, text }: { icon: typeof Hammer; text: string }) {
  return (
    <span className="inline-flex items-center gap-1.5">
      <Icon aria-hidden className="size-3.5" /> {text}
    </span>
  );
}
