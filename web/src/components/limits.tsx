import { Gauge } from "lucide-react";
import { Popover } from "radix-ui";
import { useId, useRef, useState, type ReactNode } from "react";
import type { Limits } from "@/api/types";
import { cn } from "@/lib/cn";
import { limitsText } from "@/lib/format";

interface Field {
  name: keyof Limits;
  label: string;
  unit: string;
  /** How much of the record's unit one of the field's is. */
  scale: number;
  step: string;
}

const FIELDS: Field[] = [
  { name: "time_s", label: "Working time", unit: "minutes", scale: 60, step: "any" },
  { name: "tokens", label: "Tokens", unit: "in and out", scale: 1, step: "1" },
  { name: "cost_usd", label: "Cost", unit: "US dollars", scale: 1, step: "any" },
];

interface LimitsControlProps {
  value: Limits;
  /** Called when the fields are closed, if they say something else. */
  onChange: (limits: Limits) => void;
  /** In place of the limits in words. */
  children?: ReactNode;
  className?: string;
}

/** What a task may use, quiet until it says something: time, tokens, cost. */
export function LimitsControl({ value, onChange, children, className }: LimitsControlProps) {
  const [isOpen, setOpen] = useState(false);
  const draft = useRef(value);
  const toggle = (open: boolean): void => {
    setOpen(open);
    if (open) draft.current = value;
    else if (FIELDS.some(({ name }) => draft.current[name] !== value[name])) onChange(draft.current);
  };
  const text = limitsText(value);
  return (
    <Popover.Root open={isOpen} onOpenChange={toggle}>
      <Popover.Trigger
        title="What the task may use"
        className={cn(
          "inline-flex h-8 min-w-0 items-center gap-1.5 rounded-lg px-2 text-[0.8125rem] text-ink-soft transition-colors hover:bg-hover hover:text-ink data-[state=open]:bg-hover [&_svg]:size-3.5 [&_svg]:shrink-0",
          className,
        )}
      >
        <Gauge aria-hidden />
        <span className="truncate">
          {(children ?? text) && <span className="sr-only">Limits: </span>}
          {children ?? (text || "Limits")}
        </span>
      </Popover.Trigger>
      <Popover.Portal>
        <Popover.Content
          aria-label="Limits of the task"
          sideOffset={6}
          collisionPadding={8}
          className="z-50 w-72 animate-rise rounded-xl border bg-surface p-3 shadow-float"
          onKeyDown={(event) => {
            if (event.key === "Enter") toggle(false);
          }}
        >
          <p className="mb-2.5 text-xs text-ink-faint">A task that reaches one of these is ended. Empty: no limit.</p>
          <div className="space-y-2">
            {FIELDS.map((field) => (
              <LimitField
                key={field.name}
                field={field}
                value={value[field.name]}
                onChange={(next) => {
                  draft.current = { ...draft.current, [field.name]: next };
                }}
              />
            ))}
          </div>
        </Popover.Content>
      </Popover.Portal>
    </Popover.Root>
  );
}

interface LimitFieldProps {
  field: Field;
  value: number;
  onChange: (value: number) => void;
}

function LimitField({ field, value, onChange }: LimitFieldProps) {
  const id = useId();
  const isWhole = field.name !== "cost_usd";
  return (
    <div className="flex items-center gap-3 text-[0.8125rem]">
      <label htmlFor={id} className="flex-1">
        {field.label} <span className="block text-xs text-ink-faint">{field.unit}</span>
      </label>
      <input
        id={id}
        type="number"
        inputMode="decimal"
        min={0}
        step={field.step}
        defaultValue={value > 0 ? value / field.scale : ""}
        placeholder="none"
        onChange={(event) => {
          const given = event.target.valueAsNumber;
          const scaled = Number.isFinite(given) && given > 0 ? given * field.scale : 0;
          onChange(isWhole ? Math.round(scaled) : scaled);
        }}
        className="ring-field h-8 w-28 rounded-lg border bg-surface px-2.5 text-right tabular-nums placeholder:text-ink-faint"
      />
    </div>
  );
}
