#!/usr/bin/env bash
# The whole path on this machine: start a cluster on loopback, submit examples/nano-loop.yaml over gRPC, follow it to its end,
# draw with the result and write the report. `make demo` builds and fetches what this needs first.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${CRESCENDO_BIN:-target/release}
spec=${1:-examples/nano-loop.yaml}
out=${CRESCENDO_DEMO_DIR:-.crescendo/demo}
started=$(date +%s)

rm -rf "$out"
mkdir -p "$out"
"$bin/crescendo" up --curators 2 --dir "$out/cluster" --run "$spec" --result "$out/job.json"
"$bin/crescendo" report --job "$out/job.json" --object-store "$out/cluster/objects" --library-root . --out "$out"

elapsed=$(($(date +%s) - started))
cat <<END

LoRA      $(ls -d "$out"/dit_lora.safetensors)
pictures  $out/grid.png
report    $out/report.html
time      $((elapsed / 60)) min $((elapsed % 60)) s
END
