"""Where events of a hub go, what they tell, where a reader begins and goes on; what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient, EventHubProducerClient
from azure.eventhub.amqp import AmqpAnnotatedMessage
from azure.storage.blob.aio import BlobServiceClient

from bindings.azure._checkpoints import CheckpointPlace, checkpoints
from brokers.clients.eventhubs import arriving, body_of
from mesh.blocks.binding_contract import BindingError, BindingEvent, Handle, Reading
from mesh.errors import ConfigError
from mesh.key_value import MemoryKeyValue
from mesh.registry import Registry
from mesh.resources.settings import settings_of, without_effect
from mesh.store import KeyValueStateStore, StateStore
from tests.support.azure_servers import (
    ACCOUNT,
    ACCOUNT_KEY,
    SERVICE_BUS_KEY,
    AzuriteServer,
    EventHubsServer,
    blob_connection,
)
from tests.support.bindings import call
from tests.support.bindings.clouds import event_hub
from tests.support.nodes import component
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.sharing import entered
from tests.support.taker import Taker

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.leaves_sockets,
]
HUBS = "bindings.azure.eventhubs"
STORAGE = f"AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY}"


def adapter(**settings: str) -> Any:
    return Registry().load(HUBS).from_component(component("in", HUBS, **settings))  # type: ignore[attr-defined]


def made(records: StateStore | None = None, **settings: str) -> AbstractAsyncContextManager[Any]:
    return entered(adapter(**settings), records)


@asynccontextmanager
async def reading(records: StateStore, handle: Handle, **settings: str) -> AsyncIterator[Any]:
    async with made(records, **settings) as source, source.reading(Reading("in", "app", handle)):
        yield source


async def test_goes_on() -> None:
    """A new reader begins with what comes; one that was there goes on, in order, with what nobody took."""
    records = KeyValueStateStore(MemoryKeyValue())
    async with event_hub() as (sender, settings):
        await sender.send_event(EventData(b"before"), partition_key="a")
        first = Taker(refuses=1)
        async with reading(records, first, **settings):
            await sender.send_event(EventData(b"one"), partition_key="a")
            await sender.send_event(EventData(b"two"), partition_key="a")
            assert await first.has(3) == [b"one", b"one", b"two"]
        await sender.send_event(EventData(b"three"), partition_key="a")
        second = Taker()
        async with reading(records, second, **settings):
            assert await second.has(1) == [b"three"]


@pytest.mark.parametrize(("asked", "properties"), [("false", {}), ("true", {"colour": "red", "size": "3"})])
async def test_metadata(asked: str, properties: dict[str, str]) -> None:
    """An event tells where it was; the properties of its application where that is asked for."""
    taker, records = Taker(), KeyValueStateStore(MemoryKeyValue())
    async with (
        event_hub() as (sender, settings),
        reading(records, taker, **settings, getAllMessageProperties=asked) as hub,
    ):
        await hub.invoke(call("create", b'"one"', partitionKey="a"))
        event = EventData(b"two")
        event.properties, event.message_id = {"colour": "red", "size": 3}, "m"
        await sender.send_event(event, partition_key="a")
        assert await taker.has(2) == [b'"one"', b"two"]
    one, two = (dict(each.metadata) for each in taker.events)
    assert all(each.pop("x-opt-enqueued-time").endswith("Z") for each in (one, two))
    assert one == {"x-opt-partition-key": "a", "x-opt-sequence-number": "0", "x-opt-offset": "0"}
    place = {"x-opt-partition-key": "a", "x-opt-sequence-number": "1", "x-opt-offset": "100"}
    assert two == {**place, "message-id": "m", **properties}


async def test_one_partition() -> None:
    """A component may be for one partition."""
    async with event_hub() as (sender, settings):
        taker = Taker()
        records = KeyValueStateStore(MemoryKeyValue())
        async with reading(records, taker, **settings, partitionID="1") as hub:
            await sender.send_event(EventData(b"other"), partition_id="0")
            for number in range(3):
                await hub.invoke(call("create", b"%d" % number))
            assert await taker.has(3) == [b"0", b"1", b"2"]


async def test_checkpoints(tmp_path: Path) -> None:
    """Where nothing is noted yet, a reader goes on where checkpoints of another say."""
    async with event_hub() as (sender, settings), AzuriteServer(tmp_path, "blob") as server:
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};"
            f"BlobEndpoint={server.url}/{ACCOUNT};"
        )
        for partition in ("0", "1"):
            for number in range(3):
                await sender.send_event(EventData(f"{partition}.{number}".encode()), partition_id=partition)
        async with BlobServiceClient.from_connection_string(connection) as blobs:
            container = await blobs.create_container("checkpoints")
            path = f"127.0.0.1/{settings['eventHub']}/shop/checkpoint"
            await container.upload_blob(f"{path}/0", b"", metadata={"offset": "100", "sequencenumber": "1"})
            await container.upload_blob(f"{path}/1", b"", metadata={"sequencenumber": "0"})
        store = {"storageConnectionString": connection, "storageContainerName": "checkpoints"}
        records, taker = KeyValueStateStore(MemoryKeyValue()), Taker()
        async with reading(records, taker, **settings, **store, consumerGroup="Shop"):
            assert sorted(await taker.has(3)) == [b"0.2", b"1.1", b"1.2"]
        again = Taker()
        async with reading(records, again, **settings, **store, consumerGroup="Shop"):
            await sender.send_event(EventData(b"new"), partition_id="0")
            assert await again.has(1) == [b"new"]


async def test_checkpoints_of_a_storage_that_is_busy_at_first() -> None:
    """It is asked again."""
    blobs = "<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>"
    answers = [("503 Server Busy", ""), ("200 OK", blobs)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status, body = answers.pop(0)
        head = f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
        writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        place = CheckpointPlace(blob_connection(server.sockets[0].getsockname()[1]), None, "checkpoints")
        assert await checkpoints(place, "host", "hub", "group") == {}
    assert not answers


async def test_a_partition_is_read_while_another_reading_of_it_ends() -> None:
    """As when the connection of that one does not close."""
    async with event_hub() as (sender, settings):

        def make() -> EventHubConsumerClient:
            connection, hub = settings["connectionString"], settings["eventHub"]
            return EventHubConsumerClient.from_connection_string(connection, "$Default", eventhub_name=hub)

        await sender.send_event(EventData(b"one"), partition_id="0")
        async with asyncio.timeout(30), arriving(make, "0", "-1") as first, arriving(make, "0", "-1") as second:
            for queue in (first, second):
                while not (events := await queue.get()):
                    pass
                assert [body_of(event) for event in events] == [b"one"]


@pytest.mark.parametrize(("hub", "key"), [("none", SERVICE_BUS_KEY), ("hub", "d3Jvbmc=")])
async def test_refused(hub: str, key: str) -> None:
    """A refusal is told without the key, and ends the reading."""
    async with event_hub() as (_, settings):
        port = int(settings["connectionString"].partition(";")[0].rpartition(":")[2])
    async with made(connectionString=EventHubsServer.at(port, key), eventHub=hub) as out:
        with pytest.raises(BindingError, match=hub) as raised:
            await out.invoke(call("create", b"x"))
        assert key not in str(raised.value)
        assert not raised.value.retryable
        with pytest.raises(BindingError, match=hub) as raised:
            async with out.reading(Reading("in", "app", Taker())):
                pytest.fail("what was refused cannot be read")
        assert key not in str(raised.value)
        assert not raised.value.retryable


async def test_away() -> None:
    """What is away may be tried again."""
    async with made(connectionString=EventHubsServer.at(free_port()), eventHub="hub") as out:
        with pytest.raises(BindingError, match="hub") as raised:
            await out.invoke(call("create", b"x"))
        assert raised.value.retryable
        with pytest.raises(BindingError, match="hub") as raised:
            async with out.reading(Reading("in", "app", Taker())):
                pytest.fail("what is away cannot be read")
        assert raised.value.retryable


async def test_no_such_group() -> None:
    """It ends the reading."""
    async with event_hub() as (_, settings), made(**settings, consumerGroup="none") as source:
        with pytest.raises(BindingError, match="'none'") as raised:
            async with source.reading(Reading("in", "app", Taker())):
                await asyncio.Event().wait()
        assert not raised.value.retryable


async def test_connection_lost() -> None:
    """Each event comes, in order, and one goes out at once where the connection was lost while nothing was sent."""
    taker = Taker()
    async with event_hub() as (sender, settings):
        server = settings["connectionString"]
        port = int(server.partition(";")[0].rpartition(":")[2])
        async with Proxy(port) as proxy:
            mine = {**settings, "connectionString": EventHubsServer.at(proxy.port), "partitionID": "1"}
            async with reading(KeyValueStateStore(MemoryKeyValue()), taker, **mine) as hub:
                await hub.invoke(call("create", b"0"))
                await taker.has(1)
                for number in range(1, 4):
                    assert proxy.cut() >= 2
                    await hub.invoke(call("create", b"%d" % number))
                    await sender.send_event(EventData(b"%d and more" % number), partition_id="1")
                    await taker.has(1 + 2 * number)
    numbered = [[b"%d" % number, b"%d and more" % number] for number in range(4)]
    assert [event.data for event in taker.events] == [b"0", *(each for pair in numbered[1:] for each in pair)]


@pytest.mark.parametrize("stalled", [False, True])
async def test_leaving_with_the_next_event_waiting(*, stalled: bool) -> None:
    """What is handled is noted, nothing further is taken, and a connection that is silent keeps nobody."""
    begun, release = asyncio.Event(), asyncio.Event()
    records, taken = KeyValueStateStore(MemoryKeyValue()), []

    async def handle(event: BindingEvent) -> bytes:
        begun.set()
        await release.wait()
        taken.append(event.data)
        return b""

    async def read(**settings: str) -> None:
        async with reading(records, handle, **settings):
            await begun.wait()

    async with event_hub() as (sender, settings):
        port = int(settings["connectionString"].partition(";")[0].rpartition(":")[2])
        async with Proxy(port) as proxy, asyncio.TaskGroup() as tasks:
            mine = {**settings, "connectionString": EventHubsServer.at(proxy.port), "consumerGroup": "shop"}
            async with reading(records, Taker(), **mine):
                pass  # The group is there from now on.
            task = tasks.create_task(read(**mine))
            for number in range(200):
                await sender.send_event(EventData(b"%d" % number), partition_id="0")
            await begun.wait()
            if stalled:
                proxy.stall()
            release.set()
            await task
            proxy.resume()
            rest = Taker()
            async with reading(records, rest, **mine):
                came = await rest.has(200 - len(taken))
    assert taken + came == [b"%d" % number for number in range(200)]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (AmqpAnnotatedMessage(value_body="text"), b"text"),
        (AmqpAnnotatedMessage(value_body={"a": [1, None, b"x"]}), b'{"a":[1,null,"x"]}'),
        (AmqpAnnotatedMessage(value_body=7), b"7"),
        (AmqpAnnotatedMessage(sequence_body=[[1, "two"], [3]]), b'[[1,"two"],[3]]'),
        (AmqpAnnotatedMessage(data_body=[b"one ", b"two"]), b"one two"),
        (AmqpAnnotatedMessage(data_body=b""), b""),
        (EventData(b"\xff"), b"\xff"),
    ],
)
async def test_bodies(event: EventData | AmqpAnnotatedMessage, data: bytes) -> None:
    """What is no bytes and no text comes as JSON."""
    taker = Taker()
    async with (
        event_hub() as (sender, settings),
        reading(KeyValueStateStore(MemoryKeyValue()), taker, **settings, partitionID="0"),
    ):
        await sender.send_event(event, partition_id="0")
        assert await taker.has(1) == [data]


async def test_too_large() -> None:
    """What the hub does not take is told with what it takes; what is just within it goes."""
    async with event_hub() as (_, settings), made(**settings) as out:
        for _ in range(2):
            with pytest.raises(BindingError, match="1048576 bytes") as raised:
                await out.invoke(call("create", bytes(1_048_576)))
            assert not raised.value.retryable
            await out.invoke(call("create", bytes(1_000_000)))


async def test_new_partition() -> None:
    """One that came later is read from its beginning, and one that was left out before from where that was."""
    async with event_hub("grows") as (sender, settings):
        records, taker = KeyValueStateStore(MemoryKeyValue()), Taker()
        async with reading(records, taker, **settings):
            await sender.send_event(EventData(b"one"), partition_id="0")
            await taker.has(1)
        async with EventHubProducerClient.from_connection_string(
            settings["connectionString"], eventhub_name=settings["eventHub"]
        ) as knowing:
            await knowing.send_event(EventData(b"two"), partition_id="1")
        async with reading(records, taker, **settings):
            assert await taker.has(2) == [b"one", b"two"]


async def test_partition_that_was_left_out() -> None:
    """It is read from where the others began."""
    async with event_hub() as (sender, settings):
        records, taker = KeyValueStateStore(MemoryKeyValue()), Taker()
        await sender.send_event(EventData(b"old"), partition_id="1")
        async with reading(records, taker, **settings, partitionID="0"):
            pass
        await sender.send_event(EventData(b"new"), partition_id="1")
        async with reading(records, taker, **settings):
            assert await taker.has(1) == [b"new"]


async def test_no_such_partition() -> None:
    """It is told as the reading begins."""
    async with event_hub() as (_, settings), made(**settings, partitionID="7") as source:
        with pytest.raises(BindingError, match="no partition '7'"):
            async with source.reading(Reading("in", "app", Taker())):
                await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"connectionString": "Endpoint=sb://x"}, "connectionString"),
        ({}, "connectionString"),
        ({"connectionString": EventHubsServer.at(1), "eventHub": ""}, "eventHub"),
        ({"connectionString": f"{EventHubsServer.at(1)};EntityPath=other"}, "eventHub"),
    ],
)
async def test_settings(settings: dict[str, str], named: str) -> None:
    """What no hub can be reached with is told at the start; a connection string is not."""
    with pytest.raises(ConfigError, match=named) as raised:
        async with made(**{"eventHub": "clicks", **settings}):
            pass
    assert "Endpoint" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"storageContainerName": "c"}, "storageContainerName"),
        ({"storageAccountName": "a"}, "storageAccountName"),
        ({"storageConnectionString": STORAGE}, "storageConnectionString"),
        ({"storageAccountKey": ACCOUNT_KEY}, "storageAccountKey"),
        ({"storageAccountKey": ACCOUNT_KEY, "storageContainerName": "c"}, "storageContainerName"),
        (
            {"storageAccountKey": ACCOUNT_KEY, "storageContainerName": "c", "storageConnectionString": STORAGE},
            "storageAccountKey",
        ),
        ({"storageAccountName": "a", "storageAccountKey": ACCOUNT_KEY}, "storageAccountName"),
        ({"storageAccountName": "a", "storageContainerName": "c"}, "storageAccountName"),
        (
            {"storageAccountName": "a", "storageContainerName": "c", "storageAccountKey": "not base64"},
            "storageAccountKey",
        ),
        ({"storageContainerName": "c", "storageConnectionString": "a"}, "storageConnectionString"),
    ],
)
def test_half_of_a_place_of_checkpoints(settings: dict[str, str], named: str) -> None:
    """It is refused as the component is read, at a setting, without a secret."""
    with pytest.raises(ConfigError) as raised:
        made(connectionString=EventHubsServer.at(1), eventHub="clicks", **settings)
    assert str(raised.value).startswith(named)
    assert not any(each in str(raised.value) for each in (ACCOUNT_KEY, STORAGE, "not base64"))


@pytest.mark.parametrize(
    "settings",
    [
        {"storageConnectionString": STORAGE},
        {"storageConnectionString": STORAGE, "storageAccountName": "a"},
        {"storageAccountName": "a", "storageAccountKey": ACCOUNT_KEY},
        {"storageAccountName": "a", "azureClientId": "b"},
    ],
)
async def test_places_of_checkpoints(settings: dict[str, str]) -> None:
    """Each way to say whole where they are."""
    async with made(connectionString=EventHubsServer.at(1), eventHub="clicks", storageContainerName="c", **settings):
        pass


async def test_hub_of_connection_string() -> None:
    """The connection string may name the hub."""
    async with event_hub() as (_, settings):
        named = f"{settings['connectionString']};EntityPath={settings['eventHub']}"
        async with made(connectionString=named) as out:
            await out.invoke(call("create", b"x"))


def test_documented_settings() -> None:
    """They load, and none is unknown; what has no effect is told."""
    given = {
        **dict.fromkeys(("eventHub", "consumerGroup", "storageAccountName", "storageContainerName"), "a"),
        **{"storageAccountKey": ACCOUNT_KEY, "storageConnectionString": STORAGE, "resourceGroupName": "a"},
        **{"eventHubNamespace": "shop", "enableEntityManagement": "true", "enableInOrderMessageDelivery": "false"},
        **{"subscriptionID": "a", "partitionCount": "1", "messageRetentionInDays": "3", "partitionID": "0"},
    }
    resource = component("in", HUBS, **given)
    declared = settings_of(adapter(**given).settings)
    assert given.keys() <= {name for each in declared for name in each.names}
    assert len(without_effect(resource, declared)) == 6
