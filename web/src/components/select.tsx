import { Check, ChevronDown } from "lucide-react";
import { Select as Radix } from "radix-ui";
import type { ReactNode } from "react";
import { cn } from "@/lib/cn";

export interface Option<Value extends string> {
  value: Value;
  label: ReactNode;
  description?: string;
}

interface SelectProps<Value extends string> {
  label: string;
  icon?: ReactNode;
  value: Value;
  options: readonly Option<Value>[];
  onChange: (value: Value) => void;
  disabled?: boolean;
  className?: string;
}

/** A choice of one, small enough for a toolbar. */
export function Select<Value extends string>(props: SelectProps<Value>) {
  const { label, icon, value, options, onChange, disabled = false, className } = props;
  const chosen = options.find((option) => option.value === value);
  return (
    <Radix.Root
      value={value}
      onValueChange={(next) => {
        onChange(next as Value);
      }}
      disabled={disabled}
    >
      <Radix.Trigger
        aria-label={label}
        title={label}
        className={cn(
          "inline-flex h-8 min-w-0 items-center gap-1.5 rounded-lg px-2 text-[0.8125rem] text-ink-soft transition-colors hover:bg-hover hover:text-ink disabled:opacity-45 data-[state=open]:bg-hover [&_svg]:size-3.5 [&_svg]:shrink-0",
          className,
        )}
      >
        {icon}
        <span className="truncate">
          <Radix.Value>{chosen?.label ?? value}</Radix.Value>
        </span>
        <ChevronDown aria-hidden className="text-ink-faint" />
      </Radix.Trigger>
      <Radix.Portal>
        <Radix.Content
          position="popper"
          sideOffset={6}
          collisionPadding={8}
          className="z-50 max-h-(--radix-select-content-available-height) min-w-44 max-w-[min(24rem,calc(100vw-1rem))] animate-rise overflow-hidden rounded-xl border border-line bg-surface p-1 shadow-float"
        >
          <Radix.Viewport>
            {options.map((option) => (
              <Radix.Item
                key={option.value}
                value={option.value}
                className="relative flex select-none items-start gap-2 rounded-lg py-1.5 pr-8 pl-2.5 text-[0.8125rem] outline-none data-[highlighted]:bg-hover"
              >
                <div className="min-w-0">
                  <Radix.ItemText>{option.label}</Radix.ItemText>
                  {option.description && <p className="text-xs text-ink-faint">{option.description}</p>}
                </div>
                <Radix.ItemIndicator className="absolute top-2 right-2.5">
                  <Check aria-hidden className="size-3.5 text-accent" />
                </Radix.ItemIndicator>
              </Radix.Item>
            ))}
          </Radix.Viewport>
        </Radix.Content>
      </Radix.Portal>
    </Radix.Root>
  );
}
