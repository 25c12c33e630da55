"""Jobs in a real MLflow server and in real files of Weights & Biases: what is read back is what the history has.

Where the packages are: `make track-test` installs them, and wants none of this to be skipped.
"""

import importlib.util
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import crescendo
import pytest
from conftest import DEADLINE_SECONDS, eventually, spec
from crescendo import _tracked, track
from crescendo._tracked import TrackerError
from crescendo.records import JobState
from test_track import a_job, a_lineage, history, line

REQUIRED = os.environ.get("CRESCENDO_REQUIRE_TRACKERS")
START_SECONDS = 300
#: Not what a server expects to be asked by, unless it is told.
HOST = "127.0.0.2"


def needs(package):
    there = importlib.util.find_spec(package) is not None
    assert there or not REQUIRED, f"{package} is required here"
    return pytest.mark.skipif(not there, reason=f"{package} is not installed: make track-test has it")


mlflow_only, wandb_only = needs("mlflow"), needs("wandb")


def about(job=None):
    return _tracked.about(job or a_job(), a_lineage())


def ended(state):
    job = a_job(state=state, reason="of its own")
    job.raw.finished_at.FromSeconds(5000)
    return _tracked.about(crescendo.Job._of(job.raw), a_lineage())


FAILED, SUCCEEDED = ended(crescendo.v1.job_pb2.JOB_STATE_FAILED), ended(crescendo.v1.job_pb2.JOB_STATE_SUCCEEDED)


# --- MLflow ----------------------------------------------------------------------------------------------------------


def start_mlflow(folder, *options):
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", *options]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "server.log", "wb") as log:
        # In a session of its own: workers end with it.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        )
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return process, f"http://{HOST}:{port}"
    process.kill()
    pytest.fail((folder / "server.log").read_text())


def stop(process):
    os.killpg(process.pid, 15)
    process.wait(30)


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory):
    process, uri = start_mlflow(tmp_path_factory.mktemp("mlflow"), "--allowed-hosts", f"{HOST}:*")
    yield uri
    stop(process)


class Read:
    """A run as MLflow's own client reads it."""

    def __init__(self, uri, experiment, job_id="two-abc123"):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        [run] = client.search_runs([found.experiment_id], f"tags.`crescendo.job_id` = '{job_id}'")
        self.info, self.params, self.tags = run.info, run.data.params, run.data.tags
        self.curves = {
            name: [(one.step, one.value, one.timestamp) for one in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }


def bring(tracker, job, *stages):
    tracker.open(job)
    added = [tracker.add(_tracked.steps(a_job(), stage, content)) for stage, content in stages]
    tracker.close(job)
    return added


@mlflow_only
def test_mlflow_has_the_values_of_the_history(mlflow_uri):
    lines = line(1, loss=None, grad_norm=None, skipped=True, at_unix_secs=1001.25) + "".join(
        line(step, loss=1 / step, at_unix_secs=1000.25 + step) for step in range(2, 401)
    )
    tracker = track.MlflowTracker(mlflow_uri, "values")
    assert bring(tracker, SUCCEEDED, ("stage-1", lines.encode()), ("stage-2", history(1, 3))) == [400, 3]
    run = Read(mlflow_uri, "values")
    assert len(run.curves) == 12
    first, *others = run.curves["stage-1/loss"]
    assert math.isnan(first[1]) and (first[0], first[2]) == (1, 1_001_250)
    assert others == [(step, 1 / step, 1_000_250 + 1000 * step) for step in range(2, 401)]
    assert math.isnan(run.curves["stage-1/grad_norm"][0][1]) and run.curves["stage-1/grad_norm"][1][1] == 1.25
    assert [value for _, value, _ in run.curves["stage-1/skipped"]] == [1.0] + [0.0] * 399
    assert [step for step, *_ in run.curves["stage-2/samples_per_sec"]] == [1, 2, 3]
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 1_000_000, 5_000_000)
    assert run.params == dict(SUCCEEDED.params) and SUCCEEDED.facts.items() <= run.tags.items()


@mlflow_only
def test_mlflow_gets_what_it_lacks_and_nothing_twice(mlflow_uri):
    """By a new process each time; the last one after an attempt that began again at a damaged checkpoint."""
    added = []
    for job, content in [(about(), history(1, 100)), (FAILED, history(1, 100)), (about(), history(1, 250))]:
        added += bring(track.MlflowTracker(mlflow_uri, "again"), job, ("stage-1", content))
    assert added == [100, 0, 150]
    assert Read(mlflow_uri, "again").info.status == "RUNNING", "a failed job that is tried again runs"
    others = history(1, 240, loss=9.0)
    assert bring(track.MlflowTracker(mlflow_uri, "again"), SUCCEEDED, ("stage-1", others)) == [0]
    run = Read(mlflow_uri, "again")
    assert [(step, value) for step, value, _ in run.curves["stage-1/loss"]] == [(n, 0.5) for n in range(1, 251)]
    assert run.info.status == "FINISHED" and run.tags["crescendo.state"] == "succeeded"


@mlflow_only
def test_mlflow_gets_a_batch_of_which_it_has_a_part(mlflow_uri):
    bring(track.MlflowTracker(mlflow_uri, "part"), about(), ("stage-1", history(1, 10)))
    from mlflow.tracking import MlflowClient

    run = Read(mlflow_uri, "part")
    MlflowClient(mlflow_uri).log_metric(run.info.run_id, "stage-1/loss", 0.5, timestamp=1_011_500, step=11)
    assert bring(track.MlflowTracker(mlflow_uri, "part"), about(), ("stage-1", history(1, 12))) == [2]
    again = Read(mlflow_uri, "part")
    assert {name: [step for step, *_ in curve] for name, curve in again.curves.items()} == {
        name: list(range(1, 13)) for name in run.curves
    }


@mlflow_only
def test_mlflow_takes_every_name_and_every_length(mlflow_uri):
    labels = {f"l{n}/{'x' * 50}": "v" * 63 for n in range(32)}
    params = {f"spec.{n}": str(n) for n in range(350)}
    odd = {"a[0]%": "1", "a=b@c": "2", "a//b": "3", "..": "4", "k" * 300: "5", "ä/ö": "ü", "empty": ""}
    long = "".join(chr(97 + at % 26) for at in range(13_001))
    job = about()
    job = track.About(**{**vars(job), "labels": labels, "params": {**params, **odd, "long": long}})
    facts = {**job.facts, **{f"crescendo.label.{name}": value for name, value in labels.items()}, "reason": "r" * 9000}
    job = track.About(**{**vars(job), "facts": facts})
    for _ in range(2):
        bring(track.MlflowTracker(mlflow_uri, "names"), job)
        run = Read(mlflow_uri, "names")
        assert len(run.params) == 350 + len(odd) + 3 and params.items() <= run.params.items()
        assert sorted(run.params.values()) == sorted([*params.values(), *odd.values(), *(
            long[:6000], long[6000:12000], long[12000:]
        )])  # fmt: skip
        assert run.params["long"] + run.params["long.part2"] + run.params["long.part3"] == long
        assert run.tags[f"crescendo.label.l7/{'x' * 50}"] == "v" * 63 and len(run.tags["reason"]) == 5000


@mlflow_only
def test_mlflow_that_does_not_know_its_name_is_told_how(tmp_path):
    process, uri = start_mlflow(tmp_path)
    try:
        with pytest.raises(TrackerError, match="--allowed-hosts"):
            track.MlflowTracker(uri, "x").open(about())
    finally:
        stop(process)


# --- Weights & Biases ------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    import wandb

    # What was read of the environment before is forgotten.
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


def records(folder, job_id="two-abc123"):
    """Of all files of a run in the order in which they are sent."""
    found = []
    files = folder.glob(f"wandb/offline-run-*/run-{job_id}.wandb")
    for file in sorted(files, key=lambda file: file.parent.name):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found.append([json.loads(line) for line in told.splitlines()])
    return found


def rows(folder, job_id="two-abc123"):
    of_all = [record for file in records(folder, job_id) for record in file]
    return [record["history"] for record in of_all if record["type"] == "history"]


@wandb_only
def test_wandb_has_the_values_of_the_history(offline):
    lines = line(1, loss=None, skipped=True, at_unix_secs=1001.25) + line(2, loss=1 / 3, at_unix_secs=1003.5)
    stages = [("stage-1", lines.encode()), ("stage-2", history(1, 2))]
    assert bring(track.WandbTracker("p", offline), FAILED, *stages) == [2, 2]
    first, second, third, _ = rows(offline)
    assert [row["step"]["num"] for row in rows(offline)] == [1, 2, 61, 62]
    item = {name: value for name, value in first["item"].items() if name not in ("_runtime", "_step")}
    assert item == {
        "_timestamp": 1001.25,
        "stage-1/step": 1,
        "stage-1/loss": "NaN",
        "stage-1/grad_norm": 1.25,
        "stage-1/learning_rate": 1e-5,
        "stage-1/step_seconds": 2,
        "stage-1/samples_per_sec": 4,
        "stage-1/skipped": 1,
    }
    assert second["item"]["stage-1/loss"] == 1 / 3 and third["item"]["stage-2/step"] == 1
    [file] = records(offline)
    [run] = [record["run"] for record in file if record["type"] == "run"]
    assert (run["run_id"], run["project"], run["resume"]) == ("two-abc123", "p", True)
    assert run["run_group"] == "g1" and sorted(run["tags"]) == ["group=g1", "team/x=vision"]
    assert {"spec.stages.0.train.learningRate": 1e-5, "crescendo.tenant": "research"}.items() <= run["config"][
        "update"
    ].items()
    assert file[-1]["type"] == "exit" and file[-1]["exit"]["exit_code"] == 1
    axes = {metric["metric"].get("glob_name"): metric["metric"] for metric in file if metric["type"] == "metric"}
    assert axes["stage-2/*"]["step_metric"] == "stage-2/step"


@wandb_only
def test_wandb_gets_what_it_lacks_and_no_step_below_the_last(offline):
    added = []
    attempts = [(about(), history(1, 10)), (about(), history(1, 10)), (about(), history(1, 25))]
    # The last is of an attempt that began again at a damaged checkpoint.
    attempts += [(SUCCEEDED, history(1, 20, loss=9.0)), (SUCCEEDED, history(1, 20, loss=9.0))]
    for job, content in attempts:
        added += bring(track.WandbTracker("p", offline), job, ("stage-1", content))
    assert added == [10, 0, 15, 0, 0]
    assert [(row["step"]["num"], row["item"]["stage-1/loss"]) for row in rows(offline)] == [(n, 0.5) for n in range(1, 26)]
    files = records(offline)
    assert len(files) == 3, "none where nothing was new"
    states = [
        record["config"]["update"]["crescendo.state"]
        for record in files[-1]
        if "crescendo.state" in record.get("config", {}).get("update", {})
    ]
    assert states[-1:] == ["succeeded"] or files[-1][1]["run"]["config"]["update"]["crescendo.state"] == "succeeded"


@wandb_only
def test_wandb_goes_on_behind_what_a_process_that_was_killed_has_written(offline):
    program = (
        "import pathlib, os, sys, time\n"
        "from test_trackers import about, history, _tracked, a_job, track\n"
        "tracker = track.WandbTracker('p', pathlib.Path(sys.argv[1]))\n"
        "tracker.open(about())\n"
        "tracker.add(_tracked.steps(a_job(), 'stage-1', history(1, 30)))\n"
        "print('written', flush=True)\n"
        "time.sleep(60)\n"
    )
    folder = str(pathlib.Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", program, offline], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout.readline() == b"written\n"
        eventually("some rows", lambda: len(rows(offline)) > 3)
    finally:
        process.kill()
        process.wait()
    bring(track.WandbTracker("p", offline), SUCCEEDED, ("stage-1", history(1, 40)))
    assert [row["step"]["num"] for row in rows(offline)] == list(range(1, 41))


# --- A real job ------------------------------------------------------------------------------------------------------


def interrupted(cluster, name, begin=lambda job_id: None):
    """A job whose trainer is killed: its history goes over two attempts."""
    with crescendo.Client(cluster.address) as client:
        job = client.submit(spec(steps=60, name=name))
        begin(job.job_id)
        killed = False
        for told in client.watch(job):
            if not killed and told.stages[0].checkpoint_step >= 10:
                cluster.kill("trainer-0")
                killed = True
        assert told.state is JobState.SUCCEEDED and told.stages[0].restarts > 0
        return told


def recorded(cluster, job):
    with crescendo.Client(cluster.address) as client:
        path = cluster.store / client.checkpoints(job)[-1].path / "history.jsonl"
    return [json.loads(one) for one in path.read_text().splitlines()]


@mlflow_only
def test_a_job_that_is_interrupted_is_in_mlflow_step_by_step(cluster, mlflow_uri):
    """Followed from its beginning."""
    followers = []

    def begin(job_id):
        program = [sys.executable, "-m", "crescendo.track", job_id, "--to", "mlflow", "--tracking-uri", mlflow_uri]
        program += ["--controller", cluster.address, "--follow"]
        followers.append(subprocess.Popen(program, stdout=subprocess.PIPE, text=True))

    trained = interrupted(cluster, "followed", begin)
    told = followers[0].communicate(timeout=DEADLINE_SECONDS)[0]
    begin(trained.job_id)
    assert told.startswith(f"60 steps of {trained.job_id} added: run ")
    assert followers[1].communicate(timeout=DEADLINE_SECONDS)[0].startswith("0 steps")
    run = Read(mlflow_uri, "crescendo", trained.job_id)
    lines = recorded(cluster, trained)
    for curve, field in [("loss", "loss"), ("grad_norm", "grad_norm"), ("step_seconds", "seconds")]:
        wanted = [(one["step"], one[field], round(one["at_unix_secs"] * 1000)) for one in lines]
        assert run.curves[f"stage-1/{curve}"] == wanted
    assert run.info.status == "FINISHED" and run.params["spec.stages.0.train.learningRate"] == "0.001"
    assert int(run.tags["crescendo.stage-1.restarts"]) > 0


@wandb_only
def test_a_job_that_was_interrupted_is_in_wandb_step_by_step(cluster, offline):
    trained = interrupted(cluster, "tracked")
    program = [sys.executable, "-m", "crescendo.track", trained.job_id, "--to", "wandb", "--dir", str(offline)]
    program += ["--controller", cluster.address]
    told = [subprocess.run(program, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert told[0].startswith(f"60 steps of {trained.job_id} added: ") and "where nothing is new" in told[1]
    wanted = [(one["step"], one["loss"], one["grad_norm"]) for one in recorded(cluster, trained)]
    found = [
        (row["step"]["num"], row["item"]["stage-1/loss"], row["item"]["stage-1/grad_norm"])
        for row in rows(offline, trained.job_id)
    ]
    assert found == wanted
