"""The Python client of examples/python, with the real grpcio, against a real cluster on loopback.

Needs built binaries: CRESCENDO_BIN names their folder.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import grpc
import pytest

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/python"
BIN = os.environ.get("CRESCENDO_BIN")
needs_cluster = pytest.mark.skipif(not BIN, reason="CRESCENDO_BIN is not set: no binaries to run a cluster with")

#: Limit of each wait.
DEADLINE_SECONDS = 180


@pytest.fixture(scope="session")
def library():
    """The client, on freshly generated messages."""
    subprocess.run([EXAMPLE / "generate.sh"], check=True, env={**os.environ, "PYTHON": sys.executable})
    sys.path.insert(0, str(EXAMPLE))
    import crescendo_client

    return crescendo_client


def spec(steps, name="python"):
    return f"""
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  model: {{preset: nano, weights: {ROOT / 'assets/nano/base.safetensors'}}}
  resources: {{gpus: 1}}
  checkpoints: {{every: 10, keepLast: 2}}
  stages:
    - references: 1
      data: {{source: compose, subjects: {ROOT / 'helm/crescendo/files/test-job/subjects'}, panel: 16, pairs: 32, unitSize: 8, minPairs: 8}}
      train: {{adapter: {{rank: 4}}, steps: {steps}, globalBatch: 2}}
""".encode()


class Cluster:
    def __init__(self, process, folder):
        self.process, self.folder = process, folder

    def state(self):
        with contextlib.suppress(OSError, ValueError):
            state = json.loads((self.folder / "up.json").read_text())
            if len(state["processes"]) == 3 and all(process["grpc"] for process in state["processes"]):
                return state
        return None

    def wait(self, what, check):
        end = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, (self.folder.parent / "up.log").read_text()
            found = check()
            if found:
                return found
            time.sleep(0.1)
        pytest.fail(f"{what}: not within {DEADLINE_SECONDS} s")

    def kill_controller(self):
        """As a machine that fails does; `up` starts it again at the same address."""
        [controller] = [process for process in self.state()["processes"] if process["name"] == "controller"]
        os.kill(controller["pid"], signal.SIGKILL)
        return controller["restarts"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    program = pathlib.Path(BIN).resolve() / "crescendo"
    up = [program, "up", "--dir", folder / "cluster", "--trainers", "1", "--device", "cpu", "--stop-on-stdin-close"]
    # What is set for other clusters does not count here.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRESCENDO_")}
    environment["XDG_STATE_HOME"] = str(folder)
    with open(folder / "up.log", "wb") as log:
        process = subprocess.Popen(up, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder, env=environment)
        try:
            cluster = Cluster(process, folder / "cluster")
            cluster.wait("the cluster", cluster.state)
            yield cluster
        finally:
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@pytest.fixture
def client(library, cluster):
    with library.Client([cluster.state()["controller"]]) as client:
        yield client


@needs_cluster
def test_a_job_is_followed_over_a_restart_and_its_lora_fetched(library, cluster, client, tmp_path):
    submitted = client.submit(spec(steps=60), request_id="python-1")
    again = client.submit(spec(steps=60), request_id="python-1")
    assert again.job_id == submitted.job_id, "one request id submits once"

    seen, lost, killed = [], [], None
    for job in client.watch(submitted.job_id, on_lost=lost.append):
        seen.append(job)
        if killed is None and job.stages[0].step > 0:
            killed = cluster.kill_controller()
    assert job.state == library.job_pb2.JOB_STATE_SUCCEEDED, job.reason
    assert killed is not None and lost, "the controller was killed while it was watched"
    revisions = [job.revision for job in seen]
    assert revisions == sorted(revisions), "no step back to what was seen before"
    assert all(job.job_id == submitted.job_id for job in seen)

    listed = client.checkpoints(submitted.job_id)
    assert [checkpoint.final for checkpoint in listed][-1] and listed[-1].step == 60
    to = tmp_path / "out/lora.safetensors"
    store = cluster.state()["objectStore"]
    assert client.fetch_lora(submitted.job_id, to, store) == to
    [registered] = [file for file in listed[-1].files if file.name == library.LORA_FILE]
    assert to.stat().st_size == registered.size_bytes
    assert not list(to.parent.glob("*.part"))

    # A file that is not what the registry says is not kept.
    damaged = pathlib.Path(store.removeprefix("file://"), listed[-1].path, library.LORA_FILE)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(library.Corrupt, match="registered are"):
        client.fetch_lora(submitted.job_id, tmp_path / "bad.safetensors", store)
    assert not list(tmp_path.glob("bad*"))


@needs_cluster
def test_who_calls_and_where_objects_are_is_told(cluster, client):
    told = client.whoami()
    assert told.leads and told.role == "admin"
    assert told.object_store_url == cluster.state()["objectStore"]


@needs_cluster
def test_a_job_is_explained_and_cancelled(library, client):
    job = client.submit(spec(steps=100_000, name="long"))
    told = client.explain(job.job_id)
    assert told.job_id == job.job_id and told.summary
    cancelled = client.cancel(job.job_id, "enough")
    assert (cancelled.state, cancelled.reason) == (library.job_pb2.JOB_STATE_CANCELLED, "enough")
    assert [job.state for job in client.watch(job.job_id)] == [library.job_pb2.JOB_STATE_CANCELLED]
    assert client.explain(job.job_id).cause == "cancelled"
    with pytest.raises(LookupError, match="no final checkpoint"):
        client.final_checkpoint(job.job_id)


@needs_cluster
def test_every_problem_of_a_spec_is_told(library, client):
    bad = spec(steps=10).replace(b"nano,", b"nino,").replace(b"steps: 10", b"stepz: 10")
    with pytest.raises(library.BadSpec) as refused:
        client.submit(bad)
    assert {problem.path for problem in refused.value.problems} >= {"spec.model.preset"}
    assert "nano" in str(refused.value) and len(refused.value.problems) >= 2


@needs_cluster
def test_a_job_that_is_not_there_is_an_error_at_once(client):
    with pytest.raises(grpc.RpcError) as refused:
        next(client.watch("nowhere-1"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


@needs_cluster
def test_the_program_does_the_same(cluster, library, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_bytes(spec(steps=100_000, name="program"))
    program = [sys.executable, EXAMPLE / "crescendo_example.py", "--controller", cluster.state()["controller"]]

    def run(*args):
        return subprocess.run([*program, *args], capture_output=True, text=True, timeout=DEADLINE_SECONDS)

    job = run("submit", file).stdout.strip()
    assert job.startswith("program-")
    assert run("cancel", job).stdout == "cancelled\n"
    watched = run("watch", job)
    assert watched.returncode == 4 and f"{job}: cancelled" in watched.stdout
    assert run("checkpoints", job).stdout == ""
    failed = run("fetch", job, tmp_path / "lora")
    assert failed.returncode == 1 and "no final checkpoint" in failed.stderr


def test_the_next_controller_is_asked_when_one_is_not_there(library):
    """A standby and a machine that is gone look alike: the call passes on."""
    asked = []

    class Jobs(library.job_pb2_grpc.JobServiceServicer):
        def GetJob(self, request, context):
            asked.append(dict(context.invocation_metadata()).get("authorization"))
            return library.job_pb2.GetJobResponse(job=library.job_pb2.Job(job_id=request.job_id))

    with serve(library, Jobs()) as port:
        login = library.Login(token="s3cret")
        with library.Client(["127.0.0.1:1", f"127.0.0.1:{port}"], login) as client:
            assert client.get("uno-1").job_id == "uno-1"
    assert asked == ["Bearer s3cret"]


def test_a_watch_takes_up_where_it_was(library):
    """Each stream breaks off after one update; the revision that was seen comes with the next question."""
    asked = []

    class Jobs(library.job_pb2_grpc.JobServiceServicer):
        def WatchJob(self, request, context):
            asked.append(request.from_revision)
            state = library.job_pb2.JOB_STATE_SUCCEEDED if len(asked) == 3 else library.job_pb2.JOB_STATE_RUNNING
            yield library.job_pb2.WatchJobResponse(
                job=library.job_pb2.Job(job_id=request.job_id, revision=10 * len(asked), state=state)
            )
            if len(asked) == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "leaving")

    with serve(library, Jobs()) as port, library.Client([f"127.0.0.1:{port}"]) as client:
        assert [job.revision for job in client.watch("uno-1")] == [10, 20, 30]
    assert asked == [0, 10, 20]


def test_a_watch_that_a_proxy_has_cut_goes_on_from_its_revision(library):
    """What gRPC makes of a cut stream differs between proxies; a stream that has nothing to say sends words without news."""
    cuts = [grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED]
    pb2, asked, lost = library.job_pb2, [], []

    class Jobs(library.job_pb2_grpc.JobServiceServicer):
        def WatchJob(self, request, context):
            asked.append(request.from_revision)
            revision = len(asked)
            job = pb2.Job(job_id="j", revision=revision, state=pb2.JOB_STATE_RUNNING)
            yield pb2.WatchJobResponse()
            yield pb2.WatchJobResponse(job=job)
            yield pb2.WatchJobResponse(job=job)
            if revision <= len(cuts):
                context.abort(cuts[revision - 1], "Stream removed")
            yield pb2.WatchJobResponse(job=pb2.Job(job_id="j", revision=revision + 1, state=pb2.JOB_STATE_SUCCEEDED))

    with serve(library, Jobs()) as port, library.Client([f"127.0.0.1:{port}"]) as client:
        updates = client.watch("j", on_lost=lambda error: lost.append(error.code()))
        seen = [(job.revision, job.state) for job in updates]
    running = [(revision, pb2.JOB_STATE_RUNNING) for revision in range(1, 5)]
    assert seen == [*running, (5, pb2.JOB_STATE_SUCCEEDED)]
    assert (asked, lost) == ([0, 1, 2, 3], cuts)


def test_a_token_is_not_sent_in_the_clear_to_another_machine(library):
    """A plain server at an address that is not loopback hears nothing of it: the client speaks TLS."""
    assert library._is_loopback("127.0.0.1:1") and library._is_loopback("[::1]:1") and library._is_loopback("localhost:1")
    for address in ["192.0.2.1:7070", "lab:7070", "127.0.0.1.example.com:1"]:
        assert not library._is_loopback(address)


def test_tls_takes_the_right_roots_and_no_others(library, tmp_path):
    asked = []

    class Jobs(library.job_pb2_grpc.JobServiceServicer):
        def GetJob(self, request, context):
            asked.append(dict(context.invocation_metadata()).get("authorization"))
            return library.job_pb2.GetJobResponse(job=library.job_pb2.Job(job_id=request.job_id))

    ours, theirs = certificate(tmp_path, "ours"), certificate(tmp_path, "theirs")
    credentials = grpc.ssl_server_credentials([(ours[1].read_bytes(), ours[0].read_bytes())])
    with serve(library, Jobs(), credentials) as port:
        with library.Client([f"localhost:{port}"], library.Login(ca=ours[0], token="s3cret")) as client:
            assert client.get("uno-1").job_id == "uno-1"
        assert asked == ["Bearer s3cret"]
        for login in [library.Login(ca=theirs[0], token="s3cret"), library.Login(token="s3cret")]:
            with library.Client([f"localhost:{port}"], login) as client, pytest.raises(grpc.RpcError):
                library._jobs(client._channel()).GetJob(
                    library.job_pb2.GetJobRequest(job_id="uno-1"), timeout=10, metadata=client._metadata()
                )
    assert len(asked) == 1, "nothing got through"


def certificate(folder, name):
    """A certificate for localhost that vouches for itself, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return cert, key


@contextlib.contextmanager
def serve(library, jobs, credentials=None):
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(4))
    library.job_pb2_grpc.add_JobServiceServicer_to_server(jobs, server)
    if credentials:
        port = server.add_secure_port("localhost:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait(10)
