#!/usr/bin/env bash
# Checks the chart, its alerts and dashboards and the image files, without a cluster: tests/chart. Arguments go to pytest.
# With CRESCENDO_BIN set to a folder of built binaries, the dashboards' queries are also sent to a Prometheus that scrapes a
# running cluster; without it that test is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

script=chart-test
. scripts/need.sh

need "python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'" "Python 3.10 or newer" "python3"
need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"
need "command -v promtool && command -v prometheus" "Prometheus with promtool" "prometheus"

venv=$(deps_folder)/chart-venv
python_venv "$venv" tests/chart/requirements.txt
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/chart "$@"
