"""Shards of a Kinesis stream: read once, in order, by one at a time, and from where they were read to.

The server is written by hand, for moto's shards never end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from bindings._in_order import InOrder, Notes
from bindings.aws import kinesis
from bindings.aws.kinesis import KinesisBinding, Mark
from mesh.blocks.binding_contract import BindingError, BindingEvent, Handle, Reading
from mesh.errors import ConflictError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.store import Item, KeyValueStateStore
from tests.support.eventually import eventually
from tests.support.kinesis_server import KinesisServer
from tests.support.nodes import component
from tests.support.sharing import entered


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinesis, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(kinesis, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr(kinesis, "LOOK_SECONDS", 0.2)


@pytest.fixture
async def server() -> AsyncIterator[KinesisServer]:
    async with KinesisServer() as server:
        yield server


@pytest.fixture
def store() -> KeyValueStateStore:
    return KeyValueStateStore(MemoryKeyValue())


@asynccontextmanager
async def opened(server: KinesisServer, store: KeyValueStateStore, **more: str) -> AsyncIterator[KinesisBinding]:
    adapter = KinesisBinding.from_component(component("in", "bindings.aws.kinesis", **server.settings, **more))
    async with entered(adapter, store):
        yield adapter


class Taken:
    """Takes events, and notes their bytes."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def __call__(self, event: BindingEvent) -> bytes:
        self.got.append(event.data)
        return b""

    def are(self, *expected: bytes) -> None:
        assert self.got == [*expected]


def reading(handle: Handle, app_id: str = "app") -> Reading:
    return Reading("in", app_id, handle)


async def test_a_note_whose_answer_was_lost() -> None:
    """Is no sign of somebody else."""
    records, leaving = Unsure(MemoryKeyValue()), asyncio.Event()
    in_order = InOrder(Notes(records, "place", Mark()), "0", reading(Taken()), leaving, "shard 0")
    await in_order.begin()
    for number in ("7", "8"):
        assert await in_order.take([(BindingEvent(b"", {}), Mark(number))])
        records.loses = True
        await in_order.note()
        await in_order.note()
    await Notes(records, "place", Mark()).write("0", Mark("10"))
    in_order.mark = Mark("9")
    with pytest.raises(ConflictError, match="shard 0 was read by somebody else"):
        await in_order.note()


class Unsure(KeyValueStateStore):
    """Does a write, and does not say so."""

    loses = False

    async def write(self, items: Sequence[Item]) -> None:
        await super().write(items)
        if self.loses:
            self.loses = False
            raise StateError("no answer")


async def test_resharding(server: KinesisServer, store: KeyValueStateStore) -> None:
    """What came of a shard is read when that was read to its end: by a split, and by a merger of what came of it."""
    got, hold = Taken(), asyncio.Event()

    async def handle(event: BindingEvent) -> bytes:
        await hold.wait()
        return await got(event)

    async with opened(server, store) as adapter, adapter.reading(reading(handle)):
        server.put(b"1")
        server.split("shardId-0", "shardId-1", "shardId-2")
        server.put(b"2", "shardId-1")
        server.merge("shardId-1", "shardId-2", "shardId-3")
        server.put(b"3", "shardId-3")
        hold.set()
        await eventually(lambda: got.are(b"1", b"2", b"3"))
        server.put(b"4", "shardId-3")
        await eventually(lambda: got.are(b"1", b"2", b"3", b"4"))


async def test_iterators_expire(server: KinesisServer, store: KeyValueStateStore) -> None:
    """Then it goes on behind what was taken."""
    got = Taken()
    async with opened(server, store) as adapter, adapter.reading(reading(got)):
        for number in (b"1", b"2", b"3"):
            server.put(number)
            await eventually(lambda number=number: got.are(*(b"1", b"2", b"3")[: int(number)]))  # type: ignore[misc]
            server.expire()


async def test_goes_on_where_it_was(server: KinesisServer, store: KeyValueStateStore) -> None:
    """What was taken does not come again, of a batch that was broken off neither; what came meanwhile does."""
    first, second, begun, go = Taken(), Taken(), asyncio.Event(), asyncio.Event()

    async def handle(event: BindingEvent) -> bytes:
        if event.data == b"2":
            begun.set()
            await go.wait()
        return await first(event)

    async def read(adapter: KinesisBinding) -> None:
        async with adapter.reading(reading(handle)):
            await begun.wait()

    async with opened(server, store) as adapter:
        async with adapter.reading(reading(handle)):
            pass
        for number in (b"1", b"2", b"3"):
            server.put(number)
        async with asyncio.TaskGroup() as tasks:
            left = tasks.create_task(read(adapter))
            await begun.wait()
            await asyncio.sleep(0)
            assert not left.done()
            go.set()
        first.are(b"1", b"2")
        server.put(b"4")
        async with adapter.reading(reading(second)):
            await eventually(lambda: second.are(b"3", b"4"))


async def test_order_is_kept(server: KinesisServer, store: KeyValueStateStore) -> None:
    """A record that is not taken keeps those behind it waiting."""
    got, tries = Taken(), 0

    async def handle(event: BindingEvent) -> bytes:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise BindingError("not taken")
        return await got(event)

    async with opened(server, store) as adapter, adapter.reading(reading(handle)):
        server.put(b"1")
        server.put(b"2")
        await eventually(lambda: got.are(b"1", b"2"))
    assert tries == 3


async def test_one_reader_at_a_time(server: KinesisServer, store: KeyValueStateStore) -> None:
    """Hosts of one application share its shards; when one leaves, another goes on."""
    got = Taken()
    async with opened(server, store) as one, opened(server, store) as other, other.reading(reading(got)):
        server.put(b"1")
        await eventually(lambda: got.are(b"1"))
        async with one.reading(reading(got)):
            server.put(b"2")
            await eventually(lambda: got.are(b"1", b"2"))
    got.are(b"1", b"2")
    async with opened(server, store) as third, third.reading(reading(got)):
        server.put(b"3")
        await eventually(lambda: got.are(b"1", b"2", b"3"))


@pytest.mark.parametrize(("more", "copies"), [({}, 2), ({"consumerName": "shop"}, 1)])
async def test_consumers(server: KinesisServer, store: KeyValueStateStore, more: dict[str, str], copies: int) -> None:
    """Each application reads for itself, unless the component names the consumer."""
    got = Taken()
    async with (
        opened(server, store, **more) as adapter,
        adapter.reading(reading(got, "one")),
        adapter.reading(reading(got, "other")),
    ):
        server.put(b"1")
        await eventually(lambda: got.are(*[b"1"] * copies))
        server.put(b"2")
        await eventually(lambda: got.are(*[b"1"] * copies, *[b"2"] * copies))


async def test_begins_with_what_comes(server: KinesisServer, store: KeyValueStateStore) -> None:
    """A new consumer gets nothing that was there before, and the shards that were closed keep none from it."""
    got = Taken()
    server.put(b"old", ago=100)
    server.split("shardId-0", "shardId-1")
    server.put(b"older", "shardId-1", ago=50)
    async with opened(server, store) as adapter, adapter.reading(reading(got)):
        server.put(b"new", "shardId-1")
        await eventually(lambda: got.are(b"new"))
