/** What this browser remembers between new tasks. */

import type { AgentMode, Approval } from "@/api/types";
import { isString, isStrings, readStored, writeStored } from "@/lib/stored";

const MAX_RECENT = 8;

const isMode = (value: unknown): value is AgentMode => value === "build" || value === "plan";
const isApproval = (value: unknown): value is Approval => value === "auto" || value === "ask";

export interface Choices {
  /** Newest first. */
  repositories: string[];
  model: string;
  agent: AgentMode;
  approval: Approval;
}

export function readChoices(): Choices {
  return {
    repositories: readStored("repositories", isStrings, []),
    model: readStored("model", isString, ""),
    agent: readStored("agent", isMode, "build"),
    approval: readStored("approval", isApproval, "auto"),
  };
}

/** Keeps the choices of a task that was accepted, its repository in front. */
export function rememberChoices(chosen: Omit<Choices, "repositories">, repository: string): void {
  const known = readChoices().repositories.filter((other) => other !== repository);
  writeStored("repositories", [repository, ...known].slice(0, MAX_RECENT));
  writeStored("model", chosen.model);
  writeStored("agent", chosen.agent);
  writeStored("approval", chosen.approval);
}
