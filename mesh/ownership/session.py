"""A session: a node's word that it is alive, which it renews, and which nobody can renew once it has ended."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from mesh.errors import MeshError
from mesh.store import Concurrency, Item, StateStore

__all__ = ["HOLD_SECONDS", "RENEW_SECONDS", "SURE_SECONDS", "Session", "SessionEndedError", "boot_clock", "has_ended"]

logger = logging.getLogger(__name__)

HOLD_SECONDS = 10.0  # As the store counts them: no two clocks are compared.
RENEW_SECONDS = 3.0
SURE_SECONDS = HOLD_SECONDS * 2 / 3  # Clocks of one speed to within a third suffice.
LEAST_SLEEP = 0.001  # Less may not move a clock of floats at all.
AGAIN_SECONDS = 0.5  # Behind a renewal that failed: there is time for more than one.
_PREFIX = "session."
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


def boot_clock() -> float:
    """Give the seconds since the machine started, with those that it slept."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class SessionEndedError(Exception):
    """A session has ended."""


class Session:
    """A session of this process; over for good once it is.

    Attributes:
        id: What others know it by.
        over: Set once it may have ended: nothing may be done in its name any more.
    """

    def __init__(self, records: StateStore, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; nothing is written.

        Args:
            records: The mesh's own store: compare-and-set, and expiry by its own clock.
            node: The node's id, for people.
            clock: Seconds, monotonic, also while the machine sleeps where the platform has such a clock.
        """
        self.id = secrets.token_hex(8)
        self.over = asyncio.Event()
        self._records = records
        self._node = node.encode()
        self._clock = clock
        self._sure_until = -1.0
        self._begun = False

    @property
    def sure(self) -> bool:
        """Whether nobody can have taken what is owned in its name."""
        return not self.over.is_set() and self._clock() < self._sure_until

    async def renew(self) -> None:
        """Begin it, or renew it.

        Raises:
            SessionEndedError: It has.
            MeshError: The store failed, or an earlier try of this node has come late; it may be tried again while it is
                ``sure``.
        """
        sent, key, etag = self._clock(), _PREFIX + self.id, None
        if self._begun:
            found = await self._records.get(key, strong=True)
            if found is None:
                raise SessionEndedError(f"session {self.id} has ended")
            etag = found.etag
        self._begun = True  # Even where it fails: what is on its way may be written.
        first = Concurrency.FIRST_WRITE if etag is None else None
        await self._records.write([Item(key, self._node, etag, first, HOLD_SECONDS, lease=True)])
        self._sure_until = sent + SURE_SECONDS

    async def keep(self) -> None:
        """Renew it until it is over: the store said so, or could not be asked in time."""
        try:
            while (left := self._sure_until - self._clock()) > 0:
                # As long after the last renewal was sent, however late that was answered; or soon, where it is overdue.
                due = left - (SURE_SECONDS - RENEW_SECONDS)
                await asyncio.sleep(max(LEAST_SLEEP, due, min(AGAIN_SECONDS, left / 2)))
                try:
                    async with asyncio.timeout(max(0.0, self._sure_until - self._clock())):
                        await self.renew()
                except SessionEndedError:
                    return
                except (MeshError, TimeoutError) as error:
                    logger.debug("session %s: %s", self.id, error)
        finally:
            self.over.set()

    async def end(self) -> None:
        """Give it back, so that nobody waits for its end; as far as the store lets us."""
        self.over.set()
        with suppress(MeshError):
            await self._records.write([Item(_PREFIX + self.id, None)])


async def has_ended(records: StateStore, session: str) -> bool:
    """Tell whether another's session is over: then it is for good, since ids are not used again."""
    return await records.get(_PREFIX + session, strong=True) is None
