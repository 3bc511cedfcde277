"""Group commit: writes under fences, of whoever waits at the same time, go out together.

Where a store gains nothing by that, each goes out by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.errors import MeshError, OutcomeUnknownError, StateError
from mesh.store import Item, StateStore
from mesh.tasks import task_group

__all__ = ["WRITE_SECONDS", "GroupCommit"]

logger = logging.getLogger(__name__)

AT_ONCE = 4  # Groups on their way: while some are, the next one gathers.
MOST = 100  # Writes of a group.
MOST_BYTES = 1024 * 1024
WRITE_SECONDS = 10.0
ENDS = "workflows are not stored any more: this node is shutting down"

_Waiting = tuple[Item, Item, asyncio.Future[MeshError | None]]


class GroupCommit:
    """Writes to one store, while it runs."""

    def __init__(self, store: StateStore, seconds: float = WRITE_SECONDS) -> None:
        """Prepare; each group has so many seconds, then nobody knows what came of it."""
        self._store = store
        self._seconds = seconds
        self._waiting: deque[_Waiting] = deque()
        self._tasks: asyncio.TaskGroup | None = None
        self._on_their_way = 0
        self._at_work: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Write; leaving cuts off groups on their way, and whoever waits for one does not know what came of it.

        What goes by itself is the caller's own, who bounds it in time.
        """
        async with task_group() as self._tasks:
            try:
                yield
            finally:
                self._tasks = None
                for task in self._at_work:
                    task.cancel()
                for _, _, came_to in self._waiting:
                    if not came_to.done():
                        came_to.set_result(StateError(ENDS))
                self._waiting.clear()

    async def write(self, item: Item, check: Item) -> None:
        """Write an item if what is only checked holds, with others that wait; the caller bounds it in time.

        Raises:
            ConflictError: It does not hold; nothing was done.
            MeshError: The store failed; it may have been done.
        """
        if self._tasks is None:
            raise StateError(ENDS)
        if self._store.alone:
            await self._store.write([item, check])
            return
        came_to: asyncio.Future[MeshError | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, check, came_to))
        if self._on_their_way < AT_ONCE:
            self._on_their_way += 1
            task = self._tasks.create_task(self._work(), name="workflows-group")
            self._at_work.add(task)
            task.add_done_callback(self._at_work.discard)
        error = await came_to
        if error is not None:
            raise error

    async def _work(self) -> None:
        try:
            await self._write_all()
        finally:
            self._on_their_way -= 1  # At once, as what waits from now on needs another task.

    async def _write_all(self) -> None:
        while group := self._gathered():
            try:
                async with asyncio.timeout(self._seconds):  # Else others would wait behind a store that says nothing.
                    results = await self._store.write_guarded([(item, check) for item, check, _ in group])
            except BaseException as error:
                for _, _, came_to in group:
                    if not came_to.done():
                        came_to.set_result(OutcomeUnknownError(f"nobody knows what the store did: {error!r}"))
                if not isinstance(error, Exception):
                    raise
                if not isinstance(error, MeshError | TimeoutError):  # A mistake of ours must not end what others do.
                    logger.exception("a store failed to write workflows")
                continue
            for (_, _, came_to), result in zip(group, results, strict=True):
                if not came_to.done():
                    came_to.set_result(result)

    def _gathered(self) -> list[_Waiting]:
        """Take what goes out together, without that which nobody waits for any more."""
        group: list[_Waiting] = []
        size = 0
        while self._waiting and len(group) < MOST and size < MOST_BYTES:
            item, check, came_to = self._waiting.popleft()
            if not came_to.done():
                group.append((item, check, came_to))
                size += len(item.value or b"")
        return group
