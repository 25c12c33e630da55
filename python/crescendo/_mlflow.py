"""MLflow: one run a job, found by its tag. Only what the run lacks is sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from crescendo._tracked import About, Step, TrackerError
from crescendo.records import JobState

#: What a server takes at once; it refuses a whole batch that has more.
MOST_METRICS = 1000
MOST_PARAMS = 100
MOST_TAGS = 100
#: Characters of a name, which is refused beyond it; of a parameter, which a server cuts without a word beyond it; and
#: of a tag, which older servers refuse beyond it.
MOST_NAME = 250
MOST_PARAM = 6000
MOST_TAG = 5000
#: The tag that a run is found by.
JOB_TAG = "crescendo.job_id"

#: Where else a server has its limit, a name with any other character has the whole batch refused.
_OTHER = re.compile(r"[^\w\-. /]")
_STATES = {JobState.SUCCEEDED: "FINISHED", JobState.FAILED: "FAILED", JobState.CANCELLED: "KILLED"}


def name_for(name: str) -> str:
    """The name itself, if MLflow takes it; else one that it takes, and that no other name becomes."""
    clean = _OTHER.sub("_", name)
    # Names may become paths there: none may lead elsewhere, or be another one's.
    if posixpath.normpath(clean) != clean or clean.startswith(("/", "..")) or clean == ".":
        clean = clean.replace("/", "_").strip(".") or "_"
    if clean == name and len(name) <= MOST_NAME:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{clean[: MOST_NAME - len(mark) - 1]}.{mark}"


def params_for(params: Mapping[str, str]) -> dict[str, str]:
    """Parameters as they are kept: what is too long for one goes into several, so that nothing is lost."""
    kept: dict[str, str] = {}
    for name, value in params.items():
        pieces = [value[at : at + MOST_PARAM] for at in range(0, len(value), MOST_PARAM)] or [""]
        for number, piece in enumerate(pieces, start=1):
            kept[name_for(name if number == 1 else f"{name}.part{number}")] = piece
    return kept


def tags_for(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts as tags; what is too long for one is cut, and ends with an ellipsis."""
    return {
        name_for(name): value if len(value) <= MOST_TAG else f"{value[: MOST_TAG - 1]}…"
        for name, value in facts.items()
    }


def batches(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Whole steps, as many as one request may have metrics of."""
    batch: list[Step] = []
    metrics = 0
    for step in steps:
        if batch and metrics + len(step.values) > MOST_METRICS:
            yield batch
            batch, metrics = [], 0
        batch.append(step)
        metrics += len(step.values)
    if batch:
        yield batch


def missing(steps: Sequence[Step], there: Mapping[str, int]) -> list[Step]:
    """The steps that are not there in whole; `there` has the last step of each metric."""
    return [step for step in steps if any(there.get(name_for(name), 0) < step.step for name, _ in step.named())]


class MlflowTracker:
    """A tracking server, as MLflow's own client reaches it."""

    def __init__(self, uri: str, experiment: str) -> None:
        # A program that is run by others tells nobody of it, and prints what it says itself.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A minute of tries, not five.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        try:
            import mlflow.entities  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415
            import mlflow.exceptions  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415
            import mlflow.tracking  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415
        except ImportError as lacking:
            raise TrackerError("MLflow is reached with its client: pip install 'crescendo-client[mlflow]'") from lacking
        self._mlflow: Any = mlflow
        self._client: Any = mlflow.tracking.MlflowClient(uri)
        self._uri, self._experiment = uri, experiment
        self._run_id = ""
        #: The last step of each metric.
        self._there: dict[str, int] = {}

    def open(self, job: About) -> None:
        """Finds the job's run, or makes it, and tells what it lacks."""
        with self._told():
            experiment_id = self._experiment_id()
            runs = self._client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{job.job_id}'")
            if runs:
                # Of several, made at the same moment, always the same one.
                run = min(runs, key=lambda run: (run.info.start_time, run.info.run_id))
            else:
                run = self._client.create_run(
                    experiment_id, start_time=_millis(job.began_at), tags={JOB_TAG: job.job_id}, run_name=job.job_id
                )
            self._run_id = run.info.run_id
            self._there = {}
            for name in run.data.metrics:
                history = self._client.get_metric_history(self._run_id, name)
                self._there[name] = max((point.step for point in history), default=0)
            lacking = {name: value for name, value in params_for(job.params).items() if name not in run.data.params}
            for some in _chunks(list(lacking.items()), MOST_PARAMS):
                self._client.log_batch(self._run_id, params=[self._mlflow.entities.Param(*one) for one in some])
            if not job.state.is_final and run.info.status != "RUNNING":
                self._client.update_run(self._run_id, status="RUNNING")

    def add(self, steps: Sequence[Step]) -> int:
        """Adds those that are not there; says how many."""
        lacking = missing(steps, self._there)
        with self._told():
            for batch in batches(lacking):
                points = [(name_for(name), value, step) for step in batch for name, value in step.named()]
                metrics = [
                    self._mlflow.entities.Metric(name, value, round(step.at_unix_seconds * 1000), step.step)
                    for name, value, step in points
                ]
                self._client.log_batch(self._run_id, metrics=metrics)
                self._there.update((name, step.step) for name, _, step in points)
        return len(lacking)

    def close(self, job: About) -> str:
        """Tells how the job stands; says where the run is."""
        with self._told():
            for some in _chunks(list(tags_for(job.facts).items()), MOST_TAGS):
                self._client.log_batch(self._run_id, tags=[self._mlflow.entities.RunTag(*one) for one in some])
            if (state := _STATES.get(job.state)) is not None:
                self._client.set_terminated(self._run_id, state, end_time=_millis(job.finished_at))
        return f"run {self._run_id} of {self._uri}"

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self._experiment))
            except self._mlflow.exceptions.MlflowException:
                # Somebody else may have made it meanwhile.
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackerError(f"the experiment {self._experiment} of {self._uri} is deleted")
        return str(found.experiment_id)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._mlflow.exceptions.MlflowException as error:
            # Said by servers from 3.5 on that are asked by a name which they were not told.
            hint = "; start the server with --allowed-hosts" if "Invalid Host header" in str(error) else ""
            raise TrackerError(f"MLflow at {self._uri}: {error}{hint}") from error


def _chunks(items: list[tuple[str, str]], most: int) -> Iterator[list[tuple[str, str]]]:
    for at in range(0, len(items), most):
        yield items[at : at + most]


def _millis(at: datetime | None) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)
