"""A stream of gRPC that a client holds open: it says what for, is handed messages, and answers each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, cast

from gateway.errors import APIError, bad_request
from gateway.routes.rpc import Called, Stream
from mesh.tasks import task_group

__all__ = ["INITIAL", "Handed", "HeldStream"]

BEGIN_SECONDS = 60.0
LEAVE_SECONDS = 2.0
CLOSE_SECONDS = 1.0
INITIAL = "initial_request"


class Handed(Protocol):
    """What the client is handed.

    Attributes:
        begun: Set once there is what the client asked for.
    """

    begun: asyncio.Event

    def outgoing(self) -> AsyncIterator[Any]:
        """Iterate over messages, until it ends."""

    def end(self) -> None:
        """Hand out nothing more."""


class HeldStream:
    """Both directions of a stream; ``initial`` is its beginning, ``hold`` the rest."""

    def __init__(self, called: Called, member: str) -> None:
        """Use a call.

        Args:
            called: The call.
            member: What says in the client's messages what each of them is.
        """
        self._called, self._client = called, cast("Stream", called.stream)
        self._messages = self._client.messages()
        self._member = member
        self._problem: Exception | None = None

    def _kind(self, message: Any) -> str | None:
        return cast("str | None", message.WhichOneof(self._member))

    async def initial(self) -> Any:
        """Take what the client begins with.

        Raises:
            APIError: Nothing came, or something else.
        """
        try:
            async with asyncio.timeout(BEGIN_SECONDS):
                first = await anext(self._messages, None)
        except TimeoutError:
            text = f"the first message of the stream did not arrive within {BEGIN_SECONDS:g} s"
            raise APIError(408, "ERR_BODY_READ", text) from None
        if first is None or self._kind(first) != INITIAL:
            raise bad_request(f"the first message of the stream must be its {INITIAL}")
        return first.initial_request

    async def hold(
        self, handed: Handed, work: Callable[[], Awaitable[object]], take: Callable[[str, Any], None]
    ) -> None:
        """Hand out and take, until the work or the stream ends.

        Args:
            handed: What the client is handed.
            work: What that is for; it ends soon after ``handed``.
            take: Takes an answer: the name of its kind, and itself.

        Raises:
            Exception: What was wrong with what the client sent, or else why the work ended.
            ConnectionError: The client did not read to the end.
        """
        async with task_group() as tasks:
            reading = tasks.create_task(self._read(handed, take), name="stream-read")
            writing = tasks.create_task(self._write(handed), name="stream-write")
            running = tasks.create_task(self._run(work), name="stream-run")
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:  # The client is gone: what it had is given back before this ends.
                handed.end()
                await asyncio.wait([running], timeout=LEAVE_SECONDS)
                raise
            handed.end()
            reading.cancel()
            begun = handed.begun.is_set()
            if begun:  # A message is not cut off in the middle, as far as the client reads.
                await asyncio.wait([writing], timeout=CLOSE_SECONDS)
            cut = writing.cancel() and begun
        if cut:  # A status behind half a message could not be read.
            await self._client.break_off()
            raise ConnectionError("the client did not read to the end")
        if self._problem is not None:
            raise self._problem

    async def _run(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - raised once what was begun is written
            self._problem = self._problem or error

    async def _write(self, handed: Handed) -> None:
        """Write what is handed out, behind what says that it has begun."""
        await handed.begun.wait()
        with suppress(OSError):
            await self._client.send(self._called.reply(initial_response={}))
            async for message in handed.outgoing():
                await self._client.send(message)
        handed.end()

    async def _read(self, handed: Handed, take: Callable[[str, Any], None]) -> None:
        """Take answers; the end of them is that of the stream."""
        try:
            async for message in self._messages:
                kind = self._kind(message)
                if kind == INITIAL:
                    raise bad_request(f"a stream has one {INITIAL}, at its beginning")
                if kind is not None:  # Of none nothing is known, and a later version may tell something new so.
                    take(kind, getattr(message, kind))
        except Exception as error:  # noqa: BLE001 - raised by whoever waits for the stream's end
            self._problem = error
        handed.end()
