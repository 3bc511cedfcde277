"""Leaving: what is in flight finishes, what is not begun goes to others at once, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest

from mesh.broker import Broker, Delivery, SubscribeOptions
from mesh.errors import BrokerUnavailableError
from tests.support.contract import Inbox, Place, no_tasks_besides, text
from tests.support.eventually import eventually
from tests.support.forked import python

LONG = 60.0  # An ack_wait that no test waits for: what comes again came by a release.


async def test_leaving_waits_for_the_handlers_in_flight(broker: Broker, place: Place) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()
        await delivery.ack()

    inbox = Inbox(work)
    subscription = broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=LONG), inbox)
    await subscription.__aenter__()
    await broker.publish(place.topic(), text("x"))
    await begun.wait()
    leaving = asyncio.ensure_future(subscription.__aexit__(None, None, None))
    await broker.publish(place.topic(), text("while leaving"))
    done, _ = await asyncio.wait([leaving], timeout=0.2)
    assert not done
    assert len(inbox.deliveries) <= 2
    go_on.set()
    await leaving
    assert inbox.deliveries[0].settled == "ack"


async def test_closing_on_purpose_is_no_loss(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is warned of a connection that we have closed."""
    inbox = Inbox()
    leaver, options = await place.connect(), SubscribeOptions("g")
    await place.begin(leaver, options)
    async with leaver.subscribe(place.topic(), options, inbox):
        await leaver.publish(place.topic(), text("x"))
        await inbox.holds(1)
    await place.leave(leaver)
    assert not [each.getMessage() for each in caplog.records if each.levelno > logging.INFO]


@pytest.mark.requires("competing")
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_leaving_loses_nothing_and_the_rest_goes_to_others_at_once(
    broker: Broker, other: Broker, place: Place, ordered: bool
) -> None:
    if ordered and not broker.features.ordering:
        pytest.skip("not ordered")

    async def work(delivery: Delivery) -> None:
        await asyncio.sleep(0.01)
        await delivery.ack()

    first, second = Inbox(work), Inbox()
    options = SubscribeOptions("g", max_in_flight=20, ack_wait=LONG, ordered=ordered)
    await place.begin(broker, options)
    await broker.publish_many(place.topic(), [text(number, key=str(number % 20)) for number in range(300)])
    async with broker.subscribe(place.topic(), options, first):
        await first.holds(30)
    at_leaving = len(first.deliveries)
    async with other.subscribe(place.topic(), options, second):
        await second.holds(300 - at_leaving)
    assert len(first.deliveries) == at_leaving
    assert all(delivery.settled == "ack" for delivery in first.deliveries)
    assert sorted(map(int, first.bodies + second.bodies)) == list(range(300))


@pytest.mark.requires("reassigns")
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_leaving_one_slow_member_fetches_no_more(
    broker: Broker, other: Broker, place: Place, ordered: bool
) -> None:
    if ordered and not broker.features.ordering:
        pytest.skip("not ordered")
    go_on = asyncio.Event()

    async def work(delivery: Delivery) -> None:
        await go_on.wait()
        await delivery.ack()

    first, second = Inbox(work), Inbox()
    options = SubscribeOptions("g", max_in_flight=2, ack_wait=LONG, ordered=ordered)
    subscription = broker.subscribe(place.topic(), options, first)
    await subscription.__aenter__()
    await broker.publish_many(place.topic(), [text(number, key=str(number)) for number in range(40)])
    await first.holds(2)
    leaving = asyncio.ensure_future(subscription.__aexit__(None, None, None))
    async with other.subscribe(place.topic(), options, second):
        await second.holds(38 if not ordered else 20)  # A lane of a delivery in flight waits for it.
        assert len(first.deliveries) == 2
        go_on.set()
        await leaving
        await second.holds(38)
    assert sorted(map(int, first.bodies + second.bodies)) == list(range(40))


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_cancelled_while_leaving_it_releases_what_it_had(
    broker: Broker, other: Broker, place: Place, ordered: bool
) -> None:
    if ordered and not broker.features.ordering:
        pytest.skip("not ordered")
    before = asyncio.all_tasks()

    async def hang(delivery: Delivery) -> None:
        await asyncio.Event().wait()

    first, second = Inbox(hang), Inbox()
    options = SubscribeOptions("g", max_in_flight=5, ack_wait=LONG, ordered=ordered)
    subscription = broker.subscribe(place.topic(), options, first)
    await subscription.__aenter__()
    await broker.publish_many(place.topic(), [text(number, key=str(number)) for number in range(20)])
    await first.holds(5)
    leaving = asyncio.ensure_future(subscription.__aexit__(None, None, None))
    await asyncio.wait([leaving], timeout=0.1)
    began = time.monotonic()
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    async with other.subscribe(place.topic(), options, second):
        await second.holds(20)
    assert time.monotonic() - began < LONG / 3
    assert sorted(map(int, second.bodies)) == list(range(20))
    if not broker.features.release_counts:
        assert {delivery.attempt for delivery in second.deliveries} == {1}
    await no_tasks_besides(before)


async def test_cancelled_in_the_body_it_releases_what_it_had(broker: Broker, other: Broker, place: Place) -> None:
    before = asyncio.all_tasks()
    begun = asyncio.Event()

    async def hang(delivery: Delivery) -> None:
        begun.set()
        await asyncio.Event().wait()

    second = Inbox()
    options = SubscribeOptions("g", ack_wait=LONG)

    async def member() -> None:
        async with broker.subscribe(place.topic(), options, hang):
            await asyncio.Event().wait()

    await place.begin(broker, options)
    running = asyncio.ensure_future(member())
    await broker.publish_many(place.topic(), [text(number) for number in range(10)])
    await begun.wait()
    running.cancel()
    await asyncio.wait([running])
    async with other.subscribe(place.topic(), options, second):
        await second.holds(10)
    await no_tasks_besides(before)


async def test_leaving_cancelled_at_any_step_loses_nothing(broker: Broker, other: Broker, place: Place) -> None:
    seen: set[int] = set()

    async def work(delivery: Delivery) -> None:
        await asyncio.sleep(0)
        seen.add(int(delivery.message.body))
        await delivery.ack()

    options = SubscribeOptions("g", max_in_flight=10, ack_wait=2.0)
    await place.begin(broker, options)
    await broker.publish_many(place.topic(), [text(number) for number in range(200)])
    for turns in range(12):
        subscription = broker.subscribe(place.topic(), options, work)
        await subscription.__aenter__()
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving = asyncio.ensure_future(subscription.__aexit__(None, None, None))
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    last = Inbox(work)
    async with other.subscribe(place.topic(), options, last):

        def check() -> None:
            assert seen == set(range(200)), len(seen)

        await eventually(check)


@pytest.mark.requires("shared")
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_what_a_killed_process_held_goes_to_another_member(broker: Broker, place: Place, ordered: bool) -> None:
    if ordered and not broker.features.ordering:
        pytest.skip("not ordered")
    asked = {"group": "g", "max_in_flight": 3, "ack_wait": 1.0, "ordered": ordered}
    options = SubscribeOptions(**asked)  # type: ignore[arg-type]  # its fields, by name
    topic = place.topic()
    inbox = Inbox()
    told = json.dumps([topic.space, topic.name, topic.label])
    arguments = [place.backend.member_url, told, json.dumps(asked)]
    async with python("tests.support.member", arguments, place.backend.environ) as member:
        assert await member.line() == "ready"
        await broker.publish_many(topic, [text(number, key=str(number)) for number in range(10)])
        held = {await member.line() for _ in range(3)}
        await member.kill()
    async with broker.subscribe(topic, options, inbox):
        await inbox.holds(10)
    assert set(map(int, inbox.bodies)) == set(range(10))
    least = 2 if broker.features.attempts else 1
    assert all(d.attempt >= least for d in inbox.deliveries if d.message.body.decode() in held)


async def test_leaving_the_broker_is_idempotent_and_ends_its_use(broker: Broker, place: Place) -> None:
    await place.leave(broker)
    await broker.__aexit__(None, None, None)
    async with asyncio.timeout(30):
        with pytest.raises(BrokerUnavailableError):
            await broker.check()
        with pytest.raises(BrokerUnavailableError):
            await broker.publish(place.topic(), text("x"))
        if broker.features.frames:
            with pytest.raises(BrokerUnavailableError):
                await broker.send(place.app(), text("x"))
