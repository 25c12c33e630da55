"""The workflows call what there is, with as few rights as that takes, and a release's chart names its images by digest."""

import re
import shutil
import subprocess
import sys

import pytest
from helm_python import chart as helm
import yaml

from chart import CHART, ROOT, load_yaml, pods

FILES = sorted((ROOT / ".github/workflows").glob("*.yaml"))
SCRIPT = ROOT / "scripts/pin_images.py"
DIGESTS = {kind: f"sha256:{number}" for kind, number in zip(("controller", "trainer", "curator"), ("1" * 64, "2" * 64, "3" * 64))}


def jobs(path):
    return load_yaml(path)["jobs"].items()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rights_are_few_and_actions_are_at_a_commit(path):
    assert load_yaml(path)["permissions"] == {"contents": "read"}
    for name, job in jobs(path):
        assert "timeout-minutes" in job or job.get("uses", "").startswith("./"), name
        for step in job.get("steps", []):
            assert "uses" not in step or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step["uses"]), step
            # What others may name freely, such as branches, gets into scripts by variables alone.
            assert "${{" not in step.get("run", ""), step


def test_what_is_called_exists():
    targets = set(re.findall(r"(?m)^([a-z-]+):.*## ", (ROOT / "Makefile").read_text()))
    ci = load_yaml(FILES[0])["jobs"]["make"]
    assert set(ci["strategy"]["matrix"]["command"]) <= targets
    assert set(re.findall(r"make ([a-z-]+)", (ROOT / ".ci/run").read_text())) <= set(ci["strategy"]["matrix"]["command"])
    text = (ROOT / ".github/workflows/release.yaml").read_text()
    for file in re.findall(r"(?:images|scripts|helm)/[\w./-]+", text):
        assert (ROOT / file).exists(), file
    # Each image that the chart names is built, from the file and the target that images/README.md says.
    values = load_yaml(CHART / "values.yaml")["images"]
    built = dict(re.findall(r"(?m)^ +push (\w+) (\S+) --file", text))
    assert built == {kind: image["repository"] for kind, image in values.items()}
    readme = (ROOT / "images/README.md").read_text()
    for name, options in re.findall(r"(?m)^ +push \w+ (\S+) --file (.*)$", text):
        assert re.search(rf"docker build -f {options} -t \S+/{name}:", readme), name


def test_the_released_chart_names_its_images_by_digest(tmp_path):
    chart = tmp_path / "crescendo"
    shutil.copytree(CHART, chart)
    command = [sys.executable, SCRIPT, "--values", chart / "values.yaml", "--registry", "ghcr.io/someone/crescendo"]
    command += [f"{kind}={digest}" for kind, digest in DIGESTS.items()]
    subprocess.run(command, check=True, timeout=60)
    before, after = (CHART / "values.yaml").read_text().splitlines(), (chart / "values.yaml").read_text().splitlines()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 4
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema({})
        texts = loaded.render({}, name="crescendo", namespace="ml")
    objects = [item for path, text in texts.items() if path.endswith(".yaml") for item in yaml.safe_load_all(text) if item]
    images = {container["image"] for _, _, spec in pods(objects) for container in spec["containers"]}
    names = {"controller": "controller", "trainer": "trainer-node", "curator": "curator-node"}
    assert {f"ghcr.io/someone/crescendo/crescendo-{names[kind]}@{digest}" for kind, digest in DIGESTS.items()} <= images
    # Once is enough.
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert again.returncode and "image.registry is not empty" in again.stderr


def test_a_tag_that_is_not_the_version_is_refused():
    version = load_yaml(CHART / "Chart.yaml")["version"]
    assert subprocess.run([SCRIPT, "--check", version], timeout=60).returncode == 0
    other = subprocess.run([SCRIPT, "--check", "9.9.9"], capture_output=True, text=True, timeout=60)
    assert other.returncode and f"Chart.yaml, version is {version}" in other.stderr
