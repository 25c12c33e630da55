"""What passes when a release is installed again, upgraded, scaled by hand or rolled back."""

import json
import re

import pytest
from chart import CHART, EXAMPLES, merged

from cluster import Failed, eventually

GIB = 1 << 30
NULL_TRAINERS = {"trainer": {"pools": [{"name": "gpu", "replicas": None, "gpus": 1}]}}


def claim(cluster, namespace):
    return cluster.get("pvc", "crescendo-objects", namespace=namespace)["spec"]


def names(cluster, namespace, kind):
    return {item["metadata"]["name"] for item in cluster.get(kind, namespace=namespace)}


def bind(cluster, namespace, name):
    """Gives a claim its volume, as a provisioner would."""
    wanted = cluster.get("pvc", name, namespace=namespace)["spec"]
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}", "annotations": {"pv.kubernetes.io/provisioned-by": "kube-node/process"}},
            "spec": {
                "capacity": wanted["resources"]["requests"],
                "accessModes": wanted["accessModes"],
                "storageClassName": wanted["storageClassName"],
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name},
                "hostPath": {"path": f"/nowhere/{namespace}/{name}"},
            },
        }
    )
    eventually("the claim is bound", lambda: cluster.get("pvc", name, namespace=namespace)["status"]["phase"] == "Bound")


def set_of(cluster, namespace, name):
    return cluster.get("statefulset", name, namespace=namespace)


def sizes(size, **objects):
    return {"objectStore": {"create": {"size": size, **objects}}}


def test_the_next_install_takes_up_what_the_last_one_left(cluster, helm, namespace):
    helm("install", "crescendo", CHART, namespace=namespace, values=EXAMPLES["default"])
    first = claim(cluster, namespace)
    eventually("etcd's claims are made", lambda: len(names(cluster, namespace, "pvc")) == 4)
    helm("uninstall", "crescendo", "--wait", namespace=namespace)
    etcd = {f"data-crescendo-etcd-{i}" for i in range(3)}
    eventually("all but the claims is gone", lambda: not names(cluster, namespace, "statefulset,service,secret,pdb,networkpolicy"))
    assert names(cluster, namespace, "pvc") == {"crescendo-objects"} | etcd
    # Another size, another access mode.
    said = helm("install", "crescendo", CHART, namespace=namespace, values=EXAMPLES["single-node"])
    assert claim(cluster, namespace) == first
    assert "claim crescendo-objects was there already and is used as it is" in said, said
    assert "500Gi, ReadWriteMany, storage class standard" in said, said
    # Nor does an upgrade change it.
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=EXAMPLES["single-node"])
    assert claim(cluster, namespace) == first


@pytest.mark.parametrize("first, second", [("", ""), ("", "standard"), ("standard", "standard")], ids=["default", "named later", "named"])
def test_a_rollback_leaves_the_claim_alone(cluster, helm, namespace, first, second):
    """The first revision was rendered when there was no claim yet, and later ones by the claim that there is."""
    for command, name in [("install", first), ("upgrade", second)]:
        values = merged(EXAMPLES["single-node"], {"objectStore": {"create": {"storageClassName": name}}})
        helm(command, "crescendo", CHART, namespace=namespace, values=values)
    before = claim(cluster, namespace)
    assert before["storageClassName"] == "standard"
    for revision in ("1", "2"):
        helm("rollback", "crescendo", revision, namespace=namespace)
        assert claim(cluster, namespace) == before


def test_the_object_store_grows(cluster, helm, namespace):
    values = merged(EXAMPLES["default"], sizes("10Gi"))
    helm("install", "crescendo", CHART, namespace=namespace, values=values)
    larger = merged(values, sizes("20Gi"))
    with pytest.raises(Failed, match="objectStore.create.size: is 20Gi, and the claim .* has no volume yet"):
        helm("upgrade", "crescendo", CHART, namespace=namespace, values=larger)
    bind(cluster, namespace, "crescendo-objects")
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=larger)
    assert claim(cluster, namespace)["resources"]["requests"]["storage"] == "20Gi"
    # It does not shrink, whatever the values say.
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=values)
    assert claim(cluster, namespace)["resources"]["requests"]["storage"] == "20Gi"


def test_a_class_that_does_not_grow_is_named(cluster, helm, namespace):
    values = merged(EXAMPLES["default"], sizes("10Gi", storageClassName="local-nvme"))
    helm("install", "crescendo", CHART, namespace=namespace, values=values)
    bind(cluster, namespace, "crescendo-objects")
    with pytest.raises(Failed) as refused:
        helm("upgrade", "crescendo", CHART, namespace=namespace, values=merged(values, sizes("20Gi")))
    assert 'its storage class "local-nvme" does not allow it' in str(refused.value)
    assert "objectStore.existingClaim" in str(refused.value)


@pytest.mark.parametrize(
    "example, name, section",
    [
        ("default", "crescendo-etcd", lambda size: {"etcd": {"bundled": {"persistence": {"size": size}}}}),
        ("single-node", "crescendo-controller", lambda size: {"store": {"embedded": {"size": size}}}),
    ],
    ids=["etcd", "embedded"],
)
def test_claims_of_a_statefulset_grow_by_the_steps_that_the_refusal_names(cluster, helm, namespace, example, name, section):
    values = merged(EXAMPLES[example], section("20Gi"))
    helm("install", "crescendo", CHART, namespace=namespace, values=values)
    count = set_of(cluster, namespace, name)["spec"]["replicas"]
    pods = f"app.kubernetes.io/component={name.removeprefix('crescendo-')}"
    eventually("the pods are there", lambda: len(cluster.get("pod", namespace=namespace, selector=pods)) == count)
    claims = [claim for claim in names(cluster, namespace, "pvc") if claim != "crescendo-objects"]
    assert len(claims) == count
    before = {pod["metadata"]["uid"] for pod in cluster.get("pod", namespace=namespace, selector=pods)}
    revision = set_of(cluster, namespace, "crescendo-curator-cpu")["metadata"]["resourceVersion"]
    larger = merged(values, section("40Gi"), {"log": {"filter": "debug"}})
    with pytest.raises(Failed) as refused:
        helm("upgrade", "crescendo", CHART, namespace=namespace, values=larger)
    # Nothing was changed.
    assert set_of(cluster, namespace, "crescendo-curator-cpu")["metadata"]["resourceVersion"] == revision
    for one in claims:
        bind(cluster, namespace, one)
    steps = re.findall("`(.*?)`", str(refused.value))
    assert len(steps) == 2, refused.value
    for step in steps:
        cluster.shell(step)
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=larger)
    template = set_of(cluster, namespace, name)["spec"]["volumeClaimTemplates"][0]
    assert template["spec"]["resources"]["requests"]["storage"] == "40Gi"
    for one in claims:
        assert cluster.get("pvc", one, namespace=namespace)["spec"]["resources"]["requests"]["storage"] == "40Gi"
    # The pods went on, until the upgrade itself replaced them one by one.
    after = {pod["metadata"]["uid"] for pod in cluster.get("pod", namespace=namespace, selector=pods)}
    assert len(after & before) >= count - 1


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"etcd": {"bundled": {"replicas": 5}}}, "etcd.bundled.replicas: is 5, and this release has 3 members"),
        ({"etcd": {"bundled": {"persistence": {"size": "10Gi"}}}}, "etcd.bundled.persistence.size: is 10Gi.* do not shrink"),
        (
            {"etcd": {"bundled": {"persistence": {"storageClassName": "local-ssd"}}}},
            'etcd.bundled.persistence.storageClassName: is "local-ssd"',
        ),
        (
            {"store": {"kind": "embedded"}, "controller": {"replicas": 1}, "etcd": {"bundled": {"enabled": False}}},
            "store.kind: is embedded, and this release has etcd",
        ),
    ],
    ids=["members", "shrink", "class", "store"],
)
def test_what_cannot_be_changed_is_refused_before_anything_is(cluster, helm, namespace, changed, says):
    helm("install", "crescendo", CHART, namespace=namespace, values=EXAMPLES["default"])
    before = {item["metadata"]["name"]: item["metadata"]["generation"] for item in cluster.get("statefulset", namespace=namespace)}
    with pytest.raises(Failed, match=says):
        helm("upgrade", "crescendo", CHART, namespace=namespace, values=merged(EXAMPLES["default"], changed))
    assert before == {item["metadata"]["name"]: item["metadata"]["generation"] for item in cluster.get("statefulset", namespace=namespace)}


def scale(cluster, namespace, name, count):
    cluster.kubectl("scale", f"statefulset/{name}", f"--replicas={count}", namespace=namespace)


def replicas(cluster, namespace, name="crescendo-trainer-gpu"):
    return set_of(cluster, namespace, name)["spec"]["replicas"]


def test_a_pool_that_people_scale_stays_as_they_left_it(cluster, helm, namespace):
    values = merged(EXAMPLES["default"], NULL_TRAINERS)
    helm("install", "crescendo", CHART, namespace=namespace, values=values)
    assert replicas(cluster, namespace) == 1
    scale(cluster, namespace, "crescendo-trainer-gpu", 3)
    for filter_ in ("debug", "warn"):
        helm("upgrade", "crescendo", CHART, namespace=namespace, values=merged(values, {"log": {"filter": filter_}}))
        assert replicas(cluster, namespace) == 3
        scale(cluster, namespace, "crescendo-trainer-gpu", 4)
        scale(cluster, namespace, "crescendo-trainer-gpu", 3)
    if helm.major == "4":
        helm("rollback", "crescendo", "2", namespace=namespace)
        assert replicas(cluster, namespace) == 3


@pytest.mark.parametrize("scaled", [False, True])
def test_a_number_that_is_taken_back_leaves_as_many_as_there_are(cluster, helm, namespace, scaled):
    """Without the line, Kubernetes would make it one, and training would stop."""
    pools = {"trainer": {"pools": [{"name": "gpu", "replicas": 4, "gpus": 1}]}}
    helm("install", "crescendo", CHART, namespace=namespace, values=merged(EXAMPLES["default"], pools))
    there = 4
    if scaled:
        there = 6
        scale(cluster, namespace, "crescendo-trainer-gpu", there)
    for filter_ in ("debug", "warn"):
        values = merged(EXAMPLES["default"], NULL_TRAINERS, {"log": {"filter": filter_}})
        helm("upgrade", "crescendo", CHART, namespace=namespace, values=values)
        assert replicas(cluster, namespace) == there


def test_curators_that_get_an_autoscaler_stay_as_many_as_there_are(cluster, helm, namespace):
    def pool(**more):
        return merged(EXAMPLES["default"], {"curator": {"pools": [{"name": "cpu", "replicas": 3, "gpus": 0, **more}]}})

    helm("install", "crescendo", CHART, namespace=namespace, values=pool())
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=pool(maxReplicas=8))
    assert replicas(cluster, namespace, "crescendo-curator-cpu") == 3
    # What the autoscaler does.
    scale(cluster, namespace, "crescendo-curator-cpu", 5)
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=merged(pool(maxReplicas=8), {"log": {"filter": "debug"}}))
    assert replicas(cluster, namespace, "crescendo-curator-cpu") == 5


def image(cluster, namespace):
    return set_of(cluster, namespace, "crescendo-trainer-gpu")["spec"]["template"]["spec"]["containers"][0]["image"]


def test_an_image_that_was_set_by_hand(cluster, helm, namespace):
    """As docs/operations.md has it: Helm 4 refuses until it may force, Helm 3 sets it back without a word."""
    helm("install", "crescendo", CHART, namespace=namespace, values=EXAMPLES["default"])
    own = image(cluster, namespace)
    cluster.kubectl("set", "image", "statefulset/crescendo-trainer-gpu", "trainer=example.com/other:1", namespace=namespace)
    values = merged(EXAMPLES["default"], {"log": {"filter": "debug"}})
    if helm.major == "4":
        with pytest.raises(Failed, match="conflict"):
            helm("upgrade", "crescendo", CHART, namespace=namespace, values=values)
        helm("upgrade", "crescendo", CHART, "--force-conflicts", namespace=namespace, values=values)
    else:
        helm("upgrade", "crescendo", CHART, namespace=namespace, values=values)
    assert image(cluster, namespace) == own
    history = json.loads(helm("history", "crescendo", "-o", "json", namespace=namespace))
    assert history[-1]["status"] == "deployed"
