"""A client of Crescendo's controllers: submit, watch, cancel, list checkpoints, fetch what was trained.

It shows what a client has to take care of, and how little that is:

- several controllers are named, one of which leads: a call that finds another one goes to the next;
- a submit carries a request id that stays the same through every try, so that it submits once;
- a watch carries the revision that it has seen, so that it goes on where it was after a lost connection, or after a
  proxy has cut the stream;
- a token goes over encrypted connections, or within the machine, and nowhere else;
- a file counts as fetched when its SHA-256 is that of the registry.

The messages are generated from the protos by `generate.sh`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import pathlib
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TypeVar

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).parent / "generated"))
try:
    from crescendo.v1 import access_pb2, access_pb2_grpc, checkpoint_pb2, checkpoint_pb2_grpc, job_pb2, job_pb2_grpc
except ModuleNotFoundError as missing:
    raise SystemExit(f"{missing}: run {pathlib.Path(__file__).parent / 'generate.sh'} first") from missing

Answer = TypeVar("Answer")

#: Limit of one try of one call, seconds.
TRY_SECONDS = 10.0
#: How long a call goes on trying while no controller answers, seconds.
CALL_SECONDS = 60.0
#: How long a watch does: a controller may take its time to come back.
WATCH_SECONDS = 600.0
#: Pause between two tries: at first, and at most.
PAUSE_SECONDS = (0.2, 3.0)
#: The LoRA among a checkpoint's files.
LORA_FILE = "dit_lora.safetensors"
#: Metadata with every problem of a spec that was refused.
PROBLEMS_KEY = "crescendo-problems-bin"

#: Codes that pass: nothing leads at the moment, or the connection broke.
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED)
#: What gRPC makes of a stream that a proxy or load balancer has cut ("Stream removed", "Received RST_STREAM"). Controllers
#: never answer a watch with these.
CUT = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)
FINAL_STATES = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


class BadSpec(ValueError):
    """A job spec that was refused, with every problem at once."""

    def __init__(self, problems: Sequence[job_pb2.SpecProblem]) -> None:
        self.problems = list(problems)
        lines = [f"{p.line}:{p.column}: {p.path}: {p.message}" for p in self.problems]
        super().__init__("the spec is not valid\n" + "\n".join(lines))


class Corrupt(RuntimeError):
    """A file that is not what the registry says."""


@dataclass(frozen=True)
class Login:
    """How to reach the controllers: PEM files, and a token. None of them for a cluster that `crescendo up` runs."""

    ca: pathlib.Path | None = None
    cert: pathlib.Path | None = None
    key: pathlib.Path | None = None
    token: str | None = None

    @property
    def tls(self) -> bool:
        return self.ca is not None or self.cert is not None


class Client:
    """A cluster's controllers, `host:port` each. Not for several threads at a time."""

    def __init__(self, controllers: Sequence[str], login: Login = Login()) -> None:
        if not controllers:
            raise ValueError("name at least one controller")
        self._login = login
        self._channels = [_open(address, login) for address in controllers]
        self._current = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()

    def whoami(self) -> access_pb2.WhoAmIResponse:
        """Who this client is to the controller, and where the cluster keeps its objects."""
        return self._call(
            lambda channel, **options: access_pb2_grpc.AccessServiceStub(channel).WhoAmI(
                access_pb2.WhoAmIRequest(), **options
            )
        )

    def submit(self, spec_yaml: bytes, request_id: str | None = None) -> job_pb2.Job:
        """Submits a spec once, however often it has to be sent. The same request id gives the same job."""
        request = job_pb2.SubmitJobRequest(request_id=request_id or str(uuid.uuid4()), spec_yaml=spec_yaml)
        try:
            return self._call(lambda channel, **options: _jobs(channel).SubmitJob(request, **options)).job
        except grpc.RpcError as error:
            problems = _problems(error)
            if problems:
                raise BadSpec(problems) from error
            raise

    def get(self, job_id: str) -> job_pb2.Job:
        request = job_pb2.GetJobRequest(job_id=job_id)
        return self._call(lambda channel, **options: _jobs(channel).GetJob(request, **options)).job

    def explain(self, job_id: str) -> job_pb2.ExplainJobResponse:
        """Why the job is where it is, and what it would take."""
        request = job_pb2.ExplainJobRequest(job_id=job_id)
        return self._call(lambda channel, **options: _jobs(channel).ExplainJob(request, **options))

    def cancel(self, job_id: str, reason: str = "cancelled from Python") -> job_pb2.Job:
        request = job_pb2.CancelJobRequest(job_id=job_id, reason=reason)
        return self._call(lambda channel, **options: _jobs(channel).CancelJob(request, **options)).job

    def watch(
        self,
        job_id: str,
        patience_seconds: float = WATCH_SECONDS,
        on_lost: Callable[[grpc.RpcError | None], None] = lambda _: None,
    ) -> Iterator[job_pb2.Job]:
        """Yields the job now and at every change, until it has ended; through restarts of the controller.

        `on_lost` is called each time that the stream breaks off. Raises the last error once nothing has been heard for
        `patience_seconds`.
        """
        revision = 0
        last: job_pb2.Job | None = None
        lost_at: float | None = None
        pause = PAUSE_SECONDS[0]
        while True:
            error: grpc.RpcError | None = None
            try:
                # From the revision that was seen: what is known already is not sent again.
                request = job_pb2.WatchJobRequest(job_id=job_id, from_revision=revision)
                for update in _jobs(self._channel()).WatchJob(request, metadata=self._metadata()):
                    lost_at, pause = None, PAUSE_SECONDS[0]
                    # Nothing is new: a word that keeps proxies from taking the stream for dead.
                    if not update.HasField("job") or update.job == last:
                        continue
                    last = update.job
                    revision = max(revision, update.job.revision)
                    yield update.job
                    if update.job.state in FINAL_STATES:
                        return
            except grpc.RpcError as broken:
                if broken.code() not in (*PASSING, *CUT):
                    raise
                error = broken
            on_lost(error)
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > patience_seconds:
                raise error or TimeoutError(f"no controller answers for {patience_seconds} s")
            self._turn()
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS[1])

    def checkpoints(self, job_id: str, stage: str = "") -> list[checkpoint_pb2.Checkpoint]:
        """The job's checkpoints, oldest first; of one stage, or of all."""
        request = checkpoint_pb2.ListCheckpointsRequest(job_id=job_id, stage=stage)
        answer = self._call(
            lambda channel, **options: checkpoint_pb2_grpc.CheckpointServiceStub(channel).ListCheckpoints(
                request, **options
            )
        )
        return list(answer.checkpoints)

    def final_checkpoint(self, job_id: str) -> checkpoint_pb2.Checkpoint:
        """The last stage's final checkpoint: what the job was for."""
        last_stage = self.get(job_id).stages[-1].name
        for checkpoint in reversed(self.checkpoints(job_id, last_stage)):
            if checkpoint.final and not checkpoint.damaged:
                return checkpoint
        raise LookupError(f"job {job_id} has no final checkpoint of {last_stage} yet")

    def fetch_lora(self, job_id: str, to: pathlib.Path, object_store: str | None = None) -> pathlib.Path:
        """Fetches the trained LoRA out of the object store: that of the cluster, unless another URL is given."""
        checkpoint = self.final_checkpoint(job_id)
        return fetch(checkpoint, LORA_FILE, to, object_store or self.whoami().object_store_url)

    def _call(self, call: Callable[..., Answer]) -> Answer:
        """Calls until there is an answer or a refusal. What is called must not mind to be called twice."""
        end = time.monotonic() + CALL_SECONDS
        pause = PAUSE_SECONDS[0]
        while True:
            try:
                return call(self._channel(), timeout=TRY_SECONDS, metadata=self._metadata())
            except grpc.RpcError as error:
                if error.code() not in PASSING or time.monotonic() + pause > end:
                    raise
            self._turn()
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS[1])

    def _channel(self) -> grpc.Channel:
        return self._channels[self._current % len(self._channels)]

    def _turn(self) -> None:
        """The next call goes to another controller, if there is one."""
        self._current += 1

    def _metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self._login.token}")] if self._login.token else []


def _jobs(channel: grpc.Channel) -> job_pb2_grpc.JobServiceStub:
    return job_pb2_grpc.JobServiceStub(channel)


def _open(address: str, login: Login) -> grpc.Channel:
    options = [("grpc.keepalive_time_ms", 20_000), ("grpc.max_receive_message_length", 64 << 20)]
    loopback = _is_loopback(address)
    if not login.tls and (login.token is None or loopback):
        return grpc.insecure_channel(address, options)

    def read(path: pathlib.Path | None) -> bytes | None:
        return path.read_bytes() if path else None

    # Without roots of our own, those of the system.
    credentials = grpc.ssl_channel_credentials(read(login.ca), read(login.key), read(login.cert))
    return grpc.secure_channel(address, credentials, options)


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _problems(error: grpc.RpcError) -> list[job_pb2.SpecProblem]:
    for key, value in error.trailing_metadata() or ():
        if key == PROBLEMS_KEY:
            return list(job_pb2.SpecProblems.FromString(value).problems)
    return []


def fetch(checkpoint: checkpoint_pb2.Checkpoint, name: str, to: pathlib.Path, object_store: str) -> pathlib.Path:
    """Copies a checkpoint's file to `to`, if it is what the registry says: size and SHA-256. Nothing is left of it if not."""
    listed = {file.name: file for file in checkpoint.files}
    if name not in listed:
        raise LookupError(f"{checkpoint.path} has no {name}, but {', '.join(sorted(listed))}")
    wanted = listed[name]
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_name(f"{to.name}.{os.getpid()}.part")
    try:
        with _object(object_store, f"{checkpoint.path}/{name}") as source, part.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        with part.open("rb") as copied:
            found = hashlib.file_digest(copied, "sha256").hexdigest()
        if (part.stat().st_size, found) != (wanted.size_bytes, wanted.sha256):
            raise Corrupt(
                f"{name} of {checkpoint.path} has SHA-256 {found} and {part.stat().st_size} bytes; "
                f"registered are {wanted.sha256} and {wanted.size_bytes}"
            )
        # Whoever looks finds the whole file, or none.
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)
    return to


def _object(object_store: str, key: str) -> IO[bytes]:
    kind, _, root = object_store.partition("://")
    if kind == "file":
        return pathlib.Path(root, key).open("rb")
    if kind == "s3":
        try:
            import boto3
        except ImportError as missing:
            raise RuntimeError("objects in S3 are read with boto3: pip install boto3") from missing
        bucket, _, prefix = root.partition("/")
        # Keys, region and endpoint come from the environment (AWS_...), as boto3 looks for them.
        return boto3.client("s3").get_object(Bucket=bucket, Key="/".join(filter(None, [prefix, key])))["Body"]
    raise ValueError(f"object store {object_store}: only file:// and s3:// are known")
