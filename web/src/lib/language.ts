/** The highlighter's name of a file's language, by its name; empty where there is none. */
export function languageOf(path: string): string {
  const name = path.slice(path.lastIndexOf("/") + 1).toLowerCase();
  if (name === "dockerfile" || name === "containerfile") return "dockerfile";
  if (name === "makefile") return "makefile";
  const extension = name.slice(name.lastIndexOf(".") + 1);
  return BY_EXTENSION[extension] ?? "";
}

const BY_EXTENSION: Record<string, string> = {
  bash: "bash", sh: "bash", zsh: "bash", c: "c", h: "c", cc: "cpp", cpp: "cpp", hpp: "cpp", cs: "csharp", css: "css", scss: "css",
  diff: "diff", patch: "diff", go: "go", cfg: "ini", ini: "ini", toml: "ini", java: "java", cjs: "javascript", js: "javascript",
  jsx: "javascript", mjs: "javascript", json: "json", kt: "kotlin", mk: "makefile", md: "markdown", php: "php", py: "python",
  pyi: "python", rb: "ruby", rs: "rust", sql: "sql", swift: "swift", cts: "typescript", mts: "typescript", ts: "typescript",
  tsx: "typescript", html: "xml", svelte: "xml", svg: "xml", vue: "xml", xml: "xml", yaml: "yaml", yml: "yaml",
};
