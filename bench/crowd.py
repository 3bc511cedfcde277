"""``python -m bench.crowd WHAT``: many nodes of a mesh in one process, told by lines of JSON what to do.

The nodes are those of the product (``mesh/node/runtime.py``) over a real broker, each with a connection of its own.
What they lack is HTTP, and an application in another process: theirs answers from memory.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

from mesh.application import Headers, Kind
from mesh.blocks.invocation import INVOKE, Call
from mesh.errors import MeshError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Context, Operation
from mesh.registry import Registry
from mesh.resources.subscription import Subscription
from mesh.tap.wanted import Wanted
from mesh.trust.identity import TrustSettings

__all__ = ["Crowd", "Shape"]

NAMESPACE = "scale"
FILES = 65_536
CALL_SECONDS = 60.0
PAUSE = 0.05
MOST_TRIES = 20


@dataclass(frozen=True)
class Shape:
    """What the nodes of a mesh are like.

    Attributes:
        backbone: Its URL.
        index: Which process this is.
        of: How many processes there are.
        instances: How many nodes each application has, one after the other.
        actors: The actor type that each application hosts; ``own`` for one of its own, empty for none.
        topics: How many topics each application is subscribed to.
        trust: A folder with a root, for identities; empty for none.
        timeout: Seconds for which a node waits for the backbone at its start.
        at_once: How many nodes of a process start at the same time.
    """

    backbone: str
    index: int = 0
    of: int = 1
    instances: int = 1
    actors: str = ""
    topics: int = 1
    trust: str = ""
    timeout: float = 120.0
    at_once: int = 20

    def as_json(self) -> str:
        """Give it as ``main`` reads it."""
        return json.dumps(asdict(self))


class _Answer:
    """What an application answers."""

    status = 200
    trailers: Headers = ()

    def __init__(self, body: bytes) -> None:
        self.headers: Headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        self._body = body

    async def read_up_to(self, limit_bytes: int) -> bytes:
        return self._body

    async def parts(self) -> AsyncIterator[bytes]:
        yield self._body


class _App:
    """An application that is always there."""

    takes_grpc = False
    is_grpc = False
    kinds: frozenset[Kind] = frozenset({"event", "job"})

    def __init__(self, actors: Sequence[str]) -> None:
        self._config = json.dumps({"entities": actors}).encode()

    @asynccontextmanager
    async def call(self, method: str, target: str, headers: Headers, body: object) -> AsyncIterator[_Answer]:
        yield _Answer(self._config if target == "/dapr/config" else b"{}")

    async def post(self, path: str, headers: Headers, body: bytes, kind: Kind) -> tuple[int, bytes]:
        return 200, b""

    async def wants(self, name: str, path: str) -> bool:
        return False

    async def until_reachable(self) -> None:
        return

    async def until_unreachable(self) -> None:
        await asyncio.Event().wait()


class _Node:
    """One node, and its application."""

    def __init__(self, shape: Shape, number: int) -> None:
        app_id = f"app-{number // shape.instances}"
        self.app_id = app_id
        self._topics = [f"{app_id}-{each}" for each in range(shape.topics)]
        trust = TrustSettings("strict", folder=Path(shape.trust)) if shape.trust else None
        settings = NodeSettings(app_id, NAMESPACE, shape.backbone, backbone_timeout=shape.timeout, trust=trust)
        actors = [f"{app_id}-actor" if shape.actors == "own" else shape.actors] if shape.actors else []
        self._settings, self._app = settings, _App(actors)
        self._stack = AsyncExitStack()
        self.runtime: Runtime
        self.tries = 0

    async def start(self) -> None:
        """Start it; again, as whatever runs processes does, where the broker answered too late."""
        while True:
            self.tries += 1
            self.runtime = Runtime(self._settings, Registry())
            try:
                await self._stack.enter_async_context(self.runtime)
                break
            except MeshError:
                if self.tries == MOST_TRIES:
                    raise
            await asyncio.sleep(random.uniform(0.5, 1.5))
        await self._stack.enter_async_context(self.runtime.inbound(self._app, self._subscriptions))  # type: ignore[arg-type]
        while not self.runtime.serving:
            await asyncio.sleep(PAUSE)

    async def _subscriptions(self) -> Sequence[Subscription]:
        return [Subscription("", "pubsub", topic, default_path=f"/{topic}") for topic in self._topics]

    async def call(self, app_id: str, seconds: float) -> None:
        """Call an application; raises ``MeshError``."""
        context = Context(self.runtime.caller, time.time() + seconds)
        asked = Operation(INVOKE, app_id, Call("GET", "/", [], b""), context)
        async with await self.runtime.run(asked) as answer:  # type: ignore[attr-defined]
            if answer.body is None:
                async for _ in answer.parts():
                    pass


@dataclass
class _Calls:
    made: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Crowd:
    """The nodes of this process."""

    def __init__(self, shape: Shape, tasks: asyncio.TaskGroup) -> None:
        self._shape = shape
        self._tasks = tasks
        self._nodes: list[_Node] = []
        self._calls = _Calls()
        self._background: set[asyncio.Task[None]] = set()

    async def grow(self, count: int) -> dict[str, object]:
        """Start nodes until there are so many; gives what each took until its application was served."""
        shape, permits, took = self._shape, asyncio.Semaphore(self._shape.at_once), []

        async def start(node: _Node) -> None:
            async with permits:
                began = time.monotonic()
                await node.start()
                took.append(time.monotonic() - began)

        new = [_Node(shape, shape.index + shape.of * each) for each in range(len(self._nodes), count)]
        async with asyncio.TaskGroup() as tasks:
            for node in new:
                tasks.create_task(start(node))
        self._nodes += new
        return {"took": took, "again": sum(node.tries - 1 for node in new)}

    async def settled(self) -> dict[str, object]:
        """Wait until each node has a keeper."""
        while not all(node.runtime._directory._keeper for node in self._nodes):
            await asyncio.sleep(PAUSE)
        return {}

    async def held(self) -> dict[str, object]:
        """Give the resident bytes of this process, and the seconds of CPU that it has used."""
        gc.collect()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {"bytes": psutil.Process().memory_info().rss, "cpu": usage.ru_utime + usage.ru_stime}

    async def connected(self) -> dict[str, object]:
        """Count the nodes whose broker answers."""

        async def answers(node: _Node) -> bool:
            with suppress(MeshError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await node.runtime.broker.check()
                return True
            return False

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(answers(node)) for node in self._nodes]
        return {"count": sum(each.result() for each in asked)}

    async def call(self, total: int, per_second: float, seconds: float) -> dict[str, object]:
        """Begin to call: from one node after the other, each time another of all applications."""
        self._calls = _Calls()
        self._start(self._call_all_the_time(total, per_second, seconds))
        return {}

    async def _call_all_the_time(self, total: int, per_second: float, seconds: float) -> None:
        calls, began, number = self._calls, time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() < began + seconds:
                node = self._nodes[number % len(self._nodes)]
                callee = f"app-{(self._shape.index + 7 * number) % total // self._shape.instances}"
                tasks.create_task(self._call(calls, node, callee))
                number += 1
                await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))

    async def _call(self, calls: _Calls, node: _Node, callee: str) -> None:
        began = time.monotonic()
        calls.made += 1
        try:
            await node.call(callee, CALL_SECONDS)
        except MeshError as error:
            calls.failed.append(f"{type(error).__name__}: {error}")
        calls.seconds.append(time.monotonic() - began)

    async def called(self) -> dict[str, object]:
        """Wait for the calls' end, and tell of them."""
        if self._background:
            await asyncio.wait(self._background)
        return {"made": self._calls.made, "failed": self._calls.failed, "seconds": self._calls.seconds}

    async def tap(self, seconds: float) -> dict[str, object]:
        """Have one node watch all others for a while."""

        async def watch() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds), self._nodes[0].runtime.tap(Wanted()) as sights:
                    async for _ in sights:
                        pass

        self._start(watch())
        return {}

    async def list(self, seconds: float) -> dict[str, object]:
        """Ask all nodes what they do; gives how many have said so."""
        return {"count": len(await self._nodes[0].runtime._directory.nodes(seconds))}

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _work(shape: Shape) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(shape, tasks)
        print(json.dumps({}), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            print(json.dumps(await getattr(crowd, asked.pop("do"))(**asked)), flush=True)


def main() -> None:
    """Be told what to do, until nobody is there any more."""
    gc.set_threshold(10_000)
    uvloop.run(_work(Shape(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
