#!/usr/bin/env bash
# What takes longer than a change should wait for: the tests that compute, with the kernels of a processor that has no more
# than AVX2; chaos; trackers; ComfyUI, if COMFYUI names a checkout of it; the simulated cluster; and bench/gpu.sh on the CPU.
# The outcome goes to docs/nightly.json: commit, date, processor, a line a part.
set -uo pipefail
cd "$(dirname "$0")/.."

# Schedules of the simulated cluster; 10,000 take some hours of one core.
SEEDS=${SEEDS:-10000}
# Schedules of queues, tenants, classes and trainers, which are decisions alone: 100,000 take a quarter of an hour.
SCHEDULES=${SCHEDULES:-100000}
results=$(mktemp)
trap 'rm -f "$results"' EXIT
failed=0

# Writes down what there is so far: a run that is cut short leaves the parts that it did.
record() {
    python3 - "$results" <<'END'
import datetime, json, pathlib, subprocess, sys
run = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
flags = next((set(line.split(":", 1)[1].split()) for line in open("/proc/cpuinfo") if line.startswith("flags")), set())
kinds = [kind for kind in ["avx2", "avx512f", "avx512_bf16", "amx_bf16"] if kind in flags]
names = ["name", "status", "seconds", "last_line"]
record = {
    "commit": run("git", "rev-parse", "HEAD"),
    "changed_since": bool(run("git", "status", "--porcelain", "--untracked-files=no", ":!docs/nightly.json")),
    "date": datetime.date.today().isoformat(),
    "processor": f"{model} ({', '.join(kinds)})",
    "parts": [dict(zip(names, line.rstrip("\n").split("\t"))) for line in open(sys.argv[1])],
}
for part in record["parts"]:
    part["seconds"] = int(part["seconds"])
pathlib.Path("docs/nightly.json").write_text(json.dumps(record, indent=2) + "\n")
END
}

# part NAME COMMAND...: runs it, keeps its last line that has a count, and how long it took.
part() {
    local name=$1 log status=ok
    shift
    log=$(mktemp)
    printf 'nightly: %s\n' "$name"
    local started=$SECONDS
    "$@" >"$log" 2>&1 || { status=failed; failed=1; tail -n 40 "$log"; }
    local last
    last=$(grep -E 'Summary|tests run:|[0-9]+ passed|failover_seconds|schedules from|gpu:|test result:' "$log" | tail -n 1 | sed 's/\x1b\[[0-9;]*m//g; s/^ *//')
    printf '%s\t%s\t%d\t%s\n' "$name" "$status" $((SECONDS - started)) "$last" >>"$results"
    rm -f "$log"
    record
}

# One set of features for all of it: naming packages (`-p`) would build most crates again with others.
cargo build --workspace --bins --tests || exit 1
programs="${CARGO_TARGET_DIR:-target}/debug"
part "tests that compute, kernels of AVX2" env MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
    CRESCENDO_REQUIRE_ETCD=1 CRESCENDO_REQUIRE_S3=1 CRESCENDO_REQUIRE_MOUNTS=1 \
    cargo nextest run --no-fail-fast --workspace -E 'package(crescendo-model) + package(crescendo-collective)
    + package(crescendo-trainer-node) + package(crescendo-curator-node) + package(crescendo-workbench) + package(crescendo-tests)
    + binary(full_disk)'
part "tests that compute, kernels that every processor has" env MKL_CBWR=COMPATIBLE \
    cargo nextest run --no-fail-fast --workspace -E 'package(crescendo-model) + package(crescendo-workbench)'
part "chaos" "$programs/chaos"
part "bench/gpu.sh --cpu" env CRESCENDO_BIN="$programs" PYTHON="$PWD/.deps/venv/bin/python" \
    bench/gpu.sh --cpu --out target/gpu-cpu.json
part "trackers and the Hub, with their own packages" env CRESCENDO_BIN="$programs" scripts/track_test.sh
# Where there is a checkout of it.
[ -z "${COMFYUI:-}" ] || part "LoRAs and workflows in ComfyUI" env CRESCENDO_BIN="$programs" scripts/comfyui_test.sh
part "upgrade and rollback with an earlier version" make upgrade-test
part "$SCHEDULES schedules of queues" env PROPTEST_CASES="$SCHEDULES" \
    cargo test --profile simulation -p crescendo-core --test queues jobs_of_all_queues
part "$SEEDS schedules of the simulated cluster" make simulate SEEDS="$SEEDS"

cat docs/nightly.json
exit "$failed"
