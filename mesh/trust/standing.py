"""Whether a node can prove who it is: what it cannot answer in its own name it must not take."""

from __future__ import annotations

import asyncio
import datetime
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Protocol

from mesh.conditions import Condition
from mesh.errors import BrokerUnavailableError
from mesh.tasks import task_group, until_any
from mesh.trust.credential import Own

__all__ = ["Standing"]

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
AGAIN_SECONDS = 1.0
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

    @asynccontextmanager
    async def while_proven(
        self, label: str, serve: Callable[[], AbstractAsyncContextManager[None]]
    ) -> AsyncIterator[None]:
        """Serve, but for when this node cannot prove its answers: others do, or callers are told that nobody does.

        Args:
            label: What is served, for the log.
            serve: Does it while entered.

        Raises:
            BrokerUnavailableError: There is no connection at first. Later on that is tried again.
        """
        decided, leaving = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            told = False
            while not leaving.is_set():
                if not self.proven.is_set():
                    decided.set()
                    await until_any(self.proven, leaving)
                    continue
                async with AsyncExitStack() as serving:
                    try:
                        await serving.enter_async_context(serve())
                    except BrokerUnavailableError as error:
                        if not decided.is_set():
                            raise
                        if not told:
                            logger.warning("%s is not served again yet: %s", label, error)
                        told = True
                        with suppress(TimeoutError):
                            async with asyncio.timeout(AGAIN_SECONDS):
                                await leaving.wait()
                    else:
                        told = False
                        decided.set()
                        await until_any(self.ended, leaving)

        async with task_group() as tasks:
            tasks.create_task(hold(), name="exchange-hold")
            await decided.wait()
            yield
            leaving.set()
