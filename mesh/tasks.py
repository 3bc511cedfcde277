"""Task groups that fail with the failure itself, and ends that are bounded in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

from mesh.errors import MeshError, StreamEndedError

__all__ = ["Later", "drained_within", "heeding_cancellation", "only_error", "task_group", "until_any"]

logger = logging.getLogger(__name__)

ENDS = "this node is shutting down"


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a TaskGroup that raises what `only_error` does, so that callers can name it in ``except``."""
    with only_error():
        async with asyncio.TaskGroup() as tasks:
            yield tasks


@contextmanager
def only_error() -> Iterator[None]:
    """Raise the only exception of a group, or of a group in a group, as it is; of several ``MeshError`` the first."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        alike = group.split(MeshError)[1] is None  # Several failed in ways that callers know: one says enough.
        while isinstance(error, BaseExceptionGroup) and (alike or len(error.exceptions) == 1):
            error = error.exceptions[0]
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


async def until_any(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(each.wait(), name="until-any") for each in events]
        _, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()


@contextmanager
def heeding_cancellation() -> Iterator[None]:
    """Raise a cancellation that arrived within and was swallowed there, as by ``asyncio.wait_for`` of Python 3.11."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


class Later:
    """Enters contexts when they are needed, whoever needs them, and leaves them when it is left itself.

    Each is entered and left in a task of its own, so that it outlives the one that asked for it.
    """

    def __init__(self) -> None:
        """Enter nothing yet."""
        self._ending = asyncio.Event()
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Enter what is asked for meanwhile; one that fails later ends this as well."""
        async with task_group() as self._tasks:
            try:
                yield
            finally:
                self._ending.set()

    async def enter(self, context: AbstractAsyncContextManager[None]) -> None:
        """Enter a context, and raise what that raises; cancelled, the caller leaves it to be entered.

        Raises:
            StreamEndedError: All ends; the context is left again, or was not entered.
        """
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def hold() -> None:
            try:
                async with context:
                    entered.set_result(None)
                    await self._ending.wait()
            except Exception as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        def held(_: asyncio.Task[None]) -> None:
            if not entered.done():  # It was cancelled, perhaps before its first step.
                entered.set_exception(StreamEndedError(ENDS))
            entered.exception()  # Perhaps nobody waits for it any more.

        work = hold()
        try:
            task = self._tasks.create_task(work, name="later")
        except RuntimeError:
            work.close()
            raise StreamEndedError(ENDS) from None
        task.add_done_callback(held)
        await asyncio.shield(entered)
