#!/usr/bin/env bash
# Runs the Python client of examples/python with the real grpcio: tests/python. Arguments go to pytest.
# With CRESCENDO_BIN set to a folder of built binaries, against a real cluster on this machine; without it, only what needs none.
set -euo pipefail
cd "$(dirname "$0")/.."

script=python-test
. scripts/need.sh

need "python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'" "Python 3.11 or newer" "python3"
need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"

need "command -v openssl" "openssl, for the certificates of a test" "openssl"

venv=$(deps_folder)/python-venv
requirements=(examples/python/requirements.txt tests/python/requirements.txt)
if ! cat "${requirements[@]}" | cmp -s - "$venv/requirements.txt"; then
    say "making $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/python/requirements.txt
    cat "${requirements[@]}" >"$venv/requirements.txt"
fi
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/python "$@"
