"""Writes workflows that draw with a job's LoRA in ComfyUI: the program `crescendo-workflow`, and functions for others.

Two files beside the LoRA, of one graph: NAME.comfyui.json for ComfyUI's editor, NAME.comfyui-api.json for POST /prompt.
The graph draws as `crescendo generate` does: references as further tokens at the positions of training, its size,
times, guidance and length of prompts. It needs only nodes that ComfyUI brings along, since 0.3.57, and names weights
as the templates of ComfyUI do.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from crescendo import _cli, _objects
from crescendo._comfyui import Drawing, editor, names, prompt
from crescendo.client import Client
from crescendo.comparison import load_spec
from crescendo.errors import CrescendoError
from crescendo.records import Job

__all__ = ["Drawing", "NoWorkflowError", "drawing", "editor", "main", "prompt", "write"]

PROGRAM = "crescendo-workflow"
#: Positions of a spec, and the method of ComfyUI's node that gives the same ones. The others it does not have.
_METHODS = {"diagonal": "uxo/uno", "frame": "index"}
#: Transformers of presets, by the file names of ComfyUI's templates.
_TRANSFORMERS = {"flux-dev": "flux1-dev.safetensors", "flux-schnell": "flux1-schnell.safetensors"}
_MOST_REFERENCES = 8


class NoWorkflowError(CrescendoError):
    """ComfyUI cannot draw with what the job has trained."""


def drawing(job: Job, stage: str, lora: str, references: int | None = None) -> Drawing:
    """What is drawn with, by the job's spec. NoWorkflowError where ComfyUI lacks its network or positions."""
    spec = _mapping(_mapping(load_spec(job.resolved_spec_yaml)).get("spec"))
    model = _mapping(spec.get("model"))
    transformer = None if "sizes" in model else _TRANSFORMERS.get(str(model.get("preset")))
    if transformer is None:
        sizes = " with sizes of its own" if "sizes" in model else ""
        raise NoWorkflowError(f"ComfyUI has no network like the preset {model.get('preset')}{sizes}")
    of_stage = [one for one in map(_mapping, spec.get("stages") or []) if one.get("name") == stage]
    if not of_stage:
        raise NoWorkflowError(f"job {job.job_id} has no stage {stage}")
    train = _mapping(of_stage[0].get("train"))
    if not isinstance(train.get("adapter"), dict):
        raise NoWorkflowError(f"stage {stage} trains the whole network, and no LoRA")
    if references is None:
        references = int(of_stage[0].get("references", 0))
    if not 0 <= references <= _MOST_REFERENCES:
        raise NoWorkflowError(f"{references} references: 0 to {_MOST_REFERENCES} are possible")
    positions = str(of_stage[0].get("positions", "diagonal"))
    if references and positions not in _METHODS:
        raise NoWorkflowError(f"ComfyUI has no positions like {positions}, which stage {stage} was trained with")
    method = _METHODS.get(positions, "")
    return Drawing(lora, transformer, references, method, int(train.get("resolution", 512)))


def write(told: Drawing, folder: pathlib.Path) -> list[pathlib.Path]:
    """Both files, into the folder of the LoRA and by its name."""
    written = [folder / name for name in names(told.lora)]
    for path, graph in zip(written, [editor(told), prompt(told)], strict=True):
        path.write_text(json.dumps(graph, indent=1) + "\n")
    return written


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition("\n")[0])
    parser.add_argument("job", metavar="JOB", help="the job's id")
    parser.add_argument(
        "lora",
        type=pathlib.Path,
        metavar="FILE",
        help="the LoRA, as `crescendo cp JOB FILE` has written it; the workflows go beside it, and have its name",
    )
    parser.add_argument("--stage", help="of this stage [default: the last one that has a checkpoint]")
    parser.add_argument("--references", type=int, metavar="N", help="0 to 8 [default: as in that stage's training]")
    _cli.add_controller(parser)
    options = parser.parse_args(arguments)
    try:
        with _cli.connect(options.controller) as client:
            told = _told(client, options)
        for path in write(told, options.lora.parent):
            _cli.say(str(path))
    except KeyboardInterrupt:
        return 130
    except (CrescendoError, ValueError, OSError) as error:
        _cli.warn(PROGRAM, f"error: {error}")
        return 1
    return 0


def _told(client: Client, options: argparse.Namespace) -> Drawing:
    job = client.get(options.job)
    stage = _objects.choose(client.checkpoints(job), job.job_id, options.stage, None).stage
    return drawing(job, stage, options.lora.name, options.references)


if __name__ == "__main__":
    raise SystemExit(main())
