"""Calls to several controllers, one of which leads: through an outage, with a token, and never for ever."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from crescendo import errors
from crescendo._token import TokenSource

#: Limit of one try of one call, seconds.
TRY_SECONDS = 10.0
#: A stream on which nothing has come for so long is dead: a controller says something every 25 s.
SILENCE_SECONDS = 75.0
#: Pause between two tries: at first, and at most.
PAUSE_SECONDS = (0.2, 3.0)
#: Limit of opening a connection, milliseconds.
CONNECT_MILLIS = 5_000
#: The largest answer that controllers give.
MAX_REPLY_BYTES = 64 << 20

Answer = TypeVar("Answer")
Piece_co = TypeVar("Piece_co", covariant=True)
Pieces = TypeVar("Pieces")

#: What every call is given: its limit, seconds, and the login.
Metadata = tuple[tuple[str, str], ...]


class Stream(Protocol[Piece_co]):
    """A call whose answers come one by one."""

    def __next__(self) -> Piece_co: ...
    def cancel(self) -> bool: ...


@dataclass(frozen=True)
class Files:
    """PEM files. None of them: plain connections to this machine, or the system's roots."""

    ca: str | os.PathLike[str] | None
    cert: str | os.PathLike[str] | None
    key: str | os.PathLike[str] | None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a certificate needs its key: give both of cert and key")

    @property
    def any(self) -> bool:
        """Whether one is given."""
        return self.ca is not None or self.cert is not None

    def credentials(self) -> grpc.ChannelCredentials:
        """What they come to. Without roots of our own, those that gRPC brings."""

        def read(path: str | os.PathLike[str] | None) -> bytes | None:
            return None if path is None else pathlib.Path(path).read_bytes()

        return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.cert))


class Wire:
    """The controllers of a cluster. For several threads at a time."""

    def __init__(self, addresses: Sequence[str], files: Files, token: TokenSource) -> None:
        if not addresses:
            raise ValueError("name at least one controller, host:port")
        places = [place(address, files, token.is_some) for address in addresses]
        credentials = files.credentials() if any(encrypted for _, encrypted in places) else None
        self._addresses = tuple(addresses)
        self._token = token
        self._channels = [_open(target, credentials if encrypted else None) for target, encrypted in places]
        self._current = 0

    def close(self) -> None:
        """Ends all connections, and what goes on over them."""
        for channel in self._channels:
            channel.close()

    def call(self, within_seconds: float, do: Callable[[grpc.Channel, float, Metadata], Answer]) -> Answer:
        """Calls until there is an answer or a refusal, for `within_seconds` at most.

        The call may reach a controller more than once: it must be one that does not mind.
        """
        patience = Patience(within_seconds)
        while True:
            at = self._current
            try:
                return do(self._channel(at), min(TRY_SECONDS, max(patience.left, 0.1)), self._metadata())
            except grpc.RpcError as broken:
                self.pass_on(at, broken, patience)

    def stream(self, open_stream: Callable[[grpc.Channel, Metadata], Stream[Pieces]]) -> tuple[int, Iterator[Pieces]]:
        """One try of a call with many answers, and at which controller; it ends once nothing comes any more."""
        at = self._current
        return at, _heard(open_stream(self._channel(at), self._metadata()))

    def pass_on(self, at: int, broken: grpc.RpcError | None, patience: Patience) -> errors.CrescendoError:
        """After a try at controller `at` has failed: raises the error, or waits for the next try and gives it back."""
        error = of_rpc(broken)
        if isinstance(error, errors.NotLoggedInError):
            self._token.forget()
        hint = getattr(error, "retry_after_seconds", None)
        if not isinstance(error, errors.UnavailableError | errors.BusyError):
            raise error from broken
        if not patience.wait(hint):
            if isinstance(error, errors.UnavailableError):
                code = error.code
                where = ", ".join(self._addresses)
                error = errors.UnavailableError(f"the controller at {where} cannot be reached: {error}")
                error.code = code
            raise error from broken
        # Somebody else who shares this may have gone on already.
        if self._current == at:
            self._current = at + 1
        return error

    def _channel(self, at: int) -> grpc.Channel:
        return self._channels[at % len(self._channels)]

    def _metadata(self) -> Metadata:
        token = self._token.read()
        return (("authorization", f"Bearer {token}"),) if token else ()


class Patience:
    """How long to go on trying, from the first failure or the last success."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def renew(self) -> None:
        """Something has come: it begins anew."""
        self._end = time.monotonic() + self._seconds
        self._pause = PAUSE_SECONDS[0]

    def wait(self, hint_seconds: float | None) -> bool:
        """Waits for the next try; not if that would be too late."""
        pause = max(self._pause, hint_seconds or 0.0)
        if pause >= self.left:
            return False
        time.sleep(pause)
        self._pause = min(2 * self._pause, PAUSE_SECONDS[1])
        return True


def of_rpc(broken: grpc.RpcError | None) -> errors.CrescendoError:
    """The error that a call or stream has ended with; a stream that has just ended was closed."""
    if broken is None:
        return errors.UnavailableError("the controller closed the connection")
    if isinstance(broken, grpc.Call):
        return errors.from_call(broken)
    return errors.UnavailableError(str(broken))


def place(address: str, files: Files, has_token: bool) -> tuple[str, bool]:
    """host:port of an address, and whether the connection is encrypted.

    TLS where the address, a file or a token says so. A token goes over a plain connection only within this machine.
    """

    def wrong(why: str) -> ValueError:
        return ValueError(f"{address!r} is not an address (host:port): {why}")

    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    elif scheme not in ("http", "https"):
        raise wrong("only http:// and https:// are known")
    target = rest.rstrip("/") if scheme else rest
    host, colon, port = target.rpartition(":")
    if not colon:
        raise wrong("the port is missing")
    if not host or any(character in target for character in "/@ "):
        raise wrong("there must be a host, a colon and a port, and nothing else")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise wrong("the port is not a number up to 65535")
    loopback = _is_loopback(host)
    encrypted = scheme == "https" or (not scheme and (files.any or (has_token and not loopback)))
    if not encrypted and has_token and not loopback:
        raise ValueError(
            f"the token is not sent to {address}: the connection would not be encrypted; "
            "give the address without http://"
        )
    if not encrypted and files.any:
        raise ValueError(
            f"{address} asks for a plain connection, and ca or cert for an encrypted one; leave one of them out"
        )
    return target, encrypted


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _open(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    options = [
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        # A controller that comes back is found at once.
        ("grpc.min_reconnect_backoff_ms", CONNECT_MILLIS),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 3_000),
    ]
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


def _heard(stream: Stream[Pieces]) -> Iterator[Pieces]:
    """What comes over a stream, which is cancelled when nothing comes for too long, or nobody wants more."""
    guard = _Guard(stream)
    try:
        while True:
            guard.waits_since = time.monotonic()
            try:
                piece = next(stream)
            except StopIteration:
                return
            except grpc.RpcError as broken:
                if guard.expired:
                    raise grpc.RpcError(f"nothing has come for {SILENCE_SECONDS:.0f} s") from broken
                raise
            # The time that the reader takes for what has come is its own.
            guard.waits_since = None
            yield piece
    finally:
        guard.close()
        stream.cancel()


class _Guard:
    """Cancels a stream once somebody has waited too long for its next piece."""

    def __init__(self, stream: Stream[object]) -> None:
        self.waits_since: float | None = None
        self.expired = False
        self._stream = stream
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="crescendo-stream", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(SILENCE_SECONDS / 10):
            since = self.waits_since
            if since is not None and time.monotonic() - since > SILENCE_SECONDS:
                self.expired = True
                self._stream.cancel()
                return
