"""What is open for as long as it is wanted and used.

What is replaced while others still use it is closed when the last of them has left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self, TypeVar

from mesh.conditions import Condition

__all__ = ["Life", "Lives"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Lives:
    """All that is open on a node; leaving it closes what is left, the last opened first."""

    def __init__(self) -> None:
        """Have nothing open yet."""
        self.tasks = asyncio.TaskGroup()
        self._open: dict[Life, None] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._retiring:
            task.cancel()
        for life in reversed(list(self._open)):
            await life.end()
        await self.tasks.__aexit__(None, None, None)

    async def begin(self, what: str, opening: Callable[[AsyncExitStack], Awaitable[_T]]) -> tuple[_T, Life]:
        """Open something; raises what that raises, and then nothing is left open.

        Args:
            what: For people.
            opening: Puts what is to be closed on the stack.
        """
        life = Life(what)
        opened: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        life.task = self.tasks.create_task(life.hold(opening, opened), name="life-hold")
        self._open[life] = None
        life.task.add_done_callback(lambda _: self._open.pop(life))
        try:
            return await opened, life
        except BaseException:
            life.task.cancel()
            await asyncio.wait([life.task])
            raise

    def retire(self, life: Life, seconds: float) -> None:
        """Close something once nobody uses it, or so many seconds later, and do not wait for it."""
        task = self.tasks.create_task(life.end(seconds), name="life-end")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


class Life:
    """Something that is open in a task of its own, which closes it as well; enter it around each use.

    Attributes:
        condition: Of what is open, once a use of it has failed.
    """

    __slots__ = ("_ending", "_idle", "_users", "_what", "condition", "task")

    def __init__(self, what: str) -> None:
        """Prepare; ``Lives`` begins it."""
        self._what = what
        self.condition: Condition | None = None
        self.task: asyncio.Task[None]
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._ending = asyncio.Event()

    def __enter__(self) -> Self:
        self._users += 1
        if self._users == 1:
            self._idle.clear()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._users -= 1
        if self._users == 0:
            self._idle.set()

    async def hold(self, opening: Callable[[AsyncExitStack], Awaitable[_T]], opened: asyncio.Future[_T]) -> None:
        """Open it, and close it when it is told to end."""
        try:
            async with AsyncExitStack() as stack:
                what = await opening(stack)
                if not opened.done():
                    opened.set_result(what)
                    await self._ending.wait()
        except Exception as error:
            if not opened.done():
                opened.set_exception(error)
            elif opened.cancelled() or self._ending.is_set():
                logger.warning("%s was not closed cleanly: %s: %s", self._what, type(error).__name__, error)
            else:
                raise
        except BaseException:
            opened.cancel()
            raise

    async def end(self, seconds: float = 0.0) -> None:
        """Close it once nobody uses it, or so many seconds later; cancelled meanwhile, it closes it at once."""
        try:
            if seconds > 0 and self._users:
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
        except TimeoutError:
            logger.warning("%s is closed, though %d still use it after %g s", self._what, self._users, seconds)
        finally:
            self._ending.set()
            await asyncio.wait([self.task])
