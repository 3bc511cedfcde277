"""Presence: who is on the mesh, learnt from what nodes broadcast.

A node announces its applications on start, on every change, every few seconds and when it leaves,
and passes on whom it saw within the last minute, so that a node that starts in the middle of a
rolling restart also knows that the application is about to be back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import orjson

from mesh import address
from mesh.broker import Broker, Frame, Message
from mesh.errors import BrokerError
from mesh.node.description import DESCRIBE

__all__ = ["Directory"]

logger = logging.getLogger(__name__)

ANNOUNCE_INTERVAL = 5.0
SEEN_WINDOW = 60.0
MAX_APPS = 10_000


class Directory:
    """This node's view of who is there.

    Attributes:
        node_id: This node.
        describe: Gives what is announced of this node when somebody asks (``mesh/node/description.py``).
    """

    def __init__(self, broker: Broker, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Use a connected broker.

        Args:
            broker: Carries the broadcasts.
            namespace: Only nodes of one namespace see each other.
            clock: Seconds, monotonic.
        """
        self._broker = broker
        self._address = address.nodes(namespace)
        self._clock = clock
        self.node_id = secrets.token_hex(8)
        self.describe: Callable[[], Mapping[str, object]] = dict
        self._describing = False
        self._seen: dict[str, float] = {}
        self._ready: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._announce_now = asyncio.Event()

    def host(self, app_id: str, *, ready: bool) -> None:
        """Say that this node has an application, and whether it takes calls now.

        One that is just starting counts as seen, so that calls wait for it.
        """
        if ready or app_id not in self._ready:
            self._seen[app_id] = self._clock()
        self._ready[app_id] = ready
        self._announce_now.set()

    def last_seen(self, app_id: str) -> float | None:
        """Give the seconds since an application was there; None when never within the last minute."""
        at = self._seen.get(app_id)
        if at is None:
            return None
        age = self._clock() - at
        return age if age <= SEEN_WINDOW else None

    async def until_news(self) -> None:
        """Wait for any announcement."""
        await self._changed.wait()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Announce and listen; leaving says goodbye."""
        async with self._broker.listen(self._address, self._receive), asyncio.TaskGroup() as tasks:
            await self._send(query=True)
            announcing = tasks.create_task(self._announce(), name="directory-announce")
            try:
                yield
            finally:
                announcing.cancel()
                self._ready = dict.fromkeys(self._ready, False)
                await self._send()

    async def _announce(self) -> None:
        while True:
            try:
                async with asyncio.timeout(ANNOUNCE_INTERVAL):
                    await self._announce_now.wait()
            except TimeoutError:
                self._forget_old()
            self._announce_now.clear()  # Before it is sent: what changes while it is sent is sent next.
            await self._send()

    def _forget_old(self) -> None:
        limit = self._clock() - SEEN_WINDOW
        self._seen = {app_id: at for app_id, at in self._seen.items() if at >= limit}

    async def _send(self, *, query: bool = False) -> None:
        now = self._clock()
        for app_id, ready in self._ready.items():
            if ready:
                self._seen[app_id] = now
        body: dict[str, object] = {
            "node": self.node_id,
            "query": query,
            "ready": [app_id for app_id, ready in self._ready.items() if ready],
            "seen": {app_id: round(now - at, 1) for app_id, at in self._seen.items() if now - at <= SEEN_WINDOW},
        }
        if self._describing:
            self._describing = False
            body["about"] = self.describe()
        try:
            await self._broker.broadcast(self._address, Message({}, orjson.dumps(body)))
        except BrokerError as error:
            logger.debug("cannot announce: %s", error)  # The next one comes in seconds.

    def _receive(self, frame: Frame) -> None:
        try:
            body = orjson.loads(frame.message.body if frame.message else b"")
            if body["node"] == self.node_id:
                return
            now = self._clock()
            for app_id, age in body["seen"].items():
                at = now - max(0.0, float(age))
                known = app_id in self._seen or len(self._seen) < MAX_APPS
                if known and at > self._seen.get(app_id, -math.inf):
                    self._seen[app_id] = at
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            logger.warning("ignored a malformed announcement")
            return
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if body.get("query"):
            self._describing = self._describing or body["query"] == DESCRIBE
            self._announce_now.set()
