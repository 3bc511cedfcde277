"""A FastStream application on topics of the native layout, beside a gateway and a program that is neither."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("faststream")

from cloudevents.core.v1.event import CloudEvent
from faststream import Context, FastStream
from faststream.nats import NatsBroker
from faststream.redis import RedisBroker
from redis.asyncio import Redis

from brokers.faststream import Mesh, MeshMessage
from tests.http.harness import App, Backbone, component, gateway, subscription
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.nats_raw import RawNats
from tests.support.redis_server import RedisServer

Write = Callable[[str, bytes], Awaitable[object]]


@dataclass(frozen=True)
class Shared:
    """A broker that a component is on: the component, FastStream's broker, and a program that writes to a topic."""

    resources: str
    broker: Any
    write: Write


async def _redis(folder: Path) -> AsyncIterator[Shared]:
    async with RedisServer(folder) as server, Redis.from_url(server.url) as client:

        async def write(topic: str, body: bytes) -> None:
            await client.xadd(topic, {"data": body})

        resources = component("pubsub", "pubsub.redis", redisHost=f"127.0.0.1:{server.port}")
        yield Shared(resources, RedisBroker(server.url, logger=None), write)


async def _nats(folder: Path) -> AsyncIterator[Shared]:
    async with NatsServer(folder) as server, RawNats(server.port) as client:
        await client.stream("SHOP", "orders", "priced", "scans", "refused")

        async def write(topic: str, body: bytes) -> None:
            await client.store(topic, body)

        resources = component("pubsub", "pubsub.jetstream", natsURL=server.url)
        yield Shared(resources, NatsBroker(server.url, logger=None), write)


BROKERS = {"redis": _redis, "nats": _nats}


@pytest.fixture(params=BROKERS)
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shared]:
    async for started in BROKERS[request.param](tmp_path / "server"):
        yield started


async def test_it_meets_gateways_and_programs_of_its_broker(shared: Shared, tmp_path: Path) -> None:
    """An event of a gateway's becomes the package's, and one of the package's an event of a gateway's."""
    (tmp_path / "shared.yaml").write_text(shared.resources)
    broker = shared.broker
    mesh = Mesh(broker, app_id="pricing", backbone="memory:", resources=[tmp_path / "shared.yaml"])
    taken: list[CloudEvent] = []
    scans: list[tuple[object, object]] = []
    refused: list[tuple[object, str]] = []

    @mesh.subscriber("orders", dead_letter="refused")
    @mesh.publisher("priced")
    async def price(order: CloudEvent) -> CloudEvent:
        taken.append(order)
        return CloudEvent({"id": "p1", "source": "/pricing", "type": "order.priced", "size": 2}, {"total": 8.4})

    @mesh.subscriber("scans")
    async def scan(body: Any, message: Annotated[MeshMessage, Context("message")]) -> None:
        scans.append((body, message.event))

    @mesh.subscriber("refused", metadata={"rawPayload": "true"})
    async def letter(body: bytes, message: Annotated[MeshMessage, Context("message")]) -> None:
        refused.append((body, message.headers["mesh-dead-letter-topic"]))

    app, running = App([subscription("pubsub", "priced")]), FastStream(broker, lifespan=mesh.lifespan)
    async with (
        app,
        gateway(Backbone("memory:"), tmp_path, app=app, app_id="shop", resources=shared.resources) as node,
        running.lifespan_context(),
        running,
    ):
        await node.publish("orders", {"amount": 7})
        [priced] = await app.until("/priced")
        await shared.write("scans", b'{"code": "4006381333931"}')
        await shared.write("orders", b'{"amount": "no event"}')
        binary = CloudEvent({"id": "p2", "source": "/pricing", "type": "t"}, "text")
        await mesh.publish(binary, "priced", metadata={"cloudevents": "binary"})
        second = (await app.until("/priced", 2))[1]

        def both() -> None:
            assert scans == [({"code": "4006381333931"}, None)]
            assert refused == [(b'{"amount": "no event"}', "orders")]

        await eventually(both)
    [order] = taken
    assert (order.get_source(), order.get_type(), order.get_data()) == ("shop", "com.dapr.event.sent", {"amount": 7})
    assert (order.get_extension("pubsubname"), order.get_extension("topic")) == ("pubsub", "orders")
    event = priced.json
    assert (event["id"], event["source"], event["type"], event["size"]) == ("p1", "/pricing", "order.priced", 2)
    assert (event["data"], event["pubsubname"], event["topic"]) == ({"total": 8.4}, "pubsub", "priced")
    assert (second.json["id"], second.json["data"]) == ("p2", "text")
