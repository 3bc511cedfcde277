"""Scheduling: from what an instance is follow its activities and turns, and when it is looked at again.

Nothing here is written: the next owner finds all of it again from what is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from mesh.workflows import decide, retrying, turns
from mesh.workflows.contracts import Dispatch
from mesh.workflows.delivery import Delivery
from mesh.workflows.dues import Alarm, Dues
from mesh.workflows.entry import Entry, OwnedPartition
from mesh.workflows.events import Failure, Retrying, TaskScheduled
from mesh.workflows.state import State, Status, Step
from mesh.workflows.worker import Ref, TaskResult, TaskWork

__all__ = ["Scheduler"]

FLUSH_SECONDS = 1.0  # What is volatile, or delivered, waits so long for another write that it may go with.
LOST_PAUSES = 0.5, 60.0  # Before what was lost for the second time begins again; they double. The first time, at once.
BURST, BURST_SECONDS = 100, 1.0  # So many generations in that time, then the instance pauses as long.
BUSY_SECONDS = 0.05  # Until others are looked at while many are read.
EXPIRE_SECONDS = 60.0  # Between looking at what was put away in a partition, at least.
LOST = Failure("WorkerLost", "the worker was lost while the activity ran")
_MAY_BEGIN = frozenset({Status.PENDING, Status.STALLED})


class Scheduler:
    """Sees to what instances need, of all partitions that are owned.

    Attributes:
        look: Looks at an instance whose time has come.
        expire: Looks at what was put away in a partition, likewise.
        is_busy: Tells whether so many are read just now that others have to wait.
    """

    look: Callable[[Ref], None]
    expire: Callable[[int], None]
    is_busy: Callable[[], bool]

    def __init__(
        self, dispatch: Dispatch, delivery: Delivery, clock: Callable[[], float], wake: Callable[[Entry], object]
    ) -> None:
        """Prepare; ``wake`` has a task work on an instance."""
        self._dispatch = dispatch
        self._delivery = delivery
        self._clock = clock
        self._wake = wake
        self._dues = Dues()
        self._alarm = Alarm(clock, self._ring)
        self._later: dict[Entry, float] = {}  # What waits for another write to go with, in order of the time since.
        self._flushing: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Look at nothing any more."""
        self._alarm.stop()
        if self._flushing is not None:
            self._flushing.cancel()

    def forget(self, owned: OwnedPartition) -> None:
        """Forget a partition."""
        self._dues.drop(owned.number)
        for entry in owned.entries.values():
            self._later.pop(entry, None)

    # What an instance needs

    def settle(self, entry: Entry, work: TaskWork, result: TaskResult | None) -> None:
        """Take what came of an activity, of an instance in memory that is not written just now; None = it is lost."""
        instance, tasks, unwritten = entry.instance, entry.tasks, entry.unwritten
        id = work.task
        tasks.returned(id, work.generation)
        if instance is None or work.generation != instance.state.generation or id in unwritten.settled:
            return
        task = instance.tasks.get(id)
        if task is None:
            tasks.done(id)
            return
        if result is None:
            if task.retry is None:  # It begins again, until somebody knows what came of it.
                attempt = instance.attempts[id] = max(instance.attempts.get(id, 1), work.attempt + 1)
                if seconds := _lost_pause(attempt - 1):
                    tasks.want(id, attempt)
                    again = partial(self._begin_again, entry, task, work.generation)
                    asyncio.get_running_loop().call_later(seconds, again)
                else:
                    self.dispatch(entry, task)
                return
            result = TaskResult(failure=LOST)
        event = decide.resolve(instance, work.generation, id, result, work.attempt, self._clock())
        if event is None:
            return
        tasks.done(id)
        if isinstance(event, Retrying):
            unwritten.retry(event)
            self._wake(entry)
            return
        unwritten.add(event, id)
        self.later(entry)
        if entry.partition.leaving:
            unwritten.flush_all()
            self._wake(entry)
        else:
            self.advance(entry)

    def dispatch(self, entry: Entry, task: TaskScheduled) -> None:
        """Have an activity run."""
        instance = entry.instance
        entry.tasks.want(task.id, 1 if instance is None else instance.attempts.get(task.id, 1))
        self._dispatch.task(entry.ref, task.id, task.name, task.app)

    def _begin_again(self, entry: Entry, task: TaskScheduled, generation: int) -> None:
        if entry.tasks.generation == generation and task.id in entry.tasks.attempts and not entry.partition.leaving:
            self._dispatch.task(entry.ref, task.id, task.name, task.app)

    def turn_lost(self, entry: Entry) -> None:
        """Have a turn begin again, the more often it was lost, the later; others do not wait for that."""
        entry.turn.lost()
        if entry.instance is not None and entry.instance.state.status == Status.STALLED:
            entry.turn.retry()
        if seconds := _lost_pause(entry.turn.losses):
            self.rest(entry, seconds)

    def advance(self, entry: Entry) -> None:
        """Have it get a turn, if there is something new for it."""
        instance, turn, pacing = entry.instance, entry.turn, entry.pacing
        if instance is None or turn.queued or turn.open is not None or pacing.until or entry.partition.leaving:
            return
        state = instance.state
        if state.status != Status.RUNNING:
            now = self._clock()
            if (
                state.status not in _MAY_BEGIN
                or turns.begin(instance, entry.unwritten.outcomes, now, again=turn.retry_stalled) is None
            ):
                return
        elif not (state.inbox or entry.unwritten.outcomes) or self._coalesces(entry, state):
            return
        if pacing.burst[1] > BURST and (rest := pacing.burst[0] + BURST_SECONDS - _now()) > 0:
            self.rest(entry, rest)
            return
        turn.queue()
        self._dispatch.turn(entry.ref, state.name)

    def turned(self, entry: Entry, before: State | None, step: Step) -> None:
        """Take note of a turn that was written: what has come since waits for another write, and perhaps for more."""
        if self._later.pop(entry, None) is not None and (entry.unwritten.outcomes or entry.unwritten.delivered):
            self.later(entry)
        assert entry.instance is not None
        entry.coalescing.end(entry.instance, before, step, _now())

    def _coalesces(self, entry: Entry, state: State) -> bool:
        """Tell whether there are only results that wait for others; it is looked again when they do no longer."""
        coalescing = entry.coalescing
        until = coalescing.until
        if until <= _now() or state.inbox or entry.unwritten.urgent or not entry.tasks.attempts:
            return False
        if coalescing.alarm != until:
            coalescing.alarm = until
            asyncio.get_running_loop().call_at(until, self._coalesced, entry, until)
        return True

    def _coalesced(self, entry: Entry, until: float) -> None:
        if entry.coalescing.until == until:
            entry.coalescing.until = 0.0  # By the loop's clock it may be a hair before that.
            if entry.known and not entry.busy:
                self.advance(entry)

    def fire(self, entry: Entry) -> None:
        """Take what is due, and look again when the next is."""
        instance = entry.instance
        assert instance is not None
        due = instance.state.due
        if due is None or entry.partition.leaving:
            self.due(entry.ref, None)
            return
        now = self._clock()
        if due <= now:
            for event in decide.due_events(instance, now, entry.unwritten.settled):
                entry.unwritten.add(event, event.timer)
                self.later(entry)
            for id in retrying.due(instance, now, entry.tasks.attempts):
                self.dispatch(entry, instance.tasks[id])
            due = instance.next_due(now)
        self.due(entry.ref, due)

    def count(self, entry: Entry) -> None:
        """Count generations, as one that begins anew for ever must not keep a processor busy."""
        entry.pacing.count(_now(), BURST_SECONDS)

    def mark(self, entry: Entry, state: State) -> None:
        """Remember which are stalled: a worker that attaches may go on with them."""
        if state.status == Status.STALLED:
            entry.partition.stalled.add(entry.ref.id)
        else:
            entry.partition.stalled.discard(entry.ref.id)

    def renew(self, entry: Entry) -> None:
        """Forget what belongs to an execution that is over."""
        if entry.tasks.attempts or entry.turn.queued:
            self._dispatch.forget(entry.ref)
        entry.renew()
        if not entry.unwritten.delivered:
            self._later.pop(entry, None)

    def clear(self, entry: Entry) -> None:
        """Forget all that is to be done for it."""
        self.renew(entry)
        self._delivery.forget(entry.ref)
        self.due(entry.ref, None)
        entry.partition.stalled.discard(entry.ref.id)
        entry.clear()

    def expires(self, owned: OwnedPartition, until: float) -> None:
        """Look at what is put away in a partition, soon after a time."""
        if until < owned.expires:
            owned.expires = until
            self.due(Ref(owned.number, ""), max(until, self._clock() + EXPIRE_SECONDS))

    # Times: those of instances by a clock that may be set, pauses by one that may not

    def rest(self, entry: Entry, seconds: float) -> None:
        """Begin no turn for a while, and look at it then."""
        if (until := _now() + seconds) > entry.pacing.until:
            entry.pacing.rest(until)
            asyncio.get_running_loop().call_later(seconds, self._rested, entry, until)

    def _rested(self, entry: Entry, until: float) -> None:
        if entry.pacing.until == until:
            entry.pacing.end()
            self.look(entry.ref)

    def due(self, ref: Ref, at: float | None) -> None:
        """Look at an instance at a Unix time; with an empty id, at what is put away in the partition."""
        self._dues.set(ref, at)
        if at is not None:
            self._alarm.set(at)

    def sooner(self, ref: Ref, at: float) -> None:
        """Look at an instance at a Unix time, unless it is looked at before that."""
        if (known := self._dues.get(ref)) is None or at < known:
            self.due(ref, at)

    def later(self, entry: Entry) -> None:
        """Have it written soon, should nothing else do."""
        if entry not in self._later:
            self._later[entry] = _now()
            self._flush_in(FLUSH_SECONDS)

    def _flush_in(self, seconds: float) -> None:
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(seconds, self._flush)

    def _flush(self) -> None:
        self._flushing, now = None, _now()
        while self._later:
            entry, since = next(iter(self._later.items()))
            if (left := since + FLUSH_SECONDS - now) > 0:
                self._flush_in(left)
                return
            del self._later[entry]
            unwritten = entry.unwritten
            if (unwritten.outcomes or unwritten.delivered) and entry.partition.entries.get(entry.ref.id) is entry:
                unwritten.flush_all()
                entry.read_anew()
                self._wake(entry)

    def _ring(self) -> None:
        now, soonest = self._clock(), 0.0
        try:
            for ref in self._dues.take(now):
                if ref.id:
                    self.look(ref)
                else:
                    self.expire(ref.partition)
                if self.is_busy():  # Many are read: the others are not lost meanwhile.
                    soonest = now + BUSY_SECONDS
                    break
        finally:  # What fails at one must not keep the others from being looked at.
            if (first := self._dues.first) is not None:
                self._alarm.set(max(first, soonest))


def _now() -> float:
    return asyncio.get_running_loop().time()


def _lost_pause(times: int) -> float:
    return 0.0 if times < 2 else min(LOST_PAUSES[0] * 2.0 ** min(times - 2, 10), LOST_PAUSES[1])
