"""A client of Crescendo, a training cluster for subject-driven image generation.

    from crescendo import Client

    with Client("127.0.0.1:7070") as client:
        job = client.submit(pathlib.Path("job.yaml"))
        for job in client.watch(job):
            print(job.state, [f"{stage.name} {stage.step}/{stage.steps_total}" for stage in job.stages])
        client.fetch(job, "dit_lora.safetensors")

Errors are subclasses of `CrescendoError`, and carry the server's words. `crescendo.v1` has the messages and stubs of
the protos, for what this layer leaves out.
"""

from crescendo.client import Client
from crescendo.comparison import ABSENT, Absent, Comparison, Difference, JobFigures, StageFigures
from crescendo.errors import (
    AlreadyExistsError,
    BusyError,
    CorruptError,
    CrescendoError,
    CutShortError,
    InvalidRequestError,
    InvalidSpecError,
    NotAllowedError,
    NotFoundError,
    NotLoggedInError,
    NotSupportedError,
    NotThereYetError,
    TimedOutError,
    UnavailableError,
    WrongStateError,
)
from crescendo.records import (
    Checkpoint,
    CheckpointFile,
    Deletion,
    DeletionPart,
    DeletionPreview,
    Explanation,
    FinalCheckpoint,
    Identity,
    Job,
    JobState,
    Lineage,
    LogLine,
    Node,
    Note,
    PairMark,
    PairMarks,
    Problem,
    Queue,
    Queues,
    QueueSlots,
    Sampling,
    Stage,
    StagePhase,
    SubmittedJob,
    TenantShare,
    Usage,
    Validation,
    ValidationLoss,
)

__all__ = [
    "ABSENT",
    "Absent",
    "AlreadyExistsError",
    "BusyError",
    "Checkpoint",
    "CheckpointFile",
    "Client",
    "Comparison",
    "CorruptError",
    "CrescendoError",
    "CutShortError",
    "Deletion",
    "DeletionPart",
    "DeletionPreview",
    "Difference",
    "Explanation",
    "FinalCheckpoint",
    "Identity",
    "InvalidRequestError",
    "InvalidSpecError",
    "Job",
    "JobFigures",
    "JobState",
    "Lineage",
    "LogLine",
    "Node",
    "NotAllowedError",
    "NotFoundError",
    "NotLoggedInError",
    "NotSupportedError",
    "NotThereYetError",
    "Note",
    "PairMark",
    "PairMarks",
    "Problem",
    "Queue",
    "QueueSlots",
    "Queues",
    "Sampling",
    "Stage",
    "StageFigures",
    "StagePhase",
    "SubmittedJob",
    "TenantShare",
    "TimedOutError",
    "UnavailableError",
    "Usage",
    "Validation",
    "ValidationLoss",
    "WrongStateError",
]
