"""The dashboards are what their source says, and ask for metrics that exist."""

import json
import subprocess
import sys

import pytest
import yaml

from chart import CHART, ROOT
from test_alerts import check_query, promtool

FILES = sorted((CHART / "dashboards").glob("*.json"))


def queries(path):
    """(panel's title, expression with its variables filled in) of every query of a dashboard."""
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in {"$namespace": ".*", "$instance": ".*", "$__rate_interval": "1m"}.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, f"{panel['title']}: a variable that nobody fills in: {expression}"
            yield panel["title"], expression


def test_the_four_are_there():
    assert [path.stem for path in FILES] == ["cluster", "curation", "job", "node"]


def test_files_are_as_their_source_writes_them():
    done = subprocess.run([sys.executable, ROOT / "scripts/build_dashboards.py", "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_queries_use_what_exists(path):
    for _, expression in queries(path):
        check_query(expression)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_queries_are_promql(path, tmp_path):
    found = [{"record": f"query_{number}", "expr": expression} for number, (_, expression) in enumerate(queries(path))]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": path.stem, "rules": found}]}))
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_do_not_overlap(path):
    document = json.loads(path.read_text())
    taken = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
