"""Reads pair shards with webdataset and with mosaicml-streaming, decodes the pictures into tensors, and prints pairs per
second and per second of processor time: a line of JSON a round. One process, no workers, so that it is a figure per core.

    python bench/loaders.py SHARDS [--rounds 3]

SHARDS is the folder of a stage's pairs (`jobs/<job>/<stage>/pairs`), as `serve_bench` leaves it with SERVE_BENCH_KEEP. For
mosaicml-streaming the same picture files are first written in its own format, which is not timed.
"""

import argparse
import io
import json
import random
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import numpy
import torch
from PIL import Image

torch.set_num_threads(1)
PARTS = ("target.png", "ref0.png")


def tensor(png):
    """[3, height, width] in [-1, 1], as the curator's own codec begins."""
    pixels = numpy.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div_(127.5).sub_(1.0)


def webdataset(shards):
    import webdataset as wds

    data = wds.WebDataset([str(path) for path in shards], shardshuffle=False, empty_check=False)
    for sample in data:
        yield [tensor(sample[part]) for part in PARTS], json.loads(sample["json"])["prompt"]


def write_mds(shards, folder):
    from streaming import MDSWriter

    columns = {"target": "bytes", "reference": "bytes", "prompt": "str"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for path in shards:
            with tarfile.open(path) as tar:
                sample = {}
                for member in tar:
                    suffix = member.name.split(".", 1)[1]
                    sample[suffix] = tar.extractfile(member).read()
                    if suffix == "json":
                        prompt = json.loads(sample["json"])["prompt"]
                        writer.write({"target": sample["target.png"], "reference": sample["ref0.png"], "prompt": prompt})
                        sample = {}


def streaming(data, order):
    for index in order:
        sample = data[index]
        yield [tensor(sample["target"]), tensor(sample["reference"])], sample["prompt"]


def timed(loader, order, pairs):
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    count = sum(1 for _ in pairs)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({
        "loader": loader, "order": order, "pairs": count, "pairs_per_sec": round(count / seconds),
        "pairs_per_cpu_sec": round(count / processor),
    }), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shards = sorted(arguments.shards.glob("*.tar"))
    with tempfile.TemporaryDirectory() as folder:
        from streaming import StreamingDataset

        write_mds(shards, folder)
        data = StreamingDataset(local=folder, shuffle=False, batch_size=16)
        shuffled = list(range(len(data)))
        random.Random(0).shuffle(shuffled)
        for _ in range(arguments.rounds):
            timed("webdataset", "in order", webdataset(shards))
            timed("mosaicml-streaming", "in order", streaming(data, range(len(data))))
            timed("mosaicml-streaming", "shuffled", streaming(data, shuffled))


if __name__ == "__main__":
    main()
