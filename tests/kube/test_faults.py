"""What a release that runs goes through: evictions, drained, lost and hanging machines, a leader that is deleted again and
again, new certificates, a restored store. One release serves all, since they leave it as it was.

Needs root, and built programs: CRESCENDO_BIN names their folder.
"""

import contextlib
import json
import ssl

import pytest
from chart import EXAMPLES, merged
from cryptography import x509

import cluster as api
import issuer
from cluster import Failed, eventually
from conftest import HELM, new_namespace
from release import NEEDS, Release

pytestmark = NEEDS

#: Two trainers on different machines, and short times to give ranks up.
VALUES = {
    "trainer": {"pools": [{"name": "gpu", "replicas": 2, "gpus": 1}]},
    "controller": {"silentAfterSeconds": 5, "ranksLostAfterSeconds": 20},
}
#: How often the leader is deleted.
DELETIONS = 20


@pytest.fixture(scope="module")
def shared(machines, tmp_path_factory):
    """Which Helm has installed it makes no difference to what pods go through."""
    namespace = new_namespace(machines, "restricted")
    helm = api.Helm(HELM[-1], machines, tmp_path_factory.mktemp("helm"))
    yield Release(machines, helm, namespace, merged(EXAMPLES["default"], VALUES)).install()
    machines.kubectl("delete", "namespace", namespace, "--timeout=120s", seconds=150)


@pytest.fixture
def release(shared):
    """In working order before each case, with nothing to do after it."""
    shared.is_ready()
    yield shared
    for job in shared.crescendo("jobs"):
        if job["state"] not in ("succeeded", "failed", "cancelled"):
            shared.crescendo("cancel", job["jobId"])


def evict(release, pod):
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": release.namespace}}
    path = f"/api/v1/namespaces/{release.namespace}/pods/{pod}/eviction"
    release.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


@pytest.mark.parametrize("component, count", [("etcd", 3), ("controller", 3), ("curator", 2), ("trainer", 2)])
def test_a_budget_lets_one_go_at_a_time(release, component, count):
    names = release.pods(component)
    assert len(names) == count
    # The budget's own count follows a little later than readiness.
    eventually("the budget lets one go", lambda: evict(release, names[0]) or True)
    with pytest.raises(Failed, match="disruption budget"):
        evict(release, names[1])
    release.is_ready()
    eventually("the budget lets the next one go", lambda: evict(release, names[1]) or True)


def test_a_leader_that_is_deleted_again_and_again(release):
    """Training does not notice."""
    job = release.submit()
    release.has_saved(job)
    leaders = []
    for _ in range(DELETIONS):
        leader = eventually("somebody leads", release.leader)
        uid = release.pod(leader)["metadata"]["uid"]
        release.cluster.kubectl("delete", "pod", leader, "--wait=false", namespace=release.namespace)
        leaders.append(leader)
        eventually("another pod", lambda: (release.pod(leader) or {}).get("metadata", {}).get("uid") not in (uid, None))
        # The step is not held to grow: until nodes tell it, a new leader knows what was saved.
        stage = eventually("somebody answers", lambda: release.stage(job))
        assert stage["restarts"] == 0 and stage["lastFailure"] is None, stage
    release.is_ready()
    assert len(set(leaders)) > 1, leaders
    stage = release.goes_on(job)
    assert stage["restarts"] == 0 and stage["lastFailure"] is None, stage
    release.ends(job)


#: Components with the port that each serves TLS at.
PORTS = {"controller": 7070, "curator": 7072, "trainer": 7071, "etcd": 2379}


def served(release, component):
    """The serial numbers of the certificates that a component's pods show."""
    found = set()
    for name in release.pods(component):
        try:
            text = ssl.get_server_certificate((release.pod(name)["status"]["podIP"], PORTS[component]), timeout=5)
        except OSError as error:
            raise Failed(f"{name}: {error}") from None
        found.add(x509.load_pem_x509_certificate(text.encode()).serial_number)
    return found


def uids(release):
    return {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in release.of_release("pod")}


def test_new_certificates_are_taken_up_as_they_are(release):
    """Key and certificate together, of all processes at once, with a job in training: nothing is started again for them."""
    job = release.submit()
    release.has_saved(job)
    before, old = uids(release), {component: served(release, component) for component in PORTS}
    issuer.fill(release.cluster, release.namespace, release.authorities)
    for component in PORTS:
        new = release.certificate(component).serial_number
        assert old[component] != {new}
        eventually(f"{component} shows its new certificate", lambda: served(release, component) == {new}, 120)
    assert release.goes_on(job)["restarts"] == 0
    assert all(node["reach"] == "connected" for node in release.crescendo("nodes"))
    assert uids(release) == before


def trains(release):
    """A job, what it has saved, the trainer that it is on, and that one's machine."""
    job = release.submit()
    saved, trainer = release.has_saved(job), release.busy_trainer()
    return job, saved, trainer, release.pod(trainer)["spec"]["nodeName"]


def goes_on_elsewhere(release, job, trainer, saved):
    """Waits for a job to train on another trainer, from what was saved at least."""

    def elsewhere():
        found = release.stage(job)
        return found if found["restarts"] and int(found["step"]) > int(saved) and release.busy_trainer() != trainer else None

    return eventually("the job goes on elsewhere", elsewhere, 240)


def test_a_drained_machine_hands_its_ranks_over(release):
    job, saved, trainer, machine = trains(release)
    try:
        drain = ["drain", machine, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app.kubernetes.io/component=trainer"]
        release.cluster.kubectl(*drain, "--timeout=200s", seconds=240)
        stage = goes_on_elsewhere(release, job, trainer, saved)
        # It was handed over: no attempt failed.
        assert stage["restarts"] == 1 and stage["lastFailure"] is None, stage
        release.ends(job)
    finally:
        release.cluster.kubectl("uncordon", machine)


@contextlib.contextmanager
def without(release, machine):
    """Asks nothing of pods on a machine that does not answer."""
    release.lost.add(machine)
    try:
        yield
    finally:
        release.lost.discard(machine)


def test_a_machine_that_is_lost_without_a_word(release):
    """With a trainer in the middle of a job, and whatever else was on it: its pods are gone, and nobody has ended them."""
    machines = release.cluster.machines
    job, saved, trainer, machine = trains(release)
    try:
        machines.lose(machine)
        with without(release, machine):
            stage = goes_on_elsewhere(release, job, trainer, saved)
            assert stage["restarts"] == 1, stage
            eventually("Kubernetes sees it", lambda: not machines.says_ready(machine), 90)
            release.ends(job)
    finally:
        machines.start(machine)
    eventually(f"{machine} is ready again", lambda: machines.is_ready(machine), 60)
    release.is_ready()
    eventually("all nodes are connected", lambda: all(node["reach"] == "connected" for node in release.crescendo("nodes")))


def test_a_machine_that_hangs_and_comes_back(release):
    """All of its processes stop, and go on after others have taken over: what it still computes changes nothing."""
    machines = release.cluster.machines
    job, saved, trainer, machine = trains(release)
    thaw = machines.freeze(machine)
    try:
        with without(release, machine):
            stage = goes_on_elsewhere(release, job, trainer, saved)
    finally:
        thaw()
    release.is_ready()
    eventually("all nodes are connected", lambda: all(node["reach"] == "connected" for node in release.crescendo("nodes")))
    found = release.goes_on(job)
    assert found["restarts"] == stage["restarts"] == 1, found
    release.ends(job)
