#!/usr/bin/env bash
# One would guess: what webdataset's TarWriter has written under a key, its reader gives back under that key.
# What happens: the writer takes any key, and the reader cuts the name at the first dot after the last slash. Pictures named by
#   their settings (cup_cfg3.5_s0, cup_cfg3.5_s1) come back as one sample "cup_cfg3" that has fields like "5_s0.png": samples are
#   merged, no field is named png any more, nothing is raised. Endings are turned to lower case, keys are not. Members of a key
#   that do not lie side by side (a tar whose pictures come first) become one incomplete sample each, which is no error either.
# Seen with: webdataset 1.0.2.
# Why it matters: guidance, learning rate and version numbers have dots, and file names are made of them. A loader that skips
#   what it cannot use then trains on a part of the data, or on nothing.
# Reported: webdataset/webdataset issues 237 and 288 (meant so by the authors), 407 (side by side).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(webdataset==1.0.2 numpy==2.4.6)
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
import tarfile
from importlib.metadata import version

import webdataset


def read(path):
    samples = webdataset.WebDataset(path, shardshuffle=False)
    return [(sample["__key__"], sorted(name for name in sample if not name.startswith("__"))) for sample in samples]


with webdataset.TarWriter("dotted.tar") as writer:
    for key in ("cup_cfg3.5_s0", "cup_cfg3.5_s1", "run-1.0/hat_s0"):
        writer.write({"__key__": key, "png": b"picture", "txt": "a caption"})
with webdataset.TarWriter("upper.tar") as writer:
    writer.write({"__key__": "CUP", "PNG": b"picture", "txt": "a caption"})
with tarfile.open("apart.tar", "w") as tar:
    for name in ("0.png", "1.png", "0.txt", "1.txt"):
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())

expected = {
    "dotted.tar": [
        ("cup_cfg3", ["5_s0.png", "5_s0.txt", "5_s1.png", "5_s1.txt"]),
        ("run-1.0/hat_s0", ["png", "txt"]),
    ],
    "upper.tar": [("CUP", ["png", "txt"])],
    "apart.tar": [("0", ["png"]), ("1", ["png"]), ("0", ["txt"]), ("1", ["txt"])],
}
print("webdataset", version("webdataset"))
changed = False
for path, wanted in expected.items():
    with tarfile.open(path) as tar:
        print(f"  {path} has {tar.getnames()}")
    seen = read(path)
    for key, fields in seen:
        print(f"    sample {key!r}: {fields}")
    changed = changed or seen != wanted
print("CHANGED" if changed else "as described: keys with a dot are not read back, and samples are merged")
sys.exit(changed)
PY
venv/bin/python finding.py
