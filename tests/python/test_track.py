"""What a tracker is told of a job, before any tracker is there: pure, and the loop over a played cluster and tracker."""

import contextlib
import dataclasses
import json
import math
import posixpath

import crescendo
import pytest
from crescendo import _mlflow, _tracked, _wandb, track
from crescendo._tracked import TrackerError
from crescendo.records import Checkpoint, CheckpointFile, Job, JobState, Lineage
from crescendo.v1 import deletion_pb2, job_pb2

SPEC = """
metadata: {name: two, labels: {team/x: vision}}
spec:
  stages:
    - {name: stage-1, train: {globalBatch: 8, learningRate: 1e-5, betas: [0.9, 0.999], ema: null}}
    - {name: stage-2, train: {globalBatch: 4, off: "yes"}}
"""


def line(step, loss=0.5, **more):
    """As the trainer writes it: what is not finite is null."""
    record = {"step": step, "loss": loss, "grad_norm": 1.25, "learning_rate": 1e-5, "seconds": 2.0, **more}
    return json.dumps(record, allow_nan=False) + "\n"


def history(first, last, **more):
    return "".join(line(step, at_unix_secs=1000.5 + step, **more) for step in range(first, last + 1)).encode()


def a_job(state=job_pb2.JOB_STATE_RUNNING, steps=(0, 0), spec=SPEC, reason=""):
    raw = job_pb2.Job(
        job_id="two-abc123", name="two", tenant="research", state=state, resolved_spec_yaml=spec, reason=reason,
        labels={"team/x": "vision", "group": "g1"},
    )  # fmt: skip
    for name, total, step in zip(("stage-1", "stage-2"), (60, 20), steps, strict=True):
        raw.stages.add(name=name, steps_total=total, checkpoint_step=step, pairs_committed=7, restarts=1)
    raw.submitted_at.FromSeconds(900)
    raw.started_at.FromSeconds(1000)
    return Job._of(raw)


def a_lineage():
    answer = deletion_pb2.GetLineageResponse()
    answer.lineage.job_id, answer.lineage.spec_sha256 = "two-abc123", "ab" * 32
    getattr(answer.lineage, "from").append("base.safetensors")
    answer.lineage.final_checkpoints.add(stage="stage-1", step=60, path="jobs/two-abc123/stage-1/checkpoints/step-60")
    return Lineage._of(answer)


def about(**fields):
    return dataclasses.replace(_tracked.about(a_job(), a_lineage()), **fields)


def test_parameters_are_the_leaves_of_the_spec_as_yaml_writes_them():
    found = _tracked.parameters(SPEC)
    assert found["metadata.labels.team/x"] == "vision" and found["spec.stages.0.train.globalBatch"] == "8"
    assert float(found["spec.stages.0.train.learningRate"]) == 1e-5
    assert found["spec.stages.0.train.betas.1"] == "0.999" and found["spec.stages.0.train.ema"] == "null"
    assert found["spec.stages.1.train.off"] == "yes"
    assert _tracked.parameters("a: true\nb: []\n") == {"a": "true", "b": "[]"}


def test_facts_say_whose_it_is_and_where_it_came_from():
    told = about()
    assert (told.job_id, told.state, told.stages) == ("two-abc123", JobState.RUNNING, ("stage-1", "stage-2"))
    wanted = {
        "crescendo.job_id": "two-abc123",
        "crescendo.tenant": "research",
        "crescendo.state": "running",
        "crescendo.label.team/x": "vision",
        "crescendo.stage-2.pairs": "7",
        "crescendo.made_from.0": "base.safetensors",
        "crescendo.spec_sha256": "ab" * 32,
        "crescendo.stage-1.final_checkpoint": "jobs/two-abc123/stage-1/checkpoints/step-60",
    }
    assert wanted.items() <= told.facts.items()


def test_steps_of_a_later_stage_count_those_before_it():
    [first, second] = _tracked.steps(a_job(), "stage-2", history(1, 2))
    assert (first.step, first.overall, second.overall) == (1, 61, 62)
    assert first.at_unix_seconds == 1001.5
    assert dict(second.named()) == {
        "stage-2/loss": 0.5,
        "stage-2/grad_norm": 1.25,
        "stage-2/learning_rate": 1e-5,
        "stage-2/step_seconds": 2.0,
        "stage-2/samples_per_sec": 2.0,
        "stage-2/skipped": 0.0,
    }


def test_what_is_not_finite_is_not_a_number_and_old_histories_get_times():
    lines = line(1, loss=None, grad_norm=None, skipped=True) + line(2) + '{"step": 3, "loss": Infinity, "seconds": 1}\n'
    one, two, three = _tracked.steps(a_job(), "stage-1", lines.encode())
    assert math.isnan(one.values["loss"]) and math.isnan(one.values["grad_norm"]) and one.values["skipped"] == 1
    assert [step.at_unix_seconds for step in (one, two, three)] == [1002, 1004, 1005], "the job began at 1000"
    assert math.isnan(three.values["loss"]) and "grad_norm" not in three.values


BAD_NAMES = [
    "a[0]", "a%", "a=b", "a@b", "a:b", "a,b", "a//b", "/a", "a/", "a/../b", "..", ".", "", "a/.", "x" * 251, "x" * 250 + "%",
    "läng/ä", "a\nb",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_mlflow_refuses_become_others_of_their_own(name):
    found = _mlflow.name_for(name)
    assert found and len(found) <= 250 and posixpath.normpath(found) == found and not found.startswith((".", "/"))
    assert set("[]%=@:,\n").isdisjoint(found)
    assert len({_mlflow.name_for(one) for one in BAD_NAMES}) == len(BAD_NAMES), "no two become one"
    assert found == _mlflow.name_for(name), "the same the next time"


def test_names_that_mlflow_takes_stay():
    for name in ["spec.stages.0.train.learningRate", "stage-1/grad_norm", "metadata.labels.team/x", "a b", "x" * 250]:
        assert _mlflow.name_for(name) == name


def test_a_long_parameter_goes_into_parts_and_nothing_is_lost():
    long = "".join(chr(97 + at % 26) for at in range(13_001))
    kept = _mlflow.params_for({"spec.long": long, "spec.exact": "x" * 6000, "spec.empty": ""})
    assert [len(value) for value in kept.values()] == [6000, 6000, 1001, 6000, 0]
    assert "".join(kept[name] for name in ("spec.long", "spec.long.part2", "spec.long.part3")) == long
    assert _mlflow.tags_for({"crescendo.reason": "r" * 9000})["crescendo.reason"] == "r" * 4999 + "…"


def test_batches_hold_whole_steps_up_to_the_limit():
    steps = _tracked.steps(a_job(), "stage-1", history(1, 500))
    found = list(_mlflow.batches(steps))
    assert [len(batch) for batch in found] == [166, 166, 166, 2], "166 steps of six metrics are 996"
    assert [step for batch in found for step in batch] == steps
    assert list(_mlflow.batches([])) == []


def test_what_is_missing_is_what_some_metric_lacks():
    steps = _tracked.steps(a_job(), "stage-1", history(1, 5))
    assert _mlflow.missing(steps, {}) == steps
    there = {name: 5 for name, _ in steps[0].named()}
    assert _mlflow.missing(steps, there) == []
    # A batch of which a server took a part is sent again.
    assert _mlflow.missing(steps, {**there, "stage-1/skipped": 3}) == steps[3:]


def test_wandb_gets_numbers_as_numbers_and_labels_as_tags():
    config = _wandb.config_for(about())
    assert config["spec.stages.0.train.globalBatch"] == 8 and config["spec.stages.0.train.learningRate"] == 1e-5
    assert config["spec.stages.0.train.ema"] is None and config["spec.stages.1.train.off"] == "yes"
    assert config["crescendo.tenant"] == "research"
    assert _wandb.tags_for(about(labels={"team": "vision", "k" * 40: "v" * 40})) == ["team=vision"]


def test_what_files_without_a_server_hold_is_read_back():
    records = [
        {"type": "header"},
        {"type": "run", "run": {"config": {"update": {"crescendo.state": "running"}}}},
        {"type": "history", "history": {"item": {}, "step": {"num": 7}}},
        {"type": "config", "config": {"update": {"crescendo.state": "succeeded"}}},
    ]
    assert _wandb.written(map(json.dumps, records)) == _wandb.Written(7, "succeeded")
    assert _wandb.written([]) == _wandb.Written(0, "")


class Cluster:
    """What `track` asks of a client. `shown` are the jobs of a watch, `histories` what is in the newest checkpoints."""

    def __init__(self, *shown):
        self.shown, self.histories, self.fetched = shown, {}, []

    def get(self, job_id):
        assert job_id == "two-abc123"
        return self.shown[-1] if self.fetched else self.shown[0]

    def watch(self, job):
        # Without the spec, as a controller does.
        yield from (dataclasses.replace(one, resolved_spec_yaml="") for one in self.shown)

    def lineage(self, job):
        return a_lineage()

    def checkpoints(self, job_id, stage):
        file = CheckpointFile("history.jsonl", 1, "0" * 64)
        return [Checkpoint(job_id, stage, 1, 10, "p", (file,), None, False, "", False, None)]

    def fetch(self, checkpoint, folder, name):
        self.fetched.append(checkpoint.stage)
        to = crescendo._objects.pathlib.Path(folder, name)
        content = self.histories[checkpoint.stage].pop(0)
        if isinstance(content, Exception):
            raise content
        to.write_bytes(content)
        return to


class Played:
    """A tracker that keeps what it is told; each of `failures` is raised once instead."""

    def __init__(self, *failures):
        self.steps, self.failures, self.closed = [], list(failures), []

    def open(self, job):
        self.opened = job

    def add(self, steps):
        if self.failures:
            raise self.failures.pop(0)
        new = [step for step in steps if step not in self.steps]
        self.steps += new
        return len(new)

    def close(self, job):
        self.closed.append(job.state)
        return "there"


def ended(steps):
    return a_job(state=job_pb2.JOB_STATE_SUCCEEDED, steps=steps)


def test_a_job_is_followed_and_no_step_comes_twice():
    client = Cluster(a_job(), a_job(steps=(20, 0)), a_job(steps=(20, 0)), a_job(steps=(60, 10)), ended((60, 20)))
    client.histories = {"stage-1": [history(1, 20), history(1, 60)], "stage-2": [history(1, 10), history(1, 20)]}
    tracker = Played()
    assert track.track(client, "two-abc123", tracker, follow=True) == (80, "there")
    assert [step.overall for step in tracker.steps] == list(range(1, 81)), "each once, and in order"
    assert client.fetched == ["stage-1", "stage-1", "stage-2", "stage-2"], "a history is read once a checkpoint"
    assert {len(step.values) for step in tracker.steps} == {6}, "every curve is whole"
    assert tracker.closed == [JobState.SUCCEEDED]


def test_a_tracker_that_is_away_for_a_while_gets_all_of_it():
    client = Cluster(a_job(), a_job(steps=(20, 0)), a_job(steps=(40, 0)), ended((60, 0)))
    client.histories = {"stage-1": [history(1, 20), history(1, 40), history(1, 60)]}
    tracker, troubles = Played(TrackerError("away"), TrackerError("away")), []
    added, _ = track.track(client, "two-abc123", tracker, follow=True, on_trouble=troubles.append)
    assert added == 60 and [step.step for step in tracker.steps] == list(range(1, 61))
    assert troubles == ["away; it is tried again"] * 2


def test_a_tracker_that_stays_away_is_an_error_also_of_a_followed_job():
    client = Cluster(a_job(), ended((60, 0)))
    client.histories = {"stage-1": [history(1, 60)] * 2}
    tracker = Played(TrackerError("away"), TrackerError("gone"))
    with pytest.raises(TrackerError, match="gone"):
        track.track(client, "two-abc123", tracker, follow=True, patience_seconds=0)
    assert tracker.closed, "what was written is ended all the same"


def test_a_history_that_cannot_be_read_is_told_and_the_others_come():
    client = Cluster(ended((60, 20)))
    client.histories = {"stage-1": [crescendo.CorruptError("bad")], "stage-2": [history(1, 20)]}
    tracker, troubles = Played(), []
    assert track.track(client, "two-abc123", tracker, on_trouble=troubles.append)[0] == 20
    assert troubles == ["stage-1: its history cannot be read: bad"]
    assert tracker.steps[0].overall == 61


def test_the_program_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with contextlib.suppress(SystemExit):
        track.main(["two-abc123", "--to", "mlflow"])
    assert "--tracking-uri, or MLFLOW_TRACKING_URI" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        track.main(["two-abc123", "--to", "elsewhere"])


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("mlflow.entities", lambda: track.MlflowTracker("http://127.0.0.1:1", "x"), "mlflow"),
        ("wandb", lambda: track.WandbTracker("x", crescendo._objects.pathlib.Path()), "wandb"),
    ],
)
def test_without_the_package_it_is_named(module, make, extra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(TrackerError, match=rf"pip install 'crescendo-client\[{extra}\]'"):
        make()
