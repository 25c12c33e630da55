"""What every rendered object must have, whatever the values."""

import re

import pytest

from certificates import covers, wanted
from chart import CHART, EXAMPLES, HERE, REGISTRY, WORKLOADS, catalogue, load_yaml, merged, of_kind, pods, rendered, rust_sources, selects

COMPONENT = "app.kubernetes.io/component"


@pytest.fixture(params=EXAMPLES)
def objects(request):
    return rendered(EXAMPLES[request.param])


def test_containers_have_bounds_and_no_rights(objects):
    for name, _, spec in pods(objects):
        for container in spec["containers"] + spec.get("initContainers", []):
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][kind]), (name, kind)
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert "privileged" not in security, name


def test_images_are_pinned(objects):
    for name, _, spec in pods(objects):
        for container in spec["containers"]:
            assert re.search(r":[^/:]+$|@sha256:[0-9a-f]{64}$", container["image"]), name
            assert not container["image"].endswith(":latest"), name


def test_pods_are_not_root_and_have_no_token(objects):
    accounts = {item["metadata"]["name"]: item for item in of_kind(objects, "ServiceAccount")}
    for name, labels, spec in pods(objects):
        security = spec["securityContext"]
        users = {key: security[key] for key in ("runAsUser", "runAsGroup", "fsGroup") if key in security}
        # All of them, or none where the cluster chooses.
        assert security["runAsNonRoot"] is True and len(users) in (0, 3) and all(user > 0 for user in users.values()), name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        # What makes certificates writes them by the Kubernetes API; nothing else calls that.
        assert spec["automountServiceAccountToken"] is (labels[COMPONENT] == "certificates"), name
        assert spec["enableServiceLinks"] is False, name
        assert accounts[spec["serviceAccountName"]]["automountServiceAccountToken"] is False, name
        assert not any("hostPath" in volume for volume in spec.get("volumes", [])), name
    for item in of_kind(objects, "Role"):
        (rule,) = item["rules"]
        authorities, leaves = wanted(objects)
        assert set(rule["resourceNames"]) == {*authorities, *leaves}
        assert (rule["resources"], rule["verbs"]) == (["secrets"], ["get", "update"])
    for item in of_kind(objects, "RoleBinding"):
        (account,) = {spec["serviceAccountName"] for _, labels, spec in pods(objects) if labels[COMPONENT] == "certificates"}
        assert [subject["name"] for subject in item["subjects"]] == [account]
    assert {item["kind"] for item in objects if "rbac" in item["apiVersion"]} <= {"Role", "RoleBinding"}


def test_what_people_add_is_in_every_pod_of_theirs():
    """tests/chart/open.yaml sets the same for each kind of pod that goes on running."""
    added = load_yaml(HERE / "open.yaml")["controller"]
    seen = set()
    for name, labels, spec in pods(rendered(EXAMPLES["open"])):
        if labels[COMPONENT] not in ("controller", "curator", "trainer", "etcd") or name.endswith("-bare"):
            continue
        own, sidecar = spec["containers"]
        assert added["podLabels"].items() <= labels.items(), name
        assert spec["affinity"] == added["affinity"], name
        assert own["envFrom"] == added["extraEnvFrom"], name
        assert all(volume in spec["volumes"] for volume in added["extraVolumes"]), name
        assert own["volumeMounts"][-2:] == added["extraVolumeMounts"], name
        assert [sidecar] == added["sidecars"], name
        # Whoever says nothing of rights gets the chart's own, which are none.
        assert spec["initContainers"] == [{**added["initContainers"][0], "securityContext": own["securityContext"]}], name
        seen.add(labels[COMPONENT])
    assert len(seen) == 4


def test_a_spread_of_ones_own_is_for_these_pods_and_stands_in_for_the_chart_s():
    spreads = {name: (labels, spec["topologySpreadConstraints"]) for name, labels, spec in pods(rendered(EXAMPLES["open"])) if "topologySpreadConstraints" in spec}
    for name in ("crescendo-controller", "crescendo-curator-cpu"):
        labels, (nodes, zones) = spreads[name]
        assert (nodes["topologyKey"], zones["topologyKey"]) == ("kubernetes.io/hostname", "topology.kubernetes.io/zone"), name
        assert selects(zones["labelSelector"], labels) and labels[COMPONENT] in zones["labelSelector"]["matchLabels"].values(), name
    _, (own,) = spreads["crescendo-etcd"]
    assert own["topologyKey"] == "kubernetes.io/hostname" and own["maxSkew"] == 2


def test_temporary_folders_are_bounded(objects):
    for name, _, spec in pods(objects):
        for volume in spec.get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], (name, volume["name"])
            claim = volume.get("ephemeral", {}).get("volumeClaimTemplate", {}).get("spec")
            assert "ephemeral" not in volume or claim["resources"]["requests"]["storage"], (name, volume["name"])


#: Resources under which the examples ask for GPUs.
GPU_RESOURCES = {"nvidia.com/gpu", "nvidia.com/mig-7g.80gb"}


def test_gpus_are_asked_for_or_out_of_reach(objects):
    seen = 0
    for name, labels, spec in pods(objects):
        if labels[COMPONENT] not in ("curator", "trainer"):
            continue
        container = spec["containers"][0]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        asked = {kind: GPU_RESOURCES & set(container["resources"][kind]) for kind in ("requests", "limits")}
        assert asked["requests"] == asked["limits"], name
        # Kubernetes takes a request for a device only with the same limit.
        assert all(container["resources"]["requests"][gpu] == container["resources"]["limits"][gpu] for gpu in asked["limits"]), name
        # The image asks for all of a machine's GPUs; whoever asks Kubernetes for some must not be told that it has none.
        assert variables.get("NVIDIA_VISIBLE_DEVICES") == (None if asked["limits"] else "void"), name
        if labels[COMPONENT] == "curator":
            assert all(container["resources"]["limits"][gpu] == "1" for gpu in asked["limits"]), name
            assert variables["CRESCENDO_DEVICE"] == ("cuda" if asked["limits"] else "cpu"), name
        seen += 1
    assert seen >= 2


def test_the_disk_of_a_scratch_folder_is_asked_for(objects):
    for name, labels, spec in pods(objects):
        if labels[COMPONENT] not in ("curator", "trainer"):
            continue
        (volume,) = [volume for volume in spec["volumes"] if volume["name"] == {"curator": "tmp", "trainer": "scratch"}[labels[COMPONENT]]]
        requests = spec["containers"][0]["resources"]["requests"]
        # On the node's disk, or on a volume of its own.
        assert ("emptyDir" in volume) == ("ephemeral-storage" in requests), name


def test_curators_hold_what_flux_takes():
    """The sums of docs/install.md, "Sizes": what a curator with a GPU holds in memory and on its disk."""

    def gibibytes(quantity):
        return float(quantity[:-2]) * {"Mi": 1 / 1024, "Gi": 1, "Ti": 1024}[quantity[-2:]]

    values = merged(REGISTRY, {"curator": {"pools": [{"name": "gpu", "replicas": 1, "gpus": 1}]}})
    (spec,) = [spec for name, _, spec in pods(rendered(values)) if name == "crescendo-curator-gpu"]
    gigabyte = 1e9 / 2**30
    base, text, autoencoder, lora = 23.8 * gigabyte, (9.52 + 0.25) * gigabyte, 0.34 * gigabyte, 3.8 * gigabyte
    # Two stages of a job at a time, one served and one made; and copies of one that a killed process left behind.
    (scratch,) = [volume for volume in spec["volumes"] if volume["name"] == "tmp"]
    assert gibibytes(scratch["emptyDir"]["sizeLimit"]) > 3 * (base + text + autoencoder) + 2 * lora
    # Every page of a base and its encoders, beside what cannot give way.
    limits = spec["containers"][0]["resources"]["limits"]
    assert gibibytes(limits["memory"]) > base + text + autoencoder + 14


def test_references_lead_somewhere(objects):
    maps = {item["metadata"]["name"] for item in of_kind(objects, "ConfigMap")}
    services = {item["metadata"]["name"] for item in of_kind(objects, "Service")}
    for item in objects:
        if item["kind"] == "StatefulSet":
            assert item["spec"]["serviceName"] in services
            assert selects(item["spec"]["selector"], item["spec"]["template"]["metadata"]["labels"])
    fixed = {item["metadata"]["name"]: "replicas" in item["spec"] for item in of_kind(objects, "StatefulSet")}
    scaled = {item["spec"]["scaleTargetRef"]["name"] for item in of_kind(objects, "HorizontalPodAutoscaler")}
    # Two that set the number of pods would undo each other's.
    by_hand = {"other-trainer-a"}
    assert {name for name, has_number in fixed.items() if not has_number} - by_hand == scaled
    secrets = {secret for made in wanted(objects) for secret in made}
    claims = {
        claim["metadata"]["name"] for item in of_kind(objects, "StatefulSet") for claim in item["spec"].get("volumeClaimTemplates", [])
    }
    for name, _, spec in pods(objects):
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims
        for volume in spec.get("volumes", []):
            assert "configMap" not in volume or volume["configMap"]["name"] in maps, (name, volume)
            # Names that the examples give, or secrets that the chart has made.
            named = ("etcd-client", "crescendo-tokens", "bucket-keys", "minio-ca", "webhook-secrets", "hub-login")
            given = not secrets or volume.get("secret", {}).get("secretName") in named
            assert "secret" not in volume or given or volume["secret"]["secretName"] in secrets, (name, volume)
        for container in spec["containers"]:
            names = [mount["name"] for mount in container["volumeMounts"]]
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert set(names) <= volumes and len(set(paths)) == len(paths), name
            assert len({port["name"] for port in container.get("ports", [])}) == len(container.get("ports", [])), name
            variables = [variable["name"] for variable in container.get("env", [])]
            assert len(set(variables)) == len(variables), name


def test_secrets_are_files_for_one_pod_alone(objects):
    # None with content: what the chart renders is kept in the release, readable for whoever reads that.
    assert all(not {"data", "stringData"} & set(item) for item in of_kind(objects, "Secret"))
    for item in of_kind(objects, "ConfigMap"):
        assert "PRIVATE KEY" not in str(item), item["metadata"]["name"]
    for name, _, spec in pods(objects):
        secrets = {volume["name"] for volume in spec.get("volumes", []) if "secret" in volume}
        for volume in spec.get("volumes", []):
            assert "secret" not in volume or volume["secret"]["defaultMode"] == 0o400, (name, volume)
        for container in spec["containers"]:
            for mount in container["volumeMounts"]:
                # With subPath, a file would stay as it was when the secret changes.
                whole = mount.get("readOnly") is True and "subPath" not in mount
                assert mount["name"] not in secrets or whole, (name, mount)
            for variable in container.get("env", []):
                sensitive = re.search(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", variable["name"])
                # Paths of files, or references to secrets.
                assert not sensitive or "valueFrom" in variable or variable["value"].startswith("/etc/crescendo/"), (name, variable)


def test_every_process_shows_a_certificate(objects):
    for name, labels, spec in pods(objects):
        # What people add comes after the chart's own.
        for container in spec["containers"][:1]:
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            if labels[COMPONENT] in ("certificates", "fetch"):
                continue
            assert "/etc/crescendo/tls" in mounts, name
            variables = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
            assert "CRESCENDO_DEV" not in variables, name
            if container["name"] != "etcd":
                for key, file in {"CERT": "tls.crt", "KEY": "tls.key", "CA": "ca.crt"}.items():
                    assert variables[f"CRESCENDO_TLS_{key}"] == f"/etc/crescendo/tls/{file}", name
            else:
                assert {"--client-cert-auth", "--peer-client-cert-auth"} <= set(container["command"])


def certificates(objects):
    """The certificate of each component, by the secret that its pods mount."""
    _, by_secret = wanted(objects)
    found = {}
    for _, labels, spec in pods(objects):
        for volume in spec.get("volumes", []):
            if volume["name"] in ("tls", "store-tls") and volume["secret"]["secretName"] in by_secret:
                kind = labels[COMPONENT] if volume["name"] == "tls" else "store-tls"
                found[kind] = by_secret[volume["secret"]["secretName"]]
    return found


@pytest.mark.parametrize("source", ["certManager", "generated"])
def test_certificates_say_what_their_owner_may_do(source):
    roles = {"curator": ["urn:crescendo:role:node"], "trainer": ["urn:crescendo:role:node"]}
    roles["test"] = ["urn:crescendo:role:submitter", "urn:crescendo:tenant:default"]
    found = certificates(rendered(merged(EXAMPLES["default"], {"tls": {"source": source}})))
    assert set(found) == {"controller", "curator", "trainer", "test", "etcd", "store-tls"}
    for kind, spec in found.items():
        assert spec.get("uris", []) == roles.get(kind, []), kind
        # A controller's too: the command line in its pod shows it, beside a token.
        assert "client auth" in spec["usages"], kind
    # A node's certificate opens no store.
    of_etcd = {found["etcd"]["authority"], found["store-tls"]["authority"]}
    assert len(of_etcd) == 1 and of_etcd.isdisjoint(found[kind]["authority"] for kind in ("controller", "curator", "trainer", "test"))


def test_whoever_makes_certificates_makes_the_same():
    keys = ("commonName", "dnsNames", "ipAddresses", "uris", "authority")
    made = {}
    for source in ("certManager", "generated"):
        _, leaves = wanted(rendered(merged(EXAMPLES["default"], {"tls": {"source": source}})))
        made[source] = {
            secret: [{key: spec.get(key) or [] for key in keys}, set(spec["usages"]) - {"digital signature"}] for secret, spec in leaves.items()
        }
    assert made["certManager"] == made["generated"]


@pytest.mark.parametrize("example", ["default", "ha", "single-node"])
def test_certificates_have_the_names_under_which_their_owners_are_called(example):
    objects = rendered(EXAMPLES[example])
    found = certificates(objects)
    called = []
    for name, labels, spec in pods(objects):
        for container in spec["containers"]:
            variables = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
            for address in (variables.get("CRESCENDO_CONTROLLER") or "").split(","):
                called += [("controller", address.partition(":")[0])] if address else []
            for url in re.findall(r"https://([^:,]+):2379", variables.get("CRESCENDO_STORE") or ""):
                called.append(("etcd", url))
            if labels[COMPONENT] in ("curator", "trainer"):
                called.append((labels[COMPONENT], variables["CRESCENDO_ADVERTISE_HOST"].replace("$(CRESCENDO_NODE_ID)", f"{name}-0")))
    assert {kind for kind, _ in called} >= {"controller", "curator", "trainer"}
    for kind, host in called:
        assert any(covers(pattern, host) for pattern in found[kind]["dnsNames"]), (kind, host)


def test_every_replicated_workload_has_one_budget(objects):
    budgets = of_kind(objects, "PodDisruptionBudget")
    for item in objects:
        if item["kind"] in WORKLOADS:
            labels = item["spec"]["template"]["metadata"]["labels"]
            matching = [b["metadata"]["name"] for b in budgets if selects(b["spec"]["selector"], labels)]
            # The eviction API refuses pods with two.
            assert len(matching) == 1, (item["metadata"]["name"], matching)


def test_every_pod_has_a_network_policy_for_both_directions(objects):
    policies = of_kind(objects, "NetworkPolicy")
    for name, labels, _ in pods(objects):
        matching = [p for p in policies if selects(p["spec"]["podSelector"], labels)]
        assert len(matching) == 1 and matching[0]["spec"]["policyTypes"] == ["Ingress", "Egress"], name


#: Who may open a connection to whom: docs/architecture.md, "The pieces".
ARROWS = {
    ("trainer", "controller"),
    ("curator", "controller"),
    ("test", "controller"),
    # The command line in a controller's pod.
    ("controller", "controller"),
    ("trainer", "curator"),
    ("trainer", "trainer"),
    ("controller", "etcd"),
    ("etcd", "etcd"),
}


def allowed(policies, direction, other):
    """(from, to, ports) of every arrow between pods that one side's policies allow."""
    for policy in policies:
        own = policy["spec"]["podSelector"]["matchLabels"][COMPONENT]
        for rule in policy["spec"].get(direction, []):
            ports = tuple(sorted((p["port"], p.get("endPort"), p["protocol"]) for p in rule["ports"]))
            for peer in rule.get(other, []):
                labels = peer.get("podSelector", {}).get("matchLabels", {})
                if COMPONENT in labels and "namespaceSelector" not in peer:
                    ends = (labels[COMPONENT], own) if direction == "ingress" else (own, labels[COMPONENT])
                    yield (*ends, ports)


@pytest.mark.parametrize("example", EXAMPLES)
def test_only_the_arrows_that_there_are(example):
    objects = rendered(EXAMPLES[example])
    policies = of_kind(objects, "NetworkPolicy")
    there = {labels[COMPONENT] for _, labels, _ in pods(objects)}
    expected = {(a, b) for a, b in ARROWS if a in there and b in there}
    ingress = set(allowed(policies, "ingress", "from"))
    egress = set(allowed(policies, "egress", "to"))
    assert {(a, b) for a, b, _ in ingress if a in there} == expected
    # What one side lets out the other lets in, on the same ports.
    assert {arrow for arrow in ingress if arrow[0] in there} == egress
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            assert rule.get("from"), f"{policy['metadata']['name']} lets in everyone"


def test_arrows_lead_to_ports_that_are_listened_on(objects):
    listening = {}
    for _, labels, spec in pods(objects):
        ports = {port["containerPort"] for container in spec["containers"] for port in container.get("ports", [])}
        listening.setdefault(labels[COMPONENT], set()).update(ports)
    for policy in of_kind(objects, "NetworkPolicy"):
        own = policy["spec"]["podSelector"]["matchLabels"][COMPONENT]
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                assert "endPort" in port or port["port"] in listening[own], (own, port)


def test_names_are_looked_up_and_metrics_scraped_where_the_values_say():
    for policy in of_kind(rendered(EXAMPLES["open"]), "NetworkPolicy"):
        name = policy["metadata"]["name"]
        if not name.endswith("-certificates"):
            dns = policy["spec"]["egress"][0]
            assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"] and len(dns["to"]) == 2, name
            assert {(port["port"], port["protocol"]) for port in dns["ports"]} == {(p, q) for p in (53, 5353) for q in ("UDP", "TCP")}, name
        if not name.endswith(("-certificates", "-fetch", "-test")):
            (scrape,) = [rule for rule in policy["spec"]["ingress"] if "namespaceSelector" in rule["from"][0]]
            (asked,) = scrape["from"][0]["namespaceSelector"]["matchExpressions"]
            assert asked["values"] == ["monitoring", "observability"], name
    nobody = merged(REGISTRY, {"networkPolicy": {"metricsNamespaces": []}})
    for policy in of_kind(rendered(nobody), "NetworkPolicy"):
        assert all("namespaceSelector" not in peer for rule in policy["spec"].get("ingress", []) for peer in rule["from"])


#: A host name for each controller, behind a gateway.
OUTSIDE = {
    "tls": {"certManager": {"controllerNames": ["*.example.com"]}},
    "external": {"hosts": ["a.example.com", "b.example.com", "c.example.com"], "port": 8443, "gateway": {"parentRefs": [{"name": "public", "namespace": "gateways"}]}},
    "networkPolicy": {"controllerClientNamespaces": ["gateways"]},
}


@pytest.mark.parametrize("kind", ["", "TLSRoute", "GRPCRoute"])
def test_each_host_leads_to_one_controller_that_has_a_certificate_for_it(kind):
    objects = rendered(merged(REGISTRY, OUTSIDE, {"external": {"gateway": {"kind": kind, "caConfigMap": "ca"}}}))
    (controller,) = [item for item in of_kind(objects, "StatefulSet") if item["metadata"]["name"] == "crescendo-controller"]
    services = {item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "Service") if "-external-" in item["metadata"]["name"]}
    routes = {item["spec"]["hostnames"][0]: item["spec"] for item in of_kind(objects, kind)}
    assert len(services) == controller["spec"]["replicas"] == 3
    for i, host in enumerate(OUTSIDE["external"]["hosts"]):
        service = services[f"crescendo-external-{i}"]
        # The label that a StatefulSet gives its pods.
        pod = controller["spec"]["template"]["metadata"]["labels"] | {"statefulset.kubernetes.io/pod-name": f"crescendo-controller-{i}"}
        assert service["selector"] == pod and service["ports"] == [{"name": "grpc", "port": 8443, "targetPort": "grpc"}]
        assert any(covers(name, host) for name in certificates(objects)["controller"]["dnsNames"])
        if kind:
            assert routes[host]["rules"] == [{"backendRefs": [{"name": f"crescendo-external-{i}", "port": 8443}]}]
    # A gateway that ends TLS speaks it again: there is no plain way to a controller.
    checked = {item["spec"]["targetRefs"][0]["name"]: item["spec"]["validation"]["hostname"] for item in of_kind(objects, "BackendTLSPolicy")}
    assert checked == ({f"crescendo-external-{i}": host for i, host in enumerate(OUTSIDE["external"]["hosts"])} if kind == "GRPCRoute" else {})


def test_trainers_follow_what_the_queues_want_down_to_none():
    pools = [{"name": "h100", "replicas": 0, "gpus": 8, "maxReplicas": 4, "scaleByQueues": ["big", "default"]}]
    pools += [{"name": "l40s", "replicas": 1, "gpus": 4, "slots": 2, "maxReplicas": 9}, {"name": "fixed", "replicas": 2, "gpus": 1}]
    auto = {"prometheusUrl": "http://prometheus.monitoring.svc:9090", "triggerAuthentication": "prometheus", "scaleDownAfterSeconds": 7200}
    values = merged(REGISTRY, {"trainer": {"pools": pools, "autoscaling": auto}, "tenants": {"queues": {"default": {}, "big": {}}}})
    objects = rendered(values)
    scaled = {item["spec"]["scaleTargetRef"]["name"]: item["spec"] for item in of_kind(objects, "ScaledObject")}
    sets = {item["metadata"]["name"]: item["spec"] for item in of_kind(objects, "StatefulSet")}
    # Two that set the number of pods would undo each other's.
    assert {name for name in sets if "-trainer-" in name and "replicas" not in sets[name]} == set(scaled)
    first, second = scaled["crescendo-trainer-h100"], scaled["crescendo-trainer-l40s"]
    assert (first["minReplicaCount"], first["maxReplicaCount"]) == (0, 4)
    assert (second["minReplicaCount"], second["maxReplicaCount"]) == (1, 9)
    # A metric that there is, of which one trainer serves as much as it has slots.
    kind, labels = catalogue()["crescendo_queue_slots"]
    (first,), (second,) = first["triggers"], second["triggers"]
    assert (first["metadata"]["threshold"], second["metadata"]["threshold"]) == ("8", "2")
    assert first["metadata"]["query"] == 'sum(max by (queue, what) (crescendo_queue_slots{namespace="ml",what=~"used|pending",queue=~"big|default"}))'
    assert "queue=~" not in second["metadata"]["query"]
    assert kind == "gauge" and set(labels) == {"queue", "what"} and {"used", "pending"} <= labels["what"]
    # What Kubernetes takes at most; KEDA's own way to none has no such limit.
    behavior = scaled["crescendo-trainer-h100"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 3600
    assert scaled["crescendo-trainer-h100"]["cooldownPeriod"] == 7200


SOURCES = rust_sources()
FLAGS = set(re.findall(r'\(\s*long,\s*env = "(CRESCENDO_[A-Z_]+)"', SOURCES))


def test_variables_are_those_that_the_processes_read(objects):
    assert len(FLAGS) > 20
    for name, _, spec in pods(objects):
        for container in spec["containers"]:
            given = {v["name"] for v in container.get("env", []) if v["name"].startswith("CRESCENDO_")}
            assert given <= FLAGS, (name, given - FLAGS)


def test_every_flag_of_the_processes_can_be_set():
    given = {
        variable["name"]
        for example in EXAMPLES.values()
        for _, _, spec in pods(rendered(example))
        for container in spec["containers"]
        for variable in container.get("env", [])
    }
    # The ports are fixed, so nobody has to be told them; the positions are written down for `make chaos` alone;
    # without encryption nothing listens where another pod could reach it.
    missing = FLAGS - given - {"CRESCENDO_PORT_FILE", "CRESCENDO_POSITION_LOG", "CRESCENDO_DEV"}
    assert not missing, f"no value of the chart sets {sorted(missing)}: add one, and use it in tests/chart/options.yaml"


def test_defaults_are_those_of_the_controller():
    defaults = dict(re.findall(r'env = "CRESCENDO_([A-Z_]+)", default_value_t = ([0-9_]+)', (CHART.parents[1] / "controller/src/config.rs").read_text()))
    values = load_yaml(CHART / "values.yaml")["controller"]
    found = 0
    for name, value in defaults.items():
        words = name.lower().split("_")
        key = words[0] + "".join(word.title() for word in words[1:])
        if key in values:
            assert values[key] == int(value.replace("_", "")), key
            found += 1
    assert found >= 8
