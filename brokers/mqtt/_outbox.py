"""What is published and not confirmed yet: it outlives the connections over which it is sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mqtt5 import PubAckPacket

from brokers.mqtt._wire import Wire
from mesh.errors import BrokerUnavailableError, PublishRejectedError

__all__ = ["FAILED", "LARGEST_ID", "Outbox"]

LARGEST_ID = 60_000  # The rest is for other requests, which have ids of the same kind.
MAX_SENT, MAX_WAITING = 10_000, 1000
MAX_BYTES = 32 * 1024 * 1024
MAX_TRIES = 10
FLUSH_WAIT = 2.0
FAILED = 128


@dataclass(slots=True)
class _Publish:
    """A message on its way; ``done`` once the server has it."""

    packet_id: int
    data: bytes
    done: asyncio.Future[None]
    tries: int = 0


class Outbox:
    """Sends in order, as much at once as the server takes."""

    def __init__(self) -> None:
        """Hold nothing, and have no connection."""
        self._wire: Wire | None = None
        self._limit = 0
        self._ids = 0
        self._waiting: deque[_Publish] = deque()
        self._sent: dict[int, _Publish] = {}
        self._used: set[int] = set()  # The ids of both.
        self._bytes = 0  # Of both.
        self._room = asyncio.Event()
        self._room.set()
        self._idle: asyncio.Future[None] | None = None
        self._closed = False

    async def room(self) -> None:
        """Wait while too many messages wait for the connection, or too much for the server's answers."""
        while self._is_full and not self._closed:
            self._waiting = deque(each for each in self._waiting if not each.done.done())
            self._count()
            if self._is_full:
                self._room.clear()
                await self._room.wait()

    @property
    def _is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING or self._bytes >= MAX_BYTES

    def _count(self) -> None:
        """Count anew what is there."""
        there = [*self._waiting, *self._sent.values()]
        self._used = {each.packet_id for each in there}
        self._bytes = sum(len(each.data) for each in there)

    def _forget(self, publish: _Publish) -> None:
        self._used.discard(publish.packet_id)
        self._bytes -= len(publish.data)

    def post(self, write: Callable[[int], bytes]) -> asyncio.Future[None]:
        """Queue what is written with an id; what is given is done once the server has it."""
        self._ids = self._ids % LARGEST_ID + 1
        while self._ids in self._used:
            self._ids = self._ids % LARGEST_ID + 1
        data = write(self._ids)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._used.add(self._ids)
        self._bytes += len(data)
        self._waiting.append(_Publish(self._ids, data, done))
        self._pump()
        return done

    def attach(self, wire: Wire, receive_max: int) -> None:
        """Send over a new connection, first what had no answer on the last one."""
        self._wire, self._limit = wire, min(receive_max, MAX_SENT)
        self._pump()

    def detach(self) -> None:
        """Keep everything for the next connection."""
        self._wire = None
        again: list[_Publish] = []
        for each in self._sent.values():
            each.tries += 1
            if each.done.done():
                continue
            if each.tries < MAX_TRIES:
                again.append(each)
            else:  # One of them may be why: a server that dislikes a message may close the connection.
                each.done.set_exception(BrokerUnavailableError(f"the connection broke {each.tries} times on it"))
        self._sent.clear()
        self._waiting.extendleft(reversed(again))
        self._count()

    def _pump(self) -> None:
        wire = self._wire
        if wire is None or wire.closed.done():
            return
        while self._waiting and len(self._sent) < self._limit:
            each = self._waiting.popleft()
            if each.done.done():
                self._forget(each)
            else:
                self._sent[each.packet_id] = each
                wire.send(each.data)
        if not (self._room.is_set() or self._is_full):
            self._room.set()

    def confirm(self, answer: PubAckPacket) -> None:
        """Take the server's answer."""
        each = self._sent.pop(answer.packet_id, None)
        if each is not None:
            self._forget(each)
        if each is not None and not each.done.done():
            if int(answer.reason_code) < FAILED:
                each.done.set_result(None)
            else:
                said = answer.reason_str or answer.reason_code.name.replace("_", " ").lower()
                each.done.set_exception(PublishRejectedError(f"the MQTT server refused it: {said}"))
        self._pump()
        if self._idle is not None and not (self._sent or self._waiting or self._idle.done()):
            self._idle.set_result(None)

    async def flush(self) -> None:
        """Wait, a little, until the server has everything."""
        wire = self._wire
        if wire is not None and (self._sent or self._waiting):
            self._idle = asyncio.get_running_loop().create_future()
            both: list[asyncio.Future[None] | asyncio.Future[str]] = [self._idle, wire.closed]
            await asyncio.wait(both, timeout=FLUSH_WAIT, return_when=asyncio.FIRST_COMPLETED)

    def close(self, error: BrokerUnavailableError) -> None:
        """Fail what is left."""
        self.detach()
        self._closed = True
        for each in self._waiting:
            if not each.done.done():
                each.done.set_exception(error)
                each.done.exception()  # Nobody may be waiting any more.
        self._waiting.clear()
        self._room.set()
