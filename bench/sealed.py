"""What sealing costs: CPU of both sides for each call, sealed and only signed; ``python -m bench.sealed``.

The two sides are in this process, on the broker that is in memory, so what is measured is a call and nothing else. The
two ways take turns, in short rounds, and the best round of each counts: what else the machine does only slows one.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.broker import Message
from mesh.calls.exchange import PART_BYTES, Exchange, Request
from mesh.trust.folder import Folder
from mesh.trust.guard import Guard
from mesh.trust.identity import Identity, TrustSettings

SIZES = {"1 KB": (1024, 40, 200), "1 MB": (1024 * 1024, 2, 100)}
"""Bytes of a body each way, calls of a round, and rounds."""
NAMESPACE = "default"
HEADERS = {"ce-source": "shop", "mesh-http": '["POST","/order",[["content-type","application/json"]]]'}


async def _echo(request: Request) -> None:
    if not request.streamed:
        await request.reply(HEADERS, request.body)
        return
    await request.begin(HEADERS)
    async for part in request.parts():
        await request.write(part)
    await request.end()


class _Calls:
    """A caller and a callee."""

    def __init__(self, caller: Exchange, app_id: str) -> None:
        self._caller, self._to = caller, address.app(NAMESPACE, app_id)

    async def call(self, body: bytes) -> None:
        streamed = len(body) > PART_BYTES
        message = Message(HEADERS, b"" if streamed else body)
        reply = await self._caller.request(self._to, message, time.time() + 60, _parts(body) if streamed else None)
        size = sum([len(part) async for part in reply.parts()])
        assert size == len(body)

    async def spent(self, body: bytes, calls: int) -> float:
        """Give the microseconds of CPU for one call."""
        before = time.process_time_ns()
        for _ in range(calls):
            await self.call(body)
        return (time.process_time_ns() - before) / calls / 1000


async def _parts(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PART_BYTES):
        yield body[start : start + PART_BYTES]


@asynccontextmanager
async def _calls(folder: Folder, seal: bool) -> AsyncIterator[_Calls]:
    hub, app_id = MemoryHub(), "stock"
    async with AsyncExitStack() as stack:
        exchanges = []
        for name in ("shop", app_id):
            identity = Identity("public", NAMESPACE, name)
            guard = Guard(TrustSettings("strict", folder=folder.path, seal=seal))
            guard.take(folder.issue(identity), identity)
            broker = await stack.enter_async_context(MemoryBroker(hub))
            exchanges.append(await stack.enter_async_context(Exchange(broker, guard=guard)))
        await stack.enter_async_context(exchanges[1].serve(address.app(NAMESPACE, app_id), app_id, _echo))
        yield _Calls(exchanges[0], app_id)


async def main() -> None:
    """Measure, and print a table."""
    async with AsyncExitStack() as stack:
        folder = Folder(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "trust")
        folder.init("public")
        ways = {
            name: await stack.enter_async_context(_calls(folder, name == "sealed")) for name in ("sealed", "signed")
        }
        for title, (size, calls, rounds) in SIZES.items():
            found: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds + 1):
                for name, way in sorted(ways.items(), reverse=number % 2 == 0):
                    found[name] += [await way.spent(bytes(size), calls)] * (number > 0)  # The first warms up.
            sealed, signed = (min(found[name]) for name in ("sealed", "signed"))
            line = (
                f"{title} each way: {sealed:.0f} us sealed, {signed:.0f} us signed, {sealed - signed:+.0f} us for both"
            )
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    asyncio.run(main())
