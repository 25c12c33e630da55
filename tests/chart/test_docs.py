"""Links of the pages about the chart lead somewhere, and commands name what exists."""

import re

import pytest

from chart import CHART, KUBERNETES_VERSIONS, ROOT, RUNBOOKS, load_yaml

PAGES = [ROOT / "docs/install.md", ROOT / "images/README.md", CHART / "README.md", *sorted(RUNBOOKS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_install_page_says_which_versions_were_checked():
    text = " ".join((ROOT / "docs/install.md").read_text().split())
    assert f"Kubernetes {', '.join(KUBERNETES_VERSIONS[:-1])} and {KUBERNETES_VERSIONS[-1]}" in text
    for example in CHART.glob("values-*.yaml"):
        assert example.name in text


def test_the_install_page_has_the_sizes_of_the_values():
    text = " ".join((ROOT / "docs/install.md").read_text().split())
    values = load_yaml(CHART / "values.yaml")
    for kind in ("curator", "trainer"):
        found = re.search(rf"\*\*A {kind} with a GPU\*\* \((\d+) GiB of memory asked for and (\d+) at most,[^)]* (\d+) GiB of scratch\)", text)
        defaults = values[kind]["poolDefaults"]
        memory = [defaults["resources"][part]["memory"] for part in ("requests", "limits")]
        assert [f"{number}Gi" for number in found.groups()] == [*memory, defaults["scratchSize"]], kind


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_values_that_are_named_exist(page):
    """A dotted path in code that begins with a section of the values is one of them, or a section."""
    values = (CHART / "values.yaml").read_text()
    sections = set(re.findall(r"^([A-Za-z]+):", values, re.M))
    keys = set(re.findall(r"^\s*(?:- )?([A-Za-z]+):", values, re.M))
    for path in re.findall(r"`([A-Za-z]+(?:\.[A-Za-z]+(?:\[\])?)+)`", page.read_text()):
        parts = path.replace("[]", "").split(".")
        if parts[-1] in ("crt", "key", "yaml"):
            continue
        if parts[0] in sections:
            assert set(parts) <= keys, path
