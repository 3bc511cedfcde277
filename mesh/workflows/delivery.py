"""Delivery of messages to other instances: each is told until it has them, however long nobody is there.

Those for the same instance go one after the other, in order. A message that waits to be tried again takes no task.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from mesh.deadlines import Deadlines
from mesh.errors import BadArgumentError, MeshError, MessageTooLargeError, StateLimitError
from mesh.workflows.contracts import Deliver
from mesh.workflows.errors import WorkflowError, WorkflowStalledError, WorkflowTooLargeError, WorkflowUnreadableError
from mesh.workflows.events import Failure
from mesh.workflows.messages import ChildDone, StartWithHistory, Told
from mesh.workflows.state import Sent
from mesh.workflows.worker import Ref

__all__ = ["AT_ONCE", "TEXT", "Delivered", "Delivery"]

logger = logging.getLogger(__name__)

AT_ONCE = 1024  # That are told at the same time,
OF_ONE_APP = 128  # of the same application: others do not wait for one that does not answer.
TELL_SECONDS = 30.0  # What one try may take.
PAUSES = 0.5, 60.0  # Between tries; they double.
TEXT = 4096  # The longest of an error that becomes part of a history.
_NEVER = WorkflowError, BadArgumentError, MessageTooLargeError, StateLimitError  # The last ones: for no store or name.
_TOO_LARGE = WorkflowTooLargeError, MessageTooLargeError, StateLimitError
_LATER = WorkflowStalledError, WorkflowUnreadableError  # What whoever owns the other instance may say, and not mean.

Delivered: TypeAlias = Callable[[Ref, Sent, MeshError | None], None]
"""Told once it is delivered, or refused for good: why."""


@dataclass(slots=True, eq=False)
class _Line:
    """The messages of one instance for another one, in order."""

    ref: Ref
    other: tuple[str, str]
    waiting: deque[Sent] = field(default_factory=deque)
    pause: float = PAUSES[0]
    tries: int = 0
    timer: asyncio.TimerHandle | None = None
    gone: bool = False


class Delivery:
    """Delivers for all instances of an engine.

    Attributes:
        complete: Puts into a message what goes along with it; raises as ``deliver`` does.
    """

    complete: Callable[[Ref, StartWithHistory], Awaitable[StartWithHistory]]

    def __init__(self, deliver: Deliver, delivered: Delivered, clock: Callable[[], float]) -> None:
        """Prepare; ``clock`` is Unix time in seconds."""
        self._deliver = deliver
        self._delivered = delivered
        self._clock = clock
        self._lines: dict[Ref, dict[tuple[str, str], _Line]] = {}
        self._ready: dict[str, deque[_Line]] = {}  # By the application that is to be told.
        self._out: Counter[str] = Counter()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._deadlines = Deadlines()
        self._tasks: asyncio.TaskGroup | None = None

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Deliver in tasks of a group, from now on."""
        self._tasks = tasks

    def stop(self) -> None:
        """Deliver nothing any more: what is not delivered is in the store."""
        self._tasks = None
        for task in self._in_flight:
            task.cancel()

    def put(self, ref: Ref, outbox: Collection[Sent]) -> None:
        """Deliver what is not on its way yet."""
        lines = self._lines.setdefault(ref, {})
        known = {sent.number for line in lines.values() for sent in line.waiting}
        for sent in outbox:
            if sent.number in known:
                continue
            other = sent.app, sent.instance
            if (line := lines.get(other)) is None:
                line = lines[other] = _Line(ref, other)
                self._ready.setdefault(sent.app, deque()).append(line)
            line.waiting.append(sent)
        if not lines:
            del self._lines[ref]
        self._more()

    def forget(self, ref: Ref) -> None:
        """Deliver nothing more for an instance; what is on its way may arrive."""
        for line in self._lines.pop(ref, {}).values():
            line.gone = True
            line.waiting.clear()
            if line.timer is not None:
                line.timer.cancel()

    def drop(self, partition: int) -> None:
        """Deliver nothing more for those of a partition."""
        for ref in [each for each in self._lines if each.partition == partition]:
            self.forget(ref)

    # Delivering

    def _more(self) -> None:
        if self._tasks is None or len(self._in_flight) >= AT_ONCE:
            return
        for app, lines in list(self._ready.items()):
            while lines and self._out[app] < OF_ONE_APP and len(self._in_flight) < AT_ONCE:
                line = lines.popleft()
                if line.gone:
                    continue
                self._out[app] += 1
                task = self._tasks.create_task(self._work(line), name="workflows-delivery")
                self._in_flight.add(task)
                task.add_done_callback(partial(self._ended, app))
            if not lines:
                del self._ready[app]

    def _ended(self, app: str, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._out[app] -= 1
        if not self._out[app]:
            del self._out[app]
        self._more()

    async def _work(self, line: _Line) -> None:
        while line.waiting:
            if not await self._one(line, line.waiting[0]):
                return
        if not line.gone:
            self._forget_line(line)

    async def _one(self, line: _Line, sent: Sent) -> bool:
        """Try once; tells whether the next one may be tried now."""
        refused: MeshError | None = None
        try:
            until = self._clock() + TELL_SECONDS
            await self._deadlines.within(TELL_SECONDS, self._tell, line.ref, sent, until)
        except MeshError as error:
            if not isinstance(error, _NEVER) or isinstance(error, _LATER):
                self._later(line, sent, error)
                return False
            refused = error
        except Exception as error:  # At this boundary an error of our own must not end what others wait for.
            logger.exception("a message for workflow %s was not delivered", sent.instance)
            self._later(line, sent, error)
            return False
        if line.gone:
            return False
        line.pause, line.tries = PAUSES[0], 0
        if isinstance(refused, _TOO_LARGE) and (smaller := _smaller(sent, refused)) is not None:
            line.waiting[0] = smaller  # The number of it is what counts: the parent must not wait for ever.
            return True
        line.waiting.popleft()
        self._delivered(line.ref, sent, refused)
        return True

    async def _tell(self, ref: Ref, sent: Sent, until: float) -> Told:
        message = sent.message
        if isinstance(message, StartWithHistory):
            message = await self.complete(ref, message)
        return await self._deliver(sent.app, sent.instance, message, until)

    def _later(self, line: _Line, sent: Sent, error: Exception) -> None:
        if line.gone:
            return
        line.tries += 1
        # One failure may be a partition that moves; and what is away for days is told of now and then.
        if line.tries > 1 and line.tries.bit_count() == 1:
            logger.warning(
                "workflow %s has a message for %s of %s, which was tried %d times: %s",
                line.ref.id, sent.instance, sent.app, line.tries, error,
            )  # fmt: skip
        seconds = line.pause * random.uniform(0.75, 1.25)  # noqa: S311 - so that not all are tried at once
        line.pause = min(2 * line.pause, PAUSES[1])
        line.timer = asyncio.get_running_loop().call_later(seconds, self._again, line)

    def _again(self, line: _Line) -> None:
        line.timer = None
        self._ready.setdefault(line.other[0], deque()).append(line)
        self._more()

    def _forget_line(self, line: _Line) -> None:
        lines = self._lines[line.ref]
        del lines[line.other]
        if not lines:
            del self._lines[line.ref]


def _smaller(sent: Sent, error: MeshError) -> Sent | None:
    """Make what tells a parent that its child's outcome is too large for it."""
    message = sent.message
    if not isinstance(message, ChildDone) or (message.failure is not None and len(message.failure.message) <= TEXT):
        return None
    failure = Failure("WorkflowTooLarge", str(error)[:TEXT], final=True)
    smaller = ChildDone(message.execution, message.task, message.app, failure=failure)
    return Sent(sent.number, sent.app, sent.instance, smaller)
