"""The Python client before a real controller that asks for TLS and a login, and holds tenants to quotas."""

import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import crescendo
import pytest
from conftest import BIN, eventually, spec

TOKENS = {"eve": ("viewer", "one"), "sue": ("submitter", "one"), "tom": ("submitter", "two"), "ada": ("admin", None)}


@pytest.fixture(scope="module")
def controller(tmp_path_factory):
    """Address and root certificate. A caller's token is `token-of-NAME`."""
    if not BIN:
        pytest.skip("CRESCENDO_BIN is not set: no controller to ask")
    folder = tmp_path_factory.mktemp("login")
    certificates(folder)
    entries = []
    for name, (role, tenant) in TOKENS.items():
        entry = {"name": name, "role": role, "sha256": hashlib.sha256(f"token-of-{name}".encode()).hexdigest()}
        entries.append({**entry, "expires": "never", **({"tenant": tenant} if tenant else {})})
    (folder / "tokens.yaml").write_text(json.dumps(entries))
    (folder / "tenants.yaml").write_text("tenants: {one: {maxQueuedJobs: 1, maxPriority: 5}}\n")
    flags = {
        "listen": "127.0.0.1:0",
        "port-file": folder / "ports.json",
        "tls-cert": folder / "server.pem",
        "tls-key": folder / "server.key",
        "tls-ca": folder / "ca.pem",
        "auth-tokens": folder / "tokens.yaml",
        "tenants": folder / "tenants.yaml",
        "store": f"embedded:{folder / 'store'}",
        "object-store": f"file://{folder / 'objects'}",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRESCENDO_")}
    program = pathlib.Path(BIN).resolve() / "crescendo-controller"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *(f"--{flag}={value}" for flag, value in flags.items())], stdout=log, stderr=log, env=environment
        )
        try:

            def port():
                assert process.poll() is None, (folder / "log").read_text()
                with contextlib.suppress(OSError, ValueError):
                    return json.loads((folder / "ports.json").read_text())["grpc"].rpartition(":")[2]

            yield f"localhost:{eventually('the controller', port)}", folder / "ca.pem"
        finally:
            process.kill()
            process.wait(10)


def certificates(folder):
    """A root, and what it vouches for: localhost."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-days", "1", "-subj", "/CN=root", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *key, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", *signed, "-out", "server.pem")


def client(controller, name, **options):
    address, ca = controller
    token = None if name is None else f"token-of-{name}"
    return crescendo.Client(address, ca=ca, token=token, **options)


def test_who_calls_is_known_by_the_token(controller, tmp_path):
    for name, (role, tenant) in TOKENS.items():
        with client(controller, name) as caller:
            told = caller.whoami()
        assert (told.name, told.role, told.tenant) == (name, role, tenant or "")
    program = [sys.executable, "-c", "print('token-of-sue')"]
    address, ca = controller
    with crescendo.Client(address, ca=ca, token_command=program) as caller:
        assert caller.whoami().name == "sue"


@pytest.mark.parametrize("name", [None, "nobody"])
def test_without_a_login_nothing_is_told(controller, name):
    with client(controller, name) as stranger:
        for call in [stranger.list, stranger.nodes, lambda: stranger.get("j-1"), lambda: next(stranger.watch("j-1"))]:
            with pytest.raises(crescendo.NotLoggedInError) as refused:
                call()
            assert refused.value.code == "UNAUTHENTICATED" and str(refused.value)


def test_a_login_may_not_do_everything(controller):
    with client(controller, "eve") as viewer:
        assert viewer.list() == []
        with pytest.raises(crescendo.NotAllowedError, match="submitter") as refused:
            viewer.submit(spec(steps=5))
    assert type(refused.value) is crescendo.NotAllowedError and refused.value.code == "PERMISSION_DENIED"
    with client(controller, "sue") as submitter, pytest.raises(crescendo.NotAllowedError, match="tenant one"):
        submitter.submit(spec(steps=5).replace("{name: python}", "{name: python, tenant: two}"))


def test_quotas_and_tenants_hold(controller):
    # Neither a root nor a set of the operator's is this tenant's: it names what every tenant may.
    text = spec(steps=5, weights="base.safetensors").replace("subjects: /", "subjects: sets/")
    with client(controller, "sue", timeout_seconds=2) as sue, client(controller, "tom") as tom:
        job = sue.submit(text)
        assert sue.get(job).tenant == "one" and [listed.job_id for listed in sue.list()] == [job.job_id]
        with pytest.raises(crescendo.BusyError, match="queued") as refused:
            sue.submit(text)
        assert refused.value.retry_after_seconds > 0
        # What is another tenant's is not there.
        assert tom.list() == []
        with pytest.raises(crescendo.NotFoundError):
            tom.get(job)
        assert sue.cancel(job).state == "cancelled"
        with pytest.raises(crescendo.InvalidSpecError) as refused:
            sue.submit(text.replace("spec:", "spec:\n  priority: 6"))
        [problem] = refused.value.problems
        assert problem.path == "spec.priority" and problem.line > 0
