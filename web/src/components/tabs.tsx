import { Tabs as Radix } from "radix-ui";
import type { ComponentProps } from "react";
import { cn } from "@/lib/cn";

export const Tabs = Radix.Root;

export function TabList({ className, ...rest }: ComponentProps<typeof Radix.List>) {
  return (
    <Radix.List
      className={cn("flex shrink-0 items-stretch gap-1 overflow-x-auto border-b [scrollbar-width:none]", className)}
      {...rest}
    />
  );
}

export function Tab({ className, ...rest }: ComponentProps<typeof Radix.Trigger>) {
  return (
    <Radix.Trigger
      className={cn(
        "relative inline-flex h-10 items-center gap-1.5 whitespace-nowrap rounded-md px-2.5 text-[0.8125rem] text-ink-faint transition-colors -outline-offset-2 hover:text-ink data-[state=active]:font-medium data-[state=active]:text-ink",
        "after:absolute after:inset-x-2 after:-bottom-px after:h-0.5 after:rounded-full data-[state=active]:after:bg-ink",
        className,
      )}
      {...rest}
    />
  );
}

export function TabPanel({ className, ...rest }: ComponentProps<typeof Radix.Content>) {
  return (
    <Radix.Content className={cn("min-h-0 flex-1 -outline-offset-2 data-[state=inactive]:hidden", className)} {...rest} />
  );
}
