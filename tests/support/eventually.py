"""Waiting for a condition, without guessing how long it takes."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["PATIENCE", "eventually", "eventually_sync", "pause"]

T = TypeVar("T")

PATIENCE = 30.0  # Long enough for a busy machine: it bounds a hang, and costs nothing where all is well.
_LEAST, _MOST = 0.01, 0.1


@overload
async def eventually(check: Callable[[], Awaitable[T]], within: float = PATIENCE) -> T: ...
@overload
async def eventually(check: Callable[[], T], within: float = PATIENCE) -> T: ...
async def eventually(check: Callable[[], T | Awaitable[T]], within: float = PATIENCE) -> T:
    """Call ``check`` until it raises no AssertionError, and return its result.

    Args:
        check: A function or a coroutine function; it says what is not yet so by an AssertionError.
        within: Seconds; when they are over, the last AssertionError is raised.
    """
    begin = time.monotonic()
    while True:
        try:
            result = check()
            return await result if inspect.isawaitable(result) else result
        except AssertionError:
            if time.monotonic() > begin + within:
                raise
        await asyncio.sleep(_LEAST)  # What is looked for may be there for a moment only.


def eventually_sync(check: Callable[[], T], within: float = PATIENCE) -> T:
    """Do the same as `eventually`, where there is no event loop."""
    begin = time.monotonic()
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > begin + within:
                raise
        time.sleep(_LEAST)


def pause(begin: float) -> float:
    """Tell how long to wait before the next look at what takes long, and stays: each look costs."""
    return min(_LEAST + (time.monotonic() - begin) / 20, _MOST)
