"""Events above a broker's limit: they come as they were published, from wherever their bodies are kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest

from brokers.nats import NatsBroker
from mesh.address import encode_token
from mesh.broker import Broker, Delivery, Message, SubscribeOptions
from mesh.errors import EventError, MessageTooLargeError, PublishRejectedError
from mesh.large import MAX_EVENT_BYTES, PARTS_HEADER, bodies_name, carrying
from tests.contract.test_proofs import proofs
from tests.support.contract import Inbox, Place, text
from tests.support.guards import strict_guards

HEADERS = {"ce-id": "1", "name": "value"}
MEBIBYTE = 1024 * 1024
WITH_PARTS = ("nats", "redis", "rabbitmq", "kafka")


class Taker(Inbox):
    """Has the whole event before it looks, as whoever settles deliveries does."""

    async def __call__(self, delivery: Delivery) -> None:
        await delivery.complete()
        await super().__call__(delivery)


async def carriers(place: Place, count: int = 2) -> Sequence[Broker]:
    found = [carrying(await place.connect()) for _ in range(count)]
    for each in found:
        await each.declare(place.topology())
    return found


def large(broker: Broker) -> bytes:
    """Give a body of several parts that no message of this broker holds; where all fit, a large one."""
    return os.urandom(min(broker.features.max_message_bytes, 8 * MEBIBYTE) + MEBIBYTE)


@pytest.mark.on("memory", *WITH_PARTS)
async def test_a_large_event_comes_as_it_was_published_to_every_group(place: Place) -> None:
    publisher, reader, another = await carriers(place, 3)
    inboxes = Taker(), Taker()
    guards, topic = strict_guards("test"), place.topic()
    shop, stock = proofs(guards, "shop", place), proofs(guards, "stock", place)
    message = shop.prove(topic, Message(HEADERS, large(publisher), id="an id"))
    async with (
        reader.subscribe(place.topic(), SubscribeOptions("g"), inboxes[0]),
        another.subscribe(place.topic(), SubscribeOptions("h"), inboxes[1]),
    ):
        await publisher.publish(place.topic(), message)
        await publisher.publish(place.topic(), text("small"))
        for inbox in inboxes:
            await inbox.holds(2)
    for inbox in inboxes:
        assert [each.message for each in inbox.deliveries if len(each.message.body) > MEBIBYTE] == [message]
        assert b"small" in inbox.bodies
        [delivery] = [each for each in inbox.deliveries if len(each.message.body) > MEBIBYTE]
        assert stock.publisher(delivery, lenient=False, letters=False) == "spiffe://public/ns/test/shop"


@pytest.mark.on(*WITH_PARTS)
async def test_a_group_that_comes_later_reads_it_and_a_nacked_one_is_read_again(place: Place) -> None:
    publisher, reader = await carriers(place)
    body = large(publisher)
    results = await publisher.publish_many(place.topic(), [text("a"), Message(HEADERS, body), text("b")])
    assert results == [None] * 3

    async def settle(delivery: Delivery) -> None:
        await (delivery.nack() if delivery.attempt == 1 else delivery.ack())

    inbox = Taker(settle)
    async with reader.subscribe(place.topic(), SubscribeOptions("later"), inbox):
        await inbox.holds(6)
    assert sorted(inbox.bodies, key=len) == [b"a", b"a", b"b", b"b", body, body] or inbox.bodies.count(body) == 2


@pytest.mark.on("memory", *WITH_PARTS)
async def test_what_is_larger_than_any_event_is_refused_and_the_others_of_its_bulk_are_stored(
    place: Place, inbox: Inbox
) -> None:
    publisher, reader = await carriers(place)
    await place.begin(reader, SubscribeOptions("g"))
    too_large = Message({}, bytes(MAX_EVENT_BYTES + 1))
    with pytest.raises(MessageTooLargeError, match=f"{MAX_EVENT_BYTES + 1} bytes .* {MAX_EVENT_BYTES} bytes"):
        await publisher.publish(place.topic(), too_large)
    results = await publisher.publish_many(place.topic(), [text("a"), too_large, text("b")])
    assert [type(each) for each in results] == [type(None), MessageTooLargeError, type(None)]
    async with reader.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await inbox.holds(2)
    assert sorted(inbox.bodies) == [b"a", b"b"]


@pytest.mark.on("mqtt")
async def test_a_broker_without_a_place_for_bodies_refuses_as_before(place: Place) -> None:
    broker = await place.connect()
    assert carrying(broker) is broker
    with pytest.raises(MessageTooLargeError):
        await broker.publish(place.topic(), Message({}, large(broker)))


@pytest.mark.on(*WITH_PARTS)
async def test_a_body_that_is_gone_or_another_one_is_an_error_of_that_event_alone(place: Place) -> None:
    """It says so at once; what the header says cannot make anybody read more than a body may have."""
    broker = await place.connect()
    (publisher,) = await carriers(place, 1)
    raw, errors = Inbox(), list[str]()
    options = SubscribeOptions("raw")
    await place.begin(broker, options)
    for _ in range(2):
        await publisher.publish(place.topic(), Message({}, large(publisher)))
    async with broker.subscribe(place.topic(), options, raw):
        await raw.holds(2)
    first, second = (each.message.headers[PARTS_HEADER].split(" ") for each in raw.deliveries)

    async def settle(delivery: Delivery) -> None:
        try:
            await delivery.complete()
        except EventError as error:
            errors.append(str(error))
        await delivery.ack()

    wrong = Inbox(settle)
    await place.begin(publisher, SubscribeOptions("wrong"))
    claims = [
        [*first[:2], "0" * 64, second[3]],
        [str(10 * MAX_EVENT_BYTES), *first[1:]],
        [first[0], "9999", *first[2:]],
        ["100", "1", *first[2:]],  # Smaller than any of its parts.
        [str(MEBIBYTE), *first[1:]],
        [*first[:3], "a blank"],
        ["-1", *first[1:]],
    ]
    if broker.features.key_value is False:
        claims += [[*first[:3], f"0:{each}"] for each in ("9" * 15, "9" * 30, ",".join(["0-9999"] * 500))]
        claims.append([*first[:3], f"{'9' * 30}:0"])
    async with publisher.subscribe(place.topic("wrong"), SubscribeOptions("wrong"), wrong):
        for claim in claims:
            await broker.publish(place.topic("wrong"), Message({PARTS_HEADER: " ".join(claim)}, b""))
        await wrong.holds(len(claims))
    assert len(errors) == len(claims), errors


@pytest.mark.on("nats")
async def test_a_place_for_bodies_that_somebody_deleted_is_made_again(place: Place, broker: Broker) -> None:
    """By the next event."""
    (publisher,) = await carriers(place, 1)
    message, bucket = Message(HEADERS, large(publisher)), encode_token(bodies_name(place.topic().space))
    await publisher.publish(place.topic(), message)
    assert isinstance(broker, NatsBroker)
    await broker._connection.api(f"STREAM.DELETE.KV_{bucket}")
    with pytest.raises(PublishRejectedError):
        await publisher.publish(place.topic(), message)
    await publisher.publish(place.topic(), message)


@pytest.mark.on(*WITH_PARTS)
async def test_who_publishes_and_dies_in_the_middle_has_published_nothing(place: Place, inbox: Inbox) -> None:
    publisher, reader = await carriers(place)
    body = bytes(48 * MEBIBYTE)
    async with reader.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await publisher.publish(place.topic(), Message(HEADERS, body))
        await publisher.publish(place.topic(), text("after"))
        await inbox.holds(1)
    assert inbox.bodies == [b"after"]


@pytest.mark.on(*WITH_PARTS)
async def test_a_restart_in_the_middle_loses_no_part(rough_place: Place) -> None:
    publisher, reader = await carriers(rough_place)
    bodies = {large(publisher) for _ in range(4)}
    inbox = Taker()
    async with reader.subscribe(rough_place.topic(), SubscribeOptions("g", ack_wait=2.0), inbox):
        async with asyncio.TaskGroup() as tasks:
            for body in bodies:
                tasks.create_task(publisher.publish(rough_place.topic(), Message(HEADERS, body)))
            await rough_place.backend.restart(kill=True)
        await inbox.holds(len(bodies), within=60)
    assert set(inbox.bodies) == bodies
