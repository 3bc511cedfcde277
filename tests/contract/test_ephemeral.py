"""Groups that last as long as their member."""

from __future__ import annotations

import asyncio

import pytest

from mesh.broker import Broker, Delivery, Message, SubscribeOptions
from mesh.errors import FeatureNotSupportedError
from tests.support.contract import Place
from tests.support.eventually import eventually

OPTIONS = SubscribeOptions("temporary", ephemeral=True)


@pytest.mark.requires("ephemeral")
async def test_an_ephemeral_group_gets_what_comes_from_now_on(place: Place, broker: Broker, other: Broker) -> None:
    """Not what was stored before, and nothing from while it was away."""
    topic = place.topic()
    got: list[bytes] = []

    async def take(delivery: Delivery) -> None:
        got.append(delivery.message.body)
        await delivery.ack()

    def arrived(*bodies: bytes) -> None:
        assert got == list(bodies)

    await broker.publish(topic, Message({}, b"before"))
    async with other.subscribe(topic, OPTIONS, take):
        await broker.publish(topic, Message({}, b"during"))
        await eventually(lambda: arrived(b"during"))
    await broker.publish(topic, Message({}, b"between"))
    async with other.subscribe(topic, OPTIONS, take):
        await broker.publish(topic, Message({}, b"after"))
        await eventually(lambda: arrived(b"during", b"after"))


@pytest.mark.requires("ephemeral")
async def test_every_ephemeral_group_gets_every_message(place: Place, broker: Broker, other: Broker) -> None:
    """Broadcast is a group for each member."""
    topic = place.topic()
    got: dict[str, list[bytes]] = {"a": [], "b": []}
    done = asyncio.Event()

    def taking(name: str):  # type: ignore[no-untyped-def]
        async def take(delivery: Delivery) -> None:
            got[name].append(delivery.message.body)
            await delivery.ack()
            if all(len(bodies) == 20 for bodies in got.values()):
                done.set()

        return take

    async with (
        broker.subscribe(topic, SubscribeOptions("a", ephemeral=True), taking("a")),
        other.subscribe(topic, SubscribeOptions("b", ephemeral=True), taking("b")),
    ):
        for number in range(20):
            await broker.publish(topic, Message({}, b"%d" % number))
        async with asyncio.timeout(30):
            await done.wait()
    assert sorted(got["a"]) == sorted(got["b"]) == sorted(b"%d" % number for number in range(20))


@pytest.mark.lacks("ephemeral")
async def test_ephemeral_groups_are_refused(place: Place, broker: Broker) -> None:
    """A broker that cannot says so."""
    topic = place.topic()

    async def take(delivery: Delivery) -> None:
        await delivery.ack()

    with pytest.raises(FeatureNotSupportedError):
        async with broker.subscribe(topic, OPTIONS, take):
            pass
