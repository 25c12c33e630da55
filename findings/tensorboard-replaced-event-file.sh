#!/usr/bin/env bash
# One would guess: TensorBoard follows a file by its name. Who writes the whole curve to a temporary file and renames it over
#   events.out.tfevents.* (every object store over a folder does) shows the newest points after the next reload.
# What happens: the data server, which is the default, keeps reading the file that it has once opened. A file that was put
#   in its place is never looked at: the curve stands still, without a word, until TensorBoard is started again. The slower
#   Python reader of the same version (--load_fast=false) shows the new points. Rewriting the file in place, appending to it,
#   or a new file beside it are followed by both.
# Seen with: tensorboard 2.21.0, tensorboard-data-server 0.7.2, no TensorFlow installed.
# Why it matters: who watches a run for hours sees it hang at its first checkpoint, and stops a healthy run.
# Reported: tensorflow/tensorboard issue 349 (for TensorFlow's reader, cured there by --detect_file_replacement, a flag that
#   turns the data server off).
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

NAME = "events.out.tfevents.1.trainer"
WAYS = ["replaced", "rewritten", "appended", "beside"]


def records(steps, head=True):
    file = io.BytesIO()
    writer = RecordWriter(file)
    if head:
        writer.write(Event(wall_time=1.7e9, file_version="brain.Event:2").SerializeToString())
    for step in steps:
        value = Summary.Value(tag="loss", simple_value=1.0 / step)
        writer.write(Event(wall_time=1.7e9 + step, step=step, summary=Summary(value=[value])).SerializeToString())
    return file.getvalue()


def write(path, content, mode="wb"):
    with open(path, mode) as file:
        file.write(content)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def steps(port, run):
    query = urllib.parse.urlencode({"run": run, "tag": "loss"})
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?{query}", timeout=5) as answer:
            return [point[1] for point in json.load(answer)]
    except (urllib.error.URLError, ConnectionError):
        return []


def wait(port, runs, wanted, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all(steps(port, run) == wanted for run in runs):
            return True
        time.sleep(0.3)
    return False


def curves(logdir, flags):
    for way in WAYS:
        os.makedirs(f"{logdir}/{way}")
        write(f"{logdir}/{way}/{NAME}", records([1, 2, 3]))
    port = free_port()
    server = subprocess.Popen(
        [f"{sys.prefix}/bin/tensorboard", "--logdir", logdir, "--port", str(port), "--reload_interval", "1", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    try:
        if not wait(port, WAYS, [1, 2, 3]):
            sys.exit("not as described: the first points do not show")
        longer = records([1, 2, 3, 4, 5])
        write(f"{logdir}/new", longer)
        os.replace(f"{logdir}/new", f"{logdir}/replaced/{NAME}")
        write(f"{logdir}/rewritten/{NAME}", longer)
        write(f"{logdir}/appended/{NAME}", records([4, 5], head=False), "ab")
        write(f"{logdir}/beside/{NAME.replace('.1.', '.2.')}", records([4, 5]))
        # What shows a later step has been reloaded after the change; twice, so that every run has had its turn.
        followed = wait(port, WAYS[1:], [1, 2, 3, 4, 5])
        for step in (6, 7):
            write(f"{logdir}/appended/{NAME}", records([step], head=False), "ab")
            followed = wait(port, ["appended"], list(range(1, step + 1))) and followed
        if flags:
            wait(port, ["replaced"], [1, 2, 3, 4, 5])
        seen = {way: steps(port, way) for way in WAYS}
    finally:
        server.terminate()
        log = server.communicate(timeout=30)[0]
    return seen, "fast data loading" in log


print("tensorboard", version("tensorboard"), "with tensorboard-data-server", version("tensorboard-data-server"))
print("each file had steps 1 to 3 when it was opened; then 4 and 5 were added (and 6 and 7 appended)")
changed = False
grown = [1, 2, 3, 4, 5]
for name, flags, of_replaced in [("data server (default)", [], [1, 2, 3]), ("--load_fast=false", ["--load_fast=false"], grown)]:
    seen, fast = curves("fast" if not flags else "slow", flags)
    if not flags and not fast:
        print("not run: there is no data server for this machine")
        sys.exit(2)
    for way in WAYS:
        print(f"  {name:22} {way:10} shows steps {seen[way]}")
    wanted = {"replaced": of_replaced, "rewritten": grown, "appended": grown + [6, 7], "beside": grown}
    changed = changed or seen != wanted
print("CHANGED" if changed else "as described: the data server never sees a file that replaced one it has open")
sys.exit(changed)
PY
venv/bin/python finding.py
