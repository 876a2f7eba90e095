import { readdirSync } from "node:fs";
import js from "@eslint/js";
import hooks from "eslint-plugin-react-hooks";
import globals from "globals";
import ts from "typescript-eslint";

/** Imports point down only: app → routes → features → components, lib, api. A feature knows no other feature. */
const LAYERS = ["app", "routes", "features", "components", "lib", "api"];
const MAY_IMPORT = {
  routes: ["features", "components", "lib", "api"],
  features: ["components", "lib", "api"],
  components: ["lib", "api"],
  lib: [],
  api: [],
};

const layerRules = Object.entries(MAY_IMPORT).map(([layer, allowed]) => {
  const forbidden = LAYERS.filter((other) => other !== layer && !allowed.includes(other));
  return {
    files: [`src/${layer}/**/*.{ts,tsx}`],
    rules: {
      "no-restricted-imports": [
        "error",
        {
          patterns: [
            { group: forbidden.map((other) => `@/${other}/**`), message: `${layer} imports only ${allowed.join(", ")}.` },
            { group: ["../../*"], message: "Name other folders by @/." },
            ...(layer === "features" ? [{ group: ["@/features/**"], message: "A feature knows no other feature." }] : []),
          ].filter(({ group }) => group.length > 0),
        },
      ],
    },
  };
});

const unknownFolder = readdirSync(new URL("./src", import.meta.url)).find((name) => !LAYERS.includes(name));
if (unknownFolder) throw new Error(`src/${unknownFolder} is in no layer`);

export default ts.config(
  { ignores: ["node_modules", "coverage", "src/api/schema.gen.ts"] },
  js.configs.recommended,
  ts.configs.strictTypeChecked,
  hooks.configs.flat.recommended,
  {
    languageOptions: {
      globals: globals.browser,
      parserOptions: { projectService: { allowDefaultProject: ["eslint.config.js"] }, tsconfigRootDir: import.meta.dirname },
    },
    rules: {
      "@typescript-eslint/no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "@typescript-eslint/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
    },
  },
  { files: ["public/**/*.js", "eslint.config.js"], extends: [ts.configs.disableTypeChecked], languageOptions: { sourceType: "module" } },
  ...layerRules,
);
