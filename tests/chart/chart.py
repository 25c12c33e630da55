"""The chart as the tests see it: rendered, and what lies around it."""

import copy
import pathlib
import re

import yaml
from helm_python import chart as helm

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/crescendo"
HERE = pathlib.Path(__file__).resolve().parent
RUNBOOKS = ROOT / "docs/runbooks"
METRICS = ROOT / "docs/metrics.md"
#: Versions that the rendered objects are validated for: the oldest that Chart.yaml allows, and two later ones.
KUBERNETES_VERSIONS = ["1.27", "1.31", "1.34"]
REGISTRY = {"image": {"registry": "registry.example.com/crescendo"}}
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
JOBS = ("Job", "CronJob")


def merged(*layers):
    """Values laid over each other, as Helm does it: maps are merged, anything else is replaced."""
    result = {}
    for layer in layers:
        for key, value in (layer or {}).items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def load_yaml(path):
    return yaml.safe_load(path.read_text())


#: Name of each example, with its values; `default` is the chart's own.
EXAMPLES = {
    "default": REGISTRY,
    **{
        path.stem.removeprefix("values-"): merged(load_yaml(path), REGISTRY)
        for path in sorted(CHART.glob("values-*.yaml"))
    },
    # What no example switches on, and what people add of their own.
    "options": merged(REGISTRY, load_yaml(HERE / "options.yaml")),
    "open": merged(REGISTRY, load_yaml(HERE / "open.yaml")),
}


def rendered_text(values, release="crescendo", namespace="ml"):
    """Template path to text. Raises what Helm raises, for values that the schema or a template refuses."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        return chart.render(values, name=release, namespace=namespace)


def rendered(values, **options):
    """Every object."""
    objects = []
    for path, text in sorted(rendered_text(values, **options).items()):
        if path.endswith(".yaml"):
            objects += [document for document in yaml.safe_load_all(text) if document]
    return objects


def of_kind(objects, kind):
    return [item for item in objects if item["kind"] == kind]


def pods(objects):
    """(name, labels, spec) of every pod, those of workloads included."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item["metadata"]["name"], item["metadata"]["labels"], item["spec"]
        elif item["kind"] in WORKLOADS + JOBS:
            spec = item["spec"]["jobTemplate"]["spec"] if item["kind"] == "CronJob" else item["spec"]
            template = spec["template"]
            yield item["metadata"]["name"], template["metadata"]["labels"], template["spec"]


def selects(selector, labels):
    wanted = selector.get("matchLabels", {})
    assert set(selector) <= {"matchLabels"}, f"only matchLabels are understood here: {selector}"
    return all(labels.get(key) == value for key, value in wanted.items())


def alert_files():
    return sorted((CHART / "alerts").glob("*.yaml"))


def rules():
    return [rule for path in alert_files() for group in load_yaml(path)["groups"] for rule in group["rules"]]


def rust_sources():
    """The text of every source file of the processes; not of the benchmarks beside them."""
    folders = ("controller/src", "curator-node/src", "trainer-node/src", "crates/node/src", "crates/core/src")
    return "\n".join(path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.rs")) if "bin" not in path.parts)


def catalogue():
    """Each metric of docs/metrics.md, which tests of the processes hold to what they register: its type, and its labels
    with the words that each takes, or None where the machine sets them."""
    found = {}
    for line in METRICS.read_text().splitlines():
        row = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(row) != 5 or not re.fullmatch(r"`crescendo_[a-z0-9_]+`", row[0]):
            continue
        labels = {}
        for label in filter(None, row[3].split("; ")):
            name, values = label.split(": ", 1)
            words = [value.strip() for value in values.split(",")]
            given = all(re.fullmatch(r"`[a-z0-9_]+`", word) for word in words)
            labels[name.strip("`")] = {word.strip("`") for word in words} if given else None
        assert row[0] not in found, f"{row[0]} is there twice"
        found[row[0].strip("`")] = (row[1], labels)
    assert len(found) > 40, "docs/metrics.md has next to nothing: has its form changed?"
    return found


def series():
    """Names of the series that the processes export, with the catalogue's name of each."""
    names = {}
    for name, (kind, _) in catalogue().items():
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            names[name + suffix] = name
    return names
