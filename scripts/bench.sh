#!/usr/bin/env bash
# Measures the figures of docs/benchmarks.md on this machine, with what is shipped (profile `dist`), and prints them as a table. What is compared
# runs interleaved, in rounds; the ratios of medians are what to quote.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=target/dist
rounds=${CRESCENDO_BENCH_ROUNDS:-3}
venv=.deps/bench-venv
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

if ! [ -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import torch, webdataset, streaming, PIL' 2>/dev/null; then
    echo "bench: fetching the full PyTorch for the yardstick (about 3 GB, once)" >&2
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy pillow \
        webdataset==1.0.2 mosaicml-streaming==0.13.0
fi

echo "bench: training step" >&2
for _ in $(seq "$rounds"); do
    for references in 1 2; do
        "$venv/bin/python" bench/step.py --references $references >>"$results/step-$references.jsonl"
        for precision in f32 bf16; do
            "$bin/crescendo-workbench" bench step -o json --references $references --precision $precision >>"$results/step-$references.jsonl"
        done
    done
done
echo "bench: all-reduce" >&2
"$bin/collective_bench" >"$results/all-reduce.jsonl"
echo "bench: submits" >&2
CRESCENDO_ETCD=.deps/venv/bin/etcd-server "$bin/submit_bench" >"$results/submit.jsonl"
echo "bench: a controller that begins to lead a million units" >&2
"$bin/load_bench" >"$results/load.jsonl"
echo "bench: pairs from a curator to a rank" >&2
cargo build --quiet --profile dist -p crescendo-curator-node --example serve_bench
"$venv/bin/python" bench/loaders.py target/dist/examples/serve_bench --rounds "$rounds" >"$results/loaders.jsonl"
target/dist/examples/serve_bench >"$results/pairs.jsonl"
echo "bench: recovery of a killed rank, and of a killed leader" >&2
"$bin/recovery_bench" >"$results/recovery.jsonl"
CRESCENDO_ETCD=.deps/venv/bin/etcd-server "$bin/failover_bench" >"$results/failover.jsonl"

python3 bench/table.py "$results"
