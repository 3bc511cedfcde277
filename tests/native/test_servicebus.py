"""Topics and queues of Azure Service Bus as every other program has them, read and written by Microsoft's own library.

The server is a stand-in that speaks AMQP 1.0: nothing here ran against Azure.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver

from brokers.native._held import GoneError
from brokers.native.servicebus import ServiceBusTopics
from brokers.shared.errors import NotAdmittedError
from mesh import address
from mesh.address import Address
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import (
    BrokerUnavailableError,
    ConfigError,
    FeatureNotSupportedError,
    MessageTooLargeError,
    PublishRejectedError,
)
from mesh.registry import Registry
from tests.http.harness import App, Backbone, component, gateway, yaml
from tests.support.azure_servers import ServiceBusServer
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.nodes import component as resource
from tests.support.nodes import unique
from tests.support.proxy import Proxy

TOPICS, QUEUES = "pubsub.azure.servicebus.topics", "pubsub.azure.servicebus.queues"
BINARY = b"\x00\xff\xfe"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceBusServer]:
    async with ServiceBusServer(tmp_path_factory.mktemp("servicebus")) as server:
        yield server


@pytest.fixture
async def azure(server: ServiceBusServer) -> AsyncIterator[ServiceBusClient]:
    async with ServiceBusClient.from_connection_string(server.connection) as client:
        yield client


@pytest.fixture
def group() -> str:
    return unique("app")


@pytest.fixture
def orders() -> Address:
    return address.topic("test", "shop", unique("orders"))


def broker_of(connection: str, kind: str = TOPICS, **settings: str) -> ServiceBusTopics:
    given = {"connectionString": connection, "lockRenewalInSec": "1", **settings}
    return Registry().load(kind).from_component(resource("shop", kind, **given))  # type: ignore[attr-defined, no-any-return]


async def received(receiver: ServiceBusReceiver, count: int) -> list[ServiceBusReceivedMessage]:
    found: list[ServiceBusReceivedMessage] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            for each in await receiver.receive_messages(max_message_count=10, max_wait_time=1):
                await receiver.complete_message(each)
                found.append(each)
    return found


def body(message: ServiceBusReceivedMessage) -> bytes:
    return b"".join(message.body)


async def test_what_is_published_stands_there_byte_for_byte(
    server: ServiceBusServer, azure: ServiceBusClient, orders: Address
) -> None:
    metadata = {
        **{"MessageId": "7", "CorrelationId": "8", "Label": "new", "ReplyTo": "back", "ContentType": "a/b"},
        **{"PartitionKey": "p", "ttlInSeconds": "60", "kind": "é"},
    }
    async with azure.get_subscription_receiver(orders.label, "theirs") as receiver:
        async with broker_of(server.connection) as broker:
            await broker.publish(orders, Message({"cloudEvents_id": "1", "To": ""}, BINARY, metadata=metadata))
            asked = [Message({}, b"%d" % number) for number in range(150)]
            assert await broker.publish_many(orders, asked) == [None] * 150
        first, *others = await received(receiver, 151)
    assert body(first) == BINARY
    assert (first.message_id, first.correlation_id, first.subject, first.reply_to) == ("7", "8", "new", "back")
    assert (first.content_type, first.partition_key) == ("a/b", "p")
    assert first.time_to_live is not None
    assert first.time_to_live.total_seconds() == 60
    assert first.application_properties == {b"cloudEvents_id": b"1", b"To": b"", b"kind": "é".encode()}
    assert [body(each) for each in others] == [b"%d" % number for number in range(150)]


@pytest.mark.parametrize("kind", [TOPICS, QUEUES])
async def test_events_of_others(
    kind: str, server: ServiceBusServer, azure: ServiceBusClient, group: str, orders: Address
) -> None:
    inbox = Inbox()
    async with (
        broker_of(server.connection, kind) as broker,
        broker.subscribe(orders, SubscribeOptions(group), inbox),
        azure.get_queue_sender(orders.label) as sender,
    ):
        made = ServiceBusMessage(BINARY, application_properties={"kind": "é"}, message_id="7", content_type="a/b")
        await sender.send_messages(made)
        await inbox.holds(1)
    (delivery,) = inbox.deliveries
    message = delivery.message
    assert (message.body, delivery.attempt, message.headers) == (BINARY, 1, {"kind": "é", "content-type": "a/b"})
    told = dict(message.metadata)
    assert told["metadata.LockToken"]
    assert told["metadata.EnqueuedTimeUtc"].endswith(" GMT")
    found = {name: told[f"metadata.{name}"] for name in ("MessageId", "ContentType", "kind", "DeliveryCount")}
    assert found == {"MessageId": "7", "ContentType": "a/b", "kind": "é", "DeliveryCount": "0"}


async def test_members_of_both_kinds_share_a_group(
    server: ServiceBusServer, azure: ServiceBusClient, group: str, orders: Address
) -> None:
    theirs: list[bytes] = []
    inbox = Inbox()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(broker_of(server.connection))
        receiver = await stack.enter_async_context(azure.get_subscription_receiver(orders.label, group))
        sender = await stack.enter_async_context(azure.get_topic_sender(orders.label))
        await stack.enter_async_context(broker.subscribe(orders, SubscribeOptions(group, max_in_flight=2), inbox))

        async def sidecar() -> None:
            while len({*inbox.bodies, *theirs}) < 40:
                for each in await receiver.receive_messages(max_message_count=2, max_wait_time=0.2):
                    theirs.append(body(each))
                    await receiver.complete_message(each)

        async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
            tasks.create_task(sidecar())
            for number in range(20):
                await broker.publish(orders, Message({}, b"%d" % number))
                await sender.send_messages(ServiceBusMessage(b"%d" % (number + 20)))
    assert {*inbox.bodies, *theirs} == {b"%d" % number for number in range(40)}
    assert inbox.bodies
    assert theirs


async def test_attempts_delays_and_long_work(server: ServiceBusServer, group: str, orders: Address) -> None:
    """What is at work, or waits, keeps its lock for longer than the service gives: nobody else gets it."""
    seen: list[tuple[bytes, int, float]] = []

    async def settle(delivery: Delivery) -> None:
        seen.append((delivery.message.body, delivery.attempt, time.monotonic()))
        if delivery.message.body == b"long":
            await asyncio.sleep(server.lock_seconds * 1.5)
            await delivery.ack()
        elif delivery.attempt == 1:
            await delivery.nack(0.0 if delivery.message.body == b"now" else server.lock_seconds * 1.5)
        else:
            await delivery.reject()

    async with broker_of(server.connection) as broker:
        async with broker.subscribe(orders, SubscribeOptions(group), Inbox(settle)):
            for each in (b"now", b"later", b"long"):
                await broker.publish(orders, Message({}, each))

            def check() -> None:
                assert len(seen) >= 5

            await eventually(check)
        after = Inbox()
        async with broker.subscribe(orders, SubscribeOptions(group), after):
            await broker.publish(orders, Message({}, b"end"))
            await after.holds(1)
    assert after.bodies == [b"end"]
    attempts = {each: [attempt for found, attempt, _ in seen if found == each] for each, _, _ in seen}
    assert attempts == {b"now": [1, 2], b"later": [1, 2], b"long": [1]}
    first, second = (at for found, _, at in seen if found == b"later")
    assert second - first >= server.lock_seconds * 1.5 - 0.01


async def test_a_lost_connection_is_ridden_out(server: ServiceBusServer, group: str, orders: Address) -> None:
    inbox = Inbox()
    async with Proxy(server.port) as proxy:
        connection = ServiceBusServer.at(proxy.port)
        async with broker_of(connection) as broker, broker.subscribe(orders, SubscribeOptions(group), inbox):
            await broker.publish(orders, Message({}, b"before"))
            await inbox.holds(1)
            assert proxy.cut()
            await broker.publish(orders, Message({}, b"after"))
            await eventually(lambda: _has(inbox, b"after"), 30)


def _has(inbox: Inbox, wanted: bytes) -> None:
    assert wanted in inbox.bodies


def _called(app: App) -> None:
    assert app.got


async def test_through_a_gateway(tmp_path: Path, server: ServiceBusServer, azure: ServiceBusClient) -> None:
    """The fields of a message are headers of the call; what an application publishes is an envelope."""
    topic, own = unique("orders"), unique("app")
    kind = component("shop", "pubsub.azure.servicebus", connectionString=server.connection)
    metadata = {"rawPayload": "true"}
    told = yaml("Subscription", topic, {"topic": topic, "route": "/take", "pubsubname": "shop", "metadata": metadata})
    async with (
        App() as app,
        gateway(Backbone("memory:"), tmp_path, app=app, app_id=own, resources=kind + told) as node,
        azure.get_subscription_receiver(topic, "theirs") as receiver,
        azure.get_topic_sender(topic) as sender,
    ):
        await sender.send_messages(ServiceBusMessage(BINARY, message_id="7", application_properties={"kind": "x"}))
        await eventually(lambda: _called(app))
        (call,) = app.got
        assert (call.headers["metadata.messageid"], call.headers["metadata.kind"]) == ("7", "x")
        reply = await node.post(f"/v1.0/publish/shop/{topic}", b'{"n":1}', "application/json")
        assert reply.status == 204
        _, event = await received(receiver, 2)
    envelope = json.loads(body(event))
    assert (envelope["data"], envelope["topic"], envelope["pubsubname"]) == ({"n": 1}, topic, "shop")


async def test_refusals(server: ServiceBusServer, group: str, orders: Address) -> None:
    for settings in ({}, {"connectionString": "no"}):
        with pytest.raises(ConfigError):
            async with Registry().load(TOPICS).from_component(resource("shop", TOPICS, **settings)):  # type: ignore[attr-defined]
                pass
    with pytest.raises(NotAdmittedError) as refused:
        async with broker_of(ServiceBusServer.at(server.port, key="d3Jvbmc=")):
            pass
    assert "d3Jvbmc=" not in str(refused.value)
    with pytest.raises(BrokerUnavailableError):
        async with broker_of(ServiceBusServer.at(1)):
            pass
    async with broker_of(server.connection) as broker:
        with pytest.raises(PublishRejectedError, match="ttlInSeconds"):
            await broker.publish(orders, Message({}, b"x", metadata={"ttlInSeconds": "x"}))
        with pytest.raises(MessageTooLargeError):
            await broker.publish(orders, Message({}, b"x" * (2**20 + 1)))
        with pytest.raises(FeatureNotSupportedError, match="ordered"):
            async with broker.subscribe(orders, SubscribeOptions(group, ordered=True), Inbox()):
                pass
        for metadata in ({"requireSessions": "perhaps"}, {"maxConcurrentSessions": "0"}):
            with pytest.raises(ConfigError, match=next(iter(metadata))):
                async with broker.subscribe(orders, SubscribeOptions(group, metadata=metadata), Inbox()):
                    pass


async def test_a_subscription_that_is_not_there(server: ServiceBusServer, group: str) -> None:
    missing = address.topic("test", "shop", unique("none"))
    async with broker_of(server.connection) as broker:
        with pytest.raises(GoneError, match="is not there"):
            async with asyncio.timeout(20), broker.subscribe(missing, SubscribeOptions(group), Inbox()):
                await asyncio.Event().wait()
