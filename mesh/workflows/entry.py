"""An instance in its owner's memory, with all that waits for it, is out at workers, or is in no write yet.

Each part changes by its own functions alone; what is directly an entry's is written where instances are read and
written (``processor.py``). ``scheduler.py`` and ``engine.py`` have turns and activities go out and come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

from mesh.workflows.actions import Answer
from mesh.workflows.coalescing import Coalescing
from mesh.workflows.contracts import Saved
from mesh.workflows.events import Event, Retrying, TaskCompleted
from mesh.workflows.instance import Instance, Outcome, Turn, outcome
from mesh.workflows.mailbox import Mailbox
from mesh.workflows.state import Step
from mesh.workflows.worker import Ref, TurnWork

__all__ = ["CurrentTurn", "Entry", "OwnedPartition", "Impossible", "OpenTasks", "Pacing", "Unwritten"]


@dataclass(frozen=True, slots=True)
class Impossible:
    """Takes the place of an answer to a turn that no worker can be given."""

    reason: str


Reply: TypeAlias = Answer | Impossible


class CurrentTurn:
    """The turn of an instance: it is queued, then out at a worker, then answered, until it was written.

    Attributes:
        queued: Whether dispatch is to call for one.
        open: That is out, or answered and not written.
        work: As it was given to a worker.
        answer: To it.
        losses: How often it was lost, one after the other.
        retry_stalled: Whether one may begin though the instance is stalled.
    """

    __slots__ = ("answer", "losses", "open", "queued", "retry_stalled", "work")

    def __init__(self) -> None:
        """Have none."""
        self.queued = self.retry_stalled = False
        self.open: Turn | None = None
        self.work: TurnWork | None = None
        self.answer: Reply | None = None
        self.losses = 0

    def queue(self) -> None:
        """Have dispatch call for one."""
        self.queued = True

    def unqueue(self) -> None:
        """Have dispatch call no more, or take note that it has."""
        self.queued = False

    def retry(self) -> None:
        """Let one begin though the instance is stalled."""
        self.retry_stalled = True

    def take_retry(self) -> bool:
        """Tell whether one may begin though the instance is stalled; that holds for one try."""
        retry, self.retry_stalled = self.retry_stalled, False
        return retry

    def begin(self, turn: Turn, work: TurnWork) -> None:
        """Have one out."""
        self.open, self.work = turn, work

    def reply(self, reply: Reply) -> None:
        """Take what is to be written of it."""
        self.work, self.answer = None, reply

    def written(self) -> None:
        """Take note that it is over."""
        self.open = self.work = self.answer = None
        self.losses = 0

    def lost(self) -> None:
        """Take note that nobody knows what it did."""
        self.clear()
        self.losses += 1

    def clear(self) -> None:
        """Have none out."""
        self.open = self.work = self.answer = None

    def renew(self) -> None:
        """Have none, and want none: those of another execution come."""
        self.queued = False
        self.open = self.work = self.answer = None


class OpenTasks:
    """The activities of an instance that dispatch was told of.

    Attributes:
        attempts: Of each, by its id, the attempt.
        begun: Those that were opened.
        generation: That all are of.
    """

    __slots__ = ("attempts", "begun", "generation")

    def __init__(self) -> None:
        """Have none."""
        self.attempts: dict[int, int] = {}
        self.begun: set[int] = set()
        self.generation = 0

    def want(self, id: int, attempt: int) -> None:
        """Have one run."""
        self.attempts[id] = attempt

    def begin(self, id: int) -> None:
        """Take note that a worker gets it."""
        self.begun.add(id)

    def returned(self, id: int, generation: int) -> bool:
        """Take note that a worker has it no more; tells whether one had it: those of other executions are none here."""
        if generation != self.generation or id not in self.begun:
            return False
        self.begun.discard(id)
        return True

    def done(self, id: int) -> None:
        """Want it no more."""
        self.attempts.pop(id, None)

    def renew(self, generation: int) -> None:
        """Begin with none of another execution."""
        self.generation = generation
        self.attempts.clear()
        self.begun.clear()


class Unwritten:
    """Events of an instance that are in no write yet: a crash loses them, and they are found or come about again.

    Attributes:
        outcomes: Of activities, and timers that have fired.
        settled: Ids of the activities and timers in them.
        urgent: Whether there is something else in them than activities that went well.
        retries: Attempts that failed, and are followed by another one.
        delivered: Numbers of what others have of its outbox, and is still in the record.
        flush: Whether all that is to be written, turn or not.
    """

    __slots__ = ("delivered", "flush", "outcomes", "retries", "settled", "urgent")

    def __init__(self) -> None:
        """Have nothing."""
        self.outcomes: list[Outcome] = []
        self.settled: set[int] = set()
        self.retries: list[Event] = []
        self.delivered: set[int] = set()
        self.flush = self.urgent = False

    def add(self, event: Outcome, id: int) -> None:
        """Have one outcome more, of the activity or timer with an id."""
        self.outcomes.append(event)
        self.settled.add(id)
        self.urgent = self.urgent or type(event) is not TaskCompleted

    def retry(self, event: Retrying) -> None:
        """Have a failed attempt more."""
        self.retries.append(event)

    def deliver(self, number: int) -> None:
        """Have one message delivered, by its number."""
        self.delivered.add(number)

    def forget_delivered(self, numbers: Set[int]) -> None:
        """Take note that the record has some messages no more."""
        self.delivered -= numbers

    def flush_all(self) -> None:
        """Have all of it written next, turn or not."""
        self.flush = True

    def take(self, *, turn_open: bool) -> Sequence[Event]:
        """Take what is to be written now: failed attempts, and what is flushed, which a turn that is open has in it."""
        taken: Sequence[Event] = self.retries
        if self.flush and not turn_open:
            taken = [*taken, *self.outcomes]
        self.flush, self.retries = False, []
        return taken

    def keep(self, wanted: Callable[[Outcome], bool]) -> None:
        """Forget the outcomes that nothing waits for any more."""
        self.outcomes = [event for event in self.outcomes if wanted(event)]
        self.settled = {outcome(event)[1] for event in self.outcomes}
        self.urgent = any(type(event) is not TaskCompleted for event in self.outcomes)

    def clear(self) -> None:
        """Forget what belongs to an execution that is over."""
        self.outcomes, self.retries = [], []
        self.settled.clear()
        self.urgent = False


class Pacing:
    """Pauses between the turns of an instance.

    Attributes:
        until: Until when it may have none, by the loop's time; then it is looked at. 0 = it may.
        burst: When its generations were counted from, and how many there were since.
    """

    __slots__ = ("burst", "until")

    def __init__(self) -> None:
        """Let it have turns."""
        self.until = 0.0
        self.burst = (0.0, 0)

    def rest(self, until: float) -> None:
        """Let it have none for a while."""
        self.until = until

    def end(self) -> None:
        """Let it have turns again."""
        self.until = 0.0

    def count(self, now: float, seconds: float) -> None:
        """Count one generation more; those of the last so many seconds count together."""
        since, count = self.burst
        self.burst = (now, 1) if now - since >= seconds else (since, count + 1)


class Entry:
    """An instance in memory, or only what must be known of one while it is not.

    Attributes:
        ref: Which one.
        partition: Its partition.
        mailbox: Who waits for it.
        turn: Its turn.
        tasks: Its activities.
        unwritten: What has happened to it, and is in no write yet.
        pacing: When it may have turns.
        coalescing: Until when its results wait for others.
        known: Whether ``instance`` is as it is stored; None is none, then.
        instance: It.
        saved: Where it lies.
        rendered: See `TurnWork`.
        size: Bytes that are counted for it.
        busy: Whether a task is at work on it.
        resume: Whether it is to be read, and what it needs begun.
        unsure: Whether a write of unknown outcome is why it is not known.
        ending: Whether it has ended and is to be put away.
        pause: Seconds until it is tried again, should that fail.
    """

    __slots__ = (
        "busy",
        "coalescing",
        "ending",
        "instance",
        "known",
        "mailbox",
        "pacing",
        "partition",
        "pause",
        "ref",
        "rendered",
        "resume",
        "saved",
        "size",
        "tasks",
        "turn",
        "unsure",
        "unwritten",
    )

    def __init__(self, ref: Ref, owned: OwnedPartition) -> None:
        """Know nothing of it yet."""
        self.ref = ref
        self.partition = owned
        self.mailbox = Mailbox()
        self.turn = CurrentTurn()
        self.tasks = OpenTasks()
        self.unwritten = Unwritten()
        self.pacing = Pacing()
        self.coalescing = Coalescing()
        self.known = False
        self.instance: Instance | None = None
        self.saved: Saved | None = None
        self.rendered: dict[str, list[bytes]] = {}
        self.size = 0
        self.busy = self.resume = self.unsure = self.ending = False
        self.pause = 0.0

    @property
    def idle(self) -> bool:
        """Tell whether it may leave memory."""
        unwritten = self.unwritten
        return not (
            self.busy
            or self.mailbox
            or unwritten.outcomes
            or unwritten.retries
            or self.turn.open is not None
            or self.resume
        )

    @property
    def bare(self) -> bool:
        """Tell whether there is nothing left that must be known of it while it is not in memory."""
        turn = self.turn
        return not (
            self.tasks.attempts
            or self.unwritten.delivered
            or self.ending
            or self.mailbox.watchers
            or turn.queued
            or turn.losses
            or self.pacing.until
        )

    @property
    def pressing(self) -> bool:
        """Tell whether it is in memory, and has something to be done that waits for nothing else."""
        mailbox, unwritten = self.mailbox, self.unwritten
        return self.known and bool(
            mailbox.requests
            or mailbox.calls
            or mailbox.results
            or self.ending
            or self.turn.answer is not None
            or unwritten.retries
            or unwritten.flush
        )

    def read_anew(self) -> None:
        """Have it read, unless it is in memory."""
        self.resume = self.resume or not self.known

    def unload(self) -> None:
        """Forget what it is, not what must be known of it meanwhile."""
        self.known = False
        self.instance = self.saved = None
        self.rendered = {}

    def create(self, app: str, step: Step) -> None:
        """Have an instance in memory that is about to be written first."""
        self.instance = Instance(self.ref.id, app, step.state, step.append)

    def renew(self) -> None:
        """Forget what belongs to an execution that is over."""
        self.turn.renew()
        self.tasks.renew(0 if self.instance is None else self.instance.state.generation)
        self.unwritten.clear()
        self.coalescing = Coalescing()
        self.rendered = {}

    def clear(self) -> None:
        """Forget what belongs to the instance as a whole, over its executions."""
        self.unwritten.delivered.clear()
        self.unwritten.flush = self.turn.retry_stalled = self.ending = False
        self.turn.losses = 0
        self.pacing.end()


class OwnedPartition:
    """A partition that this node owns.

    Attributes:
        number: Its number.
        epoch: In which it is owned.
        entries: What is known of its instances.
        taken: Set once nothing is accepted any more that a former owner writes; false = it is a later owner's.
        expires: When the first of those that were put away may be to be deleted, Unix time in seconds.
        stalled: Those that no worker could go on with.
        leaving: Whether nothing more is begun.
        gone: Whether it is owned no more.
        quiet: Set whenever something of it has ended, while it is left.
    """

    __slots__ = ("entries", "epoch", "expires", "gone", "leaving", "number", "quiet", "stalled", "taken")

    def __init__(self, partition: int, epoch: int) -> None:
        """Know of no instance."""
        self.number = partition
        self.epoch = epoch
        self.entries: dict[str, Entry] = {}
        self.taken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.expires = float("inf")
        self.stalled: set[str] = set()
        self.leaving = self.gone = False
        self.quiet = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Tell whether something of it is read or written just now."""
        return any(entry.busy for entry in self.entries.values())

    @property
    def working(self) -> bool:
        """Tell whether something is written just now, or wants to be."""
        return any(entry.busy or entry.unwritten.outcomes or entry.unwritten.retries for entry in self.entries.values())

    @property
    def running(self) -> bool:
        """Tell whether turns or activities of it are out."""
        return any(entry.turn.work is not None or entry.tasks.begun for entry in self.entries.values())
