#!/usr/bin/env bash
# Runs every fuzz target for a while, two at a time: scripts/fuzz.sh [SECONDS] [TARGET...]. Inputs that were found grow
# below fuzz/corpus (ignored by git), on top of fuzz/seeds. A finding ends its target with an error and lies in
# fuzz/artifacts; it becomes a fixed bug with a plain test.
set -euo pipefail
cd "$(dirname "$0")/.."

script=fuzz
. scripts/need.sh

seconds=${1:-600}
shift || true
targets=("$@")
if [ ${#targets[@]} = 0 ]; then targets=(spec weights fixture shard tar picture judge reply labels library); fi

rustup toolchain list | grep -q '^nightly' || fail "fuzzing needs a nightly compiler; run: rustup toolchain install nightly --profile minimal"
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked --quiet --root "${TOOLS:-.deps/cargo}" cargo-fuzz

cargo +nightly fuzz build
built=${CARGO_TARGET_DIR:-fuzz/target}/x86_64-unknown-linux-gnu/release

run() {
    local target=$1 limit_bytes=65536 dictionary=()
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    if [ -f "fuzz/dictionaries/$target" ]; then dictionary=("-dict=fuzz/dictionaries/$target"); fi
    # libtorch is not instrumented, and what it keeps until the end is no leak.
    ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:alloc_dealloc_mismatch=0 nice -n 10 \
        "$built/$target" "fuzz/corpus/$target" "fuzz/seeds/$target" "${dictionary[@]}" \
        -artifact_prefix="fuzz/artifacts/$target/" -max_total_time="$seconds" -max_len=$limit_bytes \
        -timeout=20 -rss_limit_mb=4096 -print_final_stats=1 >"fuzz/artifacts/$target.log" 2>&1 &&
        say "$target: $(grep -o 'stat::number_of_executed_units: *[0-9]*' "fuzz/artifacts/$target.log" | grep -o '[0-9]*$') inputs, no finding" ||
        { say "$target: a finding, see fuzz/artifacts/$target.log and fuzz/artifacts/$target/"; return 1; }
}
export -f run say
export seconds built script
printf '%s\n' "${targets[@]}" | xargs -P 2 -I {} bash -c 'run {}'
