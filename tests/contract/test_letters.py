"""What lies in a topic, gone through and taken away beside its groups; and what a topic and a group have there."""

from __future__ import annotations

import time
from typing import cast

import pytest

from mesh.address import Address
from mesh.broker import Broker, Message, SubscribeOptions
from mesh.inspection import Inspectable, Letter, Letters
from tests.support.contract import Inbox, Place
from tests.support.eventually import eventually


def _letters(broker: Broker) -> Letters:
    if not isinstance(broker, Letters):
        pytest.skip(f"{broker.features.name} does not show what lies in a topic")
    return broker


async def _kept(broker: Broker, where: Address) -> None:
    """Let a topic keep what is published: where queues alone do, a group has to have one."""
    if not broker.features.retention:
        async with broker.subscribe(where, SubscribeOptions("g"), Inbox()):
            pass


async def _all(broker: Broker, where: Address) -> list[Letter]:
    async with _letters(broker).letters(where) as pile:
        return [each async for each in pile]


def _message(number: int) -> Message:
    return Message({"mesh-dead-letter-attempts": str(number)}, b"\x00\xff%d" % number)


def _numbers(letters: list[Letter]) -> list[int]:
    return sorted(int(each.message.body[2:]) for each in letters)


async def test_letters_are_seen_and_stay(broker: Broker, other: Broker, place: Place) -> None:
    """Bytes and headers are as published; looking changes nothing; each has the same id every time."""
    _letters(broker)
    began, where = time.time(), place.topic()
    assert await _all(broker, where) == []
    await _kept(broker, where)
    await broker.publish_many(where, [_message(number) for number in range(40)])
    await broker.publish(place.topic("another"), _message(99))
    found = await _all(broker, where)
    assert _numbers(found) == list(range(40))
    assert all(each.message.headers["mesh-dead-letter-attempts"] == str(int(each.message.body[2:])) for each in found)
    assert all(each.stored is None or began - 60 < each.stored < time.time() + 60 for each in found)
    again = await _all(other, where)
    assert {each.id for each in again} == {each.id for each in found}
    assert len({each.id for each in found}) == 40
    async with _letters(other).letters(where) as pile:
        assert await pile.count() == 40
        assert len([each async for each in pile]) == 40


async def test_what_is_taken_is_gone_and_the_rest_stays(broker: Broker, other: Broker, place: Place) -> None:
    """Taken out of order, and by several at different times; whoever looks later sees what is left, and what is new."""
    _letters(broker)
    where = place.topic()
    await _kept(broker, where)
    await broker.publish_many(where, [_message(number) for number in range(12)])
    async with _letters(broker).letters(where) as pile:
        async for each in pile:
            if int(each.message.body[2:]) in (1, 2, 5):
                await pile.remove([each])
    assert _numbers(await _all(other, where)) == [0, 3, 4, 6, 7, 8, 9, 10, 11]
    await broker.publish(where, _message(12))
    async with _letters(other).letters(where) as pile:
        assert await pile.count() == 10
        async for each in pile:
            await pile.remove([each])
    assert await _all(broker, where) == []
    async with _letters(broker).letters(where) as pile:
        assert await pile.count() == 0


async def test_letters_of_one_id_are_told_apart(broker: Broker, other: Broker, place: Place) -> None:
    """Each has an id of its own, and the one that is removed is the one that is gone."""
    _letters(broker)
    where = place.topic()
    await _kept(broker, where)
    for number in range(3):
        await broker.publish(where, Message({}, b"\x00\xff%d" % number, id=None if broker.features.dedup else "same"))
    found = await _all(broker, where)
    assert len({each.id for each in found}) == 3
    async with _letters(other).letters(where) as pile:
        async for each in pile:
            if each.id == found[1].id:
                kept = each.message.body
                later = each
            if each.id == found[2].id:
                await pile.remove([later])
    assert sorted(each.message.body for each in await _all(broker, where)) == sorted(
        each.message.body for each in found if each.message.body != kept
    )


async def test_what_was_taken_before_an_error_is_gone(broker: Broker, other: Broker, place: Place) -> None:
    """A failure of who goes through it brings back nothing that was removed before."""
    _letters(broker)
    where = place.topic()
    await _kept(broker, where)
    await broker.publish_many(where, [_message(number) for number in range(4)])
    removed = list[Letter]()
    with pytest.raises(ZeroDivisionError):
        async with _letters(broker).letters(where) as pile:
            async for each in pile:
                await pile.remove([each])
                removed.append(each)
                if len(removed) == 3:
                    raise ZeroDivisionError
    assert _numbers([*removed, *await _all(other, where)]) == [0, 1, 2, 3]


async def test_a_group_misses_nothing_that_was_looked_at(broker: Broker, other: Broker, place: Place) -> None:
    _letters(broker)
    where, inbox = place.topic(), Inbox()
    await _kept(broker, where)
    await broker.publish_many(where, [_message(number) for number in range(5)])
    assert len(await _all(other, where)) == 5
    async with broker.subscribe(where, SubscribeOptions("g"), inbox):
        await inbox.holds(5)
    assert sorted(inbox.bodies) == sorted(_message(number).body for number in range(5))


async def test_what_a_topic_and_a_group_have(broker: Broker, place: Place) -> None:
    """A group is there once somebody has subscribed; nothing differs; nothing is refused; and asking makes nothing."""
    if not isinstance(broker, Inspectable):
        pytest.skip(f"{broker.features.name} cannot be looked at")
    where, options = place.topic(), SubscribeOptions("g")
    await broker.publish(where, _message(1))
    for _ in range(2):
        found = await broker.inspect(where, options)
        assert (found.exists, found.group, found.differs, found.refused) == (True, False, "", ())
    assert (await broker.inspect(where, None)).group is None
    async with broker.subscribe(where, options, inbox := Inbox()):
        if not broker.features.retention:
            await broker.publish(where, _message(1))
        await inbox.holds(1)

        async def is_there() -> None:
            assert (await cast("Inspectable", broker).inspect(where, options)).group

        await eventually(is_there)
    seen = inbox.bodies
    assert seen == [_message(1).body]


@pytest.mark.requires("ordering")
async def test_a_group_of_the_other_order_differs(broker: Broker, place: Place) -> None:
    if not isinstance(broker, Inspectable):
        pytest.skip(f"{broker.features.name} cannot be looked at")
    if (broker.features.name, broker.features.layout) == ("kafka", "native"):
        pytest.skip("a consumer group there has no order of its own: each member keeps the one that it was asked for")
    where = place.topic()
    await broker.publish(where, _message(1))
    async with broker.subscribe(where, SubscribeOptions("g", ordered=True), inbox := Inbox()):
        await inbox.holds(1)
        found = await broker.inspect(where, SubscribeOptions("g"))
    assert "ordered" in found.differs
