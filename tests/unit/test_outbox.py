"""The outbox without a broker: what becomes an event, and what follows from a marker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from mesh import address
from mesh.blocks.block import Topics
from mesh.blocks.outbox import Outbox, OutboxSettings, Verdict, event_of, judge, outbox_settings, split
from mesh.blocks.state import TRANSACT, Save
from mesh.blocks.topics import BULK_PUBLISH, PUBLISH
from mesh.broker import Delivery, Message
from mesh.delivery import Attempt, Outcome
from mesh.errors import (
    BadArgumentError,
    BrokerUnavailableError,
    CircuitOpenError,
    ComponentNotFoundError,
    ConfigError,
    ConflictError,
    EventError,
    MeshError,
    OutboxError,
    PermissionDeniedError,
    PublishFailedError,
    StateError,
    TooManyOperationsError,
)
from mesh.key_value import MemoryKeyValue
from mesh.operation import Caller, Context, Operation
from mesh.resources.component import Component, MetadataEntry
from mesh.store import Concurrency, Item, KeyValueStateStore
from tests.support.eventually import eventually

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CONTEXT = Context(Caller("ns", "shop"), None, TRACE, "a=b")
PROJECTED = {"outbox.projection": "true"}


@pytest.mark.parametrize(
    ("marker", "left", "verdict"),
    [
        (b'"0"', 5.0, Verdict.PUBLISH),
        (b'"0"', -5.0, Verdict.PUBLISH),
        (b'"given up"', 5.0, Verdict.FORGET),
        (b'"given up"', -5.0, Verdict.FORGET),
        (b'"fenced"', 5.0, Verdict.DONE),
        (b'"fenced"', -5.0, Verdict.DONE),
        (None, 5.0, Verdict.WAIT),
        (None, 0.0, Verdict.FENCE),
        (b"0", 5.0, Verdict.PUBLISH),
    ],
)
def test_judge(marker: bytes | None, left: float, verdict: Verdict) -> None:
    """An event is dropped only where its transaction cannot happen any more."""
    assert judge(marker, left) is verdict


@pytest.mark.parametrize(
    ("items", "stored", "published"),
    [
        ([], [], []),
        ([Item("a", b"1"), Item("b", None), Item("c", b"3")], [True, True, True], [b"1", b"3"]),
        ([Item("a", b"1"), Item("a", b"2", metadata=PROJECTED)], [True, False], [b"2"]),
        ([Item("a", b"2", metadata=PROJECTED), Item("a", b"1"), Item("b", b"3")], [False, True, True], [b"2", b"3"]),
        ([Item("a", b"2", metadata=PROJECTED)], [False], [b"2"]),
        ([Item("a", None), Item("a", b"2", metadata=PROJECTED)], [True, False], [b"2"]),
        ([Item("a", b"1", metadata={"outbox.projection": "false"})], [True], [b"1"]),
        ([Item("a", None, metadata=PROJECTED)], [True], []),
        ([Item("a", None, "1", check=True)], [True], []),
    ],
)
def test_split(items: list[Item], stored: list[bool], published: list[bytes]) -> None:
    """A projection is published and not stored, in the place of what is stored."""
    told, events = split(items)
    assert (told, [each.value for each in events]) == (stored, published)


def test_a_projection_that_is_none() -> None:
    with pytest.raises(BadArgumentError, match=r"outbox\.projection of key a not a boolean: 'ture'"):
        split([Item("a", b"1", metadata={"outbox.projection": "ture"})])


def event(value: bytes, **metadata: str) -> dict[str, object]:
    named = {name.replace("__", "."): text for name, text in metadata.items()}
    made = event_of(Item("k", value, metadata=named), "outbox-1", CONTEXT)
    return dict(orjson.loads(orjson.dumps(made)))


@pytest.mark.parametrize(
    ("value", "content_type", "data"),
    [
        (b'{"x":1}', None, {"data": {"x": 1}, "datacontenttype": "application/json"}),
        (b"12", None, {"data": 12, "datacontenttype": "application/json"}),
        (b"null", None, {"data": None, "datacontenttype": "application/json"}),
        (b'"text"', None, {"data": "text", "datacontenttype": "text/plain"}),
        (b"no JSON", None, {"data": "no JSON", "datacontenttype": "text/plain"}),
        (b"\xff", None, {"data_base64": "/w==", "datacontenttype": "application/octet-stream"}),
        (b'{"x":1}', "application/json", {"data": {"x": 1}, "datacontenttype": "application/json"}),
        (b'"text"', "application/json", {"data": "text", "datacontenttype": "application/json"}),
        (b'{"x":1}', "application/vnd.a+json", {"data": {"x": 1}, "datacontenttype": "application/vnd.a+json"}),
        (b'{"x":1}', "text/plain", {"data": '{"x":1}', "datacontenttype": "text/plain"}),
        (b'"<a/>"', "application/xml", {"data": "<a/>", "datacontenttype": "application/xml"}),
        (b'"abc"', "application/octet-stream", {"data_base64": "YWJj", "datacontenttype": "application/octet-stream"}),
        (b"\xff", "application/json", {"data_base64": "/w==", "datacontenttype": "application/json"}),
    ],
)
def test_data(value: bytes, content_type: str | None, data: dict[str, object]) -> None:
    """JSON stays JSON: nothing becomes the text of a map."""
    for name in ("contentType", "datacontenttype"):
        made = event(value, **({} if content_type is None else {name: content_type}))
        assert {name: made[name] for name in ("data", "data_base64", "datacontenttype") if name in made} == data


def test_attributes() -> None:
    """What the metadata of an operation say stands in the event; of its identity only what is meant to."""
    assert event(b"1") == {
        "id": "outbox-1",
        "source": "shop",
        "type": "com.dapr.event.sent",
        "specversion": "1.0",
        "traceparent": TRACE,
        "tracestate": "a=b",
        "data": 1,
        "datacontenttype": "application/json",
    }
    made = event(b"1", foo="bar", ttlInSeconds="5", cloudevent__type="order.placed", cloudevent__id="mine", subject="s")
    told = {name: made[name] for name in ("foo", "ttlInSeconds", "type", "id", "subject")}
    assert told == {"foo": "bar", "ttlInSeconds": "5", "type": "order.placed", "id": "mine", "subject": "s"}
    guarded = event(
        b"1", id="x", data="x", DATA_BASE64="x", specversion="2", topic="x", outboxmarker="x", outbox__projection="true"
    )
    assert guarded == event(b"1")


def settings(**values: str) -> OutboxSettings | None:
    return outbox_settings(Component("s", "state.test", tuple(MetadataEntry(*each) for each in values.items())))


def test_settings() -> None:
    """Both or none."""
    assert settings() is None
    assert settings(OutboxPublishPubsub="p", outboxPublishTopic="t") == OutboxSettings("p", "t", "p")
    assert settings(
        outboxPublishPubsub="p", outboxPublishTopic="t", outboxPubsub="q", outboxDiscardWhenMissingState="true"
    ) == OutboxSettings("p", "t", "q")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"outboxPublishPubsub": "p"}, r"\(?outboxPublishPubsub\)?.*needs outboxPublishTopic beside it"),
        ({"outboxPubsub": "p"}, "needs outboxPublishPubsub beside it"),
        ({"outboxPublishPubsub": "", "outboxPublishTopic": "t"}, "must not be empty"),
        (
            {"outboxPublishPubsub": "p", "outboxPublishTopic": "t", "outboxDiscardWhenMissingState": "perhaps"},
            "outboxDiscardWhenMissingState.*not a boolean",
        ),
    ],
)
def test_settings_that_are_wrong(values: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        settings(**values)


class Store(KeyValueStateStore):
    """A store that does as told with the next transaction."""

    def __init__(self) -> None:
        super().__init__(MemoryKeyValue())
        self.before: MeshError | None = None
        self.after: MeshError | None = None

    async def write(self, items: Any) -> None:
        if len(items) > 1 and self.before:
            raise self.before
        await super().write(items)
        if len(items) > 1 and self.after:
            raise self.after


class Site:
    """An outbox with a store, and a pub/sub that notes what is published and hands out nothing by itself."""

    def __init__(self) -> None:
        self.store = Store()
        self.internal: list[dict[str, object]] = []
        self.published: list[dict[str, object]] = []
        self.failing: MeshError | None = None
        self.topics = Topics()
        self.topics.give(self.taking)
        self.taken: list[tuple[str, str, str]] = []
        self.draining = False
        parts = SimpleNamespace(caller=Caller("ns", "shop"), run=self.run, topics=self.topics)
        self.outbox = Outbox("s", self.store, OutboxSettings("p", "orders", "inner"), cast("Any", parts))

    @asynccontextmanager
    async def taking(
        self, pubsub: str, topic: str, group: str, attempt: Callable[[Delivery], Awaitable[Attempt]]
    ) -> AsyncIterator[asyncio.Event]:
        self.taken.append((pubsub, topic, group))
        if not self.draining:
            self.leaving = asyncio.Event()
        yield self.leaving

    async def run(self, operation: Operation) -> object:
        if self.failing:
            raise self.failing
        asked = cast("Any", operation.arguments)
        if operation.method is BULK_PUBLISH:
            assert (operation.target, asked.topic) == ("inner", "nsshopordersoutbox")
            self.internal += [orjson.loads(entry.body) for entry in asked.entries]
        else:
            assert (operation.method, operation.target, asked.topic) == (PUBLISH, "p", "orders")
            self.published.append(orjson.loads(asked.body))
        return None

    async def transact(self, *items: Item, left: float = 10.0) -> None:
        await self.attempt(Operation(TRANSACT, "s", Save(list(items)), CONTEXT, time.time() + left))

    async def attempt(self, operation: Operation) -> None:
        items = cast("Save", operation.arguments).items
        await self.outbox.transact(operation, items, items)

    async def take(self, event: dict[str, object], *, over: bool = False) -> Outcome:
        """Hand out an event, perhaps after the deadline of its transaction."""
        told = event | {"outboxuntil": int(time.time()) - 1} if over else event
        message = Message({}, orjson.dumps(told))
        delivery = Delivery(message, address.topic("ns", "inner", "t"), 1, cast("Any", None))
        return (await self.outbox.attempt(delivery)).outcome

    async def marker(self, event: dict[str, object]) -> bytes | None:
        stored = await self.store.get(str(event["outboxmarker"]), strong=True)
        return None if stored is None else stored.value


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    async with site.outbox:
        yield site


ITEM = Item("k", b"1")


async def test_published_after_it_was_written(site: Site) -> None:
    """The event is stored first; its marker goes with it."""
    await site.transact(ITEM)
    (event,) = site.internal
    assert (site.taken, site.published) == ([("inner", "nsshopordersoutbox", "shop-s")], [])
    assert await site.marker(event) == b'"0"'
    assert await site.take(event) is Outcome.SUCCESS
    assert [each["data"] for each in site.published] == [1]
    assert await site.marker(event) is None


async def test_killed_before_the_marker_was_deleted(site: Site) -> None:
    """It is published again, with the same id."""
    await site.transact(ITEM)
    (event,) = site.internal
    marker = str(event["outboxmarker"])
    await site.take(event)
    await site.store.write([Item(marker, b'"0"')])
    assert await site.take(event, over=True) is Outcome.SUCCESS
    assert [each["id"] for each in site.published] == [marker, marker]


async def test_killed_before_it_was_settled(site: Site) -> None:
    """What was published already is not taken for a transaction that is still to come."""
    await site.transact(ITEM)
    (event,) = site.internal
    await site.take(event)
    assert await site.take(event, over=True) is Outcome.SUCCESS
    assert len(site.published) == 1


async def test_killed_before_the_transaction(site: Site) -> None:
    """Once its deadline is over, it can not happen any more: a late one fails as a whole."""
    await site.transact(ITEM)
    (event,) = site.internal
    marker = str(event["outboxmarker"])
    await site.store.write([Item(marker, None), Item("k", None)])
    assert await site.take(event, over=True) is Outcome.SUCCESS
    assert (site.published, await site.marker(event)) == ([], b'"fenced"')
    with pytest.raises(ConflictError):
        await site.store.write([Item("k", b"1"), Item(marker, b'"0"', concurrency=Concurrency.FIRST_WRITE)])
    assert await site.store.get("k", strong=True) is None
    assert await site.take(event, over=True) is Outcome.SUCCESS
    assert site.published == []


async def test_taken_before_the_transaction_is_done(site: Site) -> None:
    """It is waited for, here and in another instance, which looks for the marker."""
    await site.transact(ITEM)
    (event,) = site.internal
    marker = str(event["outboxmarker"])
    await site.store.write([Item(marker, None)])
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(site.take(event))
        await asyncio.sleep(0)  # It has begun to look.
        await site.store.write([Item(marker, b'"0"')])  # By another instance.
        assert await taking is Outcome.SUCCESS
    assert len(site.published) == 1


@pytest.mark.parametrize("error", [ConflictError("no"), BadArgumentError("no")])
async def test_a_transaction_that_was_refused(site: Site, error: MeshError) -> None:
    """Whoever takes the event need not wait for the deadline, and nothing is left."""
    site.store.before = error
    with pytest.raises(type(error)):
        await site.transact(ITEM)
    (event,) = site.internal
    assert await site.take(event) is Outcome.SUCCESS
    assert (site.published, await site.marker(event)) == ([], None)


class LostError(StateError):
    """Nobody should try again, for the same reason."""

    code = "TEST_LOST"
    retryable = False


@pytest.mark.parametrize("error", [StateError("the connection broke"), LostError("the connection broke")])
async def test_a_transaction_of_unknown_outcome(site: Site, error: StateError) -> None:
    """It counts as it turns out: nobody takes it for one that will not come any more."""
    site.store.before = error
    with pytest.raises(StateError):
        await site.transact(Item("other", b"2"))
    assert await site.marker(site.internal.pop()) is None
    site.store.before, site.store.after = None, error
    with pytest.raises(StateError):
        await site.transact(ITEM)
    assert await site.take(site.internal[0]) is Outcome.SUCCESS
    assert len(site.published) == 1


def transaction(*items: Item) -> Operation:
    return Operation(TRANSACT, "s", Save(list(items)), CONTEXT, time.time() + 10.0)


@pytest.mark.parametrize("done", [False, True])
async def test_another_attempt_has_the_same_events(site: Site, done: bool) -> None:
    """Whether the one before was done or not: whoever gets them can tell that they are the same."""
    operation, error = transaction(ITEM, Item("other", b"2")), StateError("the connection broke")
    site.store.before, site.store.after = (None, error) if done else (error, None)
    with pytest.raises(StateError, match="the connection broke"):
        await site.attempt(operation)
    site.store.before = site.store.after = None
    operation.deadline += 10.0
    await site.attempt(operation)
    first, second = site.internal[:2], site.internal[2:]
    assert [each["id"] for each in first] == [each["id"] for each in second]
    assert all(
        cast("int", two["outboxuntil"]) > cast("int", one["outboxuntil"])
        for one, two in zip(first, second, strict=True)
    )
    for event in first:
        assert await site.take(event) is Outcome.SUCCESS
    for event in second:
        assert await site.take(event, over=True) is Outcome.SUCCESS
    assert sorted(cast("int", each["data"]) for each in site.published) == [1, 2]


async def test_another_attempt_without_its_events(site: Site) -> None:
    """The one before may have been done: it is not given up."""
    operation = transaction(ITEM)
    site.store.before = StateError("the connection broke")
    with pytest.raises(StateError):
        await site.attempt(operation)
    site.failing = BrokerUnavailableError("no connection")
    with pytest.raises(OutboxError):
        await site.attempt(operation)
    assert await site.marker(site.internal[0]) is None
    site.failing = site.store.before = None
    await site.attempt(operation)
    assert len({str(each["id"]) for each in site.internal}) == 1


async def test_another_attempt_after_its_events_were_dropped(site: Site) -> None:
    """It can not be done with them, and the next one has others."""
    operation = transaction(ITEM)
    site.store.before = StateError("the connection broke")
    with pytest.raises(StateError):
        await site.attempt(operation)
    assert await site.take(site.internal[0], over=True) is Outcome.SUCCESS
    site.store.before = None
    with pytest.raises(OutboxError, match="the events were dropped before it was written") as raised:
        await site.attempt(operation)
    assert raised.value.retryable
    assert await site.store.get("k", strong=True) is None
    await site.attempt(operation)
    assert site.internal[0]["id"] != site.internal[-1]["id"]
    assert await site.take(site.internal[-1]) is Outcome.SUCCESS


async def test_without_its_events_nothing_is_written(site: Site) -> None:
    """The error says what to look at; an application may try again."""
    for failing in (BrokerUnavailableError("no connection"), PermissionDeniedError("no right")):
        site.failing = failing
        with pytest.raises(OutboxError, match=str(failing)) as raised:
            await site.transact(ITEM)
        assert raised.value.retryable is failing.retryable
        assert await site.store.get("k", strong=True) is None


@pytest.mark.parametrize(
    ("failing", "left"),
    [
        (BrokerUnavailableError("no connection"), 1),
        (PublishFailedError({"other": BrokerUnavailableError("no connection")}), 1),
        (PermissionDeniedError("no right"), 0),
        (CircuitOpenError("open"), 0),
        (ComponentNotFoundError("inner", "none"), 0),
        (EventError("too deep"), 0),
    ],
)
async def test_markers_of_events_that_were_not_stored(site: Site, failing: MeshError, left: int) -> None:
    """Nobody would delete them: none is left where there is no event, else until the deadline is over."""
    site.failing = failing
    until = time.time() + 16.0
    with pytest.raises(OutboxError):
        await site.transact(ITEM)
    keys = await site.store.keys("outbox-", "", 10)
    assert len(keys) == left
    for key in keys:
        stored = await site.store.get(key, strong=True)
        assert stored is not None
        assert stored.expires_at is not None
        assert stored.expires_at <= until


async def test_a_broker_that_is_away_when_it_is_published(site: Site) -> None:
    """The event stays, and so does its marker."""
    await site.transact(ITEM)
    (event,) = site.internal
    site.failing = BrokerUnavailableError("no connection")
    with pytest.raises(BrokerUnavailableError):
        await site.take(event)
    site.failing = None
    assert await site.take(event, over=True) is Outcome.SUCCESS
    assert len(site.published) == 1


async def test_a_pubsub_component_that_is_replaced(site: Site) -> None:
    """The outbox goes over to the one that is there then."""
    await site.transact(ITEM)
    site.leaving.set()

    def again() -> None:
        assert len(site.taken) == 2

    await eventually(again)
    await site.transact(Item("other", b"2"))
    assert await site.take(site.internal[1]) is Outcome.SUCCESS


async def test_a_node_that_drains(site: Site) -> None:
    """The component stays the same until it is closed: its events are taken meanwhile, and it is subscribed to once."""
    await site.transact(ITEM)
    site.draining = True
    site.leaving.set()

    def again() -> None:
        assert len(site.taken) == 2

    await eventually(again)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(site.taken) == 2
    await site.transact(Item("other", b"2"))
    assert await site.take(site.internal[1]) is Outcome.SUCCESS


async def test_events_of_others(site: Site) -> None:
    """Another store's is its own; what is no event of an outbox is dropped."""
    await site.transact(ITEM)
    (event,) = site.internal
    assert await site.take(event | {"outboxstore": "other"}, over=True) is Outcome.SUCCESS
    assert await site.marker(event) == b'"0"'
    await site.store.write([Item("other||k", b"1")])
    for strange in (
        {},
        {"outboxmarker": 1, "outboxuntil": 1, "outboxstore": "s"},
        event | {"outboxuntil": "x"},
        event | {"outboxmarker": "other||k"},
        event | {"outboxmarker": "outbox-k"},
    ):
        message = Message({}, orjson.dumps(strange))
        delivery = Delivery(message, address.topic("ns", "inner", "t"), 1, cast("Any", None))
        assert (await site.outbox.attempt(delivery)).outcome is Outcome.DROP
    assert site.published == []
    assert await site.store.get("other||k", strong=True) is not None


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("app||k", ""),
        ("{app}||k", "{app}"),
        ("app||a{b}{c}", "{b}"),
        ("a{{b}", "{{b}"),
        ("a{}{b}", ""),
        ("a}b{c", ""),
        ("{" + "x" * 100 + "}", "{" + "x" * 100 + "}"),
        ("{" + "x" * 101 + "}", ""),
    ],
)
async def test_markers_are_where_the_items_are(site: Site, key: str, tag: str) -> None:
    """On a Redis cluster a transaction has keys of one slot, by what stands in braces; the event's id is as ever."""
    await site.transact(Item(key, b"1"))
    (event,) = site.internal
    assert event["outboxmarker"] == f"{event['id']}{tag}"
    assert await site.take(event) is Outcome.SUCCESS
    assert (len(site.published), await site.marker(event)) == (1, None)


async def test_markers_count(site: Site) -> None:
    """They are a part of the transaction."""
    site.store.max_transaction = 3
    await site.transact(ITEM, Item("d", None))
    with pytest.raises(TooManyOperationsError):
        await site.transact(ITEM, Item("other", b"1"))
    assert len(site.internal) == 1


async def test_an_outbox_that_cannot_take_its_events() -> None:
    """Nothing is written that nobody would publish; it ends although it never began."""
    site = Site()

    @asynccontextmanager
    async def refuse(*arguments: object) -> AsyncIterator[None]:
        raise BrokerUnavailableError("no such component")
        yield

    site.topics.give(cast("Any", refuse))
    async with site.outbox:

        async def refused() -> None:
            with pytest.raises(OutboxError, match="cannot subscribe to inner/nsshopordersoutbox: no such component"):
                await site.transact(ITEM)

        async with asyncio.timeout(10):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await refused()
    assert site.internal == []
