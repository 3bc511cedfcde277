"""The parts of the Kafka adapter that need no server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from brokers.kafka import KafkaBroker, KafkaConfig
from brokers.kafka._group import share_out
from brokers.kafka._names import group_name, topic_name
from brokers.kafka._outbox import Outbox, OutFrame
from brokers.kafka._partition import Item, Partition, State, UnreadableError
from brokers.kafka._presence import Presence
from brokers.kafka._records import ID, message_of, new_batch, records
from brokers.kafka.broker import STAY_FOR_MESSAGES, _Sticky
from mesh import address
from mesh.broker import Message
from mesh.errors import BrokerUnavailableError, ConfigError
from mesh.resources.component import Component, MetadataEntry

ATTRIBUTES_AT, CONTROL_BATCH = 21, 0x20  # Of a record batch.


def component(**settings: str) -> Component:
    entries = tuple(MetadataEntry(name, value) for name, value in settings.items())
    return Component("pubsub", "pubsub.kafka", entries, file="pubsub.yaml", line=1)


def partition(*, offset: int = 10, note: str = "") -> Partition:
    return Partition(0, offset, note)


def fetch(partition: Partition, *offsets: int) -> list[Item]:
    items = [Item(partition, offset, Message({}, b"")) for offset in offsets if not partition.is_done(offset)]
    for item in items:
        partition.add(item)
    partition.top = offsets[-1] + 1
    return items


def begin(item: Item, *, times: int = 1) -> None:
    item.state, item.attempt = State.BEGUN, item.attempt + times
    item.partition.touched = max(item.partition.touched, item.offset)


def batch(count: int) -> bytes:
    """Write records with offsets from 0 on, as a fetch brings them."""
    builder = new_batch()
    for number in range(count):
        builder.append(number, 0, b"k", b"%d" % number, [("ce_id", b"a"), (ID, b"i")])
    return bytes(builder.build())


def test_what_is_fetched_is_read_when_there_is_room() -> None:
    mine = partition(offset=2)
    raw = batch(10)
    mine.fetch(*records(raw, mine.fetched), len(raw))
    assert (mine.fetched, mine.low, mine.unread_bytes) == (10, 2, len(raw))
    assert [record.offset for record in mine.read(3)] == [2, 3, 4]
    assert (mine.fetched, mine.low, mine.unread_bytes) == (10, 5, len(raw))
    assert [record.value for record in mine.read(64)] == [b"5", b"6", b"7", b"8", b"9"]
    assert (mine.low, mine.unread_bytes, len(mine.unread)) == (10, 0, 0)


async def test_note_says_nothing_of_what_is_not_read() -> None:
    mine = partition(offset=0)
    raw = batch(10)
    mine.fetch(*records(raw, 0), len(raw))
    for record in mine.read(4):
        mine.add(Item(mine, record.offset, message_of(record)))
    begin(mine.items[1])
    mine.remove(mine.items[0])
    low, note = mine.note("me", None)
    heir = Partition(0, low, note)
    assert low == 1
    assert [heir.is_done(offset) for offset in range(1, 10)] == [False] * 9
    assert list(heir.held) == [1]


async def test_owner_that_stops_at_once_passes_the_note_on() -> None:
    mine = partition(offset=0, note='{"a":[[5,2]],"w":[[7,9000]]}')
    heir = Partition(0, *mine.note("me", None))
    assert (heir.attempts, heir.due) == ({5: 2}, {7: 9.0})


async def test_note_forgets_what_is_gone() -> None:
    mine = partition(offset=0, note='{"a":[[5,2]],"w":[[7,9000]],"h":[[6,1,9000,"other"]],"d":[[1,3]]}')
    mine.go_on_from(8)
    assert mine.note("me", None) == (8, "")


def test_deleted_records_are_passed_over_once_those_before_are_read() -> None:
    mine = partition(offset=0)
    raw = batch(2)
    mine.fetch(*records(raw, 0), len(raw))
    mine.go_on_from(7)
    assert (mine.fetched, mine.low) == (7, 0)
    assert len(mine.read(64)) == 2
    mine.go_on_from(7)
    assert (mine.fetched, mine.low) == (7, 7)


def test_records_that_cannot_be_read_are_not_passed_over() -> None:
    def broken() -> Iterator[object]:
        yield from records(batch(3), 0)[0]
        raise ValueError("not a record")

    mine = partition(offset=0)
    mine.fetch(broken(), 9, 100)
    assert len(mine.read(2)) == 2
    assert [record.offset for record in mine.read(64)] == [2]
    assert (mine.fetched, mine.low, mine.unread_bytes, len(mine.unread)) == (3, 3, 0, 0)
    mine.fetch((record for record in broken() if record.offset >= 3), 9, 100)
    with pytest.raises(UnreadableError, match="not a record"):
        mine.read(64)
    assert (mine.fetched, mine.low, mine.unread_bytes, len(mine.unread)) == (3, 3, 0, 0)


@pytest.mark.parametrize("codec", range(1, 5), ids=["gzip", "snappy", "lz4", "zstd"])
def test_what_others_compressed_is_read(codec: int) -> None:
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, 100_000)
    for number in range(3):
        builder.append(number, 0, b"k", bytes(1000), [])
    found, top = records(bytes(builder.build()), 1)
    assert top == 3
    assert [(record.offset, record.value) for record in found] == [(1, bytes(1000)), (2, bytes(1000))]


def test_batch_is_written_again_under_another_identity() -> None:
    builder = new_batch()
    builder.append(0, 0, b"k", b"1", [("ce_id", b"a")])
    for identity in ((1, 2, 3), (4, 5, 6)):
        builder.set_producer_state(*identity)
        raw = bytes(builder.build())
        written = MemoryRecords(raw).next_batch()
        assert (written.producer_id, written.producer_epoch, written.base_sequence) == identity
        assert [record.value for record in records(raw, 0)[0]] == [b"1"]


def test_what_does_not_match_its_checksum_is_not_read() -> None:
    raw = bytearray(batch(2))
    raw[-1] ^= 1
    mine = partition(offset=0)
    mine.fetch(*records(bytes(raw), 0), len(raw))
    with pytest.raises(UnreadableError, match="checksum"):
        mine.read(64)
    assert (mine.low, mine.fetched) == (0, 0)


def test_markers_of_transactions_are_passed_over() -> None:
    raw = bytearray(batch(2))
    raw[ATTRIBUTES_AT + 1] |= CONTROL_BATCH
    mine = partition(offset=0)
    mine.fetch(*records(bytes(raw), 0), len(raw))
    assert mine.read(64) == []
    assert (mine.low, mine.fetched, len(mine.unread)) == (2, 2, 0)


def test_records_of_others_are_read_as_well_as_they_can_be() -> None:
    builder = new_batch()
    builder.append(0, 0, b"k", b"ours", [("ce_id", b"a"), (ID, b"i")])
    builder.append(1, 0, None, None, [("none", None), ("bytes", b"\xff")])
    found, top = records(bytes(builder.build()), 0)
    ours, theirs = map(message_of, found)
    assert top == 2
    assert ours == Message({"ce_id": "a"}, b"ours", "k", "i")
    assert theirs == Message({"none": "", "bytes": "\ufffd"}, b"")


def test_everybody_gets_as_much_and_keeps_what_it_had() -> None:
    shares = share_out(8, {"a": {0, 1, 2, 3, 4, 5, 6, 7}, "b": set()})
    assert {len(share) for share in shares.values()} == {4}
    again = share_out(8, {**shares, "c": set()})
    assert set().union(*again.values()) == set(range(8))
    assert sum(map(len, again.values())) == 8
    assert sum(len(again[name] & shares[name]) for name in shares) == 6


def test_more_members_than_partitions() -> None:
    assert sorted(map(len, share_out(2, {"a": set(), "b": {1}, "c": {0}}).values())) == [0, 1, 1]


@pytest.mark.parametrize("rate", [16.0, 30.0, 1000.0])
def test_every_partition_gets_its_share_in_a_second_without_keys(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an owner of one would have nothing to do while others have too much."""
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    sticky = _Sticky(8)
    chosen = []
    for number in range(int(3 * rate)):
        clock = number / rate
        chosen.append(sticky.next(8, 1))
    for begin in range(2):
        counted = Counter(chosen[int(begin * rate) : int((begin + 1.25) * rate)])
        assert len(counted) == 8
        assert max(counted.values()) <= 0.4 * rate


def test_what_comes_fast_without_keys_shares_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    sticky = _Sticky(8)
    counted = Counter(sticky.next(8, 1) for _ in range(8 * STAY_FOR_MESSAGES))
    assert set(counted.values()) == {STAY_FOR_MESSAGES}


def test_names_are_legal_and_apart() -> None:
    names = ["a.b", "a_b", "a-b", "a=5Fb", "", "x" * 512, "x" * 511, "größe", "a..b", "_", "="]
    texts = [address.topic("n", "c", name).text if name else "mesh.n.topic.c" for name in names]
    found = [topic_name(text) for text in texts]
    assert len({name.replace("_", ".") for name in found}) == len(names)
    assert all(len(name) <= 249 for name in found)


def test_ordered_and_other_groups_are_apart() -> None:
    topic = address.topic("n", "c", "t")
    assert group_name(topic, "g", ordered=True) != group_name(topic, "g", ordered=False)
    assert group_name(topic, "g@ordered", ordered=False) != group_name(topic, "g", ordered=True)


async def test_note_tells_the_next_owner_what_is_done_and_tried() -> None:
    mine = partition()
    items = fetch(mine, *range(10, 20))
    for item in items[:6]:
        begin(item)
    for item in (items[0], items[2], items[4]):
        item.state = State.DONE
        mine.remove(item)
    items[1].state = State.READY  # Nacked.
    items[3].state, items[3].deadline = State.DELAYED, 4e9
    items[5].deadline = asyncio.get_running_loop().time() + 5
    low, note = mine.note("me", None)
    assert low == 11
    heir = Partition(0, low, note)
    found = {item.offset: item for item in fetch(heir, *range(11, 20))}
    assert sorted(found) == [11, 13, 15, 16, 17, 18, 19]
    assert [found[o].attempt for o in sorted(found)] == [1, 1, 1, 0, 0, 0, 0]
    assert (found[13].state, found[13].deadline) == (State.DELAYED, 4e9)
    assert found[15].state is State.HELD
    assert found[16].state is State.READY


async def test_what_a_dead_owner_may_have_begun_counts_as_tried() -> None:
    mine = partition()
    items = fetch(mine, *range(10, 20))
    mine.reserved = 15
    begin(items[0], times=3)
    begin(items[1])
    low, note = mine.note("me", 5)
    found = fetch(Partition(0, low, note), *range(10, 20))
    assert [item.attempt for item in found] == [3, 1, 1, 1, 1, 0, 0, 0, 0, 0]


async def test_note_that_is_too_long_forgets_and_still_tells_the_offset() -> None:
    mine = partition(offset=0)
    items = fetch(mine, *range(8000))
    for item in items:
        begin(item)
    for item in items[1::2]:
        mine.remove(item)
    low, note = mine.note("me", None)
    assert low == 0
    assert len(note) < 4096


@pytest.mark.parametrize("note", ["not ours", "[]", "17"])
def test_notes_of_others_mean_nothing(note: str) -> None:
    assert [item.attempt for item in fetch(partition(note=note), 10, 11)] == [0, 0]


def test_url_shows_no_credentials() -> None:
    config = KafkaConfig.from_url("kafka://user:p%40ss@a:9092,b?mechanism=SCRAM-SHA-256&partitions=3")
    assert (config.username, config.password, config.mechanism) == ("user", "p@ss", "SCRAM-SHA-256")
    assert config.brokers == (("a", 9092), ("b", 9092))
    assert (config.shown, config.partitions) == ("kafka://a:9092,b:9092", 3)
    assert "p@ss" not in repr(config)


@pytest.mark.parametrize("url", ["kafka://u:secret@h:port", "kafka://h?what=1", "redis://h", "kafka://"])
def test_wrong_urls_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        KafkaBroker.from_url(url)
    assert "secret" not in str(raised.value)


def test_component_of_the_tutorials() -> None:
    KafkaBroker.from_component(component(brokers="localhost:9092", consumerGroup="group1", authType="none"))
    KafkaBroker.from_component(
        component(
            brokers="localhost:9092",
            authType="password",
            saslUsername="admin",
            saslPassword="secret",
            saslMechanism="SHA-512",
            disableTls="true",
            maxMessageBytes="1024",
            consumeRetryInterval="200ms",
            version="2.0.0",
            clientID="my-client",
        )
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"authType": "none"}, "brokers is missing"),
        ({"brokers": "a", "authType": "password"}, "saslUsername is missing"),
        ({"brokers": "a", "authType": "mtls"}, "needs clientCert and clientKey"),
        ({"brokers": "a", "authType": "kerberos"}, "is one of none"),
        ({"brokers": "a", "oidcClientID": "x"}, "not supported"),
    ],
)
def test_wrong_components_are_refused_with_their_place(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        KafkaBroker.from_component(component(**settings))
    assert "pubsub.yaml" in str(raised.value)


class Cluster:
    """One broker, connected or not."""

    up: object = object()

    def purpose(self, name: str) -> str:
        return name

    def nodes(self) -> list[int]:
        return [0]

    def connected(self, node: int, purpose: str) -> object:
        return self.up

    def unavailable(self, reason: str) -> BrokerUnavailableError:
        return BrokerUnavailableError(reason)


async def test_frames_are_refused_together_or_not_at_all() -> None:
    """One for each group: when the connection breaks after the first, an error would say that none was sent."""
    cluster = Cluster()
    outbox = Outbox(cluster, None, asyncio.Event())  # type: ignore[arg-type]
    outbox.connected = True
    frame: OutFrame = (1, b"node", bytes(3 * 1024 * 1024), [])
    posting = asyncio.ensure_future(outbox.post(frame, frame))
    await asyncio.sleep(0)
    cluster.up = None
    await asyncio.sleep(0)
    assert not posting.done()  # Both wait for the next connection.
    posting.cancel()
    with pytest.raises(BrokerUnavailableError):
        await outbox.post(frame)


async def test_nothing_is_sent_to_an_owner_that_may_be_dead() -> None:
    """Until its next sign of life, or until it is forgotten; where there are others, one of them is chosen."""
    presence = Presence("me", 0, None, None, list, asyncio.Event())  # type: ignore[arg-type]  # it says nothing

    async def waits() -> bool:
        try:
            async with asyncio.timeout(0.02):
                await presence.until_sure("a")
        except TimeoutError:
            return True
        return False

    def beats(name: str, at: int) -> None:
        presence.take_node({"n": name, "p": 1, "s": [["a", "group"]]}, at)
        presence.take_time(at)

    assert not await waits(), "nobody serves it"
    beats("one", 0)
    presence.take_time(2_400)
    assert not await waits()
    presence.take_time(2_500)
    assert await waits()
    beats("one", 4_000)
    assert not await waits()
    presence.take_time(10_999)
    assert await waits()
    beats("two", 10_999)
    assert not await waits()
    presence.take_time(18_000)
    assert not await waits(), "both are forgotten"
    assert presence.targets("a") == []
