import { useMutation, useQuery } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { ArrowUp, Bot, FolderGit2, GitBranch, Hammer, NotebookPen, ShieldCheck } from "lucide-react";
import { useId, useRef, useState, type SyntheticEvent } from "react";
import { newKey } from "@/api/http";
import { modelsQuery } from "@/api/queries";
import { createSession } from "@/api/sessions";
import type { Approval, Limits } from "@/api/types";
import { Button } from "@/components/button";
import { asFailure, FailureBox } from "@/components/failure-box";
import { LimitsControl } from "@/components/limits";
import { Segmented, type Segment } from "@/components/segmented";
import { Select, type Option } from "@/components/select";
import { limitsText } from "@/lib/format";
import { isSubmit, SUBMIT_KEYS, useSlashFocus } from "@/lib/hotkey";
import { readChoices, rememberChoices } from "./choices";

const AGENTS: Segment<"build" | "plan">[] = [
  { value: "build", label: <><Hammer aria-hidden /> Build</>, name: "Build: the agent changes files" },
  { value: "plan", label: <><NotebookPen aria-hidden /> Plan</>, name: "Plan: the agent only reads" },
];

const APPROVALS: Option<Approval>[] = [
  { value: "auto", label: "Works alone", description: "Edits and commands run in the sandbox without asking." },
  { value: "ask", label: "Asks first", description: "You approve edits and commands." },
];

/** The form that starts a session with its first task. */
export function NewTask() {
  const navigate = useNavigate();
  const models = useQuery(modelsQuery);
  const [remembered] = useState(readChoices);
  const [repository, setRepository] = useState(remembered.repositories[0] ?? "");
  const [branch, setBranch] = useState("");
  const [prompt, setPrompt] = useState("");
  const [chosenModel, setModel] = useState(remembered.model);
  const [agent, setAgent] = useState(remembered.agent);
  const [approval, setApproval] = useState(remembered.approval);
  const [limits, setLimits] = useState<Limits>({ time_s: 0, tokens: 0, cost_usd: 0 });
  const promptField = useRef<HTMLTextAreaElement>(null);
  // One key as long as the form says the same: sending it twice starts one session.
  const key = useRef({ of: "", value: "" });
  const recents = useId();
  useSlashFocus(promptField);

  const items = models.data?.items ?? [];
  const model = items.some((known) => known.id === chosenModel) ? chosenModel : (models.data?.default ?? "");

  const create = useMutation({
    mutationFn: () => {
      const session = {
        repository: { source: repository.trim(), branch: branch.trim() },
        prompt: prompt.trim(),
        agent,
        approval,
        ...(model && { model }),
        ...(limitsText(limits) && { limits }),
      };
      const same = JSON.stringify(session);
      if (key.current.of !== same) key.current = { of: same, value: newKey() };
      return createSession(session, key.current.value);
    },
    onSuccess: async ({ id }) => {
      rememberChoices({ model, agent, approval }, repository.trim());
      await navigate({ to: "/sessions/$id", params: { id } });
    },
  });
  const isComplete = repository.trim() !== "" && prompt.trim() !== "";
  const submit = (event?: SyntheticEvent): void => {
    event?.preventDefault();
    if (isComplete && !create.isPending) create.mutate();
  };

  return (
    <section aria-labelledby="new-task" className="pt-10 pb-10 sm:pt-16">
      <h1 id="new-task" className="mb-5 text-center text-2xl font-semibold tracking-tight text-balance sm:text-[1.75rem]">
        What should be done?
      </h1>
      <form
        onSubmit={submit}
        className="ring-field rounded-2xl border bg-surface shadow-raised transition-[border-color,box-shadow]"
      >
        <div className="flex flex-col border-b sm:flex-row">
          <Field icon={FolderGit2} label="Repository" className="flex-1">
            <input
              required
              list={recents}
              value={repository}
              onChange={(event) => {
                create.reset();
                setRepository(event.target.value);
              }}
              placeholder="https://… or /path/to/repository"
              autoComplete="off"
              autoCapitalize="off"
              spellCheck={false}
              className="w-full min-w-0 bg-transparent py-2.5 font-mono text-code outline-none placeholder:font-sans placeholder:text-[0.8125rem] placeholder:text-ink-faint"
            />
            <datalist id={recents}>
              {remembered.repositories.map((source) => (
                <option key={source} value={source} />
              ))}
            </datalist>
          </Field>
          <Field icon={GitBranch} label="Branch" className="border-t sm:w-56 sm:border-t-0 sm:border-l">
            <input
              value={branch}
              onChange={(event) => {
                setBranch(event.target.value);
              }}
              placeholder="default branch"
              autoComplete="off"
              autoCapitalize="off"
              spellCheck={false}
              className="w-full min-w-0 bg-transparent py-2.5 font-mono text-code outline-none placeholder:font-sans placeholder:text-[0.8125rem] placeholder:text-ink-faint"
            />
          </Field>
        </div>
        <textarea
          ref={promptField}
          aria-label="Task"
          value={prompt}
          onChange={(event) => {
            setPrompt(event.target.value);
          }}
          onKeyDown={(event) => {
            if (isSubmit(event)) submit(event);
          }}
          placeholder="Fix the failing test in the parser and explain what was wrong…"
          rows={4}
          className="grow-with-text block max-h-96 min-h-28 w-full resize-none bg-transparent px-4 py-3.5 text-[0.9375rem] leading-relaxed outline-none placeholder:text-ink-faint"
        />
        <div className="flex flex-wrap items-center gap-1 px-2.5 pb-2.5">
          <Segmented label="Agent" value={agent} segments={AGENTS} onChange={setAgent} />
          {items.length > 0 && (
            <Select
              label="Model"
              icon={<Bot aria-hidden />}
              value={model}
              options={items.map((known) => ({ value: known.id, label: known.name, description: known.provider }))}
              onChange={setModel}
              className="max-w-52"
            />
          )}
          <Select
            label="Approval"
            icon={<ShieldCheck aria-hidden />}
            value={approval}
            options={APPROVALS}
            onChange={setApproval}
          />
          <LimitsControl value={limits} onChange={setLimits} />
          <div className="ml-auto flex items-center gap-1">
            <kbd className="hidden px-2 font-sans text-xs text-ink-faint sm:inline">{SUBMIT_KEYS}</kbd>
            <Button type="submit" look="primary" disabled={!isComplete} busy={create.isPending}>
              {!create.isPending && <ArrowUp aria-hidden />}
              Start
            </Button>
          </div>
        </div>
      </form>
      {models.data?.items.length === 0 && (
        <FailureBox
          className="mt-3"
          title="No model is set up"
          failure={{
            code: "",
            reason: "The agent has nothing to think with.",
            hint: "Set OPENAI_API_KEY or ANTHROPIC_API_KEY where `ship up` runs, and start it again.",
          }}
        />
      )}
      {create.isError && (
        <FailureBox
          className="mt-3"
          title="The session was not started"
          failure={asFailure(create.error)}
          action={
            <Button
              size="sm"
              onClick={() => {
                submit();
              }}
            >
              Try again
            </Button>
          }
        />
      )}
    </section>
  );
}

interface FieldProps {
  icon: typeof GitBranch;
  label: string;
  className: string;
  children: React.ReactNode;
}

function Field({ icon: Icon, label, className, children }: FieldProps) {
  return (
    <label className={`flex items-center gap-2.5 px-4 ${className}`}>
      <Icon aria-hidden className="size-4 shrink-0 text-ink-faint" />
      <span className="sr-only">{label}</span>
      {children}
    </label>
  );
}
