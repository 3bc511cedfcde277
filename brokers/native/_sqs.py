"""One queue of Amazon SQS, and those that take from it: subscriptions of one group share it, whatever their topics."""

from __future__ import annotations

import asyncio
import base64
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from brokers.native._held import Lanes
from brokers.native._topics import Taken
from brokers.shared.backoff import waits
from brokers.shared.outage import Outage
from mesh.address import Address
from mesh.broker import Delivery, Message
from mesh.errors import BrokerError, BrokerUnavailableError
from mesh.tasks import task_group

__all__ = ["Poll", "Queue", "Source"]

logger = logging.getLogger(__name__)

MAX_READY = 100  # Messages of a topic whose subscription has no room; more are given back.
MAX_HIDDEN = 11 * 3600  # SQS hides a message for 12 hours at most, from when it was received.
MAX_UNCLAIMED_SECONDS = 60
KEEP_SECONDS = 15.0
_COUNT, _GROUP = "ApproximateReceiveCount", "MessageGroupId"


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message that SQS gave us for a while.

    Attributes:
        handle: By which it is settled.
        topic: The SNS topic's name; None = it was delivered raw, which does not say.
        message: What was published.
        attempt: How often SQS has given it to somebody, this time too.
        group: In a FIFO queue, those of one group come one after the other; empty elsewhere.
    """

    handle: str
    topic: str | None
    message: Message
    attempt: int
    group: str


class Call(Protocol):
    """Asks SQS something of a queue."""

    async def __call__(self, operation: str, /, **arguments: object) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it stands.

    Attributes:
        call: Asks; the queue is said already.
        name: For people.
        fifo: Whether it keeps the order of each group.
        most: How many messages a request takes.
        wait: Seconds that a request waits for them.
        outage: Is told when SQS is away.
    """

    call: Call
    name: str
    fifo: bool
    most: int
    wait: int
    outage: Outage

    async def receive(self, most: int, hidden: int) -> Sequence[Arrived]:
        """Take messages, which others then do not see for so many seconds."""
        answer = await self.call(
            "receive_message",
            MaxNumberOfMessages=min(most, self.most),
            WaitTimeSeconds=self.wait,
            VisibilityTimeout=hidden,
            MessageSystemAttributeNames=[_COUNT, _GROUP],
            MessageAttributeNames=["All"],
        )
        return [self._arrived(each) for each in answer.get("Messages") or ()]

    def _arrived(self, given: Mapping[str, Any]) -> Arrived:
        system = given.get("Attributes") or {}
        topic, message = _read(given)
        group = str(system.get(_GROUP, "")) if self.fifo else ""
        return Arrived(given["ReceiptHandle"], topic, message, int(system.get(_COUNT, 1)), group)

    async def hide(self, arrived: Arrived, seconds: float) -> None:
        """Have others not see it for so long, or see it now."""
        hidden = min(math.ceil(seconds), MAX_HIDDEN)
        try:
            await self.call("change_message_visibility", ReceiptHandle=arrived.handle, VisibilityTimeout=hidden)
        except BrokerError as error:  # Then it comes when it is no longer hidden.
            logger.debug("%s", error)

    async def delete(self, arrived: Arrived) -> None:
        """Have done with it."""
        try:
            await self.call("delete_message", ReceiptHandle=arrived.handle)
        except BrokerError as error:
            logger.warning("an event of the SQS queue %r may come again: %s", self.name, error)


class Source:
    """A subscription's part of a queue.

    In a FIFO queue, messages of one group are handed over one after the other, also where several came at once.

    Attributes:
        room: How many it waits for.
        hidden: Seconds without a sign of life until others may have what it holds.
    """

    def __init__(self, queue: Queue, address: Address, hidden: int, wanted: Callable[[], None]) -> None:
        """Prepare.

        Args:
            queue: Where from.
            address: Of its messages.
            hidden: As the attribute.
            wanted: Is called when it waits.
        """
        self._queue, self._address, self.hidden, self._wanted = queue, address, hidden, wanted
        self._ready: Lanes[Arrived] = Lanes(lambda each: each.group)
        self._changed = asyncio.Event()
        self._failed: BrokerError | None = None
        self._stopping = False
        self.room = 0

    @property
    def open(self) -> bool:
        """Whether it takes messages now."""
        return not self._stopping and len(self._ready) < MAX_READY

    @property
    def stopping(self) -> bool:
        """Whether it takes none any more."""
        return self._stopping

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for messages; see ``Source`` of the layout."""
        while not self._stopping:
            if taken := self._next(room):
                return taken
            if self._failed is not None:
                raise self._failed
            self._changed.clear()
            self.room = room
            self._wanted()
            await self._changed.wait()
            self.room = 0
        return ()

    async def stop(self) -> None:
        """Take no more; what waits for room goes back."""
        self._stopping = True
        self._changed.set()
        for each in self._ready.clear():
            await self._queue.hide(each, 0)

    def held(self) -> Iterator[Arrived]:
        """Give what waits for room."""
        return iter(self._ready)

    def give(self, arrived: Arrived) -> None:
        """Hand it a message of its topic."""
        self._ready.add(arrived)
        self.room = 0
        self._changed.set()

    def fail(self, error: BrokerError) -> None:
        """Have it end with an error."""
        self._failed = error
        self._changed.set()

    def _next(self, room: int) -> Sequence[Taken]:
        taken: list[Taken] = []
        for each in self._ready.begin(room):
            held = _Held(self, self._queue, each)
            taken.append(Taken(Delivery(each.message, self._address, each.attempt, held), held.release))
        return taken

    async def settled(self, arrived: Arrived, *, again: bool) -> None:
        """Go on with a group: what came behind one that is tried again goes back, so that it comes after it."""
        if again:
            for each in self._ready.behind(arrived):
                await self._queue.hide(each, 0)
        self._ready.free(arrived)
        self._changed.set()


class _Held:
    """Settles one delivery."""

    def __init__(self, source: Source, queue: Queue, arrived: Arrived) -> None:
        self._source, self._queue, self._arrived = source, queue, arrived

    async def ack(self) -> None:
        await self._queue.delete(self._arrived)
        await self._source.settled(self._arrived, again=False)

    reject = ack  # Dead-lettering is the mesh's, before it.

    async def nack(self, delay: float) -> None:
        await self._queue.hide(self._arrived, delay)
        await self._source.settled(self._arrived, again=True)

    async def extend(self) -> None:
        await self._queue.hide(self._arrived, self._source.hidden)

    async def release(self) -> None:
        await self.nack(0.0)


class Poll:
    """Takes from a queue for all sources that wait, and keeps for each what comes while it has no room."""

    def __init__(self, queue: Queue) -> None:
        """Prepare."""
        self._queue = queue
        self._wanted = asyncio.Event()
        self._told: set[str] = set()
        self._leaving = False
        self.sources: dict[str, Source] = {}

    def source(self, topic: str, address: Address, hidden: int) -> Source:
        """Begin to take a topic's messages.

        Raises:
            BrokerError: They are taken already, under another name or by the same.
        """
        if (other := self.sources.get(topic)) is not None and not other.stopping:
            raise BrokerError(f"the SQS queue {self._queue.name!r} has a subscription to the topic {topic!r} already")
        self.sources[topic] = made = Source(self._queue, address, hidden, self._wanted.set)
        return made

    def left_by(self, topic: str, source: Source) -> bool:
        """Take no more for a source; tells whether it was the last, so that this ends after the present request."""
        if self.sources.get(topic) is source:
            del self.sources[topic]
        self._leaving = not self.sources
        self._wanted.set()
        return self._leaving

    async def run(self) -> None:
        """Take until the last source has left."""
        async with task_group() as tasks:
            keeping = tasks.create_task(self._keep(), name="sqs-keep")
            try:
                await self._take()
            finally:
                keeping.cancel()

    async def _take(self) -> None:
        pauses = waits()
        while not self._leaving:
            waiting = [each for each in self.sources.values() if each.room]
            if not waiting:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            try:
                hidden = max(each.hidden for each in self.sources.values())
                messages = await self._queue.receive(sum(each.room for each in waiting), hidden)
            except BrokerUnavailableError as error:
                self._queue.outage.lost(error, self)
                await asyncio.sleep(next(pauses))
                continue
            except BrokerError as error:
                for each in self.sources.values():
                    each.fail(error)
                return
            self._queue.outage.back(self)
            pauses = waits()
            for message in messages:
                await self._sort(message)

    async def _keep(self) -> None:
        """Keep what waits for room."""
        while True:
            await asyncio.sleep(min((each.hidden for each in self.sources.values()), default=KEEP_SECONDS) / 3)
            for source in tuple(self.sources.values()):
                for each in source.held():
                    await self._queue.hide(each, source.hidden)

    async def _sort(self, arrived: Arrived) -> None:
        topic = arrived.topic
        if topic is None and len(self.sources) == 1:  # There is but one.
            topic = next(iter(self.sources))
        source = self.sources.get(topic or "")
        if source is not None and source.open:
            source.give(arrived)
        elif self._leaving or (source is not None and source.stopping):
            await self._queue.hide(arrived, 0)
        else:  # Others of the group may have room for it, or subscribe to it; we may soon.
            if source is None:
                self._tell("no topic" if topic is None else f"the SNS topic {topic!r}")
            await self._queue.hide(arrived, min(MAX_UNCLAIMED_SECONDS, 2 ** min(arrived.attempt - 1, 10)))

    def _tell(self, topic: str) -> None:
        if topic not in self._told and len(self._told) < MAX_READY:
            self._told.add(topic)
            text = "the SQS queue %r has messages of %s, which this node does not subscribe to; they stay in it"
            logger.warning(text, self._queue.name, topic)


def _read(given: Mapping[str, Any]) -> tuple[str | None, Message]:
    """Read what SNS put into a queue: the name of the topic, if it is told, and the message."""
    body = str(given["Body"])
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    if isinstance(told, dict) and isinstance(told.get("TopicArn"), str) and isinstance(told.get("Message"), str):
        attributes = told.get("MessageAttributes")
        headers = {
            name: _text(str(each.get("Type")), str(each.get("Value")))
            for name, each in (attributes.items() if isinstance(attributes, dict) else ())
            if isinstance(each, dict)
        }
        identity, body = str(told.get("MessageId") or given.get("MessageId")), told["Message"]
        return told["TopicArn"].rpartition(":")[2], Message(headers, body.encode(), id=identity, metadata=headers)
    headers = {}
    for name, each in (given.get("MessageAttributes") or {}).items():
        binary = each.get("BinaryValue")
        headers[name] = str(each.get("StringValue", "")) if binary is None else binary.decode(errors="replace")
    return None, Message(headers, body.encode(), id=str(given.get("MessageId")), metadata=headers)


def _text(kind: str, value: str) -> str:
    if kind.startswith("Binary"):
        with suppress(ValueError):
            return base64.b64decode(value).decode(errors="replace")
    return value
