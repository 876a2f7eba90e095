import { createRootRoute, createRoute, createRouter, lazyRouteComponent } from "@tanstack/react-router";
import { Crashed } from "@/routes/crashed";
import { Home } from "@/routes/home";
import { Root } from "@/routes/root";
import { isPanel, type Panel } from "@/routes/panels";

const rootRoute = createRootRoute({ component: Root, notFoundComponent: lazyRouteComponent(() => import("@/routes/not-found"), "NotFound"), errorComponent: Crashed });

const homeRoute = createRoute({ getParentRoute: () => rootRoute, path: "/", component: Home });

const sessionRoute = createRoute({
  getParentRoute: () => rootRoute,
  path: "/sessions/$id",
  validateSearch: (search: Record<string, unknown>): { tab?: Panel } =>
    isPanel(search.tab) ? { tab: search.tab } : {},
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
