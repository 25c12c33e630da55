"""What the Python client makes of played controllers that are not there, refuse, break off or say nothing."""

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import crescendo
import grpc
import pytest
from crescendo import Client, JobState, PairMarks, _wire
from crescendo._token import TokenSource
from crescendo.v1 import (
    access_pb2,
    access_pb2_grpc,
    checkpoint_pb2,
    checkpoint_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    object_pb2,
    object_pb2_grpc,
    review_pb2,
    review_pb2_grpc,
    sample_pb2,
    sample_pb2_grpc,
)

Code = grpc.StatusCode


@contextlib.contextmanager
def serve(*services, credentials=None):
    server = grpc.server(ThreadPoolExecutor(8))
    for service in services:
        for module in (
            access_pb2_grpc,
            checkpoint_pb2_grpc,
            job_pb2_grpc,
            node_pb2_grpc,
            object_pb2_grpc,
            review_pb2_grpc,
            sample_pb2_grpc,
        ):
            for name in dir(module):
                if name.endswith("Servicer") and isinstance(service, getattr(module, name)):
                    getattr(module, f"add_{name}_to_server")(service, server)
    port = (
        server.add_secure_port("localhost:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
    )
    server.start()
    try:
        yield f"{'localhost' if credentials else '127.0.0.1'}:{port}"
    finally:
        server.stop(None).wait(10)


class Jobs(job_pb2_grpc.JobServiceServicer):
    """Answers each call to get a job by the next of `answers`, or else with the job; keeps what was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def GetJob(self, request, context):
        self.asked.append(dict(context.invocation_metadata()).get("authorization"))
        if self.answers:
            code, *trailers = self.answers.pop(0)
            context.set_trailing_metadata(trailers)
            context.abort(code, f"no, {code.name}")
        return job_pb2.GetJobResponse(job=job_pb2.Job(job_id=request.job_id))


def test_the_next_controller_is_asked_when_one_is_not_there():
    """A standby and a machine that is gone look alike: the call passes on, and the next begins there."""
    standby, leader = Jobs((Code.UNAVAILABLE,)), Jobs()
    with serve(standby) as second, serve(leader) as third:
        with Client(["127.0.0.1:1", second, third], token="s3cret") as client:
            assert client.get("uno-1").job_id == client.get("uno-1").job_id == "uno-1"
        with Client(f"127.0.0.1:1, {third}") as client:
            assert client.get("uno-1").job_id == "uno-1"
    assert (standby.asked, leader.asked) == (["Bearer s3cret"], ["Bearer s3cret"] * 2 + [None])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.INVALID_ARGUMENT, crescendo.InvalidRequestError),
        (Code.NOT_FOUND, crescendo.NotFoundError),
        (Code.ALREADY_EXISTS, crescendo.AlreadyExistsError),
        (Code.UNAUTHENTICATED, crescendo.NotLoggedInError),
        (Code.PERMISSION_DENIED, crescendo.NotAllowedError),
        (Code.FAILED_PRECONDITION, crescendo.WrongStateError),
        (Code.UNIMPLEMENTED, crescendo.NotSupportedError),
        (Code.DATA_LOSS, crescendo.CrescendoError),
    ],
)
def test_a_refusal_is_an_error_of_its_kind_at_once(code, kind):
    jobs = Jobs((code,))
    with serve(jobs) as address, Client(address) as client:
        with pytest.raises(crescendo.CrescendoError, match=f"^no, {code.name}$") as refused:
            client.get("uno-1")
    assert len(jobs.asked) == 1
    assert type(refused.value) is kind and refused.value.code == code.name
    assert isinstance(refused.value.__cause__, grpc.RpcError)


@pytest.mark.parametrize(
    "code",
    [Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.CANCELLED, Code.INTERNAL, Code.UNKNOWN]
    + [Code.RESOURCE_EXHAUSTED],
)
def test_what_passes_is_tried_again(code):
    jobs = Jobs((code,), (code,))
    with serve(jobs) as address, Client(address) as client:
        assert client.get("uno-1").job_id == "uno-1"
    assert len(jobs.asked) == 3


def test_a_call_does_not_try_for_ever():
    began = time.monotonic()
    with Client(["127.0.0.1:1", "127.0.0.1:2"], timeout_seconds=1, watch_timeout_seconds=1) as client:
        for call in [lambda: client.get("j"), lambda: next(client.watch("j")), lambda: list(client.logs("j"))]:
            with pytest.raises(crescendo.UnavailableError, match=r"127\.0\.0\.1:1, 127\.0\.0\.1:2 cannot be reached"):
                call()
    assert time.monotonic() - began < 10


def test_a_wait_that_the_server_asks_for_is_kept_or_told():
    soon, late = ("crescendo-retry-after-millis", "700"), ("crescendo-retry-after-millis", "90000")
    jobs = Jobs((Code.RESOURCE_EXHAUSTED, soon), (Code.RESOURCE_EXHAUSTED, late))
    with serve(jobs) as address, Client(address, timeout_seconds=5) as client:
        began = time.monotonic()
        with pytest.raises(crescendo.BusyError, match="no, RESOURCE_EXHAUSTED") as refused:
            client.get("uno-1")
    assert refused.value.retry_after_seconds == 90 and 0.7 <= time.monotonic() - began < 4


def test_a_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(_wire, "TRY_SECONDS", 1.0)
    release = threading.Event()

    class Hanging(Jobs):
        def GetJob(self, request, context):
            release.wait(20)
            return super().GetJob(request, context)

    healthy = Jobs()
    with serve(Hanging()) as first, serve(healthy) as second, Client([first, second]) as client:
        began = time.monotonic()
        assert client.get("uno-1").job_id == "uno-1"
        assert time.monotonic() - began < 5
        release.set()


def job(revision, state=job_pb2.JOB_STATE_RUNNING):
    return job_pb2.Job(job_id="j", revision=revision, state=state)


class Watched(job_pb2_grpc.JobServiceServicer):
    """Each stream gives what the next of `streams` has: updates, None for a word without news, a code to break off."""

    def __init__(self, *streams):
        self.streams, self.asked = list(streams), []

    def WatchJob(self, request, context):
        self.asked.append(request.from_revision)
        for one in self.streams.pop(0):
            if isinstance(one, Code):
                context.abort(one, "Stream removed")
            if callable(one):
                one()
                continue
            yield job_pb2.WatchJobResponse(job=one)


def test_a_watch_takes_up_where_it_was():
    """What gRPC makes of a cut stream differs between proxies; a stream without news sends words, or repeats some."""
    cuts = [Code.UNAVAILABLE, Code.UNKNOWN, Code.INTERNAL, Code.CANCELLED]
    ended = job(6, job_pb2.JOB_STATE_SUCCEEDED)
    streams = [[None, job(at + 1), job(at + 1), cut] for at, cut in enumerate(cuts)]
    watched, lost = Watched(*streams, [job(5)], [job(5), ended, job(7)]), []
    with serve(watched) as address, Client(address) as client:
        seen = [(job.revision, job.state) for job in client.watch("j", on_lost=lost.append)]
    assert seen == [*((at, JobState.RUNNING) for at in range(1, 6)), (6, JobState.SUCCEEDED)]
    assert watched.asked == [0, 1, 2, 3, 4, 5]
    assert [error.code for error in lost] == [*(cut.name for cut in cuts), ""]


def test_a_watch_begins_at_a_revision_and_ends_with_its_reader():
    gone = threading.Event()

    class Closed(Watched):
        def WatchJob(self, request, context):
            context.add_callback(gone.set)
            yield from super().WatchJob(request, context)

    watched = Closed([job(8), lambda: gone.wait(20)])
    with serve(watched) as address, Client(address) as client:
        updates = client.watch("j", from_revision=7)
        assert next(updates).revision == 8 and not gone.is_set()
        updates.close()
        assert gone.wait(5), "the server is told that nobody reads any more"
    assert watched.asked == [7]


def test_a_stream_that_says_nothing_any_more_is_taken_up_again(monkeypatch):
    monkeypatch.setattr(_wire, "SILENCE_SECONDS", 2.0)
    release, lost = threading.Event(), []
    watched = Watched([job(1), lambda: release.wait(20)], [job(2, job_pb2.JOB_STATE_CANCELLED)])
    with serve(watched) as address, Client(address) as client:
        assert [job.revision for job in client.watch("j", on_lost=lost.append)] == [1, 2]
        release.set()
    assert [str(error) for error in lost] == ["nothing has come for 2 s"]


def test_a_reader_that_takes_its_time_loses_nothing(monkeypatch):
    """Only what the client itself waits for counts as silence."""
    monkeypatch.setattr(_wire, "SILENCE_SECONDS", 1.0)
    lost = []
    with serve(Watched([job(1), job(2), job(3, job_pb2.JOB_STATE_FAILED)])) as address, Client(address) as client:
        for _ in client.watch("j", on_lost=lost.append):
            time.sleep(1.5)
    assert lost == []


def test_lines_of_a_log_are_told_once():
    """A stream that is taken up again begins before what was read; lines of two nodes may be out of their order."""

    def line(nanos, node="a", text="x"):
        made = job_pb2.LogLine(job_id="j", node_id=node, message=text, rank=-1)
        made.at.FromNanoseconds(nanos)
        return made

    first = [line(5), line(5, "b"), line(5, "b", "y"), line(9)]
    # The first breaks off, the second ends as one does whose controller stops; the third ends with the job.
    streams = [[*first, Code.UNAVAILABLE], [line(3), *first, line(7, "b"), line(9, "b")], [*first, None, line(12)]]
    states = [job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED]

    class Logs(job_pb2_grpc.JobServiceServicer):
        asked = []

        def ReadLogs(self, request, context):
            self.asked.append((request.tail_lines, request.follow))
            for one in streams.pop(0):
                if isinstance(one, Code):
                    context.abort(one, "leaving")
                yield job_pb2.ReadLogsResponse(line=one)

        def GetJob(self, request, context):
            return job_pb2.GetJobResponse(job=job(9, states.pop(0)))

    with serve(Logs()) as address, Client(address) as client:
        lines = list(client.logs("j", tail=4, follow=True))
    assert [(line.raw.at.nanos, line.node_id, line.message) for line in lines] == [
        (5, "a", "x"), (5, "b", "x"), (5, "b", "y"), (9, "a", "x"), (7, "b", "x"), (9, "b", "x"), (12, "a", "x"),
    ]  # fmt: skip
    assert lines[0].rank is None and lines[0].at.year == 1970
    assert Logs.asked == [(4, True), (10_000, True), (10_000, True)] and states == []


def test_jobs_are_listed_over_pages():
    asked = []

    class Pages(job_pb2_grpc.JobServiceServicer):
        def ListJobs(self, request, context):
            asked.append((request.page_size, request.page_token, list(request.states)))
            start = int(request.page_token or 0)
            size = min(request.page_size, 3)
            jobs = [job_pb2.Job(job_id=f"j-{at}") for at in range(start, min(start + size, 7))]
            return job_pb2.ListJobsResponse(jobs=jobs, next_page_token=str(start + size) if start + size < 7 else "")

    with serve(Pages()) as address, Client(address) as client:
        assert [job.job_id for job in client.list(states=["failed"])] == [f"j-{at}" for at in range(7)]
        assert len(client.list(limit=4)) == 4
    failed = [job_pb2.JOB_STATE_FAILED]
    assert asked == [(500, "", failed), (500, "3", failed), (500, "6", failed), (4, "", []), (1, "3", [])]


class Files(
    object_pb2_grpc.ObjectServiceServicer,
    checkpoint_pb2_grpc.CheckpointServiceServicer,
    access_pb2_grpc.AccessServiceServicer,
):
    """One file in the store of other machines: each stream gives so many bytes of it, then breaks off if told to."""

    content = os.urandom(300_000)

    def __init__(self, *streams):
        self.streams, self.opened = list(streams), 0

    def WhoAmI(self, request, context):
        return access_pb2.WhoAmIResponse(object_store_url="file:///nowhere")

    def ListCheckpoints(self, request, context):
        file = checkpoint_pb2.CheckpointFile(
            name="model.safetensors", size_bytes=len(self.content), sha256=hashlib.sha256(self.content).hexdigest()
        )
        checkpoint = checkpoint_pb2.Checkpoint(job_id="j", stage="s", step=1, path="jobs/j/s/1", files=[file])
        return checkpoint_pb2.ListCheckpointsResponse(checkpoints=[checkpoint])

    def ReadCheckpointFile(self, request, context):
        self.opened += 1
        came, code = self.streams.pop(0)
        yield object_pb2.ReadCheckpointFileResponse(file=checkpoint_pb2.CheckpointFile(name=request.name))
        for at in range(0, came, 100_000):
            yield object_pb2.ReadCheckpointFileResponse(chunk=self.content[at : min(at + 100_000, came)])
        if code:
            context.abort(code, "the curator has gone")


def test_a_file_that_breaks_off_is_begun_again(tmp_path):
    files = Files((0, Code.UNAVAILABLE), (200_000, Code.UNAVAILABLE), (250_000, None), (300_000, None))
    with serve(files) as address, Client(address) as client:
        assert client.fetch("j", tmp_path / "x").read_bytes() == files.content
    assert files.opened == 4


def test_a_file_that_always_breaks_off_is_given_up(tmp_path):
    files = Files(*[(200_000, Code.UNAVAILABLE)] * 9)
    with serve(files) as address, Client(address) as client:
        with pytest.raises(crescendo.UnavailableError, match="the curator has gone"):
            client.fetch("j", tmp_path / "x")
    assert files.opened == 5 and not list(tmp_path.iterdir())


def test_a_refused_file_leaves_nothing(tmp_path):
    with serve(Files((100_000, Code.NOT_FOUND))) as address, Client(address) as client:
        with pytest.raises(crescendo.NotFoundError, match="the curator has gone"):
            client.fetch("j", tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "token", "ca", "expected"),
    [
        ("lab:7070", False, False, ("lab:7070", False)),
        ("lab:7070", True, False, ("lab:7070", True)),
        ("lab:7070", False, True, ("lab:7070", True)),
        ("https://lab:7070/", False, False, ("lab:7070", True)),
        ("http://lab:7070", False, False, ("lab:7070", False)),
        ("http://lab:7070", True, False, "not be encrypted"),
        ("http://lab:7070", False, True, "leave one of them out"),
        ("127.0.0.1:1", True, False, ("127.0.0.1:1", False)),
        ("[::1]:1", True, False, ("[::1]:1", False)),
        ("localhost:1", True, False, ("localhost:1", False)),
        ("192.0.2.1:1", True, False, ("192.0.2.1:1", True)),
        ("127.0.0.1.example.com:1", True, False, ("127.0.0.1.example.com:1", True)),
        ("lab", False, False, "port is missing"),
        (":1", False, False, "there must be a host"),
        ("lab:70707", False, False, "up to 65535"),
        ("lab:a", False, False, "up to 65535"),
        ("me@lab:1", False, False, "there must be a host"),
        ("ftp://lab:1", False, False, "only http"),
    ],
)
def test_a_token_is_not_sent_in_the_clear_to_another_machine(address, token, ca, expected):
    files = _wire.Files("/ca.pem" if ca else None, None, None)
    if isinstance(expected, tuple):
        assert _wire.place(address, files, token) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            _wire.place(address, files, token)


def test_tls_takes_the_right_roots_and_no_others(tmp_path):
    jobs = Jobs()
    ours, theirs = certificate(tmp_path, "ours"), certificate(tmp_path, "theirs")
    credentials = grpc.ssl_server_credentials([(ours[1].read_bytes(), ours[0].read_bytes())])
    with serve(jobs, credentials=credentials) as address:
        with Client(address, ca=ours[0], token="s3cret") as client:
            assert client.get("uno-1").job_id == "uno-1"
        assert jobs.asked == ["Bearer s3cret"]
        for roots in (theirs[0], None):
            with Client(f"https://{address}", ca=roots, token="s3cret", timeout_seconds=1) as client:
                with pytest.raises(crescendo.UnavailableError):
                    client.get("uno-1")
    assert len(jobs.asked) == 1, "nothing got through"


def test_a_certificate_is_a_login(tmp_path):
    server, caller = certificate(tmp_path, "server"), certificate(tmp_path, "caller")
    credentials = grpc.ssl_server_credentials(
        [(server[1].read_bytes(), server[0].read_bytes())], caller[0].read_bytes(), require_client_auth=True
    )
    with serve(Jobs(), credentials=credentials) as address:
        with Client(address, ca=server[0], cert=caller[0], key=caller[1]) as client:
            assert client.get("uno-1").job_id == "uno-1"
        with Client(address, ca=server[0], timeout_seconds=1) as client, pytest.raises(crescendo.UnavailableError):
            client.get("uno-1")
    with pytest.raises(ValueError, match="both of cert and key"):
        Client("lab:1", cert=caller[0])


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


def test_a_token_comes_from_a_file_that_is_closed_or_from_a_program(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    file.chmod(0o644)
    with pytest.raises(crescendo.NotLoggedInError, match="chmod 600"):
        TokenSource(None, file, None).read()
    for mode in (0o600, 0o440):
        file.chmod(mode)
        assert TokenSource(None, file, None).read() == "s3cret"
    with pytest.raises(crescendo.NotLoggedInError, match="cannot be read"):
        TokenSource(None, tmp_path / "none", None).read()

    def printed(code):
        return TokenSource(None, None, [sys.executable, "-c", code]).read()

    assert printed("print('s3cret')") == "s3cret"
    count = tmp_path / "count"
    counting = TokenSource(None, None, ["sh", "-c", f"echo x >>{count}; echo s3cret"])
    assert counting.read() == counting.read() == "s3cret" and count.read_text() == "x\n", "it is kept for a while"
    monkeypatch.setattr("crescendo._token._KEPT_SECONDS", 0.0)
    assert counting.read() == "s3cret" and count.read_text() == "x\nx\n"
    for code, words in [("exit(3)", "failed with 3"), ("print('a b')", "one word of visible ASCII"), ("", "is empty")]:
        with pytest.raises(crescendo.NotLoggedInError, match=words):
            printed(code)
    with pytest.raises(crescendo.NotLoggedInError, match="cannot be started"):
        TokenSource(None, None, ["/nowhere/x"]).read()
    monkeypatch.setattr("crescendo._token._PROGRAM_SECONDS", 0.2)
    with pytest.raises(crescendo.NotLoggedInError, match="did not end"):
        printed("import time; time.sleep(20)")
    for bad in ({"token": "a", "token_file": "b"}, {"token_command": "echo"}, {"token_command": []}):
        with pytest.raises(ValueError, match="token"):
            Client("127.0.0.1:1", **bad)


def test_a_token_that_was_refused_is_read_again(tmp_path):
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("old")
    jobs = Jobs((Code.UNAUTHENTICATED,))
    with serve(jobs) as address, Client(address, token_file=file) as client:
        with pytest.raises(crescendo.NotLoggedInError):
            client.get("uno-1")
        file.write_text("new")
        assert client.get("uno-1").job_id == client.get("uno-1").job_id == "uno-1"
    assert jobs.asked == ["Bearer old", "Bearer new", "Bearer new"]


def test_the_variables_of_the_command_line_count(tmp_path):
    jobs = Jobs()
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("of-the-file")
    with serve(jobs) as address:
        for variables in (
            {},
            {"CRESCENDO_TOKEN": "given"},
            {"CRESCENDO_TOKEN": "x", "CRESCENDO_TOKEN_FILE": str(file)},
        ):
            with Client.from_environment({"CRESCENDO_CONTROLLER": f"127.0.0.1:1,{address}", **variables}) as client:
                client.get("uno-1")
    assert jobs.asked == [None, "Bearer given", "Bearer of-the-file"]
    with pytest.raises(ValueError, match="CRESCENDO_CONTROLLER is not set"):
        Client.from_environment({})


def test_several_threads_share_a_client():
    with serve(Jobs()) as address, Client(["127.0.0.1:1", address]) as client, ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda at: client.get(f"j-{at}").job_id, range(64)))) == 64


def test_what_is_wanted_of_a_job_arrives_as_it_was_said():
    asked = []

    class Steered(job_pb2_grpc.JobServiceServicer):
        def __getattribute__(self, name):
            if name not in ("PauseJob", "ResumeJob", "RetryJob", "CancelJob", "NoteJob"):
                return super().__getattribute__(name)
            answer = getattr(job_pb2, f"{name}Response")
            return lambda request, _: asked.append(request) or answer(job=job_pb2.Job(job_id=request.job_id))

    with serve(Steered()) as address, Client(address) as client:
        told = client.pause("j", "lunch", keep_curating=True)
        for do in (client.pause, client.resume, client.retry, client.cancel):
            assert do(told).job_id == "j"
        client.cancel("j", "enough")
        client.note("j", "it looks right")
    assert asked == [
        job_pb2.PauseJobRequest(job_id="j", reason="lunch", keep_curating=True),
        job_pb2.PauseJobRequest(job_id="j"),
        job_pb2.ResumeJobRequest(job_id="j"),
        job_pb2.RetryJobRequest(job_id="j"),
        job_pb2.CancelJobRequest(job_id="j"),
        job_pb2.CancelJobRequest(job_id="j", reason="enough"),
        job_pb2.NoteJobRequest(job_id="j", text="it looks right"),
    ]


def test_pairs_are_marked_and_the_marks_are_read():
    asked = []

    class Marked(review_pb2_grpc.ReviewServiceServicer):
        def MarkPairs(self, request, context):
            asked.append(request)
            marks = [] if request.undo else [review_pb2.PairMark(index=7, by="ada", reason=request.reason)]
            return review_pb2.MarkPairsResponse(marks=review_pb2.PairMarkList(version=len(asked), marks=marks))

        def ListPairMarks(self, request, context):
            return review_pb2.ListPairMarksResponse(marks=review_pb2.PairMarkList(version=9))

    with serve(Marked()) as address, Client(address) as client:
        marked = client.mark_pairs("j", "stage-1", [7], "blurred")
        assert [(mark.index, mark.by, mark.reason, mark.at) for mark in marked.marks] == [(7, "ada", "blurred", None)]
        assert client.unmark_pairs("j", "stage-1", (7,)) == PairMarks(version=2, marks=())
        assert client.pair_marks("j", "stage-1").version == 9
    assert asked == [
        review_pb2.MarkPairsRequest(job_id="j", stage="stage-1", indices=[7], reason="blurred"),
        review_pb2.MarkPairsRequest(job_id="j", stage="stage-1", indices=[7], undo=True),
    ]


def test_samples_are_listed_with_their_losses():
    class Drawn(sample_pb2_grpc.SampleServiceServicer):
        def ListSamples(self, request, context):
            assert (request.job_id, request.stage) == ("j", "stage-1")
            loss = sample_pb2.ValidationLoss(mean=0.5, pairs=8, times=[0.25, 0.75], losses=[0.25, 0.75])
            drawn = sample_pb2.Sampling(job_id="j", step=0, state=sample_pb2.SAMPLING_STATE_DRAWN, validation=loss)
            waits = sample_pb2.Sampling(job_id="j", step=40, state=sample_pb2.SAMPLING_STATE_WANTED, reason="no memory")
            return sample_pb2.ListSamplesResponse(samplings=[drawn, waits])

    with serve(Drawn()) as address, Client(address) as client:
        drawn, waits = client.samples("j", "stage-1")
    assert (drawn.state, drawn.validation.by_time, drawn.drawn_at) == ("drawn", {0.25: 0.25, 0.75: 0.75}, None)
    assert (waits.state, waits.step, waits.reason, waits.validation) == ("wanted", 40, "no memory", None)


def test_notes_are_read_and_a_job_goes_on_with_what_the_controller_plans():
    asked = []

    class Ended(job_pb2_grpc.JobServiceServicer):
        def GetJob(self, request, context):
            noted = job_pb2.JobNote(by="ada", text="it looks right")
            noted.at.FromSeconds(1_770_000_000)
            return job_pb2.GetJobResponse(job=job_pb2.Job(job_id=request.job_id, notes=[noted]))

        def PlanContinuation(self, request, context):
            if request.job_id == "runs":
                context.abort(Code.FAILED_PRECONDITION, "job runs is running, and goes on by itself")
            asked.append(request)
            return job_pb2.PlanContinuationResponse(spec_yaml="kind: TrainingJob")

        def SubmitJob(self, request, context):
            asked.append(request)
            return job_pb2.SubmitJobResponse(job=job_pb2.Job(job_id="more-1"))

    with serve(Ended()) as address, Client(address) as client:
        (note,) = client.get("j").notes
        assert (note.by, note.text, note.at.year) == ("ada", "it looks right", 2026)
        assert client.continue_job("j", 200, name="more", request_id="r-1").job_id == "more-1"
        with pytest.raises(crescendo.WrongStateError, match="goes on by itself"):
            client.continue_job("runs", 200)
    assert asked == [
        job_pb2.PlanContinuationRequest(job_id="j", steps=200, name="more"),
        job_pb2.SubmitJobRequest(request_id="r-1", spec_yaml=b"kind: TrainingJob"),
    ]


def test_a_node_is_drained_and_forgotten_by_its_name_or_as_it_was_listed():
    asked = []

    class Nodes(node_pb2_grpc.NodeServiceServicer):
        def ListNodes(self, request, context):
            node = node_pb2.Node(node_id="t-1", device="cuda", device_memory_bytes=85_000_000_000)
            return node_pb2.ListNodesResponse(nodes=[node, node_pb2.Node(node_id="c-1")])

        def DrainNode(self, request, context):
            asked.append(request)
            return node_pb2.DrainNodeResponse(node=node_pb2.Node(node_id=request.node_id, draining=not request.undo))

        def ForgetNode(self, request, context):
            asked.append(request)
            return node_pb2.ForgetNodeResponse()

    with serve(Nodes()) as address, Client(address) as client:
        first, second = client.nodes()
        assert (first.device_memory_bytes, second.device_memory_bytes) == (85_000_000_000, None)
        assert client.drain(first).draining and not client.drain("t-1", undo=True).draining
        client.forget_node(second)
    assert asked == [
        node_pb2.DrainNodeRequest(node_id="t-1"),
        node_pb2.DrainNodeRequest(node_id="t-1", undo=True),
        node_pb2.ForgetNodeRequest(node_id="c-1"),
    ]


def test_a_pause_that_takes_too_long_is_told():
    class Stuck(job_pb2_grpc.JobServiceServicer):
        def PauseJob(self, request, context):
            return job_pb2.PauseJobResponse(job=self.job())

        def GetJob(self, request, context):
            return job_pb2.GetJobResponse(job=self.job())

        def job(self):
            return job_pb2.Job(job_id="j", state=job_pb2.JOB_STATE_PAUSED, slots_held=2)

    with serve(Stuck()) as address, Client(address) as client:
        assert client.pause("j").slots_held == 2
        with pytest.raises(TimeoutError, match="still holds 2 slots"):
            client.pause("j", wait=True, timeout_seconds=0.6)


def test_what_a_newer_controller_says_is_unknown_and_no_failure():
    class Newer(job_pb2_grpc.JobServiceServicer):
        def GetJob(self, request, context):
            return job_pb2.GetJobResponse(job=job_pb2.Job(job_id="j", state=77, stages=[job_pb2.StageStatus(phase=77)]))

    with serve(Newer()) as address, Client(address) as client:
        job = client.get("j")
    assert (job.state, job.stages[0].phase, job.stages[0].loss, job.finished_at) == ("unknown", "unknown", None, None)
    assert not job.state.is_final
