"""A cluster of three NATS servers, one of which dies."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import nats
import psutil
import pytest
from nats.aio.msg import Msg

from brokers.native._jetstream import JetStreamSettings
from brokers.native.jetstream import JetStreamTopics
from brokers.nats import NatsBroker, NatsConfig
from mesh import address
from mesh.broker import Broker, SubscribeOptions, Topology, Write
from mesh.errors import BrokerError
from tests.support.contract import Inbox, text
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.processes import free_port

TOPIC = address.topic("test", "cluster", "orders")
STREAM = TOPIC.space.replace(".", "_")
WRITERS = 8
ENOUGH = 500  # Events that are confirmed before the death, and after it.
ELECTED_WITHIN = 60.0  # nats-server takes up to 9 seconds to notice, and may need further votes on a busy machine.


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[list[NatsServer]]:
    ports = [free_port() for _ in range(3)]
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
    configs = [f'cluster {{ name: test, listen: "127.0.0.1:{port}", routes: [{routes}] }}' for port in ports]
    servers = [NatsServer(tmp_path / str(port), config=config) for port, config in zip(ports, configs, strict=True)]
    async with AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as tasks:
            for server in servers:
                tasks.create_task(stack.enter_async_context(server))
        yield servers


class Load:
    """Events that are published one after the other by several at once."""

    def __init__(self, broker: Broker) -> None:
        self.confirmed: set[bytes] = set()
        self._broker = broker
        self._over = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            for writer in range(WRITERS):
                tasks.create_task(self._write(writer))
            yield
            self._over.set()

    async def _write(self, writer: int) -> None:
        number = 0
        while not self._over.is_set():
            body = f"{writer}-{number}"
            number += 1
            try:
                async with asyncio.timeout(ELECTED_WITHIN):
                    await self._broker.publish(TOPIC, text(body, id=body))
            except (BrokerError, TimeoutError):
                continue
            self.confirmed.add(body.encode())

    async def goes_on(self) -> None:
        """Wait for more to be confirmed."""
        wanted = len(self.confirmed) + ENOUGH

        def check() -> None:
            assert len(self.confirmed) >= wanted

        await eventually(check, ELECTED_WITHIN)


async def leader(
    broker: NatsBroker | JetStreamTopics, servers: Sequence[NatsServer], stream: str = STREAM
) -> NatsServer:
    """Find who leads a stream."""
    info = await broker._connection.api(f"STREAM.INFO.{stream}")
    return next(server for server in servers if server.name == info["cluster"]["leader"])  # type: ignore[index]


async def test_nothing_confirmed_is_lost_with_the_leader(cluster: list[NatsServer]) -> None:
    url = f"nats://{','.join(server.address for server in cluster)}?replicas=3"
    inbox = Inbox()
    async with NatsBroker.from_url(url) as one, NatsBroker.from_url(url) as other:
        for node in (one, other):
            await node.declare(Topology(TOPIC.space))
        store = await one.key_value("states")
        await store.apply([Write("k", b"v")])
        async with other.subscribe(TOPIC, SubscribeOptions("g"), inbox):
            load = Load(one)
            async with load.running():
                await load.goes_on()
                dead = await leader(one, cluster)
                await dead.kill()
                await load.goes_on()

            def all_there() -> None:
                assert not load.confirmed - set(inbox.bodies)

            await eventually(all_there, ELECTED_WITHIN)
        entry = await store.get("k")
        assert entry is not None
        assert entry.value == b"v"


async def test_nothing_confirmed_is_lost_with_the_leader_of_a_users_stream(cluster: list[NatsServer]) -> None:
    """Neither to a consumer that is pulled from, nor to one that pushes, whose members are on several servers."""
    config = NatsConfig.from_url(f"nats://{','.join(server.address for server in cluster)}")
    pulled, pushed = Inbox(), Inbox()
    pulls = JetStreamSettings(creates=True, copies=3)
    pushes = JetStreamSettings(durable="shared", queue="shared", ack_wait=2.0)
    async with JetStreamTopics(pulls, config) as one, JetStreamTopics(pushes, config) as other:
        load = Load(one)

        async def made() -> None:  # All three have found each other.
            try:
                await one.publish(TOPIC, text("first"))
            except BrokerError as error:
                raise AssertionError from error

        await eventually(made, ELECTED_WITHIN)
        async with (
            one.subscribe(TOPIC, SubscribeOptions("g"), pulled),
            other.subscribe(TOPIC, SubscribeOptions("shared"), pushed),
            load.running(),
        ):
            await load.goes_on()
            await (await leader(one, cluster, TOPIC.label)).kill()
            await load.goes_on()
        async with (
            one.subscribe(TOPIC, SubscribeOptions("g"), pulled),
            other.subscribe(TOPIC, SubscribeOptions("shared"), pushed),
        ):

            def all_there() -> None:
                assert not load.confirmed - set(pulled.bodies)
                assert not load.confirmed - set(pushed.bodies)

            await eventually(all_there, ELECTED_WITHIN)


async def test_event_that_waits_for_a_quorum_is_stored_once(cluster: list[NatsServer]) -> None:
    async with NatsBroker.from_url(f"nats://{cluster[0].address}?replicas=3") as node:
        await node.declare(Topology(TOPIC.space))
        await node.publish(TOPIC, text("first", id="first"))
        leading = await leader(node, cluster)  # As late as can be: on a busy machine another one may soon be elected.
    processes = [server.process for server in cluster if server is not leading and server.process is not None]
    async with NatsBroker.from_url(leading.url) as node, _sent(leading) as sent, asyncio.TaskGroup() as tasks:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            await eventually(lambda: _stopped(processes))  # Else one may have stored it yet.
            publishing = tasks.create_task(node.publish(TOPIC, text("a", id="a")))
            await eventually(lambda: _at_least(sent, 3), ELECTED_WITHIN)  # The server had it already.
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(ELECTED_WITHIN):
            await publishing
        info = await node._connection.api(f"STREAM.INFO.{STREAM}")
        assert info["state"]["messages"] == 2  # type: ignore[index]


async def test_a_scan_believes_no_follower_that_lags(cluster: list[NatsServer]) -> None:
    """One that was stopped has all that was acknowledged meanwhile in its first answer, or does not give it."""
    url = f"nats://{','.join(server.address for server in cluster)}?replicas=3"
    async with NatsBroker.from_url(url) as node:
        await node.key_value("scanned", dotted=True)
        info = await node._connection.api("STREAM.INFO.KV_scanned")
    follower = next(each for each in cluster if each.name != info["cluster"]["leader"])  # type: ignore[index]
    others = ",".join(each.address for each in cluster if each is not follower)
    process = follower.process
    assert process is not None
    async with (
        NatsBroker.from_url(f"nats://{others}?replicas=3") as writer,
        NatsBroker.from_url(f"{follower.url}?replicas=3") as reader,
    ):
        writing = await writer.key_value("scanned", dotted=True)
        reading = await reader.key_value("scanned", dotted=True)
        for turn in range(3):
            value = b"%d" % turn + bytes(1000)
            process.send_signal(signal.SIGSTOP)
            try:
                async with asyncio.timeout(ELECTED_WITHIN):
                    for part in range(20):
                        await writing.apply([Write(f"t.{part}.{number}", value) for number in range(100)])
                    await writing.apply([Write(f"t.{turn}.0", None)])
            finally:
                process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(ELECTED_WITHIN):
                found = dict(await reading.scan("t.", "", 10_000))
            assert len(found) == 1999
            assert f"t.{turn}.0" not in found
            assert {entry.value for entry in found.values()} == {value}


@asynccontextmanager
async def _sent(server: NatsServer) -> AsyncIterator[list[str]]:
    """List what is sent to the topic through a server, by an id: each time, and whether it is stored or not."""
    found: list[str] = []

    async def note(message: Msg) -> None:
        found.append((message.headers or {}).get("Nats-Msg-Id", ""))

    client = await nats.connect(server.url)
    try:
        await client.subscribe(f"{TOPIC.space}.>", cb=note)
        await client.flush()
        yield found
    finally:
        await client.close()


def _stopped(processes: Sequence[asyncio.subprocess.Process]) -> None:
    assert all(psutil.Process(process.pid).status() == psutil.STATUS_STOPPED for process in processes)


def _at_least(sent: Sequence[str], count: int) -> None:
    assert len(sent) >= count, sent
    assert len(set(sent)) == 1, sent
