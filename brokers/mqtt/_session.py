"""One session of a group: what it was sent and has not acknowledged, over all its connections."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from mqtt5 import PubAckPacket, PublishPacket, QoS, RetainHandling, TopicFilter

from brokers.mqtt._client import Client, Identity
from brokers.mqtt._config import MQTTConfig
from brokers.mqtt._wire import Wire

__all__ = ["Entry", "Session"]


class Entry:
    """A message of a session; settles its deliveries."""

    __slots__ = ("attempt", "done", "print", "session", "unit", "wire")

    def __init__(self, session: Session, wire: Wire, unit: PublishPacket) -> None:
        self.session = session
        self.wire = wire
        self.unit: PublishPacket | None = unit
        self.print = 0
        self.attempt = 2 if unit.duplicate else 1
        self.done = False

    def is_again(self, unit: PublishPacket, wire: Wire) -> bool:
        """Tell whether the server sends this one again, over a new connection."""
        if not unit.duplicate or self.wire is wire:
            return False
        mine = self.unit
        if mine is None:
            return self.print == _print(unit)
        return _content(mine) == _content(unit)

    @property
    def is_assured(self) -> bool:
        """Whether the server keeps it until it is acknowledged (QoS 1)."""
        return self.unit is not None and self.unit.packet_id is not None

    async def ack(self) -> None:
        """Acknowledge it to the server."""
        self.session.settle(self)

    async def reject(self) -> None:
        """Acknowledge it to the server; MQTT has no other way to be rid of it."""
        self.session.settle(self)

    async def nack(self, delay: float) -> None:
        """Keep it unacknowledged, and try again here; MQTT cannot give it back."""
        self.session.park(self, delay)

    async def release(self) -> None:
        """Nothing to do: what is not acknowledged is whoever's that takes the session."""

    async def extend(self) -> None:
        """Nothing to do: it is this session's for as long as that lives."""


def _content(unit: PublishPacket) -> tuple[str, bytes, tuple[tuple[str, str], ...]]:
    """Give what tells a message from the next one with its number: events differ in their properties, too."""
    return unit.topic, unit.payload, tuple(unit.user_properties)


def _print(unit: PublishPacket) -> int:
    return hash(_content(unit))


class Session:
    """A client of the server's that keeps what is not acknowledged.

    Attributes:
        client: Its connection.
        open: How many messages are not settled.
        heard_at: When the last message came, in the loop's time.
        draining: Whether it takes nothing new: it was another member's, and ends when it is empty.
        resumed: Whether the server had the session at the first connect.
    """

    def __init__(
        self,
        config: MQTTConfig,
        identity: Identity,
        pattern: str,
        take: Callable[[Entry], None],
        park: Callable[[Entry, float], None],
        *,
        beside: Client,
        draining: bool = False,
    ) -> None:
        """Prepare; opening the client subscribes.

        Args:
            config: Where the server is.
            identity: Whose session it is.
            pattern: The topic filter, with ``$share`` if it is shared.
            take: Takes each message; it must not block.
            park: Takes what is to be tried again after some seconds.
            beside: This node's first client.
            draining: Unsubscribe instead.
        """
        self.client = Client(config, identity, self._receive, self._subscribe, beside)
        self.draining = draining
        self.open = 0
        self.heard_at = asyncio.get_running_loop().time()
        self.resumed = False
        self.park = park
        self._pattern = pattern
        self._take = take
        self._entries: dict[int, Entry] = {}
        self._settled: deque[int] = deque()
        self._subscribed = False

    async def _subscribe(self, present: bool) -> None:
        if not self._subscribed:
            self.resumed = present
        if not present:  # What the old session had is not this one's to acknowledge.
            self._entries.clear()
            self._settled.clear()
            self.open = 0
        if self.draining:
            await self.client.unsubscribe(self._pattern)
        else:  # Always: Mosquitto keeps a session over its restart, but not what that shares.
            handling = RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS
            topic = TopicFilter(self._pattern, max_qos=QoS.AT_LEAST_ONCE, retain_handling=handling)
            await self.client.subscribe([topic])
        self._subscribed = True

    def _receive(self, wire: Wire, unit: PublishPacket) -> None:
        self.heard_at = wire.received_at
        packet_id = unit.packet_id
        if packet_id is None:  # Published with QoS 0: the server has forgotten it already.
            self._take(Entry(self, wire, unit))
            return
        known = self._entries.get(packet_id)
        if known is not None and known.is_again(unit, wire):
            known.wire = wire
            if known.done:
                wire.send(PubAckPacket(packet_id).write())
            return
        if known is None or known.done:
            self.open += 1
        entry = self._entries[packet_id] = Entry(self, wire, unit)
        self._take(entry)

    def is_quiet(self, seconds: float) -> bool:
        """Tell whether all it brought is settled, and nothing came for so long."""
        return not self.open and asyncio.get_running_loop().time() - self.heard_at >= seconds

    def settle(self, entry: Entry) -> None:
        """Acknowledge a message, on the connection that brought it; over another, when it comes again there."""
        unit = entry.unit
        if unit is None or entry.done:
            return
        entry.done = True
        packet_id = unit.packet_id
        if packet_id is None or self._entries.get(packet_id) is not entry:
            return
        self.open -= 1
        entry.print, entry.unit = _print(unit), None
        if entry.wire is self.client.wire and not entry.wire.closed.done():
            entry.wire.send(PubAckPacket(packet_id).write())
        self._settled.append(packet_id)
        if len(self._settled) > 2 * self.client.identity.receive_max:
            oldest = self._settled.popleft()
            if (old := self._entries.get(oldest)) is not None and old.done:
                del self._entries[oldest]
