#!/usr/bin/env bash
# The whole path on this machine: start a cluster on loopback, submit examples/nano-loop.yaml over gRPC, follow it to its end,
# draw with the result and write the report. `make demo` builds and fetches what this needs first.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${CRESCENDO_BIN:-target/release}
spec=${1:-examples/nano-loop.yaml}
out=${CRESCENDO_DEMO_DIR:-.crescendo/demo}
started=$(date +%s)

since() {
    local elapsed=$(($(date +%s) - started))
    echo "$((elapsed / 60)) min $((elapsed % 60)) s"
}

rm -rf "$out"
mkdir -p "$out"
echo "demo: trains $spec, then draws with the result; on two cores the shipped specs take 4 to 10 minutes"
"$bin/crescendo" up --curators 2 --dir "$out/cluster" --run "$spec" --result "$out/job.json"
echo "demo: trained after $(since); draws subjects that it has not seen, for the scores and the report: 1 to 3 minutes"
# Two drawings of each held-out subject: more would take longer than training does.
"$bin/crescendo" report --job "$out/job.json" --object-store "$out/cluster/objects" --library-root . --out "$out" --draws 152

cat <<END

LoRA      $(ls -d "$out"/dit_lora.safetensors)
pictures  $out/grid.png
report    $out/report.html
time      $(since)
END
