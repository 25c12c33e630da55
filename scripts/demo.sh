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

# Only what an earlier demo has left makes room for this one.
if [ -n "$(ls -A "$out" 2>/dev/null)" ] && ! [ -d "$out/cluster" ]; then
    echo "demo: error: $out has files that are not a demo's; name another folder in CRESCENDO_DEMO_DIR" >&2
    exit 1
fi
rm -rf "$out"
mkdir -p "$out/cluster"
echo "demo: trains $spec, draws with the result and writes the report; on two idle cores examples/nano-loop.yaml takes 4 to 6 minutes in all, examples/nano.yaml 6 to 9"
"$bin/crescendo" up --curators 2 --dir "$out/cluster" --run "$spec" --result "$out/job.json"
echo "demo: trained after $(since); draws subjects that it has not seen, for the scores and the report: 1 to 2 minutes"
# Two drawings of each held-out subject: more would take longer than training does.
"$bin/crescendo" report --job "$out/job.json" --object-store "$out/cluster/objects" --library-root . --out "$out" --draws 152

cat <<END

LoRA      $(ls -d "$out"/dit_lora.safetensors)
pictures  $out/grid.png
report    $out/report.html
time      $(since)
END
