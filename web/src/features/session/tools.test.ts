import { describe, expect, it } from "vitest";
import { describeTool, fileText, plainText } from "./tools";

const line = (tool: string, input: Record<string, unknown>, title = "") => {
  const { verb, subject } = describeTool({ tool, input, title });
  return `${verb} ${subject}`;
};

describe("a tool call", () => {
  it("reads as what it is about, paths from the repository's top", () => {
    expect(line("read", { filePath: "/workspace/repo/src/a.py" })).toBe("Read src/a.py");
    expect(line("bash", { command: "make test" }, "Run the tests")).toBe("Run make test");
    expect(line("grep", { pattern: "def ", path: "src" })).toBe("Search def ");
    expect(line("todowrite", { todos: [{ status: "completed" }, { status: "pending" }] })).toBe("Update the plan 1 of 2 done");
  });

  it("of an unknown tool, or with odd input, goes by its name and title", () => {
    expect(line("jira_search", { id: 7 }, "Look up SHIP-7")).toBe("jira_search Look up SHIP-7");
    expect(line("read", { filePath: 7 }, "something")).toBe("Read something");
    expect(line("todowrite", {})).toBe("Update the plan ");
  });
});

describe("output", () => {
  it("loses a terminal's colours, titles and overwritten lines", () => {
    expect(plainText("\x1b[32mok\x1b[0m \x1b]0;title\x07done\x1b[2K")).toBe("ok done");
    expect(plainText("10%\r50%\r100%\nend\r\n")).toBe("100%\nend\r\n");
  });

  it("of a read file is the file's own text", () => {
    const output = "<path>/workspace/repo/a.py</path>\n<type>file</type>\n<content>\n3: x = 1\n4: \n5:   y\n\n(End of file - total 5 lines)\n</content>";
    expect(fileText(output)).toEqual({ text: "x = 1\n\n  y", firstLine: 3 });
    expect(fileText("a folder\nwith files")).toBeUndefined();
  });
});
