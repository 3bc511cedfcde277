"""Events through a component of a third party, from one application to another."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from bindings.pluggable.pubsub import PluggableBroker
from mesh import address
from mesh.broker import Broker, Delivery, Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, FeatureNotSupportedError, PublishRejectedError
from mesh.resources.component import Component, MetadataEntry, Secret
from mesh.trust.folder import Folder
from mesh.trust.identity import TrustSettings
from tests.http.harness import App, Backbone, Node, component, gateway
from tests.support.contract import Inbox, text
from tests.support.eventually import eventually
from tests.support.pluggable_server import PluggableServer, contract_broker, pluggable


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[PluggableServer]:
    async with pluggable(tmp_path / "component", "queue", services=("PubSub",)) as server:
        yield server


@pytest.fixture
async def broker(server: PluggableServer) -> AsyncIterator[Broker]:
    async with contract_broker(server.path) as broker:
        yield broker


ORDERS = address.topic("test", "queue", "orders")


PUBLISHED: dict[str, tuple[str, bytes]] = {
    "spaces": ("application/json", b'{ "a":  1.0, "b": [1, 2] }\n'),
    "exponent": ("application/json", b"1e3"),
    "twice": ("application/json", b'{"a":1,"a":2}'),
    "large": ("application/json", b"123456789012345678901234567890"),
    "escaped": ("application/json; charset=utf-8", rb'"\u00e4"'),
    "no JSON": ("application/json", b"{"),
    "text": ("text/plain", "a ä".encode()),
    "number as text": ("text/plain", b" 5 "),
    "bytes": ("application/octet-stream", b"\x00\xff"),
    "XML": ("application/xml", b"<a> </a>"),
    "nothing": ("text/plain", b""),
    "event": (
        "application/cloudevents+json",
        b'{"specversion":"1.0","id":"1","source":"/a","type":"t","data":{ "n": 2.0},"more":"x \xc3\xa4","flag":true}',
    ),
}


async def test_who_has_published_an_event(tmp_path: Path, server: PluggableServer) -> None:
    """What is signed is what arrives, also of JSON that is written anew on its way."""
    resources, backbone = component("events", "pubsub.queue"), Backbone("memory:")
    Folder(tmp_path / "trust").init("public")
    trust = TrustSettings("strict", folder=tmp_path / "trust")
    async with (
        App([{"pubsubname": "events", "topic": "orders", "route": "/orders"}]) as app,
        gateway(backbone, tmp_path, app=app, app_id="stock", resources=resources, trust=trust),
        gateway(backbone, tmp_path, app_id="shop", resources=resources, trust=trust) as shop,
        gateway(backbone, tmp_path, app_id="shop", resources=resources) as unproven,
    ):
        assert await publish(unproven, "orders", "not proven") == 204
        for name, (kind, body) in PUBLISHED.items():
            assert await publish(shop, "orders", body, kind) == 204, name
        got = await app.until("/orders", len(PUBLISHED))
        by = f"spiffe://public/ns/{backbone.namespace}/shop"
        assert [each.headers["mesh-proven-by"] for each in got] == [by] * len(PUBLISHED)
        bulk = [{"entryId": str(n), "contentType": "application/json", "event": {"a": 1e30}} for n in (1, 2)]
        assert (await shop.post("/v1.0/publish/bulk/events/orders", bulk)).status == 204
        assert {each.headers["mesh-proven-by"] for each in await app.until("/orders", len(PUBLISHED) + 2)} == {by}


async def publish(node: Node, topic: str, body: object, kind: str = "application/json", query: str = "") -> int:
    return (await node.post(f"/v1.0/publish/events/{topic}{query}", body, kind)).status


async def test_from_one_application_to_another(tmp_path: Path, server: PluggableServer) -> None:
    """Each group gets each event whole, once; the component knows groups as Dapr tells them."""
    resources = component("events", "pubsub.queue", some="setting")
    named = component("events", "pubsub.queue", consumerID="others")
    subscription = [{"pubsubname": "events", "topic": "orders", "route": "/orders"}]
    raw = [*subscription, {"pubsubname": "events", "topic": "raw", "route": "/raw", "metadata": {"rawPayload": "true"}}]
    backbone = Backbone("memory:")
    async with (
        App(raw) as one,
        App(subscription) as two,
        gateway(backbone, tmp_path, app=one, app_id="one", resources=resources) as node,
        gateway(backbone, tmp_path, app=two, app_id="two", resources=named),
    ):
        assert {json.dumps(told, sort_keys=True) for _, told in server.inits()} == {
            '{"consumerID": "one", "some": "setting"}',
            '{"consumerID": "others"}',
        }
        assert await publish(node, "orders", {"number": 1}) == 204
        assert await publish(node, "orders", "text ä", "text/plain") == 204
        assert await publish(node, "orders", b"\x00\xff", "application/octet-stream") == 204
        own = {"specversion": "1.0", "id": "own", "source": "/app", "type": "made", "data": {"number": 2}, "more": "x"}
        assert await publish(node, "orders", own, "application/cloudevents+json") == 204

        def arrived() -> None:
            assert len(one.at("/orders")) >= 4
            assert len(two.at("/orders")) >= 4

        await eventually(arrived)
        for app in (one, two):
            events = [got.json for got in app.at("/orders")]
            assert len(events) == 4
            assert {(each["topic"], each["pubsubname"]) for each in events} == {("orders", "events")}
            found = {each["id"]: each for each in events}
            assert (found["own"]["data"], found["own"]["more"]) == ({"number": 2}, "x")
            assert [each.get("data") for each in events].count({"number": 1}) == 1
            assert "text ä" in [each.get("data") for each in events]
            assert "AP8=" in [each.get("data_base64") for each in events]


async def _unavailable(broker: Broker) -> str:
    """Give why the program is not there."""
    with pytest.raises(BrokerUnavailableError) as raised:
        await broker.check()
    return str(raised.value)


async def test_a_program_that_comes_back(
    server: PluggableServer, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Subscriptions go on; a publish waits for it, and says so when it does not come."""
    caplog.set_level(logging.WARNING)
    inbox = Inbox()
    async with broker.subscribe(ORDERS, SubscribeOptions("g"), inbox):
        await broker.publish(ORDERS, text("before"))
        await inbox.holds(1)
        async with asyncio.TaskGroup() as tasks:
            with server.hanging():
                under_way = tasks.create_task(_unavailable(broker))
                await server.kill()
        later = await _unavailable(broker)
        # A process that ends closes its connections and its socket one after the other: either may be seen.
        assert str(server.path) in under_way.result()
        assert "nobody listens there" in later
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await broker.publish(ORDERS, text("never"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(broker.publish(address.topic("test", "queue", "elsewhere"), text("waits")))
            await server.start()

        async def goes_on() -> None:
            await broker.publish(ORDERS, text("after"))  # What comes before it is subscribed again is not kept.
            assert b"after" in inbox.bodies

        await eventually(goes_on)
    told = [record.message for record in caplog.records if "broke off" in record.message]
    assert len(told) == 1


async def test_a_program_that_is_away_for_long(server: PluggableServer, broker: Broker) -> None:
    """However often a subscription to it is tried, a group has one connection, which is used when it is back."""

    def connections() -> int:
        gc.collect()
        # By type: to ask a weak reference what it is fails when that is gone.
        return sum(issubclass(type(each), grpc.aio.Channel) for each in gc.get_objects())

    await server.kill()
    before = connections()
    for _ in range(3):
        with pytest.raises(BrokerUnavailableError):
            async with broker.subscribe(ORDERS, SubscribeOptions("g"), Inbox()):
                pytest.fail("entered")
    assert connections() == before + 1
    await server.start()
    inbox = Inbox()
    async with broker.subscribe(ORDERS, SubscribeOptions("g"), inbox):
        await broker.publish(ORDERS, text("after"))
        await inbox.holds(1)


@pytest.mark.parametrize("count", [pytest.param(1, id="reading"), pytest.param(2, id="waiting for a slot")])
async def test_a_stream_that_breaks(broker: Broker, count: int) -> None:
    """What was to be tried again on it is the component's: it comes on another one, and not twice at once."""
    broken = False

    async def settle(delivery: Delivery) -> None:
        await (delivery.ack() if broken else delivery.nack(3600))

    inbox = Inbox(settle)
    bodies = [b"%d" % number for number in range(count)]
    async with broker.subscribe(ORDERS, SubscribeOptions("g", max_in_flight=1), inbox):
        for body in bodies:
            await broker.publish(ORDERS, text(body.decode()))
        await inbox.holds(1)
        broken = True
        await broker.publish(address.topic("test", "queue", "break-orders"), text("now"))
        await inbox.holds(1 + count)
    first, *again = inbox.bodies
    assert sorted(again) == bodies
    assert first == b"0"


async def test_why_a_stream_broke_is_told_without_secrets(
    server: PluggableServer, caplog: pytest.LogCaptureFixture
) -> None:
    why = MetadataEntry("why", Secret("amqp://me:p4ss@host"))
    made = PluggableBroker.from_component(Component("events", "pubsub.queue", (why,)))
    async with made as broker, broker.subscribe(ORDERS, SubscribeOptions("g"), Inbox()):

        async def told() -> None:
            await broker.publish(address.topic("test", "queue", "break-orders"), text("now"))
            assert [each for each in caplog.messages if "broke off, and is made again: *** (INTERNAL)" in each]

        await eventually(told)
    assert "p4ss" not in caplog.text


async def test_what_a_component_refuses(broker: Broker) -> None:
    """Some may be tried again, one of several is told apart, and what cannot be asked for is said."""
    for status, kind, again in (
        ("INVALID_ARGUMENT", BrokerError, False),
        ("RESOURCE_EXHAUSTED", PublishRejectedError, True),
        ("UNAVAILABLE", BrokerUnavailableError, True),
    ):
        with pytest.raises(kind, match=status) as raised:
            await broker.publish(address.topic("test", "queue", f"refuse-{status}"), text("x"))
        assert raised.value.retryable is again
    results = await broker.publish_many(ORDERS, [text("a"), text("refuse"), text("b")])
    assert [result is None for result in results] == [True, False, True]
    assert isinstance(results[1], PublishRejectedError)
    for options in (SubscribeOptions("g", ordered=True), SubscribeOptions("g", ephemeral=True)):
        with pytest.raises(FeatureNotSupportedError):
            async with broker.subscribe(ORDERS, options, Inbox()):
                pytest.fail("entered")


async def test_events_of_others(server: PluggableServer, broker: Broker) -> None:
    """Names and values that no header can have are left out; what is no event is what it is."""
    inbox = Inbox()
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t", "x-own": "kept"}
    async with broker.subscribe(ORDERS, SubscribeOptions("g"), inbox):
        await broker.publish(ORDERS, Message(headers, b'{"a":1}', "k", "identity"))
        await broker.publish(ORDERS, Message({"bad": "ä", "b c": "x", "good": "y"}, b"plain"))
        await inbox.holds(2)
    first, second = (delivery.message for delivery in inbox.deliveries)
    assert first == Message(headers, b'{"a":1}', "k", "identity")
    assert second == Message({"good": "y"}, b"plain")


async def test_a_connection_that_is_closed_under_a_call(server: PluggableServer) -> None:
    """Who waits for an answer is told so, and is not taken for cancelled; a subscription tries on until it ends."""
    broker = contract_broker(server.path)
    async with asyncio.TaskGroup() as tasks, broker, broker.subscribe(ORDERS, SubscribeOptions("g"), Inbox()):
        with server.hanging():
            asking = tasks.create_task(_raised(broker))
            assert not (await asyncio.wait([asking], timeout=0.3))[0]
            await broker.__aexit__(None, None, None)
            assert isinstance(await asking, BrokerUnavailableError)


async def _raised(broker: Broker) -> BrokerError | None:
    try:
        await broker.check()
    except BrokerError as error:
        return error
    return None
