"""How much each subscription has before it: asked of the brokers when somebody wants to know, and kept for a moment."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from mesh.blocks.block import Serving
from mesh.broker import Backlog
from mesh.errors import MeshError

__all__ = ["Backlogs", "SubscriptionBacklog"]

logger = logging.getLogger(__name__)

KEPT_SECONDS = 5.0
ASK_SECONDS = 1.0
AT_ONCE = 8
MAX_ASKED = 500


@dataclass(frozen=True, slots=True)
class SubscriptionBacklog:
    """What one subscription has before it, with all instances of its application."""

    component: str
    topic: str
    backlog: Backlog

    @property
    def oldest_seconds(self) -> float | None:
        """How long the oldest event has been there; 0 = there is none, None = the broker does not say."""
        if self.backlog.oldest is not None:
            return round(max(0.0, time.time() - self.backlog.oldest), 3)
        return None if self.backlog.waiting or self.backlog.taken else 0.0


class Backlogs:
    """Knows it for the subscriptions of one node; those whose broker gives no answer in time are left out."""

    def __init__(self, services: Mapping[str, Serving]) -> None:
        """Ask these services, by their ``backlogs``, if they have any."""
        self._services = services
        self._asking = asyncio.Lock()
        self._asked_at = -KEPT_SECONDS
        self._known: Sequence[SubscriptionBacklog] = ()

    async def look(self) -> Sequence[SubscriptionBacklog]:
        """Give what is known, which is some seconds old at most; else ask."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= KEPT_SECONDS:
                self._known = await self._ask()
                self._asked_at = time.monotonic()
            return self._known

    async def _ask(self) -> Sequence[SubscriptionBacklog]:
        found: dict[tuple[str, str], SubscriptionBacklog] = {}
        permits = asyncio.Semaphore(AT_ONCE)

        async def ask(component: str, topic: str, backlog: Callable[[], Awaitable[Backlog]]) -> None:
            try:
                async with permits:
                    found[component, topic] = SubscriptionBacklog(component, topic, await backlog())
            except MeshError:
                return
            except Exception:  # Of a broker of somebody else's: the others are told.
                logger.exception("the backlog of %s on %s is not known", topic, component)

        asked = [each for service in self._services.values() for each in _of(service)]
        try:
            async with asyncio.timeout(ASK_SECONDS), asyncio.TaskGroup() as tasks:
                for each in asked[:MAX_ASKED]:
                    tasks.create_task(ask(*each), name="backlog-ask")
        except TimeoutError:
            pass  # What was answered in time is told.
        return [found[key] for key in sorted(found)]


def _of(service: Serving) -> Sequence[tuple[str, str, Callable[[], Awaitable[Backlog]]]]:
    backlogs = getattr(service, "backlogs", None)
    return () if backlogs is None else cast("Sequence[tuple[str, str, Callable[[], Awaitable[Backlog]]]]", backlogs())
