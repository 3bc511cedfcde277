"""The files of ``examples/clusters``: three servers of each broker, one of which dies while events flow."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from redis.asyncio import Redis

from brokers.nats import NatsBroker
from mesh import address
from mesh.broker import Broker, Message, SubscribeOptions, Topology
from mesh.calls.exchange import Exchange, Request
from mesh.errors import BrokerError, BrokerUnavailableError, MeshError
from mesh.registry import Registry
from tests.support.contract import Inbox, text
from tests.support.eventually import eventually
from tests.support.kafka_server import KafkaCluster
from tests.support.nats import NatsServer
from tests.support.processes import ROOT, free_port
from tests.support.rabbitmq_server import RabbitMQCluster
from tests.support.redis_server import RedisSentinel, RedisServer
from tests.support.server import Server, Servers

pytestmark = pytest.mark.costly

NAMES = ("one", "two", "three")
PASSWORD = "CHANGE-ME"
WITHIN = 90.0  # On a busy machine; else it is some seconds.
WRITERS = 4
ENOUGH = 60  # Events that are confirmed before the death, and after it.
TOPIC, APP = address.topic("test", "cluster", "orders"), address.app("test", "callee")
Kill = Callable[[Broker], Awaitable[None]]


def configured(name: str, **places: str) -> str:
    """Read a file, with the addresses and folders of this test in place of its own."""
    found = (ROOT / "examples" / "clusters" / name).read_text()
    for place, own in places.items():
        where = place.replace("__", ":").replace("_at_", "@").replace("_slash_", "/")
        assert re.search(rf"{re.escape(where)}\b", found), f"{where} does not stand in {name}"
        found = re.sub(rf"{re.escape(where)}\b", own, found)
    return found


class _Member(NatsServer):
    """A server with a file that says where its data is."""

    def command(self) -> Sequence[str]:
        where = ("-a", "127.0.0.1", "-p", str(self.port), "-n", self.name)
        return (*super().command()[:3], *where)


class _Authorized(RedisServer):
    """A server with a file, and what its command line says besides."""

    def __init__(self, directory: Path, config: str, *options: str) -> None:
        super().__init__(directory, options)
        self._config = config

    def _arguments(self) -> list[str]:
        file = self.directory / "redis.conf"
        file.write_text(self._config)
        return [str(file), *super()._arguments()]


@asynccontextmanager
async def nats(directory: Path) -> AsyncIterator[tuple[str, Kill]]:
    routes = {name: free_port() for name in NAMES}
    servers = []
    for name in NAMES:
        others = {f"{each}__6222": f"127.0.0.1:{port}" for each, port in routes.items()}
        own = {"0.0.0.0__6222": f"127.0.0.1:{routes[name]}", "127.0.0.1__8222": f"127.0.0.1:{free_port()}"}
        own["_slash_var_slash_lib_slash_nats"] = str(directory / name / "data")
        servers.append(_Member(directory / name, config=configured("nats/nats.conf", **others, **own)))

    async def kill(broker: Broker) -> None:
        assert isinstance(broker, NatsBroker)
        info = await broker._connection.api(f"STREAM.INFO.{TOPIC.space.replace('.', '_')}")
        leader = cast("dict[str, str]", info["cluster"])["leader"]
        await next(each for each in servers if each.name == leader).kill()

    async with all_of(directory, servers):
        yield f"nats://mesh:{PASSWORD}@{','.join(each.address for each in servers)}?replicas=3", kill


@asynccontextmanager
async def redis(directory: Path) -> AsyncIterator[tuple[str, Kill]]:
    config = configured("redis/redis.conf")
    primary = _Authorized(directory / "one", config)
    of = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
    replicas = [_Authorized(directory / name, config, *of) for name in NAMES[1:]]
    own = {"monitor mesh one 6379": f"monitor mesh 127.0.0.1 {primary.port}"}
    lines = configured("redis/sentinel.conf", **own).splitlines()
    lines = [each for each in lines if not each.startswith(("#", "port", "dir"))]
    sentinels = [RedisSentinel(directory / f"sentinel-{name}", lines) for name in NAMES]

    async def known() -> None:
        for sentinel in sentinels:
            async with Redis(port=sentinel.port, decode_responses=True) as client:
                found = cast("dict[str, str]", await client.execute_command("SENTINEL", "MASTER", "mesh"))
                links = cast("list[dict[str, str]]", await client.execute_command("SENTINEL", "REPLICAS", "mesh"))
            assert found["num-other-sentinels"] == "2"
            assert [each["master-link-status"] for each in links] == ["ok", "ok"]

    async def kill(broker: Broker) -> None:
        await primary.kill()

    async with all_of(directory, [primary]), all_of(directory, [*replicas, *sentinels]):
        await eventually(known, WITHIN)
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
        yield f"redis://:{PASSWORD}@{hosts}?sentinel_master=mesh", kill


@asynccontextmanager
async def rabbitmq(directory: Path) -> AsyncIterator[tuple[str, Kill]]:
    cluster = RabbitMQCluster(directory)
    nodes = {f"rabbit_at_{name}": each._node for name, each in zip(NAMES, cluster.servers, strict=True)}
    for each in cluster.servers:
        own = {
            "0.0.0.0__5672": f"127.0.0.1:{each.port}",
            "cluster_name = mesh": f"cluster_name = cluster_{cluster.port}",
        }
        each._config = configured("rabbitmq/rabbitmq.conf", **own, **nodes)

    async def kill(broker: Broker) -> None:
        await cluster.servers[0].kill()

    async with cluster:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in cluster.servers)
        yield f"amqp://guest:guest@{hosts}?heartbeat=4", kill


@asynccontextmanager
async def kafka(directory: Path) -> AsyncIterator[tuple[str, Kill]]:
    cluster = KafkaCluster(directory)
    controllers = cluster.servers[0]._controllers
    for number, (name, each) in enumerate(zip(NAMES, cluster.servers, strict=True), 1):
        voters = {
            f"{other}__9093": f"127.0.0.1:{port}" for other, port in zip(NAMES, controllers.values(), strict=True)
        }
        own = {
            "node.id=1": f"node.id={number}",
            "0.0.0.0__9092": f"127.0.0.1:{each.port}",
            "0.0.0.0__9093": f"127.0.0.1:{controllers[number]}",
            "one__9092": f"127.0.0.1:{each.port}",
            "_slash_var_slash_lib_slash_kafka": f"{each.directory}/data",
        }
        each._config = configured("kafka/server.properties", **voters, **own)
        assert name

    async def kill(broker: Broker) -> None:
        await cluster.servers[0].kill()

    async with cluster:
        yield f"kafka://{cluster.bootstrap}?replicas=3&partitions=4", kill


@asynccontextmanager
async def all_of(directory: Path, servers: Sequence[Server]) -> AsyncIterator[None]:
    together = Servers(directory)
    together.servers = servers
    async with together:
        yield


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
                async with asyncio.timeout(WITHIN):
                    await self._broker.publish(TOPIC, text(body, id=body))
            except (BrokerError, TimeoutError):
                await asyncio.sleep(0.1)
                continue
            self.confirmed.add(body.encode())

    async def goes_on(self) -> None:
        """Wait for more to be confirmed."""
        wanted = len(self.confirmed) + ENOUGH

        def check() -> None:
            assert len(self.confirmed) >= wanted

        await eventually(check, WITHIN)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Broker]:
    """Connect as a node does: what is not there yet is waited for."""
    async with AsyncExitStack() as stack:

        async def enter() -> Broker:
            try:
                made = Registry().backbone(url).from_url(url)  # type: ignore[attr-defined]
                return cast("Broker", await stack.enter_async_context(made))
            except BrokerUnavailableError as error:
                raise AssertionError(str(error)) from error

        yield await eventually(enter, WITHIN)


@pytest.mark.parametrize("cluster", [nats, redis, rabbitmq, kafka], ids=lambda each: each.__name__)
async def test_one_of_three_dies_while_events_flow(
    cluster: Callable[[Path], AsyncIterator[tuple[str, Kill]]], tmp_path: Path
) -> None:
    """Nothing that was confirmed is lost, publishing goes on, and so do calls."""
    inbox = Inbox()

    async def answer(request: Request) -> None:
        await request.reply({}, request.body)

    async with (
        cluster(tmp_path) as (url, kill),  # type: ignore[attr-defined]
        connected(url) as one,
        connected(url) as other,
        Exchange(one) as caller,
        Exchange(other) as callee,
    ):

        async def declared() -> None:  # All three have found each other.
            try:
                for each in (one, other):
                    await each.declare(Topology(TOPIC.space))
            except BrokerError as error:
                raise AssertionError from error

        async def called() -> None:
            try:
                reply = await caller.request(APP, Message({}, b"x"), time.time() + 5.0)
            except MeshError as error:
                raise AssertionError(str(error)) from error
            assert reply.body == b"x"

        await eventually(declared, WITHIN)
        async with other.subscribe(TOPIC, SubscribeOptions("g"), inbox), callee.serve(APP, "callee", answer):
            await eventually(called, WITHIN)
            load = Load(one)
            async with load.running():
                await load.goes_on()
                await kill(one)
                await load.goes_on()
            if cluster is not rabbitmq:  # Its queue of calls is on one node: docs/brokers/rabbitmq.md.
                await eventually(called, WITHIN)

            def all_there() -> None:
                assert not load.confirmed - set(inbox.bodies)

            await eventually(all_there, WITHIN)
