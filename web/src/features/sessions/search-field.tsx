import { Search } from "lucide-react";
import { useEffect, useRef, useState } from "react";
import type { SearchMode } from "@/api/types";
import { useSearchFocus } from "@/lib/hotkey";
import { focusResult } from "./focus-result";

/** So long nothing more was typed. */
const SETTLED_MS = 250;

const PROMPTS: Record<SearchMode, { placeholder: string; title: string }> = {
  words: { placeholder: "Search what was said", title: "Ctrl+K. Words, “phrases in quotes”, beginnings*, and -without" },
  meaning: { placeholder: "Say what it was about", title: "Ctrl+K. In whatever words" },
};

interface SearchFieldProps {
  words: string;
  mode: SearchMode;
  onSearch: (words: string) => void;
}

/** Where one searches all sessions. Down leads into the results, Enter opens the first, Escape clears. */
export function SearchField({ words, mode, onSearch }: SearchFieldProps) {
  const [text, setText] = useState(words);
  const field = useRef<HTMLInputElement>(null);
  const latest = useRef(onSearch);
  useSearchFocus(field);
  useEffect(() => {
    latest.current = onSearch;
  });
  useEffect(() => {
    if (text.trim() === words) return;
    const timer = setTimeout(() => {
      latest.current(text.trim());
    }, SETTLED_MS);
    return () => {
      clearTimeout(timer);
    };
  }, [text, words]);
  return (
    <label className="ring-field flex h-8 min-w-0 flex-1 items-center gap-2 rounded-lg border bg-surface px-2.5 transition-[border-color,box-shadow]">
      <Search aria-hidden className="size-3.5 shrink-0 text-ink-faint" />
      <span className="sr-only">Search in all sessions</span>
      <input
        ref={field}
        type="search"
        value={text}
        {...PROMPTS[mode]}
        onChange={(event) => {
          setText(event.target.value);
        }}
        onKeyDown={(event) => {
          if (event.key === "Escape") setText("");
          if (event.key === "Enter") focusResult(null, 1)?.click();
          if (event.key !== "ArrowDown") return;
          event.preventDefault();
          focusResult(null, 1)?.focus();
        }}
        className="min-w-0 flex-1 bg-transparent text-[0.8125rem] outline-none placeholder:text-ink-faint"
      />
    </label>
  );
}
