"""Every example is taken by a real API, in a namespace that enforces the Pod Security level that it needs."""

import pytest
from chart import CHART, EXAMPLES

from cluster import eventually

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
