import { useSyncExternalStore } from "react";

/** Whether the media query holds, live. */
export function useMedia(query: string): boolean {
  return useSyncExternalStore(
    (changed) => {
      const list = window.matchMedia(query);
      list.addEventListener("change", changed);
      return () => {
        list.removeEventListener("change", changed);
      };
    },
    () => window.matchMedia(query).matches,
  );
}

/** Room for the conversation and a panel beside it. */
export const WIDE = "(min-width: 1024px)";
