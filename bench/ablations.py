"""The paper's comparisons in miniature: runs job specs that differ by a line or two, and prints what comes out.

Every run is a job of its own on a cluster on loopback, from a spec that is written beside its result and can be submitted by
itself. Scores are the report's: how often the nearest of 16 subjects that training never saw is the right one.

  python3 bench/ablations.py                         all comparisons, three seeds each (hours on two cores)
  python3 bench/ablations.py --only positions --seeds 7
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONE, TWO = "stage-1, one subject", "stage-2, each of two subjects"


def replaced(text, old, new):
    """`text` with every line that is `old` (indent kept, `new` may be several lines)."""
    pattern = re.compile(rf"^( *){re.escape(old)}$", re.M)
    if not pattern.search(text):
        sys.exit(f"ablations: the base spec has no line {old!r}")
    return pattern.sub(lambda found: "\n".join(found[1] + line for line in new.split("\n")), text)


def without_stage_1(text):
    """Stage II alone, for as many steps as both stages have together."""
    steps = [int(found) for found in re.findall(r"^ +steps: (\d+)$", text, re.M)]
    start, end = text.index("    - name: stage-1"), text.index("    - name: stage-2")
    text = text[:start] + text[end:]
    pairs = re.search(r"^( +pairs: )(\d+)$", text, re.M)
    text = text.replace(pairs[0], f"{pairs[1]}{int(pairs[2]) * sum(steps) // steps[-1]}")
    return replaced(text, f"steps: {steps[-1]}", f"steps: {sum(steps)}")


def positions(mode):
    def change(text):
        for references in (1, 2):
            text = replaced(text, f"references: {references}", f"references: {references}\npositions: {mode}")
        return text

    return change


def similarity(least):
    return lambda text: replaced(text, "min: 0.4", f"min: {least}")


def cropped(text):
    """The cut itself as the second reference: nothing is drawn, and there is nothing to compare."""
    start = text.index("source: recompose")
    stage = text[start:].replace("source: recompose", "source: crop", 1)
    stage = re.sub(r"^ +draw: .*\n", "", stage, count=1, flags=re.M)
    stage = re.sub(r"^( +)filter:\n(?:\1 +.*\n)+", "", stage, count=1, flags=re.M)
    return text[:start] + stage


# Comparison -> (spec, scores to print, name of the variant -> what it changes).
COMPARISONS = {
    "positions": ("examples/nano.yaml", (ONE, TWO), {
        mode: positions(mode) for mode in ("diagonal", "width", "height", "none", "frame")
    }),
    "stages": ("examples/nano.yaml", (TWO,), {"I, then II": lambda text: text, "II alone": without_stage_1}),
    "second reference": ("examples/nano-loop.yaml", (TWO,), {
        "redrawn": lambda text: text,
        "crop": cropped,
    }),
    "filter of drawn pairs": ("examples/nano-loop.yaml", (ONE,), {
        f"similarity of at least {least}": similarity(least) for least in (-1.0, 0.4, 0.6)
    }),
}


def run(name, spec, out, binaries):
    """Scores of one job by their names; a finished one is not run again."""
    report = out / "report.json"
    if not report.exists():
        out.mkdir(parents=True, exist_ok=True)
        (out / "spec.yaml").write_text(spec)
        print(f"ablations: {name}", file=sys.stderr)
        crescendo, cluster = binaries / "crescendo", out / "cluster"
        with open(out / "log.txt", "w") as log:
            for command in (
                [crescendo, "up", "--dir", cluster, "--run", out / "spec.yaml", "--result", out / "job.json"],
                [crescendo, "report", "--job", out / "job.json", "--object-store", cluster / "objects",
                 "--library-root", ".", "--out", out],
            ):
                if subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode != 0:
                    sys.exit(f"ablations: {name} failed; see {out / 'log.txt'}")
    return {score["model"]: 100 * score["right"] for score in json.loads(report.read_text())["scores"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=COMPARISONS, help="this comparison; may be given again")
    parser.add_argument("--seeds", default="7,8,9", help="seeds of the jobs, separated by commas")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the specs' steps and pairs")
    parser.add_argument("--out", type=Path, default=ROOT / ".crescendo/ablations")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]

    def shortened(text):
        return re.sub(r"^( +(?:steps|pairs): )(\d+)$",
                      lambda found: f"{found[1]}{max(1, round(int(found[2]) * args.steps))}", text, flags=re.M)

    print("| comparison | variant | score | mean of seeds, % | spread | each |\n|---|---|---|---|---|---|")
    for comparison, (base, wanted, variants) in COMPARISONS.items():
        if args.only and comparison not in args.only:
            continue
        text = shortened((ROOT / base).read_text())
        for variant, change in variants.items():
            results = []
            for seed in seeds:
                name = re.sub("[^a-z0-9.]+", "-", f"{comparison} {variant} {seed}".lower())
                spec = replaced(change(text), "seed: 7", f"seed: {seed}")
                results.append(run(name, spec, args.out / name, args.binaries))
            for score in wanted:
                values = [result[score] for result in results]
                spread = statistics.stdev(values) if len(values) > 1 else float("nan")
                each = " ".join(f"{value:.1f}" for value in values)
                print(f"| {comparison} | {variant} | {score} | {statistics.mean(values):.1f} | ± {spread:.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
