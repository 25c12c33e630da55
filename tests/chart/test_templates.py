"""The chart renders to what it should, and Kubernetes would take it."""

import base64
import json
import os
import re

import kubernetes_validate
import pytest
import yaml
from helm_python import chart as helm

from chart import CHART, EXAMPLES, HERE, KUBERNETES_VERSIONS, REGISTRY, load_yaml, merged, rendered, rendered_text

GOLDEN = HERE / "golden"


@pytest.mark.parametrize("example", EXAMPLES)
def test_lint_finds_nothing(example):
    report = helm.lint(CHART, EXAMPLES[example], strict=True, namespace="ml", kube_version="v1.31.0")
    # 1 is information: a missing icon.
    assert not report["errors"] and all(message["severity"] <= 1 for message in report["messages"]), report


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("example", EXAMPLES)
def test_kubernetes_takes_it(example, version):
    checked = 0
    for item in rendered(EXAMPLES[example]):
        # The kinds of the Prometheus operator and of cert-manager are not Kubernetes' own.
        if not item["apiVersion"].startswith(("monitoring.coreos.com/", "cert-manager.io/")):
            kubernetes_validate.validate(item, version, strict=True)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("example", EXAMPLES)
def test_render_is_as_last_looked_at(example):
    """CRESCENDO_BLESS=1 writes the files anew; look at the difference before committing it."""
    text = ""
    for path, content in sorted(rendered_text(EXAMPLES[example]).items()):
        content = re.sub(r"(?m)^\s*\n", "", content).strip()
        if path.endswith("monitoring.yaml"):
            content = re.sub(r"(?m)^(  crescendo-[a-z]+\.json: \|\n)(    .*\n?)+", r"\1    (the file)\n", content)
        if content:
            text += f"# {path}\n{content}\n"
    golden = GOLDEN / f"{example}.yaml"
    if os.environ.get("CRESCENDO_BLESS"):
        golden.write_text(text)
    assert golden.exists() and golden.read_text() == text, f"{golden.name} differs: CRESCENDO_BLESS=1 make chart-test"


def test_no_golden_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(EXAMPLES)


def test_dashboards_and_pictures_arrive_whole():
    maps = {item["metadata"]["name"]: item for item in rendered(EXAMPLES["default"]) if item["kind"] == "ConfigMap"}
    for path in (CHART / "dashboards").glob("*.json"):
        assert json.loads(maps[f"crescendo-dashboard-{path.stem}"]["data"][f"crescendo-{path.name}"]) == json.loads(
            path.read_text()
        )
    subjects = maps["crescendo-test-subjects"]
    for entry in json.loads(subjects["data"]["index.json"]):
        file = CHART / "files/test-job/subjects" / entry["file"]
        assert base64.b64decode(subjects["binaryData"][entry["file"]]) == file.read_bytes()
    job = yaml.safe_load(maps["crescendo-test-job"]["data"]["job.yaml"])
    curator = next(i for i in rendered(EXAMPLES["default"]) if i["metadata"]["name"] == "crescendo-curator-cpu" and i["kind"] == "StatefulSet")
    mounts = curator["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert job["spec"]["stages"][0]["data"]["subjects"] in [mount["mountPath"] for mount in mounts]


def test_disabled_alerts_are_gone_and_the_others_stay():
    def alerts(values):
        rule = next(item for item in rendered(values) if item["kind"] == "PrometheusRule")
        return {r["alert"] for group in rule["spec"]["groups"] for r in group["rules"] if "alert" in r}

    on = merged(REGISTRY, {"monitoring": {"prometheusRule": {"enabled": True}}})
    off = merged(on, {"monitoring": {"prometheusRule": {"disabledAlerts": ["CrescendoStoreFull"]}}})
    assert alerts(on) - alerts(off) == {"CrescendoStoreFull"}


def schema_objects(node, path="values"):
    """Every part of the schema that describes an object."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for key, value in node.items():
            yield from schema_objects(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from schema_objects(value, f"{path}[{index}]")


def test_the_schema_leaves_nothing_open():
    schema = json.loads((CHART / "values.schema.json").read_text())
    for path, node in schema_objects(schema):
        rest = node.get("additionalProperties")
        typed_map = isinstance(rest, dict) and rest and "properties" not in node
        # Whole objects of Kubernetes are for its API to look at.
        assert rest != {"$ref": "#/$defs/kubernetes"} or "kind" in node["required"], path
        empty = node.get("maxProperties") == 0
        assert rest is False or typed_map or empty, f"{path} takes unknown fields"


@pytest.mark.parametrize("kind", ["curator", "trainer"])
def test_a_pool_may_say_whatever_its_defaults_say(kind):
    schema = json.loads((CHART / "values.schema.json").read_text())
    own = schema["$defs"][f"{kind}Pool"]["properties"]
    defaults = schema["properties"][kind]["properties"]["poolDefaults"]["properties"]
    assert own == defaults | {name: own[name] for name in ("name", "replicas", "gpus")}
    assert set(load_yaml(CHART / "values.yaml")[kind]["poolDefaults"]) == set(defaults)


def keys_of(node, path=()):
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from keys_of(value, (*path, key))


def test_every_value_of_the_schema_is_in_values_yaml():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def properties(node, path=()):
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        for key, value in node.get("properties", {}).items():
            yield (*path, key)
            yield from properties(value, (*path, key))

    # `global` is Helm's.
    # A limit that is not given is none: the comment names those that there are.
    open_maps = {("tenants", part) for part in ("default", "clusterSlots", "fairShare")}
    limits = {path for path in properties(schema) if path[:2] in open_maps and len(path) > 2}
    kinds = {path for path in properties(schema) if "affinity" in path[:-1]}
    assert set(properties(schema)) - {("global",)} - limits - kinds <= set(keys_of(load_yaml(CHART / "values.yaml")))


def test_no_value_is_there_twice():
    """YAML takes the last one without a word."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            assert len(set(keys)) == len(keys), f"line {node.start_mark.line + 1}: {sorted(keys)}"
            return super().construct_mapping(node, deep)

    for path in CHART.glob("values*.yaml"):
        yaml.load(path.read_text(), Strict)


def test_every_value_has_a_comment():
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*(- )?[A-Za-z]+:", line):
            before = lines[number - 1].strip()
            assert before.startswith("#"), f"values.yaml:{number + 1} has no comment: {line}"
