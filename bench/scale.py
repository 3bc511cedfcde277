"""``python -m bench.scale``: what meshes of many nodes cost while they idle, start, and lose a server of three.

Nodes of the product (``bench/crowd.py``) on real servers of NATS, which count by themselves what they get and send.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from bench import processes
from bench.crowd import Shape
from bench.measure import note
from bench.processes import Peer, Process, Stage, free_port
from mesh.trust.folder import Folder

SIZES = (100, 300, 1000, 3000)
SHAPES = {
    "each its own application": {},
    "ten of each application": {"instances": 10},
    "each hosts an actor type": {"actors": "own"},
    "with identities": {"trust": "yes"},
}
WORKERS = 2
SETTLE_SECONDS = 12.0
IDLE_SECONDS = 62.0  # What is done once a minute is in it.
LOST = 1000
CALLS_PER_SECOND = 100.0
HEAVY_SECONDS = 550.0


@dataclass(frozen=True)
class Counted:
    """What servers of NATS count, all together."""

    at: float
    received: int
    received_bytes: int
    sent: int
    sent_bytes: int
    subscriptions: int
    memory: int

    @classmethod
    async def now(cls, ports: Sequence[int]) -> Counted:
        """Ask them."""
        told = [await _told(port, "varz") for port in ports]
        names = "in_msgs", "in_bytes", "out_msgs", "out_bytes", "subscriptions", "mem"
        return cls(time.monotonic(), *(sum(each[name] for each in told) for name in names))


async def _told(port: int, what: str) -> dict[str, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /{what} HTTP/1.0\r\n\r\n".encode())
    found: dict[str, int] = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    return found


@asynccontextmanager
async def crowds(stage: Stage, options: Mapping[str, object], backbone: str = "") -> AsyncIterator[list[Peer]]:
    """Start the processes for nodes."""
    shape = Shape(backbone or stage.nats_url, of=WORKERS, **options)  # type: ignore[arg-type]
    if shape.trust:
        folder = stage.directory / "trust"
        Folder(folder).init("public")
        shape = replace(shape, trust=str(folder))
    found = []
    for index in range(shape.of):
        command = [sys.executable, "-m", "bench.crowd", replace(shape, index=index).as_json()]
        found.append(await stage._start(Peer, f"crowd-{index}", command))
        await found[-1].told()
    yield found


async def ask_all(peers: Sequence[Peer], **question: object) -> list[dict[str, object]]:
    """Ask each process the same."""
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(peer.ask(**question)) for peer in peers]
    return [each.result() for each in asked]


def total(what: str, told: Sequence[dict[str, object]]) -> float:
    """Add up what processes told."""
    return sum(float(str(each[what])) for each in told)


def _all(what: str, told: Sequence[dict[str, object]]) -> list[float]:
    return sorted(one for each in told for one in each[what])  # type: ignore[attr-defined]


async def idle(size: int, options: dict[str, object], seconds: float) -> str:
    """Give a row of what an idle mesh costs."""
    port = free_port()
    async with Stage("-m", str(port)) as stage, crowds(stage, options) as peers:
        empty = total("bytes", await ask_all(peers, do="held"))
        begun = await Counted.now([port])
        await ask_all(peers, do="grow", count=size // WORKERS)
        started = await Counted.now([port])
        await ask_all(peers, do="settled")
        await asyncio.sleep(SETTLE_SECONDS)
        held, before, cpu = await ask_all(peers, do="held"), await Counted.now([port]), stage.broker.cpu()
        await asyncio.sleep(seconds)
        after, cpu = await Counted.now([port]), stage.broker.cpu() - cpu
        now = await ask_all(peers, do="held")
    a = after.at - before.at
    figures = (
        f"{(after.received - before.received) / a / size:.2f}",
        f"{(after.received_bytes - before.received_bytes) / a / size:.0f}",
        f"{(after.sent - before.sent) / a / size:.2f}",
        f"{(after.sent_bytes - before.sent_bytes) / a / size:.0f}",
        f"{(total('cpu', now) - total('cpu', held)) / a / size * 1000:.2f}",
        f"{(total('bytes', now) - empty) / size / 1000:.0f}",
        f"{(started.sent - begun.sent) / size:.0f}",
        f"{after.subscriptions / size:.0f}",
        f"{after.memory / 1e6:.0f}",
        f"{100 * cpu / a:.0f} %",
    )
    return f"| {size} | {' | '.join(figures)} |"


HEAD = (
    "| nodes | a node sends, messages/s | bytes/s | it gets, messages/s | bytes/s | CPU of a node, ms/s | kB a node "
    "| it got at its start, messages | subscriptions | broker, MB | broker, of a core |\n" + "| --- " * 11 + "|"
)


async def _kernel(peers: Sequence[Peer]) -> tuple[float, int, int]:
    """Give the time, and the bytes that these processes have sent and received over their open connections."""
    command = await asyncio.create_subprocess_exec("ss", "-tniHp", stdout=asyncio.subprocess.PIPE)
    text = (await command.communicate())[0].decode()
    sent = received = 0
    for connection, told in itertools.pairwise(text.splitlines()):
        if any(f"pid={peer.pid}," in connection for peer in peers):
            sent += int((re.search(r"bytes_sent:(\d+)", told) or [0, 0])[1])
            received += int((re.search(r"bytes_received:(\d+)", told) or [0, 0])[1])
    return time.monotonic(), sent, received


async def elsewhere(name: str, size: int, seconds: float) -> str:
    """Give a row of what an idle mesh costs on another broker, by what the kernel counts."""
    async with Stage() as stage, stage.server(name) as url, crowds(stage, {"at_once": 5}, url) as peers:
        began = time.monotonic()
        await ask_all(peers, do="grow", count=size // WORKERS)
        took = time.monotonic() - began
        await ask_all(peers, do="settled")
        start = (await _kernel(peers))[2]
        await asyncio.sleep(SETTLE_SECONDS)
        before = await _kernel(peers)
        await asyncio.sleep(seconds)
        after = await _kernel(peers)
    each = (after[0] - before[0]) * size
    rates = f"{(after[1] - before[1]) / each:.0f} | {(after[2] - before[2]) / each:.0f}"
    return f"| {name} | {size} | {rates} | {start / size / 1000:.0f} | {took:.0f} |"


ELSEWHERE = (
    "| broker | nodes | a node sends, bytes/s | it gets, bytes/s | it got at its start, kB | start of all, s |\n"
    + "| --- " * 6
    + "|"
)


async def start_at_once(size: int) -> None:
    """Start all nodes together, and tell how long that took."""
    port = free_port()
    async with Stage("-m", str(port)) as stage, crowds(stage, {"at_once": size}) as peers:
        before, began = await Counted.now([port]), time.monotonic()
        told = await ask_all(peers, do="grow", count=size // WORKERS)
        took = _all("took", told)
        seconds, after = time.monotonic() - began, await Counted.now([port])
    print(
        f"\n{size} nodes at once: all served after {seconds:.0f} s, half after {statistics.median(took):.0f} s; "
        f"{total('again', told):.0f} had to begin again. The broker got "
        f"{(after.received - before.received) / size:.0f} messages of each node, and sent it "
        f"{(after.sent - before.sent) / size:.0f}. {load()}"
    )


def load() -> str:
    """Say what else the machine does."""
    return f"Load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores."


class Cluster:
    """Three servers."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.ports = [free_port() for _ in range(3)]
        self.monitors = [free_port() for _ in range(3)]
        routes = [free_port() for _ in range(3)]
        self._routes = ",".join(f"nats://127.0.0.1:{port}" for port in routes)
        self._own = routes
        self.servers: list[Process] = []

    @property
    def url(self) -> str:
        """All of them."""
        return f"nats://{','.join(f'127.0.0.1:{port}' for port in self.ports)}?replicas=3"

    async def start(self, number: int) -> None:
        """Start one."""
        binary = str(Path(sys.executable).parent / "nats-server")
        store = str(self._stage.directory / f"store-{number}")
        own = [binary, "-js", "-sd", store, "-a", "127.0.0.1", "-p", str(self.ports[number]), "-n", f"n{number}"]
        own += ["-m", str(self.monitors[number]), "--cluster_name", "mesh", "--routes", self._routes]
        own += ["--cluster", f"nats://127.0.0.1:{self._own[number]}"]
        self.servers.append(await self._stage._start(Process, f"nats-{number}", own))

    async def formed(self) -> None:
        """Wait until it has a leader."""
        while True:
            found = await asyncio.gather(*(_told(port, "jsz") for port in self.monitors), return_exceptions=True)  # noqa: TID251
            if all(isinstance(each, dict) and each.get("meta_cluster", {}).get("leader") for each in found):  # type: ignore[attr-defined]
                return
            await asyncio.sleep(0.2)


async def lose_one(size: int) -> None:
    """Kill one of three servers with so many nodes, while they call each other."""
    async with Stage() as stage, AsyncExitStack() as stack:
        cluster = Cluster(stage)
        for number in range(3):
            await cluster.start(number)
        await cluster.formed()
        peers = await stack.enter_async_context(crowds(stage, {"topics": 0, "at_once": 10}, cluster.url))
        await ask_all(peers, do="grow", count=size // WORKERS)
        await ask_all(peers, do="settled")
        connected = [(await _told(port, "varz"))["connections"] for port in cluster.monitors]
        seconds = 40.0
        await ask_all(peers, do="call", total=size, per_second=CALLS_PER_SECOND / WORKERS, seconds=seconds)
        await asyncio.sleep(5.0)
        killed = time.monotonic()
        cluster.servers[0]._process.kill()
        while True:
            back = total("count", await ask_all(peers, do="connected"))
            if back >= size:
                break
        again = time.monotonic() - killed
        told = await ask_all(peers, do="called")
    made, failed, took = total("made", told), [one for each in told for one in each["failed"]], _all("seconds", told)  # type: ignore[attr-defined]
    print(
        f"\n{size} nodes on three servers, {connected[0]} on the one that was killed: all connected again after "
        f"{again:.1f} s. Of {made:.0f} calls, {CALLS_PER_SECOND:g} a second, {len(failed)} failed, and the longest "
        f"took {took[-1]:.1f} s. {load()}"
    )
    for each in sorted(set(failed))[:5]:
        print(f"  {failed.count(each)} × {each[:200]}")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser("python -m bench.scale", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=SIZES, help="sizes of the mesh")
    parser.add_argument("--shape", choices=SHAPES, default=next(iter(SHAPES)), help="what the nodes are like")
    parser.add_argument(
        "--broker", choices=("redis", "rabbitmq", "kafka"), help="another broker; counted by the kernel"
    )
    parser.add_argument("--seconds", type=float, default=IDLE_SECONDS, help="how long each is looked at")
    parser.add_argument("--start", type=int, default=0, help="start so many at once")
    parser.add_argument("--lose", type=int, default=0, help="kill a server of three with so many nodes")
    found = parser.parse_args()
    processes.ASK_SECONDS = HEAVY_SECONDS
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if found.broker:
        print(f"\n{ELSEWHERE}")
        for size in found.nodes:
            print(uvloop.run(elsewhere(found.broker, size, found.seconds)), flush=True)
        return
    if found.nodes:
        print(f"\n{found.shape}\n\n{HEAD}")
    for size in found.nodes:
        note(f"{size} nodes …")
        print(uvloop.run(idle(size, dict(SHAPES[found.shape]), found.seconds)), flush=True)
    if found.start:
        uvloop.run(start_at_once(found.start))
    if found.lose:
        uvloop.run(lose_one(found.lose))


if __name__ == "__main__":
    main()
