"""What can go wrong. Every error carries the server's words, and the gRPC error as its cause where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError

from crescendo.records import Problem, SubmittedJob
from crescendo.v1 import job_pb2

#: Metadata with every problem of a spec that was refused, as far as they fit (6 KiB).
_PROBLEMS = "crescendo-problems-bin"
#: Metadata with the milliseconds after which another try makes sense.
_RETRY_AFTER = "crescendo-retry-after-millis"


class CrescendoError(Exception):
    """The root of all; by itself an answer that none of the others stands for."""

    #: Name of the gRPC code that the server answered with, e.g. NOT_FOUND; empty if it was none.
    code: str = ""


class InvalidRequestError(CrescendoError, ValueError):
    """A field that is wrong, which the message names."""


class InvalidSpecError(InvalidRequestError):
    """A job spec that was refused, with every problem at once."""

    def __init__(self, message: str, problems: Sequence[Problem]) -> None:
        super().__init__(message)
        self.problems: tuple[Problem, ...] = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(["the spec is not valid", *map(str, self.problems)])


class NotFoundError(CrescendoError, LookupError):
    """No such job, checkpoint or file; or none that the caller may see."""


class AlreadyExistsError(CrescendoError):
    """The request id has been used for another spec."""


class NotAllowedError(CrescendoError):
    """The login is known, and may not do this."""


class NotLoggedInError(NotAllowedError):
    """No login, or one that is unknown or has expired."""


class WrongStateError(CrescendoError):
    """It is too late or too early: to pause a job that has ended, to retry one that has succeeded."""


class NotSupportedError(CrescendoError):
    """The controller is of a version that does not have this call."""


class BusyError(CrescendoError):
    """Too much at once, or over a quota, for as long as it was tried."""

    #: Seconds after which another try makes sense, as the server says; None if it does not.
    retry_after_seconds: float | None = None


class UnavailableError(CrescendoError):
    """No controller that leads could be reached for as long as it was tried."""


class TimedOutError(CrescendoError, TimeoutError):
    """What was waited for has not come about in time."""


class CorruptError(CrescendoError):
    """A file that is not what the registry says. Nothing of it is left."""


class NotThereYetError(NotFoundError):
    """The job has no such checkpoint so far."""


class CutShortError(CrescendoError):
    """A matrix of which only the first jobs could be submitted. The same call with the same group submits the rest."""

    def __init__(self, group: str, count: int, submitted: Sequence[SubmittedJob], why: CrescendoError) -> None:
        ids = ", ".join(job.job_id for job in submitted)
        super().__init__(
            f"{why}; submitted so far: {len(submitted)} of {count} jobs{f' ({ids})' if ids else ''}. The same call "
            f"with group={group!r} goes on with the rest and submits none twice; another spec needs another group"
        )
        self.code = why.code
        self.group = group
        self.submitted: tuple[SubmittedJob, ...] = tuple(submitted)


class _Call(Protocol):
    """What grpcio raises for a call that has failed: an error that is the call too."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Sequence[tuple[str, str | bytes]] | None: ...


_KINDS: dict[grpc.StatusCode, type[CrescendoError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.UNAUTHENTICATED: NotLoggedInError,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowedError,
    grpc.StatusCode.FAILED_PRECONDITION: WrongStateError,
    grpc.StatusCode.UNIMPLEMENTED: NotSupportedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: BusyError,
    # The same call may succeed a little later. The last three are what gRPC makes of a connection that a proxy has cut.
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: UnavailableError,
    grpc.StatusCode.ABORTED: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.INTERNAL: UnavailableError,
    grpc.StatusCode.UNKNOWN: UnavailableError,
}


def from_call(call: _Call) -> CrescendoError:
    """The error that a failed call stands for."""
    code, words = call.code(), call.details()
    message = words or f"the server answered {code.name} without a word"
    metadata = dict(call.trailing_metadata() or ())
    error = _KINDS.get(code, CrescendoError)(message)
    packed = metadata.get(_PROBLEMS)
    if isinstance(error, InvalidRequestError) and isinstance(packed, bytes):
        error = InvalidSpecError(message, _problems(packed))
    elif isinstance(error, BusyError):
        after = metadata.get(_RETRY_AFTER)
        if isinstance(after, str) and after.isdecimal():
            error.retry_after_seconds = int(after) / 1000
    error.code = code.name
    return error


def _problems(packed: bytes) -> list[Problem]:
    try:
        return [Problem._of(problem) for problem in job_pb2.SpecProblems.FromString(packed).problems]
    except DecodeError:
        return []
