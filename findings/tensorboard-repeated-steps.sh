#!/usr/bin/env bash
# One would guess: what TensorBoard shows of a folder depends on the files in it, and a curve once logged stays.
# What happens: the two readers of one version draw different curves of the same files. The data server (the default) forgets
#   every point from a step on as soon as that step comes again: after a resume the old tail is gone, also the steps that have
#   not been done again yet. The Python reader (--load_fast=false, and what runs where there is no data server) keeps both,
#   and the line runs backwards. But that one stops to read a file once there is one with a later name beside it: what an
#   earlier writer still adds is left out, with an error in the log only.
# Seen with: tensorboard 2.21.0, tensorboard-data-server 0.7.2, no TensorFlow installed; files of version brain.Event:2.
# Why it matters: runs are resumed, and two processes that log into one folder (ranks, or a trainer and its evaluator) are
#   common. Which half of the truth one sees depends on the platform that TensorBoard runs on.
# Documented: the second half only (the help of --reload_multifile); the first not that we found.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(tensorboard==2.21.0 tensorboard-data-server==0.7.2 numpy==2.4.6 protobuf==7.36.2 grpcio==1.85.3)
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
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from importlib.metadata import version

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FIRST = "events.out.tfevents.1.trainer"
SECOND = "events.out.tfevents.2.trainer"


def records(steps, loss, head=True):
    file = io.BytesIO()
    writer = RecordWriter(file)
    if head:
        writer.write(Event(wall_time=1.7e9, file_version="brain.Event:2").SerializeToString())
    for step in steps:
        value = Summary.Value(tag="loss", simple_value=loss)
        writer.write(Event(wall_time=1.7e9 + step, step=step, summary=Summary(value=[value])).SerializeToString())
    return file.getvalue()


def write(path, content, mode="wb"):
    with open(path, mode) as file:
        file.write(content)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def points(port, run):
    query = urllib.parse.urlencode({"run": run, "tag": "loss"})
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?{query}", timeout=5) as answer:
            return [(point[1], round(point[2])) for point in json.load(answer)]
    except (urllib.error.URLError, ConnectionError):
        return []


def reloaded_twice(port, logdir):
    """Returns when all runs have been read again: what a run of its own is given meanwhile has shown, two times."""
    path = f"{logdir}/clock/{FIRST}"
    for _ in range(2):
        ticks = len(points(port, "clock")) or 1
        write(path, records([ticks + 1], loss=1, head=False), "ab")
        end = time.monotonic() + 60
        while len(points(port, "clock")) <= ticks:
            if time.monotonic() > end:
                sys.exit("not as described: no reload within a minute")
            time.sleep(0.3)


def curves(logdir, flags):
    # Run "resumed": crashed after step 6, whose newest checkpoint was of step 3, and has done steps 4 and 5 again so far.
    os.makedirs(f"{logdir}/resumed")
    write(f"{logdir}/resumed/{FIRST}", records([1, 2, 3, 4, 5, 6], loss=10))
    write(f"{logdir}/resumed/{SECOND}", records([4, 5], loss=20))
    # Run "two-writers": two processes write the same curve into one folder, and the one with the earlier file goes on.
    os.makedirs(f"{logdir}/two-writers")
    write(f"{logdir}/two-writers/{FIRST}", records([1, 2], loss=10))
    write(f"{logdir}/two-writers/{SECOND}", records([3], loss=20))
    os.makedirs(f"{logdir}/clock")
    write(f"{logdir}/clock/{FIRST}", records([1], loss=1))
    port = free_port()
    server = subprocess.Popen(
        [f"{sys.prefix}/bin/tensorboard", "--logdir", logdir, "--port", str(port), "--reload_interval", "1", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    try:
        reloaded_twice(port, logdir)
        write(f"{logdir}/two-writers/{FIRST}", records([4, 5], loss=10, head=False), "ab")
        reloaded_twice(port, logdir)
        seen = {run: points(port, run) for run in ("resumed", "two-writers")}
    finally:
        server.terminate()
        log = server.communicate(timeout=30)[0]
    return seen, "fast data loading" in log


print("tensorboard", version("tensorboard"), "with tensorboard-data-server", version("tensorboard-data-server"))
print("points are (step, value); 10 is of the earlier file, 20 of the later one")
expected = {
    "data server (default)": {
        "resumed": [(1, 10), (2, 10), (3, 10), (4, 20), (5, 20)],
        "two-writers": [(1, 10), (2, 10), (3, 20), (4, 10), (5, 10)],
    },
    "--load_fast=false": {
        "resumed": [(1, 10), (2, 10), (3, 10), (4, 10), (5, 10), (6, 10), (4, 20), (5, 20)],
        "two-writers": [(1, 10), (2, 10), (3, 20)],
    },
}
changed = False
for name, wanted in expected.items():
    flags = [name] if name.startswith("--") else []
    seen, fast = curves("slow" if flags else "fast", flags)
    if not flags and not fast:
        print("not run: there is no data server for this machine")
        sys.exit(2)
    for run, curve in seen.items():
        print(f"  {name:22} {run:11} {curve}")
    changed = changed or seen != wanted
print("CHANGED" if changed else "as described: one version, the same files, two different curves")
sys.exit(changed)
PY
venv/bin/python finding.py
