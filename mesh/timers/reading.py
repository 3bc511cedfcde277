"""Reading all timers of a partition: when it was taken over, and when there may be too many hints of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from mesh.errors import MeshError
from mesh.store import StateStore, Stored
from mesh.tasks import task_group
from mesh.timers.firing import Firing, Held
from mesh.timers.hints import hint
from mesh.timers.record import due_of, milliseconds, prefix

__all__ = ["Reading"]

logger = logging.getLogger(__name__)

PAGE = 250  # Records at a time: with their values, which the block bounds.
PAGE_SECONDS = 30.0
AT_ONCE = 4  # Partitions that are read at the same time.
MANY = 64  # Partitions: so many are read as one, which costs the same where there is little in them.
PAUSES = 0.1, 5.0


class Reading:
    """Reads those partitions of a ``Firing`` whose hints are not complete."""

    def __init__(self, kind: str, records: StateStore, firing: Firing) -> None:
        """Prepare."""
        self._kind = kind
        self._records = records
        self._firing = firing
        self._wanted = asyncio.Event()

    def look(self) -> None:
        """Look for what is to be read."""
        self._wanted.set()

    async def work(self) -> None:
        """Read, without an end."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            wanted = {number: held for number, held in self._firing.held.items() if not held.hints.complete}
            for held in wanted.values():
                held.hints.reading()
            if len(wanted) >= MANY:
                await self._read_together(wanted)
            elif wanted:
                await self._read_each(wanted)

    async def _read_each(self, wanted: Mapping[int, Held]) -> None:
        waiting = iter(wanted.items())

        async def read() -> None:
            for partition, held in waiting:
                found: list[bytes] = []
                async for page in self._pages(prefix(self._kind, partition)):
                    found += [made for key, stored in page if (made := self._hint(partition, key, stored)) is not None]
                self._keep(partition, held, found)

        async with task_group() as tasks:
            for _ in range(min(AT_ONCE, len(wanted))):
                tasks.create_task(read(), name="timers-read")

    async def _read_together(self, wanted: Mapping[int, Held]) -> None:
        begins = prefix(self._kind)
        found: dict[int, list[bytes]] = {partition: [] for partition in wanted}
        async for page in self._pages(begins):
            for key, stored in page:
                number = key[len(begins) :].partition(".")[0]
                partition = int(number) if number.isdecimal() else -1
                if partition in found and (made := self._hint(partition, key, stored)) is not None:
                    found[partition].append(made)
        for partition, held in wanted.items():
            self._keep(partition, held, found.pop(partition))

    def _keep(self, partition: int, held: Held, found: Sequence[bytes]) -> None:
        if self._firing.held.get(partition) is held:
            held.hints.read(found)
            self._firing.look()

    def _hint(self, partition: int, key: str, stored: Stored) -> bytes | None:
        rest = key.removeprefix(prefix(self._kind, partition))
        try:
            return hint(milliseconds(due_of(stored.value)), rest.encode())
        except ValueError as error:
            logger.error("timer %s of %s is left alone: %s", rest, self._kind, error)  # noqa: TRY400 - it says all
            return None

    async def _pages(self, begins: str) -> AsyncIterator[Sequence[tuple[str, Stored]]]:
        """Give the records whose keys begin so, until there are no more; a page that failed is asked for again.

        What was acknowledged before the first page was asked for is among them: each page has what was there when it
        was asked for, and it is later.
        """
        after, (pause, longest) = "", PAUSES
        while True:
            try:
                async with asyncio.timeout(PAGE_SECONDS):
                    page = await self._records.scan(begins, after, PAGE)
            except (MeshError, TimeoutError) as error:
                logger.warning("timers of %s cannot be read: %s", self._kind, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
                continue
            pause = PAUSES[0]
            yield page
            if len(page) < PAGE:
                return
            after = page[-1][0]
