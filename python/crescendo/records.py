"""What the client gives back: plain records, read-only.

Each has `raw`, the message that it was read from, with the fields that have no place here. Times are aware, in UTC. A
number that nobody has reported is None, not 0.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from crescendo.v1 import (
    access_pb2,
    checkpoint_pb2,
    deletion_pb2,
    job_pb2,
    node_pb2,
    queue_pb2,
    review_pb2,
    sample_pb2,
)


class JobState(str, enum.Enum):
    """Where a job is. Compares equal to its word, e.g. `"running"`."""

    QUEUED = "queued"
    PLACING = "placing"
    RUNNING = "running"
    PAUSED = "paused"
    PREEMPTING = "preempting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: A state that a newer controller knows.
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value

    @property
    def is_final(self) -> bool:
        """Whether the job has ended. A failed one goes on only if somebody retries it."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class StagePhase(str, enum.Enum):
    """Where a stage is."""

    PENDING = "pending"
    CURATING = "curating"
    TRAINING = "training"
    WAITING = "waiting"
    DONE = "done"
    STOPPED = "stopped"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a spec, or hardly meant."""

    #: In the YAML, from 1; 0 when it concerns no line.
    line: int
    #: In characters, from 1.
    column: int
    #: Of the field, e.g. `spec.stages[1].train.steps`.
    path: str
    #: What is wrong, and what would be right.
    message: str

    def __str__(self) -> str:
        place = f"{self.line}:{self.column}: " if self.line else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"

    @classmethod
    def _of(cls, raw: job_pb2.SpecProblem) -> Problem:
        return cls(raw.line, raw.column, raw.path, raw.message)


@dataclass(frozen=True)
class Validation:
    """What the controller makes of a spec."""

    #: None of them: it can be submitted.
    problems: tuple[Problem, ...]
    #: What it asks for and hardly means.
    warnings: tuple[Problem, ...]
    #: The spec with every default filled in, YAML; empty when there are problems.
    resolved_spec_yaml: str

    @property
    def ok(self) -> bool:
        """Whether it can be submitted."""
        return not self.problems


@dataclass(frozen=True)
class Stage:
    """A stage, and what its ranks last reported, which may be some seconds old."""

    name: str
    phase: StagePhase
    #: Of the newest attempt to train it; 0 before the first.
    generation: int
    #: Attempts to train it after the first.
    restarts: int
    #: Optimizer steps done, of `steps_total`.
    step: int
    steps_total: int
    #: Training loss of the last reported step, mean over the global batch.
    loss: float | None
    #: L2 norm of the gradients before clipping.
    grad_norm: float | None
    learning_rate: float | None
    #: Samples of the global batch per second.
    samples_per_sec: float | None
    #: Share of the step time spent waiting for data, 0 to 1.
    data_wait_fraction: float
    #: Pairs that can be read now, and that the spec asks for.
    pairs_committed: int
    pairs_target: int
    #: Rejected pairs by reason.
    pairs_rejected: Mapping[str, int]
    #: Its curation has ended.
    pairs_sealed: bool
    #: Pairs that have become readable a minute, over the last minutes.
    pairs_per_minute: float | None
    #: Step of the newest registered checkpoint; 0 if there is none.
    checkpoint_step: int
    #: Folder of the final checkpoint in the object store; empty until the stage is done.
    final_checkpoint: str
    #: Seconds until it is done, estimated.
    eta_seconds: float | None
    #: Why it does not step now, one line; empty if it does.
    waiting_for: str
    #: f32 or bf16; empty until it is settled.
    precision: str
    #: Steps that updated nothing, because their loss or gradients were not finite.
    skipped_steps: int
    raw: job_pb2.StageStatus = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: job_pb2.StageStatus) -> Stage:
        return cls(
            name=raw.name,
            phase=_phase(raw.phase),
            generation=raw.generation,
            restarts=raw.restarts,
            step=raw.step,
            steps_total=raw.steps_total,
            loss=raw.loss or None,
            grad_norm=raw.grad_norm or None,
            learning_rate=raw.learning_rate or None,
            samples_per_sec=raw.samples_per_sec or None,
            data_wait_fraction=raw.data_wait_fraction,
            pairs_committed=raw.pairs_committed,
            pairs_target=raw.pairs_target,
            pairs_rejected=dict(raw.pairs_rejected),
            pairs_sealed=raw.pairs_sealed,
            pairs_per_minute=raw.pairs_per_minute or None,
            checkpoint_step=raw.checkpoint_step,
            final_checkpoint=raw.final_checkpoint,
            eta_seconds=raw.eta_seconds or None,
            waiting_for=raw.waiting_for,
            precision=raw.precision,
            skipped_steps=raw.skipped_steps,
            raw=raw,
        )


@dataclass(frozen=True)
class Deletion:
    """How far the deletion of a job is."""

    job_id: str
    #: files, records or gone: what is being removed, or that nothing is left.
    phase: str
    #: Parts of its files that stay: checkpoints, pairs, logs.
    keeps: tuple[str, ...]
    requested_at: datetime | None
    #: None until it is gone.
    gone_at: datetime | None
    #: Removed of the object store; known once its files are gone.
    removed_objects: int
    removed_bytes: int
    #: Registered bytes of what was kept.
    kept_bytes: int
    #: The rule of its tenant's retention that asked for it; empty if a person did.
    by_retention: str
    #: What it waits for, one line; empty if for nothing.
    waiting_for: str
    raw: deletion_pb2.JobDeletion = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: deletion_pb2.JobDeletion) -> Deletion:
        kept = (("checkpoints", raw.keep.checkpoints), ("pairs", raw.keep.pairs), ("logs", raw.keep.logs))
        return cls(
            job_id=raw.job_id,
            phase=_name(deletion_pb2.DeletionPhase.DESCRIPTOR, raw.phase),
            keeps=tuple(part for part, stays in kept if stays),
            requested_at=_time(raw, "requested_at", raw.requested_at),
            gone_at=_time(raw, "gone_at", raw.gone_at),
            removed_objects=raw.removed_objects,
            removed_bytes=raw.removed_bytes,
            kept_bytes=raw.kept_bytes,
            by_retention=raw.by_retention,
            waiting_for=raw.waiting_for,
            raw=raw,
        )


@dataclass(frozen=True)
class DeletionPart:
    """A part of a job's files, and whether it would stay."""

    #: checkpoints, pairs, logs or rest.
    part: str
    objects: int
    size_bytes: int
    stays: bool


@dataclass(frozen=True)
class DeletionPreview:
    """What a deletion would remove."""

    parts: tuple[DeletionPart, ...]
    #: Counted in the object store; else it is what is registered, without logs and the like.
    counted: bool
    raw: deletion_pb2.DeleteJobResponse = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: deletion_pb2.DeleteJobResponse) -> DeletionPreview:
        parts = (DeletionPart(part.part, part.objects, part.bytes, part.kept) for part in raw.parts)
        return cls(parts=tuple(parts), counted=raw.counted, raw=raw)


@dataclass(frozen=True)
class Note:
    """What a person has noted on a job."""

    at: datetime | None
    #: The name that the person had logged in by.
    by: str
    #: One line.
    text: str

    @classmethod
    def _of(cls, raw: job_pb2.JobNote) -> Note:
        return cls(at=_time(raw, "at", raw.at), by=raw.by, text=raw.text)


@dataclass(frozen=True)
class PairMark:
    """A pair that a person has marked bad."""

    #: In the pair log.
    index: int
    #: The name that the person had logged in by.
    by: str
    at: datetime | None
    #: One line; may be empty.
    reason: str

    @classmethod
    def _of(cls, raw: review_pb2.PairMark) -> PairMark:
        return cls(index=raw.index, by=raw.by, at=_time(raw, "at", raw.at), reason=raw.reason)


@dataclass(frozen=True)
class PairMarks:
    """What is marked in a pair log."""

    #: How often the marks were changed so far.
    version: int
    #: By index.
    marks: tuple[PairMark, ...]

    @classmethod
    def _of(cls, raw: review_pb2.PairMarkList) -> PairMarks:
        return cls(version=raw.version, marks=tuple(PairMark._of(mark) for mark in raw.marks))


@dataclass(frozen=True)
class Job:
    """A job, as it was when the controller told of it."""

    #: Unique, made by the controller from the name, e.g. uno-7f3kq2.
    job_id: str
    name: str
    tenant: str
    #: Higher goes first.
    priority: int
    state: JobState
    #: Why it is in this state, one line.
    reason: str
    stages: tuple[Stage, ...]
    submitted_at: datetime | None
    #: First time that a stage ran.
    started_at: datetime | None
    finished_at: datetime | None
    #: Of the record; a watch can go on from it.
    revision: int
    #: The spec with every default filled in, YAML. Empty in lists and watches.
    resolved_spec_yaml: str
    request_id: str
    #: Slots that its ranks hold now. A job that is paused holds them until it has saved.
    slots_held: int
    #: `metadata.labels` of the spec.
    labels: Mapping[str, str]
    #: What people have noted on it, the oldest first. Empty in lists and watches.
    notes: tuple[Note, ...]
    #: From when it is being deleted; None if it stays.
    deletion: Deletion | None
    raw: job_pb2.Job = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: job_pb2.Job) -> Job:
        return cls(
            job_id=raw.job_id,
            name=raw.name,
            tenant=raw.tenant,
            priority=raw.priority,
            state=_state(raw.state),
            reason=raw.reason,
            stages=tuple(Stage._of(stage) for stage in raw.stages),
            submitted_at=_time(raw, "submitted_at", raw.submitted_at),
            started_at=_time(raw, "started_at", raw.started_at),
            finished_at=_time(raw, "finished_at", raw.finished_at),
            revision=raw.revision,
            resolved_spec_yaml=raw.resolved_spec_yaml,
            request_id=raw.request_id,
            slots_held=raw.slots_held,
            labels=dict(raw.labels),
            notes=tuple(Note._of(note) for note in raw.notes),
            deletion=Deletion._of(raw.deletion) if raw.HasField("deletion") else None,
            raw=raw,
        )


@dataclass(frozen=True)
class SubmittedJob(Job):
    """A job that has just been submitted."""

    #: The request id was seen before: this is the job that was made then.
    already_submitted: bool = False
    #: What the spec asks for and hardly means.
    warnings: tuple[Problem, ...] = ()

    @classmethod
    def _from(cls, answer: job_pb2.SubmitJobResponse) -> SubmittedJob:
        job = Job._of(answer.job)
        told = {name: getattr(job, name) for name in Job.__dataclass_fields__}
        warnings = tuple(Problem._of(warning) for warning in answer.warnings)
        return cls(**told, already_submitted=answer.already_submitted, warnings=warnings)


@dataclass(frozen=True)
class LogLine:
    """One line of a process that works on a job."""

    at: datetime | None
    job_id: str
    stage: str
    generation: int
    node_id: str
    #: Rank that wrote it; None for an agent or a curator.
    rank: int | None
    #: ERROR, WARN, INFO, DEBUG or TRACE.
    level: str
    #: Text with its fields, at most 8 KiB.
    message: str
    #: Lines that were dropped before this one.
    dropped_before: int
    raw: job_pb2.LogLine = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: job_pb2.LogLine) -> LogLine:
        return cls(
            at=_time(raw, "at", raw.at),
            job_id=raw.job_id,
            stage=raw.stage,
            generation=raw.generation,
            node_id=raw.node_id,
            rank=raw.rank if raw.rank >= 0 else None,
            level=raw.level,
            message=raw.message,
            dropped_before=raw.dropped_before,
            raw=raw,
        )


@dataclass(frozen=True)
class Explanation:
    """Why a job is where it is, and what it would take for it to go on."""

    job_id: str
    state: JobState
    #: What keeps it, one word of a fixed set, e.g. pairs, slots, quota, paused, failed.
    cause: str
    #: That it is about; empty if about none.
    stage: str
    #: One line.
    summary: str
    #: Facts with their numbers, one line each.
    findings: tuple[str, ...]
    #: What a person can do, one line each, the best first.
    remedies: tuple[str, ...]
    #: Seconds until it goes on, or is done if it runs, at the present pace.
    goes_on_in_seconds: float | None
    #: Of the rank that failed, or of curators that complained; oldest first, at most 20.
    log_lines: tuple[LogLine, ...]
    raw: job_pb2.ExplainJobResponse = field(repr=False, compare=False)

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"- {line}" for line in (*self.findings, *self.remedies))])

    @classmethod
    def _of(cls, raw: job_pb2.ExplainJobResponse) -> Explanation:
        return cls(
            job_id=raw.job_id,
            state=_state(raw.state),
            cause=raw.cause,
            stage=raw.stage,
            summary=raw.summary,
            findings=tuple(raw.findings),
            remedies=tuple(raw.remedies),
            goes_on_in_seconds=raw.goes_on_in_seconds or None,
            log_lines=tuple(LogLine._of(line) for line in raw.log_lines),
            raw=raw,
        )


@dataclass(frozen=True)
class CheckpointFile:
    """A file of a checkpoint, as it was registered."""

    name: str
    size_bytes: int
    #: 64 lower-case hexadecimal digits.
    sha256: str


@dataclass(frozen=True)
class ValidationLoss:
    """The loss on pairs of held-out subjects, at fixed times with fixed noise."""

    #: Over all pairs and times.
    mean: float
    pairs: int
    #: By time, from 0 (data) to 1 (noise).
    by_time: dict[float, float]


@dataclass(frozen=True)
class Sampling:
    """What was drawn with a checkpoint, or is to be."""

    job_id: str
    stage: str
    #: Of the checkpoint; 0 for what the stage begins with.
    step: int
    #: ``wanted``, ``drawn`` or ``given_up``.
    state: str
    #: What went wrong last, or why it is given up; empty if nothing.
    reason: str
    drawn_at: datetime | None
    pictures: int
    validation: ValidationLoss | None
    raw: sample_pb2.Sampling = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: sample_pb2.Sampling) -> Sampling:
        loss = raw.validation if raw.HasField("validation") else None
        return cls(
            job_id=raw.job_id,
            stage=raw.stage,
            step=raw.step,
            state=sample_pb2.SamplingState.Name(raw.state).removeprefix("SAMPLING_STATE_").lower(),
            reason=raw.reason,
            drawn_at=_time(raw, "drawn_at", raw.drawn_at),
            pictures=raw.pictures,
            validation=None
            if loss is None
            else ValidationLoss(loss.mean, loss.pairs, dict(zip(loss.times, loss.losses, strict=True))),
            raw=raw,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A registered checkpoint."""

    job_id: str
    stage: str
    #: Of the attempt that wrote it.
    generation: int
    #: Optimizer steps done.
    step: int
    #: Folder in the object store, relative to its root.
    path: str
    files: tuple[CheckpointFile, ...]
    committed_at: datetime | None
    #: Training of the stage ends with it.
    final: bool
    #: Found damaged while loading: why. Empty if not.
    damaged: str
    #: Marked to be kept: it does not expire, and its job is not deleted.
    kept: bool
    raw: checkpoint_pb2.Checkpoint = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: checkpoint_pb2.Checkpoint) -> Checkpoint:
        return cls(
            job_id=raw.job_id,
            stage=raw.stage,
            generation=raw.generation,
            step=raw.step,
            path=raw.path,
            files=_files(raw.files),
            committed_at=_time(raw, "committed_at", raw.committed_at),
            final=raw.final,
            damaged=raw.damaged,
            kept=raw.kept,
            raw=raw,
        )


@dataclass(frozen=True)
class FinalCheckpoint:
    """What a stage ended with."""

    stage: str
    step: int
    #: Folder in the object store, where it is or was.
    path: str
    #: At most 16.
    files: tuple[CheckpointFile, ...]


@dataclass(frozen=True)
class Lineage:
    """What stays known of a job, also once it is deleted."""

    job_id: str
    tenant: str
    name: str
    request_id: str
    #: As it is, or as it ended.
    state: JobState
    #: Why it failed or was cancelled.
    reason: str
    submitted_at: datetime | None
    finished_at: datetime | None
    #: Of the resolved spec as it was accepted, lower-case hexadecimal.
    spec_sha256: str
    #: Weights, and files of the object store, that its spec named; at most 8.
    made_from: tuple[str, ...]
    final_checkpoints: tuple[FinalCheckpoint, ...]
    #: None if the job is there and stays.
    deletion: Deletion | None
    raw: deletion_pb2.GetLineageResponse = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: deletion_pb2.GetLineageResponse) -> Lineage:
        told = raw.lineage
        # `from` is a word of Python.
        made_from: tuple[str, ...] = tuple(getattr(told, "from"))
        last = (FinalCheckpoint(one.stage, one.step, one.path, _files(one.files)) for one in told.final_checkpoints)
        return cls(
            job_id=told.job_id,
            tenant=told.tenant,
            name=told.name,
            request_id=told.request_id,
            state=JobState(told.state) if told.state in JobState._value2member_map_ else JobState.UNKNOWN,
            reason=told.reason,
            submitted_at=_time(told, "submitted_at", told.submitted_at),
            finished_at=_time(told, "finished_at", told.finished_at),
            spec_sha256=told.spec_sha256,
            made_from=made_from,
            final_checkpoints=tuple(last),
            deletion=Deletion._of(raw.deletion) if raw.HasField("deletion") else None,
            raw=raw,
        )


@dataclass(frozen=True)
class Node:
    """A node that the controller knows."""

    node_id: str
    #: trainer or curator.
    kind: str
    #: Its session is open. Without one its ranks may well go on.
    connected: bool
    #: Ranks that fit, and that are there; 0 of a curator.
    slots: int
    slots_used: int
    #: cpu or cuda.
    device: str
    address: str
    labels: Mapping[str, str]
    version: str
    #: Since it was last heard of.
    silent_seconds: float
    #: It gets no new work: it is about to leave, or was drained.
    draining: bool
    #: Why the controller itself gives it no new work; empty if it does.
    cordon_reason: str
    #: Why it cannot use the object store; empty if it can.
    store_fault: str
    #: Memory of the smallest GPU that ranks get there; None on processors, or if it has not said.
    device_memory_bytes: int | None
    raw: node_pb2.Node = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: node_pb2.Node) -> Node:
        return cls(
            node_id=raw.node_id,
            kind=_name(node_pb2.NodeKind.DESCRIPTOR, raw.kind),
            connected=raw.reach == node_pb2.NODE_REACH_CONNECTED,
            slots=raw.slots,
            slots_used=raw.slots_used,
            device=raw.device,
            address=raw.address,
            labels=dict(raw.labels),
            version=raw.version,
            silent_seconds=raw.silent_seconds,
            draining=raw.draining,
            cordon_reason=raw.cordon_reason,
            store_fault=raw.store_fault,
            device_memory_bytes=raw.device_memory_bytes or None,
            raw=raw,
        )


@dataclass(frozen=True)
class QueueSlots:
    """What a queue has of one kind of device."""

    #: cpu or cuda.
    device: str
    #: Slots that it is sure of.
    guaranteed: int
    #: Slots that it holds at most, with those that it borrows; None: as many as there are.
    max: int | None
    #: Slots that its jobs hold, and of those the ones that go back when another queue is sure of them.
    used: int
    borrowed: int


@dataclass(frozen=True)
class Queue:
    """A queue, or (without a name) the jobs that are in none."""

    name: str
    slots: tuple[QueueSlots, ...]
    #: Jobs that hold slots, and open ones that hold none.
    running_jobs: int
    waiting_jobs: int
    #: Slots that the waiting ones want at least.
    pending_slots: int
    #: When the waiting one was submitted that was submitted first.
    oldest_waiting_since: datetime | None
    #: Whose jobs may be in it; None: everybody's.
    tenants: tuple[str, ...] | None
    #: backfill or strict.
    order: str
    #: pack or spread.
    packing: str
    node_labels: Mapping[str, str]

    @classmethod
    def _of(cls, raw: queue_pb2.Queue) -> Queue:
        slots = (
            QueueSlots(one.device, one.guaranteed, one.max if one.HasField("max") else None, one.used, one.borrowed)
            for one in raw.slots
        )
        return cls(
            name=raw.name,
            slots=tuple(slots),
            running_jobs=raw.running_jobs,
            waiting_jobs=raw.waiting_jobs,
            pending_slots=raw.pending_slots,
            oldest_waiting_since=_time(raw, "oldest_waiting_since", raw.oldest_waiting_since),
            tenants=None if raw.open_to_all else tuple(raw.tenants),
            order=raw.order,
            packing=raw.packing,
            node_labels=dict(raw.node_labels),
        )


@dataclass(frozen=True)
class TenantShare:
    """What a tenant has of the cluster."""

    tenant: str
    share: int
    used_slots: int
    #: What was used a half-life ago counts half.
    used_slot_seconds: float
    #: 0 to 1, among tenants with open jobs: its part of what was used, and the part that is fair for it.
    used_part: float
    fair_part: float


@dataclass(frozen=True)
class Queues:
    """All queues and tenants that the caller sees."""

    queues: tuple[Queue, ...]
    tenants: tuple[TenantShare, ...]
    #: Among jobs of one priority those of the tenant go first that has used least for its share.
    fair_share: bool
    half_life_seconds: int
    raw: queue_pb2.ListQueuesResponse = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: queue_pb2.ListQueuesResponse) -> Queues:
        tenants = (
            TenantShare(one.tenant, one.share, one.used_slots, one.used_slot_seconds, one.used_part, one.fair_part)
            for one in raw.tenants
        )
        return cls(
            queues=tuple(Queue._of(queue) for queue in raw.queues),
            tenants=tuple(tenants),
            fair_share=raw.fair_share,
            half_life_seconds=raw.half_life_seconds,
            raw=raw,
        )


@dataclass(frozen=True)
class Usage:
    """What a tenant has used in a month."""

    tenant: str
    #: YYYY-MM, of UTC.
    month: str
    #: cpu or cuda.
    device: str
    slot_seconds: float


@dataclass(frozen=True)
class Identity:
    """Who the caller is to the controller, and which controller answered."""

    #: Of its token, certificate or account; `dev` where no login is asked for.
    name: str
    #: viewer, submitter, operator, admin or node.
    role: str
    #: Whose jobs the caller sees; empty for all.
    tenant: str
    #: Of the controller.
    version: str
    #: This controller leads.
    leads: bool
    #: host:port of the controller that leads; empty if that is not known.
    leader: str
    #: The controller's clock when it answered.
    at: datetime | None
    #: Root of pairs and checkpoints: file:///DIR or s3://BUCKET/PREFIX.
    object_store_url: str
    raw: access_pb2.WhoAmIResponse = field(repr=False, compare=False)

    @classmethod
    def _of(cls, raw: access_pb2.WhoAmIResponse) -> Identity:
        return cls(
            name=raw.name,
            role=raw.role,
            tenant=raw.tenant,
            version=raw.version,
            leads=raw.leads,
            leader=raw.leader,
            at=_time(raw, "at", raw.at),
            object_store_url=raw.object_store_url,
            raw=raw,
        )


def _files(raw: Iterable[checkpoint_pb2.CheckpointFile]) -> tuple[CheckpointFile, ...]:
    return tuple(CheckpointFile(file.name, file.size_bytes, file.sha256) for file in raw)


def _time(message: Message, name: str, value: Timestamp) -> datetime | None:
    return value.ToDatetime(timezone.utc) if message.HasField(name) else None


def _state(number: int) -> JobState:
    name = _name(job_pb2.JobState.DESCRIPTOR, number)
    return JobState(name) if name in JobState._value2member_map_ else JobState.UNKNOWN


def _phase(number: int) -> StagePhase:
    name = _name(job_pb2.StagePhase.DESCRIPTOR, number)
    return StagePhase(name) if name in StagePhase._value2member_map_ else StagePhase.UNKNOWN


def _name(of: EnumDescriptor, number: int) -> str:
    """The word of a value: `JOB_STATE_RUNNING` is running, and what is not known is unknown."""
    value = of.values_by_number.get(number)
    unset = of.values_by_number[0].name
    if value is None or number == 0:
        return "unknown"
    return value.name.removeprefix(unset.removesuffix("UNSPECIFIED")).lower()
