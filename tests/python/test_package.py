"""The Python client as a package: that it is whole, typed, described, and works where it is installed."""

import inspect
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import venv
import zipfile

import crescendo
import pytest
from conftest import DEADLINE_SECONDS, ROOT, spec
from crescendo.v1 import job_pb2, job_pb2_grpc

PACKAGE = ROOT / "python"
BUILD = os.environ.get("CRESCENDO_PYTHON_BUILD")
DIST = os.environ.get("CRESCENDO_PYTHON_DIST")
TOOLS = pathlib.Path(os.environ.get("CRESCENDO_PYTHON_TOOLS", ""))
EXAMPLE = ROOT / "examples/python/crescendo_example.py"

pytestmark = pytest.mark.skipif(not (BUILD and DIST), reason="scripts/python_test.sh builds what is tested here")


@pytest.fixture
def wheel():
    [found] = pathlib.Path(DIST).glob("*.whl")
    return found


@pytest.fixture
def sdist():
    [found] = pathlib.Path(DIST).glob("*.tar.gz")
    return found


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_and_what_uses_it_are_typed(tmp_path):
    """The example by the types that the installed package has."""
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "--python-version", "3.10"]
    run(*mypy, "-p", "crescendo", cwd=tmp_path)
    run(*mypy, EXAMPLE, cwd=tmp_path)
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from crescendo import Client\nClient('a:1').get('j').stages[0].step.upper()\n")
    done = subprocess.run([*mypy, wrong], capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert 'wrong.py:2: error: "int" has no attribute "upper"' in done.stdout, "its types say nothing"


def test_the_sources_are_tidy():
    ruff = [TOOLS / "bin/ruff"]
    run(*ruff, "check", "--no-cache", PACKAGE)
    run(*ruff, "format", "--no-cache", "--check", PACKAGE)
    run(*ruff, "format", "--no-cache", "--check", "--config", PACKAGE / "pyproject.toml", EXAMPLE)


def test_the_distributions_are_whole(wheel, sdist):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"crescendo/{path.name}" for path in (PACKAGE / "crescendo").glob("*.py")}
    assert sources | {"crescendo/py.typed", "crescendo/v1/__init__.py"} <= names
    for proto in ("access", "checkpoint", "job", "node", "object", "queue"):
        assert {f"crescendo/v1/{proto}_pb2{end}" for end in (".py", ".pyi", "_grpc.py", "_grpc.pyi")} <= names
    assert not [name for name in names if not name.startswith(("crescendo/", "crescendo_client-"))]
    [entries] = [name for name in names if name.endswith("/entry_points.txt")]
    programs = zipfile.ZipFile(wheel).read(entries).decode()
    assert {"crescendo-track = crescendo.track:main", "crescendo-push = crescendo.push:main", "crescendo-workflow = crescendo.workflow:main"} <= set(programs.splitlines())
    packed = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "hatch_build.py", "proto/crescendo/v1/job.proto"} <= packed
    assert not [name for name in packed if name.startswith("crescendo/v1")], "generated when it is built"
    run(BUILD, "-m", "twine", "check", "--strict", wheel, sdist)


def test_versions_agree():
    project = (PACKAGE / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"', project, re.M)[1]
    assert version == re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    # What the tests build with is what everybody builds with.
    pinned = set((ROOT / "tests/python/build-requirements.txt").read_text().split())
    requires = set(re.findall(r'"([^"]+)"', re.search(r"^requires = \[(.*)\]", project, re.M)[1]))
    assert requires and requires <= pinned
    # A runtime must not be older than what generated the messages.
    least = re.search(r"grpcio>=([\d.]+),", project)[1]
    assert least == job_pb2_grpc.GRPC_GENERATED_VERSION
    generated = re.search(r"Protobuf Python Version: ([\d.]+)", pathlib.Path(job_pb2.__file__).read_text())[1]
    assert re.search(r"protobuf>=([\d.]+),", project)[1] == generated


def test_the_page_names_all_methods_and_errors():
    page = (ROOT / "docs/python.md").read_text()
    methods = {name for name, _ in inspect.getmembers(crescendo.Client, inspect.isfunction) if not name.startswith("_")}
    assert {name for name in methods if f"| `{name}(" not in page} == set()
    errors = {name for name in crescendo.__all__ if name.endswith("Error")}
    assert {name for name in errors if f"`{name}`" not in page} == set()
    for name, method in inspect.getmembers(crescendo.Client, inspect.isfunction):
        row = re.search(rf"^\| `{name}\(([^)]*)\)` \|", page, re.M)
        named = set(re.findall(r"(\w+)=", row[1])) if row else set()
        assert named <= set(inspect.signature(method).parameters), name


def test_it_works_where_it_is_installed(wheel, cluster, tmp_path):
    """In an environment of its own, far from the sources; the program is the page's."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin/python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    run(python, *install, "--find-links", TOOLS / "wheels", wheel, env=environment)
    run(python, "-m", "pip", "check", env=environment)
    program = re.search(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S)[1]
    (tmp_path / "job.yaml").write_text(spec(steps=5, name="installed"))
    (tmp_path / "program.py").write_text(program.replace("127.0.0.1:7070", cluster.address))
    told = run(python, "program.py", cwd=tmp_path, env=environment).splitlines()
    assert told[0].startswith("installed-") and told[-2].startswith("succeeded stage-1 5/5")
    assert told[-1] == "dit_lora.safetensors" and (tmp_path / "dit_lora.safetensors").stat().st_size > 0
