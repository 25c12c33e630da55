import itertools
import os
import pathlib
import shutil
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "chart"))

import cluster as api  # noqa: E402
import machines as nodes  # noqa: E402
import programs  # noqa: E402



def versions(kind):
    """Those that there are modules for, or those that CRESCENDO_KUBE_VERSIONS names, such as `k8s-1.36 helm-4`."""
    named = os.environ.get("CRESCENDO_KUBE_VERSIONS", "").split()
    found = [name.removeprefix(kind) for name in programs.modules() if name.startswith(kind)]
    return [version for version in found if f"{kind}{version}" in named] or found


#: Minor versions of Kubernetes and of etcd, and major ones of Helm, that are tried.
KUBERNETES, ETCD, HELM = versions("k8s-"), versions("etcd-"), versions("helm-")
NUMBERS = itertools.count(1)


def pytest_collection_modifyitems(items):
    """What one cluster serves follows on each other, however the files lie."""
    items.sort(key=lambda item: getattr(item, "callspec", None) and item.callspec.params.get("cluster") or "")


@pytest.fixture(scope="session", params=KUBERNETES)
def cluster(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    with api.running(folder, request.param) as cluster:
        cluster.kubectl("apply", "--server-side", "-f", str(programs.definitions()))
        cluster.apply(*surroundings())
        yield cluster
    shutil.rmtree(folder)


def surroundings():
    """What the examples name and a cluster has."""
    for name in ("standard", "local-ssd", "local-nvme", "shared-files"):
        default = {"storageclass.kubernetes.io/is-default-class": "true"} if name == "standard" else {}
        yield {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name, "annotations": default},
            "provisioner": "kube-node/process",
            "allowVolumeExpansion": name != "local-nvme",
        }
    yield {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
    for name, value in (("high", 1000), ("system", 2000)):
        yield {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value}


@pytest.fixture(params=HELM)
def helm(request, cluster, tmp_path):
    return api.Helm(request.param, cluster, tmp_path)


def new_namespace(cluster, level):
    name = f"ml-{next(NUMBERS)}"
    labels = {"pod-security.kubernetes.io/enforce": level}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return name


@pytest.fixture
def make_namespace(cluster):
    """Makes namespaces, which the end of the test takes away."""
    made = []

    def make(level="restricted"):
        made.append(new_namespace(cluster, level))
        return made[-1]

    yield make
    for name in made:
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(make_namespace):
    return make_namespace()


@pytest.fixture(scope="session")
def machines(tmp_path_factory):
    """A cluster of the newest version with three nodes."""
    folder = tmp_path_factory.mktemp("machines")
    with api.running(folder, KUBERNETES[-1]) as cluster:
        cluster.kubectl("apply", "--server-side", "-f", str(programs.definitions()))
        cluster.apply(*surroundings())
        with nodes.running(cluster, 3, ETCD) as cluster.machines:
            yield cluster


@pytest.fixture(params=HELM)
def running_helm(request, machines, tmp_path):
    return api.Helm(request.param, machines, tmp_path)


@pytest.fixture
def newest_helm(machines, tmp_path):
    """For what Helm has no part in."""
    return api.Helm(HELM[-1], machines, tmp_path)


@pytest.fixture
def running_namespace(machines):
    name = new_namespace(machines, "restricted")
    yield name
    machines.kubectl("delete", "namespace", name, "--timeout=120s", seconds=150)


@pytest.fixture(scope="module")
def bare_cluster(tmp_path_factory):
    """One without the definitions of other projects."""
    with api.running(tmp_path_factory.mktemp("bare"), KUBERNETES[-1]) as cluster:
        yield cluster


@pytest.fixture(params=HELM)
def bare_helm(request, bare_cluster, tmp_path):
    return api.Helm(request.param, bare_cluster, tmp_path)


@pytest.fixture
def bare_namespace(bare_cluster):
    return new_namespace(bare_cluster, "restricted")
