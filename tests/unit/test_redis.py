"""What is particular to Redis: what is lost and made again, trimming, full memory, logins, slow receivers."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Connection as Socket

from brokers.redis import RedisBroker, RedisConfig
from brokers.redis import _wire as wire_module
from brokers.redis._entries import group_id, stream_of
from brokers.redis._scripts import script
from brokers.redis._topic_scripts import SPACE
from mesh import address
from mesh.address import Address, matches
from mesh.broker import Delivery, Entry, Frame, Message, SubscribeOptions, Topology, Write
from mesh.errors import (
    BrokerUnavailableError,
    ConflictError,
    PublishRejectedError,
    StateError,
    TopologyMismatchError,
)
from tests.support.contract import Inbox, came_to, text
from tests.support.eventually import eventually
from tests.support.redis_server import DURABLE, RedisServer, find_redis_server

if find_redis_server() is None and not os.environ.get("CI"):
    pytest.skip("redis-server is not installed: tests/provision/redis.sh", allow_module_level=True)

OPTIONS = SubscribeOptions("g", ack_wait=1.0)
ORDERED = SubscribeOptions("g", ack_wait=1.0, ordered=True)
_numbers = itertools.count()


class Place:
    """A server, nodes on it, and a space."""

    def __init__(self, server: RedisServer, stack: AsyncExitStack) -> None:
        self.server = server
        self.stack = stack
        self.component = f"p{next(_numbers)}"

    def topic(self, name: str = "orders", *, pattern: bool = False) -> Address:
        return address.topic("test", self.component, name, pattern=pattern)

    @property
    def space(self) -> str:
        return self.topic().space

    async def node(self, **limits: object) -> RedisBroker:
        broker = await self.stack.enter_async_context(RedisBroker.from_url(self.server.url))
        await broker.declare(Topology(self.space, **limits))  # type: ignore[arg-type]
        return broker

    async def ask(self, broker: RedisBroker, *command: str | bytes | int) -> object:
        return await broker._commands.call(*command)

    async def length(self, broker: RedisBroker, name: str = "orders") -> int:
        return cast("int", await self.ask(broker, "XLEN", stream_of(self.space, self.topic(name).name)))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with RedisServer(tmp_path) as server, AsyncExitStack() as stack:
        yield Place(server, stack)


async def start(place: Place, options: Sequence[str], tmp_path: Path) -> RedisServer:
    return await place.stack.enter_async_context(RedisServer(tmp_path / f"s{next(_numbers)}", options))


# Trimming


async def test_what_every_group_has_handled_is_deleted_and_nothing_else(place: Place) -> None:
    broker = await place.node()
    first, hold = Inbox(), asyncio.Event()

    async def hang_on_the_third(delivery: Delivery) -> None:
        if delivery.message.body == b"2":
            await hold.wait()
        await delivery.ack()

    second = Inbox(hang_on_the_third)
    await broker.publish_many(place.topic(), [text(n) for n in range(5)])
    await broker.publish(place.topic("unread"), text("x"))
    await broker._spaces.trim(place.space)
    assert (await place.length(broker), await place.length(broker, "unread")) == (5, 1)
    async with (
        broker.subscribe(place.topic(), SubscribeOptions("a"), first),
        broker.subscribe(place.topic(), SubscribeOptions("b"), second),
    ):
        await first.holds(5)
        await second.holds(5)

        async def two_are_gone() -> None:
            await broker._spaces.trim(place.space)
            assert await place.length(broker) == 3

        await eventually(two_are_gone)
        hold.set()
    await broker._spaces.trim(place.space)
    assert (await place.length(broker), await place.length(broker, "unread")) == (0, 1)
    await broker.publish(place.topic(), text("more"))
    async with broker.subscribe(place.topic(), SubscribeOptions("b"), second):
        await second.holds(6)
    assert second.bodies[5:] == [b"more"]


async def test_trimming_runs_by_itself(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokers.redis._spaces.TRIM_INTERVAL", 0.05)
    broker, _ = await place.node(), await place.node()
    inbox = Inbox()
    async with broker.subscribe(place.topic(), OPTIONS, inbox):
        await broker.publish_many(place.topic(), [text(n) for n in range(10)])
        await inbox.holds(10)

        async def all_are_gone() -> None:
            assert await place.length(broker) == 0

        await eventually(all_are_gone)


async def test_events_that_are_too_old_are_deleted(place: Place) -> None:
    broker = await place.node(max_age=0.2)
    await broker.publish_many(place.topic(), [text(n, key="k") for n in range(3)])
    await asyncio.sleep(0.3)
    await broker._spaces.trim(place.space)
    assert await place.length(broker) == 0
    inbox = Inbox()
    async with broker.subscribe(place.topic(), ORDERED, inbox):
        await broker.publish(place.topic(), text("new", key="k"))
        await inbox.holds(1)
    assert inbox.bodies == [b"new"]


async def test_an_event_that_ages_away_while_it_is_parked_does_not_hold_up_its_key(place: Place) -> None:
    broker = await place.node(max_age=0.3)

    async def later(delivery: Delivery) -> None:
        await (delivery.nack(0.6) if delivery.message.body == b"old" else delivery.ack())

    inbox = Inbox(later)
    async with broker.subscribe(place.topic(), ORDERED, inbox):
        await broker.publish(place.topic(), text("old", key="k"))
        await inbox.holds(1)
        await asyncio.sleep(0.35)
        await broker.publish(place.topic(), text("new", key="k"))
        await broker._spaces.trim(place.space)
        await inbox.holds(2)
    assert inbox.bodies == [b"old", b"new"]


async def test_stream_ttl_of_a_component_is_the_age_limit(place: Place) -> None:
    broker = await place.stack.enter_async_context(RedisBroker(RedisConfig("127.0.0.1", place.server.port, max_age=60)))
    await broker.declare(Topology(place.space))
    assert await place.ask(broker, "HGET", place.space, "max_age") == b"60"
    with pytest.raises(TopologyMismatchError, match="max_age is 60 and should be 604800"):
        await place.node()


# Groups that are away


async def test_an_absent_group_gets_topics_that_are_made_meanwhile(place: Place) -> None:
    broker = await place.node()
    inbox, exact = Inbox(), Inbox()
    pattern = place.topic("a.*", pattern=True)
    async with broker.subscribe(pattern, OPTIONS, inbox):
        pass
    async with broker.subscribe(place.topic("a.b"), OPTIONS, exact):
        await broker.publish(place.topic("a.b"), text("1"))
        await exact.holds(1)
    await broker._spaces.trim(place.space)
    async with broker.subscribe(pattern, OPTIONS, inbox):
        await inbox.holds(1)


async def test_many_topics_and_little_room(place: Place) -> None:
    broker, other = await place.node(), await place.node()
    running = most = 0

    async def work(delivery: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        await delivery.ack()

    inbox = Inbox(work)
    for number in range(20):
        await broker.publish_many(place.topic(f"a.{number}"), [text(f"{number}:{n}") for n in range(5)])
    options = SubscribeOptions("g", max_in_flight=3)
    pattern = place.topic("a.*", pattern=True)
    async with broker.subscribe(pattern, options, inbox):
        await inbox.holds(10)
    async with broker.subscribe(pattern, options, inbox), other.subscribe(pattern, options, inbox):
        await inbox.holds(100, within=40)
    assert len(set(inbox.bodies)) == len(inbox.bodies) == 100
    assert most <= 6


async def test_a_topic_that_is_made_while_nobody_can_be_told_is_found(place: Place) -> None:
    broker, other = await place.node(), await place.node()
    inbox = Inbox()
    async with broker.subscribe(place.topic("a.*", pattern=True), OPTIONS, inbox):
        wire = broker._frames.connection.wire
        assert wire is not None
        await place.ask(other, "CLIENT", "KILL", "ID", wire.client_id)
        await other.publish(place.topic("a.new"), text("x"))
        await inbox.holds(1)


async def test_no_consumer_is_left_behind(place: Place) -> None:
    broker = await place.node()
    stream = stream_of(place.space, "orders")
    async with broker.subscribe(place.topic(), OPTIONS, Inbox()):
        await broker.publish(place.topic(), text("x"))
    found = cast("list[list[bytes]]", await place.ask(broker, "XINFO", "CONSUMERS", stream, "g orders"))
    assert [consumer[1] for consumer in found if consumer[1] != b"-"] == []


async def test_delay_outlives_the_member_that_asked_for_it(place: Place) -> None:
    broker, other = await place.node(), await place.node()

    async def later(delivery: Delivery) -> None:
        await delivery.nack(0.5)

    first, second = Inbox(later), Inbox()
    async with broker.subscribe(place.topic(), OPTIONS, first):
        await broker.publish(place.topic(), text("x"))
        await first.holds(1)
    async with other.subscribe(place.topic(), SubscribeOptions("g", ack_wait=60.0), second):
        await second.holds(1)
    assert second.deliveries[0].attempt == 2


# What is lost on the server


@pytest.mark.parametrize("options", [OPTIONS, ORDERED], ids=["unordered", "ordered"])
async def test_a_group_that_was_destroyed_is_made_again(place: Place, options: SubscribeOptions) -> None:
    broker = await place.node()
    stream, group = stream_of(place.space, "orders"), group_id(place.topic(), "g")
    busy = asyncio.Event()

    async def hang_on_one(delivery: Delivery) -> None:
        if delivery.message.body == b"hang" and not busy.is_set():
            busy.set()
            await asyncio.sleep(0.3)
        await delivery.ack()

    inbox = Inbox(hang_on_one)
    async with broker.subscribe(place.topic(), options, inbox):
        await broker.publish(place.topic(), text("hang", key="k"))
        await busy.wait()
        await broker.publish(place.topic(), text("behind", key="k"))
        await place.ask(broker, "XGROUP", "DESTROY", stream, group)
        await broker.publish(place.topic(), text("after", key="k"))
        await eventually(lambda: _assert_holds(inbox, {b"hang", b"behind", b"after"}))


def _assert_holds(inbox: Inbox, bodies: set[bytes]) -> None:
    assert bodies <= set(inbox.bodies), inbox.bodies


@pytest.mark.parametrize("options", [OPTIONS, ORDERED], ids=["unordered", "ordered"])
async def test_everything_goes_on_after_the_server_was_emptied(place: Place, options: SubscribeOptions) -> None:
    broker, other = await place.node(), await place.node()
    inbox, served = Inbox(), list[Frame]()
    app = address.app("test", place.component)
    pattern = place.topic("a.*", pattern=True)
    store = await broker.key_value("s")
    async with other.subscribe(pattern, options, inbox), other.serve(app, "g", served.append):
        await broker.publish(place.topic("a.b"), text("before", key="k"))
        await inbox.holds(1)
        await place.ask(broker, "FLUSHALL")
        await place.ask(broker, "SCRIPT", "FLUSH")
        await broker.publish(place.topic("a.b"), text("after", key="k"))
        assert await broker.publish_many(place.topic("a.c"), [text("many")]) == [None]
        await store.apply([Write("k", b"v")])
        await eventually(lambda: _assert_holds(inbox, {b"after", b"many"}), within=40.0)
        await other._frames._serve_again()
        await broker.send(app, text("x"), f"{broker.inbox}.t")
        await eventually(lambda: _assert_length(served, 1))


def _assert_length(found: Sequence[object], wanted: int) -> None:
    assert len(found) == wanted


async def test_what_others_put_into_a_stream_is_delivered_as_it_is(place: Place) -> None:
    broker = await place.node()
    inbox = Inbox()
    stream = stream_of(place.space, "orders")
    async with broker.subscribe(place.topic(), OPTIONS, inbox):
        await place.ask(broker, "XADD", stream, "*", "data", b"\xff\xfe", "metadata", "{}")
        await place.ask(broker, "XADD", stream, "*", ":data", b"\xff\xfe")
        await inbox.holds(2)
    first, second = inbox.deliveries
    assert (dict(first.message.headers), first.message.body) == ({"data": "��", "metadata": "{}"}, b"")
    assert (dict(second.message.headers), second.message.body) == ({}, b"\xff\xfe")


@pytest.mark.parametrize("count", [700, 2500])
async def test_how_much_waits_where_something_was_deleted_between(place: Place, count: int) -> None:
    """Redis itself does not know it then."""
    broker, inbox = await place.node(), Inbox()
    async with broker.subscribe(place.topic(), OPTIONS, inbox):
        await broker.publish(place.topic(), text("first"))
        await inbox.holds(1)
    ids = []
    for _ in range(3):
        ids.append(await place.ask(broker, "XADD", stream_of(place.space, "orders"), "*", "data", "x"))
    assert await broker.publish_many(place.topic(), [text(str(each)) for each in range(count)]) == [None] * count
    await place.ask(broker, "XDEL", stream_of(place.space, "orders"), cast("bytes", ids[1]))
    assert (await broker.backlog(place.topic(), OPTIONS)).waiting == count + 2


# Full memory


async def test_a_space_at_its_limit_takes_more_once_something_is_handled(place: Place) -> None:
    broker = await place.node(max_bytes=50_000)
    with pytest.raises(PublishRejectedError, match="at its limit"):
        for _ in range(10):
            await broker.publish(place.topic(), Message({}, bytes(10_000)))
    inbox = Inbox()
    async with broker.subscribe(place.topic(), OPTIONS, inbox):
        await inbox.holds(4)
    for _ in range(4):
        await broker.publish(place.topic(), Message({}, bytes(10_000)))


async def test_out_of_memory_it_refuses_to_store_and_goes_on_to_deliver(place: Place, tmp_path: Path) -> None:
    server = await start(place, (*DURABLE, "--maxmemory", "12mb"), tmp_path)
    place.server = server
    broker = await place.node()
    store = await broker.key_value("s")
    await store.apply([Write("old", b"v")])
    inbox, stored = Inbox(), 0
    with pytest.raises(PublishRejectedError, match="refused"):
        while True:
            await broker.publish(place.topic(), Message({"n": str(stored)}, os.urandom(200_000)))
            stored += 1
    with pytest.raises(StateError):
        await store.apply([Write("k", bytes(500_000))])
    await store.apply([Write("old", None)])
    await broker.send(f"{broker.inbox}.t", text("small"))
    async with broker.subscribe(place.topic(), OPTIONS, inbox):
        await inbox.holds(stored)
    await broker.publish(place.topic(), text("there is room again"))


# Logins


async def test_wrong_credentials_are_told_at_once_and_not_shown(place: Place, tmp_path: Path) -> None:
    server = await start(place, ("--requirepass", "right", "--save", ""), tmp_path)
    async with asyncio.timeout(5):
        for login in (":hush@", "user:hush@", ""):
            url = server.url.replace("redis://", f"redis://{login}")
            with pytest.raises(BrokerUnavailableError) as raised:
                await RedisBroker.from_url(url).__aenter__()
            assert "hush" not in str(raised.value)
            assert f"127.0.0.1:{server.port}" in str(raised.value)
        async with RedisBroker.from_url(server.url.replace("redis://", "redis://:right@")) as broker:
            await broker.check()
            assert not broker.features.durable


async def test_an_acl_user_needs_no_more_than_the_page_says(place: Place) -> None:
    rules = "on >pw ~mesh.* ~mesh-* &mesh.* &mesh-* +@all -@admin -@dangerous +info +client|unblock"
    await place.ask(await place.node(), "ACL", "SETUSER", "mesh", *rules.split())
    url = place.server.url.replace("redis://", "redis://mesh:pw@")
    inbox, served = Inbox(), list[Frame]()
    async with RedisBroker.from_url(url) as broker, RedisBroker.from_url(url) as other:
        await broker.declare(Topology(place.space))
        for options in (OPTIONS, SubscribeOptions("h", ordered=True), SubscribeOptions("i", ephemeral=True)):
            async with broker.subscribe(place.topic(), options, inbox):
                await broker.publish(place.topic(), text("x", id="1", key="k"))
        async with other.serve(place.topic(), "g", served.append), other.listen(place.topic(), served.append):
            await broker.send(place.topic(), Message({}, bytes(100_000)), f"{broker.inbox}.t")
            await broker.broadcast(place.topic(), text("x"))
            await eventually(lambda: _assert_length(served, 2))
        store = await broker.key_value("s")
        await store.apply([Write("k", b"v", ttl=10)])
        assert [key async for key in store.keys()] == ["k"]  # noqa: SIM118 - it is no dictionary
        await broker._spaces.trim(place.space)


async def test_a_replica_is_refused(place: Place, tmp_path: Path) -> None:
    server = await start(place, (*DURABLE, "--replicaof", "127.0.0.1", str(place.server.port)), tmp_path)
    with pytest.raises(BrokerUnavailableError, match="is a replica"):
        await RedisBroker.from_url(server.url).__aenter__()


async def test_a_server_that_may_lose_what_it_confirmed_is_told(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--save", "", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    server = await start(place, options, tmp_path)
    async with RedisBroker.from_url(server.url) as broker:
        assert not broker.features.durable
    assert "append-only" in caplog.text
    assert "evicts" in caplog.text


# Frames


async def test_a_receiver_that_is_far_behind_is_not_disconnected(place: Place) -> None:
    """Redis gives a subscriber up once 32 MB wait for it; so only references to large bodies wait there."""
    broker, other = await place.node(), await place.node()
    got: list[bytes] = []
    other.on_frame(lambda frame: got.append(b"" if frame.message is None else frame.message.body))
    bodies = [bytes([number % 251]) * (250_000 if number % 3 else 10) for number in range(300)]
    async with asyncio.TaskGroup() as tasks:
        for body in bodies:
            tasks.create_task(broker.send(f"{other.inbox}.t", Message({}, body)))
    await eventually(lambda: _assert_length(got, 300), within=40.0)
    assert got == bodies
    assert other._frames.connection.reconnects == 0
    left = cast("list[object]", await place.ask(broker, "KEYS", f"{broker.inbox}*"))
    assert left == []


async def test_a_frame_to_a_node_that_is_gone_comes_back_without_a_message(place: Place) -> None:
    broker = await place.node()
    got: list[Frame] = []
    broker.on_frame(got.append)
    for size in (1, 100_000):
        await broker.send("mesh-nobody-1-0123abcd.t", Message({}, bytes(size)), f"{broker.inbox}.back")
    await eventually(lambda: _assert_length(got, 2))
    assert got == [Frame(None, "back", "")] * 2


async def test_frames_of_other_databases_are_not_heard(place: Place) -> None:
    config = RedisConfig("127.0.0.1", place.server.port)
    one, two = [
        await place.stack.enter_async_context(RedisBroker(dataclasses.replace(config, db=number))) for number in (1, 2)
    ]
    here, there = list[Frame](), list[Frame]()
    nodes = address.nodes("test")
    async with one.listen(nodes, here.append), two.listen(nodes, there.append):
        await one.broadcast(nodes, text("one"))
        await two.broadcast(nodes, text("two"))
        await eventually(lambda: _assert_length(here, 1))
        await eventually(lambda: _assert_length(there, 1))


# Key/value


async def test_a_write_that_is_repeated_is_done_once(place: Place) -> None:
    broker = await place.node()
    store = await broker.key_value("s")
    commands = broker._commands
    real = commands.execute

    async def twice(command: tuple[str | bytes | int, ...], *, repeat: bool = True) -> object:
        await real(command, repeat=repeat)
        return await real(command, repeat=repeat)

    commands.execute = twice  # type: ignore[method-assign,assignment]
    await store.apply([Write("a", b"1", expected=0), Write("b", b"2", expected=0)])
    commands.execute = real  # type: ignore[method-assign]
    assert await store.get_many(["a", "b"]) == [Entry(b"1", 1), Entry(b"2", 2)]


async def test_writes_that_went_together_and_lost_their_answer_are_done_once(place: Place) -> None:
    """Each has what it came to, told once more by the server."""
    broker = await place.node()
    store = await broker.key_value("s")
    await store.apply([Write("there", b"0")])
    real = broker._commands.post

    def unanswered(command: tuple[str | bytes | int, ...]) -> None:
        assert real(command) is not None

    broker._commands.post = unanswered  # type: ignore[method-assign]
    writes = [Write("a", b"1", expected=0), Write("there", b"1", expected=0), Write("b", b"2", expected=0)]
    done = await came_to(store, writes)
    assert [type(each) for each in done] == [type(None), ConflictError, type(None)]
    assert await store.get_many(["there", "a", "b"]) == [Entry(b"0", 1), Entry(b"1", 2), Entry(b"2", 3)]


async def test_a_write_that_fails_fails_alone(place: Place) -> None:
    broker = await place.node()
    store = await broker.key_value("s")
    await place.ask(broker, "SET", "mesh.kv:s:another", "x")
    writes = [Write("a", b"1"), Write("another", b"1", expected=5), Write("b", b"2")]
    done = await came_to(store, writes)
    assert [type(each) for each in done] == [type(None), StateError, type(None)]
    assert "WRONGTYPE" in str(done[1])
    assert [None if each is None else type(each) for each in await store.apply_each(writes)] == [None, StateError, None]
    assert [found and found.value for found in await store.get_many(["a", "b"])] == [b"1", b"2"]


# What is relied upon


def test_redis_py_still_has_what_is_used_of_its_inside() -> None:
    socket = Socket()
    assert (socket._writer, socket._reader) == (None, None)
    assert wire_module._serializer.pack("GET", "é", b"\0", 3) == [
        b"*4\r\n$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n$1\r\n\0\r\n$1\r\n3\r\n"
    ]


tokens = st.sampled_from(["a", "b", "=2A", "*"])
patterns = st.builds(
    lambda parts, rest: ".".join([*parts, *rest]), st.lists(tokens, max_size=3), st.sampled_from([[], [">"], ["a"]])
).filter(bool)
names = st.lists(st.sampled_from(["a", "b", "=2A"]), min_size=1, max_size=4).map(".".join)


@pytest.fixture
async def broker(place: Place) -> RedisBroker:
    return await place.node()


async def test_patterns_mean_the_same_in_lua(broker: RedisBroker) -> None:
    both: list[tuple[str, str]] = []

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=500)
    @given(patterns, names)
    def gather(pattern: str, name: str) -> None:
        both.append((pattern, name))

    gather()
    ask = script(
        SPACE,
        """
local found = {}
for i = 1, #ARGV, 2 do found[#found + 1] = matches(ARGV[i], ARGV[i + 1]) and 1 or 0 end
return found
""",
    )
    found = await broker._commands.run(ask, ["x"], *(text for pair in both for text in pair))
    assert found == [int(matches(pattern, name)) for pattern, name in both]
