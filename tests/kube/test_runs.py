"""Releases that run: their pods are processes of this machine, on the nodes of tests/kube/node.

Needs root, and built programs: CRESCENDO_BIN names their folder.
"""

import base64
import datetime
import json
import os

import pytest
from cryptography import x509
from chart import CHART, EXAMPLES, merged

import issuer
from cluster import Failed, eventually
from machines import BIN, crescendo

pytestmark = [
    pytest.mark.skipif(not BIN, reason="CRESCENDO_BIN is not set: no programs to run"),
    pytest.mark.skipif(os.geteuid() != 0, reason="nodes make networks, which takes root"),
]

#: Seconds for everything of a release to become ready.
READY = 180
#: Trains for long enough that something happens meanwhile, and saves all along.
JOB = """
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: lives}
spec:
  model: {preset: nano}
  resources: {gpus: 1}
  checkpoints: {every: 10, keepLast: 2}
  stages:
    - name: base
      references: 0
      data: {source: compose, subjects: /opt/crescendo/test-subjects, panel: 16, layout: mixed, pairs: 24, unitSize: 8}
      train: {adapter: none, steps: STEPS, globalBatch: 4, learningRate: 1e-3}
"""


class Release:
    """An installed release that is ready, and the command line in one of its controllers."""

    def __init__(self, cluster, helm, namespace, values):
        self.cluster, self.helm, self.namespace = cluster, helm, namespace
        made = json.loads(crescendo("token", "new", "--name", "tests", "--role", "admin", "--expires", "1d", "-o", "json"))
        self.token = made["token"]
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "tokens", "namespace": namespace},
                "stringData": {"tokens.yaml": json.dumps([made["entry"]])},
            }
        )
        self.values = merged(values, {"auth": {"tokens": {"existingSecret": "tokens"}}})

    def install(self):
        self.helm("install", "crescendo", CHART, namespace=self.namespace, values=self.values)
        if (self.values.get("tls") or {}).get("source") != "generated":
            issuer.fill(self.cluster, self.namespace)
        self.is_ready()
        return self

    def upgrade(self, *options, **changed):
        self.values = merged(self.values, changed)
        self.helm("upgrade", "crescendo", CHART, *options, namespace=self.namespace, values=self.values)

    def statefulsets(self):
        return {item["metadata"]["name"]: item for item in self.cluster.get("statefulset", namespace=self.namespace)}

    def unready(self):
        """StatefulSets that are not as their newest revision wants them."""
        found = {}
        for name, item in self.statefulsets().items():
            wanted, status = item["spec"]["replicas"], item["status"]
            current = status.get("updateRevision") == status.get("currentRevision") or item["spec"]["updateStrategy"]["type"] == "OnDelete"
            if not (
                status.get("observedGeneration") == item["metadata"]["generation"]
                and status.get("readyReplicas", 0) == wanted
                and (current or status.get("updatedReplicas", 0) == wanted)
            ):
                found[name] = {key: status.get(key) for key in ("replicas", "readyReplicas", "updatedReplicas")}
        return found

    def is_ready(self, seconds=READY):
        try:
            eventually("the release is ready", lambda: not self.unready(), seconds)
        except AssertionError as error:
            events = [
                f"{e['involvedObject']['name']}: {e['message']}"
                for e in self.cluster.get("events", namespace=self.namespace)
                if e["type"] == "Warning"
            ]
            raise AssertionError(f"{error}: {self.unready()}\n" + "\n".join(events[-20:])) from None

    def pod(self, name):
        return self.cluster.get("pod", name, namespace=self.namespace)

    def crescendo(self, *arguments, stdin=None, controller=0):
        """The command line, as runbooks have it."""
        pod = f"crescendo-controller-{controller}"
        command = ["exec", "-i", pod, "--", "env", f"CRESCENDO_TOKEN={self.token}", "crescendo", *arguments, "-o", "json"]
        return json.loads(self.cluster.kubectl(*command, namespace=self.namespace, stdin=stdin or ""))

    def submit(self, steps):
        return self.crescendo("submit", "-", stdin=JOB.replace("STEPS", str(steps)))["jobId"]

    def stage(self, job):
        return self.crescendo("get", job)["stages"][0]

    def has_saved(self, job, seconds=240):
        return eventually("a checkpoint is saved", lambda: self.stage(job)["checkpointStep"], seconds)

    def ends_well(self, job, seconds=400):
        def ended():
            found = self.crescendo("get", job)
            return found if found["state"] in ("succeeded", "failed", "cancelled") else None

        found = eventually("the job ends", ended, seconds)
        assert found["state"] == "succeeded", found
        return found["stages"][0]

    def leader(self):
        """The controller that leads, by its metrics."""
        for i in range(self.statefulsets()["crescendo-controller"]["spec"]["replicas"]):
            try:
                path = f"/api/v1/namespaces/{self.namespace}/pods/crescendo-controller-{i}:9090/proxy/metrics"
                if "\ncrescendo_leader 1\n" in self.cluster.kubectl("get", "--raw", path):
                    return f"crescendo-controller-{i}"
            except Failed:
                continue
        return None


@pytest.fixture
def release(machines, running_helm, running_namespace):
    def make(example, **changed):
        return Release(machines, running_helm, running_namespace, merged(EXAMPLES[example], changed))

    return make


def test_one_machine_from_install_to_removal(release):
    """The single-node example: its test succeeds, upgrades and rollbacks with a job in training lose nothing, and the next
    install knows the jobs of the last one."""
    installed = release("single-node").install()
    installed.helm("test", "crescendo", namespace=installed.namespace)
    job = installed.submit(steps=160)
    installed.has_saved(job)
    installed.upgrade(images={"trainer": {"tag": "0.1.1"}, "controller": {"tag": "0.1.1"}})
    installed.is_ready()
    after_upgrade = installed.has_saved(job)
    installed.helm("rollback", "crescendo", "1", namespace=installed.namespace)
    installed.is_ready()
    stage = installed.ends_well(job)
    assert stage["step"] == 160 and stage["restarts"] >= 2 and int(after_upgrade) > 0, stage
    installed.helm("uninstall", "crescendo", "--wait", namespace=installed.namespace)
    left = {item["metadata"]["name"] for item in installed.cluster.get("pvc", namespace=installed.namespace)}
    assert left == {"crescendo-objects", "store-crescendo-controller-0"}
    installed.install()
    jobs = [found["jobId"] for found in installed.crescendo("jobs")]
    assert job in jobs


def test_three_controllers_and_three_members_of_etcd(release):
    installed = release("default").install()
    installed.helm("test", "crescendo", namespace=installed.namespace)
    # Whoever leads may be deleted at any time.
    for _ in range(5):
        leader = eventually("somebody leads", installed.leader, 60)
        uid = installed.pod(leader)["metadata"]["uid"]
        installed.cluster.kubectl("delete", "pod", leader, "--wait=false", namespace=installed.namespace)
        eventually("another pod", lambda: (installed.pod(leader) or {}).get("metadata", {}).get("uid") not in (uid, None), 60)
        eventually("the cluster answers", lambda: installed.crescendo("nodes"), 60)
        installed.is_ready()


def serial(installed, component):
    """What tells a certificate from the one before it."""
    secret = installed.cluster.get("secret", f"crescendo-{component}-tls", namespace=installed.namespace)
    certificate = base64.b64decode(secret["data"]["tls.crt"])
    return x509.load_pem_x509_certificate(certificate)


def test_generated_certificates_are_renewed_before_they_end(release):
    """Certificates of four minutes, looked after every minute, on etcd too: nobody notices their end."""
    installed = release("default", tls={"source": "generated", "generated": {"lifetime": "4m", "schedule": "* * * * *"}}).install()
    components = ("controller", "curator", "trainer", "etcd", "etcd-client")
    first = {component: serial(installed, component) for component in components}
    job = installed.submit(steps=100000)

    def all_are_new():
        return all(serial(installed, component).serial_number != first[component].serial_number for component in components)

    eventually("all certificates are renewed", all_are_new, 240)
    now = datetime.datetime.now(datetime.timezone.utc)
    assert all(certificate.not_valid_after_utc > now for certificate in first.values())
    last = max(certificate.not_valid_after_utc for certificate in first.values())
    eventually("the first ones have ended", lambda: datetime.datetime.now(datetime.timezone.utc) > last, 120)
    step = int(installed.stage(job)["step"])
    eventually("the job goes on", lambda: int(installed.stage(job)["step"]) > step, 60)
    assert installed.stage(job)["restarts"] == 0
    assert all(node["reach"] == "connected" for node in installed.crescendo("nodes"))
    installed.crescendo("cancel", job)


def evict(installed, pod):
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": installed.namespace}}
    path = f"/api/v1/namespaces/{installed.namespace}/pods/{pod}/eviction"
    installed.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


@pytest.mark.parametrize("component, pods", [("etcd", 3), ("controller", 3), ("curator", 2)])
def test_a_budget_lets_one_go_at_a_time(release, component, pods):
    installed = release("default").install()
    names = sorted(
        item["metadata"]["name"]
        for item in installed.cluster.get("pod", namespace=installed.namespace, selector=f"app.kubernetes.io/component={component}")
    )
    assert len(names) == pods
    evict(installed, names[0])
    with pytest.raises(Failed, match="disruption budget"):
        evict(installed, names[1])
    installed.is_ready()
    # The budget's own count follows a little later.
    eventually("the budget lets the next one go", lambda: evict(installed, names[1]) or True)


def test_a_drained_machine_hands_its_ranks_over(release):
    pools = {"pools": [{"name": "gpu", "replicas": 2, "gpus": 1}]}
    installed = release("default", trainer=pools).install()
    job = installed.submit(steps=120)
    saved = installed.has_saved(job)
    trainers = {name: installed.pod(name)["spec"]["nodeName"] for name in ("crescendo-trainer-gpu-0", "crescendo-trainer-gpu-1")}
    (busy,) = [node["nodeId"] for node in installed.crescendo("nodes") if node["nodeId"] in trainers and node["slotsUsed"]]
    machine = trainers[busy]
    try:
        drain = ["drain", machine, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app.kubernetes.io/component=trainer"]
        installed.cluster.kubectl(*drain, "--timeout=200s", seconds=240)
        stage = installed.ends_well(job)
        assert stage["step"] == 120 and int(saved) > 0
        # It was handed over: no attempt failed.
        assert stage["lastFailure"] is None, stage
    finally:
        installed.cluster.kubectl("uncordon", machine)
