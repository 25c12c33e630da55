"""The commands of docs/operations.md for backup and restore, against real etcd: one member's snapshot becomes a cluster of three."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
KEY, VALUE = "/crescendo/v1/jobs/kept", "a record"
START_SECONDS = 60


@pytest.fixture(scope="module")
def programs():
    server = pathlib.Path(os.environ.get("CRESCENDO_ETCD") or ROOT / ".deps/venv/bin/etcd-server")
    folder = server.resolve().parent
    found = {name: folder / name for name in ("etcd", "etcdctl", "etcdutl")}
    if not all(os.access(path, os.X_OK) for path in found.values()):
        found = {name: shutil.which(name) for name in found}
    if not all(found.values()):
        required = {"CI", "CRESCENDO_REQUIRE_ETCD"} & set(os.environ)
        assert not required, f"etcd is required here: {found}"
        pytest.skip("etcd, etcdctl and etcdutl are not all there")
    return found


def commands():
    """Of the page, in their order, up to those for a release of the chart, which are tried on one (tests/kube)."""
    page = (ROOT / "docs/operations.md").read_text().partition("## Back up and restore the bundled etcd")[0]
    blocks = re.findall(r"^ *```sh\n(.*?)```", page, re.M | re.S)
    text = "\n".join(block for block in blocks if "etcd" in block).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip().startswith("etcd")]


def ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


class Member:
    def __init__(self, programs, name, folder, client, peer, cluster):
        self.endpoint = f"http://127.0.0.1:{client}"
        arguments = {
            "name": name,
            "data-dir": folder,
            "listen-client-urls": self.endpoint,
            "advertise-client-urls": self.endpoint,
            "listen-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{peer}",
            "initial-cluster": cluster,
            "log-level": "error",
        }
        command = [programs["etcd"], *(f"--{flag}={value}" for flag, value in arguments.items())]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self):
        self.process.kill()
        self.process.wait()


def run(programs, command, folder, **variables):
    name, _, rest = command.partition(" ")
    environment = {**os.environ, **variables, "ETCDCTL_API": "3"}
    done = subprocess.run(
        f'"{programs[name]}" {rest}', shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def healthy(programs, endpoints, folder):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return run(programs, 'etcdctl --endpoints "$ENDPOINTS" endpoint health', folder, ENDPOINTS=endpoints)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_a_snapshot_becomes_a_cluster_of_three(programs, tmp_path):
    save, status, restore = commands()
    client, peer = ports(2)
    one = Member(programs, "one", tmp_path / "one", client, peer, f"one=http://127.0.0.1:{peer}")
    try:
        healthy(programs, one.endpoint, tmp_path)
        run(programs, f'etcdctl --endpoints "$ENDPOINT" put {KEY} "{VALUE}"', tmp_path, ENDPOINT=one.endpoint)
        run(programs, save, tmp_path, ENDPOINT=one.endpoint)
    finally:
        one.stop()
    assert "REVISION" in run(programs, status, tmp_path)

    clients, peers = ports(3), ports(3)
    members = ",".join(f"m{n}=http://127.0.0.1:{port}" for n, port in enumerate(peers))
    restored = []
    try:
        for n in range(3):
            where = {"NAME": f"m{n}", "NEW_DATA_DIR": f"r{n}", "MEMBERS": members}
            run(programs, restore, tmp_path, PEER_URL=f"http://127.0.0.1:{peers[n]}", **where)
            restored.append(Member(programs, f"m{n}", tmp_path / f"r{n}", clients[n], peers[n], members))
        endpoints = ",".join(member.endpoint for member in restored)
        healthy(programs, endpoints, tmp_path)
        for member in restored:
            read = f'etcdctl --endpoints "$ENDPOINT" get --print-value-only {KEY}'
            assert run(programs, read, tmp_path, ENDPOINT=member.endpoint).strip() == VALUE
    finally:
        for member in restored:
            member.stop()
