"""A connection to a pluggable component: a program that may end, hang, and come back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from copy import copy
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio

from bindings.pluggable._messages import COMPONENTS, REFLECTION, Message, message, method, violated
from mesh.sockets import FOLDER

__all__ = ["CALL_SECONDS", "CONNECT_SECONDS", "Connection", "Failed", "is_leaving"]

CONNECT_SECONDS = 5.0
CALL_SECONDS = 15.0  # As long as an operation has that says nothing else; the component is told.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
USUAL_LIMIT_BYTES = 4 * 1024 * 1024 - 1024  # Of what a server of gRPC takes unless it says otherwise, headers off.
# Dapr's own discovery asks for the first.
REFLECTIONS = ("v1alpha", "v1")
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.default_authority", "localhost"),  # Some servers refuse the path of a socket there.
    ("grpc.enable_retries", 0),  # A call that is sent anew by itself would come to a program without its settings.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),
    ("grpc.max_reconnect_backoff_ms", 500),
]
# Held for good: the library would end its thread with the last channel, and wait for that in the event loop.
grpc.aio.init_grpc_aio()
_Code = grpc.StatusCode
AWAY = frozenset({_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.CANCELLED})
FINAL = frozenset(
    {
        _Code.ALREADY_EXISTS,
        _Code.DATA_LOSS,
        _Code.FAILED_PRECONDITION,
        _Code.INVALID_ARGUMENT,
        _Code.NOT_FOUND,
        _Code.OUT_OF_RANGE,
        _Code.PERMISSION_DENIED,
        _Code.UNAUTHENTICATED,
        _Code.UNIMPLEMENTED,
    }
)


class Failed(Exception):
    """A call was not answered with a message.

    Attributes:
        code: Its status.
        sent: Whether the component may have been asked.
        closed: Whether that is so because the connection was closed on this side.
        violations: Fields of the request that the component says were wrong, and why.
        large: Whether the request is larger than servers take unless they say otherwise.
    """

    def __init__(
        self, text: str, code: grpc.StatusCode = _Code.UNAVAILABLE, *, sent: bool = False, closed: bool = False
    ) -> None:
        super().__init__(text)
        self.code = code
        self.sent = sent
        self.closed = closed
        self.violations: dict[str, str] = {}
        self.large = False

    @property
    def away(self) -> bool:
        """Whether nobody answered."""
        return self.code in AWAY

    @property
    def final(self) -> bool:
        """Whether the same call would fail again; too large a request would."""
        return self.code in FINAL or self.too_large

    @property
    def too_large(self) -> bool:
        """Whether the component does not take a request of this size."""
        return self.code is _Code.RESOURCE_EXHAUSTED and self.large

    @property
    def unsure(self) -> bool:
        """Whether what was asked may have been done: nothing says that it was refused."""
        return self.sent and (self.away or self.code in (_Code.UNKNOWN, _Code.INTERNAL))


class Connection:
    """Calls a component's methods.

    A program that came back knows nothing of the component's settings: it is told by the age of its socket, which no
    other program can listen at, and initialised before anything else is asked.

    Attributes:
        service: The one that has ``Ping``.
        shown: Gives a text of the program as it may be shown: what the program says may hold secrets of its settings.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        service: str,
        initialise: Callable[[Connection], Awaitable[None]],
        shown: Callable[[str], str] = str,
    ) -> None:
        """Prepare.

        Args:
            path: The socket.
            name: Of the component: a program may answer for several.
            service: The one that has ``Ping``.
            initialise: Tells a new program the settings; it calls with ``first=True``.
            shown: Gives a text of the program as it may be shown.
        """
        self.shown = shown
        self._path = path
        self.service = service
        self._initialise = initialise
        instance = name if name.isascii() and name.isprintable() else quote(name)
        self._metadata = (("x-component-instance", instance),)
        self._channel = grpc.aio.insecure_channel(f"unix:{path}", options=OPTIONS)
        self._connecting = asyncio.Lock()
        self._failures = 0
        self._failure = Failed("")
        self._program: tuple[int, ...] | None = None

    async def close(self) -> None:
        """End every call."""
        await self._channel.close()

    async def services(self) -> frozenset[str]:
        """Ask which services the component has, by server reflection; a name has no package if it is of ours.

        Raises:
            Failed: It does not say; UNIMPLEMENTED when it has no reflection.
        """
        await self._seen()
        request = message("ServerReflectionRequest", REFLECTION)(list_services="*")
        for version in REFLECTIONS:
            # Nothing is sent after the one request. With ``stream_stream`` grpcio may send its end after a component
            # that has no such service has answered, and says INTERNAL then.
            open_ = self._channel.unary_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=_written,
                response_deserializer=message("ServerReflectionResponse", REFLECTION).FromString,
            )
            call = open_(request, timeout=CONNECT_SECONDS, metadata=self._metadata, wait_for_ready=True)
            try:
                answer = await call.read()
            except grpc.aio.AioRpcError as error:
                if error.code() is _Code.UNIMPLEMENTED:
                    continue
                raise self._failed(error, "server reflection") from None
            finally:
                call.cancel()
            listed = getattr(answer, "list_services_response", None)  # None where the stream ended with nothing.
            names = frozenset(each.name for each in listed.service) if listed is not None else frozenset()
            return frozenset(name.removeprefix(f"{COMPONENTS}.") for name in names)
        raise Failed(
            f"{self._path} has no server reflection, by which a component says what it is", _Code.UNIMPLEMENTED
        )

    async def call(
        self, service: str, name: str, request: Message, *, first: bool = False, seconds: float = CALL_SECONDS
    ) -> Message:
        """Call a method; gives its answer.

        Args:
            service: Of the method.
            name: Of the method.
            request: A message.
            first: Whether it is asked before the component is ready: it waits for the connection.
            seconds: The time that the component has.

        Raises:
            Failed: There is none.
        """
        if not first:
            await self._ready()
        open_ = _opening(self._channel.unary_unary, service, name)
        try:
            answer = await open_(request, timeout=seconds, metadata=self._metadata, wait_for_ready=first)
        except grpc.aio.AioRpcError as error:
            failed = self._failed(error, f"{service}.{name}")
            failed.large = request.ByteSize() > USUAL_LIMIT_BYTES
            raise await self._explained(failed) from None
        except grpc.aio.UsageError as error:  # The channel was closed.
            raise Failed(f"{self._path}: {error}", closed=True) from None
        except asyncio.CancelledError:
            if is_leaving():
                raise
            raise Failed(f"{self._path}: the connection was closed meanwhile", sent=True, closed=True) from None
        if answer is None:
            raise Failed(
                f"{service}.{name} of {self._path} was answered with no such message", _Code.INTERNAL, sent=True
            )
        return answer

    async def stream(self, service: str, name: str) -> Any:
        """Begin a stream in both directions: a call of ``grpc.aio``, which has no deadline.

        Raises:
            Failed: There is no connection.
        """
        await self._ready()
        try:
            return _opening(self._channel.stream_stream, service, name)(metadata=self._metadata)
        except grpc.aio.UsageError as error:  # The channel was closed.
            raise Failed(f"{self._path}: {error}", closed=True) from None

    async def _ready(self) -> None:
        """Return when the program that listens is connected to, and has the settings."""
        if self._is_ready():
            return
        failures = self._failures
        async with self._connecting:
            if self._is_ready():  # Whoever waited finds it done.
                return
            if failures != self._failures:  # Or shares the failure; else the last would wait for all attempts.
                raise copy(self._failure)
            try:
                await self.connect()
            except Failed as failed:
                self._failures += 1
                self._failure = copy(failed)  # Without its traceback, which holds on to the call.
                raise

    def _is_ready(self) -> bool:
        return self._program is not None and self._channel.get_state() is grpc.ChannelConnectivity.READY

    async def connect(self) -> None:
        """Connect to the program that listens; one that is new is initialised.

        Raises:
            Failed: Nobody answers, or it refuses its settings.
        """
        program = await self._seen()
        try:
            if program == self._program:
                await self.call(self.service, "Ping", message("PingRequest")(), first=True)
            else:
                self._program = None
                await self._initialise(self)
                self._program = program
        except Failed as failed:
            failed.sent = False  # What is to follow was not.
            raise

    async def _seen(self) -> tuple[int, ...]:
        """See that somebody listens; what it gives differs when it is another program."""
        path, why = self._path, ""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_unix_connection(path)
                writer.transport.abort()
                found = await asyncio.to_thread(os.stat, path)
            return found.st_dev, found.st_ino, found.st_mtime_ns
        except FileNotFoundError:
            why = f"there is no such socket; its program does not run, or uses another folder ({FOLDER})"
        except ConnectionRefusedError:
            why = "nobody listens there; the program that made it has ended"
        except PermissionError:
            why = f"its permissions, or those of its folder, do not let user {os.geteuid()} write to it"
        except TimeoutError:
            why = f"it took no connection within {CONNECT_SECONDS:g} s"
        except OSError as error:
            why = str(error)
        raise Failed(f"cannot reach the pluggable component at {path}: {why}")

    async def _explained(self, failed: Failed) -> Failed:
        """Say why nobody answered, where nobody listens any more: gRPC says only how the connection broke."""
        if failed.code is _Code.UNAVAILABLE:
            try:
                await self._seen()
            except Failed as unseen:
                unseen.sent = failed.sent
                return unseen
        return failed

    def _failed(self, error: grpc.aio.AioRpcError, what: str) -> Failed:
        why = self.shown(error.details() or "failed")
        text = f"{what} of the pluggable component at {self._path}: {why} ({error.code().name})"
        failed = Failed(text, error.code(), sent=True)
        trailers = dict(error.trailing_metadata() or ())
        details = trailers.get("grpc-status-details-bin", b"")
        found = violated(details if isinstance(details, bytes) else b"")
        failed.violations = {name: self.shown(text) for name, text in found.items()}
        return failed


def is_leaving() -> bool:
    """Tell whether this task was cancelled; a call that ends on this side says the same of itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _opening(kind: Callable[..., Any], service: str, name: str) -> Any:
    """Give what begins a call of a component's method."""
    answer = message(method(service, name).output_type.name)
    path = f"/{COMPONENTS}.{service}/{name}"
    return kind(path, request_serializer=_written, response_deserializer=answer.FromString)


def _written(request: Message) -> bytes:
    written: bytes = request.SerializeToString()
    return written
