"""Weights & Biases: one run a job, under the job's id. Only what the run lacks is logged."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from crescendo._tracked import About, Step, TrackerError
from crescendo.records import JobState

#: Characters of a tag, which are refused beyond it.
MOST_TAG = 64


def tags_for(job: About) -> list[str]:
    """Labels as tags; those that are too long for one are in the configuration alone."""
    tags = [f"{name}={value}" for name, value in job.labels.items()]
    return [tag for tag in tags if len(tag) <= MOST_TAG]


def config_for(job: About) -> dict[str, str | float | bool | None]:
    """Parameters and facts. Numbers are numbers, so that runs can be ordered by them."""
    return {**{name: _scalar(value) for name, value in job.params.items()}, **job.facts}


def _scalar(value: str) -> str | float | bool | None:
    try:
        read = json.loads(value)
    except ValueError:
        return value
    return read if read is None or isinstance(read, (bool, int, float)) else value


@dataclass(frozen=True)
class Written:
    """What files of a run hold that were written without a server."""

    #: Step of the last row, over all stages; 0 if there is none.
    last_step: int
    #: The job's, when they were written; empty if there are none.
    state: str


def written(records: Iterable[str]) -> Written:
    """Of the lines of `wandb leet inspect --json`, of all files of a run in their order."""
    last_step, state = 0, ""
    for line in records:
        record = json.loads(line)
        if record["type"] == "history":
            last_step = max(last_step, record["history"]["step"]["num"])
        for update in (record.get("run", {}).get("config", {}), record.get("config", {})):
            state = update.get("update", {}).get("crescendo.state", state)
    return Written(last_step, state)


class WandbTracker:
    """A server, or files of a folder, as wandb's own package writes to them."""

    def __init__(self, project: str, folder: pathlib.Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415
        except ImportError as lacking:
            raise TrackerError("W&B is reached with its package: pip install 'crescendo-client[wandb]'") from lacking
        self._wandb: Any = wandb
        self._project, self._folder = project, folder
        self._job: About | None = None
        self._run: Any = None
        self._written = Written(0, "")
        #: Up to it all steps are there.
        self._last_step = 0

    def open(self, job: About) -> None:
        """Looks for what is there. Without a server a new file is begun only once there is something to write."""
        self._job = job
        if self._is_offline():
            self._written = self._read_back(job.job_id)
            self._last_step = self._written.last_step
        else:
            self._begin()
            # A server says behind which step to go on.
            self._last_step = max(self._last_step, self._run.starting_step - 1)

    def add(self, steps: Sequence[Step]) -> int:
        """Logs those behind the last one: a step that is not above it would be dropped."""
        lacking = [step for step in steps if step.overall > self._last_step]
        if lacking:
            self._begin()
        with self._told():
            for step in lacking:
                row = {**dict(step.named()), f"{step.stage}/step": step.step, "_timestamp": step.at_unix_seconds}
                self._run.log(row, step=step.overall)
                self._last_step = step.overall
        return len(lacking)

    def close(self, job: About) -> str:
        """Ends the writing; says where the run is."""
        if self._run is None and self._written.state == job.state:
            return f"files of {self._folder / 'wandb'}, where nothing is new"
        self._begin()
        with self._told():
            self._run.config.update(config_for(job), allow_val_change=True)
            where = self._run.settings.sync_dir if self._run.offline else self._run.url
            self._run.finish(exit_code=int(job.state in (JobState.FAILED, JobState.CANCELLED)))
        self._run = None
        return str(where)

    def _is_offline(self) -> bool:
        # By the environment, or by what `wandb offline` has noted in the folder.
        mode = self._wandb.setup().settings.mode
        if mode == "disabled":
            raise TrackerError("W&B is switched off: WANDB_MODE is disabled")
        return mode in ("offline", "dryrun")

    def _begin(self) -> None:
        if self._run is not None or self._job is None:
            return
        job = self._job
        self._folder.mkdir(parents=True, exist_ok=True)
        # Nothing of the machine that this runs on: it is not the one that trains.
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        with self._told():
            self._run = self._wandb.init(
                id=job.job_id,
                resume="allow",
                project=self._project,
                name=job.job_id,
                group=job.labels.get("group"),
                tags=tags_for(job),
                config=config_for(job),
                dir=str(self._folder),
                settings=settings,
            )
            for stage in job.stages:
                self._run.define_metric(f"{stage}/step", hidden=True)
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def _read_back(self, job_id: str) -> Written:
        """What the files of earlier runs hold, of which each has what the ones before it lack."""
        lines: list[str] = []
        files = self._folder.glob(f"wandb/offline-run-*/run-{job_id}.wandb")
        # Folders are named by time and id, and in one second by a number behind.
        for file in sorted(files, key=lambda file: file.parent.name):
            command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise TrackerError(f"{file} cannot be read back: {done.stderr.strip() or done.stdout.strip()}")
            lines += done.stdout.splitlines()
        return written(lines)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (self._wandb.Error, OSError) as error:
            raise TrackerError(f"W&B: {error}") from error
