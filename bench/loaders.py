"""Serves pairs of pictures with a curator and reads the same shards with webdataset and with mosaicml-streaming, in turns, and
prints a line of JSON a measurement: pairs per second of processor time, so that it is a figure per core. The last line has the
medians and what the curator's are of the others'.

    python bench/loaders.py SERVE_BENCH [--pairs 768] [--panel 256] [--rounds 3]

SERVE_BENCH is the built example `serve_bench` of crescendo-curator-node. The curator's figure is of its process alone, from the
shards to latents, text features and the socket, with a cache too small to matter; "with the rank" adds what the other side of
the socket spends until it has tensors. The loaders run in one process without workers: shards to tensors in [-1, 1]. For mosaicml-streaming the same
picture files are first written in its own format, which is not timed.
"""

import argparse
import io
import json
import os
import random
import resource
import statistics
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import numpy
import torch
from PIL import Image

torch.set_num_threads(1)
PARTS = ("target.png", "ref0.png")
CURATOR = "crescendo curator"
BOTH = "crescendo curator with the rank"


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
    return {
        "loader": loader, "order": order, "pairs": count, "pairs_per_sec": round(count / seconds),
        "pairs_per_cpu_sec": round(count / processor),
    }


def curator(arguments, objects):
    """One round of the curator, whose shards stay in `objects`."""
    environment = os.environ | {"SERVE_BENCH_KEEP": str(objects), "CRESCENDO_SHARD_CACHE_MIB": "4"}
    command = [arguments.serve_bench, str(arguments.pairs), "1", str(arguments.panel), "1"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for one in found:
        if "order" in one:
            yield one | {"loader": CURATOR}
            yield one | {"loader": BOTH, "pairs_per_cpu_sec": one["pairs_per_cpu_sec_of_both"]}


def turn(arguments):
    from streaming import StreamingDataset

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        yield from curator(arguments, folder / "objects")
        shards = sorted((folder / "objects/jobs/test-1/stage-1/pairs").glob("*.tar"))
        write_mds(shards, folder / "mds")
        data = StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=16)
        shuffled = list(range(len(data)))
        random.Random(0).shuffle(shuffled)
        yield timed("webdataset", "in order", webdataset(shards))
        yield timed("mosaicml-streaming", "in order", streaming(data, range(len(data))))
        yield timed("mosaicml-streaming", "shuffled", streaming(data, shuffled))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("serve_bench")
    parser.add_argument("--pairs", type=int, default=768)
    parser.add_argument("--panel", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rates = {}
    for _ in range(arguments.rounds):
        for one in turn(arguments):
            print(json.dumps(one), flush=True)
            rates.setdefault((one["loader"], one["order"]), []).append(one["pairs_per_cpu_sec"])
    medians = {key: statistics.median(values) for key, values in rates.items()}
    ratios = {
        f"{loader}, {order}": {ours: round(medians[ours, order] / median, 2) for ours in (CURATOR, BOTH)}
        for (loader, order), median in medians.items() if loader not in (CURATOR, BOTH)
    }
    named = {f"{loader}, {order}": median for (loader, order), median in medians.items()}
    print(json.dumps({"bench": "loaders", "medians_per_core": named, "ratios": ratios}))


if __name__ == "__main__":
    main()
