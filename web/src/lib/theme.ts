import { useSyncExternalStore } from "react";

export type Theme = "system" | "light" | "dark";

const KEY = "ship.theme";
const listeners = new Set<() => void>();

/** The person's choice. `public/theme.js` applies it before the first paint from the same key. */
export function useTheme(): [Theme, (theme: Theme) => void] {
  return [useSyncExternalStore(subscribe, read), choose];
}

/** What is on the screen: the choice, or the system's where there is none. */
export function useIsDark(): boolean {
  return useSyncExternalStore(subscribe, isDark);
}

/** Follows the system for as long as the person has not chosen. */
export function followSystem(): void {
  dark().addEventListener("change", apply);
}

const dark = (): MediaQueryList => window.matchMedia("(prefers-color-scheme: dark)");

function read(): Theme {
  try {
    const stored = localStorage.getItem(KEY);
    return stored === "dark" || stored === "light" ? stored : "system";
  } catch {
    return "system";
  }
}

const isDark = (): boolean => read() === "dark" || (read() === "system" && dark().matches);

function choose(theme: Theme): void {
  try {
    if (theme === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
  } catch {
    // Storage is off: the system's choice stays.
  }
  apply();
}

function apply(): void {
  document.documentElement.classList.toggle("dark", isDark());
  for (const listener of listeners) listener();
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
