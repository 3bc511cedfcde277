"""Which sessions a group has, and who holds each: retained messages that all its members read.

A session is ``held`` by a member, or ``free``: left, or its member is gone (the server then publishes the will). What
it was sent and has not acknowledged goes to whoever connects under its client id.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mqtt5 import PubAckPacket, PublishPacket, QoS, TopicFilter, Will

from brokers.mqtt._client import ANSWER_WAIT, Client, ConnectionLostError, Identity
from brokers.mqtt._config import MQTTConfig
from brokers.mqtt._wire import Wire
from mesh.errors import BrokerUnavailableError

__all__ = ["FREE", "HELD", "Record", "Registry", "Watch"]

logger = logging.getLogger("brokers.mqtt")

TOPIC = "mesh-sessions"
HELD, FREE = "held", "free"
MARK = "."


@dataclass(frozen=True, slots=True)
class Record:
    """What was said last about a session.

    Attributes:
        state: ``held`` or ``free``.
        holder: Which member said so.
        seen_at: When it was heard, in the loop's time.
    """

    state: str
    holder: str
    seen_at: float


class Watch:
    """What is known of one group's sessions.

    Attributes:
        records: By client id.
    """

    def __init__(self, topic: str, changed: Callable[[], None]) -> None:
        """Know nothing yet."""
        self.topic = topic
        self.records: dict[str, Record] = {}
        self.changed = changed
        self.mark = MARK + secrets.token_hex(8)
        self.complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hear(self, name: str, payload: bytes) -> None:
        """Take a message."""
        if name.startswith(MARK):
            if name == self.mark and not self.complete.done():
                self.complete.set_result(None)
            return
        if not payload:
            self.records.pop(name, None)
            return
        state, _, holder = payload.decode("utf-8", "replace").partition(" ")
        self.records[name] = Record(state, holder, asyncio.get_running_loop().time())
        self.changed()


def _told(done: asyncio.Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.warning("cannot tell other members about a session: %s", error)


class Registry:
    """The connection that everything but deliveries goes over.

    Attributes:
        client: For publishing too.
        me: What this node calls itself there.
    """

    def __init__(self, config: MQTTConfig, me: str) -> None:
        """Prepare; opening the client connects."""
        self.client = Client(config, Identity(me), self._receive, self._connected)
        self.me = me
        self._watches: dict[str, list[Watch]] = {}

    def _receive(self, wire: Wire, unit: PublishPacket) -> None:
        base, _, name = unit.topic.rpartition("/")
        for watch in self._watches.get(base, ()):
            watch.hear(name, unit.payload)
        if unit.packet_id is not None:
            wire.send(PubAckPacket(unit.packet_id).write())

    async def _connected(self, present: bool) -> None:
        for topic in [*self._watches]:
            await self._subscribe(topic)

    async def _subscribe(self, topic: str) -> None:
        await self.client.subscribe([TopicFilter(f"{topic}/+", max_qos=QoS.AT_LEAST_ONCE)])

    async def watch(self, topic: str, changed: Callable[[], None]) -> Watch:
        """Begin to listen; return when all that is retained has been heard.

        Raises:
            BrokerError: The server refuses, or does not answer.
        """
        watch = Watch(topic, changed)
        self._watches.setdefault(topic, []).append(watch)
        try:
            async with asyncio.timeout(ANSWER_WAIT):
                with suppress(ConnectionLostError):  # The next connection subscribes.
                    await self._subscribe(topic)
                await self.client.post(f"{topic}/{watch.mark}", b"")
                await watch.complete
        except TimeoutError:
            self.unwatch(watch)
            raise BrokerUnavailableError(f"{self.client.config.shown} does not tell its sessions") from None
        except BaseException:
            self.unwatch(watch)
            raise
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Listen no more."""
        watches = self._watches[watch.topic]
        watches.remove(watch)
        if not watches:
            del self._watches[watch.topic]
            self.client.forget(f"{watch.topic}/+")

    def say(self, topic: str, client_id: str, state: str, holder: str) -> None:
        """Tell all members about a session; without a state, that there is none any more."""
        payload = f"{state} {holder}".encode() if state else b""
        with suppress(BrokerUnavailableError):
            self.client.post(f"{topic}/{client_id}", payload, retain=True).add_done_callback(_told)

    def will(self, topic: str, client_id: str, holder: str) -> Will:
        """Have the server say that a session is free once nobody is connected to it."""
        return Will(
            f"{topic}/{client_id}",
            payload=f"{FREE} {holder}".encode(),
            qos=QoS.AT_LEAST_ONCE,
            retain=True,
            will_delay_interval=round(self.client.config.will_delay),
        )
