"""News of tables of owners: each kind's go to those who host it, and say whom they concern.

Whoever joins a kind has something done by few: it takes from some owners, and one has a new neighbour. So the others
need not read the table, which is as long as they are many. News may get lost, so all of them look now and then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from mesh import address
from mesh.broker import Frame
from mesh.calls.context import counts, tell
from mesh.errors import MeshError
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.calls.exchange import Exchange

__all__ = ["News"]

logger = logging.getLogger(__name__)

LISTEN_AGAIN = 1.0


class News:
    """What this node is told, and tells; enter ``run`` before a kind is followed."""

    def __init__(self, exchange: Exchange, namespace: str, heard: Callable[[str, Collection[str]], None]) -> None:
        """Follow nothing yet.

        Args:
            exchange: Carries them.
            namespace: Only its nodes are heard.
            heard: Takes a kind, and the sessions that have something to do; none = perhaps all.
        """
        self._exchange, self._namespace, self._heard = exchange, namespace, heard
        self._following: dict[str, asyncio.Event] = {}
        self._ended = False
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Listen to what is followed while entered."""
        async with task_group() as self._tasks:
            try:
                yield
            finally:
                self._ended = True  # What is left behind this may still say that it hosts no more.
                for kind in list(self._following):
                    self.forget(kind)

    def follow(self, kind: str) -> None:
        """Listen to news of a kind from now on."""
        if kind not in self._following and not self._ended:
            gone = self._following[kind] = asyncio.Event()
            self._tasks.create_task(self._listen(kind, gone), name="owners-news")

    def forget(self, kind: str) -> None:
        """Listen to them no longer."""
        if (gone := self._following.pop(kind, None)) is not None:
            gone.set()

    async def tell(self, kind: str, sessions: Collection[str]) -> None:
        """Tell those who host a kind that its table has changed; raises ``MeshError``."""
        await tell(self._exchange, address.owners(self._namespace, kind), " ".join(sessions).encode())

    async def _listen(self, kind: str, gone: asyncio.Event) -> None:
        at, told = address.owners(self._namespace, kind), False

        def hear(frame: Frame) -> None:
            if counts(self._exchange, at, frame, self._namespace) and frame.message is not None:
                self._heard(kind, frame.message.body.decode(errors="replace").split())

        while not gone.is_set():
            try:
                async with self._exchange.broker.listen(at, hear):
                    await gone.wait()
            except MeshError as error:
                if not told:
                    told = True
                    logger.warning("cannot hear when owners of %s change, trying again: %s", kind, error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LISTEN_AGAIN):
                        await gone.wait()
