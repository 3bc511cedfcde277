"""What is declared on the server: per space, per group, per delay.

Every queue of events is a quorum queue that refuses when it is full, whose messages expire with
the space's age limit, and which has a dead letter queue. ``x-delivery-limit`` is set, and high:
without one RabbitMQ puts a returned message at the end of its queue, and 4.0 drops it after 20.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from aiormq import spec

from brokers.rabbitmq._channel import Channel
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._names import FRAMES, KEYED_LANES, NO_LANE, bindings, claimed_name, exchange_name, queue_name
from brokers.rabbitmq._refusals import RefusedError
from mesh.address import Address
from mesh.broker import SubscribeOptions, Topology
from mesh.errors import FeatureNotSupportedError, TopologyMismatchError

if TYPE_CHECKING:
    from aiormq.abc import ArgumentsType
    from pamqp.base import Frame
    from pamqp.common import FieldValue

__all__ = [
    "FRAMES_EXCHANGE",
    "NOT_FOUND",
    "PRECONDITION_FAILED",
    "Queue",
    "Space",
    "count",
    "count_on",
    "declare",
    "declare_again",
    "declare_group",
    "exchange",
    "exists",
    "group_queues",
    "queue",
    "retry_queue",
    "seal",
]

logger = logging.getLogger("brokers.rabbitmq")

NOT_FOUND = 404
PRECONDITION_FAILED = 406
DELIVERY_LIMIT = 1_000_000
DEAD_BYTES = 256 * 1024 * 1024
MAX_TIMER_MS = (1 << 32) - 1
EPHEMERAL_EXPIRES_MS = 60_000
SEAL_EXPIRES_MS = 60_000
EPHEMERAL_LEASE, MIN_RETRY_LEASE, MAX_RETRY_LEASE = 60.0, 3600.0, 7 * 24 * 3600.0


def queue(name: str, arguments: ArgumentsType | None = None) -> spec.Queue.Declare:
    """Give the method that makes a lasting queue."""
    return spec.Queue.Declare(queue=name, durable=True, arguments=arguments)


def exchange(name: str, kind: str = "direct", arguments: ArgumentsType | None = None) -> spec.Exchange.Declare:
    """Give the method that makes a lasting exchange."""
    return spec.Exchange.Declare(exchange=name, exchange_type=kind, durable=True, arguments=arguments)


FRAMES_EXCHANGE = exchange(FRAMES, "topic")


@dataclass(frozen=True, slots=True)
class Space:
    """A space as it is wanted here.

    Attributes:
        topology: What the mesh asks for.
        max_events: Most events that wait in a queue.
    """

    topology: Topology
    max_events: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no timer of RabbitMQ can count."""
        if self.topology.max_age is not None and self.topology.max_age * 1000 > MAX_TIMER_MS:
            raise FeatureNotSupportedError("rabbitmq", "keeping events for more than 49 days, other than for ever")

    @property
    def exchange(self) -> str:
        """The exchange that its events are published to."""
        return exchange_name(self.topology.space)

    @property
    def groups(self) -> str:
        """The exchange behind it that the lasting groups are bound to, and only they."""
        return f"{self.exchange}:groups"

    @property
    def unclaimed(self) -> str:
        """The queue of events that no group asked for yet."""
        return f"{self.exchange}:unclaimed"

    @property
    def dead(self) -> str:
        """The queue of events that expired, or were returned too often."""
        return f"{self.exchange}:dead"

    def arguments(self, **more: FieldValue) -> ArgumentsType:
        """Give the arguments of a queue that holds its events."""
        topology = self.topology
        found: ArgumentsType = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": self.dead,
            "x-dead-letter-strategy": "at-least-once",
        }
        if topology.max_age is not None:
            found["x-message-ttl"] = int(topology.max_age * 1000)
        if topology.max_bytes is not None:
            found["x-max-length-bytes"] = topology.max_bytes - 1  # RabbitMQ refuses what follows the one above it.
        if self.max_events is not None:
            found["x-max-length"] = self.max_events
        if topology.replicas > 1:
            found["x-quorum-initial-group-size"] = topology.replicas
        return {**found, **more}

    def methods(self) -> list[Frame]:
        """Give the methods that declare it; the first is the one that a different one refuses."""
        dead: ArgumentsType = {
            "x-queue-type": "quorum",
            "x-max-length-bytes": DEAD_BYTES,
            "x-overflow": "drop-head",
            **{name: value for name, value in self.arguments().items() if name == "x-message-ttl"},
        }
        return [
            queue(self.unclaimed, self.arguments()),
            exchange(self.groups, "topic", {"alternate-exchange": self.unclaimed}),
            exchange(self.exchange, "topic"),
            spec.Exchange.Bind(destination=self.groups, source=self.exchange, routing_key="#"),
            exchange(self.unclaimed, "fanout"),
            exchange(self.dead, "fanout"),
            queue(self.dead, dead),
            spec.Queue.Bind(queue=self.unclaimed, exchange=self.unclaimed),
            spec.Queue.Bind(queue=self.dead, exchange=self.dead),
        ]

    def __str__(self) -> str:
        topology = self.topology
        return f"max_age={topology.max_age}, max_bytes={topology.max_bytes}, max_events={self.max_events}"


async def exists(connection: Connection, passive: Frame) -> bool:
    """Tell whether something is there.

    Args:
        connection: Where to ask.
        passive: Its passive declaration.
    """
    try:
        async with connection.channel(passive):
            return True
    except RefusedError as error:
        if error.reply_code != NOT_FOUND:
            raise
        return False


async def seal(connection: Connection) -> None:
    """Let the server write down which quorum queues it has.

    It keeps the last one that was created in memory for two or three seconds. Killed meanwhile, it forgets which log
    is that queue's: the queue has no leader any more, and what was confirmed is gone (seen with 3.10.8). Creating one
    more queue makes it write. There are few names, since the server never forgets one.
    """
    name = f"mesh.seal-{secrets.randbelow(256)}"
    arguments: ArgumentsType = {
        "x-queue-type": "quorum",
        "x-expires": SEAL_EXPIRES_MS,
        "x-quorum-initial-group-size": 1,
    }
    async with connection.channel(queue(name, arguments), spec.Queue.Delete(queue=name)):
        return


async def declare(connection: Connection, space: Space) -> None:
    """Create a space, or see that it is as wanted.

    Raises:
        TopologyMismatchError: It exists and differs.
    """
    if await _declare(connection, space.unclaimed, space.methods(), space.exchange, str(space)):
        await seal(connection)


async def _declare(connection: Connection, first: str, methods: Iterable[Frame], what: str, settings: str) -> bool:
    """Declare what begins with the queue ``first``, and tell whether that is new; raises ``TopologyMismatchError``."""
    is_new = not await exists(connection, spec.Queue.Declare(queue=first, passive=True))
    try:
        async with connection.channel(*methods):
            return is_new
    except RefusedError as error:
        if error.reply_code != PRECONDITION_FAILED:
            raise
        raise TopologyMismatchError(
            f"{what} exists on RabbitMQ with other settings than {settings}: {error}; "
            "change them, or remove its queues there"
        ) from error


async def declare_again(connection: Connection, spaces: Iterable[Space]) -> set[str]:
    """Declare on a server that may have lost it; give the exchanges that are there."""
    found = set()
    for space in spaces:
        try:
            await declare(connection, space)
            found.add(space.exchange)
        except (TopologyMismatchError, RefusedError) as error:
            logger.warning("cannot declare %s again: %s", space.exchange, error)
    return found


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of a group.

    Attributes:
        name: On the server.
        lane: Whose events it takes; ``*`` for all.
        keyed: Whether one delivery at a time is made, over all members.
        declared: The method that declares it.
        bound: The methods that bind it.
        claimed: The exchange that is there once the group has what came before it; it routes nothing.
    """

    name: str
    lane: str
    keyed: bool
    declared: Frame
    bound: tuple[Frame, ...]
    claimed: str


def group_queues(space: Space, address: Address, options: SubscribeOptions) -> list[Queue]:
    """Give the queues of a group: one, or one for each lane when it is ordered."""
    base = queue_name(address, options.group)
    arguments: ArgumentsType = {}
    source = space.groups
    if options.ephemeral:  # No other group, and no earlier one, has its name.
        base = f"{base}:{secrets.token_hex(8)}"
        arguments["x-expires"] = EPHEMERAL_EXPIRES_MS
        source = space.exchange
    # The routing key of its dead letters tells whose they are; with another order, it is refused.
    arguments["x-dead-letter-routing-key"] = f"{base}:ordered" if options.ordered else base
    claimed = claimed_name(base)
    queues = []
    for lane in (NO_LANE, *KEYED_LANES) if options.ordered else ("*",):
        keyed = lane in KEYED_LANES
        name = f"{base}:{lane}" if keyed else base
        alone: ArgumentsType = {"x-single-active-consumer": True} if keyed else {}
        declared = queue(name, space.arguments(**arguments, **alone))
        keys = bindings(address.name, lane)
        bound = [spec.Queue.Bind(queue=name, exchange=source, routing_key=key) for key in keys]
        queues.append(Queue(name, lane, keyed, declared, tuple(bound), claimed))
    return queues


def retry_queue(space: Space, target: str, delay_ms: int, *, ephemeral: bool, now: float) -> tuple[str, Frame]:
    """Name a queue whose messages go back to another one after a while, and give what declares it.

    A quorum queue goes when its time is over, in use or not, with all that it holds: neither a publish nor another
    declaration makes that later (seen with 3.10.8). So there is another queue for each lease, by the clock, and it
    outlives its lease by the delay, and by as long as events are kept in case its target is full.
    """
    max_age = space.topology.max_age
    name = f"{target}:retry-{delay_ms}"
    arguments: ArgumentsType = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-message-ttl": delay_ms,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": target,
        "x-dead-letter-strategy": "at-least-once",
    }
    if ephemeral or max_age is not None:
        lease = EPHEMERAL_LEASE if ephemeral else min(max(max_age or 0.0, MIN_RETRY_LEASE), MAX_RETRY_LEASE)
        kept = lease if ephemeral else max(max_age or 0.0, lease)
        name = f"{name}-{int(now / lease)}"
        arguments["x-expires"] = min(delay_ms + int((lease + kept) * 1000), MAX_TIMER_MS)
    if space.topology.replicas > 1:
        arguments["x-quorum-initial-group-size"] = space.topology.replicas
    return name, queue(name, arguments)


async def declare_group(
    connection: Connection, queues: Sequence[Queue], address: Address, options: SubscribeOptions
) -> bool:
    """Declare a group's queues, and tell whether they are new.

    Raises:
        TopologyMismatchError: They exist and differ.
    """
    group, settings = f"group {options.group!r} of {address}", f"ordered={options.ordered}"
    is_new = await _declare(connection, queues[0].name, [each.declared for each in queues], group, settings)
    if is_new and not options.ephemeral:
        await seal(connection)
    return is_new


async def count(connection: Connection, name: str) -> tuple[int, int]:
    """Count the messages that wait in a queue, and its consumers."""
    async with connection.channel() as channel:
        return await count_on(channel, name)


async def count_on(channel: Channel, name: str) -> tuple[int, int]:
    """Count as `count` does, on a channel that is there."""
    found = cast("spec.Queue.DeclareOk", await channel.call(spec.Queue.Declare(queue=name, passive=True)))
    return found.message_count or 0, found.consumer_count or 0
