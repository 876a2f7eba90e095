import { useQuery } from "@tanstack/react-query";
import { Bot, Hammer, NotebookPen } from "lucide-react";
import { modelsQuery } from "@/api/queries";
import type { AgentMode, Limits } from "@/api/types";
import { LimitsControl } from "@/components/limits";
import { Select, type Option } from "@/components/select";

const AGENTS: Option<AgentMode>[] = [
  { value: "build", label: <Labelled icon={Hammer} text="Build" />, description: "The agent changes files." },
  { value: "plan", label: <Labelled icon={NotebookPen} text="Plan" />, description: "The agent only reads." },
];

export interface Choices {
  agent: AgentMode;
  model: string;
  limits: Limits;
}

/** Who does a task, with which model, within which limits. */
export function TaskChoices({ value, onChange }: { value: Choices; onChange: (value: Choices) => void }) {
  return (
    <>
      <Select
        label="Agent"
        value={value.agent}
        options={AGENTS}
        onChange={(agent) => {
          onChange({ ...value, agent });
        }}
      />
      <ModelSelect
        value={value.model}
        onChange={(model) => {
          onChange({ ...value, model });
        }}
        className="max-w-40"
      />
      <LimitsControl
        value={value.limits}
        onChange={(limits) => {
          onChange({ ...value, limits });
        }}
      />
    </>
  );
}

/** A choice among the models, where there is one. */
export function ModelSelect({ value, onChange, className }: { value: string; onChange: (model: string) => void; className?: string }) {
  const models = useQuery(modelsQuery);
  const items = models.data?.items ?? [];
  if (items.length < 2) return null;
  return (
    <Select
      label="Model"
      icon={<Bot aria-hidden />}
      value={value}
      options={items.map((known) => ({ value: known.id, label: known.name, description: known.provider }))}
      onChange={onChange}
      {...(className !== undefined && { className })}
    />
  );
}

function Labelled({ icon: Icon, text }: { icon: typeof Hammer; text: string }) {
  return (
    <span className="inline-flex items-center gap-1.5">
      <Icon aria-hidden className="size-3.5" /> {text}
    </span>
  );
}
