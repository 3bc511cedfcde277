"""What the contract does not ask of every broker, on a real Mosquitto, with its own clients on the other side."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from brokers.mqtt import MQTTBroker, MQTTConfig
from mesh.address import Address, topic
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, MessageTooLargeError, PublishRejectedError
from tests.support.backends import skip_unless_chosen
from tests.support.certificates import Authority
from tests.support.contract import Inbox, text
from tests.support.eventually import eventually
from tests.support.mqtt_server import MQTTServer, tls_settings
from tests.support.proxy import Proxy

EVENT = {"ce-specversion": "1.0", "ce-id": "7", "ce-source": "/shop", "ce-type": "order", "ce-subject": "gr%C3%BCn"}
JSON_EVENT = {**EVENT, "ce-datacontenttype": "application/json"}
GROUP = SubscribeOptions("g")


@pytest.fixture(autouse=True, scope="module")
def _chosen(request: pytest.FixtureRequest) -> None:
    skip_unless_chosen(request.config, "mqtt")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(_chosen: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MQTTServer]:
    async with MQTTServer(tmp_path_factory.mktemp("mqtt") / "server") as server:
        yield server


def config(server: MQTTServer, **settings: object) -> MQTTConfig:
    return MQTTConfig("127.0.0.1", server.port, **settings)  # type: ignore[arg-type]


def at(name: str) -> Address:
    return topic("test", "mqtt", name)


async def publish_plainly(server: MQTTServer, name: str, body: str, *options: str) -> None:
    """Publish with Mosquitto's own client, as a device would."""
    command = ["mosquitto_pub", "-p", str(server.port), "-q", "1", "-t", name, "-m", body, *options]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)


async def retained(server: MQTTServer, pattern: str) -> dict[str, str]:
    """Give the retained messages of a topic filter, by topic."""
    command = ["mosquitto_sub", "-p", str(server.port), "-t", pattern, "-W", "1", "--retained-only", "-v"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, text=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())  # type: ignore[arg-type]


async def sessions(server: MQTTServer, group: str) -> dict[str, tuple[str, str]]:
    """Give the state and the holder of each session of a group, by topic."""
    found = await retained(server, "mesh-sessions/+/+")
    return {
        name: (text.partition(" ")[0], text.partition(" ")[2])
        for name, text in found.items()
        if name.split("/")[2].startswith(f"{group}-")
    }


class Watcher:
    """Mosquitto's own client, subscribed."""

    def __init__(self, server: MQTTServer, pattern: str, form: str, *options: str) -> None:
        self._command = [
            "stdbuf",
            "-oL",
            "mosquitto_sub",
            "-d",
            "-p",
            str(server.port),
            "-q",
            "1",
            "-t",
            pattern,
            "-F",
            form,
            *options,
        ]

    async def __aenter__(self) -> Watcher:
        self._process = await asyncio.create_subprocess_exec(*self._command, stdout=asyncio.subprocess.PIPE)
        while "SUBACK" not in await self.line():
            pass
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._process.kill()
        await self._process.wait()

    async def line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(30):
            return (await self._process.stdout.readline()).decode()

    async def found(self, sign: str) -> str:
        while sign not in (line := await self.line()):
            pass
        return line


# Others on the same server


@pytest.mark.parametrize("version", ["311", "mqttv5"])
async def test_message_of_a_device_reaches_a_subscription_with_wildcards(server: MQTTServer, version: str) -> None:
    inbox = Inbox()
    async with (
        MQTTBroker(config(server)) as broker,
        broker.subscribe(at(f"{version}/+/temp"), GROUP, inbox),
        broker.subscribe(at(f"{version}/#"), SubscribeOptions("all"), all_of_it := Inbox()),
    ):
        await publish_plainly(server, f"{version}/kitchen/temp", "21.5", "-V", version)
        await publish_plainly(server, f"{version}/kitchen/light", "on", "-V", version, "-q", "0")
        await inbox.holds(1)
        await all_of_it.holds(2)
    [delivery] = inbox.deliveries
    assert (delivery.message.body, dict(delivery.message.headers)) == (b"21.5", {})
    assert delivery.address == at(f"{version}/kitchen/temp")
    assert sorted(all_of_it.bodies) == [b"21.5", b"on"]


async def test_event_as_another_client_sees_it(server: MQTTServer) -> None:
    """By the CloudEvents binding: plain attribute names, values that are not percent-encoded, the content type."""
    headers = {**JSON_EVENT, "mesh-note": "x"}
    async with MQTTBroker(config(server)) as broker, Watcher(server, "shop/#", "got|%t|%C|%P|%p", "-V", "5") as watcher:
        await broker.publish(at("shop/orders.new"), Message(headers, b'{"n":1}'))
        _, name, content_type, properties, body = (await watcher.found("got|")).strip().split("|")
    assert (name, content_type, body) == ("shop/orders.new", "application/json", '{"n":1}')
    assert set(properties.split()) == {
        "specversion:1.0",
        "id:7",
        "source:/shop",
        "type:order",
        "subject:grün",
        "mesh-note:x",
    }


async def test_event_from_another_client(server: MQTTServer) -> None:
    inbox = Inbox()
    attributes = {"specversion": "1.0", "id": "8", "source": "/device", "type": "measured", "subject": "grün"}
    options = [word for pair in attributes.items() for word in ("-D", "PUBLISH", "user-property", *pair)]
    async with MQTTBroker(config(server)) as broker, broker.subscribe(at("device/x"), GROUP, inbox):
        await publish_plainly(
            server, "device/x", '{"n":2}', "-V", "5", *options, "-D", "PUBLISH", "content-type", "application/json"
        )
        await inbox.holds(1)
    assert dict(inbox.deliveries[0].message.headers) == {
        "ce-specversion": "1.0",
        "ce-id": "8",
        "ce-source": "/device",
        "ce-type": "measured",
        "ce-subject": "gr%C3%BCn",
        "ce-datacontenttype": "application/json",
    }


async def test_shared_subscription_named_in_the_topic(server: MQTTServer) -> None:
    """As others write it; the group is the one that they name."""
    inbox = Inbox()
    async with (
        MQTTBroker(config(server)) as broker,
        broker.subscribe(at("$share/team/named/x"), GROUP, inbox),
        broker.subscribe(at("named/x"), SubscribeOptions("team"), inbox),
    ):
        for number in range(10):
            await broker.publish(at("named/x"), text(number))
        await inbox.holds(10)
        await broker.publish(at("named/x"), text("last"))
        await inbox.holds(11)
    assert sorted(inbox.bodies) == sorted([*(b"%d" % n for n in range(10)), b"last"])


@pytest.mark.parametrize("name", ["a/+", "#", "a/#/b"])
async def test_topics_that_mqtt_does_not_have_are_refused(server: MQTTServer, name: str) -> None:
    async with MQTTBroker(config(server)) as broker:
        with pytest.raises(PublishRejectedError):
            await broker.publish(at(name), text("x"))
        await broker.publish(at("a"), text("still connected"))


@pytest.mark.parametrize("name", ["a/b+", "a/#/b", "a#"])
async def test_filters_that_mqtt_does_not_have_are_refused(server: MQTTServer, name: str) -> None:
    async with MQTTBroker(config(server)) as broker:
        with pytest.raises(BrokerError):
            async with broker.subscribe(at(name), GROUP, Inbox()):
                pytest.fail("entered")


async def test_retained_messages(server: MQTTServer) -> None:
    async with MQTTBroker(config(server, retain=True)) as broker:
        await broker.publish(at("kept/x"), text("first"))
        await broker.publish(at("kept/x"), text("last"))
    assert await retained(server, "kept/x") == {"kept/x": "last"}


# Sessions


async def test_nothing_waits_for_a_delayed_delivery(server: MQTTServer) -> None:
    """It is kept here, and is another member's as soon as this one leaves."""
    first, second = Inbox(lambda delivery: delivery.nack(3600.0 if delivery.message.body == b"0" else 0.0)), Inbox()
    options = SubscribeOptions("g", max_in_flight=1)
    async with MQTTBroker(config(server)) as broker, MQTTBroker(config(server)) as other:
        async with broker.subscribe(at("delayed/x"), options, first):
            for number in range(3):
                await broker.publish(at("delayed/x"), text(number))
            await eventually(lambda: _has(first, {b"0", b"1", b"2"}))
        async with other.subscribe(at("delayed/x"), options, second):
            await second.holds(3)
    assert sorted(second.bodies) == [b"0", b"1", b"2"]
    assert all(delivery.attempt >= 2 for delivery in second.deliveries)


def _has(inbox: Inbox, bodies: set[bytes]) -> None:
    assert bodies <= set(inbox.bodies), bodies - set(inbox.bodies)


async def test_sessions_of_members_that_left_are_emptied_and_ended(server: MQTTServer) -> None:
    """Three instances leave with what they were sent; the one that comes back gets all of it, and one session stays."""
    where, group = at("left/x"), SubscribeOptions("left")
    inbox = Inbox()
    async with MQTTBroker(config(server)) as broker:
        async with AsyncExitStack() as stack:
            members = [Inbox(lambda delivery: delivery.nack(3600.0)) for _ in range(3)]
            for member in members:
                await stack.enter_async_context(broker.subscribe(where, group, member))
            for number in range(60):
                await broker.publish(where, text(number))

            def all_arrived() -> None:
                assert sum(len(member.deliveries) for member in members) == 60
                assert all(member.deliveries for member in members)

            await eventually(all_arrived)
        for number in range(60, 70):  # Nobody is there.
            await broker.publish(where, text(number))
        async with broker.subscribe(where, group, inbox):
            await inbox.holds(70)

            async def one_is_left() -> None:
                assert [state for state, _ in (await sessions(server, "left")).values()] == ["held"]

            await eventually(one_is_left, within=40)
            for number in range(70, 80):
                await broker.publish(where, text(number))
            await inbox.holds(80)
    assert sorted(map(int, inbox.bodies)) == list(range(80))


async def test_member_that_fell_silent_is_taken_over(server: MQTTServer) -> None:
    """Its will was lost with the server, say: what tells is that it announces itself no more."""
    where, group = at("silent/x"), SubscribeOptions("silent")
    inbox = Inbox()
    async with MQTTBroker(config(server)) as broker:
        async with broker.subscribe(where, group, Inbox(lambda delivery: delivery.nack(3600.0))):
            await broker.publish(where, text("x"))
        [(name, (state, _))] = (await sessions(server, "silent")).items()
        assert state == "free"
        await publish_plainly(server, name, "held somebody-else", "-r")
        async with broker.subscribe(where, group, inbox):
            await inbox.holds(1)
    assert inbox.bodies == [b"x"]


async def test_member_that_is_taken_for_dead_goes_on_with_a_new_session(server: MQTTServer) -> None:
    where, group = at("taken/x"), SubscribeOptions("taken")
    inbox, other_inbox = Inbox(), Inbox()

    async def begun() -> None:  # By the broker: a member is subscribed before what it says of itself is kept.
        assert len(await sessions(server, "taken")) == 1

    async with (
        MQTTBroker(config(server)) as broker,
        MQTTBroker(config(server)) as other,
        broker.subscribe(where, group, inbox),
    ):
        await eventually(begun)
        [name] = await sessions(server, "taken")
        await publish_plainly(server, name, "free somebody", "-r")  # It says that it is not so.

        async def held() -> None:
            assert (await sessions(server, "taken"))[name][1].startswith(broker.inbox)

        await eventually(held)
        thief = ["mosquitto_sub", "-p", str(server.port), "-V", "5", "-i", name.rpartition("/")[2]]
        process = await asyncio.create_subprocess_exec(*thief, "-c", "-x", "100", "-t", "none")
        try:
            await publish_plainly(server, name, "held somebody-else", "-r")

            async def has_another() -> None:
                assert len(await sessions(server, "taken")) == 2

            await eventually(has_another)
        finally:
            process.kill()
            await process.wait()
        for number in range(20):
            await broker.publish(where, text(number))
        async with other.subscribe(where, group, other_inbox):
            # What went to the stolen session is there for whoever finds it free.
            await publish_plainly(server, name, "free somebody", "-r")

            def all_arrived() -> None:
                assert {*inbox.bodies, *other_inbox.bodies} == {b"%d" % number for number in range(20)}

            await eventually(all_arrived)


async def test_member_that_was_cut_off_for_long_comes_back(server: MQTTServer) -> None:
    """Meanwhile another one has taken over what it had; both go on."""
    where, group = at("off/x"), SubscribeOptions("off")
    go_on = asyncio.Event()

    async def work(delivery: Delivery) -> None:
        await go_on.wait()
        await delivery.ack()

    near, far = Inbox(), Inbox(work)
    numbers = range(20, 60)
    async with AsyncExitStack() as stack:
        proxy = Proxy(server.port)
        await proxy.__aenter__()
        through = dataclasses.replace(config(server), port=proxy.port, ping_interval=0.5)
        broker = await stack.enter_async_context(MQTTBroker(config(server)))
        other = await stack.enter_async_context(MQTTBroker(through))
        await stack.enter_async_context(broker.subscribe(where, group, near))
        await stack.enter_async_context(other.subscribe(where, group, far))
        for number in range(20):
            await broker.publish(where, text(number))
        await eventually(lambda: _many(far, 5))
        await proxy.__aexit__(None, None, None)
        await near.holds(20, within=40)
        assert set(near.bodies) == {b"%d" % number for number in range(20)}
        async with Proxy(server.port, proxy.port):
            go_on.set()
            before = len(far.deliveries)

            async def both_get_some() -> None:
                await broker.publish(where, text("more"))
                assert len(far.deliveries) > before

            await eventually(both_get_some, within=40)
            for number in numbers:
                await broker.publish(where, text(number))

            def all_arrived() -> None:
                assert {*near.bodies, *far.bodies} >= {b"%d" % number for number in numbers}

            await eventually(all_arrived)
            await stack.aclose()


def _many(inbox: Inbox, count: int) -> None:
    assert len(inbox.deliveries) >= count


async def test_acknowledgement_that_a_cut_swallowed_is_given_again(server: MQTTServer) -> None:
    """A handler that ends while there is no connection: its delivery does not come to it again."""
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def work(delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()
        await delivery.ack()

    where = at("swallowed/x")
    inbox = Inbox(work)
    async with Proxy(server.port) as proxy:
        through = dataclasses.replace(config(server), port=proxy.port, ping_interval=0.3)
        async with MQTTBroker(through) as broker, broker.subscribe(where, GROUP, inbox):
            await broker.publish(where, text("x"))
            await begun.wait()
            before = proxy.accepted
            proxy.cut()
            go_on.set()

            def back() -> None:
                assert proxy.accepted >= before + 2

            await eventually(back)
            await broker.publish(where, text("y"))
            await inbox.holds(2)
    again = Inbox()
    async with MQTTBroker(config(server)) as broker, broker.subscribe(where, GROUP, again):
        await broker.publish(where, text("z"))
        await again.holds(1)
    assert (inbox.bodies, again.bodies) == ([b"x", b"y"], [b"z"])


# The server's end


async def test_what_a_group_has_not_taken_outlives_a_restart(tmp_path: Path) -> None:
    """And who is subscribed meanwhile stays so, though Mosquitto forgets what sessions share."""
    inbox, alive = Inbox(), Inbox()
    async with (
        MQTTServer(tmp_path) as server,
        MQTTBroker(config(server)) as broker,
        broker.subscribe(at("x"), SubscribeOptions("alive"), alive),
    ):
        async with broker.subscribe(at("x"), GROUP, Inbox()):
            pass
        for number in range(50):
            await broker.publish(at("x"), text(number))
        await server.restart()
        async with broker.subscribe(at("x"), GROUP, inbox):
            await inbox.holds(50)
            await broker.publish(at("x"), text(50))
            await inbox.holds(51)
            async with asyncio.timeout(30):
                while not _came(alive, b"after"):
                    await broker.publish(at("x"), text("after"))
                    await asyncio.sleep(0.05)
    assert {b"%d" % number for number in range(51)} <= set(inbox.bodies)
    assert {b"%d" % number for number in range(50)} <= set(alive.bodies)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "alone"])
async def test_kill_9_loses_only_what_the_server_had_not_saved(tmp_path: Path, shared: bool) -> None:
    """A publish waits for the server to be back; who is subscribed stays so. Mosquitto forgets what sessions share."""
    inbox = Inbox()
    async with (
        MQTTServer(tmp_path) as server,
        MQTTBroker(config(server, shared=shared)) as broker,
        MQTTBroker(config(server)) as publisher,
    ):
        async with broker.subscribe(at("x"), GROUP, Inbox()):
            pass
        for number in range(20):
            await publisher.publish(at("x"), text(number))
        await server.save()
        await server.kill()
        publishing = asyncio.ensure_future(publisher.publish(at("x"), text("while away")))
        await server.start()
        async with asyncio.timeout(30):
            await publishing
        async with broker.subscribe(at("x"), GROUP, inbox):
            await inbox.holds(20 if shared else 21)
            await server.restart(kill=True)
            async with asyncio.timeout(30):
                while not _came(inbox, b"after"):
                    await publisher.publish(at("x"), text("after"))
                    await asyncio.sleep(0.05)
    assert set(inbox.bodies) >= {b"%d" % number for number in range(20)}
    assert shared or _came(inbox, b"while away")


def _came(inbox: Inbox, body: bytes) -> bool:
    return body in inbox.bodies


# Other servers


@pytest.mark.parametrize("settings", [{"version": "3.1.1"}, {}], ids=["3.1.1", "no-retain"])
async def test_server_without_shared_sessions_has_one_member_a_group(
    tmp_path: Path, settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """One client id for the group: what nobody has taken waits for whoever comes."""
    first, second, third = Inbox(), Inbox(Delivery.nack), Inbox()
    lines = ("max_queued_messages 0", *(() if settings else ("retain_available false",)))
    async with MQTTServer(tmp_path, lines) as server:
        one, two = config(server, **settings), config(server, **settings)
        async with MQTTBroker(one) as broker, MQTTBroker(two) as other:
            async with broker.subscribe(at("x"), GROUP, first):
                await other.publish(at("x"), Message(JSON_EVENT, b'{"n":1}'))
                await other.publish(at("x"), Message({}, b"raw"))
                await first.holds(2)
            await broker.publish(at("x"), text("meanwhile"))
            async with other.subscribe(at("x"), GROUP, second):
                await second.holds(3)
            async with (
                broker.subscribe(at("x"), GROUP, third),
                broker.subscribe(at("x"), SubscribeOptions("other", ephemeral=True), ephemeral := Inbox()),
            ):
                await third.holds(1)
                await broker.publish(at("x"), text("last"))
                await third.holds(2)
                await ephemeral.holds(1)
    assert [first.bodies[1], set(second.bodies), third.bodies] == [b"raw", {b"meanwhile"}, [b"meanwhile", b"last"]]
    assert ephemeral.bodies == [b"last"]
    event = first.deliveries[0].message
    if settings:
        assert b'"specversion":"1.0"' in event.body
        assert '"subject":"grün"' in event.body.decode()
    else:
        assert (dict(event.headers), event.body) == (JSON_EVENT, b'{"n":1}')


async def test_server_that_does_not_know_mqtt_5(server: MQTTServer) -> None:
    """It says so as 3.1.1 asks it to; a stand-in for such a server stands before a real one."""
    refused = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        head = await reader.readexactly(9)
        if head[8] != 4:
            refused += 1
            writer.write(b"\x20\x02\x00\x01")
            writer.close()
            return
        onward, back = await asyncio.open_connection("127.0.0.1", server.port)
        back.write(head)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_copy(reader, back))
            tasks.create_task(_copy(onward, writer))

    inbox = Inbox()
    gate = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = gate.sockets[0].getsockname()[1]
    try:
        old = MQTTBroker(MQTTConfig("127.0.0.1", port))
        async with old as broker, broker.subscribe(at("old/x"), GROUP, inbox):
            await broker.publish(at("old/x"), text("x"))
            await inbox.holds(1)
        with pytest.raises(BrokerUnavailableError, match="not MQTT 5"):
            async with MQTTBroker(MQTTConfig("127.0.0.1", port, version="5", connect_wait=0.5)):
                pytest.fail("entered")
    finally:
        gate.close()
    assert refused >= 2


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_refused_login_is_known_at_once(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "me", "secret"], check=True)
    settings = ("allow_anonymous false", f"password_file {passwords}")
    async with MQTTServer(tmp_path / "server", settings) as server:
        async with MQTTBroker.from_url(f"mqtt://me:secret@127.0.0.1:{server.port}") as broker:
            await broker.check()
        async with asyncio.timeout(8):  # Less than it tries to connect for.
            with pytest.raises(BrokerUnavailableError) as raised:
                async with MQTTBroker.from_url(f"mqtt://me:secret-wrong@127.0.0.1:{server.port}"):
                    pytest.fail("entered")
    assert "not authorized" in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_server_that_allows_little(tmp_path: Path) -> None:
    """A refused publish is an error that says so, and does no more harm."""
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite mesh-sessions/#\ntopic readwrite mine/#\n")
    inbox = Inbox()
    async with (
        MQTTServer(tmp_path / "server", (f"acl_file {rules}",)) as server,
        MQTTBroker(config(server)) as broker,
        broker.subscribe(at("mine/x"), GROUP, inbox),
    ):
        with pytest.raises(PublishRejectedError, match="not authorized"):
            await broker.publish(at("theirs/x"), text("x"))
        await broker.publish(at("mine/x"), text("x"))
        await inbox.holds(1)


async def test_message_over_the_limit_of_the_server_is_refused(tmp_path: Path) -> None:
    """And those beside it go on."""
    for settings in (("message_size_limit 1000",), ("max_packet_size 1000",)):
        async with (
            MQTTServer(tmp_path / settings[0].split()[0], settings) as server,
            MQTTBroker(config(server)) as broker,
            broker.subscribe(at("x"), GROUP, inbox := Inbox()),
        ):
            for _ in range(3):
                async with asyncio.timeout(30):
                    with pytest.raises((MessageTooLargeError, PublishRejectedError)):
                        await broker.publish(at("x"), Message({}, bytes(2000)))
            await broker.publish(at("x"), text("small"))
            await inbox.holds(1)
            assert inbox.bodies == [b"small"]


async def test_tls(tmp_path: Path) -> None:
    authority = await asyncio.to_thread(Authority, tmp_path / "ca")
    ours = await asyncio.to_thread(authority.issue, "server")
    client = await asyncio.to_thread(authority.issue, "client")
    async with MQTTServer(tmp_path / "server", tls_settings(authority, ours)) as server:
        url = f"mqtts://localhost:{server.port}?cacertfile={authority.path}"
        mine = f"&certfile={client.certificate}&keyfile={client.key}"
        both = await asyncio.to_thread(MQTTBroker.from_url, url + mine)  # It reads files.
        async with both as broker, broker.subscribe(at("x"), GROUP, inbox := Inbox()):
            await broker.publish(at("x"), text("x"))
            await inbox.holds(1)
        for wrong in (url, f"mqtts://localhost:{server.port}"):
            refused = await asyncio.to_thread(MQTTConfig.from_url, wrong)
            with pytest.raises(BrokerUnavailableError):
                async with MQTTBroker(dataclasses.replace(refused, connect_wait=0.5)):
                    pytest.fail("entered")


async def test_login_that_mqtt_cannot_say_is_an_error_of_ours(server: MQTTServer) -> None:
    for wrong in ({"username": "u" * 70_000}, {"username": "u", "password": "p" * 70_000}, {"ping_interval": 1e5}):
        with pytest.raises(BrokerUnavailableError, match="MQTT cannot say"):
            async with MQTTBroker(MQTTConfig("127.0.0.1", server.port, **wrong)):  # type: ignore[arg-type]
                pytest.fail("entered")


async def test_everything_is_not_the_announcements_of_members(server: MQTTServer) -> None:
    inbox = Inbox()
    async with (
        MQTTBroker(config(server)) as broker,
        broker.subscribe(at("#"), SubscribeOptions("all"), inbox),
        broker.subscribe(at("announced"), GROUP, Inbox()),
    ):
        await broker.publish(at("last"), text("the last"))
        await eventually(lambda: _has(inbox, {b"the last"}))
    assert [each.address.label for each in inbox.deliveries if "mesh-sessions" in each.address.label] == []


async def test_nobody_is_taken_for_dead_by_who_hears_nobody(
    server: MQTTServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy, group, inboxes = Proxy(server.port), SubscribeOptions("away"), [Inbox(), Inbox()]
    caplog.set_level("INFO", "brokers.mqtt")

    async def both_hold_one() -> dict[str, tuple[str, str]]:
        found = await sessions(server, "away")
        assert [state for state, _ in found.values()] == ["held", "held"]
        return found

    async with AsyncExitStack() as stack:
        async with proxy:
            settings = MQTTConfig("127.0.0.1", proxy.port, announce_every=0.5, connect_wait=1.0, will_delay=30.0)
            for inbox in inboxes:
                member = await stack.enter_async_context(MQTTBroker(settings))
                await stack.enter_async_context(member.subscribe(at("away"), group, inbox))
            before = await eventually(both_hold_one)
        await asyncio.sleep(3.0)  # Three announcements, and more.
        async with proxy, stack:
            for number in range(50):
                await member.publish(at("away"), text(number))
            await eventually(lambda: _all_came(inboxes, 50), within=40)
            assert await sessions(server, "away") == before
    assert "took" not in caplog.text


def _all_came(inboxes: list[Inbox], count: int) -> None:
    assert len({body for inbox in inboxes for body in inbox.bodies}) == count
