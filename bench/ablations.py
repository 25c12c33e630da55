"""The paper's comparisons in miniature: runs job specs that differ by a line or two, and prints what comes out.

Every run is a job of its own on a cluster on loopback, from a spec that is written beside its result and can be submitted by
itself. Variants with the same spec share one run, and what is finished is not run again. Scores are the report's: how often
the nearest of 16 subjects that training never saw is the right one.

  python3 bench/ablations.py                         all comparisons, three seeds each (hours on two cores)
  python3 bench/ablations.py --only positions --seeds 7
"""

import argparse
import concurrent.futures
import hashlib
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Longest that a job or its report may take, seconds.
DEADLINE = 2 * 3600
ONE, TWO = "stage-1, one subject", "stage-2, each of two subjects"


def replaced(text, old, new):
    """`text` with every line that is `old` (indent kept, `new` may be several lines)."""
    pattern = re.compile(rf"^( *){re.escape(old)}$", re.M)
    if not pattern.search(text):
        sys.exit(f"ablations: the base spec has no line {old!r}")
    return pattern.sub(lambda found: "\n".join(found[1] + line for line in new.split("\n")), text)


def split_at_stages(text):
    """What stands before the stages, stage I, stage II, and what stands after them."""
    one, two, end = (text.index(start) for start in ("    - name: stage-1", "    - name: stage-2", "  checkpoints:"))
    return text[:one], text[one:two], text[two:end], text[end:]


def without_stage_1(text):
    """Stage II alone, for as many steps as both stages have together."""
    before, _, stage, after = split_at_stages(text)
    steps = [int(found) for found in re.findall(r"^ +steps: (\d+)$", text, re.M)]
    pairs = re.search(r"^( +pairs: )(\d+)$", stage, re.M)
    stage = stage.replace(pairs[0], f"{pairs[1]}{int(pairs[2]) * sum(steps) // steps[-1]}")
    return before + replaced(stage, f"steps: {steps[-1]}", f"steps: {sum(steps)}") + after


def without_stage_2(text):
    before, stage, _, after = split_at_stages(text)
    return before + stage + after


def positions(mode):
    def change(text):
        if mode == "diagonal":  # the default
            return text
        for references in (1, 2):
            text = replaced(text, f"references: {references}", f"references: {references}\npositions: {mode}")
        return text

    return change


def similarity(least):
    def change(text):
        # As the spec has it: the run of "redrawn" tells, whose stage II changes nothing in stage I.
        return text if least == 0.5 else replaced(without_stage_2(text), "min: 0.5", f"min: {least}")

    return change


def cropped(text):
    """The cut itself as the second reference: nothing is drawn, and there is nothing to compare."""
    start = text.index("source: recompose")
    stage = text[start:].replace("source: recompose", "source: crop", 1)
    stage = re.sub(r"^ +draw: .*\n", "", stage, count=1, flags=re.M)
    stage = re.sub(r"^( +)filter:\n(?:\1 +.*\n)+", "", stage, count=1, flags=re.M)
    return text[:start] + stage


def unchanged(text):
    return text


# Comparison -> (spec, scores to print, name of the variant -> what it changes).
COMPARISONS = {
    "positions": ("examples/nano.yaml", (ONE, TWO), {
        mode: positions(mode) for mode in ("diagonal", "width", "height", "none", "frame")
    }),
    "stages": ("examples/nano.yaml", (TWO,), {"I, then II": unchanged, "II alone": without_stage_1}),
    "second reference": ("examples/nano-loop.yaml", (TWO,), {"redrawn": unchanged, "crop": cropped}),
    "filter of drawn pairs": ("examples/nano-loop.yaml", (ONE,), {
        f"similarity of at least {least}": similarity(least) for least in (-1.0, 0.5, 0.6)
    }),
}


def folder(spec, args):
    """Where everything of one job lies, its spec first of all."""
    out = args.out / hashlib.sha256(spec.encode()).hexdigest()[:12]
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.yaml").write_text(spec)
    return out


def run(name, spec, args):
    """Scores of one job by their names."""
    out = folder(spec, args)
    report = out / "report.json"
    if not report.exists():
        print(f"ablations: {name}, in {out}", file=sys.stderr, flush=True)
        crescendo, cluster = args.binaries / "crescendo", out / "cluster"
        train = [crescendo, "up", "--dir", cluster, "--trainers", str(args.gpus), "--run", out / "spec.yaml",
                 "--result", out / "job.json"]
        score = [crescendo, "report", "--job", out / "job.json", "--object-store", cluster / "objects",
                 "--library-root", ".", "--without-base", "--threads", str(args.gpus), "--out", out]
        with open(out / "log.txt", "a") as log:
            for command in (score,) if (out / "job.json").exists() else (train, score):
                if subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=DEADLINE).returncode != 0:
                    raise RuntimeError(f"ablations: {name} failed; see {out / 'log.txt'}")
    return {score["model"]: 100 * score["right"] for score in json.loads(report.read_text())["scores"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=COMPARISONS, help="this comparison; may be given again")
    parser.add_argument("--seeds", default="7,8,9", help="seeds of the jobs, separated by commas")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the specs' steps and pairs")
    parser.add_argument("--together", type=int, default=2, help="jobs that run at once")
    parser.add_argument("--gpus", type=int, default=1, help="ranks of each job")
    parser.add_argument("--specs-only", action="store_true", help="write the specs of all jobs and run none")
    parser.add_argument("--out", type=Path, default=ROOT / ".crescendo/ablations")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target/release")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]

    def shortened(text):
        return re.sub(r"^( +(?:steps|pairs|minPairs): )(\d+)$",
                      lambda found: f"{found[1]}{max(1, round(int(found[2]) * args.steps))}", text, flags=re.M)

    def spec(base, change, seed):
        text = change(shortened((ROOT / base).read_text()))
        return replaced(replaced(text, "gpus: 2", f"gpus: {args.gpus}"), "seed: 7", f"seed: {seed}")

    # A seed of everything first: the table has all its lines as early as can be.
    jobs = {}
    for seed in seeds:
        for comparison, (base, _, variants) in COMPARISONS.items():
            if not args.only or comparison in args.only:
                for variant, change in variants.items():
                    jobs.setdefault(spec(base, change, seed), []).append((comparison, variant, seed))
    if args.specs_only:
        for text in jobs:
            folder(text, args)
        return
    with concurrent.futures.ThreadPoolExecutor(args.together) as pool:
        running = {text: pool.submit(run, ", ".join(map(str, uses[0])), text, args) for text, uses in jobs.items()}
        done = {use: running[text].result() for text, uses in jobs.items() for use in uses}

    print("| comparison | variant | score | mean of seeds, % | spread | each |\n|---|---|---|---|---|---|")
    for comparison, (_, wanted, variants) in COMPARISONS.items():
        for variant in variants:
            results = [done[comparison, variant, seed] for seed in seeds if (comparison, variant, seed) in done]
            for score in wanted if results else ():
                values = [result[score] for result in results]
                spread = statistics.stdev(values) if len(values) > 1 else float("nan")
                each = " ".join(f"{value:.1f}" for value in values)
                print(f"| {comparison} | {variant} | {score} | {statistics.mean(values):.1f} | ± {spread:.1f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
