import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { useState } from "react";
import { Toaster } from "sonner";
import { ApiError } from "@/api/http";
import { TooltipProvider } from "@/components/tooltip";
import { useIsDark } from "@/lib/theme";
import { createAppRouter } from "./router";

/** What a person got wrong stays wrong: only a server that was not reached or stumbled is asked again. */
const isWorthRetrying = (failures: number, error: Error): boolean =>
  failures < 2 && !(error instanceof ApiError && error.status >= 400 && error.status < 500);

export function App() {
  const [queries] = useState(
    () => new QueryClient({ defaultOptions: { queries: { retry: isWorthRetrying, staleTime: 10_000 } } }),
  );
  const [router] = useState(createAppRouter);
  const isDark = useIsDark();
  return (
    <QueryClientProvider client={queries}>
      <TooltipProvider>
        <RouterProvider router={router} />
        <Toaster theme={isDark ? "dark" : "light"} position="bottom-right" closeButton />
      </TooltipProvider>
    </QueryClientProvider>
  );
}
