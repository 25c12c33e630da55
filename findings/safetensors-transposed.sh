#!/usr/bin/env bash
# One would guess: safetensors.numpy saves the array that it is given, or refuses it, as the functions for torch do.
# What happens: since 0.8.0 it writes the memory of the array under the array's shape. A transposed array, one in Fortran order
#   or one with a step comes back with its numbers in other places, and nothing is raised. 0.7.0 and older wrote it right.
#   Beside it, the module writes types that it does not read: bfloat16 only from a file (load() of the same bytes raises
#   KeyError), float8 not at all. That is so in both versions.
# Seen with: safetensors 0.8.0 against 0.7.0, numpy 2.4.6, ml_dtypes 0.6.0.
# Why it matters: turning Linear weights or LoRA factors round with .T is what every converter between namings does. The file
#   has the right names, shapes and size, so that no check but a comparison of values finds it.
# Reported: safetensors/safetensors issue 825 (Fortran order).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
install() {
    if command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python "$folder/venv/bin/python" "$@"
    else
        "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}
not_run() { echo "not run: the packages cannot be installed" >&2; exit 2; }
if command -v uv >/dev/null 2>&1; then uv venv --quiet "$folder/venv"; else python3 -m venv "$folder/venv"; fi || not_run

cd "$folder"
cat >finding.py <<'PY'
import sys

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy as files

wanted = {"right": True, "wrong": False}[sys.argv[1]]
factor = np.arange(6, dtype=np.float32).reshape(2, 3)
arrays = {"transposed": factor.T, "Fortran order": np.asfortranarray(factor), "every second column": factor[:, ::2]}
changed = False

print("safetensors", safetensors.__version__)
for name, array in arrays.items():
    files.save_file({"weight": array}, "lora.safetensors")
    back = [files.load_file("lora.safetensors")["weight"], files.load(files.save({"weight": array}))["weight"]]
    right = [bool(np.array_equal(one, array)) for one in back]
    print(f"  {name}: {array.tolist()} comes back as {back[0].tolist()}")
    changed = changed or right != [wanted, wanted] or any(one.shape != array.shape for one in back)


def outcome(read):
    try:
        return str(read()["weight"].dtype)
    except (KeyError, AttributeError) as error:
        return type(error).__name__


readers = {}
for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    narrow = {"weight": np.array([1.5, -2, 3], dtype)}
    files.save_file(narrow, "narrow.safetensors")
    by_file = outcome(lambda: files.load_file("narrow.safetensors"))
    by_bytes = outcome(lambda: files.load(files.save(narrow)))
    print(f"  {np.dtype(dtype)}, written by save_file() and save(): load_file() gives {by_file}, load() gives {by_bytes}")
    readers[str(np.dtype(dtype))] = (by_file, by_bytes)
changed = changed or readers != {"bfloat16": ("bfloat16", "KeyError"), "float8_e4m3fn": ("AttributeError", "KeyError")}
sys.exit(changed)
PY
changed=0
install safetensors==0.7.0 numpy==2.4.6 ml_dtypes==0.6.0 || not_run
venv/bin/python finding.py right || changed=1
install safetensors==0.8.0 || not_run
venv/bin/python finding.py wrong || changed=1
if [ "$changed" = 0 ]; then echo "as described: 0.8.0 writes what is not in C order with its values in other places"; else echo "CHANGED"; fi
exit "$changed"
