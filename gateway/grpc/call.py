"""One call of a client: its metadata, its messages in both directions, and the status it ends with."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, cast

from google.protobuf.message import DecodeError
from httpunk.exceptions import HTTPunkError
from httpunk.h2.server import SendStream, ServerRequest
from httpunk.http import HeaderMap

from gateway.grpc.events import topic_event
from gateway.grpc.wire import CONTENT_TYPE, Reader, StatusError, framed, status_fields
from gateway.http2.fields import from_wire
from gateway.http2.server import Peer
from gateway.http2.watch import Watch
from gateway.status import Code
from mesh.blocks.proofs import PROVEN_BY
from mesh.operation import UNTRACED

__all__ = ["ACCEPTED", "Call", "Metadata"]

ACCEPTED = [("content-type", CONTENT_TYPE), ("grpc-accept-encoding", "identity,deflate,gzip")]
BODY_SECONDS = 60.0
Wire = list[tuple[str, bytes]]
_ACCEPTED, _OK = HeaderMap(ACCEPTED), HeaderMap(status_fields(Code.OK))


class Metadata(Mapping[str, str]):
    """The metadata of a call by lower-case names; of repeated ones the first."""

    __slots__ = ("fields",)

    def __init__(self, fields: HeaderMap) -> None:
        self.fields = fields

    def __getitem__(self, name: str) -> str:
        """Give a value."""
        return self.fields[name].decode("utf-8", "replace")

    def get(self, name: str, default: Any = None) -> Any:
        """Give a value, or else the default; what calls lack is common."""
        value = self.fields.get(name)
        return default if value is None else value.decode("utf-8", "replace")

    def all(self) -> list[tuple[str, str]]:
        """Give all of them, also what is repeated."""
        return from_wire(self.fields)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.fields.keys())

    def __len__(self) -> int:
        """Count the names."""
        return len(self.fields.keys())


class Call(Watch):
    """A call while it is answered; where it streams, also its stream (`gateway/routes/rpc.py`).

    As a context manager it ends what is done within when the client gives up, or its deadline is over.

    Attributes:
        connection: That it came over.
        metadata: What came with it.
        deadline: The client's, in Unix time; None = it gave none.
        headers: Sent before the answer.
        trailers: Sent with the status.
        trace: Its span, and what goes with it.
    """

    __slots__ = (
        "_message_until",
        "_reader",
        "_sending",
        "_takes",
        "connection",
        "deadline",
        "headers",
        "metadata",
        "trace",
        "trailers",
    )

    def __init__(self, request: ServerRequest, limit_bytes: int, connection: Peer) -> None:
        """Take a request; messages are at most ``limit_bytes`` long."""
        super().__init__(request)
        self.connection = connection
        self._sending: SendStream | None = None
        self._takes: Callable[[bytes], Any] = bytes
        self._message_until: float | None = None
        self.deadline: float | None = None
        self.metadata = Metadata(request.headers)
        self.headers: list[tuple[str, str]] = []
        self.trailers: list[tuple[str, str]] = []
        self.trace = UNTRACED
        self._reader = Reader(request.aiter_bytes(), limit_bytes, self.metadata.get("grpc-encoding", "identity"))

    def limit(self) -> float | None:
        """Give the client's deadline, or the time at which its one message must be there."""
        deadline, message = self.deadline, self._message_until
        return deadline if message is None or (deadline is not None and deadline < message) else message

    def ended(self, *, late: bool) -> StatusError:
        """Say why the call ends."""
        if not late:
            return StatusError(Code.CANCELLED, "the client gave up")
        if self.deadline is None or time.time() < self.deadline:
            return StatusError(Code.DEADLINE_EXCEEDED, f"the message did not arrive within {BODY_SECONDS:g} s")
        return StatusError(Code.DEADLINE_EXCEEDED, "no answer within the deadline")

    def takes(self, kind: Callable[[bytes], Any]) -> None:
        """Say what reads its messages."""
        self._takes = kind

    async def message(self) -> Any:
        """Read the one message of a call that does not stream.

        Raises:
            StatusError: It is not one message, or none of its type.
        """
        self._message_until = time.time() + BODY_SECONDS
        data = await self._reader.only()
        self._message_until = None
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
        """Send a message; waits while the client reads more slowly.

        Raises:
            OSError: The client is gone.
        """
        await self.send_raw(framed(message.SerializeToString()))

    async def send_raw(self, messages: bytes) -> None:
        """Send messages that are serialized and framed; none of them begins the answer, and says no more.

        Raises:
            OSError: The client is gone.
        """
        try:
            if self._sending is None:
                self._sending = await self._request.send_response(200, headers=self._accepted())
            if messages:
                await self._sending.send_data(messages)
        except HTTPunkError as error:
            raise ConnectionError(str(error)) from error

    async def break_off(self) -> None:
        """End the stream visibly in the middle."""
        await self._request.reset()

    def event(self, envelope: bytes, path: str, proven: str | None, into: Callable[[Any], Any]) -> Any:
        """Make the message of an event, and from that what the client is handed.

        Raises:
            EventError: The client could not read it.
        """

        def told(event: Any) -> Any:
            event.extensions.fields.pop(PROVEN_BY, None)  # The publisher's own word.
            if proven is not None:
                event.extensions[PROVEN_BY] = proven
            return into(event)

        return topic_event(envelope, path, told)

    async def begin(self, headers: Wire, *, ends: bool = False) -> None:
        """Begin an answer that is another's: ``write`` and ``finish`` follow, unless it ends so."""
        self._sending = await self._request.send_response(200, headers=cast("Any", headers), end_stream=ends)

    async def write(self, data: bytes) -> None:
        """Send some of that body; waits while the client reads more slowly."""
        assert self._sending is not None
        await self._sending.send_data(data)

    async def finish(self, trailers: Wire) -> None:
        """End the body with another's status."""
        assert self._sending is not None
        await self._sending.send_trailers(cast("Any", trailers))

    async def reply(self, message: Any) -> None:
        """End the call with its one message."""
        trailers = HeaderMap([*status_fields(Code.OK), *self.trailers]) if self.trailers else _OK
        sending = self._sending = await self._request.send_response(200, headers=self._accepted())
        await sending.send_data(framed(message.SerializeToString()))  # It may be over before the client has read that.
        await sending.send_trailers(trailers)

    def _accepted(self) -> HeaderMap:
        return HeaderMap([*ACCEPTED, *self.headers]) if self.headers else _ACCEPTED

    async def end(self, error: StatusError | None = None) -> None:
        """End the call; without an error it went well."""
        fields = status_fields(*(error.told if error is not None else (Code.OK,)))
        if self._sending is None:
            await self._request.respond(200, headers=[*ACCEPTED, *self.headers, *fields, *self.trailers])
        else:
            await self._sending.send_trailers([*fields, *self.trailers])
