#!/usr/bin/env bash
# Installs the chart on a real Kubernetes API, with real Helm: tests/kube. Arguments go to pytest.
# The first run builds Kubernetes, etcd and Helm from the Go modules in tests/kube/modules, which takes a
# quarter of an hour on two idle cores; they are kept in CRESCENDO_KUBE_CACHE (~/.cache/crescendo-kube) until a module changes.
set -euo pipefail
cd "$(dirname "$0")/.."

script=kube-test
. scripts/need.sh

need "python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'" "Python 3.10 or newer" "python3"
need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"
need "command -v openssl" "openssl, for the key of service accounts" "openssl"
command -v go >/dev/null || fail "Go is missing, which builds Kubernetes, etcd and Helm: install 1.26 or newer (https://go.dev/dl)"
go_minor=$(go env GOVERSION | sed -E 's/^go1\.([0-9]+).*/\1/')
[ "$go_minor" -ge 26 ] || fail "Go is $(go env GOVERSION), and tests/kube/modules want 1.26 or newer (https://go.dev/dl)"

# The programs of the cases whose pods run; those cases are skipped without, and without root.
built=$(realpath -m "${CARGO_TARGET_DIR:-target}/debug")
if [ -z "${CRESCENDO_BIN:-}" ] && [ -x "$built/crescendo-controller" ]; then export CRESCENDO_BIN=$built; fi
[ -n "${CRESCENDO_BIN:-}" ] || say "no built programs (cargo build --workspace --bins): cases whose pods run are skipped"
[ "$(id -u)" = 0 ] || say "not root: cases whose pods run are skipped"

venv=$(deps_folder)/chart-venv
python_venv "$venv" tests/chart/requirements.txt
"$venv/bin/python" tests/kube/programs.py
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider --durations=10 tests/kube "$@"
