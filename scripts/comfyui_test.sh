#!/usr/bin/env bash
# Has ComfyUI itself load the LoRAs that are written for it, and run the workflows of `crescendo-workflow`: the scripts of
# tests/peers that want its code. COMFYUI names a checkout of it; CRESCENDO_BIN the folder of built binaries.
set -euo pipefail
cd "$(dirname "$0")/.."

script=comfyui-test
. scripts/need.sh

checkout=${COMFYUI:-}
[ -f "$checkout/nodes.py" ] || fail "COMFYUI does not name a checkout of github.com/comfyanonymous/ComfyUI"
workbench=${CRESCENDO_BIN:-${CARGO_TARGET_DIR:-target}/debug}/crescendo-workbench
[ -x "$workbench" ] || fail "there is no $workbench: cargo build -p crescendo-workbench, or set CRESCENDO_BIN"
need "python3 -c 'import venv, ensurepip'" "Python's venv module" "python3-venv"
venv=$(deps_folder)/comfyui-venv
# Torch with its libraries: 5 GB.
python_venv "$venv" tests/peers/requirements-checkouts.txt
"$venv/bin/python" tests/peers/read_in_comfyui.py "$checkout" "$workbench"
"$venv/bin/python" tests/peers/workflow_in_comfyui.py "$checkout" "$workbench"
say "2 passed, 0 failed"
