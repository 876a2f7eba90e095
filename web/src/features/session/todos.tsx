import { ChevronRight, Circle, CircleCheck, CircleDot, CircleSlash } from "lucide-react";
import { Collapsible } from "radix-ui";
import type { Todo } from "@/api/types";
import { cn } from "@/lib/cn";

/** The agent's plan: how far it is, opening to its lines. */
export function Todos({ todos }: { todos: Todo[] }) {
  if (todos.length === 0) return null;
  const done = todos.filter((todo) => todo.status === "completed").length;
  const current = todos.find((todo) => todo.status === "in_progress") ?? todos.find((todo) => todo.status === "pending");
  return (
    <Collapsible.Root asChild>
      <section aria-label="Plan" className="border-b">
        <Collapsible.Trigger className="group flex w-full items-center gap-2 rounded-t-2xl px-3 py-2 text-left text-xs -outline-offset-2">
          <ChevronRight aria-hidden className="size-3.5 shrink-0 text-ink-faint transition-transform group-data-[state=open]:rotate-90" />
          <span className="shrink-0 font-medium">
            Plan {done}/{todos.length}
          </span>
          <span className="min-w-0 flex-1 truncate text-ink-faint group-data-[state=open]:invisible">
            {current?.content ?? "all done"}
          </span>
          <span aria-hidden className="h-1 w-16 shrink-0 overflow-hidden rounded-full bg-hover">
            <span className="block h-full rounded-full bg-good transition-[width]" style={{ width: `${String((done / todos.length) * 100)}%` }} />
          </span>
        </Collapsible.Trigger>
        <Collapsible.Content className="animate-fade-in">
          <ul className="max-h-56 space-y-1 overflow-y-auto px-3 pb-2.5">
            {todos.map((todo, index) => (
              <li key={index} className="flex items-start gap-2 text-[0.8125rem]">
                <TodoIcon status={todo.status} />
                <span
                  className={cn(
                    "min-w-0 [overflow-wrap:anywhere]",
                    todo.status === "completed" && "text-ink-faint",
                    todo.status === "cancelled" && "text-ink-faint line-through",
                  )}
                >
                  {todo.content}
                </span>
              </li>
            ))}
          </ul>
        </Collapsible.Content>
      </section>
    </Collapsible.Root>
  );
}

function TodoIcon({ status }: { status: string }) {
  const look = "mt-[3px] size-3.5 shrink-0";
  if (status === "completed") return <CircleCheck aria-label="done" className={cn(look, "text-good")} />;
  if (status === "in_progress") return <CircleDot aria-label="in progress" className={cn(look, "text-accent")} />;
  if (status === "cancelled") return <CircleSlash aria-label="cancelled" className={cn(look, "text-ink-faint")} />;
  return <Circle aria-label="to do" className={cn(look, "text-ink-faint")} />;
}
