"""The broker contract: what an adapter promises, and nothing of how.

An adapter moves bytes. It confirms what it publishes, hands out deliveries and settles them as
told, carries frames between live nodes, and says honestly in ``features`` what it can do. When a
delivery settles is decided in ``mesh/delivery.py``; how a request streams, in
``mesh/calls/exchange.py``. ``tests/contract`` is this contract in executable form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, Self, runtime_checkable

import msgspec

from mesh.address import Address
from mesh.errors import BrokerError
from mesh.features import Features

__all__ = [
    "LETTER_ATTEMPTS",
    "LETTER_REASON",
    "LETTER_TOPIC",
    "NOTHING",
    "OF_LETTERS",
    "ROUTING",
    "ROUTING_HEADER",
    "Backlog",
    "Measurable",
    "Broker",
    "Delivery",
    "Entry",
    "Features",
    "Frame",
    "Handler",
    "KeyValue",
    "KeyValueProvider",
    "Losable",
    "Message",
    "Restorable",
    "Write",
    "Settler",
    "Sink",
    "SubscribeOptions",
    "Topology",
    "not_allowed",
]


NOTHING: Mapping[str, str] = MappingProxyType({})
# How the headers begin by which a dead letter says how it became one, and three of them.
OF_LETTERS = "mesh-dead-letter-"
LETTER_REASON, LETTER_ATTEMPTS, LETTER_TOPIC = (f"{OF_LETTERS}{name}" for name in ("reason", "attempts", "topic"))
# Metadata of a delivery that no application is told: how it was routed, where a topic's name does not say it all. And
# the header in which its dead letter keeps it, so that it can be sent back.
ROUTING, ROUTING_HEADER = "mesh-routing-key", f"{OF_LETTERS}routing-key"


class Message(msgspec.Struct, frozen=True):
    """What travels: headers and body arrive exactly as they were given.

    Attributes:
        headers: Names are HTTP tokens and arrive as written; values are printable ASCII without
            blanks at either end (CloudEvents percent-encoding sees to that).
        body: Any bytes, up to ``Features.max_message_bytes``.
        key: Messages with equal keys are delivered in order to an ordered subscription.
        id: The producer's identity for this message; a repeated publish with the same id is
            stored once where ``Features.dedup`` says so.
        metadata: In the native layout alone: what a publisher asks of the broker, and what the broker tells of a
            message, by the names that applications know.
    """

    headers: Mapping[str, str]
    body: bytes
    key: str | None = None
    id: str | None = None
    metadata: Mapping[str, str] = NOTHING


@dataclass(frozen=True, slots=True)
class Topology:
    """What a pub/sub component needs on its broker.

    Attributes:
        space: ``Address.space`` of its topics.
        max_age: Seconds an event is kept for subscribers that have not taken it; None for ever.
        max_bytes: Most bytes stored; a publish above it is rejected. None for the broker's own limit.
        replicas: Copies on a cluster.
    """

    space: str
    max_age: float | None = 7 * 24 * 3600.0
    max_bytes: int | None = None
    replicas: int = 1


class Settler(Protocol):
    """An adapter's way to settle one delivery."""

    async def ack(self) -> None:
        """Done with."""

    async def nack(self, delay: float) -> None:
        """Again, after some seconds."""

    async def reject(self) -> None:
        """Never again."""

    async def extend(self) -> None:
        """Still working."""


class Delivery:
    """One attempt to hand a message to a group.

    It settles once: repeating the same call does nothing, a different one raises. An interrupted
    settlement means redelivery, never loss.
    """

    __slots__ = ("_settled", "_settler", "address", "attempt", "message")

    def __init__(self, message: Message, address: Address, attempt: int, settler: Settler) -> None:
        """Bind a message to its settler.

        Args:
            message: What was published.
            address: Where it was published to (never a pattern).
            attempt: From 1, as the broker counts; an upper bound where ``Features.release_counts``. Whoever
                tries more than once within a delivery counts on (``mesh/delivery.py``).
            settler: How the adapter settles it.
        """
        self.message = message
        self.address = address
        self.attempt = attempt
        self._settler = settler
        self._settled: str | None = None

    @property
    def settled(self) -> str | None:
        """``ack``, ``nack`` or ``reject`` once settled."""
        return self._settled

    async def complete(self) -> None:
        """Have all of ``message``, of which a part may be elsewhere (``mesh/large.py``); may be repeated.

        Raises:
            EventError: It is gone for good.
            BrokerError: It cannot be read now.
        """

    def _claim(self, how: str) -> bool:
        if self._settled is None:
            self._settled = how
            return True
        if self._settled == how:
            return False
        raise BrokerError(f"delivery is settled already: {self._settled}, then {how}")

    async def ack(self) -> None:
        """Say that it is done with."""
        if self._claim("ack"):
            await self._settler.ack()

    async def nack(self, delay: float = 0.0) -> None:
        """Ask for another attempt, to any member of the group.

        Args:
            delay: Seconds until then.
        """
        if self._claim("nack"):
            await self._settler.nack(delay)

    async def reject(self) -> None:
        """Say that it must never be delivered to this group again."""
        if self._claim("reject"):
            await self._settler.reject()

    async def extend(self) -> None:
        """Say that work goes on, so that it is not redelivered; does nothing once settled."""
        if self._settled is None:
            await self._settler.extend()


Handler = Callable[[Delivery], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SubscribeOptions:
    """How a group takes messages.

    Attributes:
        group: Members of one group compete; every group gets every message.
        max_in_flight: Most deliveries unsettled at this member at any time.
        ordered: Deliver messages of equal ``Message.key`` one after another, over all members.
        ack_wait: Seconds without a sign of life until a delivery is handed out again.
        ephemeral: The group lasts as long as this member: it begins with what is published from now
            on, and is gone soon after the member, with what it has not handled.
        expires: Seconds without a member after which a group may end, with its place in the topic; None for never. It
            is for the group's first member to say. One that says None takes it from the group for good, and nobody
            gives it back. A broker that cannot end a group so keeps it.
        metadata: In the native layout alone: the subscription's own, as it was written.
        dead_letters: Where the group's dead letters go, so that they are kept there; None = nowhere.
    """

    group: str
    max_in_flight: int = 100
    ordered: bool = False
    ack_wait: float = 15.0
    ephemeral: bool = False
    expires: float | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: NOTHING, hash=False)
    dead_letters: Address | None = None


class Frame(msgspec.Struct, frozen=True):
    """A message between live nodes, not stored.

    Attributes:
        message: The message; None when nobody serves the address a frame with ``reply_to`` went to.
        token: The last part of the inbox address it was sent to; empty for served addresses.
        reply_to: Where the other side listens for answers; empty when it does not.
        refused: An address, in small letters, that the broker does not let this node send to; the rest is empty.
    """

    message: Message | None
    token: str
    reply_to: str
    refused: str = ""


Sink = Callable[[Frame], None]


def not_allowed(label: str) -> BrokerError:
    """Make the error of a call to what the broker's rights keep from this node; it did not run."""
    return BrokerError(f"the broker does not let this gateway call {label} (see `mesh broker permissions`)")


@runtime_checkable
class Broker(Protocol):
    """A message broker. Entering connects; leaving flushes and closes."""

    @property
    def features(self) -> Features:
        """What it can do; complete once entered."""

    async def __aenter__(self) -> Self:
        """Connect, or raise ``BrokerUnavailableError`` that names the address and the cause.

        That is one attempt, of a few seconds at most. Whoever tries again builds another broker; where the error is not
        ``retryable``, it is of no use.
        """

    async def __aexit__(self, *exc_info: object) -> None:
        """Flush and close; idempotent."""

    async def check(self) -> None:
        """Return when the broker answers now, else raise ``BrokerUnavailableError``; cheap."""

    # Stored messages

    async def declare(self, topology: Topology) -> None:
        """Create what is missing; idempotent.

        Raises:
            TopologyMismatchError: It exists and differs; nothing was changed.
        """

    async def publish(self, address: Address, message: Message) -> None:
        """Store a message; return after the broker's own confirmation.

        Cancelled in the middle, the outcome is unknown; a repetition with the same ``Message.id``
        is harmless where ``Features.dedup``. Through a broken connection it waits for the next one,
        so the caller bounds it in time.

        Raises:
            MessageTooLargeError: Over the limit; nothing was sent.
            PublishRejectedError: The broker said no.
        """

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        """Store several, pipelined, in order; give an error or None for each."""

    def subscribe(
        self, address: Address, options: SubscribeOptions, handler: Handler
    ) -> AbstractAsyncContextManager[None]:
        """Take messages for a durable group; entered, it is active on the broker.

        Runs ``handler`` in a task of its own per delivery. One that raises is nacked. Leaving
        stops fetching, waits for handlers in flight, and releases what no handler has begun.
        Cancelled while leaving, it cancels the handlers and releases their deliveries.

        A new group begins with the oldest message still stored, where ``Features.retention``.

        Raises:
            FeatureNotSupportedError: The options ask for what ``features`` do not declare.
        """

    # Frames between live nodes: at most once, in order between two nodes. Without ``Features.frames``,
    # all of it raises FeatureNotSupportedError.

    @property
    def inbox(self) -> str:
        """This node's private address; frames sent to ``<inbox>.<token>`` reach the inbox sink."""

    def on_frame(self, sink: Sink) -> None:
        """Set the inbox sink; it must not block."""

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        """Send a frame to one member of an address's group, or to an inbox.

        With ``reply_to`` and nobody serving, a ``Frame`` without a message arrives there.

        Raises:
            MessageTooLargeError: Over the limit; nothing was sent.
            BrokerUnavailableError: There is no connection, or none by which an answer could come; nothing
                was sent. When it breaks in the middle, a frame to an address is as good as sent.
        """

    def serve(self, address: Address, group: str, sink: Sink) -> AbstractAsyncContextManager[None]:
        """Receive frames sent to an address, competing within the group.

        Leaving returns after every frame routed here before has reached the sink, so nothing that
        was sent to a live node is dropped.
        """

    async def broadcast(self, address: Address, message: Message) -> None:
        """Send to every node that listens now."""

    def listen(self, address: Address, sink: Sink) -> AbstractAsyncContextManager[None]:
        """Receive what is broadcast."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a group has before it.

    Attributes:
        waiting: Messages that no member has been handed; where ``taken`` is None, perhaps with those.
        taken: Messages that members have been handed, or have given back, and that are not settled; None = the broker
            does not say.
        oldest: Unix time in seconds at which the oldest that is not settled was stored; None = there is none, or the
            broker does not say.
    """

    waiting: int
    taken: int | None = None
    oldest: float | None = None


class Measurable(Protocol):
    """A broker that knows how much a group has before it."""

    async def backlog(self, address: Address, options: SubscribeOptions) -> Backlog:
        """Ask for a group that is subscribed with these options, which are not ``ephemeral``; cheap.

        Raises:
            BrokerError: It cannot be known now.
        """


@runtime_checkable
class Losable(Protocol):
    """A broker whose connection can be over for good, so that only a new process helps."""

    async def until_lost(self) -> str:
        """Return why, once that has happened."""


@runtime_checkable
class Restorable(Protocol):
    """A broker whose connection may be lost, and come back."""

    def on_restored(self, callback: Callable[[], None]) -> None:
        """Call back whenever that has happened: frames of that time may be lost, and are received again soon."""


class Entry(msgspec.Struct, frozen=True):
    """A stored value.

    Attributes:
        value: The bytes as put.
        revision: Rises with every write to the store; the token for compare-and-set.
        expires_at: Unix time in seconds; None for never.
    """

    value: bytes
    revision: int
    expires_at: float | None = None


class Write(msgspec.Struct, frozen=True):
    """One write of a transaction.

    Attributes:
        key: Any text up to 1,024 bytes.
        value: The bytes to put; None deletes.
        expected: The revision the key must have; 0 when it must not exist; None for any.
        ttl: Seconds until it expires; None for never.
        check: Whether nothing is written: the key must be at ``expected``, and stays there. For the sake of the others.
        lease: Whether the store's clock alone says when ``ttl`` is over, as for a lock: no reader's clock ends it. A
            store may round it up to whole seconds, and the entry need not tell when it expires.
    """

    key: str
    value: bytes | None
    expected: int | None = None
    ttl: float | None = None
    check: bool = False
    lease: bool = False


class KeyValue(Protocol):
    """A key/value store with compare-and-set, expiry and atomic transactions.

    One that bounds its transactions says so by ``max_operations``; one that reads many faster than one by one has
    ``get_many(keys)``, which is strong; one that writes many so has ``apply_each(operations)``, which does each for
    itself, of keys that differ, and gives ``None`` or the error of each; and one that writes many so under conditions,
    ``apply_guarded(pairs)``, likewise of pairs of a write and what is only checked for it.
    One that gains nothing by that has a true ``alone``.

    Attributes:
        dotted: Whether it was opened for keys that are dotted paths, so that it can be scanned.
    """

    dotted: bool

    async def get(self, key: str, *, strong: bool = False) -> Entry | None:
        """Read; ``strong`` never answers from a follower."""

    async def apply(self, operations: Sequence[Write]) -> None:
        """Do all or nothing; deleting what does not exist succeeds unless a revision was expected.

        Raises:
            ConflictError: A revision differs from the expected one; nothing was done.
            StateError: The store refused.
        """

    def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Iterate over live keys."""

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Entry]]:
        """List live keys below a path in order, with their values; cheap, however much else the store holds.

        What was acknowledged before it began is in it, unless it was deleted or overwritten since. The last key of a
        page, given as the next ``after`` soon, goes on with the same scan.

        Args:
            prefix: Whole tokens, each with its dot (``a.b.``); empty for all keys.
            after: The key behind which it begins; empty for the first.
            limit: The most keys; fewer are given where there are no more.

        Raises:
            FeatureNotSupportedError: It was not opened dotted.
            StateError: It cannot be read now.
        """


@runtime_checkable
class KeyValueProvider(Protocol):
    """A broker with ``Features.key_value``."""

    async def key_value(self, name: str, *, dotted: bool = False) -> KeyValue:
        """Open a durable store by name, made if it is missing.

        Args:
            name: Of the store.
            dotted: Its keys are paths of tokens with dots between them, each as `mesh.address.encode_token` writes it,
                and can be scanned. It is always opened as it was first.
        """
