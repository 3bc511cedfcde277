"""How many large events are in hand at once, and which brokers carry them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace as changed

from brokers.memory import MemoryBroker
from brokers.mqtt.broker import MQTTBroker
from mesh.address import topic
from mesh.broker import Broker, Delivery, Features, Message, SubscribeOptions, Topology
from mesh.delivery import NOT_BEFORE_HEADER
from mesh.errors import BadArgumentError, BrokerError, EventError, PublishRejectedError, StateError
from mesh.large import PARTS_HEADER, carrying
from tests.support.eventually import eventually

MEBIBYTE = 1024 * 1024
WHERE = topic("ns", "pubsub", "t")
GROUP = SubscribeOptions("g")


class SmallBroker(MemoryBroker):
    """Takes 256 KiB in a message; its store fails where a test says so."""

    features = Features("small", max_message_bytes=256 * 1024, key_value=True, delay=True)
    fails = False

    async def key_value(self, name: str, *, dotted: bool = False) -> Any:
        assert name == f"{WHERE.space}.bodies"
        store = await super().key_value(name, dotted=dotted)

        async def fail(*arguments: object, **options: object) -> Any:
            raise StateError("no space left")

        async def get(key: str, *, strong: bool = False) -> Any:
            return await (fail if self.fails else store.get)(key, strong=strong)

        async def apply(operations: Any) -> None:
            await (fail if self.fails else store.apply)(operations)

        return SimpleNamespace(get=get, apply=apply)


@pytest.fixture
async def small() -> AsyncIterator[SmallBroker]:
    async with SmallBroker() as broker:
        await broker.declare(Topology(WHERE.space))
        yield broker


async def test_few_large_events_are_in_hand_at_once(small: SmallBroker) -> None:
    """The next is read when one before it is settled; small ones do not wait for them."""
    broker = carrying(small)
    sizes, go_on, deliveries = list[int](), asyncio.Semaphore(0), list[Delivery]()

    async def handle(delivery: Delivery) -> None:
        await delivery.complete()
        await delivery.complete()  # It is read once.
        sizes.append(len(delivery.message.body))
        deliveries.append(delivery)
        if sizes[-1] > MEBIBYTE:
            await go_on.acquire()
        await delivery.ack()

    for number in range(3):
        await broker.publish(WHERE, Message({"n": str(number)}, bytes(40 * MEBIBYTE)))
    await broker.publish(WHERE, Message({}, b"x"))
    async with broker.subscribe(WHERE, GROUP, handle):
        for number in (1, 2, 3):

            def check(number: int = number) -> None:
                assert sorted(sizes) == [1, *[40 * MEBIBYTE] * number]

            await eventually(check)
            go_on.release()
        await eventually(lambda: None)
    assert [dict(each.message.headers) for each in deliveries if len(each.message.body) == 1] == [{}]
    assert all(each.settled == "ack" and PARTS_HEADER not in each.message.headers for each in deliveries)


async def test_a_store_that_fails_is_told_apart_from_a_body_that_is_gone(small: SmallBroker) -> None:
    """The publisher is refused, and may try again; the reader may later read what it cannot read now."""
    broker, errors, stored = carrying(small), list[BrokerError | EventError](), list[Message]()
    message = Message({}, bytes(MEBIBYTE), id="a")

    async def handle(delivery: Delivery) -> None:
        try:
            await delivery.complete()
        except (BrokerError, EventError) as error:
            errors.append(error)
        await delivery.ack()

    async def keep(delivery: Delivery) -> None:
        stored.append(delivery.message)
        await delivery.ack()

    async with small.subscribe(WHERE, SubscribeOptions("seen"), keep):
        await broker.publish(WHERE, message)
        await eventually(lambda: _longer(stored, 0))
        small.fails = True
        with pytest.raises(PublishRejectedError, match="the event's body cannot be kept: no space left"):
            await broker.publish(WHERE, changed(message, id="b"))
        async with broker.subscribe(WHERE, GROUP, handle):
            await small.publish(WHERE, changed(stored[0], id="c"))
            await eventually(lambda: _longer(errors, 0))
            small.fails = False
            gone = {PARTS_HEADER: stored[0].headers[PARTS_HEADER].replace(" 5 ", " 4 ")}
            await small.publish(WHERE, changed(message, headers=gone, body=b"", id="d"))
            await eventually(lambda: _longer(errors, 1))
    assert [type(each) for each in errors] == [BrokerError, EventError]
    assert "cannot be read: no space left" in str(errors[0])
    assert "is gone" in str(errors[1])


@pytest.mark.parametrize("removes", [True, False])
async def test_an_event_that_is_due_when_it_is_gone_is_refused(
    small: SmallBroker, removes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both times; others of its bulk are stored. Where what is held back is not removed, a large body is."""
    if removes:
        monkeypatch.setattr(SmallBroker, "max_age", lambda _, topology: topology.max_age, raising=False)
    broker, day = carrying(small), 24 * 3600

    def due(days: float, size: int = MEBIBYTE) -> Message:
        return Message(
            {NOT_BEFORE_HEADER: str(int((time.time() + days * day) * 1000))}, bytes(size), id=f"{days} {size}"
        )

    with pytest.raises(BadArgumentError) as caught:
        await broker.publish(WHERE, due(10))
    told = [datetime.fromisoformat(each) for each in re.findall(r"\d{4}-\S+\+00:00", str(caught.value))]
    wanted = [datetime.now(UTC) + timedelta(days=days) for days in (10, 7)]
    assert [abs(one - other) < timedelta(minutes=5) for one, other in zip(told, wanted, strict=True)] == [True, True]
    if removes:
        with pytest.raises(BadArgumentError, match="and it is kept until"):
            await broker.publish(WHERE, due(10, 10))
    results = await broker.publish_many(WHERE, [due(6.9), due(10), due(10, 10), due(6.9, 10), due(1e11)])
    assert [index for index, each in enumerate(results) if each is None] == ([0, 3] if removes else [0, 2, 3])
    assert {type(each) for each in results} == {type(None), BrokerError}


def _longer(found: list[Any], than: int) -> None:
    assert len(found) > than


@pytest.mark.parametrize("more", [{"max_message_bytes": 1 << 30}, {"layout": "reference"}, {"key_value": False}])
def test_what_has_no_need_no_place_or_other_readers_stays_as_it_is(more: dict[str, object]) -> None:
    features = SimpleNamespace(**{"key_value": True, "max_message_bytes": MEBIBYTE, **more})
    broker = cast("Broker", SimpleNamespace(features=features))
    assert carrying(broker) is broker


def test_a_component_on_mqtt_has_no_place_for_them() -> None:
    assert not MQTTBroker.features.key_value
    assert not hasattr(MQTTBroker, "bodies")
