/** Queries that more than one feature asks. */

import { queryOptions } from "@tanstack/react-query";
import { getMe, getModels } from "./sessions";

export const meQuery = queryOptions({
  queryKey: ["me"],
  queryFn: ({ signal }) => getMe(signal),
  // The pages wait for it, and tell of a server that is away better than an empty window does.
  retry: false,
  staleTime: Infinity,
});

export const modelsQuery = queryOptions({
  queryKey: ["models"],
  queryFn: ({ signal }) => getModels(signal),
  staleTime: 60_000,
});
