#!/usr/bin/env bash
# One would guess: the picture that a function returns to datasets' map is the picture that is stored.
# What happens: a picture that was opened from a file and then changed in place (drawn on, pasted into, thumbnail()) is stored
#   as the path of that file. The change is lost without a word; a copy() of it would have been stored. A JPEG that came as
#   bytes (a tar, a parquet file) is encoded again at Pillow's quality of 75 by every pass that returns it, changed or not.
# Seen with: datasets 5.2.0, Pillow 13.0.0.
# Why it matters: masked, cropped-in-place or downscaled training pictures are silently the originals, and every map over a
#   JPEG set costs detail that the trainer then learns not to draw.
# Documented: not that we found. It follows from how pictures are encoded: a file name wins over pixels, a known format over PNG.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(datasets==5.2.0 pillow==13.0.0 numpy==2.4.6 pyarrow==26.0.1)
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
import os
import sys
from importlib.metadata import version

os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=os.path.abspath("home"), HF_DATASETS_CACHE=os.path.abspath("cache"))

import numpy as np
from datasets import Dataset, Features, Image, disable_progress_bars
from PIL import Image as Pillow
from PIL import ImageDraw

disable_progress_bars()
rng = np.random.default_rng(0)
noise = Pillow.fromarray(rng.integers(0, 200, (64, 64, 3), dtype=np.uint8))
noise.save("subject.png")
corner = noise.getpixel((5, 5))
red = (255, 0, 0)


def masked(row):
    ImageDraw.Draw(row["image"]).rectangle((0, 0, 63, 63), fill=red)
    return row


def masked_copy(row):
    return {"image": masked(row)["image"].copy()}


def smaller(row):
    row["image"].thumbnail((16, 16))
    return row


def untouched(row):
    return {"image": row["image"]}


def stored(dataset):
    return dataset.cast_column("image", Image(decode=False))[0]["image"]["bytes"]


def difference(a, b):
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


print("datasets", version("datasets"), "with Pillow", version("pillow"))
files = Dataset.from_dict({"image": ["subject.png"]}).cast_column("image", Image())
painted = files.map(masked)[0]["image"].getpixel((5, 5))
copied = files.map(masked_copy)[0]["image"].getpixel((5, 5))
size = files.map(smaller)[0]["image"].size
print(f"  opened from a file, painted red in place: pixel {painted} (it was {corner})")
print(f"  the same, and copy() of it returned:      pixel {copied}")
print(f"  opened from a file, thumbnail((16, 16)):  size {size}")

file = io.BytesIO()
noise.save(file, "JPEG", quality=97, subsampling=0)
rows = {"image": [{"bytes": file.getvalue(), "path": None}]}
jpeg = Dataset.from_dict(rows, features=Features({"image": Image()}))
once = jpeg.map(untouched)
length, passed_length = len(stored(jpeg)), len(stored(once))
quality_75 = io.BytesIO()
jpeg[0]["image"].save(quality_75, "JPEG", quality=75)
off = difference(jpeg[0]["image"], once[0]["image"])
print(f"  JPEG given as bytes, returned untouched:  {length} bytes become {passed_length}, pixels differ by up to {off}")
lossy = passed_length < length / 2 and off > 30 and stored(once) == quality_75.getvalue()
lost = painted == corner and size == (64, 64) and copied == red
print("as described: edits in place are lost, JPEGs recompressed" if lost and lossy else "CHANGED")
sys.exit(not (lost and lossy))
PY
venv/bin/python finding.py
