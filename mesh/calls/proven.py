"""Serving while a node can prove its answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from mesh.errors import BrokerUnavailableError
from mesh.tasks import task_group, until_any

if TYPE_CHECKING:
    from mesh.address import Address
    from mesh.trust.guard import Guard

__all__ = ["while_proven"]

logger = logging.getLogger(__name__)

AGAIN_AFTER = 1.0


@asynccontextmanager
async def while_proven(
    guard: Guard | None, address: Address, serve: Callable[[], AbstractAsyncContextManager[None]]
) -> AsyncIterator[None]:
    """Serve, but for when this node cannot prove its answers: others do, or callers are told that nobody does.

    Args:
        guard: Knows whether it can; None = nothing is proven.
        address: What is served.
        serve: Does it while entered.

    Raises:
        BrokerUnavailableError: There is no connection at first. Later on that is tried again.
    """
    if guard is None:
        async with serve():
            yield
        return
    standing, decided, leaving = guard.standing, asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        told = False
        while not leaving.is_set():
            if not standing.proven.is_set():
                decided.set()
                await until_any(standing.proven, leaving)
                continue
            async with AsyncExitStack() as serving:
                try:
                    await serving.enter_async_context(serve())
                except BrokerUnavailableError as error:
                    if not decided.is_set():
                        raise
                    if not told:
                        logger.warning("%s is not served again yet: %s", address.label, error)
                    told = True
                    with suppress(TimeoutError):
                        async with asyncio.timeout(AGAIN_AFTER):
                            await leaving.wait()
                else:
                    told = False
                    decided.set()
                    await until_any(standing.ended, leaving)

    async with task_group() as tasks:
        tasks.create_task(hold(), name="exchange-hold")
        await decided.wait()
        yield
        leaving.set()
