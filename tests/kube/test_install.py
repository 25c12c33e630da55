"""Every example is taken by a real API, in a namespace that enforces the Pod Security level that it needs."""

import pytest
from chart import CHART, EXAMPLES

from cluster import Failed, eventually

#: Examples with a pool on the node's network, which no level but this allows.
LEVELS = {"ha": "privileged"}


def replicas_missing(cluster, namespace):
    """StatefulSets that have fewer pods than they should, with what the API said about it."""
    missing = []
    for item in cluster.get("statefulset", namespace=namespace):
        name, wanted = item["metadata"]["name"], item["spec"]["replicas"]
        if item["status"].get("replicas", 0) != wanted or item["status"].get("observedGeneration") is None:
            events = cluster.get("events", namespace=namespace)
            missing.append((name, [e["message"] for e in events if e["involvedObject"]["name"] == name and e["type"] == "Warning"]))
    return missing


def may(cluster, namespace, verb, what):
    who = f"--as=system:serviceaccount:{namespace}:crescendo-certificates"
    try:
        return cluster.kubectl("auth", "can-i", verb, what, who, namespace=namespace).strip() == "yes"
    except Failed:
        return False


def test_what_makes_certificates_may_touch_no_other_secret(cluster, helm, namespace):
    helm("install", "crescendo", CHART, namespace=namespace, values=EXAMPLES["single-node"])
    for secret in ("ca", "controller-tls", "curator-tls", "trainer-tls", "test-tls"):
        for verb in ("get", "update"):
            assert may(cluster, namespace, verb, f"secrets/crescendo-{secret}"), (verb, secret)
    for verb, what in [
        ("get", "secrets/other"),
        ("list", "secrets"),
        ("create", "secrets"),
        ("delete", "secrets/crescendo-ca"),
        ("get", "pods"),
        ("create", "jobs"),
    ]:
        assert not may(cluster, namespace, verb, what), (verb, what)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_admitted(cluster, helm, make_namespace, example):
    namespace = make_namespace(LEVELS.get(example, "restricted"))
    helm("install", "crescendo", CHART, namespace=namespace, values=EXAMPLES[example])
    missing = None

    def all_there():
        nonlocal missing
        missing = replicas_missing(cluster, namespace)
        return not missing

    try:
        eventually("every StatefulSet has its pods", all_there)
    except AssertionError as error:
        raise AssertionError(f"{error}: {missing}") from None
