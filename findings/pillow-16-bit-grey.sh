#!/usr/bin/env bash
# One would guess: convert("RGB") makes of a PNG with 16 bits what it makes of the same picture with 8: of grey as of colour.
# What happens: of colour Pillow keeps the upper byte while it reads the file. Grey it reads whole, and convert("RGB") or ("L") then
#   cuts at 255: all but the darkest 256th of the range is white. No warning, and saved as a JPEG it stays so. OpenCV (IMREAD_COLOR)
#   takes the upper byte of both.
# Seen with: Pillow 13.0.0, OpenCV 5.0.0 (opencv-python-headless 5.0.0.93).
# Why it matters: every loader of training pictures ends in convert("RGB"). Depth maps, scans and renders in grey, with 16 bits as
#   their tools write them, become white references, and the pair still counts.
# Reported: python-pillow/Pillow issues 2574 and 3011; open since 2018.
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
import struct
import sys
import zlib
from importlib.metadata import version

import cv2
import numpy as np
from PIL import Image

VALUES = np.array([[0, 100, 255, 256, 4096, 32768, 65535]], np.uint16)


def png(values):
    """A PNG of 16 bits: grey for two axes, colour for three. Written by hand, since Pillow writes no colour of that kind."""
    colour = 2 if values.ndim == 3 else 0
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


print("Pillow", version("pillow"), "OpenCV", cv2.__version__)
print("values      ", VALUES[0].tolist())
seen = {}
for kind, values in (("grey", VALUES), ("colour", np.dstack([VALUES] * 3))):
    file = png(values)
    image = Image.open(io.BytesIO(file))
    seen["Pillow", kind] = np.asarray(image.convert("RGB"))[0, :, 0].tolist()
    seen["OpenCV", kind] = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[0, :, 0].tolist()
    for library in ("Pillow", "OpenCV"):
        print(f"{library} {kind:6}", seen[library, kind])
upper = (VALUES[0] >> 8).tolist()
clipped = np.minimum(VALUES[0], 255).tolist()
expected = seen["Pillow", "grey"] == clipped and all(seen[which] == upper for which in seen if which != ("Pillow", "grey"))
print("as described" if expected else "this has changed")
sys.exit(0 if expected else 1)
PY
"$folder/venv/bin/python" finding.py
