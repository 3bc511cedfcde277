"""A session at an MQTT server: what came by it and is not acknowledged, and the subscriptions that take it."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

from paho.mqtt.client import MQTTMessage, topic_matches_sub

from brokers.native._paho import Link
from brokers.native._topics import Delays, Taken
from brokers.shared.backoff import waits
from brokers.shared.mqtt import UNCLEAN, MQTTServer
from mesh.address import Address, encode_token
from mesh.broker import Delivery, Message
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["SHARED", "Session", "Source"]

logger = logging.getLogger("brokers.native.mqtt")

MAX_HELD, MAX_HELD_BYTES = 5000, 64 * 1024 * 1024
# Servers send a few messages before the first is acknowledged, often 20. So many that nobody takes hold up the others.
MAX_UNTAKEN = 10
MAX_TOLD = 100
LONGEST_PAUSE = 60.0
SHARED = "$share/"
_FILTER = re.compile(r"(?:\$share/[^/+#]+/(?=.)|(?!\$share/))((?:(?:\+|[^/+#]*)/)*(?:\+|#|[^/+#]*))", re.DOTALL)


class _Held:
    """A message that is not acknowledged yet."""

    __slots__ = ("body", "connection", "finished", "mark", "mid", "retained", "shares", "topic")

    def __init__(self, message: MQTTMessage, connection: int) -> None:
        """Note what came."""
        self.topic, self.body = message.topic, bytes(message.payload)
        self.mid = message.mid if message.qos == 1 else 0
        self.retained = message.retain
        self.connection = connection  # The last that brought it.
        self.shares = 0  # Subscriptions that have not settled it.
        self.finished = False
        self.mark = hash((self.topic, self.body))

    def is_same(self, message: MQTTMessage) -> bool:
        """Tell whether a message with its number is this one."""
        return self.mark == hash((message.topic, bytes(message.payload)))


class _Share:
    """One subscription's part in a message; it is also how that settles it."""

    __slots__ = ("attempt", "held", "since", "source", "wanted")

    def __init__(self, held: _Held, attempt: int, source: Source | None, now: float) -> None:
        self.held, self.attempt, self.source, self.since = held, attempt, source, now
        self.wanted = source and source.wanted
        held.shares += 1

    async def ack(self) -> None:
        """Acknowledge the message, if all others have."""
        assert self.source is not None
        self.source.session.settle(self)

    reject = ack

    async def nack(self, delay: float) -> None:
        """Have it again later."""
        assert self.source is not None
        await self.source.delays.after(delay, self._again)

    async def _again(self) -> None:
        self.attempt += 1
        await self.release()

    async def release(self) -> None:
        """Give it back, to this subscription or the next."""
        assert self.source is not None
        self.source.give(self)

    async def extend(self) -> None:
        """Nothing: it is this member's anyway."""


class Source:
    """What a subscription takes from."""

    def __init__(self, session: Session, address: Address, delays: Delays) -> None:
        self.session, self.delays = session, delays
        """Read what is subscribed to.

        Raises:
            BrokerError: MQTT has no such topic filter.
        """
        self.wanted = address.label
        found = _FILTER.fullmatch(self.wanted)
        if found is None or UNCLEAN.search(self.wanted):
            raise BrokerError(
                f"{self.wanted!r} is no MQTT topic filter: '+' and '#' stand for whole levels, '#' for the last"
            )
        self.pattern = found[1]
        self.queue: deque[_Share] = deque()
        self.stopped = False
        self._address = address
        self._news = asyncio.Event()

    def give(self, share: _Share) -> None:
        """Hand over, or keep for the next subscription."""
        if self.stopped:
            self.session.leave(share)
            return
        self.queue.append(share)
        self._news.set()

    async def take(self, room: int) -> Sequence[Taken]:
        """Wait for messages."""
        while not self.queue and not self.stopped:
            self._news.clear()
            await self._news.wait()
        count = 0 if self.stopped else min(room, len(self.queue))
        return [self._taken(self.queue.popleft()) for _ in range(count)]

    def _taken(self, share: _Share) -> Taken:
        held = share.held
        message = Message({}, held.body, metadata={"retained": "true" if held.retained else "false"})
        address = self._address if held.topic == self.wanted else _actual(self._address, held.topic)
        return Taken(Delivery(message, address, share.attempt, share), share.release)

    async def stop(self) -> None:
        """Keep the rest for the next subscription."""
        self.stopped = True
        self._news.set()
        while self.queue:
            self.session.leave(self.queue.popleft())


@lru_cache(maxsize=4096)
def _actual(address: Address, topic: str) -> Address:
    return replace(address, name=".".join(map(encode_token, topic.split("."))), label=topic)


class Session:
    """A client id: its connection, and what came by it."""

    def __init__(self, server: MQTTServer, client_id: str, link: Link, *, clean: bool) -> None:
        """Take over a link that is not open yet."""
        self._server, self._client_id, self._clean = server, client_id, clean
        self.link = link
        self.link.on_message, self.link.on_connected = self._come, self._connected
        self._loop = asyncio.get_running_loop()
        self._sources: list[Source] = []
        self._held: dict[int, _Held] = {}
        self._untaken: list[_Share] = []
        self._count = self._bytes = self._connection = 0
        self._is_left_out = self._is_new = False
        self._told: set[str] = set()
        self._missing: dict[str, str] = {}  # Filters that the server has to have again; each with what it refused.
        self._restored = asyncio.Event()

    # What comes

    def _connected(self, present: bool) -> None:
        """Keep in mind what was not acknowledged: this connection brings it again, unless the server has forgotten."""
        self._connection += 1
        self._is_new = not present
        if not present:
            self._held.clear()

    def _come(self, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            logger.warning("MQTT at %s: a topic is no UTF-8; its message is left out", self._server.shown)
            self.link.ack(message.mid, message.qos)
            return
        if message.qos == 2:  # Of a subscription of another program's: the server has forgotten it by now.
            self.link.ack(message.mid, 2)
        known = self._held.get(message.mid) if message.qos == 1 and message.dup else None
        if known is not None and known.connection != self._connection and known.is_same(message):
            known.connection = self._connection
            self._acknowledge(known)
            return
        if self._count and (self._count >= MAX_HELD or self._bytes + len(message.payload) > MAX_HELD_BYTES):
            self._leave_out(message)
            return
        held = _Held(message, self._connection)
        self._count += 1
        self._bytes += len(held.body)
        if held.mid:
            self._held[held.mid] = held
        attempt, now = 2 if message.dup else 1, self._loop.time()
        fitting = [each for each in self._sources if not each.stopped and topic_matches_sub(each.pattern, topic)]
        # Of two that subscribe alike, one gets it: who has less to do.
        takers = {each.wanted: each for each in sorted(fitting, key=lambda each: -len(each.queue))}
        for each in takers.values():
            each.give(_Share(held, attempt, each, now))
        if not takers:
            self._untaken.append(_Share(held, attempt, None, now))

    def _leave_out(self, message: MQTTMessage) -> None:
        """Have a message no more; what is not acknowledged comes again by the next connection."""
        if message.qos == 1:
            self._is_left_out = True
        elif message.topic not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(message.topic)
            logger.warning(
                "%s: messages are lost, of %s, published with QoS %d", *self._named(message.topic, message.qos)
            )

    def _named(self, *others: object) -> tuple[object, ...]:
        return f"MQTT at {self._server.shown}", *others

    # What is settled

    def settle(self, share: _Share) -> None:
        """Acknowledge a message once all subscriptions have settled it."""
        held = share.held
        held.shares -= 1
        if held.shares:
            return
        held.finished = True
        self._count -= 1
        self._bytes -= len(held.body)
        held.body = b""  # What is left says whether it has come again.
        self._acknowledge(held)
        if self._is_left_out and self._count <= MAX_HELD // 2 and self._bytes <= MAX_HELD_BYTES // 2:
            self._is_left_out = False
            self.link.again()

    def _acknowledge(self, held: _Held) -> None:
        """Send PUBACK by the connection that brought it last; without one, once it has come again."""
        there = self._held.get(held.mid) is held and held.connection == self._connection
        if held.finished and there and self.link.up.is_set():
            del self._held[held.mid]
            self.link.ack(held.mid, 1)

    def leave(self, share: _Share) -> None:
        """Keep for the next subscription."""
        share.source, share.since = None, self._loop.time()
        self._untaken.append(share)

    # Subscriptions

    async def join(self, source: Source) -> None:
        """Subscribe; what has come for it already is its own."""
        self._sources.append(source)
        untaken, self._untaken = self._untaken, []
        for share in untaken:
            if share.wanted in (None, source.wanted) and topic_matches_sub(source.pattern, share.held.topic):
                share.source, share.wanted = source, source.wanted
                source.give(share)
            else:
                self._untaken.append(share)
        while True:
            await self.link.until_up()
            with suppress(BrokerUnavailableError):
                await self.link.subscribe(source.wanted)
                return

    async def part(self, source: Source) -> None:
        """Have no more for it; its subscription at the server stays, so that nothing is missed until the next one."""
        self._sources.remove(source)
        if self._clean and all(each.wanted != source.wanted for each in self._sources):
            with suppress(BrokerUnavailableError):
                await self.link.unsubscribe(source.wanted)

    def restored(self) -> None:
        """Note what the server may have forgotten; else it would send what it retains once more."""
        for wanted in {each.wanted for each in self._sources}:
            if self._is_new or wanted.startswith(SHARED):  # Mosquitto 2.0 forgets these when it restarts.
                self._missing.setdefault(wanted, "")
        self._restored.set()

    async def insist(self) -> None:
        """Subscribe to what the server may have forgotten, at once and, for what it refuses, ever more rarely."""
        pauses = waits(LONGEST_PAUSE)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(next(pauses) if self._missing else None):
                    await self._restored.wait()
            if self._restored.is_set():
                self._restored.clear()
                pauses = waits(LONGEST_PAUSE)
            await self.link.until_up()
            # All at once: one that is not answered keeps no other waiting.
            async with asyncio.TaskGroup() as tasks:
                for wanted in list(self._missing):
                    tasks.create_task(self._subscribe_again(wanted), name="mqtt-subscribe")

    async def _subscribe_again(self, wanted: str) -> None:
        if all(each.wanted != wanted for each in self._sources):
            self._missing.pop(wanted, None)
            return
        try:
            await self.link.subscribe(wanted)
        except BrokerUnavailableError:  # The next connection tries again.
            return
        except BrokerError as error:
            if self._missing.get(wanted) != str(error):
                logger.warning("%s; it is tried again", error)
            self._missing[wanted] = str(error)
        else:
            self._missing.pop(wanted, None)

    async def tidy(self, patience: float) -> None:
        """Let go what nobody takes, once it holds up what others would take."""
        while True:
            await asyncio.sleep(patience / 4)
            since = self._loop.time() - patience
            old = [each for each in self._untaken if each.since <= since]
            if not self._sources or len(old) < MAX_UNTAKEN:
                continue
            self._untaken = [each for each in self._untaken if each.since > since]
            for topic, count in Counter(each.held.topic for each in old).items():
                text = (
                    "%s: nothing subscribes to %s any more, but the session of client id %r still gets it: %d events "
                    "are acknowledged and gone, since they held up others; it is unsubscribed"
                )
                logger.warning(text, *self._named(topic, self._client_id, count))
            for each in old:
                self.settle(each)
            with suppress(BrokerUnavailableError):
                for topic in {each.wanted or each.held.topic for each in old}:
                    await self.link.unsubscribe(topic)
