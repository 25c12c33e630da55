"""The bundled etcd of a release that runs: backed up and restored by the commands of docs/operations.md, and upgraded one minor
version at a time.

Needs root, and built programs: CRESCENDO_BIN names their folder.
"""

import itertools
import os
import re

import pytest
from chart import EXAMPLES, ROOT

from cluster import Failed, eventually, free_ports, run
from conftest import ETCD
from machines import etcd_image
from release import NEEDS, Release

pytestmark = NEEDS

#: Of docs/operations.md.
SECTION = "## Back up and restore the bundled etcd"


@pytest.fixture
def release(machines, newest_helm, running_namespace):
    def make(**changed):
        return Release(machines, newest_helm, running_namespace, {**EXAMPLES["default"], **changed})

    return make


def commands():
    """The section's blocks of commands."""
    text = (ROOT / "docs/operations.md").read_text().partition(SECTION)[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)


def typed(installed, folder, block):
    """Runs a block as people would, who call their namespace `ml`."""
    (port,) = free_ports(1)
    for old, new in [
        (" -n ml ", f" -n {installed.namespace} "),
        (".ml.svc", f".{installed.namespace}.svc"),
        ("2379:2379", f"{port}:2379"),
        ("localhost:2379", f"localhost:{port}"),
    ]:
        block = block.replace(old, new)
    cluster = installed.cluster
    env = {
        "PATH": f"{cluster.bin}:{cluster.etcd_bin}:{os.environ['PATH']}",
        "KUBECONFIG": str(cluster.config),
        "HOME": str(folder),
        "PWD": str(folder),
    }
    return run(["bash", "-euo", "pipefail", "-c", f"cd {folder}\n{block}"], env=env, seconds=600)


def test_etcd_is_restored_from_a_backup(release, tmp_path):
    installed = release().install()
    job = installed.submit()
    installed.has_saved(job)
    backup, stop, restore, start = commands()
    typed(installed, tmp_path, backup)
    known = int(installed.stage(job)["checkpointStep"])
    later = installed.submit(steps=20)
    eventually("another checkpoint is saved", lambda: int(installed.stage(job)["checkpointStep"]) > known, 240)
    typed(installed, tmp_path, stop)
    typed(installed, tmp_path, restore)
    typed(installed, tmp_path, start)
    installed.is_ready()
    installed.goes_on(job)
    with pytest.raises(Failed, match=later):
        installed.crescendo("get", later)
    installed.ends(job)
    # No field is somebody else's now.
    installed.upgrade(log={"filter": "debug"})
    installed.is_ready()


def versions_of_members(installed, kind):
    """What members say they are (`server`), and what they have agreed to write (`cluster`)."""
    found = set()
    for i in range(3):
        path = f"/api/v1/namespaces/{installed.namespace}/pods/crescendo-etcd-{i}:2381/proxy/metrics"
        text = installed.cluster.raw(path)
        found |= set(re.findall(rf'^etcd_{kind}_version{{{kind}_version="(\d+\.\d+)[.0-9]*"}} 1$', text, re.M))
    return found


def image(version):
    return {"bundled": {"image": {"repository": etcd_image(version), "tag": f"v{version}"}}}


@pytest.mark.parametrize("before, after", list(itertools.pairwise(sorted(ETCD))))
def test_etcd_is_upgraded_by_one_minor_version(release, before, after):
    """With a job in training, which does not notice. Each step begins with a release of its own: 3.7 was seen to end on the log of a
    member that had been of 3.5 a minute before."""
    installed = release(etcd=image(before)).install()
    job = installed.submit()
    installed.has_saved(job)
    installed.upgrade(etcd=image(after))
    installed.is_ready()
    assert versions_of_members(installed, "server") == {after}
    eventually("all write as that version", lambda: versions_of_members(installed, "cluster") == {after})
    stage = installed.goes_on(job)
    assert stage["restarts"] == 0 and stage["lastFailure"] is None, stage
    installed.ends(job)
