"""What bindings to queues of Azure and Google put where; what they refuse; messages handled for long."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage

from bindings.azure import storagequeues
from bindings.gcp import pubsub as pubsub_binding
from mesh.blocks.binding_contract import BindingError, BindingEvent, Handle, Reading
from mesh.errors import ConfigError
from mesh.registry import Registry
from tests.support.azure_servers import ACCOUNT_KEY, SERVICE_BUS_KEY, ServiceBusServer
from tests.support.bindings import call
from tests.support.bindings.clouds import azure_queue, pubsub, service_bus
from tests.support.eventually import eventually
from tests.support.nodes import component
from tests.support.processes import free_port
from tests.support.taker import Taker

AZURE, PUBSUB = "bindings.azure.storagequeues", "bindings.gcp.pubsub"
SERVICE_BUS = "bindings.azure.servicebus.queues"


def made(kind: str, **settings: str) -> Any:
    return Registry().load(kind).from_component(component("in", kind, **settings))  # type: ignore[attr-defined]


@asynccontextmanager
async def reading(kind: str, handle: Handle, **settings: str) -> AsyncIterator[Any]:
    async with made(kind, **settings) as source, source.reading(Reading("in", "app", handle)):
        yield source


@pytest.mark.parametrize(
    ("data", "message", "plain"),
    [
        (b'{"id":1}', b'{"id":1}', True),
        (b'"text"', b"text", True),
        (b"null", b"", True),
        (b"", b"", True),
        (' <ü&>\t\n"'.encode(), ' <ü&>\t\n"'.encode(), True),
        (b"a\r\nb\rc", b"a\r\nb\rc", True),
        (b'"\\u0001"', b"\x01", False),
        (b"\x00\xff", b"\x00\xff", False),
    ],
)
async def test_azure_data(data: bytes, message: bytes, plain: bool) -> None:
    """A text is sent as it is, a JSON string without its quotes; in base64, anything."""
    async with azure_queue() as (_, settings):
        quick, taker = {**settings, "pollingInterval": "100ms"}, Taker()
        async with reading(AZURE, taker, **quick) as both:
            if plain:
                await both.invoke(call("create", data))
                assert await taker.has(1) == [message]
            else:
                with pytest.raises(BindingError, match="without encodeBase64"):
                    await both.invoke(call("create", data))
        taker = Taker()
        async with reading(AZURE, taker, **quick, encodeBase64="true", decodeBase64="true") as both:
            await both.invoke(call("create", data))
            assert await taker.has(1) == [message]


@pytest.mark.parametrize(
    ("settings", "metadata", "seconds"),
    [
        ({}, {}, 600),
        ({"ttlInSeconds": "90"}, {}, 90),
        ({"ttl": "2m"}, {}, 120),
        ({"ttlInSeconds": "90"}, {"ttlInSeconds": "30"}, 30),
        ({}, {"TTLINSECONDS": "30"}, 30),
    ],
)
async def test_azure_lifetime(settings: dict[str, str], metadata: dict[str, str], seconds: int) -> None:
    """Ten minutes, unless the component or the call says."""
    async with azure_queue() as (client, server), made(AZURE, **server, **settings) as out:
        await out.invoke(call("create", b"x", **metadata))
        found = await client.receive_message()
        assert (found.expires_on - found.inserted_on).total_seconds() == seconds


async def test_azure_delay() -> None:
    """A message is hidden at first where that is asked for."""
    async with azure_queue() as (client, settings):
        async with made(AZURE, **settings, initialVisibilityDelay="5m") as out:
            await out.invoke(call("create", b"x"))
            assert await client.receive_message() is None
            await out.invoke(call("create", b"y", initialVisibilityDelay="0"))
        found = await client.receive_message()
        assert found is not None
        assert found.content == "y"


async def test_azure_refused() -> None:
    """What is wrong is told with its name, what is away is asked again, and no secret is told."""
    async with azure_queue() as (_, settings), made(AZURE, **settings) as out:
        for metadata, named in (
            ({"ttlInSeconds": "0"}, "ttlInSeconds"),
            ({"ttlInSeconds": "1.5"}, "ttlInSeconds"),
            ({"initialVisibilityDelay": "8000h"}, "initialVisibilityDelay"),
            ({"initialVisibilityDelay": "x"}, "initialVisibilityDelay"),
            ({"initialVisibilityDelay": "60s", "ttlInSeconds": "60"}, "initialVisibilityDelay"),
        ):
            with pytest.raises(BindingError, match=named) as raised:
                await out.invoke(call("create", b"x", **metadata))
            assert not raised.value.retryable
        with pytest.raises(BindingError, match=r"RequestBodyTooLarge|413") as raised:
            await out.invoke(call("create", b"x" * 70_000))
        assert not raised.value.retryable
    with pytest.raises(BindingError, match="cannot be reached") as raised:
        async with made(AZURE, **{**settings, "endpoint": f"http://127.0.0.1:{free_port()}"}):
            pass
    assert raised.value.retryable
    assert ACCOUNT_KEY not in str(raised.value)
    with pytest.raises(BindingError, match=r"403|credentials") as raised:
        async with made(AZURE, **{**settings, "accountKey": b64encode(b"another").decode()}):
            pass
    assert not raised.value.retryable


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("visibilityTimeout", "500ms"),
        ("visibilityTimeout", "169h"),
        ("pollingInterval", "0"),
        ("ttlInSeconds", "0"),
        ("ttlInSeconds", "soon"),
        ("endpoint", "localhost"),
        ("decodeBase64", "perhaps"),
        ("queueName", ""),
    ],
)
def test_azure_settings(name: str, value: str) -> None:
    """What no queue has is told at the start."""
    given = {"accountName": "shop", "queueName": "orders", name: value}
    with pytest.raises(ConfigError, match=name):
        made(AZURE, **given)


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://127.0.0.1:10001", "http://127.0.0.1:10001/shop"),
        ("http://127.0.0.1:10001/shop", "http://127.0.0.1:10001/shop"),
        ("https://shop.queue.example.com", "https://shop.queue.example.com"),
        ("https://queues.example.com/a", "https://queues.example.com/a/shop"),
    ],
)
def test_azure_addresses(url: str, whole: str) -> None:
    """The account is put behind an address without it."""
    assert storagequeues.address_of(url, "shop") == whole


async def test_azure_events() -> None:
    """They tell what the service says; what is no base64 is not handed over, and keeps no other one from coming."""
    async with azure_queue() as (client, settings):
        await client.send_message("no base64!")
        sent = await client.send_message(b64encode(b"one").decode())
        taker = Taker(refuses=1)
        quick = {"pollingInterval": "100ms", "visibilityTimeout": "1s", "decodeBase64": "true"}
        async with reading(AZURE, taker, **settings, **quick):
            assert await taker.has(2) == [b"one", b"one"]
    first, second = (event.metadata for event in taker.events)
    assert first["messageID"] == second["messageID"] == sent.id
    assert (first["dequeueCount"], second["dequeueCount"]) == ("1", "2")
    assert first["insertionTime"] == sent.inserted_on.isoformat().replace("+00:00", "Z")
    assert {"popReceipt", "expirationTime", "nextVisibleTime"} <= first.keys()


async def test_azure_handled_long() -> None:
    """A message stays hidden while it is handled, and is gone when it was taken; one that was fetched comes again."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def handle(event: BindingEvent) -> bytes:
        begun.set()
        await go.wait()
        return b""

    async with azure_queue() as (client, settings):
        await client.send_message("one")
        async with reading(AZURE, handle, **settings, pollingInterval="100ms", visibilityTimeout="2s"):
            await begun.wait()
            async with asyncio.timeout(30):
                for _ in range(15):  # As long as it would be hidden, and half as long again.
                    assert await client.receive_message(visibility_timeout=1) is None
                    await asyncio.sleep(0.2)
            go.set()

        async def gone() -> None:
            assert (await client.get_queue_properties()).approximate_message_count == 0

        await eventually(gone)


async def test_azure_queue_made_again() -> None:
    """A queue that is not there is made, also when it is read again."""
    async with azure_queue() as (client, settings):
        await client.delete_queue()
        taker = Taker()
        async with reading(AZURE, taker, **settings, pollingInterval="100ms") as source:
            await source.invoke(call("create", b"x"))
            assert await taker.has(1) == [b"x"]
        with pytest.raises(BindingError, match="QueueNotFound"):
            async with reading(AZURE, taker, **settings, pollingInterval="100ms"):
                await client.delete_queue()
                await asyncio.sleep(60)
        async with reading(AZURE, taker, **settings, pollingInterval="100ms") as source:
            await source.invoke(call("create", b"y"))
            assert await taker.has(2) == [b"x", b"y"]


async def test_pubsub_data() -> None:
    """A message has the bytes as they are; its event tells of its attributes, its id and its time as Go writes it."""
    async with pubsub() as (client, settings):
        async with made(PUBSUB, **settings) as out:
            for data in (b'"text"', b"\x00\xff"):
                await out.invoke(call("create", data, orderingKey="a"))
        found: list[Any] = []

        async def pulled() -> None:
            answer = await client.post(f"subscriptions/{settings['subscription']}:pull", {"maxMessages": 10})
            found.extend(each["message"] for each in answer.get("receivedMessages", ()))
            await client.post(
                f"subscriptions/{settings['subscription']}:acknowledge",
                {"ackIds": [each["ackId"] for each in answer.get("receivedMessages", ())] or ["none"]},
            )
            assert len(found) >= 2

        await eventually(pulled)
        assert sorted((b64decode(each["data"]), each["orderingKey"]) for each in found) == [
            (b"\x00\xff", "a"),
            (b'"text"', "a"),
        ]
        taker = Taker()
        async with reading(PUBSUB, taker, **settings):
            await client.publish(settings["topic"], b"three", attributes={"colour": "red"})
            assert await taker.has(1) == [b"three"]
    metadata = taker.events[0].metadata
    assert metadata["colour"] == "red"
    assert metadata["id"]
    assert metadata["publishTime"].endswith(" +0000 UTC")


async def test_pubsub_order() -> None:
    """Messages of one key come in their order, and those behind one that was not taken come after it."""
    got: list[bytes] = []

    async def handle(event: BindingEvent) -> bytes:
        got.append(event.data)
        if event.data == b"a1" and got.count(b"a1") == 1:
            raise BindingError("not taken")
        return b""

    def all_there() -> None:
        assert {b"a1", b"a2", b"a3", b"b1"} <= {*got}
        assert got.count(b"a1") >= 2

    async with pubsub(enableMessageOrdering=True) as (client, settings):
        for data, key in ((b"a1", "a"), (b"a2", "a"), (b"b1", "b"), (b"a3", "a")):
            await client.publish(settings["topic"], data, orderingKey=key)
        async with reading(PUBSUB, handle, **settings):
            await eventually(all_there)
    keyed = [*dict.fromkeys(each for each in got if each.startswith(b"a"))]
    assert keyed == [b"a1", b"a2", b"a3"]
    assert got.index(b"a2") > [at for at, each in enumerate(got) if each == b"a1"][1]


async def test_pubsub_handled_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is no one else's while it is handled, and is gone when it was taken."""
    monkeypatch.setattr(pubsub_binding, "LEASE_SECONDS", 3)
    monkeypatch.setattr(pubsub_binding, "RENEW_SECONDS", 0.3)
    begun, go, got = asyncio.Event(), asyncio.Event(), list[bytes]()

    async def handle(event: BindingEvent) -> bytes:
        got.append(event.data)
        begun.set()
        await go.wait()
        return b""

    async with pubsub() as (client, settings):
        await client.publish(settings["topic"], b"one")
        async with reading(PUBSUB, handle, **settings):
            await begun.wait()
            await asyncio.sleep(5)  # As long as its lease, and half as long again.
            assert got == [b"one"]
            go.set()
        answer = await client.post(
            f"subscriptions/{settings['subscription']}:pull", {"maxMessages": 1, "returnImmediately": True}
        )
        assert not answer.get("receivedMessages")


async def test_pubsub_refused() -> None:
    """What is not there is told, and what is away is asked again."""
    async with pubsub() as (_, settings), made(PUBSUB, **settings) as out:
        with pytest.raises(BindingError, match="'nowhere': 404") as raised:
            await out.invoke(call("create", b"x", topic="nowhere"))
        assert not raised.value.retryable
    with pytest.raises(BindingError, match="'nowhere': 404"):
        async with reading(PUBSUB, Taker(), **{**settings, "subscription": "nowhere"}):
            await asyncio.sleep(60)
    away = {**settings, "endpoint": f"127.0.0.1:{free_port()}"}
    async with made(PUBSUB, **away) as out:
        with pytest.raises(BindingError, match="cannot be reached") as raised:
            await out.invoke(call("create", b"x"))
        assert raised.value.retryable


@pytest.mark.parametrize(
    ("settings", "directions"),
    [
        ({"topic": "orders", "subscription": "mine"}, ("input", "output")),
        ({"topic": "orders"}, ("output",)),
        ({"subscription": "mine"}, ("input", "output")),
        ({}, ("output",)),
    ],
)
async def test_pubsub_directions(settings: dict[str, str], directions: tuple[str, ...]) -> None:
    """It is read where it has a subscription; without a topic a call names one."""
    one = made(PUBSUB, project_id="shop", endpoint="127.0.0.1:1", **settings)
    assert one.directions == directions
    if "topic" not in settings:
        async with one:
            with pytest.raises(BindingError, match="topic"):
                await one.invoke(call("create", b"x"))


async def test_service_bus_data() -> None:
    """A message has the bytes as they are, and of the metadata its fields and properties, as its event."""
    sent = {
        "id": "one",
        "CorrelationId": "two",
        "Label": "new",
        "ReplyTo": "answers",
        "To": "there",
        "ContentType": "text/plain",
        "ttlInSeconds": "60",
        "colour": "red",
    }
    async with service_bus() as (_, settings):
        taker = Taker()
        async with reading(SERVICE_BUS, taker, **settings) as both:
            for count, data in enumerate((b'"text"', b"\x00\xff", b""), 1):
                await both.invoke(call("create", data, **sent))
                assert (await taker.has(count))[-1] == data
    told = taker.events[0].metadata
    expected = {("MessageId" if name == "id" else name): each for name, each in sent.items() if name != "ttlInSeconds"}
    assert expected.items() <= told.items()
    assert {"LockToken", "SequenceNumber", "EnqueuedTimeUtc", "LockedUntilUtc", "DeliveryCount"} <= told.keys()
    assert told["EnqueuedTimeUtc"].endswith(" GMT")


async def test_service_bus_later() -> None:
    """A message may be sent for later, and may be gone before it is read."""
    async with service_bus() as (_, settings):
        taker = Taker()
        async with made(SERVICE_BUS, **settings) as out:
            await out.invoke(call("create", b"gone", ttlInSeconds="1"))
            soon = datetime.now(UTC) + timedelta(seconds=2)
            await out.invoke(call("create", b"later", ScheduledEnqueueTimeUtc=format_datetime(soon, usegmt=True)))
            await out.invoke(call("create", b"later", ScheduledEnqueueTimeUtc=soon.isoformat().replace("+00:00", "Z")))
            await asyncio.sleep(1.5)  # Until the first one's time is over.
        async with reading(SERVICE_BUS, taker, **settings):
            assert await taker.has(2) == [b"later", b"later"]


async def test_service_bus_taken() -> None:
    """One message is handled at a time unless told; one that was not taken comes again, and the queue counts that."""
    async with service_bus() as (sender, settings):
        taker = Taker(refuses=2)
        await sender.send_messages(ServiceBusMessage(b"one"))
        async with reading(SERVICE_BUS, taker, **settings):
            assert await taker.has(3) == [b"one"] * 3
    assert [event.metadata["DeliveryCount"] for event in taker.events] == ["0", "1", "2"]


@pytest.mark.parametrize("handlers", ["0", "1"])
async def test_service_bus_handled_long(handlers: str) -> None:
    """A message stays locked while it is handled, and is gone when it was taken."""
    begun, go, got = asyncio.Event(), asyncio.Event(), list[bytes]()

    async def handle(event: BindingEvent) -> bytes:
        got.append(event.data)
        begun.set()
        await go.wait()
        return b""

    async with service_bus() as (sender, settings):
        await sender.send_messages(ServiceBusMessage(b"one"))
        several = {**settings, "maxConcurrentHandlers": handlers, "lockRenewalInSec": "1"}
        async with reading(SERVICE_BUS, handle, **several):
            await begun.wait()
            await asyncio.sleep(4)  # Twice as long as it is locked.
            assert got == [b"one"]
            go.set()
        taker = Taker()
        async with reading(SERVICE_BUS, taker, **settings):
            await sender.send_messages(ServiceBusMessage(b"two"))
            assert await taker.has(1) == [b"two"]


async def test_service_bus_lost() -> None:
    """A connection that broke is made again, and what is away may be tried again."""
    async with service_bus() as (_, settings), made(SERVICE_BUS, **settings) as out:
        for metadata, named in (
            ({"ttlInSeconds": "0"}, "ttlInSeconds"),
            ({"ScheduledEnqueueTimeUtc": "soon"}, "ScheduledEnqueueTimeUtc"),
            ({"SessionId": "a", "PartitionKey": "b"}, "SessionId"),
            ({"SessionId": "a" * 200}, "128"),
        ):
            with pytest.raises(BindingError, match=named) as raised:
                await out.invoke(call("create", b"x", **metadata))
            assert not raised.value.retryable
    for queue, key, named in (("none", SERVICE_BUS_KEY, "none"), ("queue", "d3Jvbmc=", "queue")):
        connection = ServiceBusServer.at(int(settings["connectionString"].partition(";")[0].rpartition(":")[2]), key)
        given = {"connectionString": connection, "queueName": queue, "publishMaxRetries": "0"}
        async with made(SERVICE_BUS, **given) as out:
            with pytest.raises(BindingError, match=named) as raised:
                await out.invoke(call("create", b"x"))
            assert key not in str(raised.value)
            with pytest.raises(BindingError, match=named):
                async with out.reading(Reading("in", "app", Taker())):
                    await asyncio.sleep(60)
    away = {"connectionString": ServiceBusServer.at(free_port()), "queueName": "queue", "publishMaxRetries": "0"}
    async with made(SERVICE_BUS, **away) as out:
        with pytest.raises(BindingError, match="queue") as raised:
            await out.invoke(call("create", b"x"))
        assert raised.value.retryable


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"connectionString": "Endpoint=sb://x"}, "connectionString"),
        ({"queueName": ""}, "queueName"),
        ({"ttlInSeconds": "0"}, "ttlInSeconds"),
        ({"maxConcurrentHandlers": "-1"}, "maxConcurrentHandlers"),
        ({"lockRenewalInSec": "0"}, "lockRenewalInSec"),
    ],
)
def test_service_bus_settings(settings: dict[str, str], named: str) -> None:
    """What no queue has is told at the start; a connection string is not."""
    with pytest.raises(ConfigError, match=named) as raised:
        made(SERVICE_BUS, **{"queueName": "orders", **settings})
    assert "Endpoint" not in str(raised.value)
