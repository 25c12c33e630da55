#!/usr/bin/env bash
# Fetches the demo's pictures into .deps/demo: subject cut-outs and photographs, each with an index.json.
# Running it again does nothing unless something is missing.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/.deps/demo}
python=$root/.deps/venv/bin/python
[ -x "$python" ] || python=python3
script=fetch_demo_data
. "$root/scripts/need.sh"

if [ -f "$out/.complete-1" ]; then exit 0; fi

need "tar --version" "tar" "tar"
need "npm --version" "npm" "npm"
need "$python -m pip --version" "Python's pip" "python3-venv python3-pip"

mkdir -p "$out"
work=$(mktemp -d "$out/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

say "fetching subject pictures (npm packages, 16 MB)"
(cd "$work" && npm pack --silent @lobehub/fluent-emoji-3d@1.1.0 unicode-emoji-json@0.9.0 >/dev/null)
mkdir "$work/pictures" "$work/names"
tar -xzf "$work"/lobehub-fluent-emoji-3d-1.1.0.tgz -C "$work/pictures" --strip-components=1
tar -xzf "$work"/unicode-emoji-json-0.9.0.tgz -C "$work/names" --strip-components=1

say "fetching photographs (scikit-image's wheel, 15 MB)"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
  --dest "$work" scikit-image==0.24.0

"$python" "$root/scripts/build_demo_library.py" --pictures "$work/pictures" --names "$work/names" \
  --wheel "$work"/scikit_image-0.24.0-*.whl --out "$work/built"
for part in subjects photos; do
  rm -rf "${out:?}/$part"
  mv "$work/built/$part" "$out/$part"
done
touch "$out/.complete-1"
say "demo pictures are in $out"
