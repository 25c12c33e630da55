"""A real cluster on loopback, for the tests that need one: CRESCENDO_BIN names the folder of built binaries."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time

import crescendo
import pytest

ROOT = pathlib.Path(__file__).parents[2]
BIN = os.environ.get("CRESCENDO_BIN")

#: Limit of each wait.
DEADLINE_SECONDS = 180


def spec(steps, name="python", weights=ROOT / "assets/nano/base.safetensors", rate="1e-3"):
    return f"""
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  model: {{preset: nano, weights: {weights}}}
  resources: {{gpus: 1}}
  checkpoints: {{every: 10, keepLast: 2}}
  stages:
    - references: 1
      data: {{source: compose, subjects: {ROOT / "helm/crescendo/files/test-job/subjects"}, panel: 16, pairs: 32,
             unitSize: 8, minPairs: 8}}
      train: {{adapter: {{rank: 4}}, steps: {steps}, globalBatch: 2, learningRate: {rate}}}
"""


def eventually(what, check):
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {DEADLINE_SECONDS} s")


class Cluster:
    def __init__(self, process, folder):
        self.process, self.folder = process, folder

    def state(self):
        assert self.process.poll() is None, (self.folder.parent / "up.log").read_text()
        with contextlib.suppress(OSError, ValueError):
            state = json.loads((self.folder / "up.json").read_text())
            if len(state["processes"]) == 3 and all(process["grpc"] for process in state["processes"]):
                return state
        return None

    @property
    def address(self):
        return self.state()["controller"]

    @property
    def store(self):
        return pathlib.Path(self.state()["objectStore"].removeprefix("file://"))

    def pids(self):
        """Of the processes by name, once all of them run."""
        state = self.state()
        return {process["name"]: process["pid"] for process in state["processes"]} if state else {}

    def kill(self, name):
        """As a machine that fails does; `up` starts it again at the same address."""
        os.kill(eventually("all processes", self.pids)[name], signal.SIGKILL)

    def kill_and_await(self, *names):
        before = eventually("all processes", self.pids)
        for name in names:
            os.kill(before[name], signal.SIGKILL)
        eventually("new ones", lambda: (now := self.pids()) and all(now[name] != before[name] for name in names))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if not BIN:
        pytest.skip("CRESCENDO_BIN is not set: no binaries to run a cluster with")
    folder = tmp_path_factory.mktemp("python")
    program = pathlib.Path(BIN).resolve() / "crescendo"
    up = [program, "up", "--dir", folder / "cluster", "--trainers", "1", "--device", "cpu", "--stop-on-stdin-close"]
    # What is set for other clusters does not count here.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRESCENDO_")}
    environment["XDG_STATE_HOME"] = str(folder)
    with open(folder / "up.log", "wb") as log:
        process = subprocess.Popen(up, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder, env=environment)
        try:
            cluster = Cluster(process, folder / "cluster")
            eventually("the cluster", cluster.state)
            yield cluster
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@pytest.fixture
def client(cluster):
    with crescendo.Client(cluster.address) as client:
        yield client
