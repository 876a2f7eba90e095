/** What applies one type of event. */

import type { EventData, EventType, LogRecord } from "@/api/events";
import type { SessionState } from "../state";

export type Handler<T extends EventType> = (state: SessionState, data: EventData[T], record: LogRecord) => SessionState;

export type Handlers<T extends EventType = EventType> = { [K in T]: Handler<K> };

/** The event types of one noun: those before the dot. */
export type TypesOf<Noun extends string> = Extract<EventType, `${Noun}.${string}`>;
