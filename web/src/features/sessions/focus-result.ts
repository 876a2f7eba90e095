/** The results of a search as a list to walk through with the arrow keys. */

/** Marks a result. */
export const RESULT = "data-result";

/** The result after (1) or before (-1) that one; from nowhere, the first. */
export function focusResult(from: Element | null, step: -1 | 1): HTMLElement | undefined {
  const results = [...document.querySelectorAll<HTMLElement>(`[${RESULT}]`)];
  const place = from ? results.findIndex((result) => result === from) + step : 0;
  return results[place];
}
