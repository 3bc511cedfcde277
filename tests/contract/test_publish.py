"""Publishing: what is confirmed is there, and it is what was given."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from mesh.broker import Broker, Message, SubscribeOptions
from mesh.errors import (
    BrokerError,
    MessageTooLargeError,
    PublishRejectedError,
    TopologyMismatchError,
)
from tests.support.contract import Inbox, Place, no_tasks_besides, text

ALL_TOKEN_CHARACTERS = "!#$%&'*+-.^_`|~09azAZ"
ALL_VALUE_CHARACTERS = "".join(map(chr, range(0x21, 0x7F)))


@pytest.mark.requires("retention")
async def test_confirmed_message_reaches_a_group_that_comes_later(broker: Broker, place: Place, inbox: Inbox) -> None:
    await broker.publish(place.topic(), text("early"))
    async with broker.subscribe(place.topic(), SubscribeOptions("late"), inbox):
        await inbox.holds(1)
    assert inbox.bodies == [b"early"]


@pytest.mark.requires("retention")
@pytest.mark.lacks("native")
async def test_publish_to_a_space_that_was_never_declared_is_rejected(broker: Broker, place: Place) -> None:
    elsewhere = dataclasses.replace(place.topic(), space=place.topic().space + "-undeclared")
    async with asyncio.timeout(30):
        with pytest.raises(PublishRejectedError):
            await broker.publish(elsewhere, text("x"))
        [error] = await broker.publish_many(elsewhere, [text("x")])
        assert isinstance(error, PublishRejectedError)


@pytest.mark.requires("retention")
@pytest.mark.lacks("native")
async def test_subscribing_to_a_space_that_was_never_declared_raises(
    broker: Broker, place: Place, inbox: Inbox
) -> None:
    elsewhere = dataclasses.replace(place.topic(), space=place.topic().space + "-undeclared")
    with pytest.raises(BrokerError):
        async with broker.subscribe(elsewhere, SubscribeOptions("g"), inbox):
            pytest.fail("entered")


async def test_declaring_the_same_again_changes_nothing(broker: Broker, other: Broker, place: Place) -> None:
    await broker.publish(place.topic(), text("x"))
    await other.declare(place.topology())
    await broker.declare(place.topology())


@pytest.mark.requires("retention")
@pytest.mark.lacks("native")
@pytest.mark.parametrize("settings", [{"max_age": 60.0}, {"max_bytes": 5_000_000}, {"max_age": None}], ids=str)
async def test_declaring_something_different_raises_and_changes_nothing(
    broker: Broker, other: Broker, place: Place, inbox: Inbox, settings: dict[str, object]
) -> None:
    await broker.publish(place.topic(), text("kept"))
    with pytest.raises(TopologyMismatchError) as raised:
        await other.declare(place.topology(**settings))
    assert next(iter(settings)) in str(raised.value)
    await broker.declare(place.topology())
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await inbox.holds(1)


@pytest.mark.requires("retention")
@pytest.mark.lacks("native")
@pytest.mark.parametrize("settings", [{"max_age": 30.0}, {"max_age": None}, {"max_bytes": 10_000_000}], ids=str)
async def test_limits_can_be_declared(broker: Broker, place: Place, inbox: Inbox, settings: dict[str, object]) -> None:
    address = dataclasses.replace(place.topic(), space=place.topic().space + "-limits")
    topology = dataclasses.replace(place.topology(**settings), space=address.space)
    await broker.declare(topology)
    await broker.declare(topology)
    await broker.publish(address, text("x"))
    async with broker.subscribe(address, SubscribeOptions("g"), inbox):
        await inbox.holds(1)


@pytest.mark.requires("retention")
@pytest.mark.lacks("native")
async def test_full_storage_rejects_and_forgets_nothing(broker: Broker, place: Place, inbox: Inbox) -> None:
    address = dataclasses.replace(place.topic(), space=place.topic().space + "-full")
    await broker.declare(dataclasses.replace(place.topology(max_bytes=300_000), space=address.space))
    stored = 0
    with pytest.raises(PublishRejectedError):
        for _ in range(100):
            await broker.publish(address, Message({}, bytes(10_000)))
            stored += 1
    assert 10 < stored < 31
    async with broker.subscribe(address, SubscribeOptions("g"), inbox):
        await inbox.holds(stored)
    assert len(inbox.deliveries) == stored


@pytest.mark.requires("headers")
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ce-id": "1", "ce-source": "/x", "Content-Type": "application/json"},
        {"MiXeD-Case": "Value", "x": "y", "UPPER": "z"},
        {ALL_TOKEN_CHARACTERS: ALL_VALUE_CHARACTERS},
        {"empty": "", "colons": "a:b: c", "colon-first": ":x", "inner": "a  b\tc", "percent": "%20%0D%0A"},
        {"Status": "503", "Description": "No Responders", "Subject": "x", "Reply-To": "y", "traceparent": "00-1-2-03"},
        {f"n{number}": "v" * 50 for number in range(200)},
        {"long": "v" * 20_000},
    ],
    ids=["none", "event", "case", "alphabet", "values", "names", "many", "long"],
)
@pytest.mark.parametrize("body", [b"", b"x", bytes(range(256)) * 4], ids=["empty", "one", "binary"])
async def test_headers_and_body_arrive_as_they_were_given(
    broker: Broker, other: Broker, place: Place, inbox: Inbox, headers: dict[str, str], body: bytes
) -> None:
    async with other.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        for identity in (None, "an id"):
            await broker.publish(place.topic(), Message(headers, body, id=identity))
        await inbox.holds(2)
    for delivery in inbox.deliveries:
        assert dict(delivery.message.headers) == headers
        assert delivery.message.body == body
        assert type(delivery.message.body) is bytes
    if not place.native:  # Others have no place for it, or another one.
        assert [delivery.message.id for delivery in inbox.deliveries] == [None, "an id"]


async def test_largest_message_passes_and_a_larger_one_is_refused_before_it_is_sent(
    broker: Broker, other: Broker, place: Place, inbox: Inbox
) -> None:
    limit = broker.features.max_message_bytes
    headers = {"name": "value"} if broker.features.headers else {}
    room = limit - 4 * 4 - len("namevalue")
    async with other.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await broker.publish(place.topic(), Message(headers, bytes(room)))
        with pytest.raises(MessageTooLargeError) as raised:
            await broker.publish(place.topic(), Message(headers, bytes(limit + 1)))
        assert raised.value.limit_bytes == limit
        assert raised.value.size_bytes > limit
        await broker.publish(place.topic(), text("still connected"))
        await inbox.holds(2)
    assert [len(body) for body in inbox.bodies] == [room, 15]


@pytest.mark.requires("headers")
async def test_headers_count_towards_the_limit(broker: Broker, place: Place, inbox: Inbox) -> None:
    half = "v" * (broker.features.max_message_bytes // 2)
    for message in (Message({"a": half, "b": half}, b"x"), Message({"a": half}, bytes(len(half)))):
        with pytest.raises(MessageTooLargeError):
            await broker.publish(place.topic(), message)
    if broker.features.frames:
        with pytest.raises(MessageTooLargeError):
            await broker.send(place.app(), Message({"a": half, "b": half}, b"x"))
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await broker.publish(place.topic(), Message({"id": "x" * 300}, b"x", id="x" * 3000))
        await inbox.holds(1)


async def test_publish_many_stores_in_order_and_gives_a_result_for_each(
    broker: Broker, place: Place, inbox: Inbox
) -> None:
    messages = [text(number) for number in range(500)]
    messages[7] = Message({}, bytes(broker.features.max_message_bytes + 1))
    options = SubscribeOptions("g", max_in_flight=1)
    await place.begin(broker, options)
    results = await broker.publish_many(place.topic(), messages)
    assert [index for index, result in enumerate(results) if result is not None] == [7]
    assert isinstance(results[7], MessageTooLargeError)
    async with broker.subscribe(place.topic(), options, inbox):
        await inbox.holds(499, 60.0)  # One after the other; how fast is no part of the promise.
    assert inbox.bodies == [str(number).encode() for number in range(500) if number != 7]
    assert await broker.publish_many(place.topic(), []) == []


@pytest.mark.requires("dedup")
async def test_repeated_publish_with_the_same_id_is_stored_once(
    broker: Broker, other: Broker, place: Place, inbox: Inbox
) -> None:
    for node in (broker, broker, other):
        await node.publish(place.topic(), text("once", id="the same"))
    await broker.publish_many(place.topic(), [text("once", id="the same"), text("other", id="another")])
    async with broker.subscribe(place.topic(), SubscribeOptions("g", max_in_flight=1), inbox):
        await inbox.holds(2)
    assert inbox.bodies == [b"once", b"other"]


@pytest.mark.requires("dedup")
async def test_equal_ids_on_different_topics_are_different_messages(broker: Broker, place: Place, inbox: Inbox) -> None:
    await broker.publish(place.topic("a"), text("a", id="1"))
    await broker.publish(place.topic("b"), text("b", id="1"))
    async with broker.subscribe(place.topic("b"), SubscribeOptions("g"), inbox):
        await inbox.holds(1)
    assert inbox.bodies == [b"b"]


async def test_cancelled_publishes_leave_the_broker_usable(broker: Broker, place: Place, inbox: Inbox) -> None:
    before = asyncio.all_tasks()
    for turns in range(20):
        publishing = asyncio.ensure_future(broker.publish(place.topic(), text("cancelled", id=str(turns))))
        for _ in range(turns % 5):
            await asyncio.sleep(0)
        publishing.cancel()
        await asyncio.wait([publishing])
    await no_tasks_besides(before)
    async with broker.subscribe(place.topic(), SubscribeOptions("g", max_in_flight=1), inbox):
        await broker.publish(place.topic(), text("last"))
        while inbox.bodies[-1:] != [b"last"]:
            await inbox.holds(len(inbox.bodies) + 1)


async def test_concurrent_publishes_are_all_stored(broker: Broker, place: Place, inbox: Inbox) -> None:
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        async with asyncio.TaskGroup() as tasks:
            for number in range(1000):
                tasks.create_task(broker.publish(place.topic(), text(number)))
        await inbox.holds(1000)
    assert sorted(map(int, inbox.bodies)) == list(range(1000))
