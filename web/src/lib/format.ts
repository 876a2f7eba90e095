/** Numbers, times and names as people read them. */

/** 850 ms, 4.2 s, 2m 05s, 1h 04m. */
export function duration(ms: number): string {
  if (ms < 1000) return `${String(Math.max(0, Math.round(ms)))} ms`;
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${String(seconds)} s`;
  if (seconds < 3600) return `${String(Math.floor(seconds / 60))}m ${two(seconds % 60)}s`;
  return `${String(Math.floor(seconds / 3600))}h ${two(Math.floor((seconds % 3600) / 60))}m`;
}

/** A round time: 45 s, 30m, 1h 30m. */
export function timeSpan(seconds: number): string {
  if (seconds < 60) return `${String(Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${String(minutes)}m`;
  return `${String(Math.floor(minutes / 60))}h${minutes % 60 > 0 ? ` ${String(minutes % 60)}m` : ""}`;
}

const two = (n: number): string => String(n).padStart(2, "0");

/** now, 5m, 3h, 2d, then the date. */
export function ago(at_ms: number, now_ms: number): string {
  const minutes = Math.floor((now_ms - at_ms) / 60_000);
  if (minutes < 1) return "now";
  if (minutes < 60) return `${String(minutes)}m ago`;
  if (minutes < 60 * 24) return `${String(Math.floor(minutes / 60))}h ago`;
  if (minutes < 60 * 24 * 7) return `${String(Math.floor(minutes / 60 / 24))}d ago`;
  return new Date(at_ms).toLocaleDateString(undefined, { month: "short", day: "numeric", year: "numeric" });
}

export const exactTime = (at_ms: number): string =>
  new Date(at_ms).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** 999, 12.3k, 4.56M. */
export function count(n: number): string {
  if (n < 1000) return String(n);
  if (n < 999_500) return `${(n / 1000).toFixed(n < 99_950 ? 1 : 0)}k`;
  return `${(n / 1_000_000).toFixed(2)}M`;
}

export function dollars(usd: number): string {
  if (usd === 0) return "$0";
  return usd < 0.01 ? "<$0.01" : `$${usd.toFixed(2)}`;
}

/** 30m · 200k tokens · $2.00; empty where nothing is limited. */
export function limitsText(limits: { time_s: number; tokens: number; cost_usd: number }): string {
  const parts: string[] = [];
  if (limits.time_s > 0) parts.push(timeSpan(limits.time_s));
  if (limits.tokens > 0) parts.push(`${count(limits.tokens)} tokens`);
  if (limits.cost_usd > 0) parts.push(dollars(limits.cost_usd));
  return parts.join(" · ");
}

export function fileSize(bytes: number): string {
  if (bytes < 1024) return `${String(bytes)} B`;
  if (bytes < 1024 * 1024) return `${(bytes / 1024).toFixed(1)} KB`;
  return `${(bytes / 1024 / 1024).toFixed(1)} MB`;
}

export const plural = (n: number, noun: string): string => `${String(n)} ${noun}${n === 1 ? "" : "s"}`;

/** A repository's short name: owner/name of a URL, the last folder of a path. */
export function repositoryName(source: string): string {
  if (source.startsWith("upload:")) return `upload ${source.slice(7, 15)}`;
  const parts = source
    .replace(/\/+$/, "")
    .replace(/\.git$/, "")
    .split("/")
    .filter(Boolean);
  const isUrl = /^[a-z]+:\/\//i.test(source);
  return (isUrl && parts.length > 3 ? parts.slice(-2) : parts.slice(-1)).join("/") || source;
}

/** `provider/some-model` without its provider. */
export const modelName = (id: string): string => id.slice(id.indexOf("/") + 1);
