"""Releases that run, from their install to their removal: their pods are processes of this machine, on the nodes of
tests/kube/node.

Needs root, and built programs: CRESCENDO_BIN names their folder.
"""

import datetime

import pytest
from chart import EXAMPLES, merged

from cluster import eventually
from release import NEEDS, Release

pytestmark = NEEDS


@pytest.fixture
def release(machines, running_helm, running_namespace):
    def make(example, **changed):
        return Release(machines, running_helm, running_namespace, merged(EXAMPLES[example], changed))

    return make


def claims(release):
    return {item["metadata"]["name"] for item in release.cluster.get("pvc", namespace=release.namespace)}


def test_one_machine_from_install_to_removal(release):
    """The single-node example: its test succeeds, upgrades and rollbacks with a job in training lose nothing, and the next
    install knows the jobs of the last one."""
    installed = release("single-node").install()
    installed.helm("test", "crescendo", namespace=installed.namespace)
    job = installed.submit()
    installed.has_saved(job)
    installed.upgrade(images={"trainer": {"tag": "0.1.1"}, "controller": {"tag": "0.1.1"}})
    installed.is_ready()
    upgraded = installed.goes_on(job)
    installed.helm("rollback", "crescendo", "1", namespace=installed.namespace)
    installed.is_ready()
    stage = installed.goes_on(job)
    assert stage["restarts"] >= 2 and stage["lastFailure"] is None, stage
    assert int(stage["step"]) > int(upgraded["step"]), (upgraded, stage)
    installed.ends(job)
    installed.helm("uninstall", "crescendo", "--wait", namespace=installed.namespace)
    assert claims(installed) == {"crescendo-objects", "store-crescendo-controller-0"}
    installed.install()
    jobs = [found["jobId"] for found in installed.crescendo("jobs")]
    assert job in jobs


def test_three_controllers_from_install_to_removal(release):
    """On three members of etcd: other images, another number of trainers and another value, and back, with a job in training
    whose ranks hand over."""
    pool = {"name": "gpu", "replicas": 1, "gpus": 1}
    installed = release("default", trainer={"pools": [pool]}).install()
    installed.helm("test", "crescendo", namespace=installed.namespace)
    job = installed.submit()
    installed.has_saved(job)
    tags = {kind: {"tag": "0.1.1"} for kind in ("controller", "trainer", "curator")}
    installed.upgrade(images=tags, trainer={"pools": [{**pool, "replicas": 2}]}, log={"filter": "debug"})
    installed.is_ready()
    assert len(installed.pods("trainer")) == 2
    installed.helm("rollback", "crescendo", "1", namespace=installed.namespace)
    installed.is_ready()
    assert len(installed.pods("trainer")) == 1
    stage = installed.goes_on(job)
    assert stage["restarts"] >= 2 and stage["lastFailure"] is None, stage
    installed.ends(job)
    installed.helm("uninstall", "crescendo", "--wait", namespace=installed.namespace)
    members = {f"data-crescendo-etcd-{i}" for i in range(3)}
    assert claims(installed) == {"crescendo-objects"} | members
    installed.install()
    assert job in [found["jobId"] for found in installed.crescendo("jobs")]


def test_two_releases_in_one_namespace(machines, newest_helm, running_namespace):
    """Neither sees the other's nodes, jobs or removal."""
    both = [Release(machines, newest_helm, running_namespace, EXAMPLES["single-node"], name=name) for name in ("north", "south")]
    for one in both:
        one.install()
    jobs = [one.submit(steps=20) for one in both]
    for one, job in zip(both, jobs):
        one.ends_well(job)
        assert [found["jobId"] for found in one.crescendo("jobs")] == [job]
        assert {node["nodeId"] for node in one.crescendo("nodes")} == {f"{one.name}-curator-cpu-0", f"{one.name}-trainer-cpu-0"}
    north, south = both
    newest_helm("uninstall", "north", "--wait", namespace=running_namespace)
    eventually("all of it is gone", lambda: not north.statefulsets() and not north.pods("trainer"))
    south.is_ready()
    south.ends_well(south.submit(steps=20))


def test_generated_certificates_are_renewed_before_they_end(machines, newest_helm, running_namespace):
    """Certificates of four minutes, looked after every minute, on etcd too: nobody notices their end."""
    short = {"tls": {"source": "generated", "generated": {"lifetime": "4m", "schedule": "* * * * *"}}}
    installed = Release(machines, newest_helm, running_namespace, merged(EXAMPLES["default"], short)).install()
    components = ("controller", "curator", "trainer", "etcd", "etcd-client")
    first = {component: installed.certificate(component) for component in components}
    job = installed.submit()

    def all_are_new():
        return all(installed.certificate(component).serial_number != first[component].serial_number for component in components)

    eventually("all certificates are renewed", all_are_new, 240)
    now = datetime.datetime.now(datetime.timezone.utc)
    assert all(one.not_valid_after_utc > now for one in first.values())
    last = max(one.not_valid_after_utc for one in first.values())
    eventually("the first ones have ended", lambda: datetime.datetime.now(datetime.timezone.utc) > last, 240)
    assert installed.goes_on(job)["restarts"] == 0
    assert all(node["reach"] == "connected" for node in installed.crescendo("nodes"))
    installed.crescendo("cancel", job)
