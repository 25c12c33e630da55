"""Generates `crescendo.v1`, messages and stubs with their types, from the protos; when the package is built."""

from __future__ import annotations

import importlib.resources
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What the client calls, and what these import. Those between the processes of a cluster are left out.
PROTOS = ("access", "checkpoint", "deletion", "job", "node", "object", "queue", "review", "sample")
HERE = pathlib.Path(__file__).resolve().parent
GENERATED = "crescendo/v1"


class GenerateStubs(BuildHookInterface[Any]):
    """Runs before a wheel or a source distribution is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Puts the messages into a wheel, and the protos into a source distribution."""
        protos = protos_folder()
        if self.target_name == "sdist":
            # In an unpacked distribution they lie where they belong already.
            if protos != HERE / "proto":
                for name in PROTOS:
                    file = f"crescendo/v1/{name}.proto"
                    build_data["force_include"][str(protos / file)] = f"proto/{file}"
        elif version == "editable":
            generate(protos, HERE / GENERATED)
        else:
            # The sources may be read-only, and may be built from several times at once.
            self._folder = tempfile.TemporaryDirectory(prefix="crescendo-")
            generate(protos, pathlib.Path(self._folder.name, GENERATED))
            build_data["force_include"][str(pathlib.Path(self._folder.name, GENERATED))] = GENERATED

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Removes what was only made for the wheel."""
        if folder := getattr(self, "_folder", None):
            folder.cleanup()


def protos_folder() -> pathlib.Path:
    """The folder that imports between protos start from: of this distribution, or of the repository."""
    for folder in (HERE / "proto", HERE.parent / "proto/proto"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the protos are neither in {HERE / 'proto'} nor in {HERE.parent / 'proto/proto'}")


def generate(protos: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the package that `crescendo.v1` is into `folder`, whose last parts must be `crescendo/v1`."""
    root = folder.parent.parent
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    google = importlib.resources.files("grpc_tools").joinpath("_proto")
    # The plugin of mypy-protobuf lies with the scripts of this environment.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"-I{google}"]
    command += [f"--{kind}_out={root}" for kind in ("python", "grpc_python")]
    command += [f"--{kind}_out=quiet:{root}" for kind in ("mypy", "mypy_grpc")]
    command += [str(protos / f"crescendo/v1/{name}.proto") for name in PROTOS]
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    (folder / "__init__.py").write_text('"""Messages and stubs, generated from the protos."""\n')


if __name__ == "__main__":
    generate(protos_folder(), HERE / GENERATED)
