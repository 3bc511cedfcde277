"""Load on a gateway by HTTP, with an exact account of what was answered."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from tests.support.mesh import GatewayProcess

__all__ = ["Calling", "Publishing"]

AGAIN_AFTER = 0.02


class Publishing:
    """Publishes events with ids of their own until so many were answered 204.

    Attributes:
        topic: Where.
        confirmed: The ids that were.
        failed: The ids that were not; whether these were stored is unknown.
    """

    def __init__(
        self,
        gateway: GatewayProcess,
        topic: str,
        wanted: int,
        *,
        connections: int = 48,
        query: str = "",
        name: str = "",
        data: Mapping[str, object] | None = None,
    ) -> None:
        """Prepare.

        Args:
            gateway: Where to publish.
            topic: Of the component ``pubsub``.
            wanted: How many must be answered 204.
            connections: How many publish at once.
            query: Of the URL.
            name: Begins each id; the topic if empty.
            data: What each event holds beside its id.
        """
        self.topic = topic
        self._data = dict(data or {})
        self._url = f"{gateway.api}/publish/pubsub/{topic}{query}"
        self._wanted = wanted
        self._connections = connections
        self._ids = (f"{name or topic}-{number}" for number in itertools.count())
        self._reached = asyncio.Condition()
        self.confirmed: set[str] = set()
        self.failed: set[str] = set()

    async def run(self) -> None:
        """Publish them all."""
        connector = aiohttp.TCPConnector(limit=self._connections)
        timeout = aiohttp.ClientTimeout(total=60.0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            for _ in range(self._connections):
                tasks.create_task(self._publish(session))

    async def _publish(self, session: aiohttp.ClientSession) -> None:
        while len(self.confirmed) < self._wanted:
            identity = next(self._ids)
            try:
                async with session.post(self._url, json={"id": identity, **self._data}) as response:
                    if response.status == 204:
                        self.confirmed.add(identity)
                        if len(self.confirmed) % 100 == 0:
                            async with self._reached:
                                self._reached.notify_all()
                        continue
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            self.failed.add(identity)
            await asyncio.sleep(AGAIN_AFTER)  # As a client backs off; nobody may be listening for a while.

    def stop(self) -> None:
        """Begin no more; what is under way comes to its end."""
        self._wanted = 0

    async def until(self, confirmed: int) -> None:
        """Wait until so many were answered 204."""
        async with self._reached:
            await self._reached.wait_for(lambda: len(self.confirmed) >= confirmed)


class Calling:
    """Invokes an application at a steady rate, each call on its own time, and notes what came of it.

    Attributes:
        answered: How often each process answered 200.
        failures: What went wrong, in words.
        slowest: Seconds that the slowest call took.
        peak: The most calls that were under way at once, so far.
    """

    def __init__(self, gateway: GatewayProcess, app_id: str, rate: float, *, timeout_seconds: float = 60.0) -> None:
        self._url = f"{gateway.api}/invoke/{app_id}/method/echo"
        self._rate = rate
        self._timeout_seconds = timeout_seconds
        self._headers = {"mesh-timeout": f"{timeout_seconds:g}s"}
        self._stopping = False
        self.made = 0
        self.answered: dict[int, int] = {}
        self.failures: list[str] = []
        self.slowest = 0.0
        self.peak = 0
        self._pending = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Call while entered; leaving waits for the last answers."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self._timeout_seconds + 30.0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session, asyncio.TaskGroup() as tasks:
            pacing = tasks.create_task(self._pace(session, tasks))
            try:
                yield
            finally:
                pacing.cancel()

    @property
    def count(self) -> int:
        """How many calls were answered 200."""
        return sum(self.answered.values())

    async def _pace(self, session: aiohttp.ClientSession, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            tasks.create_task(self._call(session, self.made))
            self.made += 1
            due += 1 / self._rate
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _call(self, session: aiohttp.ClientSession, number: int) -> None:
        started = time.monotonic()
        self._pending += 1
        self.peak = max(self.peak, self._pending)
        try:
            async with session.post(f"{self._url}?id={number}", data=b"hello", headers=self._headers) as response:
                if response.status == 200:
                    pid = int((await response.json())["pid"])
                    self.answered[pid] = self.answered.get(pid, 0) + 1
                else:
                    self.failures.append(f"{response.status} {await response.text()}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.failures.append(repr(error))
        finally:
            self._pending -= 1
        self.slowest = max(self.slowest, time.monotonic() - started)
