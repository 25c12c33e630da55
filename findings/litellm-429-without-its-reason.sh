#!/usr/bin/env bash
# One would guess: behind a gateway with OpenAI's interface a 429 is what it is in front of it, so that a client which waits for
#   Retry-After and stops at insufficient_quota goes on doing so.
# What happens: LiteLLM's proxy keeps the status and the words. `code: insufficient_quota` becomes `code: "429"` with type
#   throttling_error, the same as of a rate limit that passes; and Retry-After arrives as llm_provider-retry-after alone, which
#   no client looks at. With its defaults it has asked three times by then, also without credit.
# Seen with: litellm 1.108.7.
# Why it matters: a judge of pictures without credit looks like a busy one, and is asked for hours instead of ending the job.
# Reported: BerriAI/litellm issue 21553 (the header); nothing found of the code.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=('litellm[proxy]==1.108.7')
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
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from importlib.metadata import version

asked = {}
ANSWERS = {
    "no-credit": (429, {}, {"error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}}),
    "busy": (429, {"Retry-After": "3"}, {"error": {
        "message": "Rate limit reached for requests", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}),
}


class Server(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        model = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        asked[model] = asked.get(model, 0) + 1
        status, headers, body = ANSWERS[model]
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def gateway(upstream):
    """The proxy with its defaults, every model handed on to one server."""
    port = free_port()
    params = {"model": "openai/*", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = {"model_list": [{"model_name": "*", "litellm_params": params}], "general_settings": {"master_key": "sk-local"}}
    pathlib.Path("config.yaml").write_text(json.dumps(config))
    program = pathlib.Path(sys.executable).parent / "litellm"
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen([program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)],
                               stdout=open("log", "wb"), stderr=subprocess.STDOUT, env=environment)
    for _ in range(240):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).close()
            return process, port
        except OSError:
            time.sleep(0.5)
    process.kill()
    print("not run: the proxy does not start:", pathlib.Path("log").read_text()[-500:], file=sys.stderr)
    sys.exit(2)


def ask(port, model):
    """Status, headers and body of an answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "How alike are they, from 0 to 4?"}]}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-local"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


process, port = gateway(server.server_port)
print("litellm", version("litellm"))
seen = {}
try:
    for model, (status, headers, body) in ANSWERS.items():
        found, handed_on, told = ask(port, model)
        error = told["error"]
        seen[model] = (found, error["type"], error["code"], handed_on["Retry-After"], handed_on["llm_provider-retry-after"], asked[model])
        print(f"{model}: sent {status}, code {body['error']['code']}, Retry-After {headers.get('Retry-After')}")
        print(f"  arrives as {found}, type {error['type']}, code {error['code']}, Retry-After {seen[model][3]}, "
              f"llm_provider-retry-after {seen[model][4]}, after {asked[model]} requests")
finally:
    process.terminate()
    process.wait(30)
same = (429, "throttling_error", "429", None)
expected = seen["no-credit"][:4] == seen["busy"][:4] == same and seen["busy"][4] == "3" and seen["no-credit"][5] > 1
print("as described" if expected else "this has changed")
sys.exit(0 if expected else 1)
PY
"$folder/venv/bin/python" finding.py
