import { useQuery } from "@tanstack/react-query";
import { Outlet } from "@tanstack/react-router";
import { lazy, Suspense } from "react";
import { ApiError } from "@/api/http";
import { meQuery } from "@/api/queries";

const SignIn = lazy(async () => ({ default: (await import("./sign-in")).SignIn }));

/** Every page, once it is known that the server knows who looks at it. */
export function Root() {
  const me = useQuery(meQuery);
  if (me.isPending) return null;
  if (me.error instanceof ApiError && me.error.status === 401) {
    return (
      <Suspense>
        <SignIn />
      </Suspense>
    );
  }
  return <Outlet />;
}
