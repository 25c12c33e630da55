#!/usr/bin/env bash
# Builds the documentation as a site into target/site: scripts/docs.sh. With `test` as its first argument it checks the
# pages and the site instead (tests/docs); further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

script=docs
. scripts/need.sh

need "python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'" "Python 3.10 or newer" "python3"
need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"

venv=${CRESCENDO_DOCS_VENV:-$(deps_folder)/docs-venv}
requirements=tests/docs/requirements.txt
python_venv "$venv" "$requirements"
if [ "${1:-}" = test ]; then
    shift
    exec "$venv/bin/python" -m pytest -q -p no:cacheprovider tests/docs "$@"
fi
"$venv/bin/mkdocs" build --strict --quiet
say "built target/site/index.html"
