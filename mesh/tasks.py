"""Task groups that fail with the failure itself, and ends that are bounded in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

__all__ = ["drained_within", "task_group"]

logger = logging.getLogger(__name__)


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a TaskGroup that raises its only exception as it is, so that callers can name it in ``except``."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
        raise error from error.__cause__


@asynccontextmanager
async def drained_within(
    context: AbstractAsyncContextManager[None], grace: Callable[[], float | None], what: str
) -> AsyncIterator[None]:
    """Enter what waits for something in flight when it is left; then it has so many seconds, or no limit."""
    await context.__aenter__()
    try:
        yield
    finally:
        limit = asyncio.timeout(grace())
        try:
            async with limit:
                await context.__aexit__(None, None, None)
        except TimeoutError:
            if not limit.expired():
                raise
            logger.warning("released %s that had not finished in the time to drain", what)
