"""An observer of a node: told of operations, of the broker and of the application; nobody else is slowed down."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import orjson
import pytest

from brokers.memory import MemoryBroker
from mesh.address import Address, topic
from mesh.application import Application as AnApplication
from mesh.application import Headers, Kind
from mesh.blocks.durable import ACCEPT, DurableCall
from mesh.blocks.invocation import INVOKE, Call
from mesh.blocks.topics import BULK_PUBLISH, PUBLISH, BulkEntry, BulkPublish, Publish
from mesh.broker import Message, Topology
from mesh.errors import AppFailedError, BrokerError, BrokerUnavailableError, MessageTooLargeError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.observed import observed_application, observed_broker
from mesh.operation import Context, Operation
from mesh.registry import Registry
from mesh.resources.subscription import BulkOptions, Subscription
from mesh.telemetry import (
    APPLICATION_CALLED,
    ARRIVALS,
    BROKER_PUBLISHED,
    CANCELLED,
    EVENTS_PUBLISHED,
    FAILED,
    OPERATIONS,
)
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, component


class Seen(Counter[tuple[str, ...]]):
    def __call__(
        self,
        name: str,
        labels: tuple[str, ...],
        times: int = 1,
        seconds: float = 0.0,
        details: tuple[str, ...] = (),
    ) -> None:
        assert seconds >= 0
        self[(name, *labels)] += times


async def test_a_node_tells_its_observer() -> None:
    """What its counters count, and what the broker was asked."""
    seen = Seen()
    components = component("pubsub", "pubsub.mesh"), component("other", "pubsub.in-memory")
    async with Runtime(NodeSettings("app", "ns", "memory:", components, observer=seen), Registry()) as node:
        context = Context(node.caller)
        await node.run(Operation(PUBLISH, "other", Publish("t", b"1"), context))
        await node.run(Operation(PUBLISH, "pubsub", Publish("t", b"1"), context))
        entries = [BulkEntry(str(number), "text/plain", b"x", {}) for number in range(3)]
        await node.run(Operation(BULK_PUBLISH, "pubsub", BulkPublish("t", entries), context))
        counted = node.counters.snapshot()
    assert seen[OPERATIONS, "pubsub", "publish", "pubsub", "ok"] == 1
    assert seen[EVENTS_PUBLISHED, "pubsub", "t"] == counted[EVENTS_PUBLISHED, "pubsub", "t"] == 4
    assert seen[BROKER_PUBLISHED, "memory", "topic", "ok"] == 4
    assert seen[BROKER_PUBLISHED, "memory/other", "topic", "ok"] == 1
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


class Away(MemoryBroker):
    """Takes nothing: it is away, does not answer, or breaks."""

    async def publish(self, address: Address, message: Message) -> None:
        raise ValueError("broken")

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        if not messages[0].body:
            await asyncio.Event().wait()
        if messages[0].body == b"broken":
            raise ValueError("broken")
        raise BrokerUnavailableError("away")


async def test_many_messages_that_are_not_published_at_all() -> None:
    seen, where = Seen(), topic("ns", "pubsub", "t")
    async with Away() as broker, asyncio.TaskGroup() as tasks:
        watched = observed_broker(broker, seen)
        with pytest.raises(BrokerUnavailableError):
            await watched.publish_many(where, [Message({}, b"1"), Message({}, b"2")])
        broken = Message({}, b"broken")
        for breaks in (watched.publish(where, broken), watched.publish_many(where, [broken])):
            with pytest.raises(ValueError, match="broken"):
                await breaks
        hanging = tasks.create_task(watched.publish_many(where, [Message({}, b"")]))
        await asyncio.sleep(0)
        hanging.cancel()
    assert seen == {
        (BROKER_PUBLISHED, "memory", "topic", BrokerUnavailableError.code): 2,
        (BROKER_PUBLISHED, "memory", "topic", FAILED): 2,
        (BROKER_PUBLISHED, "memory", "topic", CANCELLED): 1,
    }


class Application:
    """Answers as its path says."""

    async def post(self, path: str, headers: object, body: bytes, kind: Kind = "event") -> tuple[int, bytes]:
        if path == "/hangs":
            await asyncio.Event().wait()
        if path == "/fails":
            raise AppFailedError("broke off")
        return int(path[1:]), b""

    async def trigger(self, name: str, path: str, headers: object, body: bytes) -> tuple[int, None]:
        return (await self.post(path, headers, body))[0], None

    @asynccontextmanager
    async def call(self, method: str, target: str, headers: object, body: object) -> AsyncIterator[object]:
        yield SimpleNamespace(status=(await self.post(target, headers, b""))[0])

    async def until_reachable(self) -> None:
        return

    async def until_unreachable(self) -> None:
        await asyncio.Event().wait()


class Answer:
    """An application's, empty."""

    status = 200
    headers: Headers = ()
    trailers: Headers = ()

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        return b""


class Agreeing(Application):
    """Says yes to everything."""

    is_grpc = False

    async def post(self, path: str, headers: object, body: bytes, kind: Kind = "event") -> tuple[int, bytes]:
        said = [{"entryId": entry["entryId"], "status": "SUCCESS"} for entry in orjson.loads(body).get("entries", [])]
        return 200, orjson.dumps({"statuses": said})

    @asynccontextmanager
    async def call(self, method: str, target: str, headers: object, body: object) -> AsyncIterator[object]:
        yield Answer()


async def test_everything_for_the_application_comes_one_way() -> None:
    """An event, alone and in a batch, a durable call, a call from another node, and one from its own application."""

    async def programmatic() -> list[Subscription]:
        batch = Subscription("", "pubsub", "batch", default_path="/", bulk=BulkOptions(True, 2, 0.01))
        return [Subscription("", "pubsub", "one", default_path="/"), batch]

    seen, registry = Seen(), MemoryMesh()
    caller = Runtime(NodeSettings("caller", "ns", "memory:"), registry)
    callee = Runtime(NodeSettings("app", "ns", "memory:", observer=seen), registry)
    agreeing = cast("AnApplication", Agreeing())
    async with caller, callee, callee.inbound(agreeing, programmatic):

        def serves() -> None:
            assert callee.serving

        await eventually(serves)
        for topic_name in ("one", "batch", "batch"):
            await ask(caller, PUBLISH, "pubsub", Publish(topic_name, b"1"))
        await ask(caller, ACCEPT, "app", DurableCall("POST", "/", [], b""))
        for asking in (caller, callee):
            async with await ask(asking, INVOKE, "app", Call("GET", "/", [], b"")) as answer:
                assert answer.status == 200

        def came() -> None:
            assert {key[1:]: times for key, times in seen.items() if key[0] == ARRIVALS} == {
                ("event", "pubsub/one", "success"): 1,
                ("event", "pubsub/batch", "success"): 2,
                ("durable", "app", "success"): 1,
                ("call", "app", "ok"): 2,
            }

        await eventually(came)
    assert not [key for key in callee.counters.snapshot() if key[0] == ARRIVALS]


async def test_an_application() -> None:
    """By verb and path, and its status or the error's code."""
    seen = Seen()
    watched = observed_application(Application(), seen)  # type: ignore[arg-type]
    await watched.until_reachable()
    assert (await watched.post("/204", [], b"", "event"))[0] == 204
    async with watched.call("GET", "/503", [], b"") as response:
        assert response.status == 503
    for breaks in (
        watched.post("/breaks", [], b"", "event"),
        watched.trigger("cron", "/breaks", [], b""),
        watched.call("GET", "/breaks", [], b"").__aenter__(),
    ):
        with pytest.raises(ValueError, match="breaks"):
            await breaks
    for fails in (watched.post("/fails", [], b"", "event"), watched.call("GET", "/fails", [], b"").__aenter__()):
        with pytest.raises(AppFailedError):
            await fails
    hanging = asyncio.ensure_future(watched.post("/hangs", [], b"", "event"))
    await asyncio.sleep(0)
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert {key[1:]: times for key, times in seen.items()} == {
        ("POST", "/204", "204"): 1,
        ("GET", "/503", "503"): 1,
        ("POST", "/fails", "APP_FAILED"): 1,
        ("GET", "/fails", "APP_FAILED"): 1,
        ("POST", "/hangs", "CANCELLED"): 1,
        ("POST", "/breaks", "FAILED"): 2,
        ("GET", "/breaks", "FAILED"): 1,
    }
    assert {key[0] for key in seen} == {APPLICATION_CALLED}
