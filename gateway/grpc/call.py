"""One call of a client: its metadata, its messages in both directions, and the status it ends with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

from google.protobuf.message import DecodeError
from httpunk.exceptions import HTTPunkError
from httpunk.h2.server import SendStream, ServerRequest

from gateway.grpc.wire import CONTENT_TYPE, Code, Reader, StatusError, framed, status_fields

__all__ = ["ACCEPTED", "Call", "while_there"]

HEADERS = [("content-type", CONTENT_TYPE)]
ACCEPTED = [*HEADERS, ("grpc-accept-encoding", "identity,deflate,gzip")]
BODY_SECONDS = 60.0
WATCH_AFTER = 0.02


class Call:
    """A call while it is answered; where it streams, also its stream (`gateway/routes/rpc.py`).

    Attributes:
        metadata: By lower-case names; of repeated ones the last.
        trailers: Sent with the status.
    """

    __slots__ = ("_reader", "_request", "_sending", "_takes", "metadata", "trailers")

    def __init__(self, request: ServerRequest, limit_bytes: int) -> None:
        """Take a request; messages are at most ``limit_bytes`` long."""
        self._request = request
        self._sending: SendStream | None = None
        self._takes: Callable[[bytes], Any] = bytes
        self.metadata = {name: value.decode("utf-8", "replace") for name, value in request.headers.items()}
        self.trailers: list[tuple[str, str]] = []
        self._reader = Reader(request.aiter_bytes(), limit_bytes, self.metadata.get("grpc-encoding", "identity"))

    def takes(self, kind: Callable[[bytes], Any]) -> None:
        """Say what reads its messages."""
        self._takes = kind

    async def message(self) -> Any:
        """Read the one message of a call that does not stream.

        Raises:
            StatusError: It is not one message, or does not come.
        """
        try:
            async with asyncio.timeout(BODY_SECONDS):
                data = await self._reader.read()
                if data is None:
                    raise StatusError(Code.INTERNAL, "the call has no message")
                if await self._reader.read() is not None:
                    raise StatusError(Code.INTERNAL, "the call has more than one message")
        except TimeoutError:
            text = f"the message did not arrive within {BODY_SECONDS:g} s"
            raise StatusError(Code.DEADLINE_EXCEEDED, text) from None
        return self._read(data)

    async def messages(self) -> AsyncIterator[Any]:
        """Iterate over what the client sends.

        Raises:
            StatusError: What comes is no such message.
        """
        while (data := await self._reader.read()) is not None:
            yield self._read(data)

    def _read(self, data: bytes) -> Any:
        try:
            return self._takes(data)
        except DecodeError:
            raise StatusError(Code.INTERNAL, "the message is not of the method's type") from None

    async def send(self, message: Any) -> None:
        """Send a message; waits while the client reads more slowly."""
        if self._sending is None:
            self._sending = await self._request.send_response(200, headers=ACCEPTED)
        await self._sending.send_data(framed(message.SerializeToString()))

    async def reply(self, message: Any) -> None:
        """End the call with its one message."""
        trailers = [*status_fields(Code.OK), *self.trailers]
        await self._request.respond(200, headers=ACCEPTED, body=framed(message.SerializeToString()), trailers=trailers)

    async def end(self, error: StatusError | None = None) -> None:
        """End the call; without an error it went well."""
        fields = status_fields(*(error.told if error is not None else (Code.OK,)))
        if self._sending is None:
            await self._request.respond(200, headers=[*ACCEPTED, *fields, *self.trailers])
        else:
            await self._sending.send_trailers([*fields, *self.trailers])


@contextmanager
def while_there(request: ServerRequest) -> Iterator[None]:
    """Cancel what is done within when the client gives up. Watching costs a task, so calls that are short go without.

    Raises:
        CancelledError: It gave up; whoever drives the connection ends with that.
    """
    task = cast("asyncio.Task[object]", asyncio.current_task())
    loop = asyncio.get_running_loop()
    watching: asyncio.Task[None] | None = None

    async def watch() -> None:
        with suppress(HTTPunkError):
            await request.reset_received()
        task.cancel()

    def begin() -> None:
        nonlocal watching
        watching = loop.create_task(watch(), name="grpc-watch")

    beginning = loop.call_later(WATCH_AFTER, begin)
    try:
        yield
    finally:
        beginning.cancel()
        if watching is not None:
            watching.cancel()
