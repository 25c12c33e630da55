// Generates the client from our protos: messages and services that connect-es calls.
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const protos = ["access", "checkpoint", "deletion", "job", "node", "object", "queue", "review", "sample", "view"];
const fetched = here("../../.deps/venv/bin/protoc");
const protoc = process.env.PROTOC ?? (existsSync(fetched) ? fetched : "protoc");
const out = here("../src/gen");

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
execFileSync(
  protoc,
  [
    `--proto_path=${here("../../proto/proto")}`,
    `--plugin=protoc-gen-es=${here("../node_modules/.bin/protoc-gen-es")}`,
    `--es_out=${out}`,
    "--es_opt=target=ts,import_extension=ts",
    ...protos.map((name) => `crescendo/v1/${name}.proto`),
  ],
  { stdio: "inherit" },
);
