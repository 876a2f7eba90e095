/** How a call of each of the agent's tools reads in one line. */

import {
  Bot,
  FilePen,
  FilePlus,
  FileText,
  FolderSearch,
  Globe,
  ListTodo,
  MessageCircleQuestion,
  Search,
  SquareTerminal,
  Wrench,
  type LucideIcon,
} from "lucide-react";
import type { ToolEntry } from "./state";

export type ToolKind = "read" | "edit" | "write" | "bash" | "search" | "todo" | "other";

export interface ToolLine {
  kind: ToolKind;
  icon: LucideIcon;
  verb: string;
  /** What it is about: a path, a command, a pattern. */
  subject: string;
}

type Input = Record<string, unknown>;
type Describe = (input: Input, title: string) => ToolLine;

const text = (input: Input, ...names: string[]): string => {
  for (const name of names) {
    const value = input[name];
    if (typeof value === "string" && value) return value;
  }
  return "";
};

/** Where the repository lies in the sandbox says nothing to a reader. */
const short = (path: string): string => path.replace(/^\/workspace\/repo\//, "");
const pathOf = (input: Input): string => short(text(input, "filePath", "file_path", "path", "file"));

function progress(todos: unknown): string {
  if (!Array.isArray(todos)) return "";
  const done = todos.filter((todo: unknown) => JSON.stringify(todo).includes('"status":"completed"')).length;
  return `${String(done)} of ${String(todos.length)} done`;
}

const edit: Describe = (input, title) => ({ kind: "edit", icon: FilePen, verb: "Edit", subject: pathOf(input) || title });
const search =
  (icon: LucideIcon, verb: string): Describe =>
  (input, title) => ({ kind: "search", icon, verb, subject: text(input, "pattern", "query") || pathOf(input) || title });
const other =
  (icon: LucideIcon, verb: string, ...names: string[]): Describe =>
  (input, title) => ({ kind: "other", icon, verb, subject: text(input, ...names) || title });

const TOOLS: Record<string, Describe> = {
  read: (input, title) => ({ kind: "read", icon: FileText, verb: "Read", subject: pathOf(input) || title }),
  edit,
  multiedit: edit,
  patch: edit,
  apply_patch: edit,
  write: (input, title) => ({ kind: "write", icon: FilePlus, verb: "Write", subject: pathOf(input) || title }),
  bash: (input, title) => ({ kind: "bash", icon: SquareTerminal, verb: "Run", subject: text(input, "command") || title }),
  grep: search(Search, "Search"),
  glob: search(FolderSearch, "Find"),
  list: search(FolderSearch, "List"),
  ls: search(FolderSearch, "List"),
  webfetch: other(Globe, "Fetch", "url"),
  websearch: other(Globe, "Search the web", "query"),
  todowrite: (input) => ({ kind: "todo", icon: ListTodo, verb: "Update the plan", subject: progress(input.todos) }),
  todoread: (_input, title) => ({ kind: "todo", icon: ListTodo, verb: "Read the plan", subject: title }),
  task: other(Bot, "Ask another agent", "description"),
  question: other(MessageCircleQuestion, "Ask"),
};

/** Describes a call; a tool that is not known goes by its own name. */
export function describeTool(entry: Pick<ToolEntry, "tool" | "input" | "title">): ToolLine {
  const describe = TOOLS[entry.tool.toLowerCase()];
  if (describe) return describe(entry.input, entry.title);
  return { kind: "other", icon: Wrench, verb: entry.tool, subject: entry.title };
}

const READING = /^<path>[^\n]*<\/path>\n<type>file<\/type>\n<content>\n([\s\S]*?)\n?<\/content>/;

/** What a read tool showed its agent, as the file's own text; undefined where it is in no form that we know. */
export function fileText(output: string): { text: string; firstLine: number } | undefined {
  const content = READING.exec(output)?.[1];
  if (content === undefined) return undefined;
  const lines = content.replace(/\n*\([^\n]*\)$/, "").split("\n");
  const firstLine = Number(/^(\d+): /.exec(lines[0] ?? "")?.[1] ?? 0);
  if (firstLine === 0) return undefined;
  return { text: lines.map((line) => line.replace(/^\d+: ?/, "")).join("\n"), firstLine };
}

/** A terminal's colours and cursor movements mean nothing here. */
export const plainText = (output: string): string =>
  // eslint-disable-next-line no-control-regex -- control characters are what is taken out
  output.replace(/\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])/g, "").replace(/[^\n]*\r(?!\n)/g, "");
