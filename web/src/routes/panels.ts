/** What stands beside the conversation, or on a phone in its place. */
export const PANELS = ["chat", "diff", "files", "history", "sandbox", "details"] as const;

export type Panel = (typeof PANELS)[number];

export const isPanel = (value: unknown): value is Panel => PANELS.some((panel) => panel === value);
