import { memo } from "react";
import type { Task } from "@/api/types";
import { FailureBox } from "@/components/failure-box";
import type { Entry as AnyEntry, FailureEntry } from "../state";
import { Answered, ChildLine, Outcome, QuietLine } from "./lines";
import { Tool } from "./tool";
import { AgentText, Note, Prompt, Reasoning, Steer } from "./words";

const FAILED: Record<FailureEntry["subject"], string> = {
  session: "The session cannot go on by itself",
  task: "The task failed",
  sandbox: "The sandbox did not become ready",
  effect: "Something around the session failed",
};

interface EntryProps {
  entry: AnyEntry;
  /** The text so far, for an entry that grows. */
  growing: string;
  /** The task that an outcome is about. */
  task: Task | undefined;
}

/** One entry of the conversation, drawn again only when it changed. */
export const Entry = memo(function Entry({ entry, growing, task }: EntryProps) {
  switch (entry.kind) {
    case "prompt":
      return <Prompt entry={entry} />;
    case "steer":
      return <Steer entry={entry} />;
    case "note":
      return <Note entry={entry} />;
    case "text":
      return <AgentText entry={entry} growing={growing} />;
    case "reasoning":
      return <Reasoning entry={entry} growing={growing} />;
    case "tool":
      return <Tool entry={entry} growing={growing} />;
    case "answered":
      return <Answered entry={entry} />;
    case "line":
      return <QuietLine entry={entry} />;
    case "child":
      return <ChildLine entry={entry} />;
    case "failure":
      return <FailureBox title={FAILED[entry.subject]} failure={entry.failure} />;
    case "outcome":
      return <Outcome entry={entry} task={task} />;
  }
});
