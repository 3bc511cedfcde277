"""Hears of changed keys: one connection to each server that has keys, for all who wait.

The server tells changes only if its ``notify-keyspace-events`` says so. What is missing there is added, and nothing is
taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from bindings.redis._client import Client
from bindings.redis._settings import Address
from bindings.redis._wire import LostError, RefusedError, Socket, ask, drop, pack, read_reply, send
from mesh.steps import Steps
from mesh.tasks import task_group

__all__ = ["Listener", "merged_flags"]

logger = logging.getLogger(__name__)

NEEDED = "Kg$xe"  # By key; commands on any type, on texts, expiry, eviction.
ALL_KINDS = "g$lshzxetd"  # What "A" stands for.
AT_ONCE = 1000
MISSED_PINGS = 2
SCHEDULING = 0.5  # What a busy machine may take to hear what is there.
PING_SECONDS = 5.0
WAITS = (0.05, 0.1, 0.2, 0.5)
EVERY = b"*"


def merged_flags(flags: str) -> str:
    """Add to ``notify-keyspace-events`` what is needed; gives it as it was when nothing is missing."""
    there = set(flags) | (set(ALL_KINDS) if "A" in flags else set())
    return flags + "".join(flag for flag in NEEDED if flag not in there)


class Listener(Steps):
    """Sets events when keys may have changed; it connects when somebody waits for the first time."""

    def __init__(self, client: Client) -> None:
        """Use an open client."""
        super().__init__()
        self._client = client
        self._begin = b"__keyspace@%d__:" % client.dial.settings.db
        self.everything = self._begin + EVERY
        self._watched: dict[bytes, set[asyncio.Event]] = {}
        self._ears: dict[Address | None, _Ear] = {}
        self._progress = asyncio.Event()

    async def _enter(self) -> None:
        self._tasks = await self._stack.enter_async_context(task_group())
        self._stack.callback(self._close)

    def _close(self) -> None:
        for ear in self._ears.values():
            ear.stop()

    @asynccontextmanager
    async def watch(self, keys: Sequence[bytes]) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set when one of the keys may have changed; no keys = all.

        Raises:
            LostError: The server does not answer.
            RefusedError: It does not let us listen.
        """
        event, channels = asyncio.Event(), [self._begin + key for key in keys or (EVERY,)]
        for channel in channels:
            self._watched.setdefault(channel, set()).add(event)
        try:
            await self._listening(channels)
            yield event
        finally:
            for channel in channels:
                waiting = self._watched.get(channel, set())
                waiting.discard(event)
                if not waiting:
                    self._watched.pop(channel, None)
            self._update()

    async def _listening(self, channels: Sequence[bytes]) -> None:
        """Wait until every server tells of these channels."""
        settings = self._client.dial.settings
        bounded = settings.dial_timeout and settings.read_timeout  # 0 is no limit.
        self._follow_servers()
        self._update()
        try:
            async with asyncio.timeout(settings.dial_timeout + settings.read_timeout if bounded else None):
                while not all(ear.hears(channels) for ear in self._ears.values()):
                    self._progress = self._progress if not self._progress.is_set() else asyncio.Event()
                    await self._progress.wait()
        except TimeoutError:
            reasons = {str(ear.failure) for ear in self._ears.values() if ear.failure is not None}
            raise LostError("; ".join(reasons) or "it does not answer", sent=False) from None

    def _follow_servers(self, *, late: bool = False) -> None:
        """Listen to each server that has keys, and to no other; ``late`` when others were listened to before."""
        servers = self._client.servers()
        for gone in [server for server in self._ears if server not in servers]:
            self._ears.pop(gone).stop()
        for server in servers:
            if server not in self._ears:
                self._ears[server] = ear = _Ear(self, self._client, server, lost=late)
                ear.task = self._tasks.create_task(ear.run(), name="redis-listener")

    def _update(self) -> None:
        for ear in self._ears.values():
            ear.wake.set()

    # Called by the connections

    @property
    def wanted(self) -> Iterable[bytes]:
        """The channels that somebody waits for."""
        return self._watched

    def progressed(self) -> None:
        """Have those who begin to wait look again."""
        self._progress.set()

    def heard(self, channel: bytes) -> None:
        """Tell those who wait for a channel."""
        for event in self._watched.get(channel, ()):
            event.set()

    def back(self) -> None:
        """Tell everybody: whatever changed while nobody listened."""
        for events in self._watched.values():
            for event in events:
                event.set()

    async def servers_may_differ(self) -> None:
        """Learn anew where keys are."""
        await self._client.learn_servers()
        self._follow_servers(late=True)


class _Ear:
    """The connection to one server."""

    def __init__(self, listener: Listener, client: Client, server: Address | None, *, lost: bool) -> None:
        self._listener = listener
        self._client = client
        self._server = server
        self._subscribed: set[bytes] = set()
        self._confirmed: set[bytes] = set()
        self._unconfirmed: Counter[bytes] = Counter()
        self.wake = asyncio.Event()
        self.failure: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self._heard_at = 0.0
        self._lost = lost  # Changes may have been missed.

    def stop(self) -> None:
        """End it."""
        if self.task is not None:
            self.task.cancel()

    def hears(self, channels: Sequence[bytes]) -> bool:
        """Tell whether the server has confirmed channels.

        Raises:
            RefusedError: It does not let us listen.
        """
        if isinstance(self.failure, RefusedError):
            raise self.failure
        return self._confirmed.issuperset(channels)

    async def run(self) -> None:
        """Listen for ever."""
        failed = 0
        while True:
            try:
                socket = await self._client.dial.open(self._server)
                try:
                    await self._allow(socket)
                    self.failure, failed = None, 0
                    await self._listen(socket)
                finally:
                    drop(socket)
            except (LostError, RefusedError) as error:
                if self.failure is None:
                    logger.info("%s: changes are not heard of now: %s", self._client.shown, error)
                self.failure, self._lost = error, True
                self._listener.progressed()
            self._subscribed.clear()
            self._confirmed.clear()
            self._unconfirmed.clear()
            await asyncio.sleep(WAITS[min(failed, len(WAITS) - 1)])
            failed += 1
            if self._client.cluster:
                await self._look_around()

    async def _look_around(self) -> None:
        try:
            await self._listener.servers_may_differ()
        except (LostError, RefusedError) as error:
            logger.debug("%s: %s", self._client.shown, error)

    async def _allow(self, socket: Socket) -> None:
        """Have the server tell changes.

        Raises:
            LostError: It does not answer.
        """
        try:
            async with asyncio.timeout(self._client.dial.settings.read_timeout or None):
                await self._turn_on(socket)
        except TimeoutError:
            raise LostError("it does not answer", sent=False) from None
        except RefusedError as error:
            if self.failure is None:
                logger.warning(
                    "%s does not let us set notify-keyspace-events (%s); changes are told at once only if it has the "
                    "flags %s, which somebody else must set there",
                    self._client.shown,
                    error,
                    NEEDED,
                )

    async def _turn_on(self, socket: Socket) -> None:
        told = cast("list[bytes]", await ask(socket, "CONFIG", "GET", "notify-keyspace-events"))
        flags = told[1].decode() if len(told) > 1 else ""
        if (wanted := merged_flags(flags)) != flags:
            await ask(socket, "CONFIG", "SET", "notify-keyspace-events", wanted)

    async def _listen(self, socket: Socket) -> None:
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        self.wake.set()
        async with task_group() as tasks:
            working = [
                tasks.create_task(_until_lost(work), name="redis-listening")
                for work in (self._read(socket), self._write(socket))
            ]
            await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for task in working:
                task.cancel()
        raise next(error for task in working if not task.cancelled() and (error := task.result()) is not None)

    async def _read(self, socket: Socket) -> None:
        while True:
            message = cast("list[bytes]", await read_reply(socket))
            self._heard_at = asyncio.get_running_loop().time()
            match message[0]:
                case b"message" | b"pmessage":
                    self._listener.heard(message[1])
                case b"subscribe" | b"psubscribe":
                    self._confirm(message[1])
                case _:
                    pass
            if self._lost and self._confirmed >= self._subscribed:
                self._lost = False
                self._listener.back()

    def _confirm(self, channel: bytes) -> None:
        """Count: what was left and entered again is confirmed by the last answer only."""
        self._unconfirmed[channel] -= 1
        if self._unconfirmed[channel] == 0:
            del self._unconfirmed[channel]
            if channel in self._subscribed:
                self._confirmed.add(channel)
                self._listener.progressed()

    async def _write(self, socket: Socket) -> None:
        """Subscribe to what is wanted, and look for signs of life."""
        loop = asyncio.get_running_loop()
        interval = min(PING_SECONDS, self._client.dial.settings.read_timeout or PING_SECONDS)
        looked_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self.wake.wait()
            self.wake.clear()
            silent = loop.time() - self._heard_at
            if silent > MISSED_PINGS * interval + SCHEDULING:
                raise LostError("it does not answer", sent=False)
            if silent >= interval:
                await self._send(socket, *pack(b"PING"))
            if self._client.cluster and loop.time() - looked_at >= interval:
                looked_at = loop.time()
                await self._look_around()
            wanted = set(self._listener.wanted)
            added, gone = wanted - self._subscribed, self._subscribed - wanted
            self._subscribed = wanted
            self._confirmed -= gone
            self._unconfirmed.update(added)
            await self._send(socket, *self._packed(b"UNSUBSCRIBE", gone), *self._packed(b"SUBSCRIBE", added))

    def _packed(self, name: bytes, channels: set[bytes]) -> Iterator[bytes]:
        everything = {self._listener.everything}
        for command, part in ((name, channels - everything), (b"P" + name, channels & everything)):
            names = list(part)
            for start in range(0, len(names), AT_ONCE):
                yield from pack(command, *names[start : start + AT_ONCE])

    async def _send(self, socket: Socket, *packed: bytes) -> None:
        if packed:
            await send(socket, list(packed))


async def _until_lost(work: object) -> LostError | RefusedError | None:
    """Give the error: a TaskGroup that has one to raise loses a cancellation that comes at that time."""
    try:
        await work  # type: ignore[misc]  # a coroutine
    except (LostError, RefusedError) as error:
        return error
    return None
