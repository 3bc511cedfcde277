"""How much a group has before it, by the broker's own word."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest

from mesh.broker import Broker, Delivery, Measurable, SubscribeOptions
from mesh.errors import BrokerError
from tests.support.contract import Inbox, Place, text
from tests.support.eventually import eventually


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_how_much_a_group_has_before_it(broker: Broker, place: Place, ordered: bool) -> None:
    """All of it while nobody is there; what is taken is not settled; nothing once everything is."""
    if not hasattr(broker, "backlog"):
        pytest.skip(f"{broker.features.name} does not say")
    if ordered and not broker.features.ordering:
        pytest.skip("no order")
    measured = cast("Measurable", broker)
    options, inbox = SubscribeOptions("g", max_in_flight=1, ordered=ordered), Inbox()
    async with broker.subscribe(place.topic(), options, inbox):
        await broker.publish(place.topic(), text(0))
        await inbox.holds(1)

    async def settled() -> None:
        found = await measured.backlog(place.topic(), options)
        assert (found.waiting, found.taken or 0, found.oldest) == (0, 0, None)

    await eventually(settled)
    began = time.time()
    await broker.publish_many(place.topic(), [text(number) for number in range(1, 6)])
    await broker.publish(place.topic("another"), text(9))

    async def stored() -> None:
        found = await measured.backlog(place.topic(), options)
        assert (found.waiting, found.taken or 0) == (5, 0)
        assert found.oldest is None or began - 60 < found.oldest < time.time() + 60

    await eventually(stored)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()
        await delivery.ack()

    async with broker.subscribe(place.topic(), options, slowly):
        await begun.wait()
        found = await measured.backlog(place.topic(), options)
        # Where the broker does not say what is taken, members may hold some besides the one that is handled.
        assert 0 <= found.waiting <= 5
        if found.taken is not None:
            assert found.taken >= 1
            assert found.waiting + found.taken == 5
        go_on.set()
        await eventually(settled)


async def test_a_group_that_is_not_there(broker: Broker, place: Place) -> None:
    """It has nothing, or that is an error; never what others have."""
    if not hasattr(broker, "backlog"):
        pytest.skip(f"{broker.features.name} does not say")
    await broker.publish(place.topic(), text(1))
    try:
        found = await cast("Measurable", broker).backlog(place.topic(), SubscribeOptions("never"))
    except BrokerError:
        return
    assert found.taken in (0, None)
