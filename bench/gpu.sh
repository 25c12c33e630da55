#!/usr/bin/env bash
# Everything that a GPU has to settle, by worth, each part with its own time limit, in ten minutes at most. Prints a table and
# writes gpu.json.
#
#   bench/gpu.sh                  on a machine with a GPU and torch 2.11 for CUDA 13 in its python3
#   bench/gpu.sh --cpu            every part at nano size on the CPU: that the script itself is in order
#   bench/gpu.sh --pack DIR       the built programs, stripped and compressed, into DIR: what such a machine is to be given
#                                 beside a checkout
#
# Programs are looked for in CRESCENDO_BIN (a folder of them, or of a --pack), bench/gpu-pack and target/dist: what is measured is what is shipped.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" bench/gpu.py "$@"
