/** Reads git's unified diff. */

export interface DiffLine {
  kind: "context" | "added" | "removed";
  text: string;
  /** Line number before; 0 for an added line. */
  before: number;
  /** Line number after; 0 for a removed line. */
  after: number;
}

export interface Hunk {
  /** What git says the hunk is in: a function's or a section's first line. */
  section: string;
  before: number;
  after: number;
  lines: DiffLine[];
}

export interface FileDiff {
  path: string;
  /** The old name of a renamed or copied file, else the same as `path`. */
  oldPath: string;
  status: "added" | "deleted" | "renamed" | "modified";
  isBinary: boolean;
  additions: number;
  deletions: number;
  hunks: Hunk[];
}

const HUNK = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)$/;

/** Where a hunk's reader stands: the next line numbers, and how many lines its header still promises. */
interface Place {
  before: number;
  after: number;
  beforeLeft: number;
  afterLeft: number;
}

export function parseDiff(text: string): FileDiff[] {
  const files: FileDiff[] = [];
  let file: FileDiff | undefined;
  let hunk: Hunk | undefined;
  let place: Place = { before: 0, after: 0, beforeLeft: 0, afterLeft: 0 };
  for (const line of text.split("\n")) {
    // Counted, since a removed line may itself look like a header.
    if (file && hunk && (place.beforeLeft > 0 || place.afterLeft > 0)) {
      readLine(file, hunk, line, place);
    } else if (line.startsWith("diff --git ")) {
      file = newFile(line.slice("diff --git ".length));
      files.push(file);
      hunk = undefined;
    } else if (file) {
      const start = HUNK.exec(line);
      if (start) {
        hunk = { section: start[5] ?? "", before: Number(start[1]), after: Number(start[3]), lines: [] };
        place = {
          before: hunk.before,
          after: hunk.after,
          beforeLeft: Number(start[2] ?? 1),
          afterLeft: Number(start[4] ?? 1),
        };
        file.hunks.push(hunk);
      } else if (!hunk) readHeader(file, line);
    }
  }
  return files;
}

function readLine(file: FileDiff, hunk: Hunk, line: string, place: Place): void {
  // "No newline at end of file" is about the line before it.
  if (line.startsWith("\\")) return;
  const text = line.slice(1);
  if (line.startsWith("+")) {
    file.additions += 1;
    place.afterLeft -= 1;
    hunk.lines.push({ kind: "added", text, before: 0, after: place.after++ });
  } else if (line.startsWith("-")) {
    file.deletions += 1;
    place.beforeLeft -= 1;
    hunk.lines.push({ kind: "removed", text, before: place.before++, after: 0 });
  } else {
    place.beforeLeft -= 1;
    place.afterLeft -= 1;
    hunk.lines.push({ kind: "context", text, before: place.before++, after: place.after++ });
  }
}

function newFile(names: string): FileDiff {
  const path = pathOf(names);
  return { path, oldPath: path, status: "modified", isBinary: false, additions: 0, deletions: 0, hunks: [] };
}

/** The path of `a/path b/path`, where both are the same; renames name theirs on lines of their own. */
function pathOf(names: string): string {
  if (names.startsWith('"')) {
    const end = /^"(?:[^"\\]|\\.)*"/.exec(names)?.[0] ?? names;
    return unquote(end).slice(2);
  }
  return names.slice(2, (names.length - 1) / 2);
}

function readHeader(file: FileDiff, line: string): void {
  const rest = (prefix: string): string | undefined =>
    line.startsWith(prefix) ? unquote(line.slice(prefix.length).replace(/\t$/, "")) : undefined;
  if (line.startsWith("new file mode")) file.status = "added";
  else if (line.startsWith("deleted file mode")) file.status = "deleted";
  else if (line.startsWith("Binary files ") || line.startsWith("GIT binary patch")) file.isBinary = true;
  const from = rest("rename from ");
  if (from !== undefined) {
    file.status = "renamed";
    file.oldPath = from;
  }
  file.path = rest("rename to ") ?? pathAfter(rest("+++ ")) ?? pathAfter(rest("--- ")) ?? file.path;
}

const pathAfter = (name: string | undefined): string | undefined =>
  name === undefined || name === "/dev/null" ? undefined : name.slice(2);

/** Git quotes names with special characters as C does, with octal bytes of UTF-8. */
function unquote(name: string): string {
  if (!name.startsWith('"') || !name.endsWith('"')) return name;
  const bytes: number[] = [];
  const encoder = new TextEncoder();
  for (const [piece, octal, escaped] of name.slice(1, -1).matchAll(/\\([0-7]{3})|\\(.)|[^\\]+/g)) {
    if (octal !== undefined) bytes.push(parseInt(octal, 8));
    else if (escaped !== undefined) bytes.push(...encoder.encode(ESCAPES[escaped] ?? escaped));
    else bytes.push(...encoder.encode(piece));
  }
  return new TextDecoder().decode(new Uint8Array(bytes));
}

const ESCAPES: Record<string, string> = { n: "\n", t: "\t", r: "\r", a: "\x07", b: "\b", f: "\f", v: "\v" };

/** One row of a side-by-side view. */
export interface Pair {
  before: DiffLine | undefined;
  after: DiffLine | undefined;
}

/** Puts each run of removed lines beside the run of added lines that follows it. */
export function sideBySide(lines: DiffLine[]): Pair[] {
  const pairs: Pair[] = [];
  let removed: DiffLine[] = [];
  let added: DiffLine[] = [];
  const flush = (): void => {
    for (let row = 0; row < Math.max(removed.length, added.length); row += 1) {
      pairs.push({ before: removed[row], after: added[row] });
    }
    removed = [];
    added = [];
  };
  for (const line of lines) {
    if (line.kind === "removed") {
      if (added.length > 0) flush();
      removed.push(line);
    } else if (line.kind === "added") added.push(line);
    else {
      flush();
      pairs.push({ before: line, after: line });
    }
  }
  flush();
  return pairs;
}
