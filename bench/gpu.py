"""What bench/gpu.sh runs: parts in order of worth, each with a time limit; a table on the terminal, gpu.json for the record.

A part that fails or runs past its limit is written down with its last words, and the next one runs. Exits with 1 if a part
failed, so that a run on the CPU (`--cpu`) shows that the script is in order.
"""

import argparse
import importlib.util
import json
import lzma
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ["crescendo-workbench", "crescendo", "crescendo-controller", "crescendo-curator-node", "crescendo-trainer-node"]
# What all parts together may take, seconds; a part that would begin later is left out and said to be.
BUDGET_S = 590
WORKBENCH = "crescendo-workbench"
WHOLE_JOB = "a whole nano job"


@dataclass
class Part:
    name: str
    command: list
    limit_s: int
    # Takes the parsed last line (or whole output) of the command and gives the figures to show.
    figures: callable = field(default=lambda result: {})


def programs(scratch, wanted=PROGRAMS):
    """The folder that has the programs that are wanted; compressed ones are laid out in `scratch` first."""
    given = os.environ.get("CRESCENDO_BIN")
    places = [pathlib.Path(given)] if given else [ROOT / "bench/gpu-pack", ROOT / "target/dist"]
    for place in places:
        if all((place / name).is_file() for name in wanted):
            return place
        if all((place / f"{name}.xz").is_file() for name in wanted):
            for name in wanted:
                with lzma.open(place / f"{name}.xz") as packed, open(scratch / name, "wb") as program:
                    shutil.copyfileobj(packed, program)
                (scratch / name).chmod(0o755)
            return scratch
    sys.exit(f"gpu: error: {', '.join(wanted)} in none of: {', '.join(map(str, places))}; run `make build` and set CRESCENDO_BIN=target/release, or build them with `--profile dist`")


def pack(folder):
    """Stripped and compressed programs: debug information is most of a release build's size."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        built = programs(pathlib.Path(scratch))
        for name in PROGRAMS:
            stripped = pathlib.Path(scratch) / f"{name}.stripped"
            subprocess.run(["strip", "-o", stripped, built / name], check=True)
            with open(stripped, "rb") as program, lzma.open(folder / f"{name}.xz", "wb", preset=6) as packed:
                shutil.copyfileobj(program, packed)
            print(f"gpu: {folder / name}.xz: {(folder / f'{name}.xz').stat().st_size / 1e6:.1f} MB")


def libraries():
    """Folders with libtorch and what it needs, of the torch that this python has, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return []
    torch = pathlib.Path(next(iter(spec.submodule_search_locations)))
    site = torch.parent
    return [torch / "lib", *sorted(site.glob("nvidia/*/lib"))]


def last_json(text):
    """The whole text as JSON, or its last line that is."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    for line in reversed(text.splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


def of_doctor(checks):
    return {check["name"]: f"{check['status']}: {check['found']}" for check in checks}


def of_parity(report):
    failed = [fixture["name"] for fixture in report["fixtures"] if not fixture["passed"]]
    return {
        "fixtures": len(report["fixtures"]),
        "comparisons": report["comparisons"],
        "failed": ", ".join(failed) or "none",
    }


def of_step(result):
    figures = {"ms": round(1000 * median(result["seconds"]), 1)}
    if "parts" in result:
        names = {"batch": "batch", "forward": "fwd", "backward": "bwd", "optimizer": "opt"}
        figures["of it"] = ", ".join(f"{short} {1000 * result['parts'][name + '_seconds']:.0f}" for name, short in names.items())
        if result["parts"].get("collective_seconds") is not None:
            figures["reduce"] = round(1000 * result["parts"]["collective_seconds"], 1)
        figures["by part"] = ", ".join(f"{name} {1000 * time:.0f}" for name, time in result["parts"].get("by_part", {}).items())
    if result.get("memory_bytes"):
        figures["GB"] = round(result["memory_bytes"] / 1e9, 1)
    if result.get("share_of_floor"):
        figures["share of floor"] = round(result["share_of_floor"], 2)
    return figures


def of_kernels(result):
    passes = result["passes"]
    return {
        "worst error": f"{max(one['error'] for one in passes):.1e}",
        "ms": round(sum(one["fused_ms"] for one in passes), 2),
        "eager ms": round(sum(one["eager_ms"] for one in passes), 2),
    }


def of_draw(result):
    return {"s a drawing": round(result["seconds_each"], 2), f"hours for {result['pairs']} pairs": round(result["hours"], 1)}


def of_job(result):
    return {"s in all": round(result["seconds"], 1), "pairs": result["pairs"], "LoRA MB": round(result["lora_bytes"] / 1e6, 1)}


def of_group(result):
    return {"all-reduce ms": round(result["all_reduce_64_mib_ms"], 2), "leave ms": round(result["leave_ms"], 1)}


def of_save(result):
    return {
        "GB": round(result["tensors_bytes"] / 1e9, 2),
        "stall ms, p50": round(1000 * result["stall_p50"], 1),
        "p99": round(1000 * result["stall_p99"], 1),
        "s a save": round(result["save_median"], 2),
        "host memory": round(result["memory_above_bytes"] / result["tensors_bytes"], 2),
    }


def median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def parts(bin_folder, cpu, can_python):
    workbench = str(bin_folder / "crescendo-workbench")
    device = "cpu" if cpu else "cuda"
    size = ["--preset", "nano"] if cpu else ["--preset", "flux-dev", "--device", "cuda"]
    synthetic = [] if cpu else ["--synthetic"]
    step = [workbench, "bench", "step", "-o", "json", *size, *synthetic, "--warmup", "2", "--steps", "5"]
    eager = [sys.executable, "bench/step.py", *size, "--warmup", "2", "--steps", "5"]
    save = [workbench, "bench", "save", "-o", "json", "--device", device, "--saves", "2" if cpu else "5", "--size", "0.02" if cpu else "3"]
    fixtures = str(ROOT / "tests/fixtures")
    yield Part("doctor", [workbench, "doctor", "-o", "json", *([] if cpu else ["--gpu"])], 60, of_doctor)
    yield Part("parity", [workbench, "parity", fixtures, "--device", device, "-o", "json"], 150, of_parity)
    passes = [workbench, "bench", "kernels", "-o", "json", "--preset", "nano" if cpu else "flux-dev", "--device", device]
    for precision in ["bf16", "f32"]:
        yield Part(f"fused passes beside eager, {precision}", [*passes, "--precision", precision], 60, of_kernels)
    yield Part("group of one rank", [workbench, "bench", "group", "-o", "json", "--device", device], 60, of_group)
    yield Part(WHOLE_JOB, [sys.executable, "bench/gpu_job.py", "--device", device], 150, of_job)
    yield Part("step, 1 reference", step, 120, of_step)
    for block_pass in ["eager", "autograd"]:
        yield Part(f"step, 1 reference, {block_pass} blocks", [*step, "--pass", block_pass], 90, of_step)
    if can_python:
        yield Part("step, 1 reference, PyTorch eager", eager, 120, of_step)
    yield Part("step, 1 reference, all computed again", [*step, "--recompute", "all"], 90, of_step)
    if can_python:
        yield Part("step, 1 reference, all computed again, PyTorch eager", [*eager, "--recompute"], 90, of_step)
    yield Part("copy-out of a checkpoint", save, 90, of_save)
    yield Part("step, 1 reference, fp8", [*step, "--storage", "scaled-float8"], 90, of_step)
    yield Part("step, 2 references", [*step, "--references", "2"], 120, of_step)
    yield Part("drawing, 25 steps", [workbench, "bench", "draw", "-o", "json", *size, "--steps", "25"], 90, of_draw)
    nano = [workbench, "bench", "step", "-o", "json", "--preset", "nano", "--device", device]
    for precision in ["f32", "bf16"]:
        yield Part(f"nano step, {precision}", [*nano, "--precision", precision], 60, of_step)


def run(part, environment, limit_s):
    """Runs one part in a process group of its own, so that nothing of it outlives its limit."""
    started = time.monotonic()
    process = subprocess.Popen(
        part.command, cwd=ROOT, env=environment, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = process.communicate(timeout=limit_s)
        status = "ok" if process.returncode == 0 else f"exit {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        status = f"over its limit of {limit_s} s"
    outcome = {
        "name": part.name,
        "command": [os.path.relpath(word, ROOT) if word.startswith(str(ROOT)) else word for word in part.command],
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
    }
    result = last_json(out)
    if result is not None:
        outcome["result"] = result
        try:
            outcome["figures"] = part.figures(result)
        except (KeyError, TypeError) as error:
            outcome["status"] = status if status != "ok" else f"its output is not what was expected: {error!r}"
    if outcome["status"] != "ok":
        outcome["last_words"] = (err.strip() or out.strip())[-2000:]
    return outcome


def main():
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description="Measure what needs a GPU.")
    parser.add_argument("--cpu", action="store_true", help="every part at nano size on the CPU")
    parser.add_argument("--pack", metavar="DIR", type=pathlib.Path, help="write stripped, compressed programs and end")
    parser.add_argument("--out", metavar="FILE", type=pathlib.Path, default=pathlib.Path("gpu.json"), help="[default: gpu.json]")
    parser.add_argument("--only", metavar="WORDS", action="append", help="the parts whose names have these words; may be repeated")
    parser.add_argument("--budget", metavar="S", type=int, default=BUDGET_S, help="what all parts together may take, seconds [default: %(default)s]")
    arguments = parser.parse_args()
    if arguments.pack:
        return pack(arguments.pack)

    started = time.monotonic()
    environment = dict(os.environ)
    known = [str(folder) for folder in libraries()]
    environment["LD_LIBRARY_PATH"] = os.pathsep.join([*known, *filter(None, [environment.get("LD_LIBRARY_PATH")])])
    # A wheel that has only what a build needs cannot be imported.
    can_python = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True, check=False).returncode == 0
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        is_wanted = lambda part: not arguments.only or any(words in part.name for words in arguments.only)
        # The whole job needs every program, the others the workbench alone.
        names = {part.name for part in parts(pathlib.Path(), arguments.cpu, can_python) if is_wanted(part)}
        bin_folder = programs(pathlib.Path(scratch), PROGRAMS if WHOLE_JOB in names else [WORKBENCH])
        environment["CRESCENDO_BIN"] = str(bin_folder)
        for part in filter(is_wanted, parts(bin_folder, arguments.cpu, can_python)):
            left = arguments.budget - (time.monotonic() - started)
            if left < 10:
                outcomes.append({"name": part.name, "status": "left out: the time is used up", "seconds": 0.0})
                continue
            outcome = run(part, environment, int(min(part.limit_s, left)))
            outcomes.append(outcome)
            figures = "  ".join(f"{name}: {value}" for name, value in outcome.get("figures", {}).items())
            print(f"{outcome['status']:<8} {outcome['seconds']:>6.1f} s  {part.name:<52}  {figures}", flush=True)
            if "last_words" in outcome:
                print("    " + outcome["last_words"][-600:].replace("\n", "\n    "), flush=True)
            # After every part: what is there is kept if the machine goes.
            record = {"device": "cpu" if arguments.cpu else "cuda", "pytorch": can_python, "parts": outcomes}
            arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    if not can_python:
        print("gpu: PyTorch cannot be imported by this python: its steps are left out")
    print(f"gpu: {arguments.out}, {time.monotonic() - started:.0f} s")
    sys.exit(any(outcome["status"] != "ok" for outcome in outcomes))


if __name__ == "__main__":
    main()
