import { ToggleGroup } from "radix-ui";
import type { ReactNode } from "react";
import { cn } from "@/lib/cn";

export interface Segment<Value extends string> {
  value: Value;
  label: ReactNode;
  /** For screen readers, where the label is an icon. */
  name?: string;
  disabled?: boolean;
}

interface SegmentedProps<Value extends string> {
  label: string;
  value: Value;
  segments: readonly Segment<Value>[];
  onChange: (value: Value) => void;
  className?: string;
}

/** A choice of one among a few that are all visible. */
export function Segmented<Value extends string>(props: SegmentedProps<Value>) {
  const { label, value, segments, onChange, className } = props;
  return (
    <ToggleGroup.Root
      type="single"
      aria-label={label}
      value={value}
      onValueChange={(next) => {
        if (next) onChange(next as Value);
      }}
      className={cn("inline-flex h-8 items-center gap-0.5 rounded-lg bg-sunken p-0.5", className)}
    >
      {segments.map((segment) => (
        <ToggleGroup.Item
          key={segment.value}
          value={segment.value}
          aria-label={segment.name}
          title={segment.name}
          disabled={segment.disabled ?? false}
          className="inline-flex h-7 items-center gap-1.5 rounded-md px-2.5 text-xs font-medium text-ink-faint transition-colors hover:text-ink disabled:pointer-events-none disabled:opacity-40 data-[state=on]:bg-surface dark:data-[state=on]:bg-line-strong/70 data-[state=on]:text-ink data-[state=on]:shadow-raised [&_svg]:size-3.5"
        >
          {segment.label}
        </ToggleGroup.Item>
      ))}
    </ToggleGroup.Root>
  );
}
