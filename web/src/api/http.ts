/** Requests to `/api/v1` on our own origin, with errors as one class. */

/** An answer that was not a success, or none at all (`status` 0, code `offline`). */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly hint: string;

  constructor(status: number, code: string, detail: string, hint = "") {
    super(detail);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.hint = hint;
  }
}

export const API = "/api/v1";

/** Sends and returns the raw answer. Raises ApiError when the server is not reached or answers with an error. */
export async function send(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(API + path, { credentials: "same-origin", ...init });
  } catch (cause) {
    if (cause instanceof DOMException && cause.name === "AbortError") throw cause;
    throw new ApiError(0, "offline", "The server cannot be reached.", "Is `ship up` still running?");
  }
  if (!response.ok) throw await problem(response);
  return response;
}

export async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  const response = await send(path, signal ? { signal } : {});
  return (await response.json()) as T;
}

export async function getText(path: string, signal?: AbortSignal): Promise<string> {
  const response = await send(path, signal ? { signal } : {});
  return response.text();
}

/** Posts JSON. The key makes a repeated request harmless: pass the same one to try again. */
export function postJson<T>(path: string, body: unknown = {}, key: string = newKey()): Promise<T> {
  return sendJson<T>("POST", path, body, { "Idempotency-Key": key });
}

/** Changes what is named and leaves the rest. */
export function patchJson<T>(path: string, body: unknown): Promise<T> {
  return sendJson<T>("PATCH", path, body);
}

async function sendJson<T>(method: string, path: string, body: unknown, headers: Record<string, string> = {}): Promise<T> {
  const response = await send(path, {
    method,
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  return (text ? JSON.parse(text) : undefined) as T;
}

/** A random key; `crypto.randomUUID` is missing where the page came over plain HTTP from another machine. */
export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Makes an ApiError of a `application/problem+json` answer, or of whatever a proxy in between said. */
async function problem(response: Response): Promise<ApiError> {
  const text = await response.text();
  try {
    const body: unknown = JSON.parse(text);
    if (body !== null && typeof body === "object") {
      const field = (name: string): string => {
        const value = (body as Record<string, unknown>)[name];
        return typeof value === "string" ? value : "";
      };
      const detail = field("detail") || field("title") || response.statusText;
      return new ApiError(response.status, field("code") || "http_error", detail, field("hint"));
    }
  } catch {
    // Not JSON: the status line has to do.
  }
  const detail = `The server answered ${String(response.status)} ${response.statusText}`.trim() + ".";
  return new ApiError(response.status, "http_error", detail);
}
