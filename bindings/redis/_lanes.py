"""Connections to one server, each carrying what gathered while it was busy.

redis-py's client lends a connection to one command at a time. Here the commands of one turn of the event loop leave
together, and a connection that has its replies takes what waits by then. What waits is bounded by its callers: each
waits for its reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable

from bindings.redis._settings import RedisSettings
from bindings.redis._wire import (
    LostError,
    RefusedError,
    Reply,
    Socket,
    Words,
    at_end,
    drop,
    pack,
    read_reply,
    send,
)

__all__ = ["Lanes"]

BATCH_COMMANDS = 256
BATCH_BYTES = 1024 * 1024
TIMED_REPLIES = 32  # After so many the time for a reply begins anew.
STALE = frozenset(
    {"READONLY", "NOAUTH"}
)  # The server changed its mind: connecting again finds the primary, or logs in.

_Call = tuple[Words, "asyncio.Future[Reply]", bool]


class Lanes:
    """Sends commands over a few connections, opened when there is work."""

    def __init__(
        self, dial: Callable[[], Awaitable[Socket]], settings: RedisSettings, tasks: asyncio.TaskGroup
    ) -> None:
        """Open nothing yet.

        Args:
            dial: Opens a connection.
            settings: Its limits.
            tasks: Where the work is done.
        """
        self._dial = dial
        self._settings = settings
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._pending: deque[_Call] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._lanes: list[asyncio.Task[None]] = []
        self._waking = False
        self._closed = False
        self._reading = settings.read_timeout or math.inf
        self._writing = self._reading if settings.write_timeout is None else settings.write_timeout or math.inf
        self._limits: set[_Limit] = set()
        self._sweeping = False
        self._sweep_interval = min(0.25, self._reading / 4, self._writing / 4)

    def submit(self, words: Words, *, asking: bool = False) -> asyncio.Future[Reply]:
        """Have a command sent with others; its reply, RefusedError or LostError comes with the future.

        Args:
            words: The command.
            asking: Whether a cluster's ``ASK`` sent it here.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self._closed:
            _fail(future, LostError("the component is closed", sent=False))
            return future
        self._pending.append((words, future, asking))
        if not self._waking:
            self._wake()
        return future

    def close(self) -> None:
        """End all work; idempotent."""
        self._closed = True
        for lane in self._lanes:
            lane.cancel()
        while self._pending:
            _fail(self._pending.popleft()[1], LostError("the component is closed", sent=False))

    def _wake(self) -> None:
        """Have one connection look for work; the most recently used ones first, so that others may grow old."""
        while self._idle:
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                self._waking = True
                return
        if len(self._lanes) < self._settings.pool:
            self._waking = True
            self._lanes.append(self._tasks.create_task(self._work(), name="redis-lane"))

    async def _work(self) -> None:
        """Carry, until it is cancelled."""
        socket: Socket | None = None
        opened = used = 0.0
        try:
            while True:
                while not self._pending:
                    self._waking = False
                    waiter: asyncio.Future[None] = self._loop.create_future()
                    self._idle.append(waiter)
                    await waiter
                self._waking = False
                calls, packed = self._take()
                now = self._loop.time()
                if socket is not None and self._is_old(socket, now - opened, now - used):
                    drop(socket)
                    socket = None
                if socket is None:
                    socket, opened = await self._opened(calls), now
                if socket is not None and not await self._carry(socket, calls, packed):
                    drop(socket)
                    socket = None
                used = self._loop.time()
        finally:
            if socket is not None:
                drop(socket)

    def _is_old(self, socket: Socket, age: float, idle: float) -> bool:
        most_age, most_idle = self._settings.max_age, self._settings.idle
        return at_end(socket) or bool(most_age and age > most_age) or bool(most_idle and idle > most_idle)

    def _take(self) -> tuple[list[_Call], list[bytes]]:
        """Take what one connection carries at once; the rest is another's."""
        calls: list[_Call] = []
        packed: list[bytes] = []
        size, pending = 0, self._pending
        while pending and len(calls) < BATCH_COMMANDS and size < BATCH_BYTES:
            call = pending.popleft()
            if call[1].done():  # Its caller has gone.
                continue
            if call[2]:
                packed += pack("ASKING")
            parts = pack(*call[0])
            packed += parts
            size += sum(map(len, parts))
            calls.append(call)
        if pending:
            self._wake()
        return calls, packed

    async def _opened(self, calls: list[_Call]) -> Socket | None:
        """Open a connection for calls; they fail if there is none."""
        try:
            return await self._dial()
        except (LostError, RefusedError) as error:
            for _, future, _ in calls:
                _fail(future, error)
            return None
        except BaseException:
            for _, future, _ in calls:
                _fail(future, LostError("the component is closed", sent=False))
            raise

    async def _carry(self, socket: Socket, calls: list[_Call], packed: list[bytes]) -> bool:
        """Send commands and hand out their replies; give whether the connection is still good."""
        good, answered, reason = True, 0, "the component is closed"
        limit = self._limit(socket, self._writing)
        try:
            await send(socket, packed)
            for _, future, asking in calls:
                if answered % TIMED_REPLIES == 0:
                    limit.until = self._loop.time() + self._reading
                try:
                    if asking:
                        await read_reply(socket)
                    reply = await read_reply(socket)
                except RefusedError as error:
                    good = good and error.reply_code not in STALE
                    _fail(future, error)
                else:
                    if not future.done():
                        future.set_result(reply)
                answered += 1
        except LostError as error:
            reason, good = limit.reason or str(error), False
        finally:
            self._limits.discard(limit)
            for _, future, _ in calls[answered:]:
                _fail(future, LostError(reason, sent=True))
        return good

    def _limit(self, socket: Socket, seconds: float) -> _Limit:
        """Bound what a connection does in time: a timer of its own for each batch would cost more than the batch."""
        limit = _Limit(socket, self._loop.time() + seconds)
        self._limits.add(limit)
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(self._sweep_interval, self._sweep)
        return limit

    def _sweep(self) -> None:
        """Close what is late: whoever reads there finds it lost."""
        now = self._loop.time()
        for limit in self._limits:
            if limit.until <= now and not limit.reason:
                limit.reason = f"no answer within {self._reading:g} s"
                drop(limit.socket)
        self._sweeping = bool(self._limits)
        if self._sweeping:
            self._loop.call_later(self._sweep_interval, self._sweep)


class _Limit:
    __slots__ = ("reason", "socket", "until")

    def __init__(self, socket: Socket, until: float) -> None:
        self.socket = socket
        self.until = until
        self.reason = ""


def _fail(future: asyncio.Future[Reply], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        with contextlib.suppress(asyncio.CancelledError):
            future.exception()  # Nobody may be waiting; that is no news for the log.
