"""Alerts fire when they should, keep quiet when they should, and come with a runbook."""

import re
import subprocess

import pytest
import yaml

from chart import HERE, ROOT, RUNBOOKS, alert_files, catalogue, rules, series

# All text: 0x10 is ten more samples, and not sixteen.
CASES = yaml.load((HERE / "alert_cases.yaml").read_text(), Loader=yaml.BaseLoader)
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
#: Metrics of others, and whose they are.
FOREIGN = {
    "up": "Prometheus",
    "scrape_duration_seconds": "Prometheus",
    "kubelet_volume_stats_available_bytes": "kubelet",
    "kubelet_volume_stats_capacity_bytes": "kubelet",
    "etcd_mvcc_db_total_size_in_bytes": "etcd",
    "etcd_server_quota_backend_bytes": "etcd",
}
CATALOGUE = catalogue()
SERIES = series()
#: Labels that scraping adds, and a histogram's own.
ADDED = {"namespace", "instance", "component", "pod", "le"}


def metrics_in(expression):
    """Names of the metrics in a query: what is left without label matchers, grouping, strings and functions."""
    text = re.sub(r'"(\\.|[^"\\])*"', "", re.sub(r"#.*", "", expression))
    text = re.sub(r"\{[^}]*\}", " ", text)
    text = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    words = re.findall(r"\b[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()", text)
    return set(words) - {"and", "or", "unless", "offset", "bool", "Inf", "NaN", "by", "on"}


def matchers_in(expression):
    """The labels of Crescendo's own metrics that are looked at, with the values that they are compared with."""
    for metric, matchers in re.findall(r"\b(crescendo_\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if metric not in RECORDED and label not in ADDED:
                yield from ((metric, label, one) for one in (value.split("|") if "~" in operator else [value]))


def check_query(expression):
    """Every metric, every label and every value of a label is in docs/metrics.md."""
    unknown = metrics_in(expression) - set(SERIES) - set(FOREIGN) - RECORDED
    assert not unknown, f"no process exports {sorted(unknown)}"
    for metric, label, value in matchers_in(expression):
        labels = CATALOGUE[SERIES[metric]][1]
        assert label in labels, f"{metric} has no label {label}"
        assert labels[label] is None or value in labels[label], f'{metric}: nothing sets {label}="{value}"'


def promtool(*arguments, **options):
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=300, **options)


def test_rules_are_well_formed():
    done = promtool("check", "rules", *map(str, alert_files()))
    assert done.returncode == 0, done.stderr


def test_every_alert_has_both_kinds_of_case():
    assert set(CASES) == set(ALERTS)
    for name, case in CASES.items():
        assert case["fires"] and case["quiet"], name


def unit_test(name, series, at, firing):
    expression = f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) > bool 0'
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": at, "exp_samples": [{"labels": "{}", "value": 1}] if firing else []}
        ],
    }


KINDS = [(alert, kind, what) for alert, case in CASES.items() for kind in ("fires", "quiet") for what in case[kind]]


@pytest.mark.parametrize("alert,kind,what", KINDS, ids=[" / ".join(case) for case in KINDS])
def test_fires_or_keeps_quiet(alert, kind, what, tmp_path):
    case = CASES[alert][kind][what]
    file = tmp_path / "test.yaml"
    document = {
        "rule_files": [str(path) for path in alert_files()],
        "evaluation_interval": "1m",
        "tests": [unit_test(alert, case["series"], case["at"], kind == "fires")],
    }
    file.write_text(yaml.safe_dump(document))
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_annotations_are_filled_in(alert, tmp_path):
    """promtool shows an alert's annotations only where they are not those expected: nothing is expected here."""
    case = next(iter(CASES[alert]["fires"].values()))
    one = unit_test(alert, case["series"], case["at"], True)
    one.pop("promql_expr_test")
    one["alert_rule_test"] = [{"eval_time": case["at"], "alertname": alert, "exp_alerts": []}]
    document = {"rule_files": [str(path) for path in alert_files()], "evaluation_interval": "1m", "tests": [one]}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(document))
    shown = promtool("test", "rules", str(file)).stderr
    assert 'description="' in shown, shown
    for wrong in ("error expanding", "no value", "{{", "%!"):
        assert wrong not in shown, shown


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_use_what_exists(rule):
    check_query(rule["expr"])


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_have_a_severity_and_a_runbook(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
    path = ROOT / rule["annotations"]["runbook_url"]
    assert path == RUNBOOKS / f"{name}.md" and path.exists()
    text = path.read_text()
    assert text.startswith(f"# {name}\n")
    for part in ("## What it means", "## How to look", "## What to do"):
        assert len(text.split(part)[1].split("\n## ")[0].strip()) > 80, f"{path.name}: {part}"


def test_every_runbook_has_its_alert():
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == set(ALERTS)


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_queries_of_runbooks_use_what_exists(path):
    for block in re.findall(r"```promql\n(.*?)```", path.read_text(), re.S):
        for query in block.strip().split("\n\n"):
            check_query(query)
