"""Processing instances: each is read, written, put away and purged by one task, which is there while it has work.

Everything that waits for the same instance goes in one write: messages, the answer to its turn, results, and what was
delivered for it. It is applied in memory before it is written, and nothing follows from it before that succeeded; what
failed in between is read anew. Writes are the engine's own: whoever asks may go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from mesh.deadlines import Deadlines
from mesh.errors import MeshError
from mesh.ownership.errors import NotOwnerError
from mesh.workflows import decide, retrying
from mesh.workflows.batch import Batch, Observer, compose
from mesh.workflows.contracts import Commits, Deliver, Dispatch, Saved
from mesh.workflows.delivery import TEXT, Delivery
from mesh.workflows.entry import Entry, Impossible, OwnedPartition
from mesh.workflows.errors import (
    WorkflowError,
    WorkflowNotEndedError,
    WorkflowNotFoundError,
    WorkflowTooLargeError,
    WorkflowUnreadableError,
)
from mesh.workflows.events import Failure, TaskScheduled
from mesh.workflows.instance import Instance
from mesh.workflows.mailbox import Expired, Refused, Request
from mesh.workflows.memory import Memory
from mesh.workflows.messages import Purge, Told
from mesh.workflows.scheduler import Scheduler
from mesh.workflows.state import Sent, State, Step
from mesh.workflows.worker import Ref

__all__ = ["PAUSES", "STORE_SECONDS", "Processor"]

logger = logging.getLogger(__name__)

STORE_SECONDS = 10.0  # What one read or write may take.
PAUSES = 0.05, 2.0  # Between tries at a store that failed.
READ_AT_ONCE = 256  # Of those whose time has come.


class Processor:
    """Processes the instances of the partitions that are owned.

    Attributes:
        app: The application.
        owned: Those partitions, by number.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        app: str,
        commits: Commits,
        dispatch: Dispatch,
        deliver: Deliver,
        sure: Callable[[int], bool],
        clock: Callable[[], float],
        memory_bytes: int,
        retention: Callable[[State], float | None],
        observer: Observer | None,
    ) -> None:
        """Prepare; the arguments are those of ``Engine``."""
        self.app = app
        self.owned: dict[int, OwnedPartition] = {}
        self.clock = clock
        self._commits = commits
        self._sure = sure
        self._retention = retention
        self._observer = observer
        self.delivery = Delivery(deliver, self._delivered, clock)
        self.memory = Memory(memory_bytes)
        self.scheduler = Scheduler(dispatch, self.delivery, clock, self.wake)
        self.scheduler.look = self._look
        self.scheduler.is_busy = lambda: self._reading >= READ_AT_ONCE
        self._reading = 0
        self._deadlines = Deadlines()
        self._tasks: asyncio.TaskGroup | None = None

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Work in tasks of a group, from now on."""
        self._tasks = tasks
        self.delivery.begin(tasks)

    def stop(self) -> None:
        """Begin nothing any more by itself."""
        self.scheduler.stop()
        self.delivery.stop()

    def owns(self, owned: OwnedPartition) -> bool:
        """Tell whether a partition is owned, now and for sure."""
        return not owned.gone and self._sure(owned.number)

    def entry(self, owned: OwnedPartition, id: str) -> Entry:
        """Give what is known of an instance, or begin to know it."""
        if (entry := owned.entries.get(id)) is None:
            entry = owned.entries[id] = Entry(Ref(owned.number, id), owned)
        return entry

    def find(self, ref: Ref) -> Entry | None:
        """Give what is known of an instance."""
        owned = self.owned.get(ref.partition)
        return None if owned is None else owned.entries.get(ref.id)

    def release(self, entry: Entry) -> None:
        """Forget an instance that is not in memory, where nothing must be known of it any more."""
        entries, id = entry.partition.entries, entry.ref.id
        stalled = id in entry.partition.stalled  # It may be about to be tried again.
        if not (entry.known or stalled) and entry.idle and entry.bare and entries.get(id) is entry:
            del entries[id]

    def wake(self, entry: Entry) -> asyncio.Task[None] | None:
        """Have a task work on an instance, unless one does; gives it."""
        owned = entry.partition
        if entry.busy or owned.gone or not owned.taken.done() or self._tasks is None:
            return None
        entry.busy = True
        return self._tasks.create_task(self._work(entry), name="workflow")

    def _look(self, ref: Ref) -> None:
        owned = self.owned.get(ref.partition)
        if owned is None or owned.leaving:
            return
        entry = self.entry(owned, ref.id)
        if entry.busy:  # It looks when it has ended, unless it could not be read.
            entry.read_anew()
            return
        if not entry.known:
            self.resume(entry)
        elif entry.instance is not None:
            self.scheduler.fire(entry)
            self.scheduler.advance(entry)

    def resume(self, entry: Entry, *, again: bool = False, ended: bool = False) -> asyncio.Task[None] | None:
        """Read an instance, and begin what it needs.

        Args:
            entry: Of it.
            again: Whether a turn is to be tried where it is stalled.
            ended: Whether it has ended, and is to be put away.
        """
        if again:
            entry.turn.retry()
        entry.ending = entry.ending or ended
        entry.resume = True
        if (task := self.wake(entry)) is not None and not entry.known:
            self._reading += 1
            task.add_done_callback(self._has_read)
        return task

    def _has_read(self, _: asyncio.Task[None]) -> None:
        self._reading -= 1

    def forget(self, owned: OwnedPartition) -> None:
        """Forget a partition."""
        self.scheduler.forget(owned)
        self.delivery.drop(owned.number)
        for entry in owned.entries.values():
            self.memory.forget(entry)

    # One instance

    async def _work(self, entry: Entry) -> None:
        try:
            while not entry.partition.gone and await self._once(entry):
                pass
        except Exception as error:  # At this boundary: one instance must not end what the others do.
            logger.exception("workflow %s is read anew", entry.ref.id)
            self._unsure(entry)
            self.refuse(entry, WorkflowError(f"the engine failed: {type(error).__name__}"))
        finally:
            entry.busy = False
            self._rest(entry)

    async def _once(self, entry: Entry) -> bool:
        """Do what is next; tells whether there may be more."""
        if not entry.known:
            if not (entry.mailbox or entry.resume):
                return False
            await self._load(entry)
            return entry.known
        mailbox = entry.mailbox
        if mailbox.results:
            for work, result in mailbox.take_results():
                self.scheduler.settle(entry, work, result)
        if mailbox.calls:
            for call in mailbox.take_calls():
                call.run()
        batch = compose(entry, self.app, self.clock())
        if batch.step is not None:
            await self._commit(entry, batch, batch.step)
            return entry.pressing
        self._tell(entry, batch)
        if mailbox.requests:
            if (request := mailbox.take_purge()) is not None:
                await self._purge(entry, request)
            return entry.known
        if entry.ending and _may_go(entry):
            await self._put_away(entry)
            return entry.known
        return bool(mailbox.results or mailbox.calls)

    def _rest(self, entry: Entry) -> None:
        """Leave it, until it is woken again."""
        owned = entry.partition
        if owned.gone:
            self.refuse(entry, NotOwnerError(f"this node does not own partition {owned.number} any more"))
            owned.quiet.set()
            return
        if entry.known:
            entry.resume = False
        if entry.known and entry.instance is not None:
            self.scheduler.fire(entry)
            self.scheduler.advance(entry)
            self.memory.used(entry)
        elif entry.pause and (entry.resume or entry.mailbox.requests or entry.mailbox.calls):
            self.scheduler.rest(entry, entry.pause)
        elif entry.resume or entry.mailbox:
            self.wake(entry)
        elif entry.idle:
            self.memory.forget(entry)
            entry.unload()
            self.release(entry)
        if owned.leaving:
            owned.quiet.set()

    async def _load(self, entry: Entry) -> None:
        ref = entry.ref
        try:
            found = await self._deadlines.within(STORE_SECONDS, self._commits.load, ref.partition, ref.id)
        except MeshError as error:
            self.refuse(entry, error)
            if isinstance(error, WorkflowUnreadableError):
                logger.error("workflow %s is left alone: %s", ref.id, error)  # noqa: TRY400 - it says all
                entry.resume = False
                entry.mailbox.results.clear()
                self.scheduler.clear(entry)
                return
            entry.resume = entry.resume or not entry.bare or bool(entry.mailbox.results)
            entry.pause = min(max(PAUSES[0], 2 * entry.pause), PAUSES[1])
            return
        if entry.partition.gone:
            return
        if entry.pause:
            entry.pause = 0.0
            entry.pacing.end()
        entry.known, entry.resume = True, False
        if found is None:
            entry.instance = entry.saved = None
            self.scheduler.clear(entry)
        else:
            entry.instance = Instance(ref.id, self.app, found.state, found.history)
            entry.saved = found.saved
            self._resumed(entry)
        entry.unsure = False
        entry.mailbox.see(None if found is None else found.state)  # A write of unknown outcome may have done it.

    def _resumed(self, entry: Entry) -> None:
        """Begin what an instance needs that was just read."""
        instance = entry.instance
        assert instance is not None
        state = instance.state
        tasks, unwritten = entry.tasks, entry.unwritten
        if tasks.generation != state.generation:
            self.scheduler.renew(entry)
        unwritten.keep(instance.wants)
        if unwritten.outcomes or unwritten.delivered:
            self.scheduler.later(entry)
        entry.ending = state.ended is not None and (entry.ending or entry.unsure)
        if (until := self._kept_until(state)) is not None:  # Somebody may have been cut off who put it away.
            self.scheduler.expires(entry.partition, until)
        if state.ended is None and not entry.partition.leaving:
            waiting = retrying.waiting(instance, self.clock())
            for task in instance.tasks.values():
                if task.id not in tasks.attempts and task.id not in waiting and task.id not in unwritten.settled:
                    self.scheduler.dispatch(entry, task)
        self.scheduler.mark(entry, state)
        if undelivered := [sent for sent in state.outbox if sent.number not in unwritten.delivered]:
            self.delivery.put(entry.ref, undelivered)

    # Writing

    async def _commit(self, entry: Entry, batch: Batch, step: Step) -> None:
        ref, until, now = entry.ref, self._kept_until(step.state), self.clock()
        write: Callable[..., Awaitable[Saved]] = self._commits.commit
        if last := _is_last(batch.before, step.state, now) and (until is None or until > now):
            write = partial(self._commits.end, until=until)
        try:
            saved = await self._deadlines.within(STORE_SECONDS, write, ref.partition, ref.id, entry.saved, step)
        except WorkflowTooLargeError as error:  # Nothing was done.
            self._too_large(entry, batch, error)
        except MeshError as error:
            self._unsure(entry)
            for request, _ in batch.told:
                request.answer(error)
        else:
            entry.saved, entry.pause = saved, 0.0
            self._committed(entry, batch, step)
            if last:
                self._gone(entry, until)

    def _committed(self, entry: Entry, batch: Batch, step: Step) -> None:
        """Let follow from a write what does."""
        instance, before = entry.instance, batch.before
        assert instance is not None
        state = instance.state
        if batch.delivered:
            entry.unwritten.forget_delivered(batch.delivered)
        if entry.partition.gone:  # Its next owner knows of it by now.
            self._tell(entry, batch)
            return
        if batch.answered:
            entry.turn.written()
        if before is None or before.generation != state.generation:
            self.scheduler.renew(entry)
            entry.ending = False  # The id may be used again before the one that had it was put away.
            if before is not None:
                self.scheduler.count(entry)
        if state.ended is not None and not entry.ending:
            self.scheduler.renew(entry)
            entry.ending = True
        if entry.unwritten.outcomes:
            entry.unwritten.keep(instance.wants)
            if entry.unwritten.outcomes:
                self.scheduler.later(entry)
        if batch.answered:
            self.scheduler.turned(entry, before, step)
        if not entry.partition.leaving:
            for event in step.append:
                if type(event) is TaskScheduled and event.id in instance.tasks:
                    self.scheduler.dispatch(entry, event)
        if state.outbox:
            sent = 0 if before is None else before.sent
            self.delivery.put(entry.ref, [each for each in state.outbox if each.number > sent])
        self.scheduler.mark(entry, state)
        if self._observer is not None:
            self._observer(entry.ref, before, step, instance)
        self._tell(entry, batch)
        if entry.mailbox.requests:  # However much it is told, it has its turns.
            self.scheduler.fire(entry)
            self.scheduler.advance(entry)

    def _too_large(self, entry: Entry, batch: Batch, error: WorkflowTooLargeError) -> None:
        """Fail the messages, if any were in it; else the turn, whose instance is stalled."""
        self._unload(entry)
        entry.resume, entry.pause = True, PAUSES[0]
        if batch.told:
            for request, _ in batch.told:
                request.answer(error)
        elif batch.answered and not isinstance(entry.turn.answer, Impossible):
            entry.turn.reply(Impossible(str(error)[:TEXT]))
        else:
            logger.error("workflow %s cannot be kept: %s", entry.ref.id, error)
            self.scheduler.turn_lost(entry)
            entry.pause = PAUSES[1]

    def _unsure(self, entry: Entry) -> None:
        """Have it read anew, as a write may have been done or not; what is out does not count."""
        self._unload(entry)
        entry.turn.clear()
        entry.unsure = entry.resume = True
        entry.pause = min(max(PAUSES[0], 2 * entry.pause), PAUSES[1])

    def _unload(self, entry: Entry) -> None:
        self.memory.forget(entry)
        entry.unload()

    async def _put_away(self, entry: Entry) -> None:
        instance, ref = entry.instance, entry.ref
        assert instance is not None
        assert entry.saved is not None
        state = decide.delivered(instance.state, entry.unwritten.delivered)
        until = self._kept_until(state)
        try:
            if until is not None and until <= self.clock():
                await self._deadlines.within(STORE_SECONDS, self._commits.purge, ref.partition, ref.id)
                until = None
            else:
                await self._deadlines.within(
                    STORE_SECONDS, self._commits.put_away, ref.partition, ref.id, entry.saved, state, until
                )
        except MeshError as error:
            logger.warning("workflow %s has ended, and is put away later: %s", ref.id, error)
            self._unsure(entry)
            return
        self._gone(entry, until)

    def _kept_until(self, state: State) -> float | None:
        keep = None if state.ended is None else self._retention(state)
        return None if keep is None or state.ended is None else state.ended + keep

    def _gone(self, entry: Entry, until: float | None = None) -> None:
        """Leave what was put away, or purged, to readers."""
        if entry.partition.gone:
            return
        if until is not None:
            self.scheduler.expires(entry.partition, until)
        self.scheduler.clear(entry)
        self._unload(entry)

    async def _purge(self, entry: Entry, request: Request) -> None:
        instance, ref, message = entry.instance, entry.ref, request.message
        assert isinstance(message, (Purge, Expired))
        if request.abandoned:
            return
        if instance is None:
            self._answer(entry, request, WorkflowNotFoundError(ref.id))
            return
        state = decide.delivered(instance.state, entry.unwritten.delivered)
        if isinstance(message, Purge) and message.parent not in (None, state.parent):
            self._answer(entry, request, Told(0))
            return
        if isinstance(message, Expired):
            if state.ended is None or state.ended > message.until:  # The id was used again.
                return
        elif not decide.can_purge(state, force=message.force):
            what = "has not ended" if state.ended is None else "has messages for others that do not have them yet"
            self._answer(entry, request, WorkflowNotEndedError(f"the workflow instance '{ref.id[:200]}' {what}"))
            return
        try:
            found = await self._deadlines.within(STORE_SECONDS, self._commits.purge, ref.partition, ref.id)
        except MeshError as error:
            self._unsure(entry)
            request.answer(error)
            return
        self._gone(entry)
        if not entry.partition.gone:
            entry.mailbox.see(None)
        request.answer(Told(int(found)))

    # Telling

    def _tell(self, entry: Entry, batch: Batch) -> None:
        """Tell who asked, and who waits, what is so now."""
        for request, told in batch.told:
            if batch.step is None:
                self._answer(entry, request, told)
            else:
                request.answer(told)
        if entry.mailbox.watchers and batch.step is not None:
            entry.mailbox.see(batch.step.state)

    def _answer(self, entry: Entry, request: Request, told: Told | Exception) -> None:
        """Answer from memory: it may be behind what another owner has done."""
        if self.owns(entry.partition):
            request.answer(told)
        else:
            request.answer(NotOwnerError(f"this node does not own partition {entry.ref.partition} for sure"))

    def refuse(self, entry: Entry, error: MeshError) -> None:
        """Fail all that waits, and has had no effect."""
        for request in entry.mailbox.refuse(error):
            if isinstance(request.message, Expired) and not (
                entry.partition.gone or isinstance(error, WorkflowUnreadableError)
            ):
                self.scheduler.expires(entry.partition, self.clock())

    def _delivered(self, ref: Ref, sent: Sent, refused: MeshError | None) -> None:
        owned = self.owned.get(ref.partition)
        if owned is None:
            return
        entry = self.entry(owned, ref.id)
        if refused is not None:
            kind = type(refused).__name__.removesuffix("Error")
            logger.info("workflow %s could not tell %s of %s: %s", ref.id, sent.instance[:200], sent.app, refused)
            failure = Failure(kind, str(refused)[:TEXT], final=True)
            entry.mailbox.requests.append(Request(Refused(sent, failure)))
            entry.read_anew()  # It is told again, should it not be read now.
            self.wake(entry)
            return
        entry.unwritten.deliver(sent.number)
        if entry.ending:
            entry.read_anew()
            self.wake(entry)
        else:
            self.scheduler.later(entry)


def _is_last(before: State | None, state: State, now: float) -> bool:
    """Tell whether a step ends an instance that has nothing for others, and that a new owner would read at once."""
    if before is None or before.ended is not None or state.ended is None or state.outbox:
        return False
    return before.wants_owner or (before.due is not None and before.due <= now)


def _may_go(entry: Entry) -> bool:
    """Tell whether it may be put away: it has ended, and everybody has what it had for them."""
    state = None if entry.instance is None else entry.instance.state
    return (
        state is not None
        and state.ended is not None
        and all(each.number in entry.unwritten.delivered for each in state.outbox)
    )
