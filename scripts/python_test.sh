#!/usr/bin/env bash
# Builds the Python client (python/), installs its wheel and tests it with the real grpcio: tests/python. Arguments go to
# pytest. With CRESCENDO_BIN set to a folder of built binaries, against a real cluster on this machine; without it, only
# what needs none. With `--trackers` as its first argument only what trackers and the Hub are told, in an environment that
# has MLflow, wandb and huggingface_hub, some 1 GB: scripts/track_test.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

script=python-test
. scripts/need.sh

need "python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'" "Python 3.10 or newer" "python3"
need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"
need "command -v openssl" "openssl, for the certificates of a test" "openssl"

# environment FOLDER REQUIREMENTS: a virtual environment with just those.
environment() {
    python_venv "$1" "$2"
    # For an environment that a test makes.
    if [ -d "$1/wheels" ]; then return; fi
    rm -rf "$1/wheels.part"
    "$1/bin/python" -m pip download --quiet --disable-pip-version-check -c "$2" -d "$1/wheels.part" grpcio protobuf PyYAML
    mv "$1/wheels.part" "$1/wheels"
}

if [ "${1:-}" = --trackers ]; then
    shift
    venv=$(deps_folder)/track-venv
    requirements=tests/python/track-requirements.txt
    tests=(tests/python/test_track.py tests/python/test_trackers.py tests/python/test_push.py)
else
    venv=$(deps_folder)/python-venv
    requirements=tests/python/requirements.txt
    tests=(tests/python)
fi
build=$(deps_folder)/python-build-venv
environment "$venv" "$requirements"
# What generates the messages is older than what runs them.
environment "$build" tests/python/build-requirements.txt

# The wheel is built from the source distribution, which thereby is whole.
dist=$(mktemp -d)
trap 'rm -rf "$dist"' EXIT
"$build/bin/python" -m build --no-isolation --outdir "$dist" python >"$dist/log" 2>&1 || { cat "$dist/log"; exit 1; }
# It goes into an environment of this run above what is shared between checkouts.
"$venv/bin/python" -m venv --without-pip "$dist/venv"
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
"$venv/bin/python" -c "$purelib" >"$("$dist/venv/bin/python" -c "$purelib")/shared.pth"
"$dist/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --ignore-installed \
    "$dist"/*.whl

export CRESCENDO_PYTHON_DIST=$dist CRESCENDO_PYTHON_BUILD=$build/bin/python CRESCENDO_PYTHON_TOOLS=$venv
"$dist/venv/bin/python" -m pytest -q -rs -p no:cacheprovider "${tests[@]}" "$@"
