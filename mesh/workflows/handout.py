"""The tasks and timers in which work is handed out: they end with the dispatch, and tell the engine what came of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

from mesh.errors import AppUnreachableError, MeshError
from mesh.ownership.errors import NotOwnerError
from mesh.tasks import task_group
from mesh.workflows.contracts import WorkSource
from mesh.workflows.worker import Place, Ref, TaskResult, TaskWork

__all__ = ["Handout"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0  # Until it is asked again what the store failed to say.


class Handout:
    """The tasks and timers of a dispatch.

    Attributes:
        engine: Whose work it is.
        open: Whether anything may begin.
        places: Where each activity that is out is.
    """

    engine: WorkSource

    def __init__(self) -> None:
        """Run nothing yet."""
        self.open = False
        self.places: dict[tuple[Ref, int], Place] = {}
        self._group: asyncio.TaskGroup | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        self._running: dict[asyncio.Task[None], set[asyncio.Task[None]] | None] = {}  # With those of its worker.

    @asynccontextmanager
    async def run(self, engine: WorkSource) -> AsyncIterator[None]:
        """Hand out the work of an engine while entered."""
        self.engine = engine
        async with task_group() as self._group:
            self.open = True
            try:
                yield
            finally:
                self.open, self._group = False, None
                for timer in self._timers:
                    timer.cancel()
                for task in self._running:
                    task.cancel()

    def start(self, work: Coroutine[Any, Any, None], others: set[asyncio.Task[None]] | None = None) -> None:
        """Begin a task while it is open; ``others`` are those of the same worker, and have it while it runs."""
        assert self._group is not None
        task = self._group.create_task(work, name="workflow-work")
        self._running[task] = others
        if others is not None:
            others.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if (others := self._running.pop(task)) is not None:
            others.discard(task)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call a function after so many seconds, should it still be open then."""

        def do() -> None:
            self._timers.discard(timer)
            call()

        if self.open:
            timer = asyncio.get_running_loop().call_later(seconds, do)
            self._timers.add(timer)

    # What the engine is told

    def task_over(self, ref: Ref, work: TaskWork, came: object) -> None:
        """Tell what came of an activity: its result, or the error that it ended with."""
        if isinstance(came, TaskResult):
            self.engine.resolved(ref, work, came)
        else:
            self.engine.task_lost(ref, work, begun=not isinstance(came, AppUnreachableError))

    def not_opened(self, error: object, again: Callable[[], None]) -> None:
        """Ask again for what could not be made, unless there is nothing to do, or another node does it."""
        if error is None or isinstance(error, NotOwnerError):
            return
        if not isinstance(error, (MeshError, asyncio.CancelledError)):
            logger.error("cannot go on with an instance", exc_info=cast("Exception", error))
        self.later(AGAIN_SECONDS, again)
