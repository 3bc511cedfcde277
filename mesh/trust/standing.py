"""Whether a node can prove who it is: what it cannot answer in its own name it must not take."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from typing import Protocol

from mesh.conditions import Condition
from mesh.trust.credential import Own

__all__ = ["Standing"]

WATCH_SECONDS = 0.5
LEAVE_SECONDS = 5.0
"""So long before its certificate ends a node takes no more calls: what it has taken can be answered, and it can say
that it leaves."""


class _Guard(Protocol):
    own: Own


class Standing:
    """Tells when a node can prove who it is no longer, and when it can again.

    Attributes:
        proven: Set while it can.
        ended: Set while it cannot.
    """

    def __init__(self) -> None:
        """Begin with a certificate that is good."""
        self.proven, self.ended = asyncio.Event(), asyncio.Event()
        self.proven.set()

    def look(self, own: Own, condition: Condition) -> None:
        """Look at the certificate in use; the log and the node's condition tell a change."""
        now = time.time()
        if own.since <= now < own.until - LEAVE_SECONDS:
            if self.ended.is_set():
                self.ended.clear()
                self.proven.set()
            condition.works(repeated=False)
        elif self.proven.is_set():
            self.proven.clear()
            self.ended.set()
            ends = datetime.datetime.fromtimestamp(own.until, datetime.UTC).isoformat(timespec="seconds")
            text = f"the certificate ends at {ends}, and there is no other one: no calls are taken until there is"
            condition.fails(text, level=logging.ERROR)

    async def watch(self, guard: _Guard, condition: Condition) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            self.look(guard.own, condition)
            await asyncio.sleep(WATCH_SECONDS)
