"""Specs that pages show whole are valid, and what coming-from.md does with other trainers' data sets gives pairs to train on."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from test_commands import cut_out, photograph

ROOT = pathlib.Path(__file__).parents[2]
BINARIES = os.environ.get("CRESCENDO_BIN")
pytestmark = pytest.mark.skipif(not BINARIES, reason="CRESCENDO_BIN does not name a folder of built binaries")
MOVING = ROOT / "docs/coming-from.md"
RUN_SECONDS = 120


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.M | re.S)


def specs():
    for page in sorted((ROOT / "docs").glob("*.md")):
        for number, block in enumerate(blocks(page, "yaml"), start=1):
            if "kind: TrainingJob" in block:
                yield pytest.param(block, id=f"{page.name}-{number}")


def crescendo(*arguments, **options):
    program = pathlib.Path(BINARIES).resolve() / "crescendo"
    return subprocess.run(
        [program, *arguments], text=True, capture_output=True, timeout=RUN_SECONDS, check=False, **options
    )


@pytest.mark.parametrize("spec", specs())
def test_a_spec_of_a_page_is_valid(spec, tmp_path):
    checked = crescendo("validate", "-", input=spec, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("references", [1, 0])
def test_a_data_set_of_another_trainer_becomes_pairs_to_train_on(references, tmp_path):
    """Its program as it stands, and the spec beside it with the small network, few pairs and few steps."""
    for folder, picture in [("edited", cut_out), ("reference", photograph)]:
        (tmp_path / folder).mkdir()
        for number in range(8):
            (tmp_path / folder / f"{number}.png").write_bytes(picture(number))
    for number in range(8):
        (tmp_path / "edited" / f"{number}.txt").write_text(f"shape {number} on a table\n")
    [program] = blocks(MOVING, "python")
    if references == 0:
        program = program.replace('[pathlib.Path("reference")]', "[]")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=RUN_SECONDS)
    [spec] = [block for block in blocks(MOVING, "yaml") if f"- references: {references}\n" in block and "uno-train" in block]
    small = {
        r"model: .*": f"model: {{preset: nano, weights: {ROOT / 'assets/nano/base.safetensors'}}}",
        r"gpus: \d+": "gpus: 1",
        r"path: datasets/pairs.json, resolution: 512": f"path: {tmp_path}/pairs.json, pairs: 8, minPairs: 4",
        r"rank: \d+": "rank: 4",
        r"steps: \d+": "steps: 3",
        r"globalBatch: \d+": "globalBatch: 2",
        r"warmupSteps: \d+": "warmupSteps: 1",
    }
    for pattern, value in small.items():
        spec = re.sub(pattern, value, spec)
    (tmp_path / "job.yaml").write_text(spec)
    up = ["up", "--dir", tmp_path / "cluster", "--trainers", "1", "--device", "cpu", "--run", tmp_path / "job.yaml"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRESCENDO_")}
    ran = crescendo(*up, cwd=tmp_path, env=environment | {"XDG_STATE_HOME": str(tmp_path)})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [history] = (tmp_path / "cluster").rglob("step-00000003*/history.jsonl")
    assert len(history.read_text().splitlines()) == 3
