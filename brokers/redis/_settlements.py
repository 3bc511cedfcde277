"""How a consumer's deliveries settle: in batches, one command a turn of the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from brokers.redis._connection import Connection
from brokers.redis._entries import stream_of
from brokers.redis._group_scripts import ACK_IN_ORDER, EXTEND, NACK
from brokers.redis._wire import Command, ConnectionLostError, Reply
from mesh.errors import BrokerError

__all__ = ["Entry", "Settlements"]

logger = logging.getLogger("brokers.redis")


class Entry:
    """One that this consumer holds; it settles its delivery.

    Attributes:
        topic: Its topic's name within the space.
        id: Its id in the topic's stream.
        attempt: From 1.
        fields: What it holds.
    """

    __slots__ = ("_settlements", "attempt", "fields", "id", "topic")

    def __init__(self, settlements: Settlements, topic: str, id: bytes, attempt: int, fields: list[bytes]) -> None:
        self._settlements = settlements
        self.topic = topic
        self.id = id
        self.attempt = attempt
        self.fields = fields

    @property
    def name(self) -> bytes:
        """What the scripts call it."""
        return b"%b %b" % (self.topic.encode(), self.id)

    async def ack(self) -> None:
        self._settlements.ack(self)

    reject = ack  # Dead-lettering is the mesh's, before it.

    async def nack(self, delay: float) -> None:
        await self._settlements.nack(self, delay)

    async def extend(self) -> None:
        self._settlements.extend(self)

    async def release(self) -> None:
        self._settlements.release(self)


class Settlements:
    """Sends what was decided about entries.

    An ack that a broken connection swallowed is sent again over the next one. Anything else that is lost comes to the
    same as a death of this process: the entry comes again when it was silent for ``ack_wait``.
    """

    def __init__(
        self,
        commands: Connection,
        space: str,
        group: str,
        consumer: str,
        *,
        ordered: bool,
        due: Callable[[float], None],
    ) -> None:
        """Prepare.

        Args:
            commands: The connection.
            space: Of the topics.
            group: The group's id.
            consumer: This member's name.
            ordered: Whether the next entry of a key waits for this one.
            due: Is told in how many seconds there may be an entry to take.
        """
        self._commands = commands
        self._space = space
        self._who = (group, consumer)
        self._ordered = ordered
        self._due = due
        self._acks: list[Entry] = []
        self._extensions: list[Entry] = []
        self._scheduled = False
        self.leaving = False

    def ack(self, entry: Entry) -> None:
        """Have it acked with the others of this turn."""
        self._acks.append(entry)
        self._schedule()

    def extend(self, entry: Entry) -> None:
        """Have its silence end with that of the others of this turn."""
        self._extensions.append(entry)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what has gathered; without a connection, acks stay for the next one."""
        self._scheduled = False
        if self._commands.wire is None:
            return
        extensions, self._extensions = self._extensions, []
        if extensions:
            self._commands.post(EXTEND.command([self._space], [*self._who, *_pairs(extensions)]))
        acks, self._acks = self._acks, []
        if acks and self._ordered:
            self._post(ACK_IN_ORDER.command([self._space], [*self._who, *_pairs(acks)]), acks)
        elif acks:
            by_topic: dict[str, list[Entry]] = {}
            for entry in acks:
                by_topic.setdefault(entry.topic, []).append(entry)
            for topic, entries in by_topic.items():
                stream = stream_of(self._space, topic)
                self._post(("XACK", stream, self._who[0], *(entry.id for entry in entries)), entries)

    def _post(self, command: Command, entries: list[Entry]) -> None:
        sent = self._commands.post(command)
        assert sent is not None
        sent.add_done_callback(partial(self._acked, entries))

    def _acked(self, entries: list[Entry], sent: asyncio.Future[Reply]) -> None:
        error = sent.exception()
        if isinstance(error, ConnectionLostError):
            self._acks[:0] = entries
        elif error is not None:
            logger.warning("Redis refused to ack %d entries: %s", len(entries), error)
        elif self._ordered and sent.result():
            self._due(0.0)

    async def nack(self, entry: Entry, delay: float) -> None:
        """Park it until it is due."""
        delay_ms = max(0, round(delay * 1000))
        arguments = (*self._who, delay_ms, 0, int(self.leaving), entry.topic, entry.id)
        try:
            await self._commands.run(NACK, [self._space], *arguments, repeat=False)
        except BrokerError as error:
            logger.debug("a nack is lost: %s", error)
            return
        self._due(delay_ms / 1000)

    def release(self, entry: Entry) -> None:
        """Park it as if it had never been handed out."""
        self._commands.post(NACK.command([self._space], [*self._who, 0, 1, 1, entry.topic, entry.id]))


def _pairs(entries: list[Entry]) -> list[str | bytes]:
    return [part for entry in entries for part in (entry.topic, entry.id)]
