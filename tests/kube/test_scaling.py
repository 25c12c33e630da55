"""The curators' autoscaler acts on the external metric that it names, which a small server of this file gives out in the place of
an adapter of Prometheus."""

import http.server
import json
import ssl
import threading
import urllib.parse

import pytest
from chart import CHART, EXAMPLES, merged

from cluster import eventually, run

GROUP = "external.metrics.k8s.io"
NAME = "crescendo-curator-cpu"
VALUES = merged(
    EXAMPLES["default"],
    {
        "curator": {
            "pools": [{"name": "cpu", "replicas": 2, "gpus": 0, "maxReplicas": 6}],
            "autoscaling": {"targetPerCurator": 2, "scaleDownAfterSeconds": 5},
        }
    },
)


class Adapter(http.server.BaseHTTPRequestHandler):
    """An API of external metrics: the backlog of each namespace."""

    backlogs = {}
    asked = []

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        parts = url.path.strip("/").split("/")
        if len(parts) == 3:
            resource = {"name": "crescendo_curation_backlog_jobs", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
            self.answer({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/v1beta1", "resources": [resource]})
        elif len(parts) == 6 and parts[5] == "crescendo_curation_backlog_jobs":
            selector = urllib.parse.parse_qs(url.query).get("labelSelector", [""])[0]
            self.asked.append(selector)
            wanted = selector.removeprefix("namespace=")
            values = [{"metricName": parts[5], "metricLabels": {"namespace": wanted}, "timestamp": "2026-01-01T00:00:00Z"}]
            items = [{**item, "value": str(self.backlogs[wanted])} for item in values if wanted in self.backlogs]
            self.answer({"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/v1beta1", "metadata": {}, "items": items})
        else:
            self.send_error(404)

    def answer(self, body):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def adapter(cluster, tmp_path):
    """Serves the metrics as a part of the cluster's API."""
    certificate, key = tmp_path / "adapter.crt", tmp_path / "adapter.key"
    run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Adapter)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.server_port
    service = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "adapter", "namespace": "default"}, "spec": service},
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1beta1.{GROUP}"},
            "spec": {
                "group": GROUP,
                "version": "v1beta1",
                "service": {"name": "adapter", "namespace": "default", "port": port},
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    )
    yield Adapter
    cluster.kubectl("delete", "apiservice", f"v1beta1.{GROUP}")
    cluster.kubectl("delete", "service", "adapter", namespace="default")
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_curators_follow_the_jobs_that_wait(cluster, helm, namespace, adapter):
    adapter.backlogs[namespace] = 0
    helm("install", "crescendo", CHART, namespace=namespace, values=VALUES)

    def count():
        return cluster.get("statefulset", NAME, namespace=namespace)["spec"]["replicas"]

    def condition(kind):
        status = cluster.get("hpa", NAME, namespace=namespace).get("status", {})
        return next((one for one in status.get("conditions", []) if one["type"] == kind), {})

    eventually("the autoscaler reads the metric", lambda: condition("ScalingActive").get("status") == "True", 60)
    assert f"namespace={namespace}" in adapter.asked
    eventually("the least number of curators", lambda: count() == 2, 30)
    # Two jobs a curator, and six curators at most.
    for backlog, curators in [(7, 4), (100, 6)]:
        adapter.backlogs[namespace] = backlog
        eventually(f"{curators} curators for {backlog} jobs", lambda: count() == curators, 60)
    # An upgrade leaves the number to it.
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=merged(VALUES, {"log": {"filter": "debug"}}))
    assert count() == 6
    adapter.backlogs[namespace] = 0
    eventually("they leave, but for the least number", lambda: count() == 2, 90)
