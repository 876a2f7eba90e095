/** Text that grows: the deltas of a part until its finished form arrives. */

import type { Delta } from "@/api/events";
import type { Partial, SessionState } from "../state";
import { find, isGrowing, put } from "./changes";

/** Merges growing text. What overlaps is known already; what would leave a hole waits for the finished part. */
export function grow(state: SessionState, delta: Delta): SessionState {
  const entry = find(state, delta.part_id);
  if (entry && !isGrowing(entry)) return state;
  const known = state.partials[delta.part_id] ?? { task_id: delta.task_id, text: "", points: 0 };
  const merged = merge(known, delta);
  if (!merged) return state;
  const next = { ...state, partials: { ...state.partials, [delta.part_id]: merged } };
  if (entry || delta.kind === "tool") return next;
  const { part_id, message_id, task_id } = delta;
  const part = { key: part_id, at_ms: state.updated_at_ms, task_id, message_id, text: "", growing: true };
  return put(next, delta.kind === "text" ? { kind: "text", ...part } : { kind: "reasoning", took_ms: 0, ...part });
}

/** The text with the delta in its place, or nothing when the delta says what is known or leaves a hole. */
function merge(known: Partial, delta: Delta): Partial | undefined {
  if (delta.offset > known.points) return undefined;
  const added = Array.from(delta.text).length;
  if (delta.offset === known.points) {
    return added === 0 ? undefined : { ...known, text: known.text + delta.text, points: known.points + added };
  }
  const points = Array.from(known.text);
  if (points.slice(delta.offset, delta.offset + added).join("") === delta.text) return undefined;
  const text = points.slice(0, delta.offset).join("") + delta.text;
  return { ...known, text, points: delta.offset + added };
}
