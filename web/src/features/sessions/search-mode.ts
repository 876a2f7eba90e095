/** What the search goes by, as this browser chose it, where the server offers a choice. */

import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { meQuery } from "@/api/queries";
import type { SearchMode } from "@/api/types";
import { readStored, writeStored } from "@/lib/stored";

const KEY = "search";

const isSearchMode = (value: unknown): value is SearchMode => value === "words" || value === "meaning";

interface SearchChoice {
  mode: SearchMode;
  /** Whether there is more than one. */
  isOffered: boolean;
  choose: (mode: SearchMode) => void;
}

export function useSearchMode(): SearchChoice {
  const me = useQuery(meQuery);
  const [chosen, setChosen] = useState(() => readStored(KEY, isSearchMode, "words"));
  const isOffered = me.data?.search_modes.includes("meaning") ?? false;
  return {
    mode: isOffered ? chosen : "words",
    isOffered,
    choose: (mode) => {
      setChosen(mode);
      writeStored(KEY, mode);
    },
  };
}
