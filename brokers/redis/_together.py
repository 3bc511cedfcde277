"""Writes that are alone, and wait at the same time, go in one script, each for itself: a group commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from brokers.redis._connection import Connection
from brokers.redis._scripts import Script
from brokers.redis._wire import Argument, Command, Reply, ReplyError

__all__ = ["MOST", "Batch", "Together"]

MOST = 100  # Writes of one script, which nothing else runs beside.
MOST_BYTES = 1024 * 1024


class Batch:
    """Writes that go together."""

    def __init__(self, script: Script, keys: Sequence[Argument], arguments: Sequence[Argument]) -> None:
        """Begin with none; keys and arguments are those in front of the writes' own."""
        self._script = script
        self._keys, self._arguments = [*keys], [*arguments]
        self._count = self._bytes = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._asking = asyncio.Lock()
        self._told: dict[int, int] = {}  # What is not done: 1 = it conflicts, -1 = it failed.
        self._known = False
        self._refused: ReplyError | None = None

    @property
    def full(self) -> bool:
        """Whether it takes no more."""
        return self._count >= MOST or self._bytes >= MOST_BYTES

    @property
    def command(self) -> Command:
        """What does it, once however often it is sent."""
        return self._script.command(self._keys, self._arguments)

    def add(self, key: str, arguments: Sequence[Argument], size: int) -> int:
        """Add a write; gives its number."""
        self._keys.append(key)
        self._arguments += arguments
        self._count += 1
        self._bytes += size
        return self._count

    async def sent(self) -> None:
        """Wait until it was sent, and answered or lost."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def answered(self, reply: asyncio.Future[Reply] | None) -> None:
        """Take the answer; None = there is no connection."""
        if reply is not None and not reply.cancelled() and reply.exception() is None:
            self._read(reply.result())
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def outcome(self, connection: Connection, number: int) -> int:
        """Give what a write came to: 0 = done, 1 = it conflicts, -1 = it failed; asks again where the answer was lost.

        Raises:
            ReplyError: The server refused all of it.
            BrokerUnavailableError: The connection is closed.
        """
        if not self._known:
            async with self._asking:  # One asks for all who wait.
                if not self._known:
                    try:
                        self._read(await connection.run_command(self._script, self.command))
                    except ReplyError as error:
                        self._refused, self._known = error, True
        if self._refused is not None:
            raise self._refused
        return self._told.get(number, 0)

    def _read(self, reply: Reply) -> None:
        numbers = [int(each) for each in cast("bytes", reply).split()]
        self._told, self._known = {abs(each): 1 if each > 0 else -1 for each in numbers}, True


class Together:
    """Takes writes from whoever waits, for one store."""

    def __init__(self, connection: Connection, begin: Callable[[Script], Batch]) -> None:
        """Prepare; ``begin`` begins a batch."""
        self._connection = connection
        self._begin = begin
        self._open: dict[Script, Batch] = {}

    async def write(self, script: Script, key: str, arguments: Sequence[Argument], size: int) -> int:
        """Write with what else is written in this turn of the event loop; see ``Batch.outcome``."""
        batch = self._open.get(script)
        if batch is None or batch.full:
            batch = self._open[script] = self._begin(script)
            asyncio.get_running_loop().call_soon(self._send, script, batch)
        number = batch.add(key, arguments, size)
        await batch.sent()
        return await batch.outcome(self._connection, number)

    def _send(self, script: Script, batch: Batch) -> None:
        if self._open.get(script) is batch:
            del self._open[script]
        reply = self._connection.post(batch.command)
        if reply is None:
            batch.answered(None)
        else:
            reply.add_done_callback(batch.answered)
