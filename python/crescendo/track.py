"""Shows a job in a tracker, MLflow or Weights & Biases: the program `crescendo-track`, and `track` for others.

Steps come from the histories in the job's checkpoints, where each step stands once however often the job was
interrupted: with every checkpoint there are more of them. What the tracker has already is not sent again.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from crescendo import _cli, _objects, _tracked
from crescendo._mlflow import MlflowTracker
from crescendo._tracked import About, Step, TrackerError
from crescendo._wandb import WandbTracker
from crescendo.client import Client
from crescendo.errors import CorruptError, CrescendoError, NotFoundError
from crescendo.records import Job

__all__ = ["About", "MlflowTracker", "Step", "Tracker", "TrackerError", "WandbTracker", "main", "track"]

PROGRAM = "crescendo-track"
#: Once the job has ended: how long a tracker that is not there is waited for, and between two tries, seconds.
_PATIENCE_SECONDS = 600.0
_PAUSE_SECONDS = 10.0


class Tracker(Protocol):
    """Where a job is shown."""

    def open(self, job: About) -> None:
        """Finds the job's run, or makes it."""

    def add(self, steps: Sequence[Step]) -> int:
        """Adds what is not there of a stage's steps, all of which are given; says how many that were."""

    def close(self, job: About) -> str:
        """Tells how the job stands, and ends; says where the run is."""


def track(
    client: Client,
    job_id: str,
    tracker: Tracker,
    *,
    follow: bool = False,
    on_trouble: Callable[[str], None] = _cli.nobody,
    patience_seconds: float = _PATIENCE_SECONDS,
) -> tuple[int, str]:
    """Brings a tracker up to the job's newest checkpoints; with `follow`, until the job has ended.

    Returns how many steps were added, and where the run is. `on_trouble` is told what could not be read, and what of a
    followed job has to be tried again. Raises TrackerError if the tracker is not there: of a followed job only at the
    beginning, and at the end after `patience_seconds`.
    """
    export = _Export(client, tracker, on_trouble)
    told = client.get(job_id)
    tracker.open(_tracked.about(told, client.lineage(told)))
    try:
        export.bring(told)
        if follow:
            spec = told.resolved_spec_yaml
            for seen in client.watch(job_id):
                # Watches leave out the spec.
                told = dataclasses.replace(seen, resolved_spec_yaml=spec)
                try:
                    export.bring(told)
                except TrackerError as error:
                    on_trouble(f"{error}; it is tried again")
            told = client.get(job_id)
            _until(lambda: export.bring(told), patience_seconds, on_trouble)
    finally:
        # Also of what somebody has broken off, so that the next time begins behind it.
        where = tracker.close(_tracked.about(told, client.lineage(told)))
    return export.added, where


class _Export:
    """What has been brought so far."""

    def __init__(self, client: Client, tracker: Tracker, on_trouble: Callable[[str], None]) -> None:
        self._client, self._tracker, self._on_trouble = client, tracker, on_trouble
        #: Step of the checkpoint whose history each stage was brought up to.
        self._brought: dict[str, int] = {}
        self.added = 0

    def bring(self, job: Job) -> None:
        """Adds what newer checkpoints have, in the order of the stages."""
        for stage in job.stages:
            if stage.checkpoint_step > self._brought.get(stage.name, 0):
                try:
                    history = self._history(job.job_id, stage.name)
                except (CorruptError, NotFoundError) as error:
                    self._on_trouble(f"{stage.name}: its history cannot be read: {error}")
                else:
                    self.added += self._tracker.add(_tracked.steps(job, stage.name, history))
                self._brought[stage.name] = stage.checkpoint_step

    def _history(self, job_id: str, stage: str) -> bytes:
        checkpoint = _objects.choose(self._client.checkpoints(job_id, stage), job_id, stage, None)
        with tempfile.TemporaryDirectory(prefix="crescendo-") as folder:
            return self._client.fetch(checkpoint, folder, name=_objects.HISTORY_FILE).read_bytes()


def _until(action: Callable[[], None], patience_seconds: float, on_trouble: Callable[[str], None]) -> None:
    end = time.monotonic() + patience_seconds
    while True:
        try:
            return action()
        except TrackerError as error:
            if time.monotonic() + _PAUSE_SECONDS > end:
                raise
            on_trouble(f"{error}; it is tried again")
            time.sleep(_PAUSE_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.partition("\n")[0])
    parser.add_argument("job", metavar="JOB", help="the job's id")
    parser.add_argument("--to", required=True, choices=["mlflow", "wandb"], help="the tracker")
    parser.add_argument("--follow", action="store_true", help="go on until the job has ended")
    parser.add_argument(
        "--project", default="crescendo", help="MLflow's experiment, W&B's project [default: %(default)s]"
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow's server, http://HOST:PORT [default: MLFLOW_TRACKING_URI]"
    )
    parser.add_argument(
        "--dir", type=pathlib.Path, default=pathlib.Path(), metavar="DIR",
        help="where W&B writes its folder `wandb` [default: here]",
    )  # fmt: skip
    _cli.add_controller(parser)
    options = parser.parse_args(arguments)
    uri: str = options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if options.to == "mlflow" and not uri:
        parser.error("MLflow's server is not named: --tracking-uri, or MLFLOW_TRACKING_URI")

    def trouble(line: str) -> None:
        _cli.warn(PROGRAM, line)

    try:
        tracker: Tracker
        if options.to == "mlflow":
            tracker = MlflowTracker(uri, options.project)
        else:
            tracker = WandbTracker(options.project, options.dir)
        with _cli.connect(options.controller) as client:
            added, where = track(client, options.job, tracker, follow=options.follow, on_trouble=trouble)
    except KeyboardInterrupt:
        return 130
    except (CrescendoError, ValueError, OSError) as error:
        _cli.warn(PROGRAM, f"error: {error}")
        return 1
    _cli.say(f"{added} steps of {options.job} added: {where}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
