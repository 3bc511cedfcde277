"""Following values of a configuration: their changes are waited for, and told one after the other.

Who is told is up to a `Teller`: the application by its callback, or whoever holds a stream open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from mesh.blocks.configuration_store import WATCH_SECONDS, ConfigurationItem, Get, Watch, digest
from mesh.blocks.remembered import Absence
from mesh.errors import MeshError
from mesh.operation import Context, Method

__all__ = ["SUBSCRIBE_STREAM", "Follow", "Followed", "Teller", "ToStream", "follow"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS, LONGEST_WAIT = 0.5, 2.0

Items = Mapping[str, ConfigurationItem | None]
Ask = Callable[[str, Watch, Context], Awaitable[Items]]
Send = Callable[[str, Items], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Followed:
    """Values whose changes somebody asked to be told.

    Attributes:
        store: The component.
        wanted: Its keys and metadata.
        context: Who asked.
        known: Digests of the values that were told, by key.
        id: Its identity.
        stopped: Whether it ends.
        telling: Whether something is being told.
        task: What follows it, while somebody is there to be told.
    """

    store: str
    wanted: Get
    context: Context
    known: dict[str, str]
    id: str = field(default_factory=lambda: str(uuid4()))
    stopped: bool = False
    telling: bool = False
    task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """End what follows it; a change that is being told is told to its end, but not again."""
        self.stopped = True
        if self.task is not None and not self.telling:
            self.task.cancel()


class Teller(Protocol):
    """Tells of changes."""

    async def tell(self, key: str, item: ConfigurationItem | None) -> bool:
        """Tell of one, None = the key was deleted; gives whether to go on."""

    async def told(self) -> None:
        """Note that what is known is another."""

    async def missing(self, reason: str) -> bool:
        """Say whether to go on though nobody has had the component for long."""


async def follow(followed: Followed, ask: Ask, teller: Teller) -> None:
    """Tell every change, until it is stopped; what cannot be asked now is asked again.

    Args:
        followed: What.
        ask: Waits for changes.
        teller: Is given them.
    """
    loop, wanted, store = asyncio.get_running_loop(), followed.wanted, followed.store
    failures, absence = 0, Absence(loop.time())
    while not followed.stopped:
        asked = Watch(wanted.keys, wanted.metadata, followed.known, WATCH_SECONDS)
        started = loop.time()
        try:
            changed = await ask(store, asked, followed.context)
        except Exception as error:  # noqa: BLE001 - an adapter's own failure may pass like any other
            if absence.lasts(error, loop.time()) and not await teller.missing(str(error)):
                return
            if not failures:  # Only our own texts are known to hold no secret.
                reason = error if isinstance(error, MeshError) else type(error).__name__
                logger.warning("configuration %s: changes are not followed now, trying again: %s", store, reason)
            failures += 1
            await asyncio.sleep(min(AGAIN_SECONDS * failures, LONGEST_WAIT))
            continue
        if failures:
            logger.info("configuration %s: changes are followed again", store)
        failures, absence = 0, Absence(loop.time())
        await _tell_all(followed, teller, changed)
        if not changed and loop.time() - started < AGAIN_SECONDS:  # By a host that leaves.
            await asyncio.sleep(AGAIN_SECONDS)


async def _tell_all(followed: Followed, teller: Teller, changed: Items) -> None:
    """Tell of changes, one after the other."""
    for key, item in sorted(changed.items()):
        followed.telling = True
        try:
            goes_on = await teller.tell(key, item)
        finally:
            followed.telling = False
        if not goes_on:
            followed.stopped = True
            return
        if item is None:
            followed.known.pop(key, None)
        else:
            followed.known[key] = digest(item)
        await teller.told()
        if followed.stopped:
            return


@dataclass(frozen=True, slots=True)
class Follow:
    """Tell whoever holds a stream open: first of the subscription's id, with nothing, then of each change.

    Attributes:
        wanted: Keys and metadata.
        send: Tells; raises OSError when nobody is there any more.
    """

    wanted: Get
    send: Send

    @property
    def listed(self) -> str:
        """The keys, for people."""
        return self.wanted.listed


SUBSCRIBE_STREAM = Method("configuration", "subscribe_stream", Follow, seconds=float("inf"), guarded=False)


@dataclass(frozen=True, slots=True)
class ToStream:
    """Tells whoever holds a stream open."""

    followed: Followed
    send: Send

    async def tell(self, key: str, item: ConfigurationItem | None) -> bool:
        """Tell of one change."""
        await self.send(self.followed.id, {key: item})
        return True

    async def told(self) -> None:
        """Keep nothing: it ends with the stream."""

    async def missing(self, reason: str) -> bool:
        """Go on for as long as the stream is there."""
        return True
