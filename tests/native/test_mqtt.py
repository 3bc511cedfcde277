"""Topics of an MQTT server as they stand: with Mosquitto's own clients on the other side, and beside other sidecars."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from blockbuster import BlockBuster

from brokers.mqtt import MQTTBroker
from brokers.native.mqtt import MQTTNativeSettings, MQTTTopics
from brokers.shared.mqtt import server_of
from gateway.cli import main
from mesh.address import Address, topic
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigError,
    FeatureNotSupportedError,
    PublishRejectedError,
)
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry
from tests.e2e.test_doctor import COMPONENT
from tests.http.harness import App, Backbone, component, gateway, yaml
from tests.support.backends import skip_unless_chosen
from tests.support.certificates import Authority
from tests.support.contract import Inbox, no_tasks_besides, text
from tests.support.eventually import eventually
from tests.support.mqtt_server import UNBOUNDED, MQTTServer, tls_settings
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.reference.mqtt import ReferenceMQTT

KEEP_ALIVE_30 = (30).to_bytes(2)


@pytest.fixture(autouse=True, scope="module")
def _chosen(request: pytest.FixtureRequest) -> None:
    skip_unless_chosen(request.config, "mqtt")


@pytest.fixture(autouse=True)
def _blocking() -> Any:
    """Fail a test whose adapter blocks the event loop."""
    detector = BlockBuster(scanned_modules=["brokers.native"])
    detector.activate()
    yield
    detector.deactivate()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(_chosen: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MQTTServer]:
    async with MQTTServer(tmp_path_factory.mktemp("mqtt") / "server", UNBOUNDED) as server:
        yield server


def topics(
    port: int, consumer: str = "", *, keep_alive: int = 30, patience: float = 60.0, **settings: Any
) -> MQTTTopics:
    url = server_of(f"mqtt://127.0.0.1:{port}")
    return MQTTTopics(
        MQTTNativeSettings(url=url, consumer=consumer, **settings), keep_alive=keep_alive, patience=patience
    )


def at(name: str) -> Address:
    return topic("test", "mqtt", name)


def group(name: str, most: int = 100) -> SubscribeOptions:
    return SubscribeOptions(name, max_in_flight=most)


async def publish_plainly(server: MQTTServer, name: str, body: bytes | str, *options: str) -> None:
    """Publish with Mosquitto's own client, by MQTT 3.1.1."""
    command = ["mosquitto_pub", "-V", "311", "-p", str(server.port), "-q", "1", "-t", name, "-s", *options]
    data = body.encode() if isinstance(body, str) else body
    await asyncio.to_thread(subprocess.run, command, input=data, check=True, timeout=60)


@asynccontextmanager
async def read_plainly(server: MQTTServer, name: str) -> AsyncIterator[Callable[[], Any]]:
    """Subscribe with Mosquitto's own client; gives what reads a message: its QoS, whether it is retained, its body."""
    process = await asyncio.create_subprocess_exec(
        *("stdbuf", "-oL", "mosquitto_sub", "-V", "311", "-p", str(server.port), "-q", "2", "-d", "-t", name),
        *("-F", "body %x"),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    out = process.stdout

    async def line(pattern: bytes) -> re.Match[bytes]:
        async with asyncio.timeout(30):
            while (found := re.search(pattern, line := await out.readline())) is None:
                assert line, "mosquitto_sub has ended"
            return found

    async def read() -> tuple[int, bool, bytes]:
        flags = await line(rb"received PUBLISH \(d\d, q(\d), r(\d)")
        return int(flags[1]), flags[2] == b"1", bytes.fromhex((await line(rb"^body (.*)"))[1].decode())

    await line(rb"^Subscribed")
    try:
        yield read
    finally:
        process.terminate()
        await process.communicate()


@asynccontextmanager
async def stranger(
    meet: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """Listen as a server that is not ours; gives its port."""
    async with asyncio.TaskGroup() as connections:

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.IncompleteReadError):
                await meet(reader, writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.create_task(hold(reader, writer))

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as listening:
            yield listening.sockets[0].getsockname()[1]


async def retained(server: MQTTServer, name: str) -> list[str]:
    command = ["mosquitto_sub", "-p", str(server.port), "-t", name, "-W", "1", "--retained-only"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, text=True)
    return done.stdout.splitlines()


# What stands on the server


async def test_event_of_an_application_is_the_envelope(server: MQTTServer, tmp_path: Path) -> None:
    """At the topic of its own name, with QoS 1, retained if its publisher says so; raw and text as they are."""
    own = component("sensors", "pubsub.mqtt3", url=f"tcp://127.0.0.1:{server.port}", qos="1")
    async with (
        gateway(Backbone("memory:"), tmp_path, app_id="shop", resources=own) as node,
        read_plainly(server, "wire/#") as read,
    ):

        async def publish(target: str, body: bytes, kind: str = "application/json") -> tuple[int, bool, bytes]:
            reply = await node.post(f"/v1.0/publish/sensors/{target}", body, kind)
            assert (reply.status, reply.body) == (204, b""), reply.body
            found: tuple[int, bool, bytes] = await read()
            return found

        qos, is_retained, body = await publish("wire/x?metadata.partitionKey=pk1", b'{"a": 1}')
        assert (qos, is_retained) == (1, False)
        event = json.loads(body)
        assert (event["data"], event["topic"], event["pubsubname"]) == ({"a": 1}, "wire/x", "sensors")
        assert (event["source"], event["type"], event["specversion"]) == ("shop", "com.dapr.event.sent", "1.0")
        assert "pk1" not in body.decode()

        _, _, body = await publish("wire/x", b"\x89PNG\r\n\x1a\n\x00", "image/png")
        assert base64.b64decode(json.loads(body)["data_base64"]) == b"\x89PNG\r\n\x1a\n\x00"
        _, _, body = await publish("wire/x?metadata.rawPayload=true", b"\x00\xff raw")
        assert body == b"\x00\xff raw"
        await publish("wire/kept?metadata.retain=true", b"2")
        assert [json.loads(each)["data"] for each in await retained(server, "wire/kept")] == [2]

        for target, reason in (
            ("wire/x?metadata.cloudevents=binary", "binary mode"),
            ("wire/x?metadata.retain=perhaps", "retain"),
            ("%24SYS/x", "no such topic"),
            ("mesh.default.app.shop", "name of the mesh's own"),
            ("wire/%23", "wildcards"),
            ("$share/g/wire", "no such topic"),
            ("wire%00", "no such topic"),
        ):
            reply = await node.post(f"/v1.0/publish/sensors/{target}", b"1", "application/json")
            assert reply.status >= 400, target
            assert reason in reply.json["message"], reply.json


async def test_what_other_programs_write_reaches_the_application(server: MQTTServer, tmp_path: Path) -> None:
    """Events as they are, with what the server tells of them; anything else to who asks for it raw."""
    own = component("sensors", "pubsub.mqtt", url=f"tcp://127.0.0.1:{server.port}")
    subscriptions = [
        {"pubsubname": "sensors", "topic": "in/events/+", "route": "/events"},
        {"pubsubname": "sensors", "topic": "in/raw/#", "route": "/raw", "metadata": {"rawPayload": "true"}},
    ]
    await publish_plainly(server, "in/events/last", '{"id":"last"}', "-r")
    event = '{ "specversion":"1.0", "id":"1","source":"/d","type":"t","data":1}'
    async with (
        App(subscriptions) as app,
        gateway(Backbone("memory:"), tmp_path, app=app, app_id="in", resources=own) as node,
    ):
        [got] = await app.until("/events")
        assert (got.json, got.headers["retained"]) == ({"id": "last"}, "true")
        await publish_plainly(server, "in/events/b", event)
        got = (await app.until("/events", 2))[1]
        assert got.body == event.encode()
        assert got.headers["content-type"] == "application/cloudevents+json"
        assert (got.headers["pubsubname"], got.headers["retained"]) == ("sensors", "false")
        await publish_plainly(server, "in/raw/x/y", b"\x00\xff")
        [got] = await app.until("/raw")
        assert base64.b64decode(got.json["data_base64"]) == b"\x00\xff"
        assert (got.json["topic"], got.json["pubsubname"]) == ("in/raw/x/y", "sensors")
        metadata = (await node.get("/v1.0/metadata")).json["components"]
        assert "SUBSCRIBE_WILDCARDS" in metadata[0]["capabilities"]


async def test_one_connection_by_the_consumer_id(server: MQTTServer) -> None:
    """MQTT 3.1.1, the session is kept, a sign of life every 30 s; it publishes and subscribes."""
    first: list[bytes] = []

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first.append(await reader.read(1024))

    async with stranger(watch) as port:
        with pytest.raises(BrokerUnavailableError, match="the connection was closed"):
            async with topics(port, "shop"):
                pytest.fail("entered")
    assert first == [b"\x10\x10\x00\x04MQTT\x04\x00" + KEEP_ALIVE_30 + b"\x00\x04shop"]
    async with (
        Proxy(server.port) as proxy,
        topics(proxy.port, "one") as node,
        node.subscribe(at("one"), group("one"), inbox := Inbox()),
    ):
        await node.publish(at("one"), text("x"))
        await inbox.holds(1)
        assert proxy.accepted == 1


# What a member has


async def test_retry_comes_again_at_the_same_member_and_lets_others_pass(server: MQTTServer) -> None:
    async def settle(delivery: Delivery) -> None:
        if delivery.message.body == b"bad" and delivery.attempt < 3:
            await delivery.nack(0.3)
        elif delivery.message.body == b"bad":
            await delivery.reject()
        else:
            await delivery.ack()

    inbox = Inbox(settle)
    async with topics(server.port, "again") as node, node.subscribe(at("again"), group("again"), inbox):
        await node.publish(at("again"), text("bad"))
        for number in range(5):
            await node.publish(at("again"), text(number))
        await inbox.holds(8)
    assert [(each.message.body, each.attempt) for each in inbox.deliveries] == [
        (b"bad", 1),
        *((b"%d" % number, 1) for number in range(5)),
        (b"bad", 2),
        (b"bad", 3),
    ]
    async with topics(server.port, "again") as node, node.subscribe(at("again"), group("again"), inbox):
        await node.publish(at("again"), text("last"))
        await inbox.holds(9)
    assert inbox.bodies[8:] == [b"last"]


async def test_what_is_at_work_when_the_connection_breaks_is_not_handed_over_again(
    server: MQTTServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The server learns of what is done with meanwhile by the next connection, and of the rest by a later one."""
    gates = {text: asyncio.Event() for text in (b"away", b"back")}

    async def settle(delivery: Delivery) -> None:
        if (gate := gates.get(delivery.message.body[:4])) is not None:
            await gate.wait()
        await delivery.ack()

    inbox, proxy = Inbox(settle), Proxy(server.port)
    async with AsyncExitStack() as stack:
        async with proxy:
            node = await stack.enter_async_context(topics(proxy.port, "cut"))
            await stack.enter_async_context(node.subscribe(at("cut"), group("cut"), inbox))
            for number in range(20):
                await node.publish(at("cut"), text(f"{'away' if number % 2 else 'back'}{number}"))
            await inbox.holds(20)
            for number in range(3):
                before = proxy.accepted
                proxy.cut()
                await node.publish(at("cut"), text(number))
                assert proxy.accepted > before
        await eventually(lambda: _lost(caplog, 4))
        gates[b"away"].set()
        async with proxy, stack:
            await node.publish(at("cut"), text(3))
            gates[b"back"].set()
            await eventually(lambda: _has(inbox, b"3"))
            assert len([body for body in inbox.bodies if body[:4] in gates]) == 20
            await eventually(lambda: _all_settled(inbox))
            await node.check()  # Now the server has had that.
    async with topics(server.port, "cut") as node, node.subscribe(at("cut"), group("cut"), last := Inbox()):
        await node.publish(at("cut"), text("last"))
        await last.holds(1)
        assert last.bodies == [b"last"]


def _all_settled(inbox: Inbox) -> None:
    assert all(each.settled for each in inbox.deliveries)


def _lost(caplog: pytest.LogCaptureFixture, times: int) -> None:
    assert sum("lost the connection" in each.getMessage() for each in caplog.records) == times


def _has(inbox: Inbox, body: bytes, count: int = 1) -> None:
    assert inbox.bodies.count(body) >= count, inbox.bodies[-20:]


async def test_killed_and_restarted_server(tmp_path: Path) -> None:
    """What it has saved it gives; members and publishers go on by themselves."""
    async with MQTTServer(tmp_path / "server") as server, topics(server.port, "kept") as node:
        async with node.subscribe(at("kept"), group("kept"), Inbox()):
            pass
        for number in range(10):
            await node.publish(at("kept"), text(number))
        await server.save()
        await server.kill()
        waiting = asyncio.ensure_future(node.publish(at("kept"), text(10)))
        with pytest.raises(BrokerUnavailableError):
            await node.check()
        await server.start()
        await waiting
        async with node.subscribe(at("kept"), group("kept"), inbox := Inbox()):
            await inbox.holds(11)
            await server.restart(kill=False)
            await node.publish(at("kept"), text(11))
            await inbox.holds(12)
        assert set(inbox.bodies) == {b"%d" % number for number in range(12)}


async def test_killed_member(server: MQTTServer) -> None:
    """By kill -9 in the middle of its work, of which nothing is acknowledged.

    The next with its client id gets that, although the server sends it before it subscribes.
    """
    code = (
        "import asyncio\n"
        "from brokers.native.mqtt import MQTTNativeSettings, MQTTTopics\n"
        "from brokers.shared.mqtt import MQTTServer\n"
        "from mesh.address import topic\n"
        "from mesh.broker import SubscribeOptions\n"
        "async def main():\n"
        "    async def hold(delivery):\n"
        "        print('has', flush=True); await asyncio.Event().wait()\n"
        f"    server = MQTTServer('127.0.0.1', {server.port})\n"
        "    node = MQTTTopics(MQTTNativeSettings(url=server, consumer='killed'))\n"
        "    where = topic('test', 'mqtt', 'killed')\n"
        "    async with node, node.subscribe(where, SubscribeOptions('killed'), hold):\n"
        "        print('subscribed', flush=True); await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    member = await asyncio.create_subprocess_exec(*(sys.executable, "-c", code), stdout=subprocess.PIPE, env=environ)
    assert member.stdout is not None
    try:
        async with asyncio.timeout(60), topics(server.port) as device:
            assert await member.stdout.readline() == b"subscribed\n"
            for number in range(3):
                await device.publish(at("killed"), text(number))
                assert await member.stdout.readline() == b"has\n"
    finally:
        member.send_signal(signal.SIGKILL)
        await member.communicate()
    async with topics(server.port, "killed") as node:
        await node.publish(at("killed"), text("last"))  # Confirmed: what the server had for the session has come.
        async with node.subscribe(at("killed"), group("killed"), inbox := Inbox()):
            await inbox.holds(4)
    assert sorted(inbox.bodies) == [b"0", b"1", b"2", b"last"]
    assert {each.attempt for each in inbox.deliveries if each.message.body != b"last"} == {2}
    async with topics(server.port, "killed") as node, node.subscribe(at("killed"), group("killed"), last := Inbox()):
        await node.publish(at("killed"), text("new"))
        await last.holds(1)
    assert last.bodies == [b"new"]


async def test_more_than_there_is_room_for_comes_again(server: MQTTServer, caplog: pytest.LogCaptureFixture) -> None:
    """This server sends all it has at once."""
    gate = asyncio.Event()
    caplog.set_level(logging.INFO)

    async def settle(delivery: Delivery) -> None:
        await gate.wait()
        await delivery.ack()

    inbox, count = Inbox(settle), 5200
    async with topics(server.port, "flood") as node, node.subscribe(at("flood"), group("flood"), inbox):
        await node.publish_many(at("flood"), [text(number) for number in range(count)])
        gate.set()
        await eventually(lambda: _all_of(inbox, count))
    assert "no room" in caplog.text
    assert "lost the connection" not in caplog.text


def _all_of(inbox: Inbox, count: int) -> None:
    assert len(set(inbox.bodies)) == count


# Instances


async def test_instances_share_by_the_name_of_the_topic(server: MQTTServer) -> None:
    inboxes = Inbox(), Inbox()
    name = at("$share/workers/shared/+")
    async with (
        topics(server.port, "worker-0") as one,
        topics(server.port, "worker-1") as two,
        one.subscribe(name, group("worker-0"), inboxes[0]),
        two.subscribe(name, group("worker-1"), inboxes[1]),
    ):
        for number in range(40):
            await one.publish(at("shared/x"), text(number))
        await eventually(lambda: _sum(inboxes, 40))
    assert all(inbox.deliveries for inbox in inboxes)
    assert {each.address.label for inbox in inboxes for each in inbox.deliveries} == {"shared/x"}


def _sum(inboxes: tuple[Inbox, ...], count: int) -> None:
    assert sorted(int(body) for inbox in inboxes for body in inbox.bodies) == list(range(count))


async def test_two_with_one_client_id_say_so_and_do_not_fight(
    server: MQTTServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(server.port) as proxy, topics(proxy.port, "twin") as one:
        async with (
            topics(proxy.port, "twin") as two,
            one.subscribe(at("twin"), group("twin"), Inbox()),
            two.subscribe(at("twin"), group("twin"), Inbox()),
        ):
            await eventually(lambda: _told(caplog, 2))
            assert proxy.accepted < 40
            assert "consumerID" in caplog.text
        async with asyncio.timeout(60):
            await one.publish(at("twin"), text("alone"))


async def test_what_a_server_ends_the_connection_for_is_not_sent_for_ever() -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x20\x02\x01\x00")
        while head := await reader.read(2):
            body = await reader.readexactly(head[1])
            if b"poison" in body:
                break
            if head[0] & 0xF0 == 0x30:
                at = 2 + int.from_bytes(body[:2])
                writer.write(b"\x40\x02" + body[at : at + 2])

    async with (
        stranger(meet) as port,
        topics(port, "ended") as node,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await node.publish(at("poison"), text("x"))
        async with asyncio.timeout(30):
            await node.publish(at("other"), text("x"))


def _told(caplog: pytest.LogCaptureFixture, count: int) -> None:
    assert sum("as well, so that they throw" in each.getMessage() for each in caplog.records) == count


async def test_what_nobody_takes_does_not_hold_up_the_others(
    server: MQTTServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A session keeps the topics that an application subscribed to once."""
    async with topics(server.port, "changed") as node, topics(server.port) as device:
        async with node.subscribe(at("old/+"), group("changed"), Inbox()):
            pass
        for number in range(30):
            await device.publish(at("old/x"), text(number))
    async with (
        topics(server.port, "changed", patience=0.4) as node,
        node.subscribe(at("new"), group("changed"), inbox := Inbox()),
    ):
        await eventually(lambda: _gone(caplog, "old/x"))
        await node.publish(at("new"), text("new"))
        await inbox.holds(1)


def _gone(caplog: pytest.LogCaptureFixture, name: str) -> None:
    assert f"nothing subscribes to {name} any more" in caplog.text


async def test_what_the_application_refuses_is_tried_again_and_then_a_dead_letter(
    server: MQTTServer, tmp_path: Path
) -> None:
    """The letter is the message as it was; a batch tells of each entry what the server told."""
    own = component("sensors", "pubsub.mqtt3", url=f"tcp://127.0.0.1:{server.port}") + yaml(
        "Resiliency",
        "retries",
        {
            "policies": {"retries": {"twice": {"policy": "constant", "duration": "50ms", "maxRetries": 2}}},
            "targets": {"components": {"sensors": {"inbound": {"retry": "twice"}}}},
        },
    )
    many = {"enabled": True, "maxMessagesCount": 10, "maxAwaitDurationMs": 10}
    subscriptions = [
        {"pubsubname": "sensors", "topic": "bad/x", "route": "/bad", "deadLetterTopic": "bad/dead"},
        {"pubsubname": "sensors", "topic": "bad/dead", "route": "/dead"},
        {"pubsubname": "sensors", "topic": "many/x", "route": "/many", "bulkSubscribe": many},
    ]
    event = '{ "specversion":"1.0", "id":"1","source":"/d","type":"t","data":1}'
    async with (
        App(subscriptions) as app,
        gateway(Backbone("memory:"), tmp_path, app=app, app_id="bad", resources=own),
    ):
        app.answer("/bad", 500)
        for body in (event, "no event"):
            await publish_plainly(server, "bad/x", body)
        got = {each.json["type"]: each for each in await app.until("/dead", 2)}
        assert (got["t"].body, len(app.at("/bad"))) == (event.encode(), 3)
        [other] = got.keys() - {"t"}
        assert base64.b64decode(got[other].json["data_base64"]).strip() == b"no event"
        await publish_plainly(server, "many/x", event)
        [got] = await app.until("/many")
        assert got.json["entries"][0]["metadata"]["retained"] == "false"
    async with topics(server.port, "bad") as node, node.subscribe(at("bad/x"), group("bad"), last := Inbox()):
        await node.publish(at("bad/x"), text("last"))
        await last.holds(1)
        assert last.bodies == [b"last"]


async def test_what_is_retained_comes_once(server: MQTTServer) -> None:
    """And not with each connection, while the server has the session."""
    async with Proxy(server.port) as proxy, topics(proxy.port, "kept", retain=True) as node:
        await node.publish(at("kept/x"), text("kept"))
        async with node.subscribe(at("kept/+"), group("kept"), inbox := Inbox()):
            await inbox.holds(1)
            await eventually(lambda: _all_settled(inbox))
            await node.check()  # Now the server has had that.
            proxy.cut()
            await node.publish(at("kept/y"), text("other"))
            await inbox.holds(2)
            await node.check()
            assert [each.message.metadata["retained"] for each in inbox.deliveries] == ["true", "false"]
            assert inbox.bodies == [b"kept", b"other"]


async def test_server_that_has_forgotten_the_session(tmp_path: Path) -> None:
    """It was killed before it had saved anything: members subscribe again."""
    async with (
        MQTTServer(tmp_path / "server") as server,
        topics(server.port, "new") as node,
        node.subscribe(at("new"), group("new"), inbox := Inbox()),
    ):
        await server.restart(kill=True)

        async def arrives() -> None:
            await node.publish(at("new"), text("again"))
            assert inbox.deliveries

        await eventually(arrives)


# Topics


async def test_wildcards_are_the_server_s(server: MQTTServer) -> None:
    inboxes = {name: Inbox() for name in ("w/+/t", "w/#", "w/a/t", "w.*.>")}
    async with topics(server.port, "wild") as node:
        for name, inbox in inboxes.items():
            await node._stack.enter_async_context(node.subscribe(at(name), group("wild"), inbox))
        for name in ("w/a/t", "w/b/t", "w/b", "w.*.>"):
            await node.publish(at(name), text(name))
        await eventually(lambda: _has(inboxes["w/#"], b"w/b"))
        await inboxes["w.*.>"].holds(1)
    found = {name: {each.address.label for each in inbox.deliveries} for name, inbox in inboxes.items()}
    assert found == {
        "w/+/t": {"w/a/t", "w/b/t"},
        "w/#": {"w/a/t", "w/b/t", "w/b"},
        "w/a/t": {"w/a/t"},
        "w.*.>": {"w.*.>"},
    }


async def test_what_mqtt_lacks_is_refused(server: MQTTServer) -> None:
    with pytest.raises(BrokerUnavailableError, match="is not reachable"):
        async with MQTTTopics(MQTTNativeSettings(url=server_of("mqtt://a..b"))):
            pytest.fail("entered")
    async with topics(server.port, "lacks") as node:
        for options, line in (
            (SubscribeOptions("g", ordered=True), False),
            (SubscribeOptions("g", ephemeral=True), True),
        ):
            with pytest.raises(FeatureNotSupportedError) as caught:
                async with node.subscribe(at("x"), options, Inbox()):
                    pytest.fail("entered")
            assert ("layout: mesh" in str(caught.value)) is line, "named where it has that alone"
        with pytest.raises(FeatureNotSupportedError, match="headers"):
            await node.publish(at("x"), Message({"ce-id": "1"}, b""))
        with pytest.raises(PublishRejectedError):
            await node.publish(at("x/+"), text("x"))
        results = await node.publish_many(at("x"), [Message({"ce-id": "1"}, b""), text("x")])
        assert [type(each) for each in results] == [BrokerError, type(None)]
        for wrong in ("a/#/b", "a+/b", "#a", "$share/g", "$share//x", "$share/g/", "$share/+/x", "a\nb"):
            with pytest.raises(BrokerError, match="is no MQTT topic filter"):
                async with node.subscribe(at(wrong), group("lacks"), Inbox()):
                    pytest.fail("entered")
    with pytest.raises(BrokerUnavailableError):
        async with node.subscribe(at("x"), group("lacks"), Inbox()):
            pytest.fail("entered")


@pytest.mark.parametrize("granted", [0x80, 0], ids=["refused", "with QoS 0"])
async def test_server_that_does_not_let_us_subscribe(granted: int) -> None:
    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x20\x02\x01\x00")
        while head := await reader.read(2):
            body = await reader.readexactly(head[1])
            if head[0] == 0x82:
                writer.write(b"\x90\x03" + body[:2] + bytes([granted]))
            elif head[0] == 0xA2:
                writer.write(b"\xb0\x02" + body[:2])

    async with (
        stranger(meet) as port,
        topics(port, "denied") as node,
    ):
        with pytest.raises(BrokerError, match="does not let us subscribe to closed"):
            async with node.subscribe(at("closed"), group("denied"), Inbox()):
                pytest.fail("entered")
        await node.check()


async def test_subscriptions_that_a_connection_does_not_get_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer by the next connection, though its session is there; refused once more a little later."""
    answers: dict[str, list[str]] = {}
    asked: list[tuple[int, str, str]] = []
    connections: list[asyncio.StreamWriter] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        number = len(connections)
        writer.write(b"\x20\x02" + bytes([number > 2, 0]))
        while head := await reader.read(2):
            body = await reader.readexactly(head[1])
            if head[0] == 0x82:
                wanted = body[4:-1].decode()
                said = answers[wanted].pop(0) if answers.get(wanted) else "granted"
                asked.append((number, wanted, said))
                if said != "nothing":
                    writer.write(b"\x90\x03" + body[:2] + (b"\x01" if said == "granted" else b"\x80"))

    def are_all_back() -> None:
        last = {wanted: (number, said) for number, wanted, said in asked}
        assert {wanted: said for wanted, (_, said) in last.items()} == dict.fromkeys(wanted_ones, "granted")
        assert last["other"][0] >= 2
        assert last["silent"][0] >= 3
        assert not any(answers.values())

    wanted_ones = ("silent", "denied", "other")
    async with stranger(meet) as port, topics(port, "again") as node, AsyncExitStack() as stack:
        for wanted in wanted_ones:
            await stack.enter_async_context(node.subscribe(at(wanted), group("again"), Inbox()))
        answers.update(silent=["nothing", "refused"], denied=["refused"])
        monkeypatch.setattr("brokers.native._paho.ANSWER_WAIT", 0.2)
        connections[0].close()
        await eventually(are_all_back)


# Settings


def read(**settings: str) -> MQTTTopics:
    metadata = tuple(MetadataEntry(name, value) for name, value in settings.items())
    return MQTTTopics.from_component(Component("sensors", "pubsub.mqtt3", metadata, file="sensors.yaml", line=1))


def test_the_layout_is_a_setting() -> None:
    assert Registry().load("pubsub.mqtt3") is Registry().load("pubsub.mqtt") is MQTTTopics
    assert Registry().load("pubsub.mqtt3", "mesh") is MQTTBroker
    assert MQTTBroker.features.layout == "mesh"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "url"),
        ({"url": "amqp://secret@h"}, "an MQTT URL is mqtt://user:password@host:port"),
        ({"url": "mqtt://me:secret@h/path"}, "an MQTT URL is"),
        ({"url": "tcp://h", "qos": "0"}, "is 1 or 2, not '0'"),
        ({"url": "tcp://h", "retain": "perhaps"}, "not a boolean"),
        ({"url": "tcp://h", "sharedSubscriptions": "true"}, "layout: mesh"),
        ({"url": "tcp://h", "topicPrefix": "x/"}, "layout: mesh"),
    ],
)
def test_wrong_settings_are_located(settings: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as raised:
        read(**settings)
    assert "sensors.yaml" in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.leaves_sockets  # Of what the other side does not admit.
async def test_tls_and_login(tmp_path: Path) -> None:
    authority = await asyncio.to_thread(Authority, tmp_path / "ca")
    ours = await asyncio.to_thread(authority.issue, "server")
    client = await asyncio.to_thread(authority.issue, "client")
    async with MQTTServer(tmp_path / "server", tls_settings(authority, ours)) as server:
        mine = {"caCert": str(authority.path), "clientCert": str(client.certificate), "clientKey": str(client.key)}
        url = f"ssl://me:p%40ss@localhost:{server.port}"
        async with (
            read(url=url, consumerID="tls", **mine) as node,
            node.subscribe(at("x"), group("tls"), inbox := Inbox()),
        ):
            await node.publish_many(at("x"), [Message({}, bytes(20_000))] * 50)
            await inbox.holds(50)
        for given in ({}, {"caCert": mine["caCert"]}):
            with pytest.raises(BrokerUnavailableError):
                async with read(url=url, **given):
                    pytest.fail("entered")
        for settings, reason in (
            ({"url": f"tcp://localhost:{server.port}", **mine}, "begins with mqtts://"),
            ({"url": url, "caCert": "/nowhere"}, "cannot be used"),
            ({"url": url, "clientCert": mine["clientCert"]}, "go together"),
        ):
            with pytest.raises(ConfigError, match=reason):
                async with read(**settings):
                    pytest.fail("entered")


@pytest.mark.parametrize("secure", [False, True])
async def test_websockets(tmp_path: Path, secure: bool) -> None:
    authority = await asyncio.to_thread(Authority, tmp_path / "ca")
    ours = await asyncio.to_thread(authority.issue, "server")
    # By itself, this kind of listener takes no address.
    port = free_port()
    lines = (
        f"listener {port}",
        "protocol websockets",
        *((f"certfile {ours.certificate}", f"keyfile {ours.key}") if secure else ()),
    )
    async with MQTTServer(tmp_path / "server", lines):
        await eventually(lambda: _listens(port))
        more = {"caCert": str(authority.path)} if secure else {}
        url = f"ws{'s' if secure else ''}://127.0.0.1:{port}"
        async with (
            read(url=url, consumerID="web", **more) as node,
            node.subscribe(at("x"), group("web"), inbox := Inbox()),
        ):
            await node.publish(at("x"), Message({}, bytes(20_000)))
            await node.publish(at("x"), text("last"))
            await inbox.holds(2)


async def _listens(port: int) -> None:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        raise AssertionError from error
    writer.close()


async def test_qos_2_is_confirmed_by_the_server(server: MQTTServer) -> None:
    async with topics(server.port, qos="2") as node, read_plainly(server, "twice") as read:
        await node.publish(at("twice"), text("x"))
        assert await read() == (2, False, b"x")


async def test_server_that_speaks_something_else_is_left(server: MQTTServer, caplog: pytest.LogCaptureFixture) -> None:
    before = asyncio.all_tasks()
    caplog.set_level(logging.WARNING)
    garbage = [
        b"\x20\x02\x00\x00" + rest
        for rest in (b"\x30\x03\x00\x09x", b"\xff\xff\xff\xff\xff\xff", b"\x90\x00", b"\x40\x01\x00")
    ]

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(garbage[0] if len(garbage) == 1 else garbage.pop(0))
        while await reader.read(1024):
            pass

    async with (
        stranger(meet) as port,
        topics(port, "odd"),
    ):
        await eventually(lambda: _one(garbage))
    await no_tasks_besides(before)


def _one(garbage: list[bytes]) -> None:
    assert len(garbage) == 1


# Beside other sidecars


async def test_events_of_another_sidecar_both_ways(server: MQTTServer, tmp_path: Path) -> None:
    own = component("sensors", "pubsub.mqtt3", url=f"tcp://127.0.0.1:{server.port}")
    subscription = {"pubsubname": "sensors", "topic": "both/ours", "route": "/ours"}
    other = ReferenceMQTT(server.port, "other")
    await asyncio.to_thread(other.__enter__)
    try:
        await asyncio.to_thread(other.subscribe, "both/theirs")
        async with (
            App([subscription]) as app,
            gateway(Backbone("memory:"), tmp_path, app=app, app_id="ours", resources=own) as node,
        ):
            identity = await asyncio.to_thread(other.publish, "both/ours", {"n": 1})
            [got] = await app.until("/ours")
            assert (got.json["id"], got.json["data"], got.json["source"]) == (identity, {"n": 1}, "other")
            reply = await node.post("/v1.0/publish/sensors/both/theirs", b'{"n": 2}', "application/json")
            assert reply.status == 204

            def arrived() -> None:
                assert [(each["data"], each["source"]) for each in other.got] == [({"n": 2}, "ours")]

            await eventually(arrived)
    finally:
        await asyncio.to_thread(other.__exit__)


async def test_session_goes_from_one_kind_to_the_other_and_back(server: MQTTServer) -> None:
    """One group: its client id. What the other refused and never acknowledged comes to us; what we refuse, to them."""
    refusing = ReferenceMQTT(server.port, "moved", lambda event: event["data"] % 3 != 0)
    await asyncio.to_thread(refusing.__enter__)
    await asyncio.to_thread(refusing.subscribe, "moved")
    for number in range(9):
        await asyncio.to_thread(refusing.publish, "moved", number)

    def called() -> None:
        assert len(refusing.got) == 9

    await eventually(called)
    await asyncio.to_thread(refusing.__exit__)

    async def settle(delivery: Delivery) -> None:
        if json.loads(delivery.message.body)["data"] == 6:
            await delivery.nack(60.0)
        else:
            await delivery.ack()

    inbox = Inbox(settle)
    async with topics(server.port, "moved") as node, node.subscribe(at("moved"), group("moved"), inbox):
        await inbox.holds(3)
        assert [json.loads(body)["data"] for body in inbox.bodies] == [0, 3, 6]
    # It is not called for what is sent before it subscribes; a member of ours is.
    async with topics(server.port, "moved") as node, node.subscribe(at("moved"), group("moved"), last := Inbox()):
        await last.holds(1)
        assert [json.loads(body)["data"] for body in last.bodies] == [6]
    taking = ReferenceMQTT(server.port, "moved")
    await asyncio.to_thread(taking.__enter__)
    await asyncio.to_thread(taking.subscribe, "moved")
    await asyncio.to_thread(taking.publish, "moved", 9)

    def next_only() -> None:
        assert [each["data"] for each in taking.got] == [9]

    await eventually(next_only)
    await asyncio.to_thread(taking.__exit__)


async def test_members_of_both_kinds_share_a_topic(server: MQTTServer) -> None:
    """They come and go: what is for one that is away waits in its session."""
    name, count, inbox = "$share/mixed/mixed/x", 0, Inbox()
    other = ReferenceMQTT(server.port, "mixed-0")

    async def publish(node: MQTTTopics) -> None:
        nonlocal count
        for _ in range(20):
            await node.publish(at("mixed/x"), text(json.dumps({"n": count})))
            count += 1

    async with topics(server.port) as device:
        async with topics(server.port, "mixed-1") as node, node.subscribe(at(name), group("mixed-1"), inbox):
            await publish(device)
            await asyncio.to_thread(other.__enter__)
            await asyncio.to_thread(other.subscribe, name)
            await publish(device)
        await publish(device)
        async with topics(server.port, "mixed-1") as node, node.subscribe(at(name), group("mixed-1"), inbox):
            await publish(device)

            def all_came() -> None:
                ours = [json.loads(body)["n"] for body in inbox.bodies]
                assert sorted([*ours, *(each["n"] for each in other.got)]) == list(range(count))

            await eventually(all_came)
            assert other.got
            await asyncio.to_thread(other.__exit__)


@pytest.mark.parametrize("consumer", ["", "looked-at-{appID}"])
async def test_doctor_takes_no_session_away(
    server: MQTTServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], consumer: str
) -> None:
    """Who has the client id stays connected, whether the file names it or the application does."""
    settings = {"url": server.url, "consumerID": consumer} if consumer else {"url": server.url}
    entries = json.dumps([{"name": name, "value": value} for name, value in settings.items()])
    (tmp_path / "all.yaml").write_text(COMPONENT.format(name="pubsub", type="pubsub.mqtt3", settings=entries))
    client_id, log = consumer.replace("{appID}", "shop") or "shop", server.directory / "output.log"
    before = log.stat().st_size
    async with topics(server.port, client_id) as ours, ours.subscribe(at("looked/at"), group(client_id), Inbox()):
        words = ["doctor", "-d", str(tmp_path), "-a", "shop", "-o", "json"]
        assert await asyncio.to_thread(main, words) == 0
        assert json.loads(capsys.readouterr().out)["checks"][0]["told"] == "reachable"
        await ours.check()
        logged = log.read_bytes()[before:].decode()
    names = re.findall(r"New client connected from \S+ as (\S+) \(p\d, c(\d)", logged)
    assert [(name, clean) for name, clean in names if not name.startswith("mesh-")] == [(client_id, "0")]
    assert [clean for name, clean in names if name.startswith("mesh-")] == ["1"]
