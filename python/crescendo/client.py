"""The client: what people and scripts do with a cluster."""

from __future__ import annotations

import builtins
import json
import os
import pathlib
import tempfile
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import grpc
import yaml

from crescendo import _matrix, _objects, comparison
from crescendo._token import TokenSource
from crescendo._wire import Files, Patience, Wire
from crescendo.errors import CrescendoError, CutShortError, InvalidRequestError, InvalidSpecError, TimedOutError
from crescendo.records import (
    Checkpoint,
    CheckpointFile,
    Deletion,
    DeletionPreview,
    Explanation,
    Identity,
    Job,
    JobState,
    Lineage,
    LogLine,
    Node,
    PairMarks,
    Problem,
    Queues,
    Sampling,
    SubmittedJob,
    Usage,
    Validation,
)
from crescendo.v1 import (
    access_pb2,
    access_pb2_grpc,
    checkpoint_pb2,
    checkpoint_pb2_grpc,
    deletion_pb2,
    job_pb2,
    job_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    object_pb2,
    object_pb2_grpc,
    queue_pb2,
    queue_pb2_grpc,
    review_pb2,
    review_pb2_grpc,
    sample_pb2,
    sample_pb2_grpc,
)

#: A job, or its id.
JobOrId = Job | str
#: A spec: its text, a file with it, or what a file would hold.
Spec = str | bytes | os.PathLike[str] | Mapping[str, object]

#: How long a pause is waited for: a little longer than the controller lets ranks save, seconds.
LEAVE_SECONDS = 330.0
#: Between two looks at whether the ranks have left, seconds.
_LOOK_SECONDS = 0.5
#: At least so long a preview of a deletion goes on: a curator counts, seconds.
_COUNT_SECONDS = 90.0
#: Most jobs of a page.
_PAGE = 500
#: Most lines that a controller hands out at once, and those that a reader remembers.
_MOST_LINES = 10_000
_REMEMBERED_LINES = 2 * _MOST_LINES
#: Times that a file is begun again after some of it has come.
_MOST_BREAKS = 5
#: Largest history that is fetched for a comparison: some 400,000 steps.
_MOST_HISTORY_BYTES = 64 << 20


class Client:
    """A cluster's controllers. For several threads at a time; not to be taken over a fork.

    A call that finds a standby, or nobody, goes on to the next controller, for `timeout_seconds` in all. Calls that
    change something may be sent more than once, and none of them minds.
    """

    def __init__(
        self,
        controllers: str | Sequence[str],
        *,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        token_command: Sequence[str] | None = None,
        timeout_seconds: float = 60.0,
        watch_timeout_seconds: float = 600.0,
    ) -> None:
        """Connects when something is first asked.

        controllers: host:port, one or several; in a text several are separated by commas.
        ca: root certificates that vouch for the controllers, PEM; without it those that gRPC brings.
        cert, key: certificate to log in with, PEM; instead of a token.
        token, token_file, token_command: at most one of them. A file, and what a program prints, are read again every
            two minutes. A token goes over encrypted connections, or within this machine, and nowhere else.
        timeout_seconds: how long a call goes on trying while no controller answers.
        watch_timeout_seconds: the same for what is followed (watch, logs).

        Raises ValueError for an address that is none, and for a token that would not be encrypted.
        """
        addresses = controllers.split(",") if isinstance(controllers, str) else list(controllers)
        source = TokenSource(token, token_file, token_command)
        self._wire = Wire([address.strip() for address in addresses], Files(ca, cert, key), source)
        self._timeout = timeout_seconds
        self._watch_timeout = watch_timeout_seconds

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Client:
        """By the command line's variables: CRESCENDO_CONTROLLER, _TLS_CA, _TLS_CERT, _TLS_KEY, _TOKEN, _TOKEN_FILE.

        A token file goes before a token. Raises ValueError without CRESCENDO_CONTROLLER.
        """
        variables = os.environ if environment is None else environment

        def get(name: str) -> str | None:
            return variables.get(f"CRESCENDO_{name}") or None

        controllers, token_file = get("CONTROLLER"), get("TOKEN_FILE")
        if controllers is None:
            raise ValueError("CRESCENDO_CONTROLLER is not set: the controller's address, host:port")
        return cls(
            controllers,
            ca=get("TLS_CA"),
            cert=get("TLS_CERT"),
            key=get("TLS_KEY"),
            token=get("TOKEN") if token_file is None else None,
            token_file=token_file,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections."""
        self._wire.close()

    # --- The cluster -------------------------------------------------------------------------------------------------

    def whoami(self) -> Identity:
        """Who this client is to the controller, and where the cluster keeps its objects."""
        request = access_pb2.WhoAmIRequest()
        return Identity._of(
            self._wire.call(
                self._timeout,
                lambda channel, timeout, metadata: access_pb2_grpc.AccessServiceStub(channel).WhoAmI(
                    request, timeout=timeout, metadata=metadata
                ),
            )
        )

    def nodes(self) -> builtins.list[Node]:
        """The nodes that the controller knows."""
        request = node_pb2.ListNodesRequest()
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: node_pb2_grpc.NodeServiceStub(channel).ListNodes(
                request, timeout=timeout, metadata=metadata
            ),
        )
        return [Node._of(node) for node in answer.nodes]

    def drain(self, node: Node | str, *, undo: bool = False) -> Node:
        """Empties a node: it gets no new work, and what it works on goes on elsewhere. `undo` gives it work again."""
        request = node_pb2.DrainNodeRequest(node_id=_node_id(node), undo=undo)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: node_pb2_grpc.NodeServiceStub(channel).DrainNode(
                request, timeout=timeout, metadata=metadata
            ),
        )
        return Node._of(answer.node)

    def forget_node(self, node: Node | str) -> None:
        """Forgets a node that is gone for good. Raises WrongStateError while it is connected or has ranks of a gang."""
        request = node_pb2.ForgetNodeRequest(node_id=_node_id(node))
        self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: node_pb2_grpc.NodeServiceStub(channel).ForgetNode(
                request, timeout=timeout, metadata=metadata
            ),
        )

    def queues(self) -> Queues:
        """What the queues hold and wait for, and what part of the cluster each tenant has used."""
        request = queue_pb2.ListQueuesRequest()
        return Queues._of(
            self._wire.call(
                self._timeout,
                lambda channel, timeout, metadata: queue_pb2_grpc.QueueServiceStub(channel).ListQueues(
                    request, timeout=timeout, metadata=metadata
                ),
            )
        )

    def usage(self, *, from_month: str = "", to_month: str = "") -> builtins.list[Usage]:
        """Slot-seconds by tenant, month and kind of device; months are `YYYY-MM` of UTC, both bounds inclusive."""
        request = queue_pb2.ListUsageRequest(from_month=from_month, to_month=to_month)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: queue_pb2_grpc.QueueServiceStub(channel).ListUsage(
                request, timeout=timeout, metadata=metadata
            ),
        )
        return [Usage(one.tenant, one.month, one.device, one.slot_seconds) for one in answer.usage]

    # --- Jobs --------------------------------------------------------------------------------------------------------

    def submit(self, spec: Spec, *, request_id: str | None = None) -> SubmittedJob:
        """Submits a spec once, however often it has to be sent.

        The same request id (at most 128 of `[A-Za-z0-9._-]`) gives the same job: give your own to submit once over
        restarts of your program. Raises InvalidSpecError with every problem.
        """
        request = job_pb2.SubmitJobRequest(request_id=request_id or str(uuid.uuid4()), spec_yaml=_text(spec))
        return SubmittedJob._from(self._submit(request))

    def submit_matrix(
        self, spec: Spec, matrix: Mapping[str, Sequence[object]], *, group: str | None = None
    ) -> builtins.list[SubmittedJob]:
        """Submits a job for each combination of values, 256 at most: all of them or, if one is refused, none.

        matrix: lists of values by path, e.g. `{"seed": [1, 2], "stages[0].train.learningRate": [1e-5, 8e-5]}`. A path
            that does not begin with metadata or spec is below spec.
        group: of `[A-Za-z0-9._-]`, at most 63; the value of the label `group` that all of them have, or else the name
            and six random characters. The same call with the same group submits none twice.

        Their names are that of the spec with a number. Raises InvalidSpecError with the problems of the first spec that
        is refused (which have no line: fields have been set), and CutShortError if something fails after the first.
        """
        text = _text(spec)
        # Here YAML is read that specs are not written in: aliases, fields that are given twice.
        unreadable = [problem for problem in self.validate(text).problems if problem.line and not problem.path]
        if unreadable:
            raise InvalidSpecError("the spec cannot be read", unreadable)
        group, planned = _matrix.plan(_loaded(text), matrix, group)
        for one in planned:
            if problems := self.validate(one.spec).problems:
                by = ", ".join(f"{path}={value}" for path, value in one.combination.items())
                placeless = [Problem(0, 0, problem.path, f"{problem.message} (with {by})") for problem in problems]
                raise InvalidSpecError("a spec of the matrix is refused", placeless)
        submitted: builtins.list[SubmittedJob] = []
        for one in planned:
            try:
                submitted.append(self.submit(one.spec, request_id=one.request_id))
            except CrescendoError as error:
                raise CutShortError(group, len(planned), submitted, error) from error
        return submitted

    def validate(self, spec: Spec) -> Validation:
        """What the controller makes of a spec; nothing is submitted."""
        answer = self._submit(job_pb2.SubmitJobRequest(spec_yaml=_text(spec), validate_only=True))
        return Validation(
            problems=tuple(Problem._of(problem) for problem in answer.problems),
            warnings=tuple(Problem._of(warning) for warning in answer.warnings),
            resolved_spec_yaml=answer.resolved_spec_yaml,
        )

    def get(self, job: JobOrId) -> Job:
        """The job with the progress of its stages. Raises NotFoundError."""
        request = job_pb2.GetJobRequest(job_id=_id(job))
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).GetJob(request, timeout=timeout, metadata=metadata),
        )
        return Job._of(answer.job)

    def list(
        self,
        *,
        states: Iterable[JobState | str] = (),
        name_prefix: str = "",
        tenant: str = "",
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> builtins.list[Job]:
        """Jobs, newest first: in one of the states, whose name begins so, of the tenant; at most `limit`.

        labels: those that have all of them; an empty value stands for any.
        """
        wanted = [_number(JobState(state)) for state in states]
        found: builtins.list[Job] = []
        page_token = ""
        while limit is None or len(found) < limit:
            request = job_pb2.ListJobsRequest(
                page_size=_PAGE if limit is None else min(_PAGE, limit - len(found)),
                page_token=page_token,
                states=wanted,
                name_prefix=name_prefix,
                tenant=tenant,
                labels=labels or {},
            )
            page = self._list(request)
            found.extend(Job._of(job) for job in page.jobs)
            page_token = page.next_page_token
            if not page_token:
                break
        return found

    def watch(
        self,
        job: JobOrId,
        *,
        from_revision: int = 0,
        timeout_seconds: float | None = None,
        on_lost: Callable[[CrescendoError], None] | None = None,
    ) -> Iterator[Job]:
        """Yields the job now and at every change, until it has ended; over restarts of the controller.

        Nothing is told twice. What is not newer than `from_revision`, the `revision` of a job that was seen before, is
        left out. `on_lost` is called each time that the stream breaks off and is taken up again. Raises
        UnavailableError once nothing has been heard for `timeout_seconds` (else the client's `watch_timeout_seconds`).
        """
        job_id, revision = _id(job), from_revision
        last: job_pb2.Job | None = None
        patience = Patience(self._watch_timeout if timeout_seconds is None else timeout_seconds)
        while True:
            # From the revision that was seen: what is known already is not sent again.
            request = job_pb2.WatchJobRequest(job_id=job_id, from_revision=revision)
            broken: grpc.RpcError | None = None
            at, updates = self._watch(request)
            try:
                for update in updates:
                    patience.renew()
                    # Nothing is new: a word that keeps proxies from taking the stream for dead.
                    if not update.HasField("job") or update.job == last:
                        continue
                    last = update.job
                    revision = max(revision, last.revision)
                    told = Job._of(last)
                    yield told
                    if told.state.is_final:
                        return
                    # The reader's own time is not the controller's.
                    patience.renew()
            except grpc.RpcError as error:
                broken = error
            lost = self._wire.pass_on(at, broken, patience)
            if on_lost is not None:
                on_lost(lost)

    def logs(
        self,
        job: JobOrId,
        *,
        tail: int = 1000,
        follow: bool = False,
        timeout_seconds: float | None = None,
    ) -> Iterator[LogLine]:
        """The last `tail` lines (1 to 10,000) of the job's processes; with `follow` also new ones, until the job ends.

        A stream that breaks off is taken up again behind the lines that were read, as long as the controller has them.
        """
        if not 1 <= tail <= _MOST_LINES:
            raise ValueError(f"tail is 1 to {_MOST_LINES} lines, not {tail}")
        job_id = _id(job)
        limit = timeout_seconds if timeout_seconds is not None else self._watch_timeout if follow else self._timeout
        patience, seen = Patience(limit), _SeenLines(tail)
        while True:
            request = job_pb2.ReadLogsRequest(
                job_id=job_id, tail_lines=_MOST_LINES if seen.any else tail, follow=follow
            )
            broken: grpc.RpcError | None = None
            at, pieces = self._read_logs(request)
            try:
                for piece in pieces:
                    patience.renew()
                    if piece.HasField("line") and seen.adds(piece.line):
                        yield LogLine._of(piece.line)
                        patience.renew()
            except grpc.RpcError as error:
                broken = error
            # The stream ends with the job, but also when the controller stops.
            if broken is None and (not follow or self.get(job_id).state.is_final):
                return
            self._wire.pass_on(at, broken, patience)

    def explain(self, job: JobOrId) -> Explanation:
        """Why the job is where it is, and what it would take for it to go on."""
        request = job_pb2.ExplainJobRequest(job_id=_id(job))
        return Explanation._of(
            self._wire.call(
                self._timeout,
                lambda channel, timeout, metadata: _jobs(channel).ExplainJob(
                    request, timeout=timeout, metadata=metadata
                ),
            )
        )

    def pause(
        self,
        job: JobOrId,
        reason: str = "",
        *,
        keep_curating: bool = False,
        wait: bool = False,
        timeout_seconds: float = LEAVE_SECONDS,
    ) -> Job:
        """Has the job's ranks save a checkpoint and leave; it holds no slot until it is resumed.

        Its pairs are no longer made either, unless `keep_curating`. Answers at once; with `wait` when no slot is held
        any more (`slots_held` is 0), or raises TimedOutError after `timeout_seconds`. Raises WrongStateError for a job
        that has ended.
        """
        request = job_pb2.PauseJobRequest(job_id=_id(job), reason=reason, keep_curating=keep_curating)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).PauseJob(request, timeout=timeout, metadata=metadata),
        )
        paused, end = Job._of(answer.job), time.monotonic() + timeout_seconds
        # Somebody may resume or cancel it meanwhile.
        while wait and paused.slots_held > 0 and paused.state == JobState.PAUSED:
            if time.monotonic() >= end:
                raise TimedOutError(f"{paused.job_id} is paused and still holds {paused.slots_held} slots")
            time.sleep(_LOOK_SECONDS)
            paused = self.get(paused)
        return paused

    def resume(self, job: JobOrId) -> Job:
        """Puts a paused job back into the queue, at its old place. One that is not paused stays as it is."""
        request = job_pb2.ResumeJobRequest(job_id=_id(job))
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).ResumeJob(request, timeout=timeout, metadata=metadata),
        )
        return Job._of(answer.job)

    def retry(self, job: JobOrId) -> Job:
        """Has a failed job tried again, from its newest checkpoint and with the pairs that it has.

        Raises WrongStateError if it has succeeded or was cancelled. An open job stays as it is.
        """
        request = job_pb2.RetryJobRequest(job_id=_id(job))
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).RetryJob(request, timeout=timeout, metadata=metadata),
        )
        return Job._of(answer.job)

    def cancel(self, job: JobOrId, reason: str = "") -> Job:
        """Stops a job for good. One that has ended stays as it is."""
        request = job_pb2.CancelJobRequest(job_id=_id(job), reason=reason)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).CancelJob(request, timeout=timeout, metadata=metadata),
        )
        return Job._of(answer.job)

    def note(self, job: JobOrId, text: str) -> Job:
        """Notes something on the job, for whoever looks at it: one line of up to 1000 characters; 32 a job.

        The same text twice in a row is noted once. Raises WrongStateError when the job has as many, or is deleted.
        """
        request = job_pb2.NoteJobRequest(job_id=_id(job), text=text)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).NoteJob(request, timeout=timeout, metadata=metadata),
        )
        return Job._of(answer.job)

    def mark_pairs(self, job: JobOrId, stage: str, indices: Iterable[int], reason: str = "") -> PairMarks:
        """Marks pairs of the log that a stage is trained on as bad: training leaves them out from the next epoch on.

        They are named by their index in the log, at most 100 at once. What is marked already stays as it is.
        """
        return self._mark(job, stage, indices, undo=False, reason=reason)

    def unmark_pairs(self, job: JobOrId, stage: str, indices: Iterable[int], reason: str = "") -> PairMarks:
        """Takes marks back: the pairs are trained on again from the next epoch on."""
        return self._mark(job, stage, indices, undo=True, reason=reason)

    def _mark(self, job: JobOrId, stage: str, indices: Iterable[int], *, undo: bool, reason: str) -> PairMarks:
        request = review_pb2.MarkPairsRequest(job_id=_id(job), stage=stage, indices=indices, undo=undo, reason=reason)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: review_pb2_grpc.ReviewServiceStub(channel).MarkPairs(
                request, timeout=timeout, metadata=metadata
            ),
        )
        return PairMarks._of(answer.marks)

    def pair_marks(self, job: JobOrId, stage: str) -> PairMarks:
        """The pairs that are marked in the log that a stage is trained on."""
        request = review_pb2.ListPairMarksRequest(job_id=_id(job), stage=stage)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: review_pb2_grpc.ReviewServiceStub(channel).ListPairMarks(
                request, timeout=timeout, metadata=metadata
            ),
        )
        return PairMarks._of(answer.marks)

    def plan_continuation(self, job: JobOrId, steps: int, *, name: str = "") -> str:
        """The spec, YAML, that `continue_job` submits: to look at it, or to change it before it is submitted."""
        request = job_pb2.PlanContinuationRequest(job_id=_id(job), steps=steps, name=name)
        return self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).PlanContinuation(
                request, timeout=timeout, metadata=metadata
            ),
        ).spec_yaml

    def continue_job(self, job: JobOrId, steps: int, *, name: str = "", request_id: str | None = None) -> SubmittedJob:
        """Submits a job that trains on for `steps` from where one that has ended stopped.

        It has the last stage of that job that has a checkpoint, which starts from the newest with its optimizer, and
        the stages after it. Pairs are taken where their log is complete, and made as before otherwise. name: of the
        new job; without it, that of the old one. Raises WrongStateError if the job has not ended, or has no checkpoint.
        """
        return self.submit(self.plan_continuation(job, steps, name=name), request_id=request_id)

    def delete(
        self, job: JobOrId, *, keep_checkpoints: bool = False, keep_pairs: bool = False, keep_logs: bool = False
    ) -> Deletion:
        """Deletes a job that has ended: its files and its records. Nothing takes it back; its lineage stays.

        Answers once it is settled; the files go a while later, and `lineage` says how far it is. Raises WrongStateError
        while the job runs, or while an open job needs its files.
        """
        keep = deletion_pb2.KeptParts(checkpoints=keep_checkpoints, pairs=keep_pairs, logs=keep_logs)
        request = deletion_pb2.DeleteJobRequest(job_id=_id(job), keep=keep)
        return Deletion._of(self._delete(request, self._timeout).deletion)

    def preview_deletion(
        self, job: JobOrId, *, keep_checkpoints: bool = False, keep_pairs: bool = False, keep_logs: bool = False
    ) -> DeletionPreview:
        """What `delete` would remove. Nothing is changed."""
        keep = deletion_pb2.KeptParts(checkpoints=keep_checkpoints, pairs=keep_pairs, logs=keep_logs)
        request = deletion_pb2.DeleteJobRequest(job_id=_id(job), keep=keep, dry_run=True)
        return DeletionPreview._of(self._delete(request, max(self._timeout, _COUNT_SECONDS)))

    def lineage(self, job: JobOrId) -> Lineage:
        """Where the job came from and what it made, also once it is deleted. Raises NotFoundError."""
        request = deletion_pb2.GetLineageRequest(job_id=_id(job))
        return Lineage._of(
            self._wire.call(
                self._timeout,
                lambda channel, timeout, metadata: _jobs(channel).GetLineage(
                    request, timeout=timeout, metadata=metadata
                ),
            )
        )

    def compare(self, *jobs: JobOrId) -> comparison.Comparison:
        """What differs in the resolved specs of two jobs or more, and what came of each, side by side.

        Mean losses, and where no rank reports any more all last figures, come from the history in the newest
        checkpoint; `unread` says where it cannot be read.
        """
        if len(jobs) < 2:
            raise ValueError("name two jobs or more")
        found = [self.get(job) for job in jobs]
        endings: dict[tuple[str, str], comparison.Ending] = {}
        unread: builtins.list[str] = []
        for told in found:
            for stage in told.stages:
                if stage.checkpoint_step > 0:
                    try:
                        endings[told.job_id, stage.name] = self._ending(told, stage.name)
                    except (CrescendoError, OSError, ValueError, KeyError) as error:
                        unread.append(f"{told.job_id} {stage.name}: its last steps are not known: {error}")
        return comparison.compare(found, endings, unread)

    # --- What was trained --------------------------------------------------------------------------------------------

    def checkpoints(self, job: JobOrId, stage: str = "") -> builtins.list[Checkpoint]:
        """The job's registered checkpoints, oldest first; of one stage, or of all."""
        request = checkpoint_pb2.ListCheckpointsRequest(job_id=_id(job), stage=stage)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: checkpoint_pb2_grpc.CheckpointServiceStub(channel).ListCheckpoints(
                request, timeout=timeout, metadata=metadata
            ),
        )
        return [Checkpoint._of(checkpoint) for checkpoint in answer.checkpoints]

    def samples(self, job: JobOrId, stage: str = "") -> builtins.list[Sampling]:
        """What is drawn with the job's checkpoints, or is to be, by stage and step; of one stage, or of all."""
        request = sample_pb2.ListSamplesRequest(job_id=_id(job), stage=stage)
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: sample_pb2_grpc.SampleServiceStub(channel).ListSamples(
                request, timeout=timeout, metadata=metadata
            ),
        )
        return [Sampling._of(sampling) for sampling in answer.samplings]

    def keep(self, checkpoint: Checkpoint) -> Checkpoint:
        """Marks a checkpoint to be kept: it does not expire, and its job is not deleted."""
        return self._keep(checkpoint, release=False)

    def release(self, checkpoint: Checkpoint) -> Checkpoint:
        """Takes the mark off again."""
        return self._keep(checkpoint, release=True)

    def fetch(
        self,
        job: JobOrId | Checkpoint,
        to: str | os.PathLike[str],
        *,
        stage: str | None = None,
        step: int | None = None,
        name: str | None = None,
        object_store: str | None = None,
    ) -> pathlib.Path:
        """Fetches a trained file: the newest LoRA (or weights) of the last stage that has any, unless told otherwise.

        to: the file, or a folder that is there. The file is there when its size and SHA-256 are those of the registry;
            else nothing new is, and CorruptError is raised.
        name: another file of the checkpoint, e.g. `history.jsonl`.
        object_store: a folder, file:///DIR or s3://BUCKET/PREFIX to read from. Without it, the folder of the cluster if
            this machine has it; else the controller has a curator read the file, and no key of the store is needed.
        """
        if isinstance(job, Checkpoint):
            checkpoint = job
        else:
            checkpoint = _objects.choose(self.checkpoints(job), _id(job), stage, step)
        file = _objects.file_of(checkpoint, name)
        target = pathlib.Path(to)
        if target.is_dir():
            target /= file.name
        return self._fetch(checkpoint, file, target, object_store)

    def fetch_all(
        self, checkpoint: Checkpoint, folder: str | os.PathLike[str], *, object_store: str | None = None
    ) -> builtins.list[pathlib.Path]:
        """Fetches every file of a checkpoint into a folder, which is made. As `fetch` does."""
        root = pathlib.Path(folder)
        for file in checkpoint.files:
            if pathlib.PurePath(file.name).name != file.name:
                raise CrescendoError(f"{checkpoint.path} has a file {file.name!r}, which is not a name")
        return [self._fetch(checkpoint, file, root / file.name, object_store) for file in checkpoint.files]

    # --- Below -------------------------------------------------------------------------------------------------------

    def _submit(self, request: job_pb2.SubmitJobRequest) -> job_pb2.SubmitJobResponse:
        return self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).SubmitJob(request, timeout=timeout, metadata=metadata),
        )

    def _list(self, request: job_pb2.ListJobsRequest) -> job_pb2.ListJobsResponse:
        return self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: _jobs(channel).ListJobs(request, timeout=timeout, metadata=metadata),
        )

    def _watch(self, request: job_pb2.WatchJobRequest) -> tuple[int, Iterator[job_pb2.WatchJobResponse]]:
        return self._wire.stream(lambda channel, metadata: _jobs(channel).WatchJob(request, metadata=metadata))

    def _read_logs(self, request: job_pb2.ReadLogsRequest) -> tuple[int, Iterator[job_pb2.ReadLogsResponse]]:
        return self._wire.stream(lambda channel, metadata: _jobs(channel).ReadLogs(request, metadata=metadata))

    def _delete(self, request: deletion_pb2.DeleteJobRequest, timeout_seconds: float) -> deletion_pb2.DeleteJobResponse:
        return self._wire.call(
            timeout_seconds,
            lambda channel, timeout, metadata: _jobs(channel).DeleteJob(request, timeout=timeout, metadata=metadata),
        )

    def _keep(self, checkpoint: Checkpoint, *, release: bool) -> Checkpoint:
        request = checkpoint_pb2.KeepCheckpointRequest(
            job_id=checkpoint.job_id, stage=checkpoint.stage, step=checkpoint.step, release=release
        )
        answer = self._wire.call(
            self._timeout,
            lambda channel, timeout, metadata: checkpoint_pb2_grpc.CheckpointServiceStub(channel).KeepCheckpoint(
                request, timeout=timeout, metadata=metadata
            ),
        )
        return Checkpoint._of(answer.checkpoint)

    def _ending(self, job: Job, stage: str) -> comparison.Ending:
        checkpoint = _objects.choose(self.checkpoints(job, stage), job.job_id, stage, None)
        size_bytes = _objects.file_of(checkpoint, _objects.HISTORY_FILE).size_bytes
        if size_bytes > _MOST_HISTORY_BYTES:
            raise CrescendoError(f"{_objects.HISTORY_FILE} has {size_bytes} bytes, more than is read for this")
        with tempfile.TemporaryDirectory(prefix="crescendo-") as folder:
            return comparison.ending(self.fetch(checkpoint, folder, name=_objects.HISTORY_FILE).read_bytes())

    def _fetch(
        self, checkpoint: Checkpoint, file: CheckpointFile, to: pathlib.Path, object_store: str | None
    ) -> pathlib.Path:
        key = f"{checkpoint.path}/{file.name}"
        with _objects.Sink(to, file, key) as sink:
            url = self.whoami().object_store_url if object_store is None else object_store
            if object_store is None and _objects.local_path(url, key) is None:
                self._relay(checkpoint, file, sink)
            else:
                sink.fill(_objects.read(url, key))
            return sink.finish()

    def _relay(self, checkpoint: Checkpoint, file: CheckpointFile, sink: _objects.Sink) -> None:
        """Has the controller hand on the file, which a curator reads; from its beginning again where it breaks off."""
        request = object_pb2.ReadCheckpointFileRequest(job_id=checkpoint.job_id, path=checkpoint.path, name=file.name)
        patience, breaks = Patience(self._timeout), 0
        while True:
            sink.restart()
            broken: grpc.RpcError | None = None
            at, pieces = self._wire.stream(
                lambda channel, metadata: object_pb2_grpc.ObjectServiceStub(channel).ReadCheckpointFile(
                    request, metadata=metadata
                )
            )
            try:
                sink.fill(_chunks(pieces, patience))
            except grpc.RpcError as error:
                broken = error
            if sink.is_whole:
                return
            breaks += sink.size_bytes > 0
            self._wire.pass_on(at, broken, patience if breaks < _MOST_BREAKS else Patience(0.0))


class _SeenLines:
    """Lines of a log that were read already: what is read again after a lost connection is not told twice."""

    def __init__(self, tail: int) -> None:
        self._tail = tail
        self._seen: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        self._first: tuple[int, int] | None = None
        #: Nothing that is older is told.
        self._floor: tuple[int, int] | None = None

    @property
    def any(self) -> bool:
        """Whether there was a line so far."""
        return bool(self._seen)

    def adds(self, line: job_pb2.LogLine) -> bool:
        """Whether the line is new; it is not afterwards."""
        key, at = line.SerializeToString(deterministic=True), (line.at.seconds, line.at.nanos)
        if key in self._seen or (self._floor is not None and at < self._floor):
            return False
        self._first = self._first or at
        self._seen[key] = at
        # A longer tail is asked for after a lost connection: what lies before the first line was not asked for, unless
        # it is of another process and came later.
        if self._floor is None and len(self._seen) >= self._tail:
            self._floor = self._first
        if len(self._seen) > _REMEMBERED_LINES:
            oldest = self._seen.popitem(last=False)[1]
            self._floor = oldest if self._floor is None else max(self._floor, oldest)
        return True


def _chunks(pieces: Iterator[object_pb2.ReadCheckpointFileResponse], patience: Patience) -> Iterator[bytes]:
    for piece in pieces:
        patience.renew()
        # What is announced first is what was registered, which is known.
        if piece.WhichOneof("message") == "chunk":
            yield piece.chunk


def _jobs(channel: grpc.Channel) -> job_pb2_grpc.JobServiceStub:
    return job_pb2_grpc.JobServiceStub(channel)


def _id(job: JobOrId) -> str:
    return job.job_id if isinstance(job, Job) else job


def _node_id(node: Node | str) -> str:
    return node.node_id if isinstance(node, Node) else node


def _text(spec: Spec) -> bytes:
    if isinstance(spec, bytes):
        return spec
    if isinstance(spec, str):
        return spec.encode()
    if isinstance(spec, Mapping):
        # What JSON is, YAML is too.
        return json.dumps(spec, ensure_ascii=False, allow_nan=False).encode()
    return pathlib.Path(spec).read_bytes()


def _loaded(text: bytes) -> object:
    try:
        return comparison.load_spec(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the spec is no YAML: {error}") from error


def _number(state: JobState) -> job_pb2.JobState.ValueType:
    return job_pb2.JobState.Value(f"JOB_STATE_{state.name}")
