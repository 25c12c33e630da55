"""A whole job at nano size on one device: a curator draws pairs while it serves those that it has, a rank trains on them over a
real controller and agent, and the result is loaded and drawn with. Prints one JSON line.

  CRESCENDO_BIN=target/release python bench/gpu_job.py [--device cuda]
"""

import argparse
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUBJECTS = 24
PAIRS = 96
STEPS = 60

SPEC = """apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: gpu-job}}
spec:
  model: {{preset: nano, precision: auto, weights: assets/nano/base.safetensors}}
  resources: {{gpus: 1}}
  seed: 7
  stages:
    - name: stage-1
      references: 1
      data:
        source: generate
        subjects: {subjects}
        nameShare: 0
        draw: {{steps: 4}}
        pairs: {pairs}
        minPairs: 16
        unitSize: 16
        filter: {{similarity: {{min: 0.2, max: 0.99, encoder: assets/nano/dinov2-nano.safetensors}}}}
      train: {{adapter: {{rank: 16}}, steps: {steps}, globalBatch: 8, learningRate: 1e-3}}
  checkpoints: {{every: 20, keepLast: 2}}
"""


def png(path, side, color):
    """A disc on nothing, RGBA."""
    rows = bytearray()
    for y in range(side):
        rows.append(0)
        for x in range(side):
            inside = (x - side / 2) ** 2 + (y - side / 2) ** 2 < (0.42 * side) ** 2
            rows.extend((*color, 255) if inside else (0, 0, 0, 0))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows))) + chunk(b"IEND", b""))


def subjects(folder):
    folder.mkdir()
    colors = [(200, 40, 40), (40, 160, 60), (50, 70, 200), (210, 180, 40)]
    index = []
    for n in range(SUBJECTS):
        png(folder / f"{n}.png", 48, colors[n % len(colors)])
        index.append({"id": f"s{n}", "name": f"disc {n}", "group": "discs", "file": f"{n}.png", "words": f"disc {n}"})
    (folder / "index.json").write_text(json.dumps(index))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--limit", type=int, default=140, metavar="S", help="seconds that the job may take [default: 140]")
    arguments = parser.parse_args()
    device = arguments.device
    binaries = pathlib.Path(os.environ.get("CRESCENDO_BIN", ROOT / "target/release"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        subjects(folder / "subjects")
        spec = folder / "job.yaml"
        spec.write_text(SPEC.format(subjects=folder / "subjects", pairs=PAIRS, steps=STEPS))
        started = time.monotonic()
        up = [binaries / "crescendo", "up", "--curators", "1", "--trainers", "1", "--device", device, "--dir", folder / "cluster"]
        run = subprocess.run([*up, "--run", spec, "--result", folder / "job.json"], cwd=ROOT, capture_output=True, text=True, timeout=arguments.limit)
        if run.returncode != 0:
            sys.stderr.write(run.stdout[-2000:] + run.stderr[-2000:])
            for log in sorted((folder / "cluster").rglob("*.log")):
                sys.stderr.write(f"\n{log.name}\n" + log.read_text(errors="replace")[-1500:])
            sys.exit("gpu_job: error: the job did not end well")
        seconds = time.monotonic() - started
        job = json.loads((folder / "job.json").read_text())
        loras = sorted((folder / "cluster/objects").rglob("dit_lora.safetensors"))
        picture = folder / "drawn.png"
        draw = [binaries / "crescendo-workbench", "generate", "--preset", "nano", "--device", device, "--weights", "assets/nano/base.safetensors"]
        draw += ["--lora", loras[-1], "--prompt", "the subject on the beach", "--reference", folder / "subjects/0.png", "--steps", "4", "--size", "32x32", "--out", picture]
        subprocess.run(draw, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
        stage = job["stages"][0]
        figures = {"device": device, "seconds": seconds, "pairs": stage.get("pairsCommitted"), "steps": STEPS, "lora_bytes": loras[-1].stat().st_size}
        print(json.dumps({**figures, "picture_bytes": picture.stat().st_size}))


if __name__ == "__main__":
    main()
