"""JetStream in the native layout while servers, members and consumers go."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from brokers.native import _jetstream_member
from brokers.native.jetstream import JetStreamTopics
from mesh import address
from mesh.broker import Message, SubscribeOptions
from tests.support.backends import component_of
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.forked import python
from tests.support.nats import NatsServer
from tests.support.nats_raw import RawNats

TOPIC = address.topic("test", "pubsub", "orders")
ASKED = {"group": "shop", "ack_wait": 1.0}
OPTIONS = SubscribeOptions(**ASKED)  # type: ignore[arg-type]  # its fields, by name
ALONE = {"durableName": "shop", "heartbeat": "500ms", "flowControl": "true"}
KINDS = [
    pytest.param({}, id="pull"),
    pytest.param({"durableName": "shop", "queueGroupName": "shop", "ackWait": "1s"}, id="push"),
    pytest.param({**ALONE, "ackWait": "1s", "rateLimit": "100000000"}, id="push, alone"),
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "server") as started:
        async with RawNats(started.port) as raw:
            await raw.stream("ORDERS", "orders")
        yield started


def member(server: NatsServer, settings: dict[str, str]) -> JetStreamTopics:
    return JetStreamTopics.from_component(component_of("pubsub.jetstream", {"natsURL": server.url, **settings}))


async def publish(broker: JetStreamTopics, first: int, count: int) -> None:
    messages = [Message({}, str(number).encode(), id=str(number)) for number in range(first, first + count)]
    assert await broker.publish_many(TOPIC, messages) == [None] * count


async def all_there(inbox: Inbox, count: int) -> None:
    def check() -> None:
        assert set(map(int, inbox.bodies)) == set(range(count))

    await eventually(check)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("kill", [False, True], ids=["restart", "kill -9"])
async def test_what_was_confirmed_outlives_the_server(server: NatsServer, settings: dict[str, str], kill: bool) -> None:
    inbox = Inbox()
    async with member(server, settings) as broker, broker.subscribe(TOPIC, OPTIONS, inbox):
        await publish(broker, 0, 500)
        await server.restart(kill=kill)
        await publish(broker, 500, 500)
        await all_there(inbox, 1000)


@pytest.mark.parametrize("settings", KINDS)
async def test_what_a_killed_member_held_goes_to_another(server: NatsServer, settings: dict[str, str]) -> None:
    inbox = Inbox()
    async with member(server, settings) as broker:
        url = f"component:{json.dumps(['pubsub.jetstream', {'natsURL': server.url, **settings}])}"
        told = json.dumps([TOPIC.space, TOPIC.name, TOPIC.label])
        async with python("tests.support.member", [url, told, json.dumps(ASKED)], {}) as other:
            assert await other.line() == "ready"
            await publish(broker, 0, 20)
            held = {await other.line() for _ in range(20)}
            await other.kill()
        await publish(broker, 20, 1)
        async with RawNats(server.port) as raw:
            [name] = (await raw.api("CONSUMER.NAMES.ORDERS"))["consumers"]

            async def noticed() -> None:
                assert not (await raw.api(f"CONSUMER.INFO.ORDERS.{name}")).get("push_bound")

            await eventually(noticed)
        async with broker.subscribe(TOPIC, OPTIONS, inbox):
            await all_there(inbox, 21)
    assert len(held) == 20
    assert all(each.attempt >= 2 for each in inbox.deliveries if each.message.body.decode() in held)


@pytest.mark.parametrize("settings", KINDS)
async def test_a_consumer_that_somebody_deletes_is_made_again(
    server: NatsServer, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jetstream_member, "SILENCE", 0.5)
    inbox = Inbox()
    async with (
        member(server, settings) as broker,
        RawNats(server.port) as raw,
        broker.subscribe(TOPIC, OPTIONS, inbox),
    ):
        await publish(broker, 0, 10)
        await all_there(inbox, 10)
        [name] = (await raw.api("CONSUMER.NAMES.ORDERS"))["consumers"]
        assert (await raw.api(f"CONSUMER.DELETE.ORDERS.{name}"))["success"]
        await publish(broker, 10, 10)
        await all_there(inbox, 20)


async def test_flow_control_is_answered(server: NatsServer) -> None:
    """Or the server would stop: it waits for an answer after some hundred kilobytes."""
    inbox = Inbox()
    async with member(server, {**ALONE, "maxAckPending": "10000"}) as broker:
        messages = [Message({}, b"%06d" % number + bytes(10_000)) for number in range(2000)]
        assert not any(await broker.publish_many(TOPIC, messages))
        async with broker.subscribe(TOPIC, OPTIONS, inbox):
            await inbox.holds(2000)
