"""``python -m bench.presence``: what presence costs in meshes of many nodes, and what a rolling restart of one fails.

The nodes are those of the product without HTTP: a connection to NATS, an exchange and a directory each, some hundred to
a process. What the broker sent is its own count.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import time
import tracemalloc
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop

from bench.measure import note
from bench.processes import Peer, Stage, free_port
from brokers.nats.broker import NatsBroker
from mesh import address
from mesh.broker import Message
from mesh.calls.exchange import Exchange, Request
from mesh.errors import NoResponderError
from mesh.node.directory import SIGN_INTERVAL, Directory

NAMESPACE = "bench"
SIZES = (20, 40, 80, 160, 320, 640)
WORKERS = 4
IDLE_SECONDS = 30.0
CHURN_NODES = 320
CHURN_SECONDS = 45.0
CALLS_PER_SECOND = 50.0  # By each process, from a node of its own to any.
DOWN_SECONDS = 0.5
CALL_SECONDS = 60.0
RETRY_SECONDS = 1.0
MISSING = "nobody"


class _Node:
    """A node that serves one application."""

    def __init__(self, url: str, number: int) -> None:
        self._url = url
        self.app_id = f"app-{number}"
        self._stack = AsyncExitStack()
        self.calls: set[asyncio.Task[None]] = set()
        self.exchange: Exchange
        self.directory: Directory

    async def start(self) -> None:
        enter = self._stack.enter_async_context
        self.exchange = await enter(Exchange(await enter(NatsBroker.from_url(self._url))))
        self.directory = Directory(self.exchange, NAMESPACE)
        await enter(self.directory.run())
        self.directory.host(self.app_id, ready=False)
        await enter(self.exchange.serve(address.app(NAMESPACE, self.app_id), self.app_id, self._answer))
        self.directory.host(self.app_id, ready=True)
        self._stack.callback(self.directory.host, self.app_id, ready=False)

    async def _answer(self, request: Request) -> None:
        await request.reply({}, b"")

    async def finish(self) -> None:
        """Wait for its own calls."""
        if self.calls:
            await asyncio.wait(self.calls)

    async def stop(self) -> None:
        await self._stack.aclose()
        self._stack = AsyncExitStack()

    async def call(self, app_id: str) -> bool:
        """Call as the building block does; tell whether it was answered."""
        deadline = time.time() + CALL_SECONDS
        while True:
            try:
                await self.exchange.request(address.app(NAMESPACE, app_id), Message({}, b""), deadline)
                self.directory.saw(app_id)
                return True
            except NoResponderError:
                if not await self.directory.was_seen(app_id, deadline):
                    return False
            try:
                async with asyncio.timeout(RETRY_SECONDS):
                    await self.directory.until_news(app_id)
            except TimeoutError:
                continue


class _Worker:
    """Some nodes of a mesh, and calls from them."""

    def __init__(self, url: str, index: int) -> None:
        self._url = url
        self._index = index
        self.nodes: list[_Node] = []
        self._down = ""
        self._calls = 0
        self._calls_to_down = 0
        self._failed: list[str] = []
        self._seconds: list[float] = []
        self._missing: list[float] = []

    async def grow(self, count: int) -> dict[str, object]:
        """Start nodes until there are so many, and wait until each has a keeper."""
        while len(self.nodes) < count:
            node = _Node(self._url, self._index + WORKERS * len(self.nodes))
            await node.start()
            self.nodes.append(node)
        while not all(node.directory._keeper for node in self.nodes):
            await asyncio.sleep(0.1)
        return {}

    async def held(self) -> dict[str, object]:
        """Give what this process has allocated, and of how many applications its nodes know."""
        gc.collect()
        return {
            "bytes": tracemalloc.get_traced_memory()[0],
            "known": sum(len(node.directory._seen) for node in self.nodes),
        }

    async def churn(self, total: int, seconds: float) -> dict[str, object]:
        """Restart one node after another. Any of them call any other, half of the time the one that is away."""
        until = time.monotonic() + seconds
        away: list[float] = []
        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(self._call_all_the_time(tasks, total))
            while time.monotonic() < until:
                node = self.nodes.pop(0)
                await node.finish()
                began, self._down = time.monotonic(), node.app_id
                await node.stop()
                await asyncio.sleep(DOWN_SECONDS)
                await node.start()
                self.nodes.append(node)
                away.append(time.monotonic() - began)
            calling.cancel()
        return {
            "away": away,
            "calls": self._calls,
            "to_down": self._calls_to_down,
            "failed": self._failed,
            "seconds": self._seconds,
            "missing": self._missing,
        }

    async def _call_all_the_time(self, tasks: asyncio.TaskGroup, total: int) -> None:
        due = time.monotonic()
        for number in range(sys.maxsize):
            due += 1 / CALLS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            node = random.choice(self.nodes)
            app_id = MISSING if number % 50 == 0 else self._down if number % 2 else f"app-{random.randrange(total)}"
            self._calls_to_down += app_id == self._down
            task = tasks.create_task(self._call(node, app_id))
            node.calls.add(task)
            task.add_done_callback(node.calls.discard)

    async def _call(self, node: _Node, app_id: str) -> None:
        began = time.monotonic()
        answered = await node.call(app_id)
        took = time.monotonic() - began
        if app_id == MISSING:
            self._missing.append(took)
        else:
            self._calls += 1
            self._seconds.append(took)
            if not answered:
                self._failed.append(app_id)


async def _work(url: str, index: int) -> None:
    tracemalloc.start()
    worker = _Worker(url, index)
    print(json.dumps({}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        print(json.dumps(await getattr(worker, asked.pop("do"))(**asked)), flush=True)
    for node in worker.nodes:
        await node.stop()


@dataclass(frozen=True)
class _Sent:
    """What the broker counts."""

    at: float
    bytes: int
    messages: int

    @classmethod
    async def now(cls, port: int) -> _Sent:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /varz HTTP/1.0\r\n\r\n")
        found = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        writer.close()
        return cls(time.monotonic(), found["out_bytes"], found["out_msgs"])

    def per_second(self, later: _Sent) -> tuple[float, float]:
        """Give kB and messages per second between two."""
        seconds = later.at - self.at
        return (later.bytes - self.bytes) / seconds / 1000, (later.messages - self.messages) / seconds


async def _workers(stage: Stage) -> list[Peer]:
    found = []
    for index in range(WORKERS):
        given = [sys.executable, "-m", "bench.presence", "--worker", stage.nats_url, str(index)]
        peer = await stage._start(Peer, f"nodes-{index}", given)
        await peer.told()
        found.append(peer)
    return found


async def _all(peers: list[Peer], **question: object) -> list[dict[str, object]]:
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(peer.ask(**question)) for peer in peers]
    return [each.result() for each in asked]


def _sum(what: str, told: list[dict[str, object]]) -> int:
    return sum(int(str(each[what])) for each in told)


async def _idle(sizes: list[int]) -> None:
    port = free_port()
    async with Stage("-m", str(port)) as stage:
        peers = await _workers(stage)
        empty = _sum("bytes", await _all(peers, do="held"))
        print("| nodes | broker sends, kB/s | messages/s | a node gets, messages/s | a node knows | kB a node |")
        print("| --- | --- | --- | --- | --- | --- |")
        for size in sizes:
            await _all(peers, do="grow", count=size // WORKERS)
            await asyncio.sleep(SIGN_INTERVAL)
            before = await _Sent.now(port)
            await asyncio.sleep(IDLE_SECONDS)
            kilobytes, messages = before.per_second(await _Sent.now(port))
            told = await _all(peers, do="held")
            memory, known = (_sum("bytes", told) - empty) / size / 1000, _sum("known", told) / size
            row = f"| {size} | {kilobytes:.1f} | {messages:.0f} | {messages / size:.2f} | {known:.1f} | {memory:.0f} |"
            print(row, flush=True)


async def _churn(nodes: int) -> None:
    port = free_port()
    async with Stage("-m", str(port)) as stage:
        peers = await _workers(stage)
        await _all(peers, do="grow", count=nodes // WORKERS)
        before = await _Sent.now(port)
        told = await _all(peers, do="churn", total=nodes, seconds=CHURN_SECONDS)
        kilobytes, messages = before.per_second(await _Sent.now(port))
    calls, to_down = (_sum(what, told) for what in ("calls", "to_down"))
    away, failed, seconds, missing = (
        [one for each in told for one in each[what]]  # type: ignore[attr-defined]
        for what in ("away", "failed", "seconds", "missing")
    )
    print(f"\n{nodes} nodes, {len(away)} restarts in {CHURN_SECONDS:g} s, {calls} calls: {len(failed)} failed")
    print(f"{to_down} of them to one that was away, for {statistics.median(away):.2f} s, at most {max(away):.2f} s")
    print(f"the longest call took {max(seconds):.2f} s")
    print(f"{len(missing)} calls to nobody: {1000 * statistics.median(missing):.1f} ms, at most {max(missing):.2f} s")
    print(f"the broker sent {kilobytes:.0f} kB/s, {messages:.0f} messages/s")


def main() -> None:
    """Measure, or be some of the nodes."""
    parser = argparse.ArgumentParser("python -m bench.presence", description=__doc__)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES, help="sizes of the mesh, rising")
    parser.add_argument("--churn", type=int, default=CHURN_NODES, help="nodes of the rolling restart; 0 for none")
    found = parser.parse_args()
    if found.worker:
        uvloop.run(_work(found.worker[0], int(found.worker[1])))
        return
    note("presence …")
    if found.nodes:
        uvloop.run(_idle(found.nodes))
    if found.churn:
        uvloop.run(_churn(found.churn))


if __name__ == "__main__":
    main()
