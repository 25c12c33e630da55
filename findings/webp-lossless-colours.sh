#!/usr/bin/env bash
# One would guess: a picture saved as lossless WebP has the pixels that it had, as with PNG.
# What happens: only what is seen. Pillow (lossless=True) and OpenCV (its default for WebP, and quality 101) both paint every
#   pixel with alpha 0 black before they encode, and so a trainer that drops alpha, as convert("RGB") and IMREAD_COLOR do, sees
#   the old background in the PNG and black in the WebP made of it. Each library has a switch of its own against it: exact=True,
#   and IMWRITE_WEBP_LOSSLESS_PRESERVE_COLOR.
# Seen with: Pillow 13.0.0, OpenCV 5.0.0 (opencv-python-headless 5.0.0.93).
# Why it matters: cut-outs of subjects are what subject-driven training is fed, and turning a library into WebP to save space
#   changes what the model learns to put behind the subject.
# Documented: as the options exact (Pillow) and PRESERVE_COLOR (OpenCV), not as what "lossless" leaves out.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6)
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
from importlib.metadata import version

import cv2
import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
colours = rng.integers(1, 256, (32, 32, 3), dtype=np.uint8)
alpha = np.zeros((32, 32), np.uint8)
alpha[8:24, 8:24] = 255
subject = alpha > 0
cut_out = np.dstack([colours, alpha])


def by_pillow(**options):
    file = io.BytesIO()
    Image.fromarray(cut_out).save(file, **options)
    return file.getvalue()


def by_opencv(*options):
    return cv2.imencode(".webp", cv2.cvtColor(cut_out, cv2.COLOR_RGBA2BGRA), list(options))[1].tobytes()


def behind(file):
    """What lies behind the subject for a reader that drops alpha; the subject itself has to be untouched for both readers."""
    ours = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    theirs = cv2.cvtColor(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    if not (np.array_equal(ours, theirs) and np.array_equal(ours[subject], colours[subject])):
        return "not lossless"
    if np.array_equal(ours, colours):
        return "as it was"
    return "black" if not ours[~subject].any() else "something else"


preserved = [cv2.IMWRITE_WEBP_LOSSLESS_MODE, cv2.IMWRITE_WEBP_LOSSLESS_PRESERVE_COLOR]
outcomes = {
    "Pillow, PNG": (by_pillow(format="PNG"), "as it was"),
    "Pillow, WebP, lossless=True": (by_pillow(format="WEBP", lossless=True), "black"),
    "Pillow, WebP, lossless=True, exact=True": (by_pillow(format="WEBP", lossless=True, exact=True), "as it was"),
    "OpenCV, WebP, default": (by_opencv(), "black"),
    "OpenCV, WebP, quality 101": (by_opencv(cv2.IMWRITE_WEBP_QUALITY, 101), "black"),
    "OpenCV, WebP, LOSSLESS_PRESERVE_COLOR": (by_opencv(*preserved), "as it was"),
}
print("Pillow", version("pillow"), "and OpenCV", cv2.__version__)
changed = False
for name, (file, wanted) in outcomes.items():
    seen = behind(file)
    print(f"  {name:40} {len(file):5} bytes, behind the subject: {seen}")
    changed = changed or seen != wanted
print("CHANGED" if changed else "as described: lossless WebP loses the colours that alpha hides")
sys.exit(changed)
PY
venv/bin/python finding.py
