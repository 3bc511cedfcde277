"""A worker over a stream that it holds open here: work goes out there, answers come back by calls of their own."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias
from weakref import WeakSet

from mesh.errors import AppFailedError, AppUnreachableError
from mesh.workflows.actions import Answer, Complete
from mesh.workflows.events import Failure
from mesh.workflows.worker import TaskResult, TaskWork, TurnWork, WorkTooLargeError

__all__ = ["MAX_ITEM_BYTES", "Handed", "Item", "Known", "Line", "StreamWorker", "Wire"]

ENDED = "the stream of the worker has ended"
MAX_ITEM_BYTES = 4 * 1024 * 1024  # More is no message to clients of gRPC, unless they were told otherwise.
MAX_WAITING_BYTES = 8 * 1024 * 1024  # Of what a worker has not read yet; what comes then is not even written.
MAX_KEPT = 100_000  # Instances whose history a worker remembers; workers themselves remember as many.
BATCH_BYTES = 64 * 1024
PING_SECONDS = 30.0
LATE_SECONDS = 2.0  # In which an answer may still come when the stream has ended, and its connection has not.

Place: TypeAlias = "tuple[Line, str, int | None]"


class Line(Protocol):
    """The connection that a stream and calls come over; one object for all of them.

    Attributes:
        gone: Done once it is closed.
    """

    gone: asyncio.Future[None]


class Known(NamedTuple):
    """How much of the history of an instance a worker has.

    Attributes:
        events: Of the history.
        told: Of these, those that workers are told of.
    """

    events: int = 0
    told: int = 0


NOTHING = Known()


class Wire(Protocol):
    """Writes work as messages of a protocol."""

    ping: bytes
    """A message that means nothing."""

    def turn(self, work: TurnWork, token: str, known: Known) -> tuple[bytes, Known]:
        """Write a turn without what is known of its history; give with it what is known then."""

    def task(self, work: TaskWork, token: str) -> bytes:
        """Write an activity."""


@dataclass(slots=True, eq=False)
class Item:
    """Work that a worker has, or that waits until the worker reads.

    Attributes:
        work: It.
        token: Names it to workers that give tokens back.
        place: Names it where they do not: the stream's connection, the instance, and of an activity its number.
        message: What is written.
        answer: An `Answer` to a turn, a `TaskResult` of an activity.
    """

    work: TurnWork | TaskWork
    token: str
    place: Place
    message: bytes
    answer: asyncio.Future[Any]

    def resolve(self, answer: Answer | TaskResult) -> None:
        """Take the answer; what nobody waits for any more has no effect."""
        if not self.answer.done():
            self.answer.set_result(answer)


@dataclass(slots=True)
class Handed:
    """The work that the workers of a gateway have: finds what an answer is to, once.

    An answer with a token may come over any connection. One without counts only on the connection that its stream is
    on: over another one it could be the late answer to a turn before, which would be taken for that to this turn.
    """

    _by_token: dict[str, Item] = field(default_factory=dict)
    _by_place: dict[Place, deque[Item]] = field(default_factory=dict)
    _greeted: WeakSet[asyncio.Future[None]] = field(default_factory=WeakSet)

    def greet(self, line: Line) -> bool:
        """Note that a worker opens a stream on a connection; tell whether it is the first one there."""
        first = line.gone not in self._greeted
        self._greeted.add(line.gone)
        return first

    def add(self, item: Item) -> None:
        """Note that a worker has it."""
        self._by_token[item.token] = item
        self._by_place.setdefault(item.place, deque()).append(item)

    def discard(self, item: Item) -> None:
        """Note that nobody waits for its answer any more."""
        if self._by_token.pop(item.token, None) is not None:
            alike = self._by_place[item.place]
            alike.remove(item)
            if not alike:
                del self._by_place[item.place]

    def take(self, token: str, line: Line, instance: str, task: int | None) -> Item | None:
        """Find what an answer is to, and have no other one found for it; None = it is late, or nothing of ours.

        Args:
            token: What it names; empty = nothing.
            line: The connection that it came over.
            instance: The instance's id.
            task: The activity's number; None = it is to a turn.
        """
        if token:
            found = self._by_token.get(token)
            if found is not None and found.place[1:] != (instance, task):
                return None
        else:
            found = next(iter(self._by_place.get((line, instance, task), ())), None)
        if found is not None:
            self.discard(found)
        return found


class StreamWorker:
    """See ``mesh.workflows.worker.Worker``."""

    def __init__(
        self,
        title: str,
        line: Line,
        handed: Handed,
        wire: Wire,
        *,
        max_turns: int,
        max_tasks: int,
        remembers: bool,
        pinged: bool,
    ) -> None:
        """Begin.

        Args:
            title: How it is told of.
            line: The connection that the stream is on.
            handed: Notes what the worker has, and gets its answers.
            wire: Writes messages.
            max_turns: The most turns that it is given at once.
            max_tasks: The most activities likewise.
            remembers: Whether it keeps the history of instances, and is told only what is new.
            pinged: Whether it takes messages that mean nothing.
        """
        self.title, self.max_turns, self.max_tasks = title, max_turns, max_tasks
        self.ended = asyncio.Event()
        self._line, self._handed, self._wire = line, handed, wire
        self._remembers, self._pinged = remembers, pinged
        self._kept: OrderedDict[str, tuple[int, Known]] = OrderedDict()  # With the generation.
        self._waiting: deque[Item] = deque()
        self._waiting_bytes = 0
        self._out: dict[str, Item] = {}
        self._names = secrets.token_hex(6)  # Of this stream: no late answer names work of another one.
        self._numbers = itertools.count(1)
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._late: asyncio.TimerHandle | None = None

    # Towards whoever holds it open

    async def outgoing(self) -> AsyncIterator[bytes]:
        """Iterate over what is to be written, as many messages at a time as there are; ends with the stream."""
        while not self.ended.is_set():
            if self._waiting:
                yield self._batch()
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(PING_SECONDS if self._pinged else None):
                    await self._wake.wait()
            except TimeoutError:
                yield self._wire.ping

    def _batch(self) -> bytes:
        size, messages = 0, []
        while self._waiting and size < BATCH_BYTES:
            item = self._waiting.popleft()
            messages.append(item.message)
            size += len(item.message)
            item.message = b""
            self._out[item.token] = item
            self._handed.add(item)
        self._waiting_bytes -= size
        self._room.set()
        return messages[0] if len(messages) == 1 else b"".join(messages)

    def end(self) -> None:
        """Hand out nothing more. What the worker has may still be answered, until its connection ends, too."""
        if self.ended.is_set():
            return
        self.ended.set()
        self._wake.set()
        self._room.set()
        for item in self._waiting:
            if not item.answer.done():
                item.answer.set_exception(AppUnreachableError(ENDED))
        self._waiting.clear()
        if self._out:
            self._late = asyncio.get_running_loop().call_later(LATE_SECONDS, self._give_up)
            self._line.gone.add_done_callback(self._give_up)

    def _give_up(self, _: object = None) -> None:
        self._line.gone.remove_done_callback(self._give_up)
        assert self._late is not None
        self._late.cancel()
        for item in self._out.values():
            if not item.answer.done():
                item.answer.set_exception(AppFailedError(ENDED))

    # As a worker

    def runs_workflow(self, name: str) -> bool:
        """Tell that it may: it does not say what it has."""
        return True

    def runs_activity(self, name: str) -> bool:
        """Tell that it may: it does not say what it has."""
        return True

    def knows(self, instance: str) -> bool:
        """Tell whether it still has the history of an instance that it was given before."""
        return instance in self._kept

    async def turn(self, work: TurnWork) -> Answer:
        """Run a turn."""
        await self._until_room()
        token, instance = self._token(), work.ref.id
        generation, known = self._kept.get(instance, (0, NOTHING))
        message, known = self._wire.turn(work, token, known if generation == work.generation else NOTHING)
        if len(message) > MAX_ITEM_BYTES:
            raise WorkTooLargeError(_too_large(f"the history of {instance!r}", len(message)))
        answer: Answer = await self._answered(work, token, (self._line, instance, None), message)
        if self._remembers:
            self._remember(work, answer, known)
        return answer

    def _remember(self, work: TurnWork, answer: Answer, known: Known) -> None:
        """Note what the worker keeps: what was committed before the turn, unless this execution ends with it."""
        instance = work.ref.id
        self._kept.pop(instance, None)
        if not any(isinstance(each, Complete) for each in answer.actions):
            self._kept[instance] = work.generation, known
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

    async def task(self, work: TaskWork) -> TaskResult:
        """Run an activity."""
        await self._until_room()
        token, what = self._token(), "the input" if work.inherited is None else "the input, with the history handed on,"
        message = self._wire.task(work, token)
        if len(message) > MAX_ITEM_BYTES:
            text = _too_large(f"{what} of the activity {work.name!r}", len(message))
            return TaskResult(failure=Failure("PayloadTooLarge", text, final=True))
        result: TaskResult = await self._answered(work, token, (self._line, work.instance, work.task), message)
        return result

    async def _until_room(self) -> None:
        while self._waiting_bytes > MAX_WAITING_BYTES and not self.ended.is_set():
            self._room.clear()
            await self._room.wait()
        if self.ended.is_set():
            raise AppUnreachableError(ENDED)

    def _token(self) -> str:
        return f"{self._names}.{next(self._numbers)}"

    async def _answered(self, work: TurnWork | TaskWork, token: str, place: Place, message: bytes) -> Any:
        """Hand it out, and wait for the answer."""
        item = Item(work, token, place, message, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._waiting_bytes += len(message)
        self._wake.set()
        try:
            return await item.answer
        finally:
            if self._out.pop(item.token, None) is not None:
                self._handed.discard(item)
            elif item.message and not self.ended.is_set():  # Cancelled before it was read.
                self._waiting.remove(item)
                self._waiting_bytes -= len(message)


def _too_large(what: str, size: int) -> str:
    return f"{what} is a message of {size} bytes, and workers of gRPC take {MAX_ITEM_BYTES}"
