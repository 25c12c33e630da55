"""What the chart renders, run: every pod as a process, with the chart's own commands and environment, and then its test pod.

Needs built binaries: CRESCENDO_BIN names their folder.
"""

import contextlib
import os
import pathlib
import subprocess
import time
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chart import EXAMPLES, ROOT, rendered
from pods import Pods

BIN = os.environ.get("CRESCENDO_BIN")
pytestmark = pytest.mark.skipif(not BIN, reason="CRESCENDO_BIN is not set: no binaries to run")
DEADLINE_SECONDS = 180


def programs():
    folder = pathlib.Path(BIN).resolve()
    etcd = pathlib.Path(os.environ.get("CRESCENDO_ETCD") or ROOT / ".deps/venv/bin/etcd-server").absolute()
    names = ["crescendo", "crescendo-controller", "crescendo-curator-node", "crescendo-trainer-node"]
    found = {**{name: folder / name for name in names}, "etcd": etcd}
    for path in found.values():
        assert path.exists(), f"{path} is missing: make build"
    return found


def answers(pods, name, probe):
    """Whether a probe would succeed. A named port is looked up as the kubelet does."""
    address = pods.addresses[name]
    ports = {port["name"]: port["containerPort"] for port in pods.container(name)["ports"]}
    with contextlib.suppress(OSError):
        url = f"http://{address}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        with urllib.request.urlopen(url, timeout=5) as response:
            return 200 <= response.status < 400
    return False


def serves_over_tls_alone(pods, name):
    """Whether the gRPC health service answers whoever verifies the server, and nobody who does not encrypt."""
    ports = {port["name"]: port["containerPort"] for port in pods.container(name)["ports"]}
    target = f"{pods.addresses[name]}:{ports['grpc']}"
    folder = pathlib.Path(dict(pods.mounts(name))["/etc/crescendo/tls"])
    key, chain = (folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes()
    # A node's own certificate opens its server; a controller answers about its health without one.
    shown = () if "-controller-" in name else (key, chain)
    credentials = grpc.ssl_channel_credentials((folder / "ca.crt").read_bytes(), *shown)
    request = health_pb2.HealthCheckRequest()
    with grpc.secure_channel(target, credentials) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError):
        health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


def metrics(pods, name):
    ports = {port["name"]: port["containerPort"] for port in pods.container(name)["ports"]}
    with urllib.request.urlopen(f"http://{pods.addresses[name]}:{ports['metrics']}/metrics", timeout=10) as response:
        return response.read().decode()


@pytest.mark.parametrize("example", ["default", "single-node"])
def test_the_cluster_comes_up_and_its_test_succeeds(example, tmp_path):
    """`default` has three controllers on three members of etcd."""
    pods, binaries = Pods(rendered(EXAMPLES[example]), tmp_path), programs()
    pods.write_maps()
    deadline = time.monotonic() + DEADLINE_SECONDS
    test = next(name for name in pods.specs if name.endswith("-test"))
    servers = [name for name in pods.specs if name != test]
    # In a cluster, controllers that find no store are started again until they do; here the store comes first.
    stores = [name for name in servers if "-etcd-" in name]
    with contextlib.ExitStack() as stack:
        for group in (stores, [name for name in servers if name not in stores]):
            processes = {name: stack.enter_context(pods.running(name, binaries)) for name in group}
            for name, process in processes.items():
                for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                    while not answers(pods, name, pods.container(name)[kind]):
                        assert process.poll() is None, f"{name} ended: {pods.log(name)}"
                        assert time.monotonic() < deadline, f"{name}: {kind} does not succeed: {pods.log(name)}"
                        time.sleep(0.1)
                text = metrics(pods, name)
                if name in stores:
                    # What the alerts ask for.
                    for asked in ("etcd_mvcc_db_total_size_in_bytes ", "etcd_server_quota_backend_bytes "):
                        assert f"\n{asked}" in text, asked
                else:
                    assert "crescendo_" in text
                    assert serves_over_tls_alone(pods, name), name
        command = pods.command(test, binaries)
        done = subprocess.run(
            command,
            env=pods.environment(test),
            capture_output=True,
            text=True,
            timeout=max(10, deadline - time.monotonic()),
            cwd=tmp_path,
        )
        logs = "\n".join(f"--- {name}\n{pods.log(name)[-3000:]}" for name in servers)
        assert done.returncode == 0, done.stdout + done.stderr + logs
        controllers = [name for name in servers if "-controller-" in name]
        leading = [name for name in controllers if "\ncrescendo_leader 1\n" in metrics(pods, name)]
        assert len(leading) == 1, leading
