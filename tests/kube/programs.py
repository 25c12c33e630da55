"""The programs that the tests run, built from the Go modules in modules/ (other projects') and in node/, and kept between runs.

`python programs.py` builds all that are not there; with names, only those. Each module's programs lie in
CRESCENDO_KUBE_CACHE (~/.cache/crescendo-kube) under NAME/bin, beside a stamp of what they were built from.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
MODULES = HERE / "modules"
#: Longest time for what modules say, which may have to be fetched, and for a build on a busy machine.
FETCH_SECONDS, BUILD_SECONDS = 900, 2 * 3600
#: The file name that go gives to a program, where it is not the program's own name.
NAMES = {"server": "etcd"}


def cache():
    return pathlib.Path(os.environ.get("CRESCENDO_KUBE_CACHE") or pathlib.Path.home() / ".cache/crescendo-kube")


def modules():
    own = ["node"] if (HERE / "node").exists() else []
    return sorted(path.parent.name for path in MODULES.glob("*/go.mod")) + own


def source(module):
    return HERE / "node" if module == "node" else MODULES / module


def stamp(module):
    """Changes with whatever the programs are made of."""
    digest = hashlib.sha256((go(module, "version") + link_flags(module)).encode())
    for path in sorted(source(module).rglob("*")):
        if path.suffix in (".go", ".mod", ".sum"):
            digest.update(str(path.relative_to(source(module))).encode() + path.read_bytes())
    return digest.hexdigest()


def go(module, *arguments):
    done = subprocess.run(["go", *arguments], cwd=source(module), capture_output=True, text=True, timeout=FETCH_SECONDS)
    if done.returncode:
        raise RuntimeError(f"go {arguments[0]} in {source(module)} failed:\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def link_flags(module):
    """Some programs are told versions when they are linked: Kubernetes' their own, Helm 3 that of Kubernetes' client."""
    if module.startswith("k8s-"):
        version = version_of(module, "k8s.io/kubernetes")
        major, minor = version.removeprefix("v").split(".")[:2]
        package, known = "k8s.io/component-base/version", {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    elif module == "helm-3":
        minor = version_of(module, "k8s.io/client-go").split(".")[1]
        package, known = "helm.sh/helm/v3/pkg/chartutil", {"k8sVersionMajor": "1", "k8sVersionMinor": minor}
    else:
        package, known = "", {}
    return " ".join(["-s", "-w", *(f"-X {package}.{key}={value}" for key, value in known.items())])


def version_of(module, dependency):
    return go(module, "list", "-m", "-f", "{{.Version}}", dependency)


@contextlib.contextmanager
def building_alone():
    """One build at a time, whoever asks for it: two would want the memory of both."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(module):
    """The folder of the module's programs, which are built unless they are there."""
    folder, wanted = cache() / module, stamp(module)
    built = folder / "stamp"
    if built.exists() and built.read_text() == wanted:
        return folder / "bin"
    with building_alone():
        if built.exists() and built.read_text() == wanted:
            return folder / "bin"
        began = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "bin").mkdir(parents=True)
        tools = go(module, "list", "tool").split() or ["."]
        command = ["nice", "-n", "15", "go", "build", "-p", "2", "-trimpath", "-ldflags", link_flags(module)]
        command += ["-o", f"{folder}/bin/", *tools]
        done = subprocess.run(command, cwd=source(module), capture_output=True, text=True, timeout=BUILD_SECONDS)
        if done.returncode:
            raise RuntimeError(f"go build in {source(module)} failed:\n{done.stderr[-4000:]}")
        if module == "crds":
            write_definitions(folder)
        for name, own in NAMES.items():
            if (folder / "bin" / name).exists():
                (folder / "bin" / name).rename(folder / "bin" / own)
        built.write_text(wanted)
        print(f"kube-test: built {module} in {time.monotonic() - began:.0f} s", flush=True)
    return folder / "bin"


#: Packages whose types become resource definitions.
TYPES = [
    "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1",
    "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1",
]


def write_definitions(folder):
    """One file for each resource definition of cert-manager and of the Prometheus operator."""
    paths = [f"paths={path}" for path in TYPES]
    command = [folder / "bin/controller-gen", "crd:allowDangerousTypes=true", *paths, f"output:crd:dir={folder}/definitions"]
    done = subprocess.run(command, cwd=MODULES / "crds", capture_output=True, text=True, timeout=FETCH_SECONDS)
    if done.returncode:
        raise RuntimeError(f"controller-gen failed:\n{done.stderr[-4000:]}")


def definitions():
    return build("crds").parent / "definitions"


if __name__ == "__main__":
    for name in sys.argv[1:] or modules():
        build(name)
