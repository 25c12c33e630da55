#!/usr/bin/env bash
# One would guess: an answer whose content is a list of parts, as Mistral's models give it and OpenAI's interface takes it in
#   questions, comes through a gateway as it is, or is refused as something that will not get better.
# What happens: LiteLLM's proxy cannot build its answer of it ("Invalid response object"), takes that for a failure that passes, asks
#   the model again, by default twice, and then answers 500: a whole answer was bought three times and is lost. The client sees a
#   server that is out of order, and asks again as well. Content as text comes through at once.
# Seen with: litellm 1.108.7, a server behind the provider `openai/`.
# Why it matters: whoever puts a gateway before a model to bound what it costs pays a multiple for nothing.
# Documented: nothing found.
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


def answered(content):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 900, "completion_tokens": 30, "total_tokens": 930}
    return 200, {}, {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


ANSWERS = {"text": answered("four"), "parts": answered([{"type": "text", "text": "four"}])}


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
    for model in ANSWERS:
        status, _, told = ask(port, model)
        said = told["choices"][0]["message"]["content"] if status == 200 else told["error"]["message"]
        seen[model] = (status, asked[model])
        print(f"content as {model}: status {status} after {asked[model]} paid answers: {said[:100]}")
finally:
    process.terminate()
    process.wait(30)
expected = seen == {"text": (200, 1), "parts": (500, 3)}
print("as described" if expected else "this has changed")
sys.exit(0 if expected else 1)
PY
"$folder/venv/bin/python" finding.py
