"""Files of checkpoints: from where they come, and that they are what was registered."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

from crescendo.errors import CorruptError, CrescendoError, NotFoundError, NotThereYetError
from crescendo.records import Checkpoint, CheckpointFile

#: What a stage trains: a LoRA, or all weights.
LORA_FILE = "dit_lora.safetensors"
MODEL_FILE = "model.safetensors"
#: One line a step since the stage began.
HISTORY_FILE = "history.jsonl"
#: Bytes of a piece that is copied at a time.
_PIECE_BYTES = 1 << 20


def choose(checkpoints: list[Checkpoint], job_id: str, stage: str | None, step: int | None) -> Checkpoint:
    """The checkpoint of `step`, or else the newest that is not damaged; of the stage, or else of the last that has any.

    `checkpoints` are those of the job, oldest first.
    """
    if not checkpoints:
        raise NotThereYetError(f"job {job_id} has no checkpoint yet")
    stage = stage or checkpoints[-1].stage
    of_stage = [checkpoint for checkpoint in checkpoints if checkpoint.stage == stage]
    if not of_stage:
        known = dict.fromkeys(checkpoint.stage for checkpoint in checkpoints)
        raise NotThereYetError(f"job {job_id} has no checkpoint of a stage {stage}; it has some of {', '.join(known)}")
    if step is None:
        sound = [checkpoint for checkpoint in of_stage if not checkpoint.damaged]
        if not sound:
            raise CorruptError(f"every checkpoint of stage {stage} of job {job_id} is damaged: {of_stage[-1].damaged}")
        return sound[-1]
    of_step = [checkpoint for checkpoint in of_stage if checkpoint.step == step]
    if not of_step:
        steps = dict.fromkeys(str(checkpoint.step) for checkpoint in of_stage)
        raise NotThereYetError(
            f"stage {stage} of job {job_id} has no checkpoint of step {step}; it has those of {', '.join(steps)}"
        )
    if of_step[-1].damaged:
        raise CorruptError(f"the checkpoint of step {step} is damaged: {of_step[-1].damaged}")
    return of_step[-1]


def file_of(checkpoint: Checkpoint, name: str | None) -> CheckpointFile:
    """The file of that name, or else the trained weights."""
    files = {file.name: file for file in checkpoint.files}
    wanted = (name,) if name is not None else (LORA_FILE, MODEL_FILE)
    for one in wanted:
        if one in files:
            return files[one]
    raise NotFoundError(f"{checkpoint.path} has no {' or '.join(wanted)}; it has {', '.join(sorted(files))}")


class Sink:
    """A file that comes: beside its place until it is whole and right, then in it, so that nobody finds a part."""

    def __init__(self, to: pathlib.Path, file: CheckpointFile, key: str) -> None:
        self._to, self._file, self._key = to, file, key
        to.parent.mkdir(parents=True, exist_ok=True)
        self._part = to.with_name(f"{to.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
        self._open = self._part.open("xb")
        self.restart()

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._part.unlink(missing_ok=True)

    def restart(self) -> None:
        """It comes from its beginning again."""
        self._open.seek(0)
        self._open.truncate()
        self._hash, self.size_bytes = hashlib.sha256(), 0

    @property
    def is_whole(self) -> bool:
        """As many bytes as are registered have come, or more."""
        return self.size_bytes >= self._file.size_bytes

    def write(self, piece: bytes) -> None:
        """Takes the next piece."""
        self._open.write(piece)
        self._hash.update(piece)
        self.size_bytes += len(piece)

    def fill(self, pieces: Iterable[bytes]) -> None:
        """Takes all pieces; but what is longer than registered is wrong already."""
        for piece in pieces:
            self.write(piece)
            if self.size_bytes > self._file.size_bytes:
                return

    def finish(self) -> pathlib.Path:
        """Puts it in its place, if it is what was registered."""
        found, wanted = self._hash.hexdigest(), self._file
        if (self.size_bytes, found) != (wanted.size_bytes, wanted.sha256):
            raise CorruptError(
                f"{self._key} has {self.size_bytes} bytes and SHA-256 {found}; "
                f"registered are {wanted.size_bytes} and {wanted.sha256}"
            )
        self._open.flush()
        os.fsync(self._open.fileno())
        self._open.close()
        self._part.replace(self._to)
        return self._to


def local_path(object_store: str, key: str) -> pathlib.Path | None:
    """Where the object lies on this machine, if the store is a folder of it that has it for us."""
    kind, separator, root = object_store.partition("://")
    if not separator or kind != "file":
        return None
    path = pathlib.Path(root, key)
    return path if path.is_file() and os.access(path, os.R_OK) else None


def read(object_store: str, key: str) -> Iterator[bytes]:
    """The object's bytes, straight from the store: a folder, file:///DIR, or s3://BUCKET/PREFIX."""
    kind, separator, root = object_store.partition("://")
    if not separator:
        kind, root = "file", object_store
    if kind == "file":
        yield from _file(pathlib.Path(root, key))
    elif kind == "s3":
        yield from _bucket(root, key)
    else:
        raise ValueError(f"object store {object_store}: only folders, file:// and s3:// are known")


def _file(path: pathlib.Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is not there") from error


def _bucket(root: str, key: str) -> Iterator[bytes]:
    try:
        # Keys, region and endpoint come from the environment (AWS_...), as boto3 looks for them.
        import boto3  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415
        import botocore.exceptions  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: PLC0415
    except ImportError as missing:
        raise CrescendoError("a bucket is read with boto3: pip install 'crescendo-client[s3]'") from missing
    bucket, _, prefix = root.partition("/")
    wanted = "/".join(filter(None, [prefix.strip("/"), key]))
    try:
        body = boto3.client("s3").get_object(Bucket=bucket, Key=wanted)["Body"]
        with contextlib.closing(body):
            yield from body.iter_chunks(_PIECE_BYTES)
    except botocore.exceptions.ClientError as error:
        is_missing = error.response.get("Error", {}).get("Code") in ("NoSuchKey", "NoSuchBucket", "404")
        kind = NotFoundError if is_missing else CrescendoError
        raise kind(f"s3://{bucket}/{wanted} cannot be read: {error}") from error
    except botocore.exceptions.BotoCoreError as error:
        raise CrescendoError(f"s3://{bucket}/{wanted} cannot be read: {error}") from error
