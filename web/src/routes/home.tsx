import { useQuery } from "@tanstack/react-query";
import { getRouteApi } from "@tanstack/react-router";
import { meQuery } from "@/api/queries";
import { Logo } from "@/components/logo";
import { ThemeToggle } from "@/components/theme-toggle";
import { NewTask } from "@/features/new-task/new-task";
import { SessionList } from "@/features/sessions/session-list";

const route = getRouteApi("/");

/** A new task on top, the sessions below. */
export function Home() {
  const me = useQuery(meQuery);
  const { q = "" } = route.useSearch();
  const navigate = route.useNavigate();
  return (
    <div className="flex h-full flex-col overflow-y-auto">
      <title>Ship</title>
      <header className="mx-auto flex w-full max-w-4xl items-center gap-2 px-4 pt-4 sm:px-6">
        <Logo className="size-6" />
        <span className="text-[0.9375rem] font-semibold tracking-tight">Ship</span>
        <span className="flex-1" />
        {me.data && <span className="truncate text-xs text-ink-faint">{me.data.name}</span>}
        <ThemeToggle />
      </header>
      <main className="mx-auto w-full max-w-4xl flex-1 px-4 pb-16 sm:px-6">
        <NewTask />
        <SessionList
          words={q}
          onSearch={(words) => {
            void navigate({ search: words ? { q: words } : {}, replace: true, resetScroll: false });
          }}
        />
      </main>
    </div>
  );
}
