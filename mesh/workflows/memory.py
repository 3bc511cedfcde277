"""What an owner remembers: its partitions, the instances that are in memory, and what it must know of others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mesh.workflows.actions import Answer
from mesh.workflows.contracts import Saved, Until
from mesh.workflows.events import Event, Failure, TaskCompleted, TaskFailed, TimerFired
from mesh.workflows.messages import AnyMessage, Told
from mesh.workflows.outgoing import parent_of
from mesh.workflows.pace import Pace
from mesh.workflows.state import Sent, State
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork

if TYPE_CHECKING:
    from mesh.workflows.instance import Instance, Turn

__all__ = ["Asked", "ChildrenOpenError", "Entry", "Expired", "Held", "Impossible", "Memory", "Opening", "Refused"]

TRIES = 32  # The most that are looked at when one more has come: those at work stay.
ENTRY_BYTES = 2048  # What an instance takes in memory besides what its ``Saved`` counts.


@dataclass(frozen=True, slots=True)
class Refused:
    """What an instance is told by its own outbox: something there can never be delivered, and why."""

    sent: Sent
    failure: Failure


@dataclass(frozen=True, slots=True)
class Expired:
    """What an instance is told by what was put away: it was to be kept until a Unix time, and not longer."""

    until: float


class ChildrenOpenError(Exception):
    """An id cannot be used again before somebody has looked whether children of the one that had it go on.

    Attributes:
        generation: Of that one.
        children: Those of which it knows no end: application, id, and whose children they are.
    """

    def __init__(self, instance: Instance) -> None:
        """Name the instance, which has ended."""
        super().__init__(f"the workflow '{instance.id}' has ended, and its children may not have")
        self.generation = instance.state.generation
        self.children = [
            (child.app or instance.app, child.instance, parent_of(instance.app, instance.id, instance.state, child))
            for child in instance.children.values()
        ]


@dataclass(slots=True, eq=False)
class Asked:
    """A message, and who waits for what comes of it; None = nobody, as it is the engine's own.

    Attributes:
        over: Of a start: the generation that had the id, of which no child goes on.
    """

    message: AnyMessage | Refused | Expired
    told: asyncio.Future[Told] | None = None
    over: int = 0

    def answer(self, told: Told | Exception) -> None:
        """Tell who waits, if somebody still does."""
        if self.told is None or self.told.done():
            return
        if isinstance(told, Told):
            self.told.set_result(told)
        else:
            self.told.set_exception(told)


@dataclass(slots=True, eq=False)
class Opening:
    """Who waits for an instance to be in memory, and what is made of it then, before anything else happens to it."""

    made: asyncio.Future[Any]
    make: Callable[[Entry], object]


@dataclass(frozen=True, slots=True)
class Impossible:
    """What takes the place of an answer: no worker can be given the turn."""

    reason: str


Reply: TypeAlias = Answer | Impossible


class Entry:
    """What there is in memory of an instance: itself, or only what must be known of it meanwhile.

    Attributes:
        ref: Which one.
        held: Its partition.
        known: Whether ``instance`` is as it is stored; None is none, then.
        saved: Where it lies.
        size: Bytes that are counted for it.
        rendered: See `TurnWork`.
        volatile: What happened and is in no write yet: results, and timers that have fired.
        retrying: Attempts that failed, likewise.
        settled: Ids of the activities and timers in both.
        turn: That is out, or answered and not written.
        work: As it was given to a worker.
        answer: To it.
        queued: Whether dispatch is to call for a turn.
        asked: Messages, in order.
        opening: Who waits for it to be in memory.
        results: What came of activities while it was not, or was written; None = nobody knows what.
        tasks: The activities that dispatch was told of, with the attempt.
        begun: Those of them that were opened.
        generation: That ``tasks`` are of.
        again: Whether a turn is to be tried though it is stalled.
        flush: Whether what is volatile is to be written, turn or not.
        unsure: Whether a write of unknown outcome is why it is not known.
        acks: What of its outbox was delivered, and is still in the record.
        ending: Whether it has ended and is to be put away.
        resume: Whether it is to be read, and what it needs begun.
        waiters: Who waits for a state.
        busy: Whether a task is at work on it.
        pause: Seconds until it is tried again, should that fail.
        losses: How often a turn was lost, one after the other.
        rest: Until when no turn begins, by the loop's time; then it is looked at. 0 = it may.
        pace: Until when its next turn is held back.
        burst: When its generations were counted from, and how many there were since.
    """

    __slots__ = (
        "acks",
        "again",
        "answer",
        "asked",
        "begun",
        "burst",
        "busy",
        "ending",
        "flush",
        "generation",
        "held",
        "instance",
        "known",
        "losses",
        "opening",
        "pace",
        "pause",
        "queued",
        "ref",
        "rendered",
        "rest",
        "results",
        "resume",
        "retrying",
        "saved",
        "settled",
        "size",
        "tasks",
        "turn",
        "unsure",
        "volatile",
        "waiters",
        "work",
    )

    def __init__(self, ref: Ref, held: Held) -> None:
        """Know nothing of it yet."""
        self.ref = ref
        self.held = held
        self.known = False
        self.instance: Instance | None = None
        self.saved: Saved | None = None
        self.size = 0
        self.rendered: dict[str, list[bytes]] = {}
        self.volatile: list[Event] = []
        self.retrying: list[Event] = []
        self.settled: set[int] = set()
        self.turn: Turn | None = None
        self.work: TurnWork | None = None
        self.answer: Reply | None = None
        self.queued = False
        self.asked: list[Asked] = []
        self.opening: list[Opening] = []
        self.results: list[tuple[TaskWork, TaskResult | None]] = []
        self.tasks: dict[int, int] = {}
        self.begun: set[int] = set()
        self.acks: set[int] = set()
        self.ending = False
        self.resume = self.again = self.flush = self.unsure = False
        self.generation = 0
        self.waiters: list[tuple[Until, asyncio.Future[None]]] = []
        self.busy = False
        self.pause = 0.0
        self.losses = 0
        self.rest = 0.0
        self.burst = (0.0, 0)
        self.pace = Pace()

    @property
    def idle(self) -> bool:
        """Tell whether it may leave memory."""
        return not (
            self.busy
            or self.asked
            or self.opening
            or self.volatile
            or self.retrying
            or self.results
            or self.turn is not None
            or self.resume
        )

    @property
    def bare(self) -> bool:
        """Tell whether there is nothing left that must be known of it while it is not in memory."""
        return not (self.tasks or self.acks or self.ending or self.waiters or self.queued or self.losses or self.rest)

    def unload(self) -> None:
        """Forget what it is, not what must be known of it meanwhile."""
        self.known = False
        self.instance = self.saved = None
        self.rendered = {}

    def see(self, state: State | None) -> None:
        """Tell who waits for a state that it is this one now."""
        left = []
        for until, seen in self.waiters:
            if seen.done():
                continue
            if until(state):
                seen.set_result(None)
            else:
                left.append((until, seen))
        self.waiters = left

    def settle(self) -> None:
        """Count anew what is settled."""
        self.settled = {
            each.timer if isinstance(each, TimerFired) else each.task
            for each in self.volatile
            if isinstance(each, (TaskCompleted, TaskFailed, TimerFired))
        }


class Held:
    """A partition that this node owns.

    Attributes:
        partition: Its number.
        epoch: In which it is owned.
        entries: What is known of its instances.
        taken: Set once nothing is accepted any more that a former owner writes; false = it is a later owner's.
        expires: When the first of those that were put away may be to be deleted, Unix time in seconds.
        stalled: Those that no worker could go on with.
        leaving: Whether nothing more is begun.
        gone: Whether it is owned no more.
        quiet: Set whenever something of it has ended, while it is left.
    """

    __slots__ = ("entries", "epoch", "expires", "gone", "leaving", "partition", "quiet", "stalled", "taken")

    def __init__(self, partition: int, epoch: int) -> None:
        """Know of no instance."""
        self.partition = partition
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
        return any(entry.busy or entry.volatile or entry.retrying for entry in self.entries.values())

    @property
    def running(self) -> bool:
        """Tell whether turns or activities of it are out."""
        return any(entry.work is not None or entry.begun for entry in self.entries.values())


class Memory:
    """The instances in memory, those used last at the end; it lets go of idle ones beyond so many bytes."""

    def __init__(self, limit: int) -> None:
        """Begin with none; ``limit`` in bytes."""
        self._limit = limit
        self._entries: OrderedDict[Entry, None] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def used(self, entry: Entry) -> None:
        """Take note that an instance in memory was used, perhaps grew."""
        size = ENTRY_BYTES
        if entry.saved is not None:  # What workers have rendered of it is about as large.
            size += entry.saved.size * (2 if entry.rendered else 1)
        self.bytes += size - entry.size
        entry.size = size
        self._entries[entry] = None
        self._entries.move_to_end(entry)
        if self.bytes > self._limit:
            self._shrink()

    def forget(self, entry: Entry) -> None:
        """Take note that it is in memory no more."""
        if entry in self._entries:
            del self._entries[entry]
            self.bytes -= entry.size
            entry.size = 0

    def _shrink(self) -> None:
        for _ in range(TRIES):
            entry = next(iter(self._entries))
            if not entry.idle:
                self._entries.move_to_end(entry)
                continue
            self.forget(entry)
            entry.unload()
            if entry.bare:
                entry.held.entries.pop(entry.ref.id, None)
            if self.bytes <= self._limit or not self._entries:
                return
