"""``pubsub.solace.amqp``: what stands on an AMQP 1.0 server, together with a client of another process, and TLS."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh import address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BrokerUnavailableError, ConfigError
from tests.http.harness import App, Backbone, component, gateway, subscription
from tests.support.artemis_server import PASSWORD, USER, ArtemisServer
from tests.support.backends import component_of
from tests.support.contract import Inbox

amqp = pytest.importorskip("brokers.native.amqp")
proton = pytest.importorskip("proton")

# Another program, on Proton's own loop: it sends what it reads, or prints what it takes.
OTHER = """
import base64, json, sys
from proton import Message
from proton.utils import BlockingConnection
asked = json.loads(sys.argv[1])
connection = BlockingConnection(asked["url"], timeout=30, allowed_mechs="PLAIN")
if "publish" in asked:
    sender = connection.create_sender(asked["address"])
    for body, properties, content_type in asked["publish"]:
        message = Message(base64.b64decode(body), inferred=True, durable=True, properties=properties)
        if content_type:
            message.content_type = content_type
        sender.send(message)
else:
    receiver = connection.create_receiver(asked["address"], credit=asked["count"])
    print(json.dumps("ready"), flush=True)
    for _ in range(asked["count"]):
        found = receiver.receive(30)
        receiver.accept()
        body = base64.b64encode(bytes(found.body)).decode()
        marks = [found.durable, found.priority, found.ttl, str(found.content_type or "")]
        print(json.dumps([body, found.properties or {}, marks]), flush=True)
connection.close()
"""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ArtemisServer]:
    async with ArtemisServer(tmp_path_factory.mktemp("artemis")) as server:
        yield server


def command(server: ArtemisServer, at: str, **asked: Any) -> list[str]:
    return [sys.executable, "-c", OTHER, json.dumps({"url": server.url, "address": at, **asked})]


async def other(server: ArtemisServer, at: str, **asked: Any) -> list[Any]:
    """Run the other program; give what it says."""
    told = command(server, at, **asked)
    done = await asyncio.to_thread(subprocess.run, told, check=True, timeout=60, capture_output=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def settings(server: ArtemisServer) -> dict[str, str]:
    return {"url": f"amqp://127.0.0.1:{server.port}", "username": USER, "password": PASSWORD}


def resources(server: ArtemisServer) -> str:
    return component("shop", "pubsub.solace.amqp", **settings(server))


subscribed = partial(subscription, "shop")


async def test_a_message_is_what_others_expect(server: ArtemisServer, backbone: Backbone, tmp_path: Path) -> None:
    """One data section; metadata are application properties; what the header has a place for stands there."""
    async with gateway(backbone, tmp_path, app_id="obs", resources=resources(server)) as node:
        path = "/v1.0/publish/shop/queue:written?metadata."
        await node.post(f"{path}rawPayload=true&metadata.foo=bar", b"\x89PNG", "application/octet-stream")
        await node.post(f"{path}ttlInSeconds=600&metadata.priority=7", {"a": 1}, "application/json")
        await node.post(f"{path}cloudevents=binary", {"b": 1}, "application/json")
    _, event, raw, binary = await other(server, "queue://written", count=3)  # By priority.
    assert base64.b64decode(raw[0]) == b"\x89PNG"
    assert raw[1] == {"rawPayload": "true", "foo": "bar"}
    assert raw[2][0] is True
    told = json.loads(base64.b64decode(event[0]))
    assert (told["data"], told["source"]) == ({"a": 1}, "obs")
    assert event[2][:3] == [True, 7, 600.0]
    assert (json.loads(base64.b64decode(binary[0])), binary[1]["cloudEvents_source"]) == ({"b": 1}, "obs")
    assert binary[2][3] == "application/json"


async def test_others_messages_reach_the_application(server: ArtemisServer, backbone: Backbone, tmp_path: Path) -> None:
    """From a topic and from a queue; what is no event is a dead letter."""
    app = App([subscribed("mixed", letters="refused"), subscribed("refused", rawPayload="true"), subscribed("queue:q")])
    async with app, gateway(backbone, tmp_path, app=app, resources=resources(server)):
        attributes = {"cloudEvents_specversion": "1.0", "cloudEvents_id": "9", "cloudEvents_source": "/till"}
        bodies: list[tuple[bytes, dict[str, object], str]] = [
            (b'{ "order" : 7 }', {"Foo": "bar", "n": 5}, ""),
            (b'{"sum":3}', {**attributes, "cloudEvents_type": "sold"}, "application/json"),
            (b"hello", {"from": "till"}, ""),
        ]
        told = [(base64.b64encode(body).decode(), *rest) for body, *rest in bodies]
        await other(server, "topic://mixed", publish=told)
        await other(server, "queue://q", publish=told[:1])
        plain, binary = sorted(await app.until("/mixed", 2), key=lambda each: "foo" not in each.headers)
        [letter] = await app.until("/refused")
        [queued] = await app.until("/q")
    assert (plain.body, plain.headers["foo"], plain.headers["n"]) == (b'{ "order" : 7 }', "bar", "5")
    assert queued.body == plain.body
    assert (binary.json["id"], binary.json["source"], binary.json["data"]) == ("9", "/till", {"sum": 3})
    assert base64.b64decode(letter.json["data_base64"]) == b"hello"
    assert (letter.headers["from"], letter.headers["mesh-dead-letter-topic"]) == ("till", "mixed")


async def test_a_queue_is_shared_with_others(server: ArtemisServer) -> None:
    """Each message goes to one of them."""
    made, topic = component_of("pubsub.solace.amqp", settings(server)), address.topic("t", "t", "queue:both")
    inbox = Inbox()
    async with (
        amqp.AMQPTopics.from_component(made) as broker,
        asyncio.TaskGroup() as tasks,
        broker.subscribe(topic, SubscribeOptions("g"), inbox),
    ):
        theirs = tasks.create_task(other(server, "queue://both", count=5))
        count = 0
        while not theirs.done():
            await broker.publish(topic, Message({}, b"%d" % count))
            count += 1
        taken = [base64.b64decode(body) for body, *_ in (await theirs)[1:]]
        await inbox.holds(count - len(taken))
    assert sorted(map(int, [*inbox.bodies, *taken])) == list(range(count))


async def test_a_group_keeps_its_place_while_nobody_is_there(server: ArtemisServer) -> None:
    """A subscription is durable, and one of its own for each group."""
    made, topic = component_of("pubsub.solace.amqp", settings(server)), address.topic("t", "t", "kept")
    async with amqp.AMQPTopics.from_component(made) as broker:
        for group in ("g", "h"):
            async with broker.subscribe(topic, SubscribeOptions(group), Inbox()):
                pass
        await broker.publish(topic, Message({}, b"meanwhile"))
        for group in ("g", "h"):
            inbox = Inbox()
            async with broker.subscribe(topic, SubscribeOptions(group), inbox):
                await inbox.holds(1)
            assert inbox.bodies == [b"meanwhile"]


class Stingy(asyncio.Protocol):
    """A server that takes messages, as many as it is told to; on Proton's engine."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self._connection, self._transport, self._collector = (
            proton.Connection(),
            proton.Transport(proton.Transport.SERVER),
            proton.Collector(),
        )
        self._connection.collect(self._collector)
        self._transport.sasl().allowed_mechs("ANONYMOUS")
        self._transport.bind(self._connection)
        self.link: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._socket: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = transport

    def data_received(self, data: bytes) -> None:
        self._transport.push(data)
        self._turn()

    def grant(self, count: int) -> None:
        self.link.result().flow(count)
        self._turn()

    def _turn(self) -> None:
        while (event := self._collector.peek()) is not None:
            if event.type in (proton.Event.CONNECTION_REMOTE_OPEN, proton.Event.SESSION_REMOTE_OPEN):
                event.context.open()
            elif event.type == proton.Event.LINK_REMOTE_OPEN:
                event.link.target.address = event.link.remote_target.address
                event.link.open()
                self.link.set_result(event.link)
            elif event.type == proton.Event.DELIVERY and event.delivery.readable and not event.delivery.partial:
                made = proton.Message()
                made.decode(event.link.recv(event.delivery.pending))
                self.taken.append(bytes(made.body))
                event.delivery.update(proton.Delivery.ACCEPTED)
                event.delivery.settle()
            self._collector.pop()
        while (size := self._transport.pending()) > 0:
            self._socket.write(self._transport.peek(size))
            self._transport.pop(size)


async def test_a_publish_that_is_given_up_before_there_is_credit_is_not_sent_later() -> None:
    """Those around it are."""
    wire, topic = Stingy(), address.topic("t", "t", "orders")
    async with await asyncio.get_running_loop().create_server(lambda: wire, "127.0.0.1", 0) as listening:
        url = f"amqp://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        made = component_of("pubsub.solace.amqp", {"url": url, "anonymous": "true"})
        async with amqp.AMQPTopics.from_component(made) as broker, asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            first, given_up, last = [
                tasks.create_task(broker.publish(topic, Message({}, body))) for body in (b"first", b"given up", b"last")
            ]
            await wire.link
            await broker.check()  # Since then all three wait for nothing but credit.
            given_up.cancel()
            await asyncio.wait([given_up])
            wire.grant(10)
            await asyncio.wait([first, last])
    assert wire.taken == [b"first", b"last"]


@pytest.mark.parametrize("body", [b"", b"\xff no message", b"\x00\x53\x75\xa0\x05cut"])
async def test_what_is_no_amqp_message_stays_at_the_server(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is not thrown away: other programs may understand it."""
    made = component_of("pubsub.solace.amqp", {"url": "amqp://localhost", "anonymous": "true"})
    broker, settled = amqp.AMQPTopics.from_component(made), list[Any]()

    class Wire:
        def settle(self, *what: Any, **how: bool) -> None:
            settled.append((*what, how))

    member = amqp._Member(broker._client, broker._settings, address.topic("t", "t", "odd"), "g")
    for good in (proton.Message(), proton.Message(b"", inferred=True), proton.Message("text")):
        member._take(Wire(), good.encode(), "it")
    assert (len(member._ready), settled) == (3, [])
    member._take(Wire(), body, "it")
    assert settled == [("it", amqp.Outcome.MODIFIED, {"failed": True, "elsewhere": True})]
    assert f"a message of topic://odd, of {len(body)} bytes, cannot be read" in caplog.text
    assert len(member._ready) == 3


async def test_links_that_take_each_others_place_lose_nothing(
    server: ArtemisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brokers.native._amqp_client.MAX_SENDERS", 1)
    made = component_of("pubsub.solace.amqp", settings(server))
    async with amqp.AMQPTopics.from_component(made) as broker, asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        for number in range(20):
            at = address.topic("t", "t", f"places{number % 4}")
            tasks.create_task(broker.publish(at, Message({}, b"it")))


async def test_a_wrong_password_is_told_as_what_it_is(server: ArtemisServer) -> None:
    made = component_of("pubsub.solace.amqp", {**settings(server), "password": "no-s3cret"})
    with pytest.raises(BrokerUnavailableError) as raised:
        async with amqp.AMQPTopics.from_component(made):
            pytest.fail("entered")
    assert type(raised.value).__name__ == "NotAdmittedError"
    assert "no-s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"url": "amqp://localhost"}, "username"),
        ({"url": "http://localhost", "anonymous": "true"}, "amqps://"),
        ({"url": "amqp://localhost", "anonymous": "true", "caCert": "ca.pem"}, "caCert"),
        ({"url": "amqp://localhost:99999", "anonymous": "true"}, "port"),
        ({"url": "amqp://localhost", "anonymous": "true", "layout": "mesh"}, "layout"),
    ],
)
def test_settings_that_cannot_be_are_named(told: dict[str, str], expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        amqp.AMQPTopics.from_component(component_of("pubsub.solace.amqp", told))
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("orders", ("topic://orders", False)),
        ("topic:orders", ("topic://orders", False)),
        ("topic://orders", ("topic://orders", False)),
        ("queue:orders", ("queue://orders", True)),
        ("queue://orders", ("queue://orders", True)),
    ],
)
def test_where_a_topic_is(topic: str, expected: tuple[str, bool]) -> None:
    assert amqp.AMQPSettings(url="amqp://localhost").address(topic) == expected
