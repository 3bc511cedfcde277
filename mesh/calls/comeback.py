"""Waiting for a connection that is lost: one asks for all who wait.

If each tried again by itself, thousands of calls that wait would keep the event loop from ever connecting again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from mesh.errors import BrokerError

__all__ = ["Comeback"]

PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
CHECK_WAIT = 5.0
STEADY = 5.0
ROOM = 0.05  # Who waits in vain can still say why before its deadline.


class Comeback:
    """Tells when the broker answers again."""

    def __init__(self, check: Callable[[], Awaitable[None]]) -> None:
        """Ask by ``check``, which raises ``BrokerError`` while there is no connection; `look` does."""
        self._check = check
        self._missed = asyncio.Event()
        self._back = asyncio.Event()

    async def by(self, deadline: float) -> bool:
        """Wait for a sign of life; False when there is none by the deadline, in Unix time."""
        self._back.clear()
        self._missed.set()
        try:
            async with asyncio.timeout(deadline - time.time() - ROOM):
                await self._back.wait()
        except TimeoutError:
            return False
        return True

    async def look(self) -> None:
        """Ask while somebody waits, until cancelled; less and less often while it does not last."""
        asked_at = 0.0
        pauses = iter(PAUSES)
        while True:
            await self._missed.wait()
            if time.monotonic() - asked_at > STEADY:
                pauses = iter(PAUSES)
            await asyncio.sleep(next(pauses, PAUSES[-1]))
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(CHECK_WAIT):
                    await self._check()
                self._missed.clear()
                self._back.set()
            asked_at = time.monotonic()
