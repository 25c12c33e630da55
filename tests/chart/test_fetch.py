"""The script that fills the library, run: only what has the right sum is kept, and what was cut is gone on with."""

import hashlib
import http.server
import re
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from certificates import Authority, pem
from chart import CHART, EXAMPLES, of_kind, pods, rendered

SCRIPT = CHART / "files/fetch/fetch.sh"
CONTENT = bytes(range(256)) * 4096
#: What the image of the Job has as sh.
SHELLS = [path for path in map(shutil.which, ("dash", "busybox", "bash")) if path]


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every path over TLS. It cuts the first answer short if `cuts` is set, and has no ranges if `whole` is."""

    cuts = whole = False

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        authority = Authority("test")
        certificate, key = authority.issue({"commonName": "files", "dnsNames": ["localhost"], "usages": ["server auth"]}, [])
        (folder / "tls.pem").write_bytes(certificate + key)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(pem(authority.certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.seen = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.seen.append((self.path, wanted, self.headers.get("Authorization")))
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/plain":
            self.send_response(302)
            self.send_header("Location", "http://localhost:1/file")
            return self.end_headers()
        begin = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and not self.server.whole else 0
        self.send_response(206 if begin else 200)
        body = CONTENT[begin:]
        self.send_header("Content-Length", str(len(body)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        if self.server.cuts:
            self.server.cuts = False
            self.wfile.write(body[: len(body) // 2])
            self.connection.close()
        else:
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    with Server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(params=SHELLS, ids=lambda path: path.rsplit("/", 1)[1])
def fetch(request, server, tmp_path):
    """Runs the script for {path: (path at the server, sum)}; what it said, and whether it succeeded."""

    def run(files, headers=None):
        lines = [f"{total} {path} https://localhost:{server.server_port}{at}\n" for path, (at, total) in files.items()]
        (tmp_path / "list").write_text("".join(lines))
        sh = [request.param, "sh"] if request.param.endswith("busybox") else [request.param]
        command = [*sh, SCRIPT, tmp_path / "list", tmp_path / "library", *([headers] if headers else [])]
        env = {"PATH": "/usr/bin:/bin", "CURL_CA_BUNDLE": str(server.ca), "CURL_HOME": str(tmp_path)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr, done.returncode == 0

    return run


SUM = hashlib.sha256(CONTENT).hexdigest()


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_right_is_kept_and_not_fetched_again(fetch, server, tmp_path):
    files = {"a.safetensors": ("/a", SUM), "text_encoder/b.safetensors": ("/b?download=true", SUM)}
    said, good = fetch(files)
    assert good, said
    assert files_in(tmp_path / "library") == sorted(files)
    assert (tmp_path / "library/a.safetensors").read_bytes() == CONTENT
    assert [path for path, *_ in server.seen] == ["/a", "/b?download=true"]
    said, good = fetch(files)
    assert good and said.count("is there\n") == 2 and len(server.seen) == 2


def test_what_is_not_as_it_should_be_is_not_kept(fetch, server, tmp_path):
    said, good = fetch({"a": ("/a", SUM)})
    assert good, said
    # Another sum for what is there: the old file stays until there is a right one, and what came last is fetched all the same.
    said, good = fetch({"a": ("/a", "0" * 64), "b": ("/missing", SUM), "c": ("/c", SUM)})
    assert not good
    assert f"a: has the SHA-256 {SUM}, and should have {'0' * 64}: not kept" in said
    assert "b: could not be fetched" in said and "files that are missing: 2" in said
    assert files_in(tmp_path / "library") == ["a", "c"]
    (tmp_path / "library/a").write_bytes(b"damaged")
    said, good = fetch({"a": ("/a", SUM)})
    assert good and (tmp_path / "library/a").read_bytes() == CONTENT


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_cut_is_gone_on_with(fetch, server, tmp_path, whole):
    server.cuts, server.whole = True, whole
    said, good = fetch({"a": ("/a", SUM)})
    assert not good and "could not be fetched" in said
    (part,) = files_in(tmp_path / "library")
    assert part == f"a.{socket.gethostname()}.part"
    for _ in range(2):
        # A server without ranges costs one more try.
        said, good = fetch({"a": ("/a", SUM)})
        if good:
            break
    assert good and files_in(tmp_path / "library") == ["a"], said
    ranges = [wanted for _, wanted, _ in server.seen]
    assert ranges[1].startswith("bytes=") and int(ranges[1][6:-1]) > 0


def test_what_another_pod_left_behind_goes(fetch, tmp_path):
    (tmp_path / "library").mkdir()
    (tmp_path / "library/a.gone-0.part").write_bytes(b"x")
    said, good = fetch({"a": ("/a", SUM)})
    assert good and files_in(tmp_path / "library") == ["a"], said


def test_a_login_is_sent_and_encryption_is_not_left(fetch, server, tmp_path):
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer secret\n")
    said, good = fetch({"a": ("/a", SUM)}, headers)
    assert good and server.seen[-1] == ("/a", None, "Bearer secret") and "secret" not in said
    said, good = fetch({"b": ("/plain", SUM)})
    assert not good and files_in(tmp_path / "library") == ["a"]


def test_the_job_runs_the_script_with_its_list():
    objects = rendered(EXAMPLES["open"])
    (data,) = [item["data"] for item in of_kind(objects, "ConfigMap") if item["metadata"]["name"] == "crescendo-fetch"]
    assert data["fetch.sh"] == SCRIPT.read_text()
    files = EXAMPLES["open"]["library"]["fetch"]["files"]
    assert data["list"].splitlines() == [f"{file['sha256']} {file['path']} {file['url']}" for file in files]
    (spec,) = [spec for name, _, spec in pods(objects) if name.startswith("crescendo-fetch-")]
    container = spec["containers"][0]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    claims = {volume["name"]: volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume}
    # By the claim that can be written, where the others read.
    assert claims == {"library": {"claimName": "models-writable"}} and "readOnly" not in mounts["library"]
    assert container["command"][3] == mounts["library"]["mountPath"] and mounts["library"]["subPath"] == "flux"
    (policy,) = [item for item in of_kind(objects, "NetworkPolicy") if item["metadata"]["name"] == "crescendo-fetch"]
    assert [port["port"] for port in policy["spec"]["egress"][1]["ports"]] == [443, 8443, 3128]
