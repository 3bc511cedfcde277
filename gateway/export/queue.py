"""Sends spans on, in batches and beside everything else: a collector that is away slows and fails nothing."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from mesh import telemetry
from mesh.spans import Span
from mesh.tasks import task_group
from mesh.telemetry import Observer, Tracing

__all__ = ["FLUSH_SECONDS", "SEND_SECONDS", "ExportError", "Exporter", "exporting"]

logger = logging.getLogger(__name__)

MAX_WAITING = 4096
BATCH = 512
EVERY_SECONDS = 1.0
SEND_SECONDS = 10.0
FLUSH_SECONDS = 1.0


class ExportError(Exception):
    """A collector did not take spans; its text is for people."""


class Exporter(Protocol):
    """Sends spans to one place.

    Attributes:
        name: Of its kind, for counts.
        where: The place, for people; holds no secret.
        seconds: How long a batch may take.
    """

    name: str
    where: str
    seconds: float

    async def send(self, spans: Sequence[Span]) -> None:
        """Send a batch; raises `ExportError`."""


class _Queue:
    """What waits for one exporter."""

    def __init__(self, exporter: Exporter, observer: Observer) -> None:
        self._exporter, self._observer = exporter, observer
        self._waiting: deque[Span] = deque()
        self._full = asyncio.Event()
        self._left_out = 0
        self._failing = False

    def put(self, span: Span) -> None:
        """Take a span, unless too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            self._left_out += 1
            return
        self._waiting.append(span)
        if len(self._waiting) == BATCH:
            self._full.set()

    async def run(self) -> None:
        """Send what comes, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._full.wait()
            self._full.clear()
            await self.send_all()

    async def send_all(self) -> None:
        """Send what waits now."""
        for _ in range(-(-len(self._waiting) // BATCH)):
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            try:
                async with asyncio.timeout(self._exporter.seconds):
                    await self._exporter.send(batch)
            except ExportError as error:
                self._note(str(error), len(batch))
            except TimeoutError:
                self._note(f"no answer within {self._exporter.seconds:g} s", len(batch))
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed(batch))  # What was sent is sent again, under the same ids.
                raise
            except Exception as error:  # Spans are lost then, and no request is.
                logger.exception("spans could not be sent")
                self._note(type(error).__name__, len(batch))
            else:
                self._note("", len(batch))
        if self._left_out:
            self._count("left out", self._left_out)
            self._left_out = 0

    def give_up(self) -> None:
        """Tell of what was not sent in time."""
        if self._waiting:
            self._note("the gateway ends", len(self._waiting))

    def _note(self, why: str, count: int) -> None:
        """Count what became of a batch; why it failed is told once, and when it works again."""
        self._count("failed" if why else "sent", count)
        if why and not self._failing:
            logger.warning("spans are lost: %s does not take them: %s", self._exporter.where, why)
        elif self._failing and not why:
            logger.info("%s takes spans again", self._exporter.where)
        self._failing = bool(why)

    def _count(self, outcome: str, count: int) -> None:
        self._observer(telemetry.SPANS, (self._exporter.name, outcome), count)


@asynccontextmanager
async def exporting(
    exporters: Sequence[Exporter], tracing: Tracing, observer: Observer, grace: Callable[[], float]
) -> AsyncIterator[None]:
    """Send the spans of a node while entered; leaving sends what waits, for a moment.

    Args:
        exporters: Where to; none leaves tracing as it is.
        tracing: Makes the spans.
        observer: Is told what became of them.
        grace: Gives the seconds that it may take at the end; never more than `FLUSH_SECONDS`.
    """
    if not exporters:
        yield
        return
    queues = [_Queue(each, observer) for each in exporters]
    puts = [each.put for each in queues]

    def put(span: Span) -> None:
        for each in puts:
            each(span)

    try:
        async with task_group() as tasks:
            running = [tasks.create_task(each.run(), name="spans-export") for each in queues]
            tracing.sink = puts[0] if len(puts) == 1 else put
            try:
                yield
            finally:
                tracing.sink = None
                for task in running:
                    task.cancel()
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(min(grace(), FLUSH_SECONDS)), asyncio.TaskGroup() as tasks:
                for each in queues:
                    tasks.create_task(each.send_all(), name="spans-flush")
        for each in queues:
            each.give_up()
