#!/usr/bin/env bash
# One would guess: load_dataset("webdataset") gives what is in the tars, or says that it cannot.
# What happens: the first five samples of the first tar decide what exists. A picture, or a key of the JSON, that comes later
#   for the first time is left out of every sample. A number that was whole in all five makes that field an integer, and later
#   fractions are cut off: 0.75 is read as 0. No error and no warning, streaming or not. The package webdataset reads all of it
#   from the same tars. (Loading is refused only if the files of those five differ among themselves.)
# Seen with: datasets 5.2.0, webdataset 1.0.2.
# Why it matters: pairs with a varying number of reference pictures lose the further ones, and scores that begin with 0 or 1
#   become 0 or 1 for a whole set, which then is filtered by them.
# Reported in part: huggingface/datasets issues 7055 (refused) and 7549 (null in the first five); the cut-off fractions not
#   that we found.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(datasets==5.2.0 webdataset==1.0.2 pillow==13.0.0 numpy==2.4.6 pyarrow==26.0.1)
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
import json
import os
import sys
import tarfile
from importlib.metadata import version

os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=os.path.abspath("home"), HF_DATASETS_CACHE=os.path.abspath("cache"))

import webdataset
from datasets import disable_progress_bars, load_dataset
from PIL import Image

disable_progress_bars()
file = io.BytesIO()
Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG")
picture = file.getvalue()


def facts(number):
    if number < 5:
        return {"prompt": "a cup", "score": 1}
    return {"prompt": "a cup", "score": 0.75, "judge": "second"}


with tarfile.open("pairs.tar", "w") as tar:
    for number in range(7):
        members = {"target.png": picture, "ref0.png": picture, "json": json.dumps(facts(number)).encode()}
        if number >= 5:
            members["ref1.png"] = picture
        for suffix, content in members.items():
            entry = tarfile.TarInfo(f"{number:06}.{suffix}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

print("datasets", version("datasets"), "and webdataset", version("webdataset"))
print("  the tar: samples 0 to 4 have ref0.png and score 1; samples 5 and 6 also ref1.png, score 0.75 and the key judge")


def last_of(samples, decode):
    last = list(samples)[-1]
    pictures = sorted(name for name in last if name.endswith(".png"))
    return pictures, decode(last["json"])


everything = (["ref0.png", "ref1.png", "target.png"], facts(6))
cut = (["ref0.png", "target.png"], {"prompt": "a cup", "score": 0})
changed = False
readers = {
    "webdataset": (last_of(webdataset.WebDataset("pairs.tar", shardshuffle=False), json.loads), everything),
}
for streaming in (False, True):
    samples = load_dataset("webdataset", data_files="pairs.tar", split="train", streaming=streaming)
    readers[f"datasets, streaming={streaming}"] = (last_of(samples, dict), cut)
for name, (seen, wanted) in readers.items():
    print(f"  {name:25} sample 6: {seen[0]} {seen[1]}")
    changed = changed or seen != wanted
print("CHANGED" if changed else "as described: what the first five samples lack is lost, fractions are cut off")
sys.exit(changed)
PY
venv/bin/python finding.py
