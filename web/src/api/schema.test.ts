// @vitest-environment node
import { readFileSync } from "node:fs";
import openapiTS, { astToString } from "openapi-typescript";
import { expect, it } from "vitest";

it("the generated types are those of openapi.json: run `npm run generate`", async () => {
  const options = { alphabetize: true, defaultNonNullable: false };
  const written = astToString(await openapiTS(new URL("../../../openapi.json", import.meta.url), options));
  const kept = readFileSync("src/api/schema.gen.ts", "utf8");
  expect(kept.slice(kept.indexOf("export interface paths")).trim()).toBe(written.trim());
});
