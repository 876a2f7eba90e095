import type { ReactNode } from "react";
import { cn } from "@/lib/cn";

/** Its name, its value, and whether the value is code. An empty value is left out. */
export type Fact = [name: string, value: ReactNode, look?: "mono"];

/** Names and values, one a line. */
export function Facts({ facts }: { facts: Fact[] }) {
  return (
    <dl className="grid grid-cols-[auto_minmax(0,1fr)] gap-x-6 gap-y-1.5 text-[0.8125rem]">
      {facts
        .filter(([, value]) => value !== "")
        .map(([name, value, look]) => (
          <div key={name} className="contents">
            <dt className="text-ink-faint">{name}</dt>
            <dd className={cn("[overflow-wrap:anywhere]", look === "mono" && "font-mono text-code")}>{value}</dd>
          </div>
        ))}
    </dl>
  );
}
