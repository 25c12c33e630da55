// Builds the unit tests for Node, and runs them.
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "vite";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const names = readdirSync(here("../test/unit")).filter((name) => name.endsWith(".test.ts"));
const out = here("../build/unit");
await build({
  root: here(".."),
  logLevel: "warn",
  ssr: { noExternal: true },
  build: {
    ssr: true,
    outDir: out,
    emptyOutDir: true,
    rollupOptions: { input: Object.fromEntries(names.map((name) => [name.replace(/\.ts$/, ""), here(`../test/unit/${name}`)])) },
  },
});
const built = readdirSync(out).filter((name) => /\.test\.m?js$/.test(name));
const { status } = spawnSync(process.execPath, ["--test", ...built.map((name) => `${out}/${name}`)], { stdio: "inherit" });
process.exit(status ?? 1);
