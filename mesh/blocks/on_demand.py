"""A kind that a node owns its part of once there is something of it, so that who uses none of it pays for none.

It begins when its application asks for something. What is left from last week a node finds when its application comes:
from the record of owners it knows whether anybody has ever hosted the kind, which is one read; only then it looks
whether something is left. A gateway that begins tells those that do not host yet, and they look again; they do so now
and then as well, since that news may get lost. So when one is killed, another one is there to take over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from mesh.broker import Frame
from mesh.calls.context import counts, tell
from mesh.errors import MeshError, RecordsMissingError, StreamEndedError

if TYPE_CHECKING:
    from mesh.address import Address
    from mesh.blocks.block import Parts
    from mesh.ownership.asking import Answer
    from mesh.ownership.kind import Keeper

__all__ = ["OnDemand"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
AGAIN_SECONDS = 1.0


class _Kept(Protocol):
    """What keeps the partitions."""

    @property
    def keeper(self) -> Keeper:
        """Is told which ones."""

    def run(self) -> AbstractAsyncContextManager[None]:
        """Be at work while entered."""


class OnDemand:
    """Hosts a kind of this node's application from when that is wanted, as long as the node lives.

    Attributes:
        hosts: Whether this node takes part in owning it.
        refused: Whether the mesh has no place for what is kept of it.
    """

    def __init__(
        self,
        parts: Parts,
        kind: str,
        news: Address,
        opened: Callable[[], Awaitable[_Kept]],
        answer: Answer,
        left: Callable[[], Awaitable[bool]],
    ) -> None:
        """Host nothing yet.

        Args:
            parts: The node's.
            kind: The kind.
            news: Where those who do not host it are told that somebody does.
            opened: Gives what keeps it, the same each time; raises ``RecordsMissingError`` where there is no place.
            answer: Answers as the owner.
            left: Tells whether something of the kind is left.
        """
        self.hosts = self.refused = False
        self._parts, self._kind, self._news = parts, kind, news
        self._opened, self._answer, self._left = opened, answer, left
        self._kept: _Kept | None = None
        self._settled = asyncio.Event()
        self._ready = self._has_told = False

    async def host(self) -> None:
        """Take part from now on.

        Raises:
            RecordsMissingError: There is no place for it.
            StreamEndedError: The node ends.
        """
        try:
            kept = await self._opened()
        except RecordsMissingError:
            self.refused = True  # So nobody has any, until another store is marked.
            raise
        self.refused = False
        while self._kept is None:
            if self.hosts:  # Another one is at it.
                await self._settled.wait()
                continue
            self.hosts = True
            self._settled.clear()
            try:
                await self._parts.later.enter(self._hosted(kept))
            except StreamEndedError:
                self._end()
                raise

    @asynccontextmanager
    async def _hosted(self, kept: _Kept) -> AsyncIterator[None]:
        try:
            async with kept.run():
                self._kept = kept
                self._settled.set()
                self._tell_ready()
                yield
        finally:
            self._end()

    def _end(self) -> None:
        self.hosts, self._kept = False, None
        self._settled.set()

    def ready(self, *, ready: bool) -> None:
        """Say whether this node can do more than keep it, which it does where nobody can."""
        self._ready = ready
        self._tell_ready()

    def _tell_ready(self) -> None:
        if self._kept is not None:
            self._parts.owners.host(self._kind, self._kept.keeper, self._answer, ready=self._ready)

    async def announce(self) -> None:
        """Tell the others, once there are owners, so that whoever looks finds them."""
        if not self._has_told:
            self._has_told = True
            with suppress(MeshError):  # Whoever has not heard it looks again before long.
                await tell(self._parts.exchange, self._news)

    async def look(self) -> None:
        """Begin to host once there may be something; returns then, or when there is no place."""
        heard = asyncio.Event()
        caller = self._parts.caller

        def hear(frame: Frame) -> None:
            if counts(self._parts.exchange, self._news, frame, caller.namespace, caller.app_id):
                heard.set()

        while not self.hosts:
            try:
                async with self._parts.broker.listen(self._news, hear):
                    while not self.hosts:
                        heard.clear()
                        if await self._may_be_wanted():
                            await self.host()
                            return
                        await asyncio.sleep(AGAIN_SECONDS)  # However often somebody says so.
                        with suppress(TimeoutError):
                            async with asyncio.timeout(LOOK_SECONDS):
                                await heard.wait()
            except RecordsMissingError:
                self.refused = True
                return
            except MeshError as error:
                logger.debug("%s: %s", self._kind, error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _may_be_wanted(self) -> bool:
        """Tell whether another gateway hosts the kind, or one did and has left something behind."""
        table = await self._parts.owners.table(self._kind, fresh=True)
        if table.members or not any(table.epochs):
            return bool(table.members)
        return await self._left()
