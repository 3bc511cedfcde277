"""Subscriptions: who gets what, how it settles, and when it comes again."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from mesh.address import decode_token
from mesh.broker import Broker, Delivery, SubscribeOptions
from mesh.errors import BrokerError, FeatureNotSupportedError, TopologyMismatchError
from tests.support.contract import Inbox, Place, no_tasks_besides, text
from tests.support.eventually import eventually


async def publish(broker: Broker, place: Place, count: int, topic: str = "orders") -> None:
    assert await broker.publish_many(place.topic(topic), [text(number) for number in range(count)]) == [None] * count


@pytest.mark.requires("competing")
async def test_members_of_a_group_share_its_messages(broker: Broker, other: Broker, place: Place) -> None:
    one, two = Inbox(), Inbox()
    options = SubscribeOptions("g", max_in_flight=5)
    async with broker.subscribe(place.topic(), options, one), other.subscribe(place.topic(), options, two):
        for number in range(200):
            await broker.publish(place.topic(), text(number))

        def check() -> None:
            assert len(one.bodies) + len(two.bodies) >= 200

        await eventually(check)
    assert sorted(map(int, one.bodies + two.bodies)) == list(range(200))


async def test_every_group_gets_every_message(broker: Broker, other: Broker, place: Place) -> None:
    inboxes = [Inbox(), Inbox(), Inbox()]
    async with AsyncExitStack() as stack:
        for number, inbox in enumerate(inboxes):
            node = (broker, other)[number % 2]
            await stack.enter_async_context(node.subscribe(place.topic(), SubscribeOptions(f"g{number}"), inbox))
        await publish(broker, place, 50)
        for inbox in inboxes:
            await inbox.holds(50)
    assert all(sorted(map(int, inbox.bodies)) == list(range(50)) for inbox in inboxes)


async def test_group_goes_on_where_it_stopped(broker: Broker, other: Broker, place: Place) -> None:
    first, second = Inbox(), Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), first):
        await publish(broker, place, 10)
        await first.holds(10)
    await broker.publish(place.topic(), text("meanwhile"))
    async with other.subscribe(place.topic(), SubscribeOptions("g"), second):
        await second.holds(1)
        await other.publish(place.topic(), text("after"))
        await second.holds(2)
    assert second.bodies == [b"meanwhile", b"after"]


async def test_ack_is_final(broker: Broker, place: Place) -> None:
    inbox, again = Inbox(), Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=1.0), inbox):
        await broker.publish(place.topic(), text("x"))
        await inbox.holds(1)
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=1.0), again):
        await asyncio.sleep(1.3)  # That nothing happens can only be seen by waiting longer than ack_wait.
    assert (len(inbox.deliveries), again.deliveries) == (1, [])


async def test_nack_brings_another_attempt_and_counts_it(broker: Broker, place: Place) -> None:
    async def settle(delivery: Delivery) -> None:
        await (delivery.ack() if delivery.attempt == 4 else delivery.nack())

    inbox = Inbox(settle)
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await broker.publish(place.topic(), text("x", id="the id"))
        await inbox.holds(4)
    assert [delivery.attempt for delivery in inbox.deliveries] == [1, 2, 3, 4]
    if not place.native:
        assert {delivery.message.id for delivery in inbox.deliveries} == {"the id"}


@pytest.mark.requires("delay")
async def test_delayed_nack_waits_at_least_so_long_and_lets_others_pass(broker: Broker, place: Place) -> None:
    seen: list[tuple[bytes, int, float]] = []

    async def settle(delivery: Delivery) -> None:
        seen.append((delivery.message.body, delivery.attempt, time.monotonic()))
        await (delivery.nack(1.0) if (delivery.message.body, delivery.attempt) == (b"0", 1) else delivery.ack())

    inbox, options = Inbox(settle), SubscribeOptions("g", max_in_flight=1)
    await place.begin(broker, options)
    await publish(broker, place, 5)
    async with broker.subscribe(place.topic(), options, inbox):
        await inbox.holds(6)
    first, last = seen[0][2], max(at for _, attempt, at in seen if attempt == 1)
    again = next(at for _, attempt, at in seen if attempt == 2)
    assert [(body, attempt) for body, attempt, _ in sorted(seen)] == [
        (b"0", 1), (b"0", 2), *((b"%d" % number, 1) for number in range(1, 5))
    ]  # fmt: skip
    assert again - first >= 0.99  # Loops count in milliseconds.
    assert last < again or last - first >= 0.99, "the others wait for it"


async def test_rejected_delivery_never_comes_again(broker: Broker, place: Place) -> None:
    inbox, again = Inbox(Delivery.reject), Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=1.0), inbox):
        await broker.publish(place.topic(), text("x"))
        await inbox.holds(1)
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=1.0), again):
        await broker.publish(place.topic(), text("next"))
        await again.holds(1)
        await asyncio.sleep(1.3)
    assert again.bodies == [b"next"]


async def test_settling_again_does_nothing_and_differently_raises(broker: Broker, place: Place) -> None:
    outcomes: list[str | None] = []

    async def settle(delivery: Delivery) -> None:
        match delivery.message.body:
            case b"0":
                await delivery.ack()
                await delivery.ack()
                others = [delivery.nack, delivery.reject]
            case b"1":
                await delivery.reject()
                await delivery.reject()
                others = [delivery.nack, delivery.ack]
            case _:
                if delivery.attempt > 1:
                    await delivery.ack()
                    return
                await delivery.nack()
                await delivery.nack()
                others = [delivery.ack, delivery.reject]
        for another in others:
            with pytest.raises(BrokerError):
                await another()
        await delivery.extend()
        outcomes.append(delivery.settled)

    inbox = Inbox(settle)
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await publish(broker, place, 3)
        await inbox.holds(4)
    assert sorted(map(str, outcomes)) == ["ack", "nack", "reject"]
    assert inbox.bodies[3] == b"2"


async def test_handler_that_raises_nacks(broker: Broker, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    async def fail_once(delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise ValueError("for the test")
        await delivery.ack()

    inbox = Inbox(fail_once)
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await broker.publish(place.topic(), text("x"))
        await inbox.holds(2)
        await broker.publish(place.topic(), text("y"))
        await inbox.holds(4)
    assert "for the test" in caplog.text


async def test_handler_that_returns_without_settling_nacks(broker: Broker, place: Place) -> None:
    async def forget_once(delivery: Delivery) -> None:
        if delivery.attempt > 1:
            await delivery.ack()

    inbox = Inbox(forget_once)
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await broker.publish(place.topic(), text("x"))
        await inbox.holds(2)


@pytest.mark.requires("shared", "reassigns")
async def test_delivery_without_a_sign_of_life_goes_to_another_member(
    broker: Broker, other: Broker, place: Place
) -> None:
    async def hang(delivery: Delivery) -> None:
        await asyncio.Event().wait()

    hanging, working = Inbox(hang), Inbox()
    options = SubscribeOptions("g", ack_wait=1.0, max_in_flight=1)  # So that it does not come back to the hanging one.
    subscription = broker.subscribe(place.topic(), options, hanging)
    await subscription.__aenter__()
    await broker.publish(place.topic(), text("x"))
    await hanging.holds(1)
    async with other.subscribe(place.topic(), options, working):
        await working.holds(1)
    leaving = asyncio.ensure_future(subscription.__aexit__(None, None, None))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert working.deliveries[0].attempt >= 2


@pytest.mark.requires("competing")
async def test_extended_delivery_is_not_handed_out_again(broker: Broker, other: Broker, place: Place) -> None:
    async def work(delivery: Delivery) -> None:
        for _ in range(9):
            await asyncio.sleep(0.3)
            await delivery.extend()
        await delivery.ack()
        done.set()

    done = asyncio.Event()
    inbox = Inbox(work)
    options = SubscribeOptions("g", ack_wait=2.0)
    async with broker.subscribe(place.topic(), options, inbox), other.subscribe(place.topic(), options, inbox):
        await broker.publish(place.topic(), text("x"))
        await done.wait()
    assert len(inbox.deliveries) == 1


@pytest.mark.parametrize("limit", [1, 7])
@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_no_more_than_max_in_flight_are_handled_at_once(
    broker: Broker, place: Place, limit: int, ordered: bool
) -> None:
    if ordered and not broker.features.ordering:
        pytest.skip("not ordered")
    running = most = 0

    async def work(delivery: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.003)
        running -= 1
        await delivery.ack()

    inbox = Inbox(work)
    keys = [str(number % 40) if number % 2 else None for number in range(80)]
    options = SubscribeOptions("g", max_in_flight=limit, ordered=ordered)
    await place.begin(broker, options)
    await broker.publish_many(place.topic(), [text(n, key=key) for n, key in enumerate(keys)])
    async with broker.subscribe(place.topic(), options, inbox):
        await inbox.holds(80)
    assert min(2, limit) <= most <= limit  # How near it comes is a matter of time.
    assert len(inbox.deliveries) == 80


@pytest.mark.requires("wildcard")
@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*", ["a", "b", ""], ["a.b"]),
        ("a.*", ["a.b", "a.c", "a."], ["a", "b.a", "a.b.c"]),
        ("*.b", ["a.b", "c.b"], ["a", "b", "a.c", "a.b.b"]),
        ("a.>", ["a.b", "a.b.c", "a.."], ["a", "b.a"]),
        (">", ["a", "a.b", "a.b.c"], []),
        ("a.*.c.>", ["a.b.c.d", "a.x.c.d.e"], ["a.b.c", "a.b.d.c"]),
    ],
)
async def test_patterns(broker: Broker, place: Place, pattern: str, matching: list[str], others: list[str]) -> None:
    inbox = Inbox()
    if place.native:  # A name of theirs may not have such parts.
        matching = [name for name in matching if "" not in name.split(".")]
    names = [name for name in [*others, *matching] if name]
    async with broker.subscribe(place.topic(pattern, pattern=True), SubscribeOptions("g"), inbox):
        for name in names:
            await broker.publish(place.topic(name), text(name))
        await inbox.holds(len([name for name in matching if name]))
        await broker.publish(place.topic(matching[0]), text("last"))
        await inbox.holds(len([name for name in matching if name]) + 1)
    expected = sorted([*(name for name in matching if name), "last"])
    assert sorted(body.decode() for body in inbox.bodies) == expected
    for delivery in inbox.deliveries[:-1]:
        assert delivery.address == place.topic(delivery.message.body.decode())
        assert not delivery.address.is_pattern


ODD_NAMES = [
    "a/b c",
    "größe/日本語",
    "dots.in.a.name",
    "empty..token.",
    ".",
    "*",
    "a.*.>",
    ">",
    "=",
    "$SYS.x",
    'quote"back\\slash',
    "tab\tnew\nline\r\0",
    "%20",
    "x" * 512,
    "\U0001f600" * 128,
]


@pytest.mark.lacks("native")
@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
async def test_topic_names_are_any_text(broker: Broker, place: Place, name: str) -> None:
    inbox, neighbour = Inbox(), Inbox()
    async with (
        broker.subscribe(place.topic(name), SubscribeOptions("größe/日本 *.>"), inbox),
        broker.subscribe(place.topic("plain"), SubscribeOptions("größe/日本 *.>"), neighbour),
    ):
        await broker.publish(place.topic("plain"), text("plain"))
        await broker.publish(place.topic(name), text("odd"))
        await inbox.holds(1)
        await neighbour.holds(1)
    [delivery] = inbox.deliveries
    assert delivery.address == place.topic(name)
    assert delivery.address.label == name
    assert ".".join(map(decode_token, delivery.address.name.split("."))) == name
    assert neighbour.bodies == [b"plain"]


async def test_two_subscriptions_of_one_node_are_independent(broker: Broker, place: Place) -> None:
    one, two = Inbox(), Inbox()
    async with broker.subscribe(place.topic("a"), SubscribeOptions("g"), one):
        async with broker.subscribe(place.topic("b"), SubscribeOptions("g"), two):
            await broker.publish(place.topic("b"), text("b"))
            await two.holds(1)
        await broker.publish(place.topic("a"), text("a"))
        await one.holds(1)
    assert (one.bodies, two.bodies) == ([b"a"], [b"b"])


@pytest.mark.lacks("ordering")
async def test_ordered_groups_are_refused(broker: Broker, place: Place, inbox: Inbox) -> None:
    with pytest.raises(FeatureNotSupportedError):
        async with broker.subscribe(place.topic(), SubscribeOptions("g", ordered=True), inbox):
            pytest.fail("entered")


@pytest.mark.lacks("wildcard")
async def test_patterns_are_refused(broker: Broker, place: Place, inbox: Inbox) -> None:
    with pytest.raises(FeatureNotSupportedError):
        async with broker.subscribe(place.topic("a.*", pattern=True), SubscribeOptions("g"), inbox):
            pytest.fail("entered")


@pytest.mark.requires("ordering")
@pytest.mark.lacks("native")
async def test_group_whose_options_differ_is_a_mismatch(broker: Broker, other: Broker, place: Place) -> None:
    inbox = Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ordered=False), inbox):
        with pytest.raises(TopologyMismatchError):
            async with other.subscribe(place.topic(), SubscribeOptions("g", ordered=True), inbox):
                pytest.fail("entered")
        await broker.publish(place.topic(), text("x"))
        await inbox.holds(1)


async def test_error_in_the_body_comes_out_as_it_is(broker: Broker, place: Place) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="mine"):
        async with broker.subscribe(place.topic(), SubscribeOptions("g"), Inbox()):
            raise ValueError("mine")
    await no_tasks_besides(before)


async def test_cancelled_while_entering_leaves_nothing_behind(broker: Broker, place: Place) -> None:
    before = asyncio.all_tasks()
    inbox = Inbox()

    async def subscribe() -> None:
        async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
            await asyncio.Event().wait()

    for turns in [*range(15), 20, 30, 50]:
        entering = asyncio.ensure_future(subscribe())
        for _ in range(turns):
            await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([entering])
        assert entering.cancelled()
    await no_tasks_besides(before)
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await broker.publish(place.topic(), text("x"))
        await inbox.holds(1)
