"""What people add to a release, and the ways in from outside, on a real API: all of it is admitted and kept, and what the cluster
has not got, or etcd would not start from, is refused in one line."""

import json
import os
import subprocess

import pytest
from chart import CHART, EXAMPLES, HERE, REGISTRY, load_yaml, merged

import programs
from cluster import Failed, eventually
from machines import BIN, crescendo

OPEN = EXAMPLES["open"]
ADDED = load_yaml(HERE / "open.yaml")["controller"]
GATEWAY = {"external": {"gateway": {"kind": "TLSRoute", "parentRefs": [{"name": "public", "namespace": "gateways"}], "caConfigMap": "ca"}}}


@pytest.fixture(scope="session")
def gateway_definitions(tmp_path_factory):
    """The Gateway API's resource definitions, made from its types, which cert-manager's module depends on."""
    folder = tmp_path_factory.mktemp("gateway")
    program = programs.build("crds") / "controller-gen"
    command = [program, "crd:allowDangerousTypes=true", "paths=sigs.k8s.io/gateway-api/apis/v1", f"output:crd:dir={folder}"]
    done = subprocess.run(command, cwd=programs.MODULES / "crds", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    # Kubernetes keeps its own groups for definitions that it has looked at.
    for path in folder.glob("*.yaml"):
        approved = "  annotations:\n    api-approved.kubernetes.io: https://github.com/kubernetes-sigs/gateway-api\n"
        path.write_text(path.read_text().replace("  annotations:\n", approved, 1))
    return folder


@pytest.fixture
def with_gateways(cluster, gateway_definitions):
    cluster.kubectl("apply", "--server-side", "-f", str(gateway_definitions))
    cluster.kubectl("wait", "--for=condition=Established", "crd/tlsroutes.gateway.networking.k8s.io", "--timeout=60s")


def names(cluster, namespace, kind):
    return {item["metadata"]["name"]: item for item in cluster.get(kind, namespace=namespace)}


def test_all_that_people_add_is_admitted_and_kept(cluster, helm, namespace, with_gateways):
    """In a namespace that enforces the level `restricted`, with users that are left to the cluster."""
    helm("install", "crescendo", CHART, namespace=namespace, values=merged(OPEN, GATEWAY))
    sets = names(cluster, namespace, "statefulset")
    for name in ("controller", "etcd", "curator-cpu", "trainer-gpu"):
        spec = sets[f"crescendo-{name}"]["spec"]["template"]["spec"]
        own, sidecar = spec["containers"]
        assert spec["affinity"] == ADDED["affinity"], name
        assert [volume["name"] for volume in spec["volumes"] if volume["name"] in ("company-ca", "cache")] == ["company-ca", "cache"], name
        assert {mount["mountPath"] for mount in ADDED["extraVolumeMounts"]} <= {mount["mountPath"] for mount in own["volumeMounts"]}, name
        assert own["envFrom"] == ADDED["extraEnvFrom"] and sidecar["name"] == "shipper", name
        assert [container["name"] for container in spec["initContainers"]] == ["wait"], name

    def every_pod_is_there():
        return all(item["status"].get("replicas", 0) == item["spec"]["replicas"] for item in names(cluster, namespace, "statefulset").values())

    eventually("every StatefulSet has its pods", every_pod_is_there)
    for name, pod in names(cluster, namespace, "pod").items():
        assert "runAsUser" not in pod["spec"]["securityContext"], name
    jobs = {name.rsplit("-", 1)[0]: job for name, job in names(cluster, namespace, "job").items()}
    assert set(jobs) == {"crescendo-certificates", "crescendo-fetch"}
    # What is not admitted is an event of whatever was to make it.
    refused = [event["message"] for event in cluster.get("events", namespace=namespace) if event["reason"] == "FailedCreate"]
    assert not refused
    services = names(cluster, namespace, "service")
    for i, host in enumerate(OPEN["external"]["hosts"]):
        spec = services[f"crescendo-external-{i}"]["spec"]
        assert (spec["type"], spec["externalTrafficPolicy"], spec["loadBalancerClass"]) == ("LoadBalancer", "Local", "example.com/internal")
        route = cluster.get("tlsroutes.gateway.networking.k8s.io", f"crescendo-external-{i}", namespace=namespace)
        assert route["spec"]["hostnames"] == [host] and route["spec"]["rules"][0]["backendRefs"][0]["name"] == f"crescendo-external-{i}"
    ingress = cluster.get("ingress", "crescendo-external", namespace=namespace)
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == OPEN["external"]["hosts"]
    maps = names(cluster, namespace, "configmap")
    assert maps["crescendo-site"]["data"] == {"controllers": "3"} and "company-ca" in maps


def test_a_gateway_that_ends_tls_is_told_whom_to_trust(cluster, helm, namespace, with_gateways):
    values = merged(OPEN, GATEWAY, {"external": {"gateway": {"kind": "GRPCRoute"}}})
    helm("install", "crescendo", CHART, namespace=namespace, values=values)
    policy = cluster.get("backendtlspolicies.gateway.networking.k8s.io", "crescendo-external-1", namespace=namespace)
    assert policy["spec"]["validation"]["hostname"] == OPEN["external"]["hosts"][1]
    assert cluster.get("grpcroutes.gateway.networking.k8s.io", "crescendo-external-2", namespace=namespace)
    helm("uninstall", "crescendo", "--wait", namespace=namespace)
    for kind in ("grpcroutes.gateway.networking.k8s.io", "ingress", "job"):
        assert not cluster.get(kind, namespace=namespace), kind


MISSING = {
    "a gateway": (merged(OPEN, GATEWAY), "external.gateway.kind: is TLSRoute, and this cluster has none of gateway.networking.k8s.io"),
    "KEDA": (
        merged(
            EXAMPLES["single-node"],
            {"tenants": {"queues": {"default": {}}}, "trainer": {"autoscaling": {"prometheusUrl": "http://prometheus:9090"}}},
            {"trainer": {"pools": [{"name": "cpu", "replicas": 0, "gpus": 0, "maxReplicas": 2}]}},
        ),
        "trainer.pools[0] (cpu).maxReplicas: is 2, and this cluster has no keda.sh/v1alpha1",
    ),
}


@pytest.mark.parametrize("what", MISSING)
def test_a_cluster_without_it(bare_helm, bare_namespace, what):
    values, says = MISSING[what]
    with pytest.raises(Failed) as caught:
        bare_helm("install", "crescendo", CHART, namespace=bare_namespace, values=values)
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1, caught.value


def etcd(tag):
    return {"etcd": {"bundled": {"image": {"tag": tag, "digest": ""}}}}


def test_etcd_goes_one_minor_version_at_a_time(cluster, helm, namespace):
    """From an earlier chart's 3.5 to the digest of the values, which is one of 3.6, and on."""
    older, newest, default = merged(REGISTRY, etcd("v3.5.21")), merged(REGISTRY, etcd("v3.5.35")), REGISTRY
    helm("install", "crescendo", CHART, namespace=namespace, values=older)

    def refused(values, says):
        with pytest.raises(Failed) as caught:
            helm("upgrade", "crescendo", CHART, namespace=namespace, values=values)
        assert says in str(caught.value), caught.value

    refused(default, "is etcd 3.6.15, and this release has 3.5.21: to 3.6 it goes from 3.5.26 or later")
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=newest)
    refused(merged(REGISTRY, etcd("v3.7.3")), "is etcd 3.7.3, and this release has 3.5.35: it goes to the next minor version")
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=default)
    refused(newest, "is etcd 3.5.35, and this release has 3.6.15: it goes to the next minor version and not back")
    helm("upgrade", "crescendo", CHART, namespace=namespace, values=merged(REGISTRY, etcd("v3.7.3")))


@pytest.mark.skipif(not BIN or os.geteuid() != 0, reason="pods run as root, from CRESCENDO_BIN")
def test_a_host_name_leads_to_its_controller_by_tls(machines, running_helm, running_namespace):
    """What people add is in the process, and a caller reaches the controller by its name outside, which its certificate has."""
    host = f"crescendo-external-0.{running_namespace}.svc"
    made = json.loads(crescendo("token", "new", "--name", "me", "--role", "admin", "--expires", "1d", "-o", "json"))
    tokens = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tokens", "namespace": running_namespace}}
    machines.apply({**tokens, "stringData": {"tokens.yaml": json.dumps([made["entry"]])}})
    company = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "company", "namespace": running_namespace}}
    machines.apply({**company, "data": {"COMPANY_SITE": "north"}})
    values = merged(
        EXAMPLES["single-node"],
        {"auth": {"tokens": {"existingSecret": "tokens"}}, "tls": {"generated": {"controllerNames": [host]}}},
        {"external": {"hosts": [host], "service": {"type": "NodePort"}}, "networkPolicy": {"controllerClientNamespaces": [running_namespace]}},
        {
            "controller": {
                "podLabels": {"example.com/team": "ml"},
                "extraEnv": [{"name": "TEAM", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['example.com/team']"}}}],
                "extraEnvFrom": [{"configMapRef": {"name": "company"}}],
            }
        },
    )
    running_helm("install", "crescendo", CHART, namespace=running_namespace, values=values)
    eventually("the controller is ready", lambda: ready(machines, running_namespace, "crescendo-controller"), 180)

    def inside(*command):
        return machines.kubectl("exec", "crescendo-controller-0", "--", *command, namespace=running_namespace)

    variables = inside("env").splitlines()
    assert "TEAM=ml" in variables and "COMPANY_SITE=north" in variables
    call = ["env", f"CRESCENDO_TOKEN={made['token']}", "crescendo", "--controller", f"{host}:443", "whoami", "-o", "json"]
    who = json.loads(eventually("an answer", lambda: inside(*call), 60))
    assert who["name"] == "me", who


def ready(cluster, namespace, name):
    item = cluster.get("statefulset", name, namespace=namespace)
    return item and item["status"].get("readyReplicas", 0) == item["spec"]["replicas"]
