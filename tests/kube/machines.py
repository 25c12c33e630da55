"""Nodes of a cluster whose pods are processes of this machine: tests/kube/node."""

import contextlib
import os
import pathlib
import signal
import subprocess

import programs
from cluster import eventually, run, spawn

BIN = os.environ.get("CRESCENDO_BIN")
#: The registry of the chart's examples.
REGISTRY = "registry.example.com/crescendo"
ETCD = "gcr.io/etcd-development/etcd"


def etcd_image(version):
    """The repository of a version of etcd: the map of images knows no tags."""
    return f"registry.example.com/etcd-{version}"


def images(folder, etcd, etcds):
    """What stands in for each image: a folder of programs."""
    own = str(pathlib.Path(BIN).resolve())
    names = ("controller", "trainer-node", "curator-node")
    lines = [f"{REGISTRY}/crescendo-{name}: {{path: {own}, entrypoint: [crescendo-{name}]}}" for name in names]
    lines += [f"{ETCD}: {{path: {etcd}, entrypoint: [etcd]}}"]
    lines += [f"{etcd_image(version)}: {{path: {programs.build(f'etcd-{version}')}, entrypoint: [etcd]}}" for version in etcds]
    path = folder / "images.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def crescendo(*arguments):
    """The command line on this machine."""
    return run([pathlib.Path(BIN) / "crescendo", *arguments])


def descendants(pid):
    """A process and all that it has started, as /proc has them now."""
    children = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in brackets may have spaces.
            fields = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


class Machines:
    """Nodes of a cluster, by name."""

    def __init__(self, cluster, etcds, gpus=8):
        self.cluster, self.gpus = cluster, gpus
        self.program = programs.build("node") / "kube-node"
        self.table = images(cluster.folder, cluster.etcd_bin, etcds)
        self.processes = {}

    def start(self, name):
        """Starts a node, or one that was lost again, with what it had."""
        state = self.cluster.folder / "machines" / name
        state.mkdir(parents=True, exist_ok=True)
        flags = ["--kubeconfig", self.cluster.config, "--name", name, "--images", self.table, "--gpus", self.gpus, "--state", state]
        with open(self.cluster.folder / f"{name}.log", "ab") as log:
            self.processes[name] = spawn([self.program, *flags], log, end=signal.SIGTERM)

    def lose(self, name):
        """As if its power went: nothing of it runs on, and nobody is told."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)

    def freeze(self, name):
        """Stops all processes of a node, as a machine that hangs. Returns what lets them go on."""
        stopped = descendants(self.processes[name].pid)
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

        def thaw():
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

        return thaw

    def is_ready(self, name):
        process = self.processes[name]
        assert process.poll() is None, f"{name} ended:\n{self.cluster.log(name)[-2000:]}"
        return self.says_ready(name)

    def says_ready(self, name):
        """What the API has of a node."""
        node = self.cluster.get("node", name)
        return node and any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", []))

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@contextlib.contextmanager
def running(cluster, count, etcds):
    """As many nodes, until the end."""
    machines = Machines(cluster, etcds)
    try:
        for i in range(count):
            machines.start(f"machine-{i}")
        for name in machines.processes:
            eventually(f"{name} is ready", lambda: machines.is_ready(name), 60)
        yield machines
    finally:
        machines.stop()
