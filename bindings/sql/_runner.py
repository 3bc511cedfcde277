"""How statements reach a database without blocking the event loop, and how the pool of connections stays sound.

Work is a plain function of a connection. For drivers of asyncio it runs on SQLAlchemy's bridge to them; for drivers
that block, in threads of the store's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util.concurrency import greenlet_spawn

from mesh.errors import MeshError

__all__ = ["Runner", "bridged", "guard_pool", "threaded"]

CLOSE_SECONDS = 2.0

_T = TypeVar("_T")


class Runner(Protocol):
    """Does work on a connection."""

    async def __call__(self, work: Callable[[Connection], _T]) -> _T:
        """Give what the work gives; a connection that it leaves in doubt is closed."""


def _guarded(work: Callable[[Connection], _T], abort: Callable[[Any], None]) -> Callable[[Connection], _T]:
    """Close the connection for good when work ends in a way that says nothing about its state."""

    def run(connection: Connection) -> _T:
        try:
            return work(connection)
        except MeshError:  # Raised by the work itself, after it has undone what it did.
            raise
        except BaseException:
            if not connection.invalidated and not connection.closed:
                driver = connection.connection.driver_connection
                if driver is not None:
                    abort(driver)  # At once: a stalled server is not asked to say good-bye.
                connection.invalidate()
            raise

    return run


def _connected(engine: Engine, work: Callable[[Connection], _T]) -> _T:
    with engine.connect() as connection:
        return work(connection)


@asynccontextmanager
async def bridged(engine: AsyncEngine, abort: Callable[[Any], None]) -> AsyncIterator[Runner]:
    """Run work on a driver of asyncio."""

    # One crossing of the bridge for all of it, where AsyncConnection would take three.
    async def run(work: Callable[[Connection], _T]) -> _T:
        return await greenlet_spawn(_connected, engine.sync_engine, _guarded(work, abort))

    opened: WeakSet[Any] = WeakSet()

    @event.listens_for(engine.sync_engine, "connect")
    def _opened(_: object, record: Any) -> None:
        opened.add(record)

    try:
        yield run
    finally:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await engine.dispose()
        except TimeoutError:  # The server does not take leave.
            for record in opened:
                if record.driver_connection is not None:
                    abort(record.driver_connection)


@asynccontextmanager
async def threaded(engine: Engine, threads: int, name: str) -> AsyncIterator[Runner]:
    """Run work on a driver that blocks; a cancelled caller does not interrupt it."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(work: Callable[[Connection], _T]) -> _T:
        guarded = _guarded(work, lambda driver: None)
        return await asyncio.get_running_loop().run_in_executor(pool, _connected, engine, guarded)

    try:
        yield run
    finally:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await asyncio.get_running_loop().run_in_executor(pool, engine.dispose)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def guard_pool(engine: Engine, gone: Callable[[Any], bool], idle: float | None) -> None:
    """Have the pool replace connections that it is known to have lost, or that were idle for too long.

    Args:
        engine: Whose pool.
        gone: Tells of a driver's connection, without asking the server.
        idle: Seconds; None = however long.
    """

    @event.listens_for(engine, "checkin")
    def _checkin(_: object, record: Any) -> None:
        record.info["since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _checkout(_: object, record: Any, proxy: object) -> None:
        waited = time.monotonic() - record.info.get("since", time.monotonic())
        if gone(record.driver_connection) or (idle is not None and waited > idle):
            raise exc.DisconnectionError
