"""What flows, for all who look: one watch on the mesh for each filter, however many look through it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import orjson

from gateway.dashboard.viewers import Viewer
from gateway.errors import APIError
from mesh.errors import MeshError
from mesh.tap.sight import OTHERS, Dropped, Edge, Rates, Refused, Seen, Sight
from mesh.tap.wanted import Wanted
from mesh.tap.wire import as_event, edge_json
from mesh.tasks import task_group

__all__ = ["RATES", "Tap", "Taps"]

logger = logging.getLogger(__name__)

RATES = Wanted(sights=False, rates=1.0)
TICK = 1.0
AGAIN = 1.0
MAX_FILTERS = 6  # With that of the rates; a node has room for eight watches of one who asks it.
MAX_EDGES = 10_000
MAX_REFUSALS = 1_000

Told = Sight | Dropped | Rates | Refused
Tap = Callable[[Wanted], AbstractAsyncContextManager[AsyncIterator[Told]]]
_Key = tuple[Seen, str, str, str, str]
_KINDS = {Sight: "sight", Dropped: "dropped", Refused: "refused"}


class Taps:
    """All watches."""

    def __init__(self, tap: Tap, namespace: str) -> None:
        """Have none yet.

        Args:
            tap: Opens one.
            namespace: Of the mesh.
        """
        self._tap, self._namespace = tap, namespace
        self._feeds: dict[Wanted, _Feed] = {}
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let there be watches while entered."""
        async with task_group() as self._tasks:
            try:
                yield
            finally:
                for feed in self._feeds.values():
                    feed.task.cancel()

    @asynccontextmanager
    async def watching(self, wanted: Wanted, viewer: Viewer) -> AsyncIterator[None]:
        """Tell a viewer what passes while entered.

        Raises:
            APIError: There are as many filters as there may be.
            MeshError: The watch cannot be opened; a ``BadArgumentError`` names what is wrong with the filter.
        """
        feed = self._feeds.get(wanted)
        if feed is None:
            wanted.check()
            if len(self._feeds) >= MAX_FILTERS:
                text = f"this dashboard watches through {MAX_FILTERS - 1} filters already; close a page"
                raise APIError(503, "ERR_DASHBOARD_FULL", text)
            feed = self._feeds[wanted] = _Feed(self._tap, wanted, self._namespace)
            feed.task = self._tasks.create_task(feed.run(), name="dashboard-tap")
        feed.viewers.add(viewer)
        try:
            await feed.begun.wait()
            if feed.error is not None:
                raise feed.error
            for told in feed.refused.values():
                viewer.tell("refused", told)
            yield
        finally:
            feed.viewers.discard(viewer)
            if not feed.viewers:
                feed.task.cancel()
                if self._feeds.get(wanted) is feed:
                    del self._feeds[wanted]


class _Feed:
    """One watch, and those who are told what it sees."""

    def __init__(self, tap: Tap, wanted: Wanted, namespace: str) -> None:
        self.viewers: set[Viewer] = set()
        self.refused: dict[str, bytes] = {}
        self.begun = asyncio.Event()
        self.error: MeshError | None = None
        self.task: asyncio.Task[None]
        self._tap, self._wanted, self._namespace = tap, wanted, namespace
        self._rates = _Sum()

    async def run(self) -> None:
        """Watch until cancelled, or until the gateway ends."""
        async with task_group() as tasks:
            ticking = tasks.create_task(self._tick(), name="dashboard-tick") if self._wanted.rates else None
            try:
                await self._watch()
            finally:
                if ticking is not None:
                    ticking.cancel()

    async def _watch(self) -> None:
        while True:
            try:
                async with self._tap(self._wanted) as told:
                    self.begun.set()
                    async for each in told:
                        self._take(each)
                    return
            except MeshError as error:
                if not self.begun.is_set():
                    self.error = error
                    self.begun.set()
                    return
                logger.debug("what flows cannot be watched, trying again: %s", error)
                await asyncio.sleep(AGAIN)

    def _take(self, told: Told) -> None:
        if isinstance(told, Rates):
            self._rates.add(told)
            return
        written = orjson.dumps(as_event(self._namespace, told, time.time()))
        if isinstance(told, Refused) and (told.node in self.refused or len(self.refused) < MAX_REFUSALS):
            self.refused[told.node] = written
        for viewer in self.viewers:
            viewer.tell(_KINDS[type(told)], written)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(TICK - (loop.time() - last) % TICK)
            now = loop.time()
            told = {"at": time.time(), "seconds": round(now - last, 3), "edges": self._rates.take()}
            last = now
            written = orjson.dumps(told)
            for viewer in self.viewers:
                viewer.renew("rates", written)


class _Sum:
    """What passed all nodes, by edges."""

    def __init__(self) -> None:
        self._edges: dict[_Key, Edge] = {}

    def add(self, told: Rates) -> None:
        for edge in told.edges:
            key = edge.seen, edge.block, edge.source, edge.target, edge.app
            if key not in self._edges and len(self._edges) >= MAX_EDGES:
                key = edge.seen, edge.block, "", OTHERS, ""
            known = self._edges.get(key)
            self._edges[key] = _joined(key, edge, known) if known is not None or key[3] == OTHERS else edge

    def take(self) -> list[dict[str, object]]:
        edges, self._edges = self._edges, {}
        return [edge_json(each) for each in edges.values() if each.count]


def _joined(key: _Key, edge: Edge, known: Edge | None) -> Edge:
    if known is None:
        known = Edge(*key, 0, 0, 0.0, 0.0, (0,) * len(edge.buckets))
    return Edge(
        *key,
        known.count + edge.count,
        known.errors + edge.errors,
        known.seconds + edge.seconds,
        max(known.longest, edge.longest),
        tuple(a + b for a, b in zip(known.buckets, edge.buckets, strict=True)),
    )
