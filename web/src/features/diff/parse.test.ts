import { describe, expect, it } from "vitest";
import { parseDiff, sideBySide } from "./parse";

const DIFF = `diff --git a/src/sum.py b/src/sum.py
index 1..2 100644
--- a/src/sum.py
+++ b/src/sum.py
@@ -1,3 +1,4 @@ def total(items):
 a
-b
--- not a header
+B
+C
+D
@@ -10 +11 @@
-old
\\ No newline at end of file
+new
diff --git a/gone.txt b/gone.txt
deleted file mode 100644
index 1..0
--- a/gone.txt
+++ /dev/null
@@ -1 +0,0 @@
-bye
diff --git a/old name.md b/new name.md
similarity index 100%
rename from old name.md
rename to new name.md
diff --git "a/\\303\\244.txt" "b/\\303\\244.txt"
new file mode 100644
--- /dev/null
+++ "b/\\303\\244.txt"
@@ -0,0 +1 @@
+x
diff --git a/logo.png b/logo.png
new file mode 100644
index 0..1
Binary files /dev/null and b/logo.png differ
`;

describe("a diff", () => {
  const files = parseDiff(DIFF);

  it("names each file and what happened to it", () => {
    expect(files.map((file) => [file.path, file.status, file.additions, file.deletions])).toEqual([
      ["src/sum.py", "modified", 4, 3],
      ["gone.txt", "deleted", 0, 1],
      ["new name.md", "renamed", 0, 0],
      ["ä.txt", "added", 1, 0],
      ["logo.png", "added", 0, 0],
    ]);
    expect(files[2]?.oldPath).toBe("old name.md");
    expect(files[4]?.isBinary).toBe(true);
  });

  it("numbers lines on both sides and takes no line for a header", () => {
    const [first, second] = files[0]?.hunks ?? [];
    expect(first?.section).toBe("def total(items):");
    expect(first?.lines.map((line) => [line.kind, line.text, line.before, line.after])).toEqual([
      ["context", "a", 1, 1],
      ["removed", "b", 2, 0],
      ["removed", "-- not a header", 3, 0],
      ["added", "B", 0, 2],
      ["added", "C", 0, 3],
      ["added", "D", 0, 4],
    ]);
    expect(second?.lines.map((line) => [line.text, line.before, line.after])).toEqual([
      ["old", 10, 0],
      ["new", 0, 11],
    ]);
  });

  it("stands side by side, removed lines beside those that came for them", () => {
    const pairs = sideBySide(files[0]?.hunks[0]?.lines ?? []);
    expect(pairs.map(({ before, after }) => [before?.text, after?.text])).toEqual([
      ["a", "a"],
      ["b", "B"],
      ["-- not a header", "C"],
      [undefined, "D"],
    ]);
  });

  it("of nothing is empty", () => {
    expect(parseDiff("")).toEqual([]);
  });
});
