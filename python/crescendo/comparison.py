"""Jobs side by side: what differs in their specs, and what came of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from crescendo.records import Job, JobState, Stage, StagePhase


class Absent:
    """Stands for a field that a spec does not have: `None` would be a value."""

    def __repr__(self) -> str:
        return "-"


#: The only one.
ABSENT = Absent()


@dataclass(frozen=True)
class Difference:
    """A field of the resolved spec in which the jobs differ."""

    #: E.g. `spec.stages[0].train.learningRate`.
    path: str
    #: One a job, in the order of the jobs; `ABSENT` where it has none.
    values: tuple[object, ...]


@dataclass(frozen=True)
class StageFigures:
    """What a stage has come to."""

    name: str
    #: Optimizer steps done, of `steps_total`.
    steps: int
    steps_total: int
    #: Of the last step; None if none is known.
    loss: float | None
    #: Over the last 100 steps of the newest checkpoint's history.
    mean_loss: float | None
    #: L2 norm of the last step's gradients before clipping.
    grad_norm: float | None
    #: Of the global batch; of a stage that is over the mean over its last steps.
    samples_per_sec: float | None
    #: That can be read.
    pairs: int
    #: Attempts after the first.
    restarts: int


@dataclass(frozen=True)
class JobFigures:
    """What a job has come to."""

    job_id: str
    state: JobState
    #: From the first start of a stage to the job's end; None while it has not ended.
    duration_seconds: float | None
    #: Of all stages.
    restarts: int
    stages: tuple[StageFigures, ...]


@dataclass(frozen=True)
class Comparison:
    """Jobs side by side. As text it is a table."""

    jobs: tuple[JobFigures, ...]
    differences: tuple[Difference, ...]
    #: A line about each stage whose last steps nobody could read.
    unread: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[str, tuple[object, ...]]]:
        """The figures, then the differences: what, and one value a job."""
        yield "state", tuple(str(job.state) for job in self.jobs)
        yield "duration, s", tuple(job.duration_seconds for job in self.jobs)
        yield "restarts", tuple(job.restarts for job in self.jobs)
        for at in range(max(len(job.stages) for job in self.jobs)):
            stages = [job.stages[at] if at < len(job.stages) else None for job in self.jobs]
            name = next(stage.name for stage in stages if stage)
            for what, figure in _STAGE_FIGURES:
                yield f"{name} {what}", tuple(ABSENT if stage is None else figure(stage) for stage in stages)
        for difference in self.differences:
            yield difference.path, difference.values

    def __str__(self) -> str:
        lines = [("", *(job.job_id for job in self.jobs))]
        lines += [(what, *map(_text, values)) for what, values in self.rows()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([*table, *self.unread])


_STAGE_FIGURES: tuple[tuple[str, Callable[[StageFigures], object]], ...] = (
    ("steps", lambda stage: f"{stage.steps}/{stage.steps_total}"),
    ("loss", lambda stage: stage.loss),
    ("mean loss", lambda stage: stage.mean_loss),
    ("grad norm", lambda stage: stage.grad_norm),
    ("samples/s", lambda stage: stage.samples_per_sec),
    ("pairs", lambda stage: stage.pairs),
    ("restarts", lambda stage: stage.restarts),
)


@dataclass(frozen=True)
class Ending:
    """The last steps of a stage, by the history in its checkpoint: what no controller remembers after its restart."""

    #: Of the last step; None if it was not finite.
    loss: float | None
    #: Of those that were finite.
    mean_loss: float | None
    #: Of the last step; None if it was not finite.
    grad_norm: float | None
    step_seconds: float | None


#: Steps at the end of a history whose means count.
_LAST_STEPS = 100


def ending(history: bytes) -> Ending:
    """Of the lines of a `history.jsonl`."""
    steps = [json.loads(line) for line in history.splitlines()[-_LAST_STEPS:]]
    # What is not finite is written as null.
    losses = [step["loss"] for step in steps if step["loss"] is not None]
    seconds = [step["seconds"] for step in steps]
    return Ending(
        loss=steps[-1]["loss"] if steps else None,
        mean_loss=sum(losses) / len(losses) if losses else None,
        grad_norm=steps[-1].get("grad_norm") if steps else None,
        step_seconds=sum(seconds) / len(seconds) if seconds else None,
    )


def is_over(stage: Stage) -> bool:
    """Whether the stage's figures are those of its history: no rank has reported any, or will."""
    return stage.phase is StagePhase.DONE or stage.loss is None


def compare(jobs: Sequence[Job], endings: Mapping[tuple[str, str], Ending], unread: Sequence[str] = ()) -> Comparison:
    """Pure. `endings` are by job and stage; `unread` says of which there should be one and is none."""
    specs = [load_spec(job.resolved_spec_yaml) for job in jobs]
    return Comparison(
        jobs=tuple(_figures(job, spec, endings) for job, spec in zip(jobs, specs, strict=True)),
        differences=differences(specs),
        unread=tuple(unread),
    )


def _figures(job: Job, spec: object, endings: Mapping[tuple[str, str], Ending]) -> JobFigures:
    took = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
    flat = dict(leaves("", spec))

    def figures(at: int, stage: Stage) -> StageFigures:
        loss, grad_norm, samples_per_sec = stage.loss, stage.grad_norm, stage.samples_per_sec
        end = endings.get((job.job_id, stage.name))
        if end is not None and is_over(stage):
            loss, grad_norm = end.loss, end.grad_norm
            batch = flat.get(f"spec.stages[{at}].train.globalBatch")
            if isinstance(batch, int) and end.step_seconds:
                samples_per_sec = batch / end.step_seconds
        return StageFigures(
            name=stage.name,
            steps=stage.step,
            steps_total=stage.steps_total,
            loss=loss,
            mean_loss=end.mean_loss if end is not None else None,
            grad_norm=grad_norm,
            samples_per_sec=samples_per_sec,
            pairs=stage.pairs_committed,
            restarts=stage.restarts,
        )

    return JobFigures(
        job_id=job.job_id,
        state=job.state,
        duration_seconds=took,
        restarts=sum(stage.restarts for stage in job.stages),
        stages=tuple(figures(at, stage) for at, stage in enumerate(job.stages)),
    )


def differences(specs: Sequence[object]) -> tuple[Difference, ...]:
    """The leaves in which specs differ, in the order of the first spec that has them."""
    flat = [dict(leaves("", spec)) for spec in specs]
    paths = dict.fromkeys(path for one in flat for path in one)
    rows = [Difference(path, tuple(one.get(path, ABSENT) for one in flat)) for path in paths]
    return tuple(row for row in rows if any(not _same(value, row.values[0]) for value in row.values[1:]))


def _same(left: object, right: object) -> bool:
    # In Python True is 1; in a spec it is not.
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    """Every scalar with its path. What is empty is a leaf too, or it could not be told from what is absent."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(f"{path}.{name}" if path else str(name), inner)
    elif isinstance(value, list) and value:
        for at, inner in enumerate(value):
            yield from leaves(f"{path}[{at}]", inner)
    else:
        yield path, value


def _text(value: object) -> str:
    if value is None:
        return "?"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Loader(yaml.SafeLoader):
    """Scalars as YAML 1.2 has them, which is what specs are written in: `1e-5` is a number and `off` is a word."""


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
#: Tag, what is one of it, and the characters that such begin with. The first that fits counts.
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # That of YAML 1.1 takes a leading 0 for octal.
    return int(loader.construct_scalar(node), 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def load_spec(resolved_spec_yaml: str) -> object:
    """The spec as mappings, lists and scalars."""
    return yaml.load(resolved_spec_yaml, Loader=_Loader)
