"""Every query of every dashboard, and every alert, in a real Prometheus that scrapes a running cluster.

Needs built binaries: CRESCENDO_BIN names their folder.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml

from chart import CHART, REGISTRY, alert_files, catalogue, merged, of_kind, rendered, series
from test_alerts import ADDED, RECORDED, metrics_in
from test_dashboards import FILES, queries

BIN = os.environ.get("CRESCENDO_BIN")
pytestmark = pytest.mark.skipif(not BIN, reason="CRESCENDO_BIN is not set: no binaries to run a cluster with")

#: Limit of everything together.
DEADLINE_SECONDS = 240
#: Queries that have no data in a run without failures.
EMPTY = {
    "Calls refused and failed": "no call fails",
    "Time left of certificates": "no TLS here",
    **dict.fromkeys(
        ("Use", "Memory", "Temperature", "Power", "Clocks", "Held down by", "Memory errors", "XID errors", "NVLinks that are up"),
        "no GPU is used",
    ),
}
#: So that there are queues to tell of. Who has such a file says which folders a spec may name.
TENANTS = {"queues": {"research": {}}, "default": {"roots": [str(CHART.resolve() / "files")]}}
#: Of a CPU slot here, about; it is not known of CPUs.
PEAK = {"CRESCENDO_PEAK_TFLOPS": "0.1"}
JOB = """
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: live}
spec:
  model: {preset: nano}
  resources: {gpus: 1}
  checkpoints: {every: 40, keepLast: 1}
  stages:
    - name: base
      references: 0
      data: {source: compose, subjects: SUBJECTS, panel: 16, layout: mixed, pairs: 96, unitSize: 8, minPairs: 16}
      train: {adapter: none, steps: 120, globalBatch: 4, learningRate: 1e-3}
"""


@contextlib.contextmanager
def running(command, log, **options):
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def wait_for(what, check, deadline):
    """Polls until `check` returns something."""
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.2)
    pytest.fail(f"{what}: not within {DEADLINE_SECONDS} s")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path, **parameters):
        url = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def ready(self):
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as response:
                return response.status == 200
        return False

    def samples(self, expression):
        answer = self.get("/api/v1/query", query=expression)
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        return answer["data"]["result"]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A cluster that has a job to do, and a Prometheus that scrapes it every second."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    folder = tmp_path_factory.mktemp("live")
    binaries = pathlib.Path(BIN).resolve()
    tenants = folder / "tenants.yaml"
    tenants.write_text(yaml.safe_dump(TENANTS))
    up = [binaries / "crescendo", "up", "--dir", folder / "cluster", "--trainers", "1", "--device", "cpu", "--stop-on-stdin-close"]
    up += ["--tenants", tenants]
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(running(up, folder / "up.log", stdin=subprocess.PIPE, cwd=folder, env=os.environ | PEAK))

        def processes():
            assert cluster.poll() is None, (folder / "up.log").read_text()
            with contextlib.suppress(OSError, ValueError, KeyError):
                state = json.loads((folder / "cluster/up.json").read_text())
                if len(state["processes"]) == 3 and all(process["metrics"] for process in state["processes"]):
                    return state["processes"]

        found = wait_for("the cluster", processes, deadline)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in alert_files()],
            "scrape_configs": [
                {
                    "job_name": process["name"],
                    "static_configs": [
                        {
                            "targets": [process["metrics"]],
                            # As the chart's PodMonitors label them.
                            "labels": {"namespace": "ml", "component": f"crescendo-{process['name'].split('-')[0]}"},
                        }
                    ],
                }
                for process in found
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port()
        command = [
            shutil.which("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        server = stack.enter_context(running(command, folder / "prometheus.log"))
        prometheus = Prometheus(port)

        def ready():
            assert server.poll() is None, (folder / "prometheus.log").read_text()
            return prometheus.ready()

        wait_for("Prometheus", ready, deadline)
        wait_for("the scrapes", lambda: len(prometheus.samples("up == 1")) == len(found), deadline)
        job = folder / "job.yaml"
        job.write_text(JOB.replace("SUBJECTS", str(CHART / "files/test-job/subjects")))
        submit = [binaries / "crescendo", "--dir", folder / "cluster", "submit", job]
        subprocess.run(submit, check=True, capture_output=True, timeout=60, cwd=folder)
        yield prometheus, deadline, [binaries / "crescendo", "--dir", folder / "cluster"]


def test_every_query_has_data(live):
    prometheus, deadline, _ = live
    missing = {(path.stem, title, expression) for path in FILES for title, expression in queries(path) if title not in EMPTY}
    assert len(missing) > 50

    def answered():
        # A query is done once it has had data: a rank, for one, is alive only for a while.
        missing.difference_update({query for query in missing if prometheus.samples(query[2])})
        return not missing or None

    try:
        wait_for("data", answered, deadline)
    except BaseException:
        print("no data for:", *sorted(missing), sep="\n  ")
        raise
    for path in FILES:
        for title, expression in queries(path):
            prometheus.samples(expression)


def test_the_query_that_trainers_follow_has_an_answer(live):
    prometheus, deadline, _ = live
    pools = [{"name": "a", "replicas": 0, "gpus": 1, "maxReplicas": 2}]
    values = {"trainer": {"pools": pools, "autoscaling": {"prometheusUrl": "http://prometheus:9090"}}, "tenants": {"queues": {"research": {}}}}
    (scaled,) = of_kind(rendered(merged(REGISTRY, values)), "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    (sample,) = wait_for("an answer", lambda: prometheus.samples(trigger["metadata"]["query"]), deadline)
    # One number for all queues, as KEDA takes it.
    assert sample["metric"] == {} and float(sample["value"][1]) >= 0


def test_the_job_of_helm_test_succeeds(live, tmp_path):
    """With the chart's own pictures, which are elsewhere here than in a curator's pod."""
    _, deadline, crescendo = live
    text = (CHART / "files/test-job/job.yaml").read_text()
    there = "/opt/crescendo/test-subjects"
    assert text.count(there) == 1
    job = tmp_path / "job.yaml"
    job.write_text(text.replace(there, str(CHART / "files/test-job/subjects")))
    left = max(10, deadline - time.monotonic())
    done = subprocess.run([*crescendo, "submit", job, "--watch"], capture_output=True, text=True, timeout=left, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_is_evaluated(live):
    prometheus, deadline, _ = live
    # The first evaluation of a group may be some seconds off.
    def evaluated():
        found = [rule for group in prometheus.get("/api/v1/rules")["data"]["groups"] for rule in group["rules"]]
        return found if found and all(rule["health"] != "unknown" for rule in found) else None

    for rule in wait_for("the rules", evaluated, deadline):
        assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))


def test_the_processes_export_what_the_other_tests_think(live):
    prometheus, deadline, _ = live
    asked = {name for path in FILES for title, expression in queries(path) if title not in EMPTY for name in metrics_in(expression)}

    def exported():
        names = set(prometheus.get("/api/v1/label/__name__/values")["data"])
        return names if asked <= names else None

    wait_for(f"all of {sorted(asked)}", exported, deadline)
    known, metrics = series(), catalogue()
    found = prometheus.get("/api/v1/series", **{"match[]": '{__name__=~"crescendo_.+"}'})["data"]
    assert len(found) > 50
    for one in found:
        name = one.pop("__name__")
        if name in RECORDED:
            continue
        assert name in known, f"{name} is not in docs/metrics.md"
        labels = metrics[known[name]][1]
        values = {label: value for label, value in one.items() if label not in ADDED | {"job"}}
        assert set(values) == set(labels), f"{name}: labels {sorted(values)}"
        for label, value in values.items():
            assert labels[label] is None or value in labels[label], f'{name}: {label}="{value}"'
