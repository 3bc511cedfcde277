"""Partitions that this node owns: taking one, finding the instances that need something begun, leaving or losing it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from mesh.errors import MeshError
from mesh.ownership.errors import NotOwnerError
from mesh.workflows.contracts import Commits, Dispatch
from mesh.workflows.entry import Entry, OwnedPartition
from mesh.workflows.mailbox import Expired, Request
from mesh.workflows.processor import PAUSES, Processor
from mesh.workflows.worker import Ref

__all__ = ["DRAIN_SECONDS", "Partitions"]

logger = logging.getLogger(__name__)

RESUMED_AT_ONCE = 64  # Instances that are read at the same time, of all partitions that were taken.
TAKEN_AT_ONCE = 16
DRAIN_SECONDS = 10.0  # For turns and activities that are out when a partition is left.
WRITE_SECONDS = 5.0  # For what is written then.
LEFT = "this node does not own partition {} any more"


class Partitions:
    """Takes, leaves and drops partitions: a `mesh.ownership.owning.Keeper`."""

    def __init__(
        self, processor: Processor, commits: Commits, dispatch: Dispatch, drain: float = DRAIN_SECONDS
    ) -> None:
        """Hold nothing yet."""
        self._processor = processor
        self._commits = commits
        self._dispatch = dispatch
        self._drain = drain
        self._resuming = asyncio.Semaphore(RESUMED_AT_ONCE)
        self._taking = asyncio.Semaphore(TAKEN_AT_ONCE)
        self._last: dict[int, list[OwnedPartition]] = {}  # Owned before, until nothing of it is written any more.
        self._tasks: asyncio.TaskGroup | None = None
        processor.scheduler.expire = self._expire

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Work in tasks of a group, from now on."""
        self._tasks = tasks
        for owned in self._processor.owned.values():
            tasks.create_task(self._take(owned), name="workflows-taking")

    def take(self, partition: int, epoch: int) -> None:
        """Begin: refuse a former owner's writes, read what is there, and go on with it."""
        self.drop(partition)
        owned = self._processor.owned[partition] = OwnedPartition(partition, epoch)
        if self._tasks is not None:
            self._tasks.create_task(self._take(owned), name="workflows-taking")

    async def leave(self, partition: int) -> None:
        """Begin nothing more; return once what is out has come back, within bounds, and was written."""
        owned = self._processor.owned.get(partition)
        if owned is None:
            return
        owned.leaving = True
        for entry in owned.entries.values():
            if entry.turn.queued or entry.tasks.attempts:
                self._dispatch.forget(entry.ref)
            entry.turn.unqueue()
            _dismiss(entry)
        await _until(owned, lambda: owned.gone or not owned.running, self._drain)
        for entry in list(owned.entries.values()):
            if entry.turn.work is not None:  # It hangs, and must not keep what has come from being written.
                entry.turn.clear()
            if entry.unwritten.outcomes or entry.unwritten.retries:
                entry.unwritten.flush_all()
                self._processor.wake(entry)
        await _until(owned, lambda: owned.gone or not owned.working, WRITE_SECONDS)
        if self._processor.owned.get(partition) is owned:
            self.drop(partition)

    def drop(self, partition: int) -> None:
        """End at once."""
        owned = self._processor.owned.pop(partition, None)
        if owned is None:
            return
        owned.gone = owned.leaving = True
        if not owned.taken.done():
            owned.taken.set_result(False)
        self._processor.forget(owned)
        for entry in owned.entries.values():
            if entry.turn.queued or entry.tasks.attempts:
                self._dispatch.forget(entry.ref)
            _dismiss(entry)
            self._processor.refuse(entry, NotOwnerError(LEFT.format(partition)))
            entry.turn.clear()  # What comes of it is for whoever owns it now to find out.
        self._commits.forget(partition)
        owned.quiet.set()
        if owned.busy:
            self._last.setdefault(partition, []).append(owned)

    # Taking

    async def _take(self, owned: OwnedPartition) -> None:
        async with self._taking:
            pause = PAUSES[0]
            await self._wait_for_last(owned.number)
            while not owned.gone:
                try:
                    if not owned.taken.done():
                        await self._commits.take(owned.number, owned.epoch, lambda: self._processor.owns(owned))
                        if owned.gone:
                            return
                        owned.taken.set_result(True)
                        for entry in list(owned.entries.values()):  # Something came for it meanwhile.
                            self._processor.wake(entry)
                    await self._scan(owned)
                except MeshError as error:
                    level = logging.DEBUG if isinstance(error, NotOwnerError) else logging.WARNING
                    logger.log(level, "partition %d of workflows is read again: %s", owned.number, error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, PAUSES[1])
                else:
                    return

    async def _wait_for_last(self, partition: int) -> None:
        """Wait until nothing is written any more for who owned it before, at this node: its bounds are those of writes.

        The store would take it for this owner's, and it knows nothing of what this one has read.
        """
        for last in tuple(self._last.get(partition, ())):
            await _until(last, partial(_is_quiet, last), None)
            if last in (left := self._last.get(partition, [])):
                left.remove(last)
        if not self._last.get(partition, True):
            del self._last[partition]

    async def _scan(self, owned: OwnedPartition) -> None:
        async for id, state in self._commits.scan(owned.number):
            if owned.leaving:
                return
            if state is not None and not state.wants_owner:
                if state.due is not None and not _goes_on(owned.entries.get(id)):
                    self._processor.scheduler.sooner(Ref(owned.number, id), state.due)
                continue
            await self._resuming.acquire()
            entry = self._processor.entry(owned, id)
            if _goes_on(entry):  # Somebody has asked for it.
                self._resuming.release()
                continue
            ended = state is not None and state.ended is not None
            self._release_after(self._processor.resume(entry, again=True, ended=ended))
        async for until, _ in self._commits.expiring(owned.number):
            self._processor.scheduler.expires(owned, until)

    def _release_after(self, task: asyncio.Task[None] | None) -> None:
        """Let another instance be read once this one was; None = it is being read already."""
        if task is None:
            self._resuming.release()
        else:
            task.add_done_callback(lambda _: self._resuming.release())

    # What was put away

    def _expire(self, partition: int) -> None:
        owned = self._processor.owned.get(partition)
        if owned is not None and self._tasks is not None:
            owned.expires = float("inf")
            self._tasks.create_task(self._expiring(owned), name="workflows-expiring")

    async def _expiring(self, owned: OwnedPartition) -> None:
        """Purge what was kept for long enough."""
        now = self._processor.clock()
        try:
            async for until, id in self._commits.expiring(owned.number):
                if owned.leaving:
                    return
                if until > now:
                    self._processor.scheduler.expires(owned, until)
                    continue
                await self._resuming.acquire()
                entry = self._processor.entry(owned, id)
                entry.mailbox.requests.append(Request(Expired(until)))
                self._release_after(self._processor.wake(entry))
        except MeshError as error:
            logger.warning("what is put away in partition %d is looked at again: %s", owned.number, error)
            self._processor.scheduler.expires(owned, now)


def _goes_on(entry: Entry | None) -> bool:
    """Tell whether an instance is in memory, newer than what was scanned, and has not ended."""
    return entry is not None and entry.known and (entry.instance is None or entry.instance.state.ended is None)


def _dismiss(entry: Entry) -> None:
    """Send those away who wait for a state."""
    entry.mailbox.dismiss(NotOwnerError(LEFT.format(entry.ref.partition)))


def _is_quiet(owned: OwnedPartition) -> bool:
    return not owned.busy


async def _until(owned: OwnedPartition, reached: Callable[[], bool], seconds: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not reached():
                owned.quiet.clear()
                await owned.quiet.wait()
