import { useQuery } from "@tanstack/react-query";
import { Outlet } from "@tanstack/react-router";
import { ApiError } from "@/api/http";
import { meQuery } from "@/api/queries";
import { SignIn } from "./sign-in";

/** Every page, once it is known that the server knows who looks at it. */
export function Root() {
  const me = useQuery(meQuery);
  if (me.error instanceof ApiError && me.error.status === 401) return <SignIn />;
  return <Outlet />;
}
