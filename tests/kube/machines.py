"""Nodes of a cluster whose pods are processes of this machine: tests/kube/node."""

import contextlib
import os
import pathlib
import subprocess

import programs
from cluster import eventually, run, spawn

BIN = os.environ.get("CRESCENDO_BIN")
#: The registry of the chart's examples.
REGISTRY = "registry.example.com/crescendo"
ETCD = "gcr.io/etcd-development/etcd"


def images(folder, etcd):
    """What stands in for each image: a folder of programs."""
    own = str(pathlib.Path(BIN).resolve())
    names = ("controller", "trainer-node", "curator-node")
    lines = [f"{REGISTRY}/crescendo-{name}: {{path: {own}, entrypoint: [crescendo-{name}]}}" for name in names]
    lines.append(f"{ETCD}: {{path: {etcd}, entrypoint: [etcd]}}")
    path = folder / "images.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def crescendo(*arguments):
    """The command line on this machine."""
    return run([pathlib.Path(BIN) / "crescendo", *arguments])


@contextlib.contextmanager
def running(cluster, count, gpus=8):
    """As many nodes, until the end."""
    program = programs.build("node") / "kube-node"
    table = images(cluster.folder, cluster.etcd_bin)
    started = []
    try:
        for i in range(count):
            name = f"machine-{i}"
            state = cluster.folder / "machines" / name
            state.mkdir(parents=True)
            log = open(cluster.folder / f"{name}.log", "wb")
            command = [program, "--kubeconfig", cluster.config, "--name", name, "--images", table, "--gpus", str(gpus), "--state", state]
            started.append((name, spawn(command, log)))
            log.close()
        for name, process in started:
            eventually(f"{name} is ready", lambda: is_ready(cluster, name, process), 60)
        yield
    finally:
        for _, process in started:
            process.terminate()
        for _, process in started:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def is_ready(cluster, name, process):
    assert process.poll() is None, f"{name} ended:\n{cluster.log(name)[-2000:]}"
    node = cluster.get("node", name)
    return node and any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))
