"""Frames between live nodes, and who is alive and serves what.

One topic for all nodes of a cluster. Partition 0 is read by every node: broadcasts, and the nodes'
own announcements. Every node reads one of the others, too, which it may share: its inbox.

A node's announcement says all that it serves. It is repeated as a sign of life, and each other
node answers the first of a kind, so that whoever begins or ends to serve knows that all know it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson
from aiokafka import errors as kafka
from aiokafka.protocol.produce import ProduceRequest

from brokers.kafka._background import Background
from brokers.kafka._cluster import LATEST, RETRY_WAIT, Cluster, error_of
from brokers.kafka._producer import Producer
from brokers.kafka._records import fetch_request, fetched, new_batch, records
from mesh.broker import Frame, Message, Sink
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["Frames"]

logger = logging.getLogger("brokers.kafka")

TOPIC = "mesh.frames"
INBOXES = 32
TOPIC_SETTINGS = {
    "retention.ms": "120000",
    "segment.ms": "120000",
    "segment.bytes": str(64 * 1024 * 1024),
    "message.timestamp.type": "LogAppendTime",
}
BEAT_INTERVAL = 2.0
ALIVE_FOR = 7.0
HISTORY = ALIVE_FOR + 30.0  # Clocks differ.
SEEN_WITHIN = 0.4
BARRIER_WITHIN = 1.0
FETCH_WAIT = 0.5
MAX_WAITING_BYTES = 4 * 1024 * 1024
MAX_NOTES = 20_000
MAX_HOPS = 4

# Our own headers hold a colon, which no header of a message can.
TOKEN, REPLY, SERVED, KIND, HOPS = ":t", ":r", ":a", ":k", ":h"
Headers = list[tuple[str, bytes]]


class _Node:
    __slots__ = ("heard_at", "partition", "served")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.served: list[tuple[str, str]] = []
        self.heard_at = 0


class Frames:
    """This node's part in it."""

    def __init__(self, cluster: Cluster, producer: Producer) -> None:
        self._cluster = cluster
        self._producer = producer
        self.node = secrets.token_hex(8)
        self._key = self.node.encode()
        self._partition = 1 + zlib.crc32(self._key) % INBOXES
        self.inbox = f"{self._partition}-{self.node}"
        self.sink: Sink | None = None
        self._out_purpose = cluster.purpose("frames-out")
        self._in_purpose = cluster.purpose("frames-in")
        self._positions: dict[int, int] = {}
        self._moved = asyncio.Event()
        self._serving: dict[tuple[str, str], list[Sink]] = {}
        self._leaving: dict[tuple[str, str], int] = {}
        self._listening: dict[str, list[Sink]] = {}
        self._nodes: dict[str, _Node] = {}
        self._now = 0
        self._routes: dict[str, dict[str, list[str]]] = {}
        self._turns = itertools.count()
        self._numbers = itertools.count(1)
        self._announced: dict[int, asyncio.Future[set[str]]] = {}
        self._seen: dict[int, set[str]] = {}
        self._seen_changed = asyncio.Event()
        self._waiting: list[tuple[int, bytes, bytes, Headers]] = []
        self._waiting_bytes = 0
        self._written = asyncio.Event()
        self._wake = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._connected = False
        self.notes: OrderedDict[tuple[str, int, int], dict[str, Any]] = OrderedDict()
        self.hear: dict[str, set[Callable[[dict[str, Any]], None]]] = {}

    # Start and end

    async def open(self, tasks: Background) -> None:
        """Begin to read; returns when everybody alive is known."""
        settings = dict(TOPIC_SETTINGS)
        await self._cluster.create(TOPIC, 1 + INBOXES, settings, min(3, len(self._cluster.nodes())))
        since = int((time.time() - HISTORY) * 1000)
        found = await self._cluster.offsets(TOPIC, {0: since, self._partition: LATEST})
        if found[0] < 0:
            found |= await self._cluster.offsets(TOPIC, {0: LATEST})
        self._positions = found
        await self._connect_out()
        for partition in found:
            tasks.create_task(self._read(partition), name="kafka-frames-in")
        tasks.create_task(self._write(), name="kafka-frames-out")
        await self._announce()
        await self._catch_up(0)
        tasks.create_task(self._beat(), name="kafka-frames-beat")

    async def close(self) -> None:
        """Say that this node goes."""
        if self._connected:
            with suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._producer.add(TOPIC, 0, b"bye", self._key, [])

    def _leader(self, partition: int) -> int:
        leader = self._cluster.leader(TOPIC, partition)
        if leader is None:
            raise self._cluster.unavailable()
        return leader

    # Writing: at most once, so nothing is sent a second time

    async def _connect_out(self) -> None:
        for leader in self._cluster.nodes():
            await self._cluster.connection(leader, self._out_purpose)
        self._connected = True

    def _put(self, partition: int, key: bytes, body: bytes, headers: Headers) -> None:
        self._waiting.append((partition, key, body, headers))
        self._waiting_bytes += len(body)
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            waiting, self._waiting = self._waiting, []
            size, self._waiting_bytes = self._waiting_bytes, 0
            try:
                if waiting:
                    await self._send_out(waiting)
                elif not self._alive():
                    raise self._cluster.unavailable()
            except (BrokerUnavailableError, OSError, kafka.KafkaError, TimeoutError):
                self._connected = False
                await self._cluster.drop(self._out_purpose)
                await self._reconnect()
            if size:
                self._written.set()

    def _alive(self) -> bool:
        return all(self._cluster.connected(node, self._out_purpose) for node in self._cluster.nodes())

    async def _reconnect(self) -> None:
        while True:
            try:
                await self._cluster.refresh(TOPIC)
                await self._connect_out()
            except BrokerUnavailableError:
                await asyncio.sleep(RETRY_WAIT)
            else:
                self._beat_now.set()
                return

    async def _send_out(self, waiting: list[tuple[int, bytes, bytes, Headers]]) -> None:
        while waiting:
            batches: dict[int, Any] = {}
            counts: dict[int, int] = {}
            left: list[tuple[int, bytes, bytes, Headers]] = []
            full: set[int] = set()
            for item in waiting:
                partition, key, body, headers = item
                batch = batches.get(partition)
                if batch is None:
                    batch = batches[partition] = new_batch()
                    counts[partition] = 0
                if partition in full or batch.append(counts[partition], None, key, body, headers) is None:
                    full.add(partition)
                    left.append(item)
                else:
                    counts[partition] += 1
            waiting = left
            by_leader: dict[int, list[tuple[int, Any]]] = {}
            for partition, batch in batches.items():
                by_leader.setdefault(self._leader(partition), []).append((partition, batch.build()))
            for leader, parts in by_leader.items():
                connection = self._cluster.connected(leader, self._out_purpose)
                if connection is None:
                    raise self._cluster.unavailable()
                async with asyncio.timeout(self._cluster.config.request_timeout):
                    await connection.send(ProduceRequest(None, 0, 10_000, [(TOPIC, parts)]), expect_response=False)

    async def _post(self, partition: int, key: bytes, body: bytes, headers: Headers) -> None:
        """Write a frame; waits while too much waits."""
        if not self._connected or not self._alive():
            self._wake.set()
            raise self._cluster.unavailable()
        self._put(partition, key, body, headers)
        while self._waiting_bytes > MAX_WAITING_BYTES:
            self._written.clear()
            await self._written.wait()

    async def send(self, inbox: str, token: str, message: Message, reply_to: str) -> None:
        """Send to a node's inbox."""
        partition, _, node = inbox.partition("-")
        await self._post(int(partition), node.encode(), message.body, _headers(message, reply_to, TOKEN, token))

    async def send_to_served(self, address: str, message: Message, reply_to: str) -> None:
        """Send to one member of each group that serves an address."""
        targets = self._targets(address)
        if not targets and self._connected and await self._catch_up(0):
            targets = self._targets(address)
        if not targets:
            if not self._connected or not self._alive():
                self._wake.set()
                raise self._cluster.unavailable()
            if reply_to and self.sink is not None:
                asyncio.get_running_loop().call_soon(self.sink, Frame(None, reply_to.partition(".")[2], ""))
            return
        for group, node in targets:
            headers = _headers(message, reply_to, SERVED, f"{address} {group}")
            await self._post(self._nodes[node].partition, node.encode(), message.body, headers)

    def _targets(self, address: str) -> list[tuple[str, str]]:
        groups = self._routes.get(address)
        if not groups:
            return []
        found = []
        turn = next(self._turns)
        for group, nodes in groups.items():
            if alive := [node for node in nodes if self._is_alive(node)]:
                found.append((group, alive[turn % len(alive)]))
        return found

    def _is_alive(self, node: str) -> bool:
        found = self._nodes.get(node)
        return found is not None and found.heard_at > self._now - ALIVE_FOR * 1000

    async def broadcast(self, address: str, message: Message) -> None:
        """Send to every listener."""
        await self._post(0, b"cast", message.body, _headers(message, "", SERVED, address))

    # Reading

    async def _read(self, partition: int) -> None:
        """Read one partition, wherever it is led."""
        purpose = f"{self._in_purpose}-{partition}"
        while True:
            try:
                leader = self._leader(partition)
                request = fetch_request([(TOPIC, [(partition, self._positions[partition])])], FETCH_WAIT)
                response = await self._cluster.call(leader, request, purpose, wait=FETCH_WAIT)
                for _, _, code, raw in fetched(response):
                    if (failure := error_of(code)) is not None:
                        await self._recover(partition, failure)
                    elif raw:
                        found, position = records(raw, self._positions[partition])
                        for record in found:
                            self._take(partition, record)
                        self._positions[partition] = position
                        self._moved.set()
            except BrokerUnavailableError:
                self._wake.set()
                await asyncio.sleep(RETRY_WAIT)
                with suppress(BrokerUnavailableError):
                    await self._cluster.refresh(TOPIC)

    async def _recover(self, partition: int, failure: type[kafka.KafkaError]) -> None:
        if failure is kafka.OffsetOutOfRangeError:
            self._positions |= await self._cluster.offsets(TOPIC, {partition: LATEST})
        else:
            await asyncio.sleep(RETRY_WAIT)
            await self._cluster.refresh(TOPIC)

    def _take(self, partition: int, record: Any) -> None:
        try:
            if partition == 0:
                self._take_control(record)
            elif record.key == self._key:
                self._take_frame(record)
        except (ValueError, KeyError, IndexError):
            logger.warning("cannot read what another node sent in %s-%s", TOPIC, partition, exc_info=True)

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
            if int(number) in self._seen:
                self._seen[int(number)].add(node)
                self._seen_changed.set()
            return
        reply = own.get(REPLY, "")
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
        others = [n for n in self._routes.get(address, {}).get(group, ()) if n != self.node and self._is_alive(n)]
        if others and hops <= MAX_HOPS:
            node = others[next(self._turns) % len(others)]
            headers = _headers(message, reply, SERVED, f"{address} {group}")
            headers.append((HOPS, str(hops).encode()))
            self._put(self._nodes[node].partition, node.encode(), message.body, headers)
        elif reply:
            inbox, _, token = reply.partition(".")
            partition, _, node = inbox.partition("-")
            self._put(int(partition), node.encode(), b"", [(KIND, b"none"), (TOKEN, token.encode())])

    def _take_control(self, record: Any) -> None:
        self._now = max(self._now, record.timestamp)
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
            self._take_node(orjson.loads(record.value), record.timestamp)
        elif kind == b"bye":
            self._nodes.pop(record.value.decode(), None)
            self._find_routes()
            self._seen_changed.set()
        elif kind == b"note":
            note = orjson.loads(record.value)
            if "o" in note:
                self.notes[note["g"], note["p"], note["o"]] = note
                if len(self.notes) > MAX_NOTES:
                    self.notes.popitem(last=False)
            for hear in list(self.hear.get(note["g"], ())):
                hear(note)

    def _take_node(self, said: dict[str, Any], timestamp: int) -> None:
        name = said["n"]
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Node(said["p"])
        node.heard_at = timestamp
        served = [(address, group) for address, group in said["s"]]
        if served != node.served:
            node.served = served
            self._find_routes()
        number = said.get("q")
        if number is None:
            return
        if name == self.node:
            known = {other for other in self._nodes if other != name and self._is_alive(other)}
            waiting = self._announced.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_result(known)
        else:
            answer = [(KIND, b"seen"), (TOKEN, f"{number} {self.node}".encode())]
            self._put(node.partition, name.encode(), b"", answer)

    def _find_routes(self) -> None:
        routes: dict[str, dict[str, list[str]]] = {}
        for name, node in self._nodes.items():
            for address, group in node.served:
                routes.setdefault(address, {}).setdefault(group, []).append(name)
        self._routes = routes

    # Presence

    def _state(self, number: int | None) -> bytes:
        served = sorted({key for key in self._serving if len(self._serving[key]) > self._leaving.get(key, 0)})
        said = {"n": self.node, "p": self._partition, "s": served}
        return orjson.dumps(said if number is None else {**said, "q": number})

    async def _announce(self) -> None:
        """Say what this node serves; returns when every node alive knows it."""
        number = next(self._numbers)
        announced = self._announced[number] = asyncio.get_running_loop().create_future()
        seen = self._seen[number] = set()
        try:
            await self._producer.add(TOPIC, 0, b"node", self._state(number), [])
            known = await announced
            with suppress(TimeoutError):
                async with asyncio.timeout(SEEN_WITHIN):
                    while any(node in self._nodes for node in known - seen):
                        self._seen_changed.clear()
                        await self._seen_changed.wait()
        finally:
            del self._announced[number], self._seen[number]

    async def _beat(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_INTERVAL):
                    await self._beat_now.wait()
            self._beat_now.clear()
            gone = [name for name in self._nodes if not self._is_alive(name)]
            if gone:
                for name in gone:
                    del self._nodes[name]
                self._find_routes()
            with suppress(BrokerError):
                await self._producer.add(TOPIC, 0, b"node", self._state(None), [])

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

    @asynccontextmanager
    async def serve(self, address: str, group: str, sink: Sink) -> AsyncIterator[None]:
        """Take frames for an address."""
        key = (address, group)
        sinks = self._serving.setdefault(key, [])
        sinks.append(sink)
        try:
            await self._announce()
            yield
        finally:
            try:
                self._leaving[key] = self._leaving.get(key, 0) + 1
                if len(sinks) == self._leaving[key]:
                    with suppress(BrokerError, TimeoutError):
                        async with asyncio.timeout(BARRIER_WITHIN):
                            await self._announce()
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

    # Notes between the members of a group

    def tell(self, note: Mapping[str, Any]) -> None:
        """Tell every node something about a group; as good as the connection."""
        if self._connected:
            self._put(0, b"note", orjson.dumps(note), [])


def _headers(message: Message, reply_to: str, name: str, value: str) -> Headers:
    headers = [(each, text.encode()) for each, text in message.headers.items()]
    headers.append((name, value.encode()))
    if reply_to:
        headers.append((REPLY, reply_to.encode()))
    return headers
