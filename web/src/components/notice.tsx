import type { LucideIcon } from "lucide-react";
import type { ReactNode } from "react";
import { cn } from "@/lib/cn";

interface NoticeProps {
  icon: LucideIcon;
  title: string;
  /** The page is nothing but this. */
  isPage?: boolean;
  children?: ReactNode;
  /** The way on. */
  action?: ReactNode;
  className?: string;
}

/** A calm full-area message: nothing here yet, or something went wrong. */
export function Notice({ icon: Icon, title, isPage = false, children, action, className }: NoticeProps) {
  const Heading = isPage ? "h1" : "h2";
  return (
    <div className={cn("flex flex-col items-center justify-center px-6 py-14 text-center", className)}>
      <div className="mb-4 grid size-11 place-items-center rounded-xl border bg-surface text-ink-faint shadow-raised">
        <Icon aria-hidden className="size-5" />
      </div>
      <Heading className="text-sm font-semibold text-balance">{title}</Heading>
      {children && <div className="mt-1.5 max-w-md text-[0.8125rem] text-pretty text-ink-faint">{children}</div>}
      {action && <div className="mt-5 flex gap-2">{action}</div>}
    </div>
  );
}
