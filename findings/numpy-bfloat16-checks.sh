#!/usr/bin/env bash
# One would guess: an array of ml_dtypes.bfloat16 behaves in numpy like one of float16, with other precision, or raises.
# What happens: numpy does not take it for a floating type, and goes on. nan_to_num() leaves the NaN where it is, nansum() is NaN,
#   sort() stops being sorted at a NaN, "is it floating?" says no. sum() and mean() add up in bfloat16: from 256 on, adding 1
#   changes nothing, so that the mean of 4096 ones is 0.0625. float8_e4m3fn does so from 16 on. save() keeps two bytes a number,
#   and load() gives them back as raw bytes. float16 is right in all of these.
# Seen with: numpy 2.4.6, ml_dtypes 0.6.0.
# Why it matters: the usual checks of a checkpoint (are there NaN, which norm or mean has a layer, did a merge change it) pass or
#   fail for reasons that have nothing to do with the weights.
# Reported: jax-ml/ml_dtypes issues 346 (nan_to_num) and 63 (sums); to be cured in numpy, if at all.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(numpy==2.4.6 ml_dtypes==0.6.0)
install() {
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet "$folder/venv" && uv pip install --quiet --python "$folder/venv/bin/python" "${packages[@]}"
    else
        python3 -m venv "$folder/venv" && "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
    fi
}
install || { echo "not run: the packages cannot be installed" >&2; exit 2; }

cd "$folder"
cat >finding.py <<'PY'
import io
import sys

import ml_dtypes
import numpy as np


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return str(np.load(file).dtype)


def checks(dtype):
    ones = np.ones(4096, dtype)
    holed = np.array([3, np.nan, 1], dtype)
    return {
        "mean of 4096 ones": float(ones.mean()),
        "sum of 4096 ones": float(ones.sum()),
        "nan_to_num leaves NaN": bool(np.isnan(np.nan_to_num(holed)).any()),
        "nansum of 3, NaN, 1": float(np.nansum(holed)),
        "sort of 3, NaN, 1": [float(value) for value in np.sort(holed)],
        "floating, says numpy": bool(np.issubdtype(dtype, np.floating)),
        "dtype after save and load": saved(ones),
    }


nan = float("nan")
expected = {
    np.float16: [1.0, 4096.0, False, 4.0, [1.0, 3.0, nan], True, "float16"],
    ml_dtypes.bfloat16: [0.0625, 256.0, True, nan, [3.0, nan, 1.0], False, "|V2"],
    ml_dtypes.float8_e4m3fn: [0.00390625, 16.0, True, nan, [3.0, nan, 1.0], False, "|V1"],
}
print("numpy", np.__version__, "with ml_dtypes", ml_dtypes.__version__)
columns = {np.dtype(dtype).name: checks(dtype) for dtype in expected}
print(f"  {'':26}" + "".join(f"{name:20}" for name in columns))
for name in columns["float16"]:
    print(f"  {name:26}" + "".join(f"{column[name]!s:20}" for column in columns.values()))
# As text: NaN is not equal to itself.
changed = [str(list(column.values())) for column in columns.values()] != [str(wanted) for wanted in expected.values()]
print("CHANGED" if changed else "as described: bfloat16 and float8 pass through numpy's checks unchecked")
sys.exit(changed)
PY
venv/bin/python finding.py
