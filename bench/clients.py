"""The peers that use a client of ``bench.native``: one process per role.

========= ========================================================================================
role      does
========= ========================================================================================
both      publishes so many messages, 64 at once, then consumes them, 64 at once
publisher aiohttp's low-level server reads the body, publishes it and answers 204
consumer  consumes, and posts each message to the application with aiohttp before it is acked
========= ========================================================================================
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import sys
import time
from array import array
from collections.abc import Iterator, Mapping

import aiohttp
import uvloop
from aiohttp import web

from bench.bare import AppClient, Options, idle, serving
from bench.native import IN_FLIGHT, Client, client_of
from bench.peer import control

# Those of a gateway's event.
HEADERS = {
    "ce-specversion": "1.0",
    "ce-source": "publisher",
    "ce-type": "com.dapr.event.sent",
    "ce-datacontenttype": "application/json",
    "ce-time": "2026-01-01T00:00:00Z",
    "ce-traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}
ID_BYTES = 24
BODY_BYTES = 200
DRAIN_SECONDS = 45.0


def ids() -> Iterator[str]:
    """Give identities that no other run has."""
    run = secrets.token_hex(6)
    return (f"{run}{number:012x}" for number in itertools.count())


class Round:
    """Publishes and consumes the same messages, each timed by itself."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ids = ids()

    async def run(self, question: Options) -> Options:
        wanted = list(itertools.islice(self._ids, question["count"]))
        published = await self._publish(wanted)
        return {"publish": published, "consume": await self._consume({name.encode() for name in wanted})}

    async def _publish(self, names: list[str]) -> Options:
        latencies = array("d")
        waiting = iter(names)
        padding = b"x" * (BODY_BYTES - ID_BYTES)

        async def worker() -> None:
            for name in waiting:
                before = time.perf_counter()
                await self._client.publish({**HEADERS, "ce-id": name}, name.encode() + padding)
                latencies.append(time.perf_counter() - before)

        started, cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(worker())
        seconds, used = time.perf_counter() - started, time.process_time() - cpu
        return {"seconds": seconds, "cpu": used, "latencies": list(latencies)}

    async def _consume(self, wanted: set[bytes]) -> Options:
        seen: list[bytes] = []
        done = asyncio.Event()

        async def handle(headers: Mapping[str, str], body: bytes) -> None:
            seen.append(body[:ID_BYTES])
            if len(seen) == len(wanted):
                done.set()

        async with self._client.consuming(handle):
            started, cpu = time.perf_counter(), time.process_time()
            async with asyncio.timeout(DRAIN_SECONDS):
                await done.wait()
            seconds, used = time.perf_counter() - started, time.process_time() - cpu
        if len(seen) != len(wanted) or set(seen) != wanted:
            lost = len(wanted - set(seen))
            raise RuntimeError(f"of {len(wanted)} messages {lost} did not come, and {len(seen)} came in all")
        return {"seconds": seconds, "cpu": used, "latencies": []}


async def both(client: Client, options: Options) -> None:
    await control(0, Round(client).run)


async def publisher(client: Client, options: Options) -> None:
    names = ids()

    async def handle(request: web.BaseRequest) -> web.Response:
        await client.publish({**HEADERS, "ce-id": next(names)}, await request.read())
        return web.Response(status=204)

    async with serving(handle) as port:
        await control(port, idle)


async def consumer(client: Client, options: Options) -> None:
    fields = {"Content-Type": "application/cloudevents+json", "pubsubName": "pubsub", "mesh-attempt": "1"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        app = AppClient(session, options["app_port"])

        async def handle(headers: Mapping[str, str], body: bytes) -> None:
            status, _ = await app.call("POST", options["path"], fields, body)
            if status != 200:
                raise RuntimeError(f"the application answered {status}")

        async with client.consuming(handle):
            await control(0, idle)


ROLES = {role.__name__: role for role in (both, publisher, consumer)}


async def main(role: str, options: Options) -> None:
    """Connect, and do as the role says until the run is over."""
    async with client_of(options["client"])(options["url"], options["topic"]) as client:
        await ROLES[role](client, options)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], json.loads(sys.argv[2])))
