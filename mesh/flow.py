"""Bytes in parts, which go along with an operation whose method is ``streamed``, in bounded memory.

Those that follow its arguments are its ``Body``; those behind its result come with a ``Flow``, which its caller closes.
Here a component is given the one and gives the other. Where it is hosted elsewhere, both cross the backbone behind the
values: each is a length of four bytes, the value (MessagePack), and what follows it.

What has no limit in time as a whole has one on standing still. Whoever waits for the other side, who may be slow, is
not counted: a body's source and the reader of a flow have limits of their own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from mesh.errors import DeadlineExceededError, EventError, MessageTooLargeError

__all__ = ["IDLE_SECONDS", "STREAM_SECONDS", "Body", "Flow", "held_open", "joined_to", "parted", "prefixed"]

IDLE_SECONDS = 60.0
STREAM_SECONDS = 24 * 3600.0
LENGTH_BYTES = 4
MAX_VALUE_BYTES = 64 * 1024 * 1024


class Body:
    """What follows the arguments of an operation, as it comes; it can be read once.

    Attributes:
        begun: Whether some of it was asked for: then the operation cannot be tried again.
        error: What broke it off.
    """

    __slots__ = ("_limit", "_seconds", "_source", "begun", "error")

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        """Read nothing yet."""
        self._source = source
        self._limit: asyncio.Timeout | None = None
        self._seconds = IDLE_SECONDS
        self.begun = False
        self.error: Exception | None = None

    def bound(self, limit: asyncio.Timeout, seconds: float) -> None:
        """Have a limit begin anew with each part, and wait while one is waited for."""
        self._limit, self._seconds = limit, seconds

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Iterate over it; raises what broke it off."""
        self.begun = True
        while True:
            self._wait(None)
            try:
                part = await anext(self._source, None)
            except Exception as error:
                self.error = error
                raise
            finally:
                self._wait(self._seconds)
            if part is None:
                return
            if part:
                yield part

    def _wait(self, seconds: float | None) -> None:
        if self._limit is None or self._limit.expired():
            return
        try:
            self._limit.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)
        except RuntimeError:
            self._limit = None  # Whoever it was given to has gone on without it.


class Flow:
    """What a streamed operation gave. It is closed by whoever got it, also if nothing of it was read.

    Attributes:
        result: Of the method's type.
        source: The bytes behind it; None = there is nothing.
    """

    __slots__ = ("_stack", "result", "source")

    def __init__(
        self, result: object, source: AsyncGenerator[bytes, None] | None, stack: AsyncExitStack | None = None
    ) -> None:
        """Hold on to what is left with the stack, once the source is closed."""
        self.result = result
        self.source = source
        self._stack = stack

    async def aclose(self) -> None:
        """Let go of it."""
        stack, self._stack = self._stack, None
        try:
            if self.source is not None:
                await self.source.aclose()
        finally:
            if stack is not None:
                await stack.aclose()


async def held_open(
    run: Callable[[Any], Awaitable[object]],
    operation: Any,
    body: Body | None,
    life: AbstractContextManager[object],
    seconds: float = IDLE_SECONDS,
) -> Flow:
    """Have a component do a streamed operation, until its first part is there; it is used until the flow is closed.

    Raises:
        DeadlineExceededError: Nothing moved for so many seconds.
        MeshError: What the component raised.
    """
    stack = AsyncExitStack()
    stack.enter_context(life)
    try:
        async with _moving(seconds) as limit:
            if body is not None:
                body.bound(limit, seconds)
            flow = await run(operation)
            assert isinstance(flow, Flow)
            stack.push_async_callback(flow.aclose)
            # What goes wrong by then is told as of any operation; later, an answer only breaks off.
            first = b"" if flow.source is None else await anext(flow.source, b"")
    except BaseException:
        await stack.aclose()
        raise
    return Flow(flow.result, None if flow.source is None else _going_on(first, flow.source, seconds), stack)


@asynccontextmanager
async def _moving(seconds: float) -> AsyncGenerator[asyncio.Timeout, None]:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceededError(f"nothing moved for {seconds:g} s") from None


async def _going_on(first: bytes, source: AsyncGenerator[bytes, None], seconds: float) -> AsyncGenerator[bytes, None]:
    part: bytes | None = first
    while part is not None:
        if part:
            yield part
        async with _moving(seconds):
            part = await anext(source, None)


def prefixed(value: bytes) -> bytes:
    """Write a value so that something can follow it; raises ``MessageTooLargeError``."""
    if len(value) > MAX_VALUE_BYTES:
        raise MessageTooLargeError(len(value), MAX_VALUE_BYTES)
    return len(value).to_bytes(LENGTH_BYTES) + value


async def joined_to(value: bytes, body: Body | None) -> AsyncIterator[bytes]:
    """Send a value that is prefixed, and what follows it."""
    yield value
    if body is not None:
        async with aclosing(body.parts()) as parts:
            async for part in parts:
                yield part


async def parted(parts: AsyncIterator[bytes]) -> tuple[bytes, AsyncGenerator[bytes, None]]:
    """Read a value that is prefixed; give it and what follows it.

    Raises:
        EventError: There is none.
        MessageTooLargeError: It is too large.
    """
    read = bytearray()
    wanted: float = LENGTH_BYTES
    length = math.inf
    while len(read) < wanted:
        part = await anext(parts, None)
        if part is None:
            raise EventError("another node's stream has no beginning")
        read += part
        if length == math.inf and len(read) >= LENGTH_BYTES:
            length = int.from_bytes(read[:LENGTH_BYTES])
            if length > MAX_VALUE_BYTES:
                raise MessageTooLargeError(int(length), MAX_VALUE_BYTES)
            wanted = LENGTH_BYTES + length
    end = int(wanted)
    return bytes(read[LENGTH_BYTES:end]), _rest(bytes(read[end:]), parts)


async def _rest(first: bytes, parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    if first:
        yield first
    async for part in parts:
        yield part
