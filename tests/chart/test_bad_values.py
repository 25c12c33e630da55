"""Typos, wrong types and contradictions are refused, with the value's name and what would be right."""

import pytest
from helm_python import chart as helm

from chart import CHART, HERE, REGISTRY, load_yaml, merged, rendered_text

CASES = load_yaml(HERE / "bad_values.yaml")


def refusal(case):
    values = merged(REGISTRY, case["set"])
    with pytest.raises(Exception) as caught:
        rendered_text(values, release=case.get("release", "crescendo"))
    return str(caught.value)


@pytest.mark.parametrize("case", CASES, ids=[case["what"] for case in CASES])
def test_is_refused_with_its_name(case):
    message = refusal(case)
    for part in case["says"]:
        assert part in message, f"{part!r} is not in: {message}"


def test_lint_refuses_too():
    assert helm.lint(CHART, {"image": {"registry": "r"}, "controler": {}}, strict=True)["errors"]
