#!/usr/bin/env bash
# One would guess: a run that is taken up again has no end until it ends again.
# What happens: its status is RUNNING and its end time stays that of the last time, by start_run(run_id=...) and by
#   MlflowClient.update_run(status="RUNNING") alike. Whoever takes the end, or the duration made of it, for a sign that a run
#   is over takes every resumed run for one; nothing that the client has removes it.
# Seen with: mlflow 3.17.2, SQLite.
# Why it matters: jobs are retried and resumed, and clean-ups and dashboards go by the end.
# Documented: not that we found.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(mlflow==3.17.2)
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
import os
import sys
import time

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
from mlflow.tracking import MlflowClient

mlflow.set_tracking_uri("sqlite:///mlflow.db")
client = MlflowClient()
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 1.0, step=1)
run_id = run.info.run_id


def seen(what):
    info = client.get_run(run_id).info
    print(f"  {what}: {info.status}, end time {info.end_time}")
    return info.status, info.end_time


print("mlflow", mlflow.__version__)
ended = seen("ended")
time.sleep(0.5)
with mlflow.start_run(run_id=run_id):
    resumed = seen("start_run(run_id=...)")
again = seen("ended again")
client.update_run(run_id, status="RUNNING")
updated = seen("update_run(status=RUNNING)")
wanted = [("FINISHED", ended[1]), ("RUNNING", ended[1]), ("FINISHED", again[1]), ("RUNNING", again[1])]
changed = [ended, resumed, again, updated] != wanted or not ended[1] or again[1] <= ended[1]
print("CHANGED" if changed else "as described: it runs, and has ended")
sys.exit(changed)
PY
venv/bin/python finding.py
