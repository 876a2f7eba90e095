/** Small choices that this browser remembers. Storage may be off or full: then nothing is remembered. */

export function readStored<T>(key: string, isValid: (value: unknown) => value is T, otherwise: T): T {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(`ship.${key}`) ?? "null");
    return isValid(value) ? value : otherwise;
  } catch {
    return otherwise;
  }
}

export function writeStored(key: string, value: unknown): void {
  try {
    localStorage.setItem(`ship.${key}`, JSON.stringify(value));
  } catch {
    // Not remembered, see above.
  }
}

export const isString = (value: unknown): value is string => typeof value === "string";
export const isStrings = (value: unknown): value is string[] => Array.isArray(value) && value.every(isString);
