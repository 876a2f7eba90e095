import { createRootRoute, createRoute, createRouter, lazyRouteComponent } from "@tanstack/react-router";
import { Crashed } from "@/routes/crashed";
import { Home } from "@/routes/home";
import { Root } from "@/routes/root";
import { isPanel, type Panel } from "@/routes/panels";

const rootRoute = createRootRoute({ component: Root, notFoundComponent: lazyRouteComponent(() => import("@/routes/not-found"), "NotFound"), errorComponent: Crashed });

const homeRoute = createRoute({
  getParentRoute: () => rootRoute,
  path: "/",
  // A search for a number comes parsed.
  validateSearch: ({ q }: Record<string, unknown>): { q?: string } =>
    (typeof q === "string" && q) || typeof q === "number" ? { q: String(q) } : {},
  component: Home,
});

/** Which panel is open, and the event after which the session is looked at: without one, as it is now. */
interface SessionSearch {
  tab?: Panel;
  at?: number;
}

const isSeq = (value: unknown): value is number => typeof value === "number" && Number.isInteger(value) && value > 0;

const sessionRoute = createRoute({
  getParentRoute: () => rootRoute,
  path: "/sessions/$id",
  validateSearch: (search: Record<string, unknown>): SessionSearch => ({
    ...(isPanel(search.tab) && { tab: search.tab }),
    ...(isSeq(search.at) && { at: search.at }),
  }),
  component: lazyRouteComponent(() => import("@/routes/session"), "SessionPage"),
});

export function createAppRouter() {
  return createRouter({
    routeTree: rootRoute.addChildren([homeRoute, sessionRoute]),
    defaultPreload: "intent",
    scrollRestoration: false,
  });
}

declare module "@tanstack/react-router" {
  interface Register {
    router: ReturnType<typeof createAppRouter>;
  }
}
