import { CircleHelp, ShieldQuestion } from "lucide-react";
import { useId, useState, type SyntheticEvent } from "react";
import type { OpenRequest, Question } from "@/api/types";
import { Button } from "@/components/button";
import { useAnswer } from "./actions";

/** What the agent waits for: the oldest first, where it cannot be overlooked. */
export function Requests({ id, requests }: { id: string; requests: OpenRequest[] }) {
  const [first, ...rest] = requests;
  if (!first) return null;
  const Form = first.kind === "permission" ? PermissionForm : QuestionForm;
  return (
    <section
      role="alert"
      aria-label="The agent needs you"
      className="max-h-[55vh] overflow-y-auto border-b border-warn/30 bg-warn-soft px-3.5 py-3 first:rounded-t-2xl"
    >
      <Form key={first.id} id={id} request={first} />
      {rest.length > 0 && <p className="mt-2 text-xs text-ink-faint">{rest.length} more after this one</p>}
    </section>
  );
}

function PermissionForm({ id, request }: { id: string; request: OpenRequest }) {
  const answer = useAnswer(id, request.id);
  const [why, setWhy] = useState("");
  const isSent = answer.isPending || answer.isSuccess;
  return (
    <div>
      <p className="flex items-center gap-2 text-[0.8125rem] font-medium">
        <ShieldQuestion aria-hidden className="size-4 shrink-0 text-warn" />
        <span className="min-w-0 [overflow-wrap:anywhere]">May the agent do this? {heading(request)}</span>
      </p>
      {request.detail && (
        <pre tabIndex={0} className="mt-2 max-h-48 overflow-auto rounded-lg border bg-surface px-3 py-2 font-mono text-xs leading-5 whitespace-pre-wrap [overflow-wrap:anywhere]">
          {request.detail}
        </pre>
      )}
      <div className="mt-2.5 flex flex-wrap items-center gap-2">
        <Button look="primary" size="sm" disabled={isSent} onClick={() => { answer.mutate({ reply: "once" }); }}>
          Allow once
        </Button>
        <Button size="sm" disabled={isSent} onClick={() => { answer.mutate({ reply: "always" }); }}>
          Always allow
        </Button>
        <Button look="danger" size="sm" disabled={isSent} onClick={() => { answer.mutate({ reply: "reject", ...(why.trim() && { message: why.trim() }) }); }}>
          Refuse
        </Button>
        <input
          aria-label="Why not, for the agent"
          value={why}
          onChange={(event) => {
            setWhy(event.target.value);
          }}
          placeholder="Why not? (optional, the agent reads it)"
          className="ring-field h-7 pointer-coarse:h-9 min-w-40 flex-1 rounded-lg border bg-surface px-2.5 text-xs placeholder:text-ink-faint"
        />
      </div>
    </div>
  );
}

/** The title without what the detail says anyway. */
function heading({ title, detail }: OpenRequest): string {
  return detail && title.endsWith(detail) ? title.slice(0, -detail.length).replace(/[:\s]+$/, "") : title;
}

interface Draft {
  labels: string[];
  custom: string;
}

function QuestionForm({ id, request }: { id: string; request: OpenRequest }) {
  const answer = useAnswer(id, request.id);
  const [drafts, setDrafts] = useState<Draft[]>(() => request.questions.map(() => ({ labels: [], custom: "" })));
  const answers = drafts.map(({ labels, custom }) => (custom.trim() ? [...labels, custom.trim()] : labels));
  const isComplete = answers.every((given) => given.length > 0);
  const isSent = answer.isPending || answer.isSuccess;
  const submit = (event: SyntheticEvent): void => {
    event.preventDefault();
    if (isComplete && !isSent) answer.mutate({ answers });
  };
  return (
    <form onSubmit={submit}>
      <p className="flex items-center gap-2 text-[0.8125rem] font-medium">
        <CircleHelp aria-hidden className="size-4 shrink-0 text-warn" /> {request.title === request.questions[0]?.question ? "The agent asks" : request.title}
      </p>
      {request.questions.map((question, index) => (
        <QuestionField
          key={index}
          question={question}
          draft={drafts[index] ?? { labels: [], custom: "" }}
          onChange={(draft) => {
            setDrafts(drafts.with(index, draft));
          }}
        />
      ))}
      <div className="mt-3 flex gap-2">
        <Button type="submit" look="primary" size="sm" disabled={!isComplete || isSent}>
          Answer
        </Button>
        <Button look="ghost" size="sm" disabled={isSent} onClick={() => { answer.mutate({ reply: "reject" }); }}>
          Decline
        </Button>
      </div>
    </form>
  );
}

interface QuestionFieldProps {
  question: Question;
  draft: Draft;
  onChange: (draft: Draft) => void;
}

function QuestionField({ question, draft, onChange }: QuestionFieldProps) {
  const name = useId();
  const toggle = (label: string): void => {
    const isChosen = draft.labels.includes(label);
    if (!question.multiple) onChange({ labels: [label], custom: "" });
    else onChange({ ...draft, labels: isChosen ? draft.labels.filter((other) => other !== label) : [...draft.labels, label] });
  };
  return (
    <fieldset className="mt-3">
      <legend className="mb-1.5 text-[0.8125rem] [overflow-wrap:anywhere]">
        {question.header && <span className="mr-1.5 text-xs font-semibold text-ink-faint">{question.header}</span>}
        {question.question}
      </legend>
      <div className="space-y-1">
        {question.options.map((option) => (
          <label
            key={option.label}
            className="flex cursor-pointer items-start gap-2.5 rounded-lg border bg-surface px-3 py-2 text-[0.8125rem] transition-colors hover:border-line-strong has-checked:border-accent has-checked:bg-accent-soft"
          >
            <input
              type={question.multiple ? "checkbox" : "radio"}
              name={name}
              checked={draft.labels.includes(option.label)}
              onChange={() => {
                toggle(option.label);
              }}
              className="mt-1 accent-(--accent)"
            />
            <span className="min-w-0">
              {option.label}
              {option.description && <span className="block text-xs text-ink-faint">{option.description}</span>}
            </span>
          </label>
        ))}
        {question.custom && (
          <input
            aria-label={`Your own answer: ${question.question}`}
            value={draft.custom}
            onChange={(event) => {
              const custom = event.target.value;
              onChange({ labels: question.multiple || !custom ? draft.labels : [], custom });
            }}
            placeholder={question.options.length > 0 ? "Something else…" : "Your answer"}
            className="ring-field w-full rounded-lg border bg-surface px-3 py-2 text-[0.8125rem] placeholder:text-ink-faint"
          />
        )}
      </div>
    </fieldset>
  );
}
