"""How work reaches a connection without blocking the event loop, and how the pool of connections stays sound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Engine, NullPool
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util.concurrency import greenlet_spawn

from bindings.sql._session import Driver, Session, compiler
from mesh.errors import MeshError

__all__ = ["ENGINE", "Bounds", "Runner", "Work", "pooled", "threaded"]

CLOSE_SECONDS = 2.0
STOP_SECONDS = 5.0
# Of every engine: what keeps connections is here, and statements commit by themselves.
ENGINE: Mapping[str, Any] = {
    "isolation_level": "AUTOCOMMIT",
    "hide_parameters": True,
    "poolclass": NullPool,
    "pool_reset_on_return": None,
}

_T = TypeVar("_T")
Work = Callable[[Session], Coroutine[Any, Any, _T]]


class Runner(Protocol):
    """Does work on a connection."""

    async def __call__(self, work: Work[_T]) -> _T:
        """Give what the work gives; a connection that it leaves in doubt is closed."""


@dataclass(frozen=True)
class Bounds:
    """What a pool keeps to.

    Attributes:
        connections: The most.
        idle: Seconds that one may be unused; None = however long.
        lifetime: Seconds that one may be open; None = however long.
    """

    connections: int
    idle: float | None = None
    lifetime: float | None = None


class _Free:
    """Connections that are open and in use by nobody."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._free: list[Session] = []
        self._open: set[Session] = set()

    def take(self) -> tuple[Session | None, list[Session]]:
        """Take the one that was used last, if there is one, and those that have to be closed."""
        now, over = time.monotonic(), []
        bounds = self._bounds
        while self._free:
            try:
                session = self._free.pop()
            except IndexError:  # Another thread took it.
                break
            if session.gone:
                self.drop(session)
            elif (bounds.idle is not None and now - session.since > bounds.idle) or (
                bounds.lifetime is not None and now - session.opened > bounds.lifetime
            ):
                over.append(session)
            else:
                return session, over
        return None, over

    def opened(self, session: Session) -> Session:
        """Count a new one, which is in use."""
        self._open.add(session)
        return session

    def give(self, session: Session) -> None:
        """Give one back."""
        if session.gone:
            self.drop(session)
        else:
            session.since = time.monotonic()
            self._free.append(session)

    def drop(self, session: Session) -> None:
        """Close one at once."""
        self._open.discard(session)
        session.abort()

    async def use(self, session: Session, work: Work[_T], stop: Callable[[Session], None] | None = None) -> _T:
        """Do work on one that was taken; one whose work is cancelled is stopped."""
        try:
            result = await work(session)
        except MeshError:  # Raised by the work itself, after it has undone what it did.
            self.give(session)
            raise
        except asyncio.CancelledError:
            (stop or self.drop)(session)
            raise
        except BaseException:  # It says nothing about the connection's state.
            self.drop(session)
            raise
        self.give(session)
        return result

    async def leave(self, session: Session) -> None:
        """Close one in peace."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await session.close()
        finally:
            self.drop(session)

    async def close(self) -> None:
        """Close them all; those in use at once."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    while self._free:
                        await self.leave(self._free.pop())
        finally:
            for session in list(self._open):
                self.drop(session)

    def forget(self) -> None:
        """Close those that nobody uses at once."""
        while self._free:
            self.drop(self._free.pop())


@asynccontextmanager
async def pooled(
    engine: AsyncEngine, driver: Driver, bounds: Bounds, stopping: asyncio.TaskGroup | None = None
) -> AsyncIterator[Runner]:
    """Run work on a driver of asyncio; the engine has no pool of its own.

    Args:
        engine: Opens connections.
        driver: Of these.
        bounds: Of the pool.
        stopping: Where connections whose work was cancelled are stopped, by a driver that can.
    """
    free, compiled = _Free(bounds), compiler(engine.dialect)
    slots = asyncio.Semaphore(bounds.connections)

    async def use(work: Work[_T], stop: Callable[[Session], None] | None) -> _T:
        session, over = free.take()
        for each in over:
            await free.leave(each)
        if session is None:
            core = await greenlet_spawn(engine.sync_engine.connect)
            session = free.opened(Session(core, driver, compiled))
        return await free.use(session, work, stop)

    async def run(work: Work[_T]) -> _T:
        await slots.acquire()
        kept = False

        def stop(session: Session) -> None:
            nonlocal kept
            kept = True  # Until it is stopped, so there are never more connections than allowed.
            assert stopping is not None
            stopping.create_task(end(session), name="sql-stop")

        try:
            return await use(work, None if driver.stop is None or stopping is None else stop)
        finally:
            if not kept:
                slots.release()

    async def end(session: Session) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await session.stop()
        finally:
            free.drop(session)
            slots.release()

    try:
        yield run
    finally:
        await free.close()


class _Threads:
    """Threads that take work from one queue: handing each piece over by itself would wake a thread each time."""

    def __init__(self, most: int, name: str, do: Callable[[Work[Any]], Any]) -> None:
        self._most = most
        self._do = do
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)
        self._waiting: deque[tuple[Work[Any], asyncio.Future[Any]]] = deque()
        self._changing = threading.Lock()
        self._busy = 0

    async def run(self, work: Work[_T]) -> _T:
        """Do work; who gives it up before it began has it not done."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        with self._changing:
            self._waiting.append((work, future))
            wake = self._busy < self._most
            self._busy += wake
        if wake:
            self._pool.submit(self._drain)
        return await future

    def _drain(self) -> None:
        while True:
            with self._changing:
                if not self._waiting:
                    self._busy -= 1
                    return
                work, future = self._waiting.popleft()
            if future.cancelled():
                continue
            result, error = None, None
            try:
                result = self._do(work)
            except BaseException as raised:  # noqa: BLE001 - it is told to whoever waits
                error = raised
            with suppress(RuntimeError):  # The loop is closed; nobody waits.
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)
            del work, future, result, error  # The next wait keeps nothing alive.

    async def close(self, last: Callable[[], None]) -> None:
        """End the threads; those that are stuck in the driver are not waited for."""
        with self._changing:
            while self._waiting:
                self._waiting.popleft()[1].cancel()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await asyncio.get_running_loop().run_in_executor(self._pool, last)
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():  # It was given up.
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


@asynccontextmanager
async def threaded(engine: Engine, driver: Driver, threads: int, name: str) -> AsyncIterator[Runner]:
    """Run work on a driver that blocks, a connection for each thread; a cancelled caller interrupts it if it can be."""
    free, compiled = _Free(Bounds(threads)), compiler(engine.dialect)
    running: dict[Work[Any], Session] = {}
    changing = threading.Lock()

    def through(work: Work[_T]) -> _T:
        session, _ = free.take()
        session = session or free.opened(Session(engine.connect(), driver, compiled))
        with changing:
            running[work] = session
        try:
            free.use(session, work).send(None)  # It never waits.
        except StopIteration as done:
            result: _T = done.value
            return result
        finally:
            with changing:
                del running[work]
        raise RuntimeError("work for a driver that blocks waited for something else")

    async def run(work: Work[_T]) -> _T:
        try:
            return await pool.run(work)
        except asyncio.CancelledError:
            with changing:  # So it is this work that ends, and none that came after.
                if work in running:
                    running[work].interrupt()
            raise

    pool = _Threads(threads, name, through)
    try:
        yield run
    finally:
        await pool.close(free.forget)
