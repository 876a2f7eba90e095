import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { act, cleanup, renderHook } from "@testing-library/react";
import { createElement, type ReactNode } from "react";
import { afterEach, describe, expect, it } from "vitest";
import { meQuery } from "@/api/queries";
import type { SearchMode } from "@/api/types";
import { useSearchMode } from "./search-mode";

/** The choice at a server that offers these. */
function at(...search_modes: SearchMode[]) {
  const queries = new QueryClient();
  queries.setQueryData(meQuery.queryKey, { name: "me", search_modes });
  const wrapper = ({ children }: { children: ReactNode }) => createElement(QueryClientProvider, { client: queries }, children);
  return renderHook(useSearchMode, { wrapper }).result;
}

describe("what the search goes by", () => {
  afterEach(() => {
    cleanup();
    localStorage.clear();
  });

  it("is words at first, and then what was chosen, also on the next visit", () => {
    const choice = at("words", "meaning");
    expect(choice.current).toMatchObject({ mode: "words", isOffered: true });
    act(() => {
      choice.current.choose("meaning");
    });
    expect(choice.current.mode).toBe("meaning");
    expect(at("words", "meaning").current.mode).toBe("meaning");
  });

  it("is words where the server offers nothing else, and the choice is kept for where it does", () => {
    const choice = at("words", "meaning");
    act(() => {
      choice.current.choose("meaning");
    });
    expect(at("words").current).toMatchObject({ mode: "words", isOffered: false });
    expect(at("words", "meaning").current.mode).toBe("meaning");
  });

  it("is words where what was stored is nothing that is known", () => {
    localStorage.setItem("ship.search", '"guess"');
    expect(at("words", "meaning").current.mode).toBe("words");
  });
});
