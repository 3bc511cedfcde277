"""Who is alive and serves what.

A node's announcement says all that it serves. It is repeated as a sign of life, and each other
node answers the first of a kind, so that whoever begins or ends to serve knows that all know it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson

from brokers.kafka._frames_topic import KIND, TOKEN, TOPIC
from brokers.kafka._outbox import Outbox
from brokers.kafka._producer import Producer
from mesh.errors import BrokerError

__all__ = ["ALIVE_FOR", "Presence"]

BEAT_INTERVAL = 2.0
ALIVE_FOR = 7.0
OVERDUE_AFTER = 2.5
SEEN_WITHIN = 0.4


class _Node:
    __slots__ = ("heard_at", "partition", "served")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.served: list[tuple[str, str]] = []
        self.heard_at = 0


class Presence:
    """The nodes that this one knows, and what it says of itself."""

    def __init__(
        self,
        node: str,
        partition: int,
        producer: Producer,
        outbox: Outbox,
        served: Callable[[], list[tuple[str, str]]],
        beat_now: asyncio.Event,
    ) -> None:
        """Prepare.

        Args:
            node: This node.
            partition: Where it reads what is sent to it.
            producer: Stores announcements.
            outbox: Sends answers to those of others.
            served: Tells addresses and groups that are served here.
            beat_now: Set to give a sign of life at once.
        """
        self._node = node
        self._partition = partition
        self._producer = producer
        self._outbox = outbox
        self._served = served
        self._beat_now = beat_now
        self._nodes: dict[str, _Node] = {}
        self._now = 0
        self._heard = asyncio.Event()  # Something, of whomever: time has passed.
        self._routes: dict[str, dict[str, list[str]]] = {}
        self._turns = itertools.count()
        self._numbers = itertools.count(1)
        self._announced: dict[int, asyncio.Future[set[str]]] = {}
        self._seen: dict[int, set[str]] = {}
        self._seen_changed = asyncio.Event()

    # Who serves what

    def targets(self, address: str) -> list[tuple[str, str]]:
        """Choose one node of each group that serves an address; give groups and nodes."""
        groups = self._routes.get(address)
        if not groups:
            return []
        found = []
        turn = next(self._turns)
        for group, nodes in groups.items():
            if alive := [node for node in nodes if self._is_alive(node)]:
                found.append((group, alive[turn % len(alive)]))
        return found

    async def until_sure(self, address: str) -> None:
        """Wait while the only node that serves an address is overdue with its sign of life, and not forgotten yet.

        It may be dead: what is sent to it then is read by nobody, and its sender cannot tell that from a node that is
        slow. What is held back has certainly not run, and goes elsewhere.
        """
        while self._is_overdue(address):
            self._heard.clear()
            await self._heard.wait()

    def _is_overdue(self, address: str) -> bool:
        alive = [node for nodes in self._routes.get(address, {}).values() for node in nodes if self._is_alive(node)]
        return len(alive) == 1 and self._nodes[alive[0]].heard_at <= self._now - OVERDUE_AFTER * 1000

    def another(self, address: str, group: str) -> str | None:
        """Choose another node of a group that serves an address; None when there is none."""
        others = [n for n in self._routes.get(address, {}).get(group, ()) if n != self._node and self._is_alive(n)]
        return others[next(self._turns) % len(others)] if others else None

    def partition_of(self, node: str) -> int:
        """Tell where a node reads what is sent to it."""
        return self._nodes[node].partition

    def _is_alive(self, node: str) -> bool:
        found = self._nodes.get(node)
        return found is not None and found.heard_at > self._now - ALIVE_FOR * 1000

    def _find_routes(self) -> None:
        routes: dict[str, dict[str, list[str]]] = {}
        for name, node in self._nodes.items():
            for address, group in node.served:
                routes.setdefault(address, {}).setdefault(group, []).append(name)
        self._routes = routes

    # What others say

    def take_time(self, timestamp: int) -> None:
        """Take the brokers' time."""
        self._now = max(self._now, timestamp)
        self._heard.set()

    def take_node(self, said: dict[str, Any], timestamp: int) -> None:
        """Take a node's announcement, and answer it if it asks for that."""
        name, partition = str(said["n"]), int(said["p"])
        served = [(str(address), str(group)) for address, group in said["s"]]
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = _Node(partition)
        node.heard_at = timestamp
        if served != node.served:
            node.served = served
            self._find_routes()
        number = said.get("q")
        if number is None:
            return
        if name == self._node:
            known = {other for other in self._nodes if other != name and self._is_alive(other)}
            waiting = self._announced.get(number)
            if waiting is not None and not waiting.done():
                waiting.set_result(known)
        else:
            answer = [(KIND, b"seen"), (TOKEN, f"{number} {self._node}".encode())]
            self._outbox.put(node.partition, name.encode(), b"", answer)

    def take_bye(self, node: str) -> None:
        """Forget a node that goes."""
        self._nodes.pop(node, None)
        self._find_routes()
        self._seen_changed.set()

    def take_seen(self, number: int, node: str) -> None:
        """Note that a node knows an announcement of this one."""
        if number in self._seen:
            self._seen[number].add(node)
            self._seen_changed.set()

    # What this node says

    def _state(self, number: int | None) -> bytes:
        said = {"n": self._node, "p": self._partition, "s": self._served()}
        return orjson.dumps(said if number is None else {**said, "q": number})

    async def announce(self) -> None:
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

    async def run(self) -> None:
        """Give signs of life, and forget who gives none, for ever."""
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
