"""Tokens: where they come from, and how they are kept out of sight."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import threading
import time
from collections.abc import Sequence

from crescendo.errors import NotLoggedInError

#: Longest token that is read: far above any JSON Web Token.
_MAX_BYTES = 64 * 1024
#: Limit of a program that prints a token: it may ask a person to look at a browser.
_PROGRAM_SECONDS = 60.0
#: A token of a file or a program is read again after this: it may have been renewed.
_KEPT_SECONDS = 120.0


class TokenSource:
    """At most one of: a token, a file with one, a program that prints one. For several threads at a time."""

    def __init__(
        self,
        token: str | None,
        file: str | os.PathLike[str] | None,
        command: Sequence[str] | None,
    ) -> None:
        if sum(source is not None for source in (token, file, command)) > 1:
            raise ValueError("give one of token, token_file and token_command")
        if command is not None and (isinstance(command, str) or not command):
            raise ValueError("token_command is a list: a program and its arguments")
        self._given = None if token is None else _checked(token, "the token")
        self._file = None if file is None else pathlib.Path(file)
        self._command = None if command is None else list(command)
        self._lock = threading.Lock()
        self._kept: tuple[float, str] | None = None

    @property
    def is_some(self) -> bool:
        """Whether there is to be a token."""
        return not (self._given is None and self._file is None and self._command is None)

    def read(self) -> str | None:
        """The token as it is now, if there is to be one."""
        if self._given is not None or not self.is_some:
            return self._given
        with self._lock:
            if self._kept and time.monotonic() - self._kept[0] < _KEPT_SECONDS:
                return self._kept[1]
            token = _of_file(self._file) if self._file else _of_program(self._command or [])
            self._kept = (time.monotonic(), token)
            return token

    def forget(self) -> None:
        """What was read is read again the next time."""
        with self._lock:
            self._kept = None


def _of_file(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            # A group may read it: that is how Kubernetes mounts a secret for a user that is not root.
            if os.name == "posix" and stat.S_ISREG(found.st_mode) and found.st_mode & 0o007:
                raise NotLoggedInError(
                    f"the token in {path} can be read by everyone on this machine; close it with: chmod 600 {path}"
                )
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise NotLoggedInError(f"the token in {path} cannot be read: {error.strerror}") from error
    return _checked(text.decode("latin-1"), f"the token in {path}")


def _of_program(command: Sequence[str]) -> str:
    what = f"`{command[0]}`, which prints the token,"
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_PROGRAM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotLoggedInError(f"{what} did not end within {_PROGRAM_SECONDS:.0f} s") from error
    except OSError as error:
        raise NotLoggedInError(f"{what} cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        raise NotLoggedInError(f"{what} has failed with {done.returncode}; what it says is above")
    return _checked(done.stdout.decode("latin-1"), f"what `{command[0]}` printed")


def _checked(text: str, what: str) -> str:
    """One word of visible ASCII, with line ends around it perhaps. What is no token is not repeated."""
    token = text.strip()
    if not token:
        raise NotLoggedInError(f"{what} is empty")
    if len(token) > _MAX_BYTES:
        raise NotLoggedInError(f"{what} is longer than {_MAX_BYTES} bytes")
    if not all("!" <= character <= "~" for character in token):
        raise NotLoggedInError(f"{what} is not a token: it must be one word of visible ASCII")
    return token
