#!/usr/bin/env bash
# Tests what MLflow, Weights & Biases and the Hugging Face Hub are told of a job: a real MLflow server on loopback, real
# files of wandb, and the Hub's own client against a stand-in of its commit API. Arguments go to pytest. With CRESCENDO_BIN
# set to a folder of built binaries, with jobs of a real cluster too.
set -euo pipefail
cd "$(dirname "$0")/.."

CRESCENDO_REQUIRE_TRACKERS=1 exec scripts/python_test.sh --trackers "$@"
