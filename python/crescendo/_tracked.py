"""What a tracker is told of a job: made of its record and of the histories in its checkpoints. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from crescendo.comparison import leaves, load_spec
from crescendo.errors import CrescendoError
from crescendo.records import Job, JobState, Lineage


class TrackerError(CrescendoError):
    """The tracker is not there, or refuses what it is told."""


@dataclass(frozen=True)
class About:
    """A job as a tracker shows it, beside its curves."""

    job_id: str
    name: str
    state: JobState
    #: In their order.
    stages: tuple[str, ...]
    #: Every leaf of the resolved spec, e.g. `spec.stages.0.train.learningRate`.
    params: Mapping[str, str]
    #: What is not of the spec: who it is of, what it was made from and has made.
    facts: Mapping[str, str]
    labels: Mapping[str, str]
    #: When its first stage began, or else when it was submitted.
    began_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class Step:
    """One step of a stage."""

    stage: str
    #: Of the stage, from 1.
    step: int
    #: Of the job: all steps of the stages before are counted first, also those that were left out.
    overall: int
    at_unix_seconds: float
    #: Every value is a number; not-a-number stands for what was not finite.
    values: Mapping[str, float]

    def named(self) -> Iterator[tuple[str, float]]:
        """Each value under its name among those of all stages."""
        for name, value in self.values.items():
            yield f"{self.stage}/{name}", value


def about(job: Job, lineage: Lineage | None) -> About:
    """Of the job as `get` gives it."""
    facts = {
        "crescendo.job_id": job.job_id,
        "crescendo.tenant": job.tenant,
        "crescendo.state": str(job.state),
        "crescendo.reason": job.reason,
        **{f"crescendo.label.{name}": value for name, value in job.labels.items()},
    }
    for stage in job.stages:
        facts[f"crescendo.{stage.name}.pairs"] = str(stage.pairs_committed)
        facts[f"crescendo.{stage.name}.restarts"] = str(stage.restarts)
    if lineage is not None:
        facts["crescendo.spec_sha256"] = lineage.spec_sha256
        for at, source in enumerate(lineage.made_from):
            facts[f"crescendo.made_from.{at}"] = source
        for checkpoint in lineage.final_checkpoints:
            facts[f"crescendo.{checkpoint.stage}.final_checkpoint"] = checkpoint.path
    return About(
        job_id=job.job_id,
        name=job.name,
        state=job.state,
        stages=tuple(stage.name for stage in job.stages),
        params=parameters(job.resolved_spec_yaml),
        facts=facts,
        labels=dict(job.labels),
        began_at=job.started_at or job.submitted_at,
        finished_at=job.finished_at,
    )


def parameters(resolved_spec_yaml: str) -> dict[str, str]:
    """Every leaf of a spec, as YAML writes it; an item of a list by its number."""
    spec = load_spec(resolved_spec_yaml)
    found = ((path.replace("[", ".").replace("]", ""), value) for path, value in leaves("", spec))
    return {path: value if isinstance(value, str) else json.dumps(value) for path, value in found if path}


def steps(job: Job, stage_name: str, history: bytes) -> list[Step]:
    """Those of a `history.jsonl`, from the stage's first one on.

    Histories from before the time of a step was kept get the times that their durations add up to.
    """
    before, batch = 0, None
    flat = dict(leaves("", load_spec(job.resolved_spec_yaml)))
    for at, stage in enumerate(job.stages):
        if stage.name == stage_name:
            batch = flat.get(f"spec.stages[{at}].train.globalBatch")
            break
        before += stage.steps_total
    clock = job.started_at.timestamp() if job.started_at else 0.0
    found: list[Step] = []
    for line in history.splitlines():
        record = json.loads(line)
        clock += record["seconds"]
        values = {name: _number(record[name]) for name in ("loss", "grad_norm", "learning_rate") if name in record}
        values["step_seconds"] = _number(record["seconds"])
        if isinstance(batch, int) and record["seconds"] > 0:
            values["samples_per_sec"] = batch / record["seconds"]
        # Of every step, so that all curves are equally long.
        values["skipped"] = float(record.get("skipped", False))
        at_unix_seconds = record.get("at_unix_secs") or clock
        found.append(Step(stage_name, record["step"], before + record["step"], at_unix_seconds, values))
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else float(value)
