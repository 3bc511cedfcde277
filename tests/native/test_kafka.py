"""Kafka topics that are shared with other programs: names and bytes as these see them, by a client of another make."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from brokers.native import _lanes
from brokers.native._kafka_producer import partition_of
from brokers.native.kafka import KafkaTopics
from gateway.cli import main
from mesh import address
from mesh.address import Address
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    MessageTooLargeError,
    PublishRejectedError,
    TopologyMismatchError,
)
from tests.e2e.test_doctor import COMPONENT, SUBSCRIPTION
from tests.http import harness
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.kafka_server import MAKES_TOPICS, KafkaServer, find_kafka
from tests.support.proxy import Proxy
from tests.support.reference.kafka import Sidecar, envelope, publish
from tests.support.security import component

WITHIN = 60.0
BINARY = b"\xff\x00key\xc3"  # It is no UTF-8.


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaServer]:
    async with KafkaServer(tmp_path_factory.mktemp("kafka"), MAKES_TOPICS) as server:
        yield server


def topics(bootstrap: str, **settings: str) -> KafkaTopics:
    """A component with these settings."""
    settings = {"brokers": bootstrap, "authType": "none", "sessionTimeout": "3s", **settings}
    return KafkaTopics.from_component(component("pubsub.kafka", **settings))


def at(topic: str, *, pattern: bool = False) -> Address:
    return address.topic("test", "kafka", topic, pattern=pattern)


def written(server: KafkaServer, topic: str, count: int) -> list[Any]:
    """Read a topic from its beginning, by the other client."""
    consumer = KafkaConsumer(bootstrap_servers=server.bootstrap, auto_offset_reset="earliest", group_id=None)
    try:
        number = len(consumer.partitions_for_topic(topic) or ())
        consumer.assign([TopicPartition(topic, each) for each in range(number)])
        found: list[Any] = []
        end = time.monotonic() + WITHIN
        while len(found) < count and time.monotonic() < end:
            for records in consumer.poll(timeout_ms=500).values():
                found += records
        return found
    finally:
        consumer.close()


def write(server: KafkaServer, topic: str, *records: Mapping[str, Any]) -> None:
    """Write records as any program does."""
    producer = KafkaProducer(bootstrap_servers=server.bootstrap)
    for each in records:
        producer.send(topic, **each).get(WITHIN)
    producer.close()


def make_topic(server: KafkaServer, topic: str, partitions: int = 1) -> None:
    admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
    admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1}})
    admin.close()


def committed(server: KafkaServer, group: str) -> dict[tuple[str, int], int]:
    admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
    try:
        found = admin.list_group_offsets(group)
    finally:
        admin.close()
    found = found.get(group, found)
    return {(at.topic, at.partition): each.offset for at, each in found.items()}


async def test_record_as_others_see_it(server: KafkaServer, topic: str) -> None:
    """The key, each metadata as a header, and any bytes; one without a key has none."""
    metadata = {"partitionKey": "pk1", "foo": "é", "ttlInSeconds": "60"}
    async with topics(server.bootstrap) as ours:
        await ours.publish(at(topic), Message({"ce_id": "1"}, b"\x00\xff", "pk1", None, metadata))
        results = await ours.publish_many(at(topic), [Message({}, b"a"), Message({}, b"b", "pk1")])
    assert results == [None, None]
    records = await asyncio.to_thread(written, server, topic, 3)
    found = {each.value: each for each in records}
    assert dict(found[b"\x00\xff"].headers) == {
        "partitionKey": b"pk1", "foo": "é".encode(), "ttlInSeconds": b"60", "ce_id": b"1"
    }  # fmt: skip
    assert len(found[b"\x00\xff"].headers) == 4
    assert [found[body].key for body in (b"\x00\xff", b"a", b"b")] == [b"pk1", None, b"pk1"]
    assert found[b"\x00\xff"].partition == found[b"b"].partition
    assert found[b"\x00\xff"].offset < found[b"b"].offset


async def test_partition_by_number_and_by_key(server: KafkaServer, topic: str) -> None:
    async with topics(server.bootstrap) as ours:
        for number in range(4):
            await ours.publish(at(topic), Message({}, b"n%d" % number, None, None, {"partitionNumber": str(number)}))
        for number in range(20):
            await ours.publish(at(topic), Message({}, b"k%d" % number, f"k{number}"))
        with pytest.raises(Exception, match="has no partition 4"):
            await ours.publish(at(topic), Message({}, b"", None, None, {"partitionNumber": "4"}))
        [left, right] = await ours.publish_many(
            at(topic), [Message({}, b"", None, None, {"partitionNumber": "x"}), Message({}, b"last", "k1")]
        )
        assert isinstance(left, BrokerError)
        assert right is None
    records = await asyncio.to_thread(written, server, topic, 25)
    where = {each.value.decode(): each.partition for each in records}
    assert [where[f"n{number}"] for number in range(4)] == [0, 1, 2, 3]
    await asyncio.to_thread(
        publish, server.bootstrap, topic, [(number, {"partitionKey": f"k{number}"}) for number in range(20)]
    )
    theirs = [each for each in await asyncio.to_thread(written, server, topic, 45) if each.value.startswith(b"{")]
    assert {json.loads(each.value)["data"]: each.partition for each in theirs} == {
        number: where[f"k{number}"] for number in range(20)
    }


async def test_bulk_of_many_batches_is_in_order(server: KafkaServer, topic: str) -> None:
    keys = [None, "a", "b", "c"]
    some = [Message({}, b"%d " % n + b"x" * (300_000 if n == 50 else 1000), keys[n % 4]) for n in range(700)]
    too_large = Message({}, b"x" * 70 * 1024 * 1024)
    async with topics(server.bootstrap) as ours:
        [*results, last] = await ours.publish_many(at(topic), [*some, too_large])
    assert results == [None] * 700
    assert isinstance(last, MessageTooLargeError)
    found: dict[bytes | None, list[int]] = {}
    for record in sorted(await asyncio.to_thread(written, server, topic, 700), key=lambda each: each.offset):
        found.setdefault(record.key, []).append(int(record.value.split()[0]))
    assert found == {key and key.encode(): list(range(at_, 700, 4)) for at_, key in enumerate(keys)}


async def test_dead_letter_asks_nothing(server: KafkaServer, topic: str) -> None:
    """What its event's publisher asked of another topic is told of it, and may be impossible here."""
    told = {"partitionNumber": "7", "valueSchemaType": "Avro"}
    letter = Message({"mesh-dead-letter-topic": "orders"}, b"letter", "k", None, told)
    async with topics(server.bootstrap) as ours:
        await ours.publish(at(topic), letter)
        assert await ours.publish_many(at(topic), [letter]) == [None]
    for record in await asyncio.to_thread(written, server, topic, 2):
        assert {name: value.decode() for name, value in record.headers} == {**letter.headers, **told}


def test_partition_of_a_key_is_as_sidecars_choose_it() -> None:
    """By test vectors of FNV-1a: `a` is e40c292c, a negative number of 32 bits; the empty one 811c9dc5."""
    assert [partition_of(b"a", count) for count in (1, 4, 7, 1000)] == [0, 0, 468965076 % 7, 76]
    assert partition_of(b"foobar", 10) == (2**32 - 0xBF9CF968) % 10


async def test_record_of_another_program(server: KafkaServer, topic: str) -> None:
    """What an application is to be told stands in the metadata, and headers are as on the wire."""
    inbox = Inbox()
    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), SubscribeOptions("g"), inbox):
        headers = [("content-type", b"text/plain"), ("X", b"\xff"), ("twice", b"1"), ("twice", b"2"), ("none", b"")]
        record = {"value": b"\x00raw", "key": b"\xe9", "headers": headers, "timestamp_ms": 1_700_000_000_123}
        await asyncio.to_thread(write, server, topic, {**record, "partition": 2}, {"value": None, "key": b"gone"})
        await inbox.holds(2, WITHIN)
    found = {delivery.message.key: delivery for delivery in inbox.deliveries}
    message = found["\udce9"].message
    told = {"content-type": "text/plain", "X": "\ufffd", "twice": "2", "none": ""}
    assert message.headers == told
    assert message.metadata == {
        **told, "__key": "\ufffd", "__topic": topic, "__partition": "2", "__offset": "0", "__timestamp": "1700000000123"
    }  # fmt: skip
    assert (message.body, found["gone"].message.body) == (b"\x00raw", b"")
    assert found["\udce9"].address == at(topic)


async def test_record_that_cannot_be_read(server: KafkaServer, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    """It holds up its partition, is named, and nothing else waits for it."""

    class Odd(str):
        __slots__ = ()

        def encode(self, *how: Any) -> bytes:
            return b"\xff"

    records: list[dict[str, Any]] = [{"value": b"%d" % number, "partition": 0} for number in range(3)]
    odd = {"value": b"odd", "partition": 0, "headers": [(Odd("x"), b"")]}
    await asyncio.to_thread(write, server, topic, *records, odd, {"value": b"other", "partition": 1})
    inbox, ours = Inbox(), topics(server.bootstrap, initialOffset="oldest")
    async with ours, ours.subscribe(at(topic), SubscribeOptions("g"), inbox):
        await inbox.holds(4, WITHIN)
        await eventually(lambda: _named(caplog, f"topic {topic}, partition 0: a record at offset 3 "), WITHIN)
        await asyncio.to_thread(write, server, topic, {"value": b"later", "partition": 1})
        await inbox.holds(5, WITHIN)
    assert sorted(inbox.bodies) == [b"0", b"1", b"2", b"later", b"other"]
    offsets = await asyncio.to_thread(committed, server, "g")
    assert (offsets[topic, 0], offsets[topic, 1]) == (3, 2)


def _named(caplog: pytest.LogCaptureFixture, what: str) -> None:
    assert [what in each.getMessage() for each in caplog.records].count(True) == 1


async def test_escaped_and_excluded_headers(server: KafkaServer, topic: str) -> None:
    inbox = Inbox()
    settings = {"escapeHeaders": "true", "excludeHeaderMetaRegex": "^secret"}
    ours = topics(server.bootstrap, **settings)
    async with ours, ours.subscribe(at(topic), SubscribeOptions("g"), inbox):
        await ours.publish(at(topic), Message({}, b"x", None, None, {"a": "b c", "secret1": "s"}))
        await asyncio.to_thread(write, server, topic, {"value": b"y", "headers": [("d", b"e\nf")]})
        await inbox.holds(2, WITHIN)
    found = {delivery.message.body: delivery.message for delivery in inbox.deliveries}
    assert found[b"x"].headers == {"a": "b+c"}
    assert found[b"y"].metadata["d"] == "e%0Af"


async def test_group_begins_with_the_newest_and_skips_nothing_after(server: KafkaServer, topic: str) -> None:
    """Its position is committed before anything came: what fails, and what comes while nobody is there, is kept."""

    async def fail(delivery: Delivery) -> None:
        await delivery.nack(60.0)

    failing, inbox = Inbox(fail), Inbox()
    await asyncio.to_thread(write, server, topic, {"value": b"before"})
    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), SubscribeOptions("g"), failing):
        await asyncio.to_thread(write, server, topic, {"value": b"fails"})
        await failing.holds(1, WITHIN)
    await asyncio.to_thread(write, server, topic, {"value": b"meanwhile"})
    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), SubscribeOptions("g"), inbox):
        await inbox.holds(2, WITHIN)
        await ours.publish(at(topic), Message({}, b"after"))
        await inbox.holds(3, WITHIN)
    assert sorted(inbox.bodies) == [b"after", b"fails", b"meanwhile"]
    offsets = await asyncio.to_thread(committed, server, "g")
    assert sum(offset for (name, _), offset in offsets.items() if name == topic) == 4


async def test_group_goes_on_with_what_is_left_of_its_topic(server: KafkaServer, topic: str) -> None:
    """What it has not handled is let go of in part: the rest comes, though a new group begins with the newest."""
    await asyncio.to_thread(make_topic, server, topic)
    inbox, later = Inbox(), Inbox()
    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), SubscribeOptions("g"), inbox):
        await asyncio.to_thread(write, server, topic, {"value": b"0"})
        await inbox.holds(1, WITHIN)
    await asyncio.to_thread(write, server, topic, *({"value": b"%d" % number} for number in range(1, 5)))

    def let_go() -> None:
        admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
        admin.delete_records({TopicPartition(topic, 0): 3})
        admin.close()

    await asyncio.to_thread(let_go)
    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), SubscribeOptions("g"), later):
        await later.holds(2, WITHIN)
    assert later.bodies == [b"3", b"4"]


async def test_oldest(server: KafkaServer, topic: str) -> None:
    inbox = Inbox()
    await asyncio.to_thread(write, server, topic, {"value": b"before"})
    ours = topics(server.bootstrap, initialOffset="oldest")
    async with ours, ours.subscribe(at(topic), SubscribeOptions("g"), inbox):
        await inbox.holds(1, WITHIN)


async def test_failing_record_holds_up_its_key_alone(server: KafkaServer, topic: str) -> None:
    """Those of other keys of its partition go on; what is committed stays below it."""
    settled: list[bytes] = []
    wanted = asyncio.Event()

    async def work(delivery: Delivery) -> None:
        if delivery.message.body == b"a0" and not wanted.is_set():
            await delivery.nack(0.05)
        else:
            settled.append(delivery.message.body)
            await delivery.ack()

    async def others() -> None:
        assert len(settled) == 3

    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), SubscribeOptions("h"), work):
        records = [("a", b"a0"), ("b", b"b0"), ("a", b"a1"), (None, b"n0"), (None, b"n1")]
        there = {"partitionNumber": "1"}
        await ours.publish_many(at(topic), [Message({}, body, key, None, there) for key, body in records])
        await eventually(others)
        assert settled == [b"b0", b"n0", b"n1"]
        offsets = await asyncio.to_thread(committed, server, "h")
        assert offsets[topic, 1] == 0
        wanted.set()

        def all_of_them() -> None:
            assert settled[3:] == [b"a0", b"a1"]

        await eventually(all_of_them)
    offsets = await asyncio.to_thread(committed, server, "h")
    assert offsets[topic, 1] == 5


async def test_no_more_than_a_window_goes_on_past_a_failing_record(server: KafkaServer, topic: str) -> None:
    fails, counted = True, 0

    async def work(delivery: Delivery) -> None:
        nonlocal counted
        counted += 1
        await (delivery.nack(0.5) if fails and delivery.message.body == b"0" else delivery.ack())

    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), SubscribeOptions("w"), work):
        there = {"partitionNumber": "0"}
        messages = [Message({}, b"%d" % number, f"k{number}", None, there) for number in range(4000)]
        assert await ours.publish_many(at(topic), messages) == [None] * 4000

        def full() -> None:
            assert counted >= 1000

        await eventually(full)
        fails = False

        def done() -> None:
            assert counted >= 4000

        await eventually(done, WITHIN)


async def test_few_bytes_are_held_of_all_partitions_together(
    server: KafkaServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they are in; and something of each partition, so that none waits for the others."""
    monkeypatch.setattr(_lanes, "ROOM_BYTES", 300_000)
    monkeypatch.setattr(_lanes, "FIRST_BYTES", 100_000)
    partitions, size = 6, 40_000
    await asyncio.to_thread(make_topic, server, topic, partitions)
    parts = {"value": b"v" * (size // 3), "key": b"k" * (size // 3), "headers": [("h", b"h" * (size // 3))]}
    held, go_on = list[str](), asyncio.Event()

    async def work(delivery: Delivery) -> None:
        held.append(delivery.message.metadata["__partition"])
        await go_on.wait()
        await delivery.ack()

    def some(number: int) -> None:
        assert len(set(held)) == number

    options = SubscribeOptions("g", max_in_flight=1000, metadata={"ordered": "false"})
    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), options, work):
        await asyncio.to_thread(write, server, topic, *[{**parts, "partition": 0}] * 20)
        await eventually(lambda: some(1))
        await asyncio.to_thread(write, server, topic, *[{**parts, "partition": each} for each in range(1, 6)] * 10)
        await eventually(lambda: some(partitions))
        assert len(held) <= 300_000 // size + 3 + partitions
        go_on.set()

        def all_of_them() -> None:
            assert len(held) == 20 + 50

        await eventually(all_of_them, WITHIN)


async def test_unordered_subscription(server: KafkaServer, topic: str) -> None:
    """Those without a key go on past one that fails; no two of one key need wait for each other."""
    inbox, go_on = Inbox(), asyncio.Event()

    async def work(delivery: Delivery) -> None:
        if delivery.message.body == b"0":
            await go_on.wait()
        await inbox(delivery)

    options = SubscribeOptions("g", metadata={"ordered": "false"})
    async with topics(server.bootstrap) as ours, ours.subscribe(at(topic), options, work):
        there = {"partitionNumber": "1"}
        await ours.publish_many(at(topic), [Message({}, b"%d" % number, "k", None, there) for number in range(5)])
        await inbox.holds(4, WITHIN)
        assert sorted(inbox.bodies) == [b"1", b"2", b"3", b"4"]
        go_on.set()
        await inbox.holds(5, WITHIN)


async def test_pattern_finds_topics_and_partitions_that_come_later(server: KafkaServer, topic: str) -> None:
    """With what was written before they were found; other topics are not read."""
    inbox, there = Inbox(), f"{topic}.eu.new"

    def add() -> None:
        admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
        admin.create_partitions({there: 6})
        admin.close()
        write(server, there, {"value": b"added", "partition": 5})

    async with topics(server.bootstrap) as ours:
        await ours.publish(at(there), Message({}, b"before"))
        async with ours.subscribe(at(f"{topic}.*.new", pattern=True), SubscribeOptions("g"), inbox):
            await ours.publish(at(there), Message({}, b"1"))
            await ours.publish(at(f"{topic}.eu.old"), Message({}, b"other"))
            await asyncio.to_thread(add)
            await ours.publish(at(f"{topic}.us.new"), Message({}, b"2"))
            await inbox.holds(3, WITHIN)
    assert sorted(inbox.bodies) == [b"1", b"2", b"added"]
    assert {delivery.address for delivery in inbox.deliveries} == {at(there), at(f"{topic}.us.new")}


async def test_broadcast_leaves_no_group_behind(server: KafkaServer, topic: str) -> None:
    inbox = Inbox()
    async with topics(server.bootstrap) as ours:
        await ours.publish(at(topic), Message({}, b"before"))
        async with ours.subscribe(at(topic), SubscribeOptions("eph", ephemeral=True), inbox):
            await ours.publish(at(topic), Message({}, b"x"))
            await inbox.holds(1, WITHIN)
    assert inbox.bodies == [b"x"]

    def gone() -> None:
        admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
        groups = admin.list_groups()
        admin.close()
        assert not [each for each in groups if "eph" in str(each)]

    await eventually(lambda: asyncio.to_thread(gone))


async def test_group_that_shares_its_partitions_in_another_way(server: KafkaServer, topic: str) -> None:
    options = SubscribeOptions("shared")
    other = topics(server.bootstrap, consumerGroupRebalanceStrategy="sticky")
    async with topics(server.bootstrap) as one, one.subscribe(at(topic), options, Inbox()), other:
        with pytest.raises(TopologyMismatchError, match="'shared' has members that do not give out partitions by"):
            async with other.subscribe(at(topic), options, Inbox()):
                pass


async def test_members_of_both_kinds_share_a_group_while_they_come_and_go(server: KafkaServer, topic: str) -> None:
    """Nothing is lost, and each key stays in order; what comes twice was under way when partitions were given out."""
    group, other, sent, count = f"app-{topic}", f"{topic}-x", 0, 60
    ours_got: list[bytes] = []

    async def take(delivery: Delivery) -> None:
        if delivery.message.body != b"first":
            ours_got.append(json.loads(delivery.message.body)["data"])
        await delivery.ack()

    async def batch(ours: KafkaTopics) -> None:
        """Both publish, in turn."""
        nonlocal sent
        events = [
            (f"k{number % 6}:{number}", {"partitionKey": f"k{number % 6}"}) for number in range(sent, sent + count)
        ]
        sent += count
        await asyncio.to_thread(publish, server.bootstrap, topic, events[::2])
        messages = [
            Message({}, envelope(topic, data), metadata["partitionKey"], None, metadata)
            for data, metadata in events[1::2]
        ]
        assert await ours.publish_many(at(topic), messages) == [None] * len(messages)

    sidecars: list[Sidecar] = []

    def theirs() -> list[str]:
        return [json.loads(value)["data"] for each in sidecars for name, value in list(each.got) if name == topic]

    async def all_of_them() -> None:
        assert len({*ours_got, *theirs()}) == sent, (
            sorted({f"k{n % 6}:{n}" for n in range(sent)} - {*ours_got, *theirs()}),
            len(ours_got),
            len(theirs()),
        )

    async def sidecar(stack: AsyncExitStack) -> None:
        made = Sidecar(server.bootstrap, group, [topic, other])
        sidecars.append(made)
        await asyncio.to_thread(made.__enter__)
        stack.push_async_callback(asyncio.to_thread, made.__exit__)

    options = SubscribeOptions(group)
    async with topics(server.bootstrap) as ours, topics(server.bootstrap) as more:
        await ours.publish(at(topic), Message({}, b"first"))  # There is a topic then.
        await ours.publish(at(other), Message({}, b"first"))
        async with AsyncExitStack() as staying:
            async with AsyncExitStack() as first:
                await sidecar(first)
                await batch(ours)
                async with ours.subscribe(at(topic), options, take), ours.subscribe(at(other), options, take):
                    await batch(ours)
                    await sidecar(staying)
                    await batch(ours)
                    await eventually(all_of_them, WITHIN)
                    assert ours_got
                    assert theirs()
            await batch(ours)
            async with more.subscribe(at(topic), options, take):
                await batch(more)
                await eventually(all_of_them, WITHIN)
    assert len(ours_got) + len(theirs()) - sent <= 20, "more came twice than can have been under way"
    for key in range(6):
        numbers = [int(data.partition(":")[2]) for data in ours_got if data.startswith(f"k{key}:")]
        assert numbers == sorted(numbers)


async def test_no_topic_where_brokers_make_none(tmp_path: Path) -> None:
    """The error names the topic, at a publish as at a subscription, and of dead letters."""

    async def subscribe(topic: str, **more: Any) -> None:
        async with ours.subscribe(at(topic), SubscribeOptions("g", **more), Inbox()):
            pass

    async with KafkaServer(tmp_path / "kafka") as server, topics(server.bootstrap) as ours:
        await asyncio.to_thread(make_topic, server, "orders")
        tried = {
            "nowhere": ours.publish(at("nowhere"), Message({}, b"x")),
            "never": subscribe("never"),
            "dead": subscribe("orders", dead_letters=at("dead")),
        }
        errors = dict(zip(tried, await asyncio.gather(*tried.values(), return_exceptions=True), strict=True))  # noqa: TID251
        for topic, error in errors.items():
            assert isinstance(error, PublishRejectedError)
            assert f"topic '{topic}': there is none, and the brokers make none" in str(error)
        with pytest.raises(PublishRejectedError, match="has no topics like 'a/b'"):
            await ours.publish(at("a/b"), Message({}, b"x"))
    with pytest.raises(BrokerUnavailableError):
        await ours.publish(at("orders"), Message({}, b"x"))


async def test_broker_is_killed_and_started_again(tmp_path: Path, topic: str) -> None:
    """What was confirmed comes, and what is published meanwhile waits; nobody has to do anything."""
    inbox = Inbox()

    def all_of_them() -> None:
        assert len(set(inbox.bodies)) == 200

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(KafkaServer(tmp_path / "kafka", MAKES_TOPICS))
        ours = await stack.enter_async_context(topics(server.bootstrap))
        await stack.enter_async_context(ours.subscribe(at(topic), SubscribeOptions("g"), inbox))
        messages = [Message({}, b"%d" % number, f"k{number % 5}") for number in range(200)]
        assert await ours.publish_many(at(topic), messages[:100]) == [None] * 100
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.restart(kill=True))
            publishing = tasks.create_task(ours.publish_many(at(topic), messages[100:]))
        assert publishing.result() == [None] * 100
        await eventually(all_of_them, WITHIN)


async def test_member_is_killed(server: KafkaServer, topic: str) -> None:
    """What it had goes to another one; what it has settled does not."""
    code = (
        "import asyncio, sys\n"
        "from tests.native.test_kafka import *\n"
        "async def take(delivery):\n"
        "    if delivery.message.body == b'held':\n"
        "        print('held', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "    await delivery.ack()\n"
        "async def main():\n"
        "    async with topics(sys.argv[1]) as ours, ours.subscribe(at(sys.argv[2]), SubscribeOptions('g'), take):\n"
        "        print('subscribed', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    command = (sys.executable, "-c", code, server.bootstrap, topic)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    inbox = Inbox()
    try:
        assert await process.stdout.readline() == b"subscribed\n"
        async with topics(server.bootstrap) as ours:
            there = {"partitionNumber": "3"}
            for body in (b"done", b"held", b"after"):
                await ours.publish(at(topic), Message({}, body, None, None, there))
            assert await process.stdout.readline() == b"held\n"

            async def done() -> None:
                offsets = await asyncio.to_thread(committed, server, "g")
                assert offsets[topic, 3] == 1

            await eventually(done)
            process.kill()
            await process.wait()
            async with ours.subscribe(at(topic), SubscribeOptions("g"), inbox):
                await inbox.holds(2, WITHIN)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert inbox.bodies == [b"held", b"after"]


async def test_connections_are_cut(server: KafkaServer, topic: str) -> None:
    inbox = Inbox()

    def all_of_them() -> None:
        assert set(inbox.bodies) == {b"0", b"1", b"2", b"last"}

    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(server.proxied_port, server.proxy_port))
        ours = await stack.enter_async_context(topics(f"127.0.0.1:{server.proxy_port}"))
        await stack.enter_async_context(ours.subscribe(at(topic), SubscribeOptions("g"), inbox))
        for number in range(3):
            await ours.publish(at(topic), Message({}, b"%d" % number, "k"))
            proxy.cut()
        await ours.publish(at(topic), Message({}, b"last", "k"))
        await eventually(all_of_them, WITHIN)


async def test_with_a_tool_of_kafka(server: KafkaServer, topic: str) -> None:
    """What its own tool finds in the log."""
    metadata = {"foo": "bar", "partitionKey": "the key"}
    async with topics(server.bootstrap) as ours:
        await ours.publish(at(topic), Message({}, b"a body", "the key", None, metadata))
    log = server.directory / "data" / f"{topic}-{partition_of(b'the key', 4)}" / f"{0:020}.log"
    command = (
        *("java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", f"{find_kafka()}/*"),
        *("kafka.tools.DumpLogSegments", "--print-data-log", "--files", str(log)),
    )
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    [line] = [line for line in output.decode().splitlines() if "payload" in line]
    assert "keySize: 7 valueSize: 6 sequence: 0" in line
    assert line.endswith("headerKeys: [foo,partitionKey] key: the key payload: a body")


# Through a gateway


Node = tuple[harness.Node, harness.App]


@asynccontextmanager
async def node(server: KafkaServer, topic: str, home: Path, **settings: str) -> AsyncIterator[Node]:
    """A gateway whose application takes a topic, its dead letters, and one as it comes."""
    subscriptions = [
        {"pubsubname": "pubsub", "topic": topic, "route": "/ce", "deadLetterTopic": f"{topic}.dead"},
        {"pubsubname": "pubsub", "topic": f"{topic}.dead", "route": "/dead"},
        {"pubsubname": "pubsub", "topic": f"{topic}.raw", "route": "/raw", "metadata": {"rawPayload": "true"}},
    ]
    settings = {"brokers": server.bootstrap, "authType": "none", "consumerGroup": f"app-{topic}", **settings}
    resources = harness.component("pubsub", "pubsub.kafka", **settings)
    app = harness.App(subscriptions)
    async with app, harness.gateway(harness.Backbone("memory:"), home, app=app, resources=resources) as started:
        yield started, app


async def test_event_from_a_gateway_to_a_gateway(server: KafkaServer, topic: str, tmp_path: Path) -> None:
    """The envelope's bytes, the metadata as headers, and the application's headers."""
    async with node(server, topic, tmp_path) as (ours, app):
        query = "?metadata.partitionKey=pk1&metadata.foo=bar&metadata.ttlInSeconds=60"
        await ours.publish(topic, {"a": 1, "s": "json"}, query=query)
        [got] = await app.until("/ce", 1, WITHIN)
    [record] = await asyncio.to_thread(written, server, topic, 1)
    assert record.key == b"pk1"
    assert dict(record.headers) == {"partitionKey": b"pk1", "foo": b"bar", "ttlInSeconds": b"60"}
    members = json.loads(record.value)
    assert list(members) == sorted(members)
    assert record.value == json.dumps(members, separators=(",", ":")).encode()
    assert {name: members[name] for name in ("data", "datacontenttype", "pubsubname", "source", "topic", "type")} == {
        "data": {"a": 1, "s": "json"},
        "datacontenttype": "application/json",
        "pubsubname": "pubsub",
        "source": "app",
        "topic": topic,
        "type": "com.dapr.event.sent",
    }
    assert got.body == record.value
    told = {
        "content-type": "application/cloudevents+json", "pubsubname": "pubsub", "foo": "bar", "partitionkey": "pk1",
        "__key": "pk1", "__topic": topic, "__partition": str(record.partition), "__offset": "0",
        "__timestamp": str(record.timestamp),
    }  # fmt: skip
    assert {name: got.headers.get(name) for name in told} == told


async def test_dead_letter_tells_where_it_was(server: KafkaServer, topic: str, tmp_path: Path) -> None:
    async with node(server, topic, tmp_path) as (_, app):
        app.answer("/ce", 500)
        await asyncio.to_thread(publish, server.bootstrap, topic, [({"a": 1}, {"partitionKey": "k"}), ({"b": 1}, {})])
        await asyncio.to_thread(write, server, topic, {"value": b'{"c":1}', "key": BINARY})
        letters = await app.until("/dead", 3, WITHIN)
    sent = {each.value: each for each in await asyncio.to_thread(written, server, topic, 3)}
    dead = await asyncio.to_thread(written, server, f"{topic}.dead", 3)
    assert BINARY in [each.key for each in dead]
    for letter in dead:
        origin, headers = sent[letter.value], {name: value.decode() for name, value in letter.headers}
        assert letter.key == origin.key
        assert {
            name: headers[name] for name in ("__topic", "__offset", "__partition", "__timestamp", "pubsubName")
        } == {
            "__topic": topic,
            "__offset": str(origin.offset),
            "__partition": str(origin.partition),
            "__timestamp": str(origin.timestamp),
            "pubsubName": "pubsub",
        }
        assert headers["mesh-dead-letter-topic"] == topic
        assert "500" in headers["mesh-dead-letter-reason"]
    assert {each.headers["__topic"] for each in letters} == {topic}
    assert {each.body for each in letters} == set(sent)


async def test_events_of_other_programs_reach_the_application(server: KafkaServer, topic: str, tmp_path: Path) -> None:
    """Binary mode by its headers, an object as it is, octets as they are; a raw subscription takes anything."""
    binary = [("ce_id", b"1"), ("ce_source", b"s"), ("ce_type", b"t"), ("ce_specversion", b"1.0")]
    async with node(server, topic, tmp_path) as (_, app):
        kind = ("content-type", b"application/json")
        await asyncio.to_thread(
            write, server, topic, {"value": b'{"j":1}'}, {"value": b"7", "headers": [*binary, kind]}
        )
        await asyncio.to_thread(write, server, f"{topic}.raw", {"value": b"\x00raw"})
        events = {each.body: each for each in await app.until("/ce", 2, WITHIN)}
        [raw] = await app.until("/raw", 1, WITHIN)
    assert b'{"j":1}' in events
    [other] = [json.loads(body) for body in events if body != b'{"j":1}']
    assert (other["id"], other["source"], other["type"], other["data"]) == ("1", "s", "t", 7)
    assert raw.json["data_base64"] == "AHJhdw=="


async def test_doctor_and_dlq(server: KafkaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A letter as Dapr's sidecars write it goes back where it is from, with its key, and is no letter any more."""
    entries = json.dumps([{"name": "brokers", "value": server.bootstrap}, {"name": "authType", "value": "none"}])
    resources = COMPONENT.format(name="pubsub", type="pubsub.kafka", settings=entries) + SUBSCRIPTION
    (tmp_path / "all.yaml").write_text(resources)

    async def run(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        code = await asyncio.to_thread(main, [*words, "-d", str(tmp_path), "-a", "shop", "-o", "json"])
        return code, json.loads(capsys.readouterr().out)

    async def checks() -> dict[tuple[str, str], Any]:
        return {(each["what"], each["name"]): each for each in (await run("doctor"))[1]["checks"]}

    found = await checks()
    assert found["topic", "orders"]["status"] == "note"
    headers = [("__topic", b"orders"), ("__offset", b"7"), ("color", b"red")]
    await asyncio.to_thread(write, server, "failed", {"value": b'{"data":1}', "key": b"k", "headers": headers})
    async with topics(server.bootstrap, initialOffset="oldest") as ours:
        options = SubscribeOptions("shop", dead_letters=at("failed"))
        async with ours.subscribe(at("orders"), options, inbox := Inbox()):
            found = await checks()
            assert found["letters", "failed"]["letters"] == 1
            assert (found["topic", "orders"]["status"], found["group", "shop of orders"]["status"]) == ("ok", "ok")
            code, [shown] = await run("dlq", "show", "pubsub", "failed")
            assert (code, shown["topic"], shown["size"]) == (0, "orders", 10)
            assert await run("dlq", "replay", "pubsub", "failed", "--all") == (
                0,
                {"replayed": 1, "left": 0, "why": {}, "to": {"orders": 1}},
            )
            await inbox.holds(1)
            assert (await checks())["letters", "failed"]["letters"] == 0
            binary = {"value": b"{}", "key": BINARY, "headers": headers[:1]}
            unreadable = {"value": b"{}", "headers": [*headers[:1], ("name", BINARY)]}
            await asyncio.to_thread(write, server, "failed", binary, unreadable)
            why = {"its record has a header that is no text": 1}
            assert await run("dlq", "replay", "pubsub", "failed", "--all") == (
                1,
                {"replayed": 1, "left": 1, "why": why, "to": {"orders": 1}},
            )
            assert [each.key for each in await asyncio.to_thread(written, server, "orders", 2)] == [b"k", BINARY]
        other = topics(server.bootstrap, consumerGroupRebalanceStrategy="sticky")
        async with ours.subscribe(at("orders"), options, Inbox()), other:
            assert (
                "gives out partitions by 'range', wanted 'sticky'"
                in (await other.inspect(at("orders"), options)).differs
            )
    message = inbox.deliveries[0].message
    assert (message.body, message.key, dict(message.headers)) == (b'{"data":1}', "k", {"color": "red"})
