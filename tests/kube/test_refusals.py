"""What a cluster has not got is said by `helm install` itself, in one line, and nothing is left of the release."""

import pytest
from chart import CHART, EXAMPLES, REGISTRY, merged

from cluster import Failed, eventually

SINGLE = EXAMPLES["single-node"]
IN_A_POOL = {"name": "cpu", "replicas": 1, "gpus": 0}

CASES = {
    "a storage class of the object store": (
        merged(SINGLE, {"objectStore": {"create": {"storageClassName": "fast"}}}),
        "objectStore.create.storageClassName: there is no StorageClass fast in this cluster, but local-nvme, local-ssd, shared-files, standard",
    ),
    "a storage class of etcd": (
        merged(REGISTRY, {"etcd": {"bundled": {"persistence": {"storageClassName": "fast"}}}}),
        "etcd.bundled.persistence.storageClassName: there is no StorageClass fast",
    ),
    "a storage class of the embedded store": (
        merged(SINGLE, {"store": {"embedded": {"storageClassName": "fast"}}}),
        "store.embedded.storageClassName: there is no StorageClass fast",
    ),
    "a storage class of scratch folders": (
        merged(SINGLE, {"curator": {"pools": [{**IN_A_POOL, "scratchStorageClassName": "fast"}]}}),
        "curator.pools[0] (cpu).scratchStorageClassName: there is no StorageClass fast",
    ),
    "a runtime class": (
        merged(SINGLE, {"trainer": {"pools": [{**IN_A_POOL, "runtimeClassName": "kata"}]}}),
        "trainer.pools[0] (cpu).runtimeClassName: there is no RuntimeClass kata in this cluster, but nvidia",
    ),
    "a priority class": (
        merged(SINGLE, {"controller": {"priorityClassName": "urgent"}}),
        "controller.priorityClassName: there is no PriorityClass urgent",
    ),
    "the node's network": (
        EXAMPLES["ha"],
        "trainer.pools[0] (h100).hostNetwork: is true, and namespace {namespace} enforces the Pod Security level restricted",
    ),
}


def refused(helm, namespace, values, says):
    with pytest.raises(Failed) as caught:
        helm("install", "crescendo", CHART, namespace=namespace, values=values)
    assert says.format(namespace=namespace) in str(caught.value), caught.value
    assert len(str(caught.value).splitlines()) == 1, caught.value
    return str(caught.value)


def left(cluster, namespace):
    """Whatever a namespace has that a new one has not."""
    kinds = "statefulset,pod,service,pvc,configmap,secret,serviceaccount,role,rolebinding,job,cronjob,pdb,networkpolicy"
    found = {f"{item['kind']}/{item['metadata']['name']}" for item in cluster.get(kinds, namespace=namespace)}
    return found - {"ServiceAccount/default", "ConfigMap/kube-root-ca.crt"}


def nothing_is_there(cluster, namespace):
    assert not left(cluster, namespace)


@pytest.mark.parametrize("what", CASES)
def test_what_is_not_there_is_named(cluster, helm, namespace, what):
    values, says = CASES[what]
    assert "clusterChecks: false" in refused(helm, namespace, values, says)
    nothing_is_there(cluster, namespace)


def test_the_check_can_be_left_out(cluster, helm, namespace):
    values = merged(CASES["a runtime class"][0], {"clusterChecks": False})
    helm("install", "crescendo", CHART, namespace=namespace, values=values)


def test_who_may_use_the_namespace_only_installs_without_the_check(cluster, helm, namespace):
    cluster.kubectl("create", "rolebinding", "all", "--clusterrole=cluster-admin", f"--serviceaccount={namespace}:default", namespace=namespace)
    config = cluster.kubeconfig_of_account("default", namespace)
    with pytest.raises(Failed, match="storageclasses.* is forbidden"):
        helm("install", "crescendo", CHART, namespace=namespace, values=SINGLE, kubeconfig=config)
    helm("install", "crescendo", CHART, namespace=namespace, values=merged(SINGLE, {"clusterChecks": False}), kubeconfig=config)


def test_a_cluster_without_cert_manager(bare_cluster, bare_helm, bare_namespace):
    says = "tls.source: is certManager, and this cluster has no cert-manager.io/v1: install cert-manager first"
    message = refused(bare_helm, bare_namespace, REGISTRY, says)
    assert "generated" in message and "existingSecrets" in message
    nothing_is_there(bare_cluster, bare_namespace)


def test_the_single_node_example_needs_no_other_operator(bare_cluster, bare_helm, bare_namespace):
    bare_helm("install", "crescendo", CHART, namespace=bare_namespace, values=SINGLE)
    bare_helm("uninstall", "crescendo", "--wait", namespace=bare_namespace)
    claims = {"PersistentVolumeClaim/crescendo-objects", "PersistentVolumeClaim/store-crescendo-controller-0"}
    eventually("all but the claims is gone", lambda: left(bare_cluster, bare_namespace) <= claims)


@pytest.mark.parametrize("kind", ["podMonitor", "prometheusRule"])
def test_a_cluster_without_the_prometheus_operator(bare_cluster, bare_helm, bare_namespace, kind):
    values = merged(EXAMPLES["external-etcd"], {"monitoring": {k: {"enabled": k == kind} for k in ("podMonitor", "prometheusRule")}})
    refused(bare_helm, bare_namespace, values, f"monitoring.{kind}.enabled: is true, and this cluster has no monitoring.coreos.com/v1")


def test_without_a_cluster_nothing_is_asked(helm, namespace):
    helm("template", "crescendo", CHART, namespace=namespace, values=EXAMPLES["ha"], kubeconfig="/nowhere")
