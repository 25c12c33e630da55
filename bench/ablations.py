"""The paper's comparisons in miniature: runs job specs that differ by a line or two, and prints what comes out.

Every run is a job of its own on a cluster on loopback, from a spec that is kept in its result and can be submitted by itself.
Variants with the same spec share one run. What is finished lies in bench/ablations/, by a hash of what the spec says and of the
base and the encoders, and is not run again; a run that was ended begins anew. Scores are the report's, of subjects that
training never saw: subject, prompt and copy, and their parts (docs/report.md).

  python3 bench/ablations.py                         all comparisons, three seeds each (hours on two cores)
  python3 bench/ablations.py --only positions --seeds 7
  python3 bench/ablations.py --table                 what is finished, running nothing
"""

import argparse
import concurrent.futures
import hashlib
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Longest that a job or its report may take, seconds.
DEADLINE = 2 * 3600
ONE, TWO = "stage-1, one subject", "stage-2, each of two subjects"
# What the scores of a run depend on beside its spec.
NETWORKS = sorted((ROOT / "assets/nano").glob("*.safetensors"))
MEASURES = ("subject", "prompt", "copy", "colour", "outline", "scene", "place", "count")


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
    def change(text, stages=(1, 2)):
        if mode == "diagonal":  # the default
            return text
        for references in stages:
            text = replaced(text, f"references: {references}", f"references: {references}\npositions: {mode}")
        return text

    return change


def scale(times):
    """The offset of references, times the published one; stage I alone, which is the same without the other."""
    def change(text):
        if times == 1:
            return text
        return replaced(without_stage_2(text), "references: 1", f"references: 1\npositionScale: {times}")

    return change


def longer(mode, times):
    """Stage I for `times` as many steps and pairs."""
    def change(text):
        if times == 1:
            return positions(mode)(text)
        text = positions(mode)(without_stage_2(text), (1,))
        return re.sub(r"^( +(?:steps|pairs): )(\d+)$", lambda found: f"{found[1]}{int(found[2]) * times}", text, flags=re.M)

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
    "offset": ("examples/nano.yaml", (ONE,), {f"{times} times": scale(times) for times in (0.5, 1, 2, 3)}),
    "longer": ("examples/nano.yaml", (ONE,), {
        f"{mode}, {times} times the steps": longer(mode, times) for mode in ("diagonal", "none") for times in (1, 3)
    }),
    "stages": ("examples/nano.yaml", (TWO,), {"I, then II": unchanged, "II alone": without_stage_1}),
    "second reference": ("examples/nano-loop.yaml", (TWO,), {"redrawn": unchanged, "crop": cropped}),
    "filter of drawn pairs": ("examples/nano-loop.yaml", (ONE,), {
        f"similarity of at least {least}": similarity(least) for least in (-1.0, 0.5, 0.6)
    }),
}


def said(spec):
    """A spec without its comments, which change nothing."""
    lines = (re.sub(r"(^|\s)#.*$", "", line).rstrip() for line in spec.splitlines())
    return "\n".join(line for line in lines if line)


def named(spec):
    """The name of a run."""
    parts = [said(spec), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in NETWORKS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def finished(spec, args):
    """The figures of a run, if it is finished."""
    path = args.results / f"{named(spec)}.json"
    return json.loads(path.read_text()) if path.exists() else None


def written(figures):
    """JSON with a line for each field, and for each score."""
    rows = lambda value: "[\n  " + ",\n  ".join(json.dumps(row, sort_keys=True) for row in value) + "\n ]"
    fields = (f" {json.dumps(key)}: {rows(value) if isinstance(value, list) else json.dumps(value, sort_keys=True)}"
              for key, value in sorted(figures.items()))
    return "{\n" + ",\n".join(fields) + "\n}\n"


def run(name, spec, args):
    """The figures of one job."""
    done = finished(spec, args)
    if done:
        return done
    out = args.out / named(spec)
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.yaml").write_text(spec)
    print(f"ablations: {name}, in {out}", file=sys.stderr, flush=True)
    if not (out / "job.json").exists():
        shutil.rmtree(out / "cluster", ignore_errors=True)
    crescendo, cluster = args.binaries / "crescendo", out / "cluster"
    train = [crescendo, "up", "--dir", cluster, "--trainers", str(args.gpus), "--run", out / "spec.yaml",
             "--result", out / "job.json"]
    score = [crescendo, "report", "--job", out / "job.json", "--object-store", cluster / "objects",
             "--library-root", ".", "--without-base", "--threads", str(args.gpus), "--out", out]
    with open(out / "log.txt", "a") as log:
        for command in (score,) if (out / "job.json").exists() else (train, score):
            if subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=DEADLINE).returncode != 0:
                raise RuntimeError(f"ablations: {name} failed; see {out / 'log.txt'}")
    report = json.loads((out / "report.json").read_text())
    kept = {key: report[key] for key in ("scores", "ceilings", "machine", "took_seconds", "reported_at", "drawing")}
    args.results.mkdir(parents=True, exist_ok=True)
    result = args.results / f"{named(spec)}.json"
    result.with_suffix(".new").write_text(written({"spec": said(spec), **kept}))
    result.with_suffix(".new").rename(result)
    return finished(spec, args)


def percent(figures, model, measure):
    """One score of a run, percent; none if it was not measured."""
    for score in figures["scores"] + figures["ceilings"]:
        if score["model"] == model and score["measure"] == measure:
            return 100 * score["right"]
    return None


def cell(values):
    """Mean over seeds, and their spread."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(done, seeds, only):
    """The scores of all finished runs; what is real, and what a copy would be, below each comparison."""
    print("| comparison | variant | of | seeds | " + " | ".join(MEASURES) + " |")
    print("|---" * (4 + len(MEASURES)) + "|")
    for comparison, (_, wanted, variants) in COMPARISONS.items():
        if only and comparison not in only:
            continue
        for model in wanted:
            rows = {variant: [done[key] for seed in seeds if (key := (comparison, variant, seed)) in done] for variant in variants}
            some = next((runs[:1] for runs in rows.values() if runs), [])
            subjects = model.split(", ")[1]
            lines = [(variant, model, runs) for variant, runs in rows.items()]
            lines += [(f"*{what}*", f"{what}, {subjects}", some) for what in ("real", "reference")]
            for variant, of, runs in lines:
                if runs:
                    cells = [cell([percent(run, of, measure) for run in runs]) for measure in MEASURES]
                    print(f"| {comparison} | {variant} | {of} | {len(runs)} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=COMPARISONS, help="this comparison; may be given again")
    parser.add_argument("--seeds", default="7,8,9", help="seeds of the jobs, separated by commas")
    parser.add_argument("--steps", type=float, default=1.0, help="share of the specs' steps and pairs")
    parser.add_argument("--together", type=int, default=2, help="jobs that run at once")
    parser.add_argument("--gpus", type=int, default=1, help="ranks of each job")
    parser.add_argument("--specs-only", action="store_true", help="write the specs of all jobs and run none")
    parser.add_argument("--table", action="store_true", help="print what is finished and run none")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/ablations", help="where finished runs are kept")
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
            out = args.out / named(text)
            out.mkdir(parents=True, exist_ok=True)
            (out / "spec.yaml").write_text(text)
        return
    if args.table:
        done = {use: figures for text, uses in jobs.items() if (figures := finished(text, args)) for use in uses}
    else:
        with concurrent.futures.ThreadPoolExecutor(args.together) as pool:
            running = {text: pool.submit(run, ", ".join(map(str, uses[0])), text, args) for text, uses in jobs.items()}
            done = {use: running[text].result() for text, uses in jobs.items() for use in uses}
    table(done, seeds, args.only)


if __name__ == "__main__":
    main()
