"""Frames between live nodes.

One topic for all nodes of a cluster. Partition 0 is read by every node: broadcasts, notes between
the members of groups, and the nodes' own announcements. Every node reads one of the others, too,
which it may share: its inbox.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
from aiokafka import errors as kafka

from brokers.kafka._background import Start
from brokers.kafka._cluster import LATEST, Cluster, error_of
from brokers.kafka._frames_topic import (
    HOPS,
    INBOX,
    INBOXES,
    KIND,
    REPLY,
    SERVED,
    TOKEN,
    TOPIC,
    TOPIC_SETTINGS,
    headers_of,
)
from brokers.kafka._outbox import Outbox, OutFrame
from brokers.kafka._presence import ALIVE_FOR, Presence
from brokers.kafka._producer import Producer
from brokers.kafka._records import apart, fetch_request, fetched
from brokers.shared.inboxes import Inboxes
from brokers.shared.outage import Outage
from mesh.broker import Frame, Message, Sink
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Frames"]

logger = logging.getLogger("brokers.kafka")

HISTORY = ALIVE_FOR + 30.0  # Clocks differ.
BARRIER_WITHIN = 1.0
FETCH_WAIT = 0.5
MAX_NOTES = 20_000
QUIET_SECONDS = 10.0
MAX_HOPS = 4


class Frames:
    """This node's part in it."""

    def __init__(self, cluster: Cluster, producer: Producer) -> None:
        self._cluster = cluster
        self._producer = producer
        self.node = secrets.token_hex(8)
        self._key = self.node.encode()
        self._partition = 1 + zlib.crc32(self._key) % INBOXES
        self.inbox = f"{self._partition}-{self.node}"
        self.inboxes = Inboxes("Kafka", INBOX)
        self.sink: Sink | None = None
        self.waits_for = ""
        self._beat_now = asyncio.Event()
        self.outage = Outage(logger, "Kafka", cluster.shown)
        self._outbox = Outbox(cluster, self.outage, self._beat_now)
        self._presence = Presence(self.node, self._partition, producer, self._outbox, self._served, self._beat_now)
        self._in_purpose = cluster.purpose("frames-in")
        self._positions: dict[int, int] = {}
        self._quiet_until = 0.0
        self._moved = asyncio.Event()
        self._serving: dict[tuple[str, str], list[Sink]] = {}
        self._leaving: dict[tuple[str, str], int] = {}
        self._listening: dict[str, list[Sink]] = {}
        self.notes: OrderedDict[tuple[str, int, int], dict[str, Any]] = OrderedDict()
        self.hear: dict[str, set[Callable[[dict[str, Any]], None]]] = {}

    # Start and end

    async def open(self, start: Start) -> None:
        """Begin to read; returns when everybody alive is known."""
        settings = dict(TOPIC_SETTINGS)
        self.waits_for = f"topic {TOPIC}"
        brokers = len(self._cluster.nodes())
        copies = self._cluster.config.replicas or min(3, brokers)
        # While a cluster starts, few of its brokers are there: the topic would have as few copies for good.
        if not 0 < copies <= brokers and not await self._cluster.find(TOPIC):
            raise self._cluster.unavailable(f"{brokers} of {copies or 1} brokers are there to keep {TOPIC}")
        await self._cluster.create(TOPIC, 1 + INBOXES, settings, copies)
        since = int((time.time() - HISTORY) * 1000)
        found = await self._cluster.offsets(TOPIC, {0: since, self._partition: LATEST})
        if found[0] < 0:
            found |= await self._cluster.offsets(TOPIC, {0: LATEST})
        self._positions = found
        for partition in found:
            start(self._read(partition), "kafka-frames-in")
        self.waits_for = f"this node's inbox, {TOPIC}-{self._partition}"
        await self._outbox.connect()
        start(self._outbox.run(), "kafka-frames-out")
        self.waits_for = f"this node's announcement in {TOPIC}-0"
        await self._presence.announce()
        await self._catch_up(0)
        start(self._presence.run(), "kafka-frames-beat")

    async def close(self) -> None:
        """Say that this node goes."""
        if self._outbox.connected:
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._producer.add(TOPIC, 0, b"bye", self._key, [])

    # Sending

    async def send(self, inbox: str, token: str, message: Message, reply_to: str) -> None:
        """Send to a node's inbox."""
        partition, _, node = inbox.partition("-")
        headers = headers_of(message, reply_to, TOKEN, token)
        await self._outbox.post((int(partition), node.encode(), message.body, headers))

    async def send_to_served(self, address: str, message: Message, reply_to: str, *, sure: bool = False) -> None:
        """Send to one member of each group that serves an address; if it is to be sure, not to one that may be dead."""
        if sure:
            await self._presence.until_sure(address)
        targets = self._presence.targets(address)
        if not targets and self._outbox.connected and await self._catch_up(0):
            targets = self._presence.targets(address)
        if not targets:
            self._outbox.check()
            if reply_to and self.sink is not None:
                asyncio.get_running_loop().call_soon(self.sink, Frame(None, reply_to.partition(".")[2], ""))
            return
        partition_of = self._presence.partition_of
        frames: list[OutFrame] = [
            (
                partition_of(node),
                node.encode(),
                message.body,
                headers_of(message, reply_to, SERVED, f"{address} {group}"),
            )
            for group, node in targets
        ]
        await self._outbox.post(*frames)  # All or none: with the first one gone, an error would be untrue.

    async def broadcast(self, address: str, message: Message) -> None:
        """Send to every listener."""
        await self._outbox.post((0, b"cast", message.body, headers_of(message, "", SERVED, address)))

    def tell(self, note: Mapping[str, Any]) -> None:
        """Tell every node something about a group; as good as the connection."""
        if self._outbox.connected:
            self._outbox.put(0, b"note", orjson.dumps(note), [])

    # Reading

    async def _read(self, partition: int) -> None:
        """Read one partition, wherever it is led."""
        purpose = f"{self._in_purpose}-{partition}"
        wait = FETCH_WAIT
        while True:
            leader = self._cluster.leader(TOPIC, partition)
            if leader is None:  # One is elected.
                await self._find_leaders()
                continue
            try:
                request = fetch_request([(TOPIC, [(partition, self._positions[partition])])], wait)
                response = await self._cluster.call(leader, request, purpose, wait=wait)
                for _, _, code, raw in fetched(response):
                    if (failure := error_of(code)) is not None:
                        await self._recover(partition, failure)
                    elif raw:
                        found, position = apart(raw, self._positions[partition])
                        self._take_all(partition, found)
                        self._positions[partition] = position
                        self._moved.set()
                self.outage.back(purpose)
                wait = FETCH_WAIT
            except BrokerUnavailableError as error:
                wait = 0.0
                self.outage.lost(error.__cause__ or error, purpose)
                self._outbox.look()
                await self._find_leaders()

    async def _find_leaders(self) -> None:
        await self._cluster.pause()
        with suppress(BrokerUnavailableError):
            await self._cluster.refresh(TOPIC)

    async def _recover(self, partition: int, failure: type[kafka.KafkaError]) -> None:
        if failure is kafka.OffsetOutOfRangeError:
            self._positions |= await self._cluster.offsets(TOPIC, {partition: LATEST})
        else:
            await self._find_leaders()

    async def _catch_up(self, partition: int) -> bool:
        """Read on to where a partition ends now; tell whether that was possible in time."""
        try:
            async with asyncio.timeout(BARRIER_WITHIN):
                end = (await self._cluster.offsets(TOPIC, {partition: LATEST}, "barrier"))[partition]
                while self._positions[partition] < end:
                    self._moved.clear()
                    await self._moved.wait()
        except (TimeoutError, BrokerUnavailableError):
            return False
        return True

    # What comes

    def _take_all(self, partition: int, found: Iterator[Iterator[Any]]) -> None:
        for batch in found:
            try:
                for record in batch:
                    self._take(partition, record)
            except Exception:  # noqa: BLE001 - it is the client's; frames come at most once: what is unreadable is lost
                self._warn("cannot read all of", partition)

    def _take(self, partition: int, record: Any) -> None:
        try:
            if partition == 0:
                self._take_control(record)
            elif record.key == self._key:
                self._take_frame(record)
        except Exception:  # noqa: BLE001 - whoever may write there may write anything
            self._warn("cannot read what another node sent in", partition)

    def _warn(self, what: str, partition: int) -> None:
        """Say so now and then: somebody may send any number of these."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET_SECONDS
            logger.warning("%s %s-%s", what, TOPIC, partition, exc_info=True)

    def _take_frame(self, record: Any) -> None:
        own: dict[str, str] = {}
        headers: dict[str, str] = {}
        for name, value in record.headers:
            if name[0] == ":":
                own[name] = value.decode()
            else:
                headers[name] = value.decode()
        kind = own.get(KIND)
        if kind == "seen":
            number, _, node = own[TOKEN].partition(" ")
            self._presence.take_seen(int(number), node)
            return
        reply = self.inboxes.reply_to(own.get(REPLY, ""))
        if kind == "none":
            if self.sink is not None:
                self.sink(Frame(None, own[TOKEN], ""))
            return
        message = Message(headers, record.value or b"")
        served = own.get(SERVED)
        if served is None:
            if self.sink is not None:
                self.sink(Frame(message, own.get(TOKEN, ""), reply))
            return
        address, _, group = served.partition(" ")
        sinks = self._serving.get((address, group))
        if sinks:
            sinks.append(sinks.pop(0))
            sinks[-1](Frame(message, "", reply))
        else:
            self._pass_on(address, group, message, reply, int(own.get(HOPS, "0")) + 1)

    def _pass_on(self, address: str, group: str, message: Message, reply: str, hops: int) -> None:
        """Hand a frame on that came for what is no longer served here."""
        node = self._presence.another(address, group) if hops <= MAX_HOPS else None
        if node is not None:
            headers = headers_of(message, reply, SERVED, f"{address} {group}")
            headers.append((HOPS, str(hops).encode()))
            self._outbox.put(self._presence.partition_of(node), node.encode(), message.body, headers)
        elif reply:
            inbox, _, token = reply.partition(".")
            partition, _, node = inbox.partition("-")
            self._outbox.put(int(partition), node.encode(), b"", [(KIND, b"none"), (TOKEN, token.encode())])

    def _take_control(self, record: Any) -> None:
        self._presence.take_time(record.timestamp)
        kind = record.key
        if kind == b"cast":
            headers: dict[str, str] = {}
            address = ""
            for name, value in record.headers:
                if name == SERVED:
                    address = value.decode()
                elif name[0] != ":":
                    headers[name] = value.decode()
            for sink in self._listening.get(address, ()):
                sink(Frame(Message(headers, record.value or b""), "", ""))
        elif kind == b"node":
            self._presence.take_node(orjson.loads(record.value), record.timestamp)
        elif kind == b"bye":
            self._presence.take_bye(record.value.decode())
        elif kind == b"note":
            note = orjson.loads(record.value)
            if "o" in note:
                note["at"] = time.time()
                self.notes[note["g"], note["p"], note["o"]] = note
                if len(self.notes) > MAX_NOTES:
                    self.notes.popitem(last=False)
            for hear in list(self.hear.get(note["g"], ())):
                hear(note)

    # Who takes it

    def _served(self) -> list[tuple[str, str]]:
        return sorted({key for key in self._serving if len(self._serving[key]) > self._leaving.get(key, 0)})

    @asynccontextmanager
    async def serve(self, address: str, group: str, sink: Sink) -> AsyncIterator[None]:
        """Take frames for an address."""
        key = (address, group)
        sinks = self._serving.setdefault(key, [])
        sinks.append(sink)
        try:
            await self._presence.announce()
            yield
        finally:
            try:
                self._leaving[key] = self._leaving.get(key, 0) + 1
                if len(sinks) == self._leaving[key]:
                    with suppress(BrokerError, TimeoutError):
                        async with asyncio.timeout(BARRIER_WITHIN):
                            await self._presence.announce()
                            await self._catch_up(self._partition)
            finally:
                self._leaving[key] -= 1
                sinks.remove(sink)
                if not sinks:
                    self._serving.pop(key, None)
                    self._leaving.pop(key, None)
                self._beat_now.set()

    @asynccontextmanager
    async def listen(self, address: str, sink: Sink) -> AsyncIterator[None]:
        """Take what is broadcast."""
        sinks = self._listening.setdefault(address, [])
        sinks.append(sink)
        try:
            yield
        finally:
            sinks.remove(sink)
            if not sinks:
                self._listening.pop(address, None)
