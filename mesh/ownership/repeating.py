"""Asking an owner once more, where its answer leaves open whether it has done something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mesh.errors import StreamBrokenError
from mesh.ownership.errors import OwnerLostError

__all__ = ["repeated"]

REPEAT_SECONDS = 0.05

T = TypeVar("T")


async def repeated(ask: Callable[[], Awaitable[T]], deadline: float) -> T:
    """Ask again while it may have been done, as the partition moved or the node ended meanwhile.

    Args:
        ask: Leaves the same behind when it is done twice; what it has set off meanwhile may come once more.
        deadline: Unix time in seconds.

    Raises:
        OwnerLostError: It may have been done, and there is no time left.
        StreamBrokenError: The same.
        MeshError: What ``ask`` raises besides.
    """
    while True:
        try:
            return await ask()
        except (OwnerLostError, StreamBrokenError):
            if time.time() + REPEAT_SECONDS >= deadline:
                raise
        await asyncio.sleep(REPEAT_SECONDS)
