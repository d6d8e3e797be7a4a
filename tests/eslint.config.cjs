/** What ESLint asks of the project's JavaScript: its recommended rules, Python's budget, and few of our own. */
const js = require("@eslint/js");
const globals = require("globals");

const TESTS = ["**/tests/**", "tests/**"];

module.exports = [
  js.configs.recommended,
  {
    linterOptions: {reportUnusedDisableDirectives: "error", reportUnusedInlineConfigs: "error"},
    languageOptions: {ecmaVersion: 2024, sourceType: "module", globals: globals["shared-node-browser"]},
    rules: {
      "array-callback-return": "error",
      "consistent-return": "error",
      "curly": ["error", "multi-line"],
      "default-case-last": "error",
      "eqeqeq": "error",
      "max-len": ["error", {code: 120}],
      "max-lines": ["error", 385],
      "no-constructor-return": "error",
      "no-duplicate-imports": "error",
      "no-else-return": "error",
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-lonely-if": "error",
      "no-new-func": "error",
      "no-self-compare": "error",
      "no-template-curly-in-string": "error",
      "no-throw-literal": "error",
      "no-unneeded-ternary": "error",
      "no-unused-vars": ["error", {varsIgnorePattern: "^_", ignoreRestSiblings: true}],
      "no-useless-return": "error",
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-arrow-callback": "error",
      "prefer-const": "error",
      "prefer-object-spread": "error",
      "prefer-promise-reject-errors": "error",
      "prefer-template": "error",
    },
  },
  {ignores: TESTS, rules: {"max-lines-per-function": ["error", 40]}},
  {files: TESTS, languageOptions: {globals: globals.node}},
  {files: ["**/playground/static/*"], languageOptions: {globals: globals.browser}},
  {files: ["**/*.cjs"], languageOptions: {sourceType: "commonjs"}},
];
