"""Calls between the parent and a worker, both ways over one socket: a length, then msgpack.

What is sent is plain: text, numbers, bytes, lists and mappings. A call that fails raises at the caller what its text
says, and one that is not answered when the other side goes ends with that.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from mesh.tasks import task_group

__all__ = ["ANSWER_SECONDS", "VARIABLE", "Link", "LinkError"]

logger = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024 * 1024
LATE_BYTES = 1024 * 1024
ANSWER_SECONDS = 2.0
VARIABLE = "MESH_WORKER"
"""Of the environment: tells a process which of several workers it is. The parent sets it."""
TELL, CALL, ANSWER, FAILURE = range(4)

Handlers = Mapping[str, Callable[..., Any]]
"""By name: what is called; one that is to be waited for is a coroutine function."""


class LinkError(Exception):
    """The other process has failed to answer, or has gone."""


class Link:
    """One end.

    Attributes:
        closed: Set once the other end has gone.
    """

    def __init__(self, handlers: Handlers) -> None:
        """Answer by these handlers; ``running`` opens it."""
        self._handlers = handlers
        self.closed = asyncio.Event()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._loop = asyncio.get_running_loop()
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def running(self, end: socket.socket) -> AsyncIterator[None]:
        """Use a socket while entered."""
        reader, self._writer = await asyncio.open_unix_connection(sock=end)
        async with task_group() as self._tasks:
            reading = self._tasks.create_task(self._read(reader), name="workers-link")
            try:
                yield
            finally:
                reading.cancel()
                self._close()
                self._writer.close()
                with suppress(OSError, TimeoutError):  # What was told last is to arrive.
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await self._writer.wait_closed()

    @property
    def late(self) -> bool:
        """Whether much of what was said has not been read yet."""
        return self._writer is not None and self._writer.transport.get_write_buffer_size() > LATE_BYTES

    def tell(self, name: str, *arguments: object) -> None:
        """Say something, from any thread; nothing comes of it when the other side has gone."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._send([TELL, 0, name, arguments])
        else:
            self._loop.call_soon_threadsafe(self._send, [TELL, 0, name, arguments])

    async def call(self, name: str, *arguments: object) -> Any:
        """Ask something; the caller bounds it in time.

        Raises:
            LinkError: It failed there, or the other side has gone.
        """
        if self.closed.is_set():
            raise LinkError("the other process has gone")
        number = next(self._numbers)
        self._waiting[number] = answer = self._loop.create_future()
        try:
            self._send([CALL, number, name, arguments])
            return await answer
        finally:
            self._waiting.pop(number, None)

    def _send(self, frame: list[object]) -> None:
        if self._writer is None or self.closed.is_set():
            return
        body = msgspec.msgpack.encode(frame)
        self._writer.write(len(body).to_bytes(4, "big") + body)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > MAX_BYTES:
                    raise LinkError(f"a message of {size} bytes")
                self._take(*msgspec.msgpack.decode(await reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._close()
        except (LinkError, ValueError, TypeError):
            logger.exception("what another process of the gateway says cannot be read")
            self._close()

    def _close(self) -> None:
        self.closed.set()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LinkError("the other process has gone"))

    def _take(self, kind: int, number: int, name: str, arguments: list[Any]) -> None:
        if kind in (ANSWER, FAILURE):
            answer = self._waiting.get(number)
            if answer is not None and not answer.done():
                if kind == ANSWER:
                    answer.set_result(arguments)
                else:
                    answer.set_exception(LinkError(name))
            return
        handler = self._handlers.get(name)
        if handler is not None and asyncio.iscoroutinefunction(handler):
            self._tasks.create_task(self._answer(number, handler, arguments), name="workers-answer")
            return
        try:  # In order, as it was said.
            if handler is None:
                raise LinkError(f"{name[:64]!r} is not known here")
            handler(*arguments)
        except Exception as error:
            logger.exception("what another process of the gateway said failed: %s", name[:64])
            if kind == CALL:
                self._send([FAILURE, number, str(error), []])

    async def _answer(self, number: int, handler: Callable[..., Awaitable[object]], arguments: list[Any]) -> None:
        try:
            self._send([ANSWER, number, "", await handler(*arguments)])
        except Exception as error:  # Whoever asked is told; this side goes on.
            logger.debug("a worker's question failed", exc_info=True)
            self._send([FAILURE, number, f"{type(error).__name__}: {error}", []])
