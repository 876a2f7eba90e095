/** Queries that more than one feature asks. */

import { queryOptions } from "@tanstack/react-query";
import { getMe, getModels } from "./sessions";

export const meQuery = queryOptions({
  queryKey: ["me"],
  queryFn: ({ signal }) => getMe(signal),
  staleTime: Infinity,
});

export const modelsQuery = queryOptions({
  queryKey: ["models"],
  queryFn: ({ signal }) => getModels(signal),
  staleTime: 60_000,
});
