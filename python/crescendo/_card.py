"""The model card of a trained job: README.md as the Hub reads it. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from crescendo import _comfyui, _objects
from crescendo.comparison import Ending, load_spec
from crescendo.records import Checkpoint, Job

#: Models that a preset's weights are known to be of, by their names on the Hub.
_BASES = {"flux-dev": "black-forest-labs/FLUX.1-dev", "flux-schnell": "black-forest-labs/FLUX.1-schnell"}
#: The last line of a card, so that one that somebody has changed is known.
_SEAL = re.compile(r"\n<!-- written by crescendo-push: ([0-9a-f]{64}) -->\n?\Z")


@dataclass(frozen=True)
class Handed:
    """What goes with the card."""

    job: Job
    #: Whose weights they are.
    checkpoint: Checkpoint
    #: Names and sizes of the files beside the card, in bytes.
    files: Mapping[str, int]
    #: Of stages, by name.
    endings: Mapping[str, Ending] = field(default_factory=dict)
    #: Name on the Hub, in place of what the preset says.
    base_model: str | None = None
    #: As the Hub names it, e.g. apache-2.0.
    license: str | None = None
    #: What `crescendo report` has in report.json.
    report: Mapping[str, Any] | None = None
    #: Paths beside the card.
    pictures: Sequence[str] = ()


def card(handed: Handed) -> str:
    """README.md, with its seal."""
    spec = _mapping(load_spec(handed.job.resolved_spec_yaml))
    header = yaml.safe_dump(_header(handed, spec), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{header}---\n", *(part for part in _parts(handed, spec) if part)]
    text = "\n".join(parts)
    return f"{text}\n<!-- written by crescendo-push: {_sum(text)} -->\n"


def is_sealed(text: str) -> bool:
    """Whether a card is as it was written here: nobody has changed it since."""
    text = text.replace("\r\n", "\n")
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _sum(text[: seal.start()])


def public_spec(resolved_spec_yaml: str) -> str:
    """The spec without the addresses of language models, which are one's own."""
    return re.sub(r"(?m)^(\s*(?:- )?url:).*$", r"\1 left-out", resolved_spec_yaml)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _base(handed: Handed, model: Mapping[str, Any]) -> str | None:
    # Other sizes are another network.
    known = None if "sizes" in model else _BASES.get(str(model.get("preset")))
    return handed.base_model or known


def _header(handed: Handed, spec: Mapping[str, Any]) -> dict[str, object]:
    model = _mapping(_mapping(spec.get("spec")).get("model"))
    is_lora = any(file.name == _objects.LORA_FILE for file in handed.checkpoint.files)
    header: dict[str, object] = {}
    if handed.license is not None:
        header["license"] = handed.license
    if base := _base(handed, model):
        header["base_model"] = base
        header["base_model_relation"] = "adapter" if is_lora else "finetune"
    header["pipeline_tag"] = "text-to-image"
    tags = ["crescendo", "subject-driven-generation", "image-generation"]
    header["tags"] = [*tags, "lora"] if is_lora else tags
    return header


def _parts(handed: Handed, spec: Mapping[str, Any]) -> Iterable[str]:
    job, checkpoint = handed.job, handed.checkpoint
    model = _mapping(_mapping(spec.get("spec")).get("model"))
    kind = "LoRA" if _objects.LORA_FILE in handed.files else "network"
    base = _base(handed, model) or f"a network of the preset `{_cell(model.get('preset'))}`"
    yield f"# {_cell(job.name)}\n"
    yield (
        f"A {kind} for {base}, trained by Crescendo to draw the subject of reference pictures. It is what job "
        f"`{job.job_id}` had after step {checkpoint.step} of stage `{checkpoint.stage}`"
        f"{'' if checkpoint.final else ', before that stage had ended'}.\n"
    )
    if handed.pictures:
        yield "\n".join(["## Pictures\n", *(f"![]({path})" for path in handed.pictures), ""])
    yield _use(handed, model)
    stages = [_mapping(stage) for stage in _mapping(spec.get("spec")).get("stages") or []]
    yield _recipe(handed, stages)
    yield _data(handed, stages)
    yield _scores(handed)
    yield "\n".join([
        "## Files\n",
        *_table(["file", "bytes"], [[name, size] for name, size in handed.files.items()]),
    ])  # fmt: skip
    yield _license(handed, model)


def _use(handed: Handed, model: Mapping[str, Any]) -> str:
    if _objects.LORA_FILE not in handed.files:
        return ""
    return (
        "## Use\n\n```sh\n"
        f"crescendo generate --preset {model.get('preset')} --weights BASE.safetensors --lora {_objects.LORA_FILE} \\\n"
        "  --reference subject.png --prompt 'the subject on a beach' --out picture.png\n```\n\n"
        "The names in it are those of UNO's published code, which loads it as it is.\n"
        f"{_comfyui_use(handed)}"
    )


def _comfyui_use(handed: Handed) -> str:
    opened, asked = _comfyui.names(_objects.LORA_FILE)
    if opened not in handed.files:
        return ""
    return (
        f"\nComfyUI loads it too, from 0.3.57 on: `{opened}` is a workflow for its editor, with the positions of"
        f" references that this LoRA was trained with, `{asked}` the same for its server.\n"
    )


def _recipe(handed: Handed, stages: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for stage, told in zip(stages, handed.job.stages, strict=False):
        train, end = _mapping(stage.get("train")), handed.endings.get(told.name)
        adapter = train.get("adapter")
        rows.append([
            told.name,
            stage.get("references"),
            stage.get("positions"),
            _mapping(adapter).get("rank") if isinstance(adapter, dict) else adapter,
            f"{told.step} of {told.steps_total}",
            train.get("globalBatch"),
            train.get("learningRate"),
            told.precision or None,
            None if end is None or end.mean_loss is None else f"{end.mean_loss:.4g}",
        ])  # fmt: skip
    head = [
        "stage",
        "references",
        "positions",
        "rank",
        "steps",
        "batch",
        "learning rate",
        "precision",
        "loss at the end",
    ]
    note = (
        "`resolved_spec.yaml` has every number; `history/` has each step. The loss is the mean of the last 100 steps.\n"
    )
    return "\n".join(["## Recipe\n", *_table(head, rows), note])


def _data(handed: Handed, stages: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for stage, told in zip(stages, handed.job.stages, strict=False):
        data = _mapping(stage.get("data"))
        rejected = ", ".join(f"{reason} {count}" for reason, count in sorted(told.pairs_rejected.items()) if count)
        held_out = data.get("holdOutOneIn") or len(data.get("holdOut") or []) or None
        rows.append([told.name, data.get("source"), told.pairs_committed, rejected or None, _held_out(data, held_out)])
    head = ["stage", "source of its pairs", "pairs", "rejected, by reason", "held out"]
    return "\n".join(["## Data\n", *_table(head, rows)])


def _held_out(data: Mapping[str, Any], held_out: object) -> str | None:
    if held_out is None:
        return None
    return f"one subject in {held_out}" if data.get("holdOutOneIn") else f"{held_out} subjects"


def _scores(handed: Handed) -> str:
    if handed.report is None or not handed.report.get("scores"):
        return ""
    rows = [
        [
            one["model"],
            one["subjects_are"],
            _share(one["right"]),
            _share(one.get("standard_error")),
            _share(one["chance"]),
            one["subjects"],
            one["draws"],
        ]
        for one in handed.report["scores"]
    ]
    head = ["drawn by", "subjects", "right", "error", "chance", "how many", "draws"]
    note = (
        "**right** is how often the nearest subject, by the image encoder "
        f"{_cell(handed.report.get('encoder'))}, is the one that was asked for; **unseen** subjects were held out of "
        "training. Scores of different encoders do not compare.\n"
    )
    return "\n".join(["## Scores\n", *_table(head, rows), note])


def _license(handed: Handed, model: Mapping[str, Any]) -> str:
    told = f"`{handed.license}`, as whoever handed it over says." if handed.license else "Not stated."
    base = _base(handed, model)
    also = f" The licence of {base} holds for what is derived from it." if base else ""
    return f"## Licence\n\n{told}{also}\n"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value * 100:.1f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _cell(value: object) -> str:
    """Text that stays text: names and reasons come from outside."""
    if value is None:
        return "-"
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return re.sub(r"([\\|<>\[\]*_&])", r"\\\1", text)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
