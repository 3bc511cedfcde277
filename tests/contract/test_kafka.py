"""What the contract does not ask of every broker, on a real Kafka."""

from __future__ import annotations

import asyncio
import logging
import re
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from brokers.kafka import KafkaBroker, _work
from brokers.kafka._frames_topic import TOPIC as FRAMES_TOPIC
from brokers.kafka._names import topic_name
from brokers.kafka._records import apart, new_batch
from brokers.kafka._work import READ_AT_ONCE
from mesh.address import Address
from mesh.blocks.pubsub import PubSub
from mesh.broker import Broker, Frame, Message, SubscribeOptions
from mesh.calls.exchange import Exchange, Request
from mesh.errors import BrokerUnavailableError, DeadlineExceededError, PublishRejectedError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry
from tests.support.backends import KafkaBackend, skip_unless_chosen
from tests.support.contract import Inbox, Place, text
from tests.support.eventually import eventually
from tests.support.kafka_server import KafkaServer

aiokafka_admin = pytest.importorskip("aiokafka.protocol.admin")
produce = pytest.importorskip("aiokafka.protocol.produce")
calc_crc32c = pytest.importorskip("aiokafka.record.util").calc_crc32c

CRC_AT, ATTRIBUTES_AT = 17, 21  # In a record batch.


@pytest.fixture(autouse=True, scope="module")
def _chosen(request: pytest.FixtureRequest) -> None:
    skip_unless_chosen(request.config, "kafka")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(_chosen: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaServer]:
    async with KafkaServer(tmp_path_factory.mktemp("kafka") / "server") as server:
        yield server


@pytest.fixture
async def place(server: KafkaServer) -> AsyncIterator[Place]:
    place = Place(KafkaBackend(server))
    async with place.stack:
        yield place


@pytest.fixture
async def broker(place: Place) -> KafkaBroker:
    broker = await place.connect()
    assert isinstance(broker, KafkaBroker)
    return broker


def unreadable() -> bytes:
    """Write a record that Kafka stores, and no client reads: the name of a header is no text."""
    builder = new_batch()
    builder.append(0, int(time.time() * 1000), b"k", b"2", [("XX", b"")])
    raw = bytearray(builder.build())
    at = raw.index(b"XX")
    raw[at : at + 2] = b"\xff\xfe"
    struct.pack_into(">I", raw, CRC_AT, calc_crc32c(bytes(raw[ATTRIBUTES_AT:])))
    return bytes(raw)


async def store(broker: KafkaBroker, topic: str, raw: bytes) -> None:
    """Store a batch as it is where key ``k`` goes."""
    await store_in(broker, topic, broker._partition(topic, "k", 1), raw)


async def store_in(broker: KafkaBroker, topic: str, partition: int, raw: bytes) -> None:
    leader = broker._cluster.leader(topic, partition)
    assert leader is not None
    request = produce.ProduceRequest(None, -1, 10_000, [(topic, [(partition, raw)])])
    response = await broker._cluster.call(leader, request, "test")
    assert response.topics[0][1][0][1] == 0


async def delete_before(broker: KafkaBroker, topic: str, offset: int) -> None:
    """Delete what is stored before an offset where key ``k`` goes."""
    partition = broker._partition(topic, "k", 1)
    leader = broker._cluster.leader(topic, partition)
    assert leader is not None
    request = aiokafka_admin.DeleteRecordsRequest([(topic, [(partition, offset)])], 10_000)
    response = await broker._cluster.call(leader, request, "test")
    assert response.topics[0][1][0][2] == 0


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.load("backbone.memory")  # Files are read now, not in the event loop.
    return registry


@pytest.mark.parametrize(
    ("settings", "group"),
    [
        ({}, "app"),
        ({"consumerID": "one"}, "one"),
        ({"consumerGroup": "two"}, "two"),
        ({"consumerGroup": "two", "consumerID": "one"}, "two"),
    ],
)
async def test_the_settings_that_name_the_group(
    server: KafkaServer, registry: Registry, settings: dict[str, str], group: str
) -> None:
    """As in Dapr, Kafka's own goes before that of every broker."""
    given = {"brokers": f"127.0.0.1:{server.port}", **settings}
    component = Component("c", "pubsub.kafka", tuple(MetadataEntry(*each) for each in given.items()), init_timeout=60)
    async with Runtime(NodeSettings("app", "default", "memory:", components=(component,)), registry) as node:
        service = node.services["pubsub"]
        assert isinstance(service, PubSub)
        assert service.components["c"].group == group


async def test_what_cannot_be_read_holds_up_its_partition_alone(
    broker: KafkaBroker, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_work, "UNREADABLE_WAIT", 0.1)
    address: Address = place.topic()
    topic = topic_name(address.text)
    inbox = Inbox()

    def complaints() -> list[logging.LogRecord]:
        return [record for record in caplog.records if "cannot read partition" in record.getMessage()]

    before = [b"%d" % number for number in range(READ_AT_ONCE)]
    await broker.publish_many(address, [text(body.decode(), key="k") for body in before])
    await store(broker, topic, unreadable())
    await broker.publish(address, text("3", key="k"))
    async with broker.subscribe(address, SubscribeOptions("g", max_in_flight=1), inbox):
        await eventually(lambda: _are(inbox, *before))
        await broker.publish(address, text("4", key="k"))  # It comes to a fetch that began behind what is unreadable.

        def tried_again() -> None:
            assert len(complaints()) >= 2

        await eventually(tried_again)
        other = next(key for key in map(str, range(100)) if _apart(broker, topic, key))
        await broker.publish(address, text("other", key=other))
        await eventually(lambda: _are(inbox, *before, b"other"))
        await delete_before(broker, topic, READ_AT_ONCE + 1)
        await eventually(lambda: _are(inbox, *before, b"other", b"3", b"4"))


def _apart(broker: KafkaBroker, topic: str, key: str) -> bool:
    return broker._partition(topic, key, 1) != broker._partition(topic, "k", 1)


def _are(inbox: Inbox, *bodies: bytes) -> None:
    assert inbox.bodies == list(bodies)


async def test_records_without_a_value_are_delivered(broker: KafkaBroker, place: Place) -> None:
    address = place.topic()
    await broker.publish(address, text("1", key="k"))
    builder = new_batch()
    builder.append(0, int(time.time() * 1000), b"k", None, [("nothing", None)])
    await store(broker, topic_name(address.text), bytes(builder.build()))
    inbox = Inbox()
    async with broker.subscribe(address, SubscribeOptions("g"), inbox):
        await eventually(lambda: _are(inbox, b"1", b""))
    assert inbox.deliveries[1].message == Message({"nothing": ""}, b"", "k")


async def test_frames_go_on_behind_what_cannot_be_read(
    broker: KafkaBroker, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: Request) -> None:
        await request.reply({}, request.body)

    other = await place.connect()
    async with Exchange(broker) as caller, Exchange(other) as callee, callee.serve(place.app(), "g", answer):
        await caller.request(place.app(), Message({}, b"1"), time.time() + 30)
        for partition in range(broker._cluster.partitions(FRAMES_TOPIC)):
            await store_in(broker, FRAMES_TOPIC, partition, unreadable())
        reply = await caller.request(place.app(), Message({}, b"2"), time.time() + 30)
    assert reply.body == b"2"
    assert any("cannot read all of" in record.getMessage() for record in caplog.records)


STRANGE: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = [
    (None, None, []),
    (b"cast", b"x", [(":a", None)]),
    (b"cast", b"x", [("", b"")]),
    *((kind, body, []) for kind in (b"node", b"note", b"bye") for body in (None, b"{", b"[]", b"1", b"null", b"\xff")),
    (b"node", b'{"n":"x","p":"x","s":[]}', []),
    (b"node", b'{"n":"x","p":1,"s":[1]}', []),
    (b"note", b'{"o":1}', []),
]


async def test_a_strange_record_is_in_no_other_record_s_way(broker: KafkaBroker, place: Place) -> None:
    """Of one batch, and of one fetch."""
    now, members = int(time.time() * 1000), place.app()
    builder = new_batch()
    for offset, (key, value, headers) in enumerate(STRANGE):
        assert builder.append(offset, now, key, value, headers) is not None
    assert builder.append(len(STRANGE), now, b"cast", b"good", [(":a", members.text.encode())]) is not None
    raw = bytes(builder.build())
    batches, _ = apart(unreadable() + raw, 0)
    with pytest.raises(UnicodeDecodeError):
        list(next(batches))
    assert len(list(next(batches))) == len(STRANGE) + 1
    got: list[Frame] = []
    async with broker.listen(members, got.append):
        await store_in(broker, FRAMES_TOPIC, 0, raw)
        await eventually(lambda: _came(got, b"good"))


def _came(got: list[Frame], body: bytes) -> None:
    assert [each.message and each.message.body for each in got] == [body]


async def test_refused_message_is_in_nobody_s_way(
    broker: KafkaBroker, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    topic = topic_name(place.topic().text)
    await broker._cluster.create(topic, 1, {"max.message.bytes": "20000"})
    inbox = Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        for number in range(3):
            await broker.publish(place.topic(), text(number))
            with pytest.raises(PublishRejectedError, match="MessageSizeTooLarge"):
                await broker.publish(place.topic(), Message({}, bytes(30_000)))
        await eventually(lambda: _are(inbox, b"0", b"1", b"2"))
    assert "sending again" not in caplog.text


async def test_outage_is_told_once(
    server: KafkaServer, broker: KafkaBroker, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]

    caplog.set_level(logging.INFO)
    inbox = Inbox()
    where = re.escape(broker._cluster.shown)
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await broker.publish(place.topic(), text("before"))
        await inbox.holds(1)
        caplog.clear()
        await server.stop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(broker.publish(place.topic(), text("meanwhile")))
            with pytest.raises(BrokerUnavailableError):
                await broker.check()
            await server.start()
        await inbox.holds(2, within=40)
        await eventually(lambda: _count(told(), 2))
    lost, back = told()
    assert re.fullmatch(rf"lost the connection to Kafka at {where}: \S.*", lost)
    assert re.fullmatch(rf"Kafka at {where} is back after \d+\.\d s", back)


def _count(found: list[str], count: int) -> None:
    assert len(found) >= count, found


async def test_calls_through_a_restart_lose_what_is_in_flight_at_most(server: KafkaServer, place: Place) -> None:
    async def answer(request: Request) -> None:
        await request.reply({}, request.body)

    stop = asyncio.Event()
    answered, lost = [0] * 8, [0] * 8

    async def call(worker: int) -> None:
        while not stop.is_set():
            try:
                await caller.request(place.app(), Message({}, b"x"), time.time() + 12)
                answered[worker] += 1
            except BrokerUnavailableError:  # It was not sent.
                await asyncio.sleep(0.05)
            except DeadlineExceededError:
                lost[worker] += 1

    def goes_on() -> None:
        assert all(now > before for now, before in zip(answered, noted, strict=True)), (answered, lost)

    one, other = await place.connect(), await place.connect()
    async with (
        Exchange(one) as caller,
        Exchange(other) as callee,
        callee.serve(place.app(), "g", answer),
        asyncio.TaskGroup() as tasks,
    ):
        for worker in range(len(answered)):
            tasks.create_task(call(worker))
        noted = [0] * len(answered)
        await eventually(goes_on)
        await server.restart(kill=True)
        noted = list(answered)
        await eventually(goes_on, within=60)
        stop.set()
    assert max(lost) <= 1, lost


async def test_first_members_of_a_group_wait_for_more_once(tmp_path: Path) -> None:
    """For each that comes meanwhile the broker waits again, for as long as the first one lets it."""

    async def subscribe(broker: Broker) -> None:
        async with broker.subscribe(place.topic(), SubscribeOptions("g"), Inbox()):
            joined.append(time.monotonic())
            await stop.wait()

    def all_joined() -> None:
        assert len(joined) == 2

    joined: list[float] = []
    stop = asyncio.Event()
    async with KafkaServer(tmp_path / "server", "group.initial.rebalance.delay.ms=8000\n") as server:
        place = Place(KafkaBackend(server))
        async with place.stack:
            one, other = await place.connect(), await place.connect()
            await one.publish(place.topic(), text("x"))
            assert isinstance(one, KafkaBroker)
            await one._check_order(place.topic(), SubscribeOptions("g"))  # Now there is a coordinator.
            began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(subscribe(one))
                tasks.create_task(subscribe(other))
                await eventually(all_joined, within=40)
                stop.set()
    assert max(joined) - began < 15
