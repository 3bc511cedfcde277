"""Purge what every group has handled, so that a stream holds only what somebody still needs.

Limits retention keeps events for subscribers that do not exist yet (interest retention would drop
them although their publisher was told they are safe); this keeps such a stream from growing with
what has been consumed. It is idempotent, so every node may do it, and nobody has to be chosen. ADR 5.

It takes the list of all consumers of the stream, so whoever shares the work does it by chance, the less often the more
there are besides its own: all nodes together then read the list about once a minute, and one of ten thousand what it
would read alone. Who has handled much does it more often: what is read for each event stays the same as well. ADR 74.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from brokers.nats._client import Connection
from brokers.nats._errors import JSON, check_api
from mesh.address import overlaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brokers.nats._consumer import Consumer

__all__ = ["Trimmer", "floors", "share"]

EVENTS_PER_CONSUMER = 10  # Of what was handled, for each one that is listed on that account.


def floors(consumers: list[tuple[str, int]]) -> dict[str, int]:
    """Give, for each filter subject, the sequence up to which every consumer it concerns has acked.

    Args:
        consumers: Filter subject and acknowledged stream sequence of each.
    """
    lowest: dict[str, int] = {}
    for subject, floor in consumers:
        lowest[subject] = min(floor, lowest.get(subject, floor))
    # There may be thousands, and the event loop waits: a topic is compared with its other lanes and with patterns only.
    lanes: dict[str | None, list[str]] = {None: []}
    for subject in lowest:
        lanes.setdefault(_topic(subject), []).append(subject)
    found = {}
    for subject in lowest:
        topic = _topic(subject)
        others = lowest if topic is None else (*lanes[topic], *lanes[None])
        found[subject] = min(lowest[other] for other in others if overlaps(subject, other))
    return found


def _topic(subject: str) -> str | None:
    """Leave the lane out, the fifth token; None for a pattern, whatever its lane."""
    tokens = subject.split(".")
    rest = tokens[:4] + tokens[5:]
    return None if ">" in tokens or "*" in rest else ".".join(rest)


def share(own: int, handled: int, total: int) -> float:
    """Give how likely a node is to look this time.

    Args:
        own: Consumers of the stream that it reads by.
        handled: Events that came by these since it was asked last.
        total: Consumers that the stream has.
    """
    return min(1.0, (own + handled / EVENTS_PER_CONSUMER) / max(1, own, total))


class Trimmer:
    """Trims the streams that this node reads from."""

    def __init__(self, connection: Connection, dice: Callable[[], float] = random.random) -> None:
        """Know of none yet.

        Args:
            connection: To the server.
            dice: Gives a number from 0 to 1.
        """
        self._connection = connection
        self._dice = dice
        self._reading: defaultdict[str, list[Consumer]] = defaultdict(list)
        self._handled: dict[str, int] = {}
        self._purged: dict[str, dict[str, int]] = {}

    @property
    def streams(self) -> Sequence[str]:
        """Those that it reads from."""
        return sorted(stream for stream, reading in self._reading.items() if reading)

    @contextmanager
    def reading(self, stream: str, consumers: Sequence[Consumer]) -> Iterator[None]:
        """Take note of consumers while entered."""
        self._reading[stream] += consumers
        try:
            yield
        finally:
            for each in consumers:
                self._reading[stream].remove(each)

    async def look(self, stream: str) -> None:
        """Trim a stream, if it is this node's turn by chance.

        Raises:
            BrokerError: The server refused.
        """
        reading = self._reading[stream]
        received = sum(each.received for each in reading)
        handled, self._handled[stream] = received - self._handled.get(stream, 0), received
        info = await self._connection.api(f"STREAM.INFO.{stream}")
        total = cast("int", cast("JSON", check_api(info, f"cannot look at {stream}")["state"]).get("consumer_count", 0))
        if self._dice() < share(len(reading), max(0, handled), total):
            await self.trim(stream)

    async def trim(self, stream: str) -> None:
        """Purge the handled part of a stream, but for what this node has purged before.

        Raises:
            BrokerError: The server refused.
        """
        consumers: list[tuple[str, int]] = []
        while True:
            page = await self._connection.api(f"CONSUMER.LIST.{stream}", {"offset": len(consumers)})
            check_api(page, f"cannot list the consumers of {stream}")
            found = cast("list[JSON]", page.get("consumers") or [])
            for consumer in found:
                config = cast("JSON", consumer["config"])
                floor = cast("JSON", consumer["ack_floor"])
                consumers.append((cast("str", config.get("filter_subject", ">")), cast("int", floor["stream_seq"])))
            if not found or len(consumers) >= cast("int", page.get("total", 0)):
                break
        purged, lowest = self._purged.get(stream, {}), floors(consumers)
        for subject, sequence in lowest.items():
            if sequence > 0 and purged.get(subject) != sequence:
                answer = await self._connection.api(f"STREAM.PURGE.{stream}", {"filter": subject, "seq": sequence + 1})
                check_api(answer, f"cannot purge {stream}")
        self._purged[stream] = lowest
