"""Prints the results of scripts/bench.sh as a table: medians, and ratios of medians where two things were interleaved."""

import json
import statistics
import sys
from pathlib import Path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def row(figure, value, note=""):
    print(f"| {figure} | {value} | {note} |")


def steps(folder):
    for references in (1, 2):
        by_implementation = {}
        for run in lines(folder / f"step-{references}.jsonl"):
            by_implementation.setdefault(run["implementation"], []).extend(run["seconds"])
        medians = {name: statistics.median(seconds) for name, seconds in by_implementation.items()}
        yardstick = medians["pytorch-eager"]
        for name, median in medians.items():
            row(f"nano step, {references} reference(s), {name}", f"{1000 * median:.0f} ms",
                f"{yardstick / median:.2f} × PyTorch's speed")


def main():
    folder = Path(sys.argv[1])
    print("| figure | value | note |\n|---|---|---|")
    steps(folder)
    for run in lines(folder / "all-reduce.jsonl"):
        for size in ("1_mib", "64_mib"):
            row(f"all-reduce of {size.replace('_', ' ')} between two ranks", f"{run[size]['gb_per_sec']:.2f} GB/s",
                f"median {run[size]['milliseconds']:.1f} ms, {run['backend']}")
    for run in lines(folder / "submit.jsonl"):
        row(f"submits, {run['store']}", f"{run['submits_per_sec']:.0f}/s",
            f"p50 {run['p50_ms']} ms, p99 {run['p99_ms']} ms, {run['writers']} callers")
    for run in lines(folder / "load.jsonl"):
        row(f"a controller begins to lead {run['units']} units", f"{run['seconds_to_lead']:.1f} s",
            f"memory {run['memory_mib']} MiB, at most {run['peak_memory_mib']} MiB")
    for run in lines(folder / "pairs.jsonl"):
        if "bench" not in run:
            continue
        row("pairs from a curator to a rank", f"{run['pairs_per_sec']:.0f} pairs/s",
            f"{run['mb_per_sec']} MB/s; {run['composed_pairs_per_sec']:.0f} pairs/s composed and filtered")
    for run in lines(folder / "loaders.jsonl"):
        for name, median in run.get("medians_per_core", {}).items():
            ratios = run["ratios"].get(name, {})
            row(f"pairs of 256 pixels, {name}", f"{median:.0f} pairs/s per core",
                "; ".join(f"{ours}: {ratio:.2f} × as many" for ours, ratio in ratios.items()))
    for run in lines(folder / "recovery.jsonl"):
        row("kill -9 of a rank to the next step", f"{statistics.median(run['seconds']):.1f} s",
            f"worst of {len(run['seconds'])}: {max(run['seconds']):.1f} s")
    for run in lines(folder / "failover.jsonl"):
        row("kill -9 of the leading controller to the next job that is taken", f"{run['seconds']['p50']:.1f} s",
            f"p99 of {run['kills']}: {run['seconds']['p99']:.1f} s; {run['outages_of_etcd']} outages of etcd of 3 s moved "
            f"{run['of_them_moved_the_leader']} leaders")


if __name__ == "__main__":
    main()
