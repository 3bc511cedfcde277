"""What a run asks the broker itself: what was stored, delivered and acked, and what a gateway sends."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy

from bench.load import BenchError, Load

__all__ = ["Broker"]

SETTLE_SECONDS = 5.0
FLUSH_EVERY = 500


class Broker:
    """A connection of the run's own."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.jetstream = client.jetstream()
        self._numbers = itertools.count(1)

    @classmethod
    async def connect(cls, url: str) -> Broker:
        """Connect."""
        return cls(await nats.connect(url))

    async def create(self, stream: str) -> None:
        """Make a stream like a gateway's, of subjects ``<stream>.>``."""
        await self.jetstream.add_stream(
            name=stream, subjects=[f"{stream}.>"], discard=DiscardPolicy.NEW, duplicate_window=120
        )

    def stored(self, stream: str) -> Callable[[], Awaitable[int]]:
        """Make what counts the events stored so far."""

        async def count() -> int:
            return (await self.jetstream.stream_info(stream)).state.last_seq

        return count

    async def last(self, stream: str) -> tuple[str, dict[str, str]]:
        """Give the subject and headers of the last event."""
        state = (await self.jetstream.stream_info(stream)).state
        found = await self.jetstream.get_msg(stream, seq=state.last_seq)
        return str(found.subject), dict(found.headers or {})

    def _fresh(self, given: dict[str, str]) -> dict[str, str]:
        number = f"{time.time_ns():x}{next(self._numbers):08x}"
        return {**given, "ce-id": number, "Nats-Msg-Id": number}

    async def store(self, stream: str, subject: str, headers: dict[str, str], body: bytes, count: int) -> None:
        """Store so many events, and see that they are."""
        stored = self.stored(stream)
        before = await stored()
        for number in range(1, count + 1):
            await self.client.publish(subject, body, headers=self._fresh(headers))
            if number % FLUSH_EVERY == 0:
                await self.client.flush()
        await self._until(stored, before + count, f"storing {count} events in {stream}")

    async def store_at_rate(
        self, stream: str, subject: str, headers: dict[str, str], body: str, rate: float, seconds: float
    ) -> int:
        """Store events at fixed times; each says in ``sent`` when it was sent."""
        stored = self.stored(stream)
        before = await stored()
        count = int(rate * seconds)
        started = time.perf_counter()
        for number in range(count):
            wait = started + number / rate - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            sent = body.replace("{", f'{{"sent":{int(time.perf_counter() * 1e9)},', 1)
            await self.client.publish(subject, sent.encode(), headers=self._fresh(headers))
        await self._until(stored, before + count, f"storing {count} events in {stream}")
        return count

    async def settled(self, stream: str, consumer: str) -> None:
        """Wait until a consumer has had everything and acked it; nothing may have come twice."""

        async def open_count() -> int:
            info = await self.jetstream.consumer_info(stream, consumer)
            if info.num_redelivered:
                raise BenchError(f"{info.num_redelivered} events of {stream} were delivered again")
            return (info.num_pending or 0) + (info.num_ack_pending or 0)

        await self._until(open_count, 0, f"settling {stream}")
        info = await self.jetstream.consumer_info(stream, consumer)
        if (
            info.delivered is None
            or info.ack_floor is None
            or info.delivered.consumer_seq != info.ack_floor.consumer_seq
        ):
            raise BenchError(f"not all deliveries of {stream} were acked: {info}")

    async def consumers(self, stream: str) -> list[str]:
        """Give the names of a stream's consumers."""
        return [info.name for info in await self.jetstream.consumers_info(stream)]

    async def _until(self, count: Callable[[], Awaitable[int]], wanted: int, what: str) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while (found := await count()) != wanted:
            if time.monotonic() > deadline:
                raise BenchError(f"{what}: {found} instead of {wanted}")
            await asyncio.sleep(0.02)

    async def overheard(self, call: Callable[[], Awaitable[Load]], header: str) -> list[dict[str, str]]:
        """Give the headers of the messages with a header that cross the broker during a call, in order."""
        found: list[dict[str, str]] = []

        async def note(message: Msg) -> None:
            if message.headers and header in message.headers:
                found.append(dict(message.headers))

        listening = [await self.client.subscribe(subject, cb=note) for subject in ("mesh.>", "_INBOX.>")]
        await self.client.flush()
        await call()
        await self.client.flush()
        for each in listening:
            await each.unsubscribe()
        return found
