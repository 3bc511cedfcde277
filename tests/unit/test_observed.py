"""An observer of a node: told of operations, of the broker and of the application; nobody else is slowed down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from brokers.memory import MemoryBroker
from mesh.address import topic
from mesh.blocks.topics import BULK_PUBLISH, PUBLISH, BulkEntry, BulkPublish, Publish
from mesh.broker import Message, Topology
from mesh.errors import AppFailedError, MessageTooLargeError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.observed import observed_application, observed_broker
from mesh.operation import Context, Operation
from mesh.registry import Registry
from mesh.telemetry import APPLICATION_CALLED, BROKER_PUBLISHED, EVENTS_PUBLISHED, OPERATIONS, Observed


class Seen(Counter[tuple[str, ...]]):
    def __call__(self, observed: Observed) -> None:
        assert observed.seconds >= 0
        self[(observed.name, *observed.labels)] += observed.times


async def test_a_node_tells_its_observer() -> None:
    """What its counters count, and what the broker was asked."""
    seen = Seen()
    async with Runtime(NodeSettings("app", "ns", "memory:", observer=seen), Registry()) as node:
        context = Context(node.caller)
        await node.run(Operation(PUBLISH, "pubsub", Publish("t", b"1"), context))
        entries = [BulkEntry(str(number), "text/plain", b"x", {}) for number in range(3)]
        await node.run(Operation(BULK_PUBLISH, "pubsub", BulkPublish("t", entries), context))
        counted = node.counters.snapshot()
    assert seen[OPERATIONS, "pubsub", "publish", "pubsub", "ok"] == 1
    assert seen[EVENTS_PUBLISHED, "pubsub", "t"] == counted[EVENTS_PUBLISHED, "pubsub", "t"] == 4
    assert seen[BROKER_PUBLISHED, "memory", "topic", "ok"] == 4
    assert not [key for key in counted if key[0] == BROKER_PUBLISHED]


async def test_a_broker_that_fails() -> None:
    """With the error's code; everything else of a broker is as it was."""
    seen = Seen()
    async with MemoryBroker() as broker:
        watched = observed_broker(broker, seen)
        where = topic("ns", "pubsub", "t")
        await broker.declare(Topology(where.space))
        large = Message({}, b"x" * (broker.features.max_message_bytes + 1))
        with pytest.raises(MessageTooLargeError):
            await watched.publish(where, large)
        assert await watched.publish_many(where, [Message({}, b"1"), Message({}, b"2")]) == [None, None]
        assert {type(error) for error in await watched.publish_many(where, [large])} == {MessageTooLargeError}
        assert watched.features is broker.features
    assert seen == {
        (BROKER_PUBLISHED, "memory", "topic", "MESSAGE_TOO_LARGE"): 2,
        (BROKER_PUBLISHED, "memory", "topic", "ok"): 2,
    }


class Application:
    """Answers as its path says."""

    async def post(self, path: str, headers: object, body: bytes) -> tuple[int, bytes]:
        if path == "/hangs":
            await asyncio.Event().wait()
        if path == "/fails":
            raise AppFailedError("broke off")
        return int(path[1:]), b""

    @asynccontextmanager
    async def call(self, method: str, target: str, headers: object, body: object) -> AsyncIterator[object]:
        yield SimpleNamespace(status=(await self.post(target, headers, b""))[0])

    async def until_reachable(self) -> None:
        return


async def test_an_application() -> None:
    """By the class of its status, or the error's code."""
    seen = Seen()
    watched = observed_application(Application(), seen)  # type: ignore[arg-type]
    await watched.until_reachable()
    assert (await watched.post("/204", [], b""))[0] == 204
    async with watched.call("GET", "/503", [], b"") as response:
        assert response.status == 503
    for fails in (watched.post("/fails", [], b""), watched.call("GET", "/fails", [], b"").__aenter__()):
        with pytest.raises(AppFailedError):
            await fails
    hanging = asyncio.ensure_future(watched.post("/hangs", [], b""))
    await asyncio.sleep(0)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert {key[1]: times for key, times in seen.items()} == {"2xx": 1, "5xx": 1, "APP_FAILED": 2, "CANCELLED": 1}
    assert {key[0] for key in seen} == {APPLICATION_CALLED}
