"""Turns: what only one node of the mesh does at a time, by a record that its holder renews."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from mesh.errors import ConflictError, MeshError
from mesh.store import Concurrency, Item, StateStore
from mesh.tasks import task_group

__all__ = ["in_turn"]

logger = logging.getLogger(__name__)

HOLD_SECONDS = 15.0  # As the store counts them: no two clocks are compared.
RENEW_SECONDS = 3.0
SURE_SECONDS = 10.0


class _LostTurnError(Exception):
    """Somebody else may have it, now or soon."""


async def in_turn(records: StateStore, key: str, work: Callable[[], Awaitable[None]], ending: asyncio.Event) -> None:
    """Do some work while nobody else does it: wait for the turn, and again whenever it was lost.

    A turn is lost where its record could not be renewed for 10 seconds; then the work is cancelled, five seconds before
    somebody else gets the turn. Only a process that stood still for longer may go on beside them for a moment. Whoever
    is killed keeps the turn for 15 seconds at most; whoever leaves gives it back.

    Args:
        records: Of all who take turns, with expiry and compare-and-set.
        key: What the turn is for.
        work: Done from its beginning each time; when it returns or raises, that is the end.
        ending: Set when the turn is not waited for any more; the work looks for itself.

    Raises:
        MeshError: What the work raised, or the records before the turn was there, where asking again does not help.
    """
    holder = secrets.token_hex(8).encode()
    while (since := await _taken(records, key, holder, ending)) is not None:
        try:
            async with task_group() as tasks:
                renewing = tasks.create_task(_renew(records, key, holder, since), name="turn-renew")
                await work()
                renewing.cancel()
            return
        except _LostTurnError:
            logger.info("the turn for %s was lost, and is waited for", key)
        finally:
            with suppress(MeshError):
                await _give_back(records, key, holder)


async def _taken(records: StateStore, key: str, holder: bytes, ending: asyncio.Event) -> float | None:
    """Wait for the turn; give the time (monotonic) since which it is there for sure, None = it came to an end."""
    told = ""
    while not ending.is_set():
        since = time.monotonic()
        try:
            if await _take(records, key, holder):
                return since
        except MeshError as error:
            if not error.retryable:
                raise
            if str(error) != told:
                logger.warning("the turn for %s is waited for: %s", key, error)
            told = str(error)
        with suppress(TimeoutError):
            async with asyncio.timeout(RENEW_SECONDS):
                await ending.wait()
    return None


async def _take(records: StateStore, key: str, holder: bytes) -> bool:
    """Take the turn, if nobody has it."""
    found = await records.get(key, strong=True)
    if found is not None and found.value != holder:
        return False
    etag, first = (None, Concurrency.FIRST_WRITE) if found is None else (found.etag, None)
    try:
        await records.write([Item(key, holder, etag, first, HOLD_SECONDS, lease=True)])
    except ConflictError:
        return False
    except (MeshError, asyncio.CancelledError):  # It may be written all the same.
        with suppress(MeshError):
            await _give_back(records, key, holder)
        raise
    return True


async def _renew(records: StateStore, key: str, holder: bytes, since: float) -> None:
    """Keep the turn; raises ``_LostTurnError``."""
    while True:
        await asyncio.sleep(min(RENEW_SECONDS, since + SURE_SECONDS - time.monotonic()))
        now = time.monotonic()
        if now >= since + SURE_SECONDS:
            raise _LostTurnError(key)
        try:
            async with asyncio.timeout(since + SURE_SECONDS - now):
                found = await records.get(key, strong=True)
                if found is None or found.value != holder:
                    raise _LostTurnError(key)
                await records.write([Item(key, holder, found.etag, ttl=HOLD_SECONDS, lease=True)])
        except (ConflictError, TimeoutError):
            raise _LostTurnError(key) from None
        except MeshError as error:
            logger.debug("the turn for %s: %s", key, error)
        else:
            since = now


async def _give_back(records: StateStore, key: str, holder: bytes) -> None:
    found = await records.get(key, strong=True)
    if found is not None and found.value == holder:
        await records.write([Item(key, None, found.etag)])
