#!/usr/bin/env bash
# One would guess: where the Hub (or a proxy before it) refuses xet, an upload goes by LFS, which the client has too; and what
#   the Hub refuses is an HfHubHTTPError, as for every other call.
# What happens: the upload fails with Python's own ConnectionError, "Network error", also for 401, 403 and 404. LFS is not
#   tried; with HF_HUB_DISABLE_XET=1 the same upload is through. What catches HfHubHTTPError does not catch it.
# Seen with: huggingface_hub 2.4.0, hf-xet 1.8.0, against a stand-in of the Hub's API on loopback.
# Why it matters: mirrors and proxies that know the Hub's API, but not the paths of xet, are common.
# Documented: that HF_HUB_DISABLE_XET exists; not that it is needed then, nor the kind of the error, that we found.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(huggingface_hub==2.4.0 hf-xet==1.8.0)
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
import http.server
import json
import os
import subprocess
import sys
import threading
from importlib.metadata import version

UPLOAD = """
import os
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
try:
    HfApi().upload_file(path_or_fileobj=os.urandom(200_000), path_in_repo="a.safetensors", repo_id="user/name")
    print("uploaded")
except Exception as error:
    print(type(error).__module__, type(error).__name__, isinstance(error, HfHubHTTPError))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status, asked = 0, []

    def log_message(self, *_):
        pass

    def handle_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        here, status, answer = f"http://{self.headers['Host']}", 200, {}
        Hub.asked.append(self.path)
        if "/preupload/" in self.path:
            answer = {"files": [{"path": "a.safetensors", "uploadMode": "lfs", "shouldIgnore": False}]}
        elif "xet-write-token" in self.path:
            status = Hub.status
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            answer = {"transfer": "basic", "objects": [{**one, "actions": {"upload": {"href": f"{here}/lfs"}}} for one in objects]}
        elif "/commit/" in self.path:
            answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{here}/user/name/commit/0", "hookOutput": ""}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = handle_one


def upload(status, **variables):
    Hub.status = status
    Hub.asked.clear()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_x", "HF_HOME": os.getcwd()}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **variables}
    done = subprocess.run([sys.executable, "-c", UPLOAD], env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout.strip(), any("/lfs" in path for path in Hub.asked)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("huggingface_hub", version("huggingface_hub"), "with hf-xet", version("hf-xet"))
changed = False
for status in (401, 403, 404):
    told, by_lfs = upload(status)
    print(f"  xet answers {status}: {told}; LFS is {'tried' if by_lfs else 'not tried'}")
    changed = changed or (told, by_lfs) != ("builtins ConnectionError False", False)
told, by_lfs = upload(403, HF_HUB_DISABLE_XET="1")
print(f"  HF_HUB_DISABLE_XET=1: {told}, by LFS: {by_lfs}")
changed = changed or (told, by_lfs) != ("uploaded", True)
print("CHANGED" if changed else "as described: no way around by itself, and an error of another kind")
sys.exit(changed)
PY
venv/bin/python finding.py
