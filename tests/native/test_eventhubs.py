"""Event hubs as every other program has them, read and written by Microsoft's own library, in groups shared with it.

The servers are a stand-in that speaks AMQP 1.0, and Azurite: nothing here ran against Azure.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.eventhub import EventData
from azure.eventhub.aio import EventHubConsumerClient, EventHubProducerClient
from azure.eventhub.extensions.checkpointstoreblobaio import BlobCheckpointStore
from azure.storage.blob.aio import ContainerClient

from brokers.native._eventhubs_member import Pace
from brokers.native._held import GoneError
from brokers.native.eventhubs import EventHubsTopics
from brokers.shared.errors import NotAdmittedError
from mesh import address
from mesh.address import Address
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, ConfigError, MessageTooLargeError, PublishRejectedError
from mesh.registry import Registry
from mesh.resources.settings import settings_of, without_effect
from tests.http.harness import App, Backbone, component, gateway, yaml
from tests.support.azure_servers import ACCOUNT, ACCOUNT_KEY, AzuriteServer, EventHubsServer, blob_connection
from tests.support.bindings.queues import shared
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.nodes import component as resource
from tests.support.nodes import unique
from tests.support.proxy import Proxy

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # Of the library's connections.
    pytest.mark.leaves_sockets,
]
HUBS = "pubsub.azure.eventhubs"
BINARY = b"\x00\xff\xfe"
QUICK = Pace(look=0.3, expires=3.0)
MEMBER = """
import asyncio, json, sys
from brokers.native._eventhubs_member import Pace
from mesh import address
from mesh.broker import SubscribeOptions
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry

settings, hub, group = json.loads(sys.argv[1]), *sys.argv[2:]
made = Component("shop", "pubsub.azure.eventhubs", tuple(MetadataEntry(*each) for each in settings.items()))
broker = Registry().load(made.type).from_component(made)
broker.pace = Pace(0.3, 3.0)

async def hold(delivery):
    print(delivery.message.body.decode(), flush=True)
    await asyncio.Event().wait()

async def main():
    async with broker, broker.subscribe(address.topic("test", "shop", hub), SubscribeOptions(group), hold):
        print("joined", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def server() -> EventHubsServer:
    return await shared("eventhubs", EventHubsServer)  # type: ignore[no-any-return]


@pytest.fixture
async def blobs() -> str:
    """The connection string of a storage account."""
    made = await shared("azurite-blob", lambda directory: AzuriteServer(directory, "blob"))
    return blob_connection(made.port)


@pytest.fixture
def group() -> str:
    return unique("App")


@pytest.fixture
def orders() -> Address:
    return address.topic("test", "shop", unique("Orders"))


def settings_for(connection: str, blobs: str) -> dict[str, str]:
    return {"connectionString": connection, "storageConnectionString": blobs, "storageContainerName": "notes"}


def broker_of(connection: str, blobs: str = "", **settings: str) -> EventHubsTopics:
    given = {**(settings_for(connection, blobs) if blobs else {"connectionString": connection}), **settings}
    made: EventHubsTopics = Registry().load(HUBS).from_component(resource("shop", HUBS, **given))  # type: ignore[attr-defined]
    made.pace = QUICK
    return made


def sender_to(server: EventHubsServer, hub: Address) -> EventHubProducerClient:
    return EventHubProducerClient.from_connection_string(server.connection, eventhub_name=hub.label)


def notes_in(blobs: str) -> BlobCheckpointStore:
    """The vendor's own store of checkpoints."""
    return BlobCheckpointStore.from_connection_string(blobs, "notes")


@asynccontextmanager
async def theirs(
    server: EventHubsServer, hub: Address, group: str, notes: BlobCheckpointStore | None = None
) -> AsyncIterator[list[EventData]]:
    """A member of the vendor's kind, or, without notes, one that reads everything from its beginning."""
    found: list[EventData] = []

    async def take(context: Any, events: list[EventData]) -> None:
        found.extend(events)
        if events and notes is not None:
            await context.update_checkpoint()

    options = {"checkpoint_store": notes, "load_balancing_interval": 0.3, "partition_ownership_expiration_interval": 3}
    client = EventHubConsumerClient.from_connection_string(server.connection, group, eventhub_name=hub.label, **options)
    async with client, asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(client.receive_batch(take, starting_position="-1"))
        try:
            yield found
        finally:
            reading.cancel()


async def has(found: list[Any], count: int) -> None:
    def check() -> None:
        assert len(found) >= count

    await eventually(check, 30)


async def test_what_is_published_stands_there_byte_for_byte(server: EventHubsServer, orders: Address) -> None:
    """Headers are its application's properties; a publisher's metadata but the key are not there, as with sidecars."""
    headers = {"cloudEvents_id": "1", "content-type": "image/png"}
    async with theirs(server, orders, "theirs") as found, broker_of(server.connection) as broker:
        await broker.publish(orders, Message(headers, BINARY, metadata={"partitionKey": "p", "kind": "x"}))
        asked = [Message({}, b"%d" % number, key="k") for number in range(150)]
        assert await broker.publish_many(orders, asked) == [None] * 150
        await has(found, 151)
    (first,) = (each for each in found if each.partition_key == b"p")
    assert (b"".join(first.body), first.content_type) == (BINARY, "image/png")  # type: ignore[arg-type]
    assert first.properties == {b"cloudEvents_id": b"1"}
    others = [each for each in found if each.partition_key == b"k"]
    assert [b"".join(each.body) for each in others] == [b"%d" % number for number in range(150)]  # type: ignore[arg-type]


@pytest.mark.parametrize("whole", ["false", "true"])
async def test_events_of_others(server: EventHubsServer, blobs: str, group: str, orders: Address, whole: str) -> None:
    """An event tells where it was; the properties of its application to applications that ask for them."""
    inbox = Inbox()
    options = SubscribeOptions(group, metadata={"requireAllProperties": whole})
    async with broker_of(server.connection, blobs) as broker, broker.subscribe(orders, options, inbox):
        event = EventData(BINARY)
        event.properties, event.message_id, event.content_type = {"kind": "é", "the size": 3}, "7", "a/b"
        async with sender_to(server, orders) as sender:
            await sender.send_event(event, partition_key="p")
        await inbox.holds(1, 30)
    message = inbox.deliveries[0].message
    assert (message.body, message.key) == (BINARY, "p")
    assert message.headers == {"kind": "é", "the size": "3", "content-type": "a/b"}
    told = dict(message.metadata)
    assert told.pop("x-opt-enqueued-time").endswith("Z")
    partition = told.pop("x-opt-partition-id")
    assert message.id == f"{orders.label}/{partition}/0"
    place = {"x-opt-sequence-number": "0", "x-opt-offset": "0", "x-opt-partition-key": "p", "message-id": "7"}
    assert told == place | ({"kind": "é", "the-size": "3"} if whole == "true" else {})


async def test_a_group_goes_on_where_it_was(server: EventHubsServer, blobs: str, group: str, orders: Address) -> None:
    """It begins with what comes; what nobody settled comes again, though what came behind it is settled."""
    delayed = asyncio.Event()

    async def settle(delivery: Delivery) -> None:
        if delivery.message.body == b"1":
            await delivery.nack(3600.0)
            delayed.set()
        else:
            await delivery.ack()

    first, second = Inbox(settle), Inbox()
    async with broker_of(server.connection, blobs) as broker, notes_in(blobs) as notes:
        await broker.publish(orders, Message({}, b"old"))
        async with broker.subscribe(orders, SubscribeOptions(group), first):
            async with sender_to(server, orders) as sender:
                for number in range(4):
                    await sender.send_event(EventData(b"%d" % number), partition_id="0")
            await first.holds(4, 30)
            await delayed.wait()
        assert sorted(first.bodies) == [b"0", b"1", b"2", b"3"]
        place = (f"127.0.0.1:{server.port}", orders.label, group)
        noted = {each["partition_id"]: each for each in await notes.list_checkpoints(*place)}
        owners = [each["owner_id"] for each in await notes.list_ownership(*place)]
        assert noted.keys() == {"0", "1"}
        (last,) = (each.message.metadata for each in first.deliveries if each.message.body == b"0")
        told = {"offset": last["x-opt-offset"], "sequence_number": int(last["x-opt-sequence-number"])}
        assert {name: noted["0"][name] for name in told} == told
        assert len(owners) == 2
        assert not any(owners)
        async with broker.subscribe(orders, SubscribeOptions(group), second):
            await second.holds(3, 30)
    assert second.bodies[:3] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("in_order", ["false", "true"])
async def test_who_waits_for_whom(
    server: EventHubsServer, blobs: str, group: str, orders: Address, in_order: str
) -> None:
    """Behind an event that waits are those of its key; with the setting all of its partition."""

    async def settle(delivery: Delivery) -> None:
        if delivery.message.body == b"a1" and delivery.attempt == 1:
            await delivery.nack(1.0)
        else:
            await delivery.ack()

    inbox = Inbox(settle)
    options = SubscribeOptions(group)
    async with broker_of(server.connection, blobs, enableInOrderMessageDelivery=in_order) as broker:
        async with broker.subscribe(orders, options, inbox):
            pass  # The group is there from now on.
        for key, body in (("a", b"a1"), ("a", b"a2"), ("c", b"c1")):  # The stand-in has both keys in one partition.
            await broker.publish(orders, Message({}, body, key=key))
        async with broker.subscribe(orders, options, inbox):
            await inbox.holds(4, 30)
    if in_order == "true":
        assert inbox.bodies == [b"a1", b"a1", b"a2", b"c1"]
    else:
        assert inbox.bodies == [b"a1", b"c1", b"a1", b"a2"]
    assert [each.attempt for each in inbox.deliveries if each.message.body == b"a1"] == [1, 2]


async def test_members_of_both_kinds_share_a_group(
    server: EventHubsServer, blobs: str, group: str, orders: Address
) -> None:
    """Each has a partition; when one leaves, the other one has both. Nothing is lost."""
    inbox = Inbox()

    async def publish(broker: EventHubsTopics, name: str, count: int) -> set[bytes]:
        made = [b"%s%d" % (name.encode(), number) for number in range(count)]
        for each in made:
            await broker.publish(orders, Message({}, each))
        return {*made}

    async with (
        broker_of(server.connection, blobs) as broker,
        notes_in(blobs) as notes,
        broker.subscribe(orders, SubscribeOptions(group), inbox),
    ):
        async with theirs(server, orders, group, notes) as found:

            async def each_has_one() -> None:
                owned = await notes.list_ownership(f"127.0.0.1:{server.port}", orders.label, group)
                assert len({each["owner_id"] for each in owned} - {""}) == 2

            await eventually(each_has_one, 30)
            sent = await publish(broker, "both", 10)

            def all_came() -> None:
                assert {b"".join(each.body) for each in found} | {*inbox.bodies} >= sent  # type: ignore[arg-type]

            await eventually(all_came, 30)
            assert found
            assert inbox.bodies
        sent = await publish(broker, "mine", 6)

        def mine_came() -> None:
            assert {*inbox.bodies} >= sent

        await eventually(mine_came, 30)


async def test_members_whose_clock_is_ahead(
    server: EventHubsServer, blobs: str, group: str, orders: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take nothing from each other: who is silent is told by the service's clock."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600.0)
    options, place = SubscribeOptions(group), (f"127.0.0.1:{server.port}", orders.label, group)
    async with broker_of(server.connection, blobs) as broker, notes_in(blobs) as notes:
        broker.pace = Pace(look=0.3, expires=60.0)
        async with broker.subscribe(orders, options, Inbox()), broker.subscribe(orders, options, Inbox()):
            owners: dict[str, str] = {}

            async def each_has_one() -> None:
                owners.update({each["partition_id"]: each["owner_id"] for each in await notes.list_ownership(*place)})
                assert len({*owners.values()}) == 2

            await eventually(each_has_one, 30)
            etags: set[str] = set()
            async with asyncio.timeout(30):
                while len(etags) < 6:  # Each is claimed anew, again and again.
                    for each in await notes.list_ownership(*place):
                        assert owners[each["partition_id"]] == each["owner_id"]
                        etags.add(each["etag"])


async def test_a_backlog_is_of_what_can_be_counted(
    server: EventHubsServer, blobs: str, group: str, orders: Address
) -> None:
    """Behind an offset alone nobody knows how many there are."""
    async with broker_of(server.connection, blobs) as broker, sender_to(server, orders) as sender:
        for partition in "001011":
            await sender.send_event(EventData(b"x"), partition_id=partition)
        async with ContainerClient.from_connection_string(blobs, "notes") as container:
            with suppress(ResourceExistsError):
                await container.create_container()
            path = f"127.0.0.1:{server.port}/{orders.label}/{group}/checkpoint".lower()
            await container.upload_blob(f"{path}/0", b"", metadata={"offset": "0"})
            await container.upload_blob(f"{path}/1", b"", metadata={"offset": "0", "sequencenumber": "0"})
        assert (await broker.backlog(orders, SubscribeOptions(group))).waiting == 2


async def test_a_member_that_is_killed(server: EventHubsServer, blobs: str, group: str, orders: Address) -> None:
    """Others have its partitions, and what it had not settled."""
    settings = json.dumps(settings_for(server.connection, blobs))
    arguments = (sys.executable, "-c", MEMBER, settings, orders.label, group)
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    inbox = Inbox()
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"joined\n"
            async with broker_of(server.connection, blobs) as broker:
                await broker.publish(orders, Message({}, b"held"))
                assert await process.stdout.readline() == b"held\n"
                os.kill(process.pid, signal.SIGKILL)
                async with broker.subscribe(orders, SubscribeOptions(group), inbox):
                    await broker.publish(orders, Message({}, b"after"))
                    await broker.publish(orders, Message({}, b"after too"))
                    await inbox.holds(3, 40)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert {*inbox.bodies} == {b"held", b"after", b"after too"}


async def test_restart_and_a_lost_connection(tmp_path: Path, blobs: str, group: str, orders: Address) -> None:
    """Publishing waits until the server is back; then events come, those that were settled not again."""
    inbox = Inbox()
    async with EventHubsServer(tmp_path / "server") as server, Proxy(server.port) as proxy:
        connection = EventHubsServer.at(proxy.port)
        async with (
            broker_of(connection, blobs) as broker,
            broker.subscribe(orders, SubscribeOptions(group), inbox),
        ):
            for number in range(2):
                await broker.publish(orders, Message({}, b"before %d" % number))
            await inbox.holds(2, 30)
            assert proxy.cut()
            await broker.publish(orders, Message({}, b"cut"))
            await inbox.holds(3, 30)
            await server.restart(kill=True)
            async with asyncio.timeout(30):
                await broker.publish(orders, Message({}, b"restarted"))
            await inbox.holds(4, 30)
    assert sorted(inbox.bodies) == [b"before 0", b"before 1", b"cut", b"restarted"]


def _called(app: App) -> None:
    assert app.got


async def test_through_a_gateway(tmp_path: Path, server: EventHubsServer, blobs: str) -> None:
    """What a hub tells are headers of the call; what an application publishes is an envelope."""
    topic, own = unique("orders"), unique("app")
    hub = address.topic("test", "shop", topic)
    kind = component("shop", HUBS, **settings_for(server.connection, blobs))
    metadata = {"rawPayload": "true", "requireAllProperties": "true"}
    told = yaml("Subscription", topic, {"topic": topic, "route": "/take", "pubsubname": "shop", "metadata": metadata})
    async with (
        App() as app,
        gateway(Backbone("memory:"), tmp_path, app=app, app_id=own, resources=kind + told) as node,
        theirs(server, hub, "theirs") as found,
        sender_to(server, hub) as sender,
    ):
        event = EventData(BINARY)
        event.properties = {"kind": "x"}
        await sender.send_event(event, partition_key="p")
        await eventually(lambda: _called(app), 30)
        headers = app.got[0].headers
        assert (headers["x-opt-partition-key"], headers["x-opt-offset"], headers["kind"]) == ("p", "0", "x")
        reply = await node.post(f"/v1.0/publish/shop/{topic}?metadata.partitionKey=k", b'{"n":1}', "application/json")
        assert reply.status == 204
        await has(found, 2)
    (event,) = (each for each in found if each.partition_key == b"k")
    envelope = json.loads(b"".join(event.body))  # type: ignore[arg-type]
    assert (envelope["data"], envelope["topic"], envelope["pubsubname"]) == ({"n": 1}, topic, "shop")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "connectionString"),
        ({"connectionString": "no"}, "connectionString"),
        ({"connectionString": EventHubsServer.at(1), "enableEntityManagement": "true"}, "enableEntityManagement"),
        ({"connectionString": EventHubsServer.at(1), "storageAccountName": "a"}, "storageAccountName"),
        ({"connectionString": EventHubsServer.at(1), "layout": "mesh"}, "layout"),
    ],
)
async def test_settings_that_are_refused(settings: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        async with Registry().load(HUBS).from_component(resource("shop", HUBS, **settings)):  # type: ignore[attr-defined]
            pass


async def test_logins_that_are_refused(server: EventHubsServer) -> None:
    with pytest.raises(NotAdmittedError) as refused:
        async with broker_of(EventHubsServer.at(server.port, key="d3Jvbmc=")):
            pass
    assert "d3Jvbmc=" not in str(refused.value)
    with pytest.raises(BrokerUnavailableError):
        async with broker_of(EventHubsServer.at(1)):
            pass


async def test_publishing_that_is_refused(server: EventHubsServer, orders: Address) -> None:
    async with broker_of(f"{server.connection};EntityPath={orders.label}") as broker:
        with pytest.raises(PublishRejectedError, match="partitionKey"):
            await broker.publish(orders, Message({}, b"x", key="x" * 129))
        with pytest.raises(MessageTooLargeError):
            await broker.publish(orders, Message({}, b"x" * 1_000_001))
        await broker.publish(orders, Message({}, b"x" * 1_000_000))
        with pytest.raises(PublishRejectedError, match="EntityPath"):
            await broker.publish(address.topic("test", "shop", "another"), Message({}, b"x"))
    missing = address.topic("test", "shop", unique("none"))
    async with broker_of(server.connection) as broker:
        with pytest.raises(PublishRejectedError, match="is not there"):
            await broker.publish(missing, Message({}, b"x"))


async def test_subscribing_that_is_refused(server: EventHubsServer, blobs: str, group: str, orders: Address) -> None:
    missing = address.topic("test", "shop", unique("none"))

    async def subscribe(broker: EventHubsTopics, topic: Address, options: SubscribeOptions) -> None:
        async with asyncio.timeout(30), broker.subscribe(topic, options, Inbox()):
            await asyncio.Event().wait()

    async with broker_of(server.connection) as broker:
        with pytest.raises(ConfigError, match="storageContainerName is needed"):
            await subscribe(broker, orders, SubscribeOptions(group))
    async with broker_of(server.connection, blobs) as broker:
        for topic, options in (
            (missing, SubscribeOptions(group)),
            (orders, SubscribeOptions(group, dead_letters=missing)),
            (orders, SubscribeOptions(unique("none"))),
        ):
            with pytest.raises(GoneError, match="is not there"):
                await subscribe(broker, topic, options)


async def test_notes_that_cannot_be_had(server: EventHubsServer, group: str, orders: Address) -> None:
    """The error tells which, without the account's key."""
    async with broker_of(server.connection, blob_connection(1)) as broker:
        with pytest.raises(BrokerError, match="'notes'") as raised:
            async with broker.subscribe(orders, SubscribeOptions(group), Inbox()):
                pytest.fail("without notes nothing can be read")
    assert ACCOUNT_KEY not in str(raised.value)


def test_documented_settings() -> None:
    """They load, and none is unknown; what has no effect is told."""
    given = {
        **dict.fromkeys(("consumerGroup", "storageAccountName", "storageContainerName", "resourceGroupName"), ACCOUNT),
        **{"eventHubNamespace": "shop", "enableEntityManagement": "false", "enableInOrderMessageDelivery": "true"},
        **{
            "subscriptionID": "a",
            "partitionCount": "1",
            "messageRetentionInDays": "3",
            "storageAccountKey": ACCOUNT_KEY,
        },
        **{"getAllMessageProperties": "true", "storageConnectionString": blob_connection(1), "consumerID": ""},
    }
    made = resource("shop", HUBS, **given)
    loaded = Registry().load(HUBS)
    declared = settings_of(loaded.from_component(made).settings)  # type: ignore[attr-defined]
    assert given.keys() <= {name for each in declared for name in each.names}
    assert len(without_effect(made, declared)) == 4
