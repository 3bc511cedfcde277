"""A delivery settles once."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from brokers.memory import MemoryBroker
from mesh.address import topic
from mesh.broker import Broker, Delivery, KeyValueProvider, Message
from mesh.errors import BrokerError

ADDRESS = topic("default", "pubsub", "t")


class Settler:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def ack(self) -> None:
        self.calls.append("ack")

    async def nack(self, delay: float) -> None:
        self.calls.append(f"nack {delay:g}")

    async def reject(self) -> None:
        self.calls.append("reject")

    async def extend(self) -> None:
        self.calls.append("extend")


@pytest.fixture
def settler() -> Settler:
    return Settler()


@pytest.fixture
def delivery(settler: Settler) -> Delivery:
    return Delivery(Message({}, b"x"), ADDRESS, 1, settler)


@pytest.mark.parametrize("how", ["ack", "nack", "reject"])
async def test_same_settlement_again_does_nothing(delivery: Delivery, settler: Settler, how: str) -> None:
    assert delivery.settled is None
    await getattr(delivery, how)()
    await getattr(delivery, how)()
    assert delivery.settled == how
    assert len(settler.calls) == 1


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(["ack", "nack", "reject"], 2)])
async def test_different_settlement_raises(delivery: Delivery, settler: Settler, first: str, second: str) -> None:
    await getattr(delivery, first)()
    with pytest.raises(BrokerError, match=f"{first}, then {second}"):
        await getattr(delivery, second)()
    assert len(settler.calls) == 1
    assert delivery.settled == first


async def test_delay_is_passed_on(delivery: Delivery, settler: Settler) -> None:
    await delivery.nack(1.5)
    await delivery.nack(99)
    assert settler.calls == ["nack 1.5"]


async def test_extend_works_until_settled(delivery: Delivery, settler: Settler) -> None:
    await delivery.extend()
    await delivery.extend()
    await delivery.ack()
    await delivery.extend()
    assert settler.calls == ["extend", "extend", "ack"]


async def test_concurrent_settlements_send_one(delivery: Delivery, settler: Settler) -> None:
    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(delivery.ack())
    assert settler.calls == ["ack"]


def test_the_protocols_are_met() -> None:
    assert isinstance(MemoryBroker(), Broker)
    assert isinstance(MemoryBroker(), KeyValueProvider)
