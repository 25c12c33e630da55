"""A release whose pods run, and the command line in one of its controllers."""

import base64
import json
import os

import pytest
from chart import CHART, merged
from cryptography import x509

import issuer
from cluster import Failed, eventually
from machines import BIN, crescendo

#: What such cases need, as marks.
NEEDS = [
    pytest.mark.skipif(not BIN, reason="CRESCENDO_BIN is not set: no programs to run"),
    pytest.mark.skipif(os.geteuid() != 0, reason="nodes make networks, which takes root"),
]

#: Steps of a job that does not end by itself.
ENDLESS = 100_000
#: Seconds for everything of a release to become ready, on a busy machine; some 30 on an idle one.
READY = 300
#: Saves all along. With as many steps as nobody waits for, it trains for as long as a case takes, however slow the machine is.
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

    def __init__(self, cluster, helm, namespace, values, name="crescendo"):
        self.cluster, self.helm, self.namespace, self.name = cluster, helm, namespace, name
        #: Nodes that do not answer now.
        self.lost = set()
        made = json.loads(crescendo("token", "new", "--name", "tests", "--role", "admin", "--expires", "1d", "-o", "json"))
        self.token = made["token"]
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": f"{name}-tokens", "namespace": namespace},
                "stringData": {"tokens.yaml": json.dumps([made["entry"]])},
            }
        )
        self.values = merged(values, {"auth": {"tokens": {"existingSecret": f"{name}-tokens"}}})

    def install(self):
        self.helm("install", self.name, CHART, namespace=self.namespace, values=self.values)
        if (self.values.get("tls") or {}).get("source") != "generated":
            self.authorities = issuer.fill(self.cluster, self.namespace)
        self.is_ready()
        return self

    def certificate(self, component):
        """That of a component's Secret."""
        secret = self.cluster.get("secret", f"{self.name}-{component}-tls", namespace=self.namespace)
        return x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))

    def upgrade(self, *options, **changed):
        self.values = merged(self.values, changed)
        self.helm("upgrade", self.name, CHART, *options, namespace=self.namespace, values=self.values)

    def of_release(self, kind, component=None):
        """Its objects of a kind."""
        selector = f"app.kubernetes.io/instance={self.name}"
        if component:
            selector += f",app.kubernetes.io/component={component}"
        return self.cluster.get(kind, namespace=self.namespace, selector=selector)

    def statefulsets(self):
        return {item["metadata"]["name"]: item for item in self.of_release("statefulset")}

    def pods(self, component):
        return sorted(item["metadata"]["name"] for item in self.of_release("pod", component))

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

    def controllers(self):
        """Pods of controllers that can be asked."""
        found = self.of_release("pod", "controller")
        return sorted(pod["metadata"]["name"] for pod in found if pod["spec"].get("nodeName") not in self.lost)

    def crescendo(self, *arguments, stdin=""):
        """The command line, as runbooks have it, in the first controller that runs it."""
        why = Failed("there is no controller")
        for pod in self.controllers():
            command = ["exec", "-i", pod, "--", "env", f"CRESCENDO_TOKEN={self.token}", "crescendo", *arguments, "-o", "json"]
            try:
                return json.loads(self.cluster.kubectl(*command, namespace=self.namespace, stdin=stdin))
            except Failed as error:
                why = error
        raise why

    def submit(self, steps=ENDLESS):
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

    def goes_on(self, job, seconds=240):
        """Waits for a step beyond those that there are now."""
        before = int(self.stage(job)["step"])

        def further():
            found = self.stage(job)
            return found if int(found["step"]) > before else None

        return eventually("the job goes on", further, seconds)

    def ends(self, job):
        """Ends a job that would go on for hours; one of a few steps then ends by itself."""
        self.crescendo("cancel", job)
        self.ends_well(self.submit(steps=20))

    def leader(self):
        """The controller that leads, by its metrics."""
        for pod in self.controllers():
            try:
                path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:9090/proxy/metrics"
                if "\ncrescendo_leader 1\n" in self.cluster.raw(path):
                    return pod
            except Failed:
                continue
        return None

    def busy_trainer(self):
        """The one trainer that has ranks."""
        trainers = self.pods("trainer")
        (busy,) = [node["nodeId"] for node in self.crescendo("nodes") if node["nodeId"] in trainers and node["slotsUsed"]]
        return busy
