"""A FastStream application without a gateway, and HTTP applications behind theirs, over a real nats-server."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import aiohttp
import pytest
import pytest_asyncio

pytest.importorskip("faststream")

from faststream import Context, FastStream
from faststream.kafka import KafkaBroker
from faststream.nats import NatsBroker
from faststream.rabbit import RabbitBroker
from faststream.redis import RedisBroker

from brokers.faststream import IncomingCall, Mesh, MeshMessage
from mesh.errors import NoResponderError
from tests.support.eventually import eventually
from tests.support.gateways import MeshHome
from tests.support.kafka_server import KafkaServer
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nats import NatsServer
from tests.support.processes import ROOT, free_port
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer

EXAMPLE = ROOT / "examples" / "faststream"
_numbers = itertools.count()


@asynccontextmanager
async def _started(mesh: Mesh, broker: Any) -> AsyncIterator[None]:
    """Run it as ``app.run()`` does, without its signals."""
    app = FastStream(broker, lifespan=mesh.lifespan)
    async with app.lifespan_context(), app:
        yield


class Server(Protocol):
    url: str


@pytest.fixture(autouse=True)
def own_home(mesh_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes in this process have their files where the gateways of a test have theirs."""
    monkeypatch.setenv("MESH_HOME", str(mesh_home))


SERVERS = {"nats": NatsServer, "redis": RedisServer, "rabbitmq": RabbitMQServer, "kafka": KafkaServer}


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=SERVERS)
async def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server of each kind that there is an adapter for."""
    async with SERVERS[request.param](tmp_path_factory.mktemp(request.param) / "server") as made:
        yield made


@pytest.fixture
def server(shared: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A mesh of its own on each."""
    monkeypatch.setenv("NAMESPACE", f"faststream{next(_numbers)}")
    return shared


def _service(server: Server) -> tuple[Any, Mesh]:
    scheme, _, rest = server.url.partition("://")
    broker: Any
    if scheme == "kafka":
        broker = KafkaBroker(rest.partition("?")[0], logger=None)
    else:
        broker = {"nats": NatsBroker, "redis": RedisBroker, "amqp": RabbitBroker}[scheme](server.url, logger=None)
    return broker, Mesh(broker, app_id="pricing", backbone=server.url, namespace=os.environ.get("NAMESPACE", "default"))


async def _post(url: str, body: Any, **options: Any) -> tuple[int, bytes]:
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession() as session, session.post(url, data=data, headers=headers, **options) as answer:
        return answer.status, await answer.read()


async def test_events_go_in_both_directions(mesh_home: Path, server: Server) -> None:
    """A gateway delivers what FastStream publishes as it delivers what a gateway publishes, and the other way."""
    broker, mesh = _service(server)
    taken: list[dict[str, Any]] = []

    @mesh.subscriber("orders")
    @mesh.publisher("priced", type="order.priced")
    async def take(order: dict[str, Any], message: Annotated[MeshMessage, Context("message")]) -> dict[str, Any]:
        assert message.event is not None
        taken.append({**order, "type": message.event.type, "source": message.event.source})
        return order

    subscriptions = [{"pubsubname": "pubsub", "topic": "priced", "route": "/events/priced"}]
    async with (
        AppProcess(mesh_home, subscriptions=subscriptions) as app,
        GatewayProcess("shop", mesh_home, app=app, backbone=server.url) as gateway,
        _started(mesh, broker),
    ):
        for number in range(20):
            assert (await _post(f"{gateway.api}/publish/pubsub/orders", {"id": f"g{number}"}))[0] == 204
        large = {"id": "large", "more": "x" * 3_500_000}  # More than most brokers take in a message.
        assert (await _post(f"{gateway.api}/publish/pubsub/orders", large))[0] == 204
        await mesh.publish({"id": "own"}, "priced")
        own = {"specversion": "1.0", "id": "x", "source": "test", "type": "mine", "data": {"id": "structured"}}
        async with aiohttp.ClientSession() as session:
            url = f"{gateway.api}/publish/pubsub/orders"
            headers = {"Content-Type": "application/cloudevents+json"}
            async with session.post(url, data=json.dumps(own), headers=headers) as answer:
                assert answer.status == 204

        def check() -> None:
            wanted = {f"g{number}" for number in range(20)} | {"structured", "own", "large"}
            assert Counter(app.recorded("priced")) == Counter(wanted)

        await eventually(check, 40.0)
    by_id = {each["id"]: (each["type"], each["source"]) for each in taken}
    assert len(taken) == 22
    assert by_id["structured"] == ("mine", "test")
    assert by_id["g0"] == ("com.dapr.event.sent", "shop")


async def test_calls_go_in_both_directions(mesh_home: Path, server: Server) -> None:
    """Small and streamed bodies; nobody is called whom nobody has seen; a restart is waited for."""
    broker, mesh = _service(server)

    @mesh.method("echo")
    async def echo(body: bytes, call: Annotated[IncomingCall, Context("message.call")]) -> bytes:
        assert call.verb == "POST"
        return body

    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("shop", mesh_home, app=app, backbone=server.url) as gateway,
    ):
        url = f"{gateway.api}/invoke/pricing/method/echo"
        headers = {"Content-Type": "application/octet-stream"}
        status, body = await _post(url, {})
        assert status == 500
        assert b"no instance of pricing" in body
        async with _started(mesh, broker), aiohttp.ClientSession() as session:
            for size in (3, 100_000, 3_000_000):
                async with session.post(url, data=io.BytesIO(bytes(size)), headers=headers) as answer:
                    assert (answer.status, await answer.read()) == (200, bytes(size))
            assert (await _post(f"{gateway.api}/invoke/pricing/method/none", {}))[0] == 404
            answered = await mesh.invoke("shop", "any/path?a=1", {"b": 2}, verb="PUT", headers={"X-Own": "1"})
            said = answered.json()
            assert (said["method"], said["path"], said["body"]) == ("PUT", "/any/path?a=1", '{"b":2}')
            assert said["headers"]["X-Own"] == "1"
            with pytest.raises(NoResponderError, match="no instance of nobody"):
                await mesh.invoke("nobody", "x")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(_post(url, b"late"))
            await asyncio.sleep(0.3)
            async with _started(mesh, broker):
                # JSON by its content type, and none: the call has arrived, and says so.
                assert (await waiting)[0] == 400


async def test_a_gateway_of_the_same_app_id_competes(mesh_home: Path, server: Server) -> None:
    """Each event is handled once, by one or the other; each call is answered by one or the other."""
    broker, mesh = _service(server)
    taken: list[str] = []
    answered = Counter[str]()

    @mesh.subscriber("orders", max_in_flight=2)
    async def take(order: dict[str, Any]) -> None:
        await asyncio.sleep(0.005)
        taken.append(order["id"])

    @mesh.method("who")
    async def who() -> str:
        return "faststream"

    subscriptions = [
        {"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders", "metadata": {"maxInFlight": "2"}}
    ]
    async with (
        AppProcess(mesh_home, subscriptions=subscriptions) as app,
        GatewayProcess("pricing", mesh_home, app=app, backbone=server.url),
        GatewayProcess("shop", mesh_home, backbone=server.url) as gateway,
        _started(mesh, broker),
    ):

        async def both_serve() -> None:
            status, body = await _post(f"{gateway.api}/invoke/pricing/method/who", {})
            assert status == 200
            answered[body.decode() if body == b"faststream" else "gateway"] += 1
            assert set(answered) == {"faststream", "gateway"}

        await eventually(both_serve, 40.0)
        wanted: list[str] = []

        def check() -> None:
            assert Counter(taken + app.recorded("orders")) == Counter(wanted)

        async def both_take() -> None:
            """Publish until both have some: that calls are shared does not say that on Kafka the groups have joined."""
            more = [str(len(wanted) + number) for number in range(300)]
            wanted.extend(more)
            async with asyncio.TaskGroup() as tasks:
                for name in more:  # With keys, since on Kafka events without them stay in one partition for a while.
                    url = f"{gateway.api}/publish/pubsub/orders?metadata.partitionKey={name}"
                    tasks.create_task(_post(url, {"id": name}))
            await eventually(check, 40.0)
            assert taken
            assert app.recorded("orders")

        await eventually(both_take, 40.0)


async def test_faststreams_broker_may_be_another_one_than_the_backbone(
    mesh_home: Path, nats_server: NatsServer, tmp_path: Path
) -> None:
    """RabbitMQ for FastStream's own subscribers, NATS for the mesh; a handler of one publishes to the other."""
    async with RabbitMQServer(tmp_path / "rabbit") as rabbit:
        broker = RabbitBroker(rabbit.url, logger=None)
        mesh = Mesh(broker, app_id="pricing", backbone=nats_server.url)
        taken: list[object] = []

        @broker.subscriber("own")
        async def own(order: dict[str, Any]) -> None:
            await mesh.publish(order, "orders")

        @mesh.subscriber("orders")
        async def take(order: dict[str, Any]) -> None:
            taken.append(order)

        @mesh.subscriber("wild.*")
        async def wild(order: dict[str, Any]) -> None:
            taken.append(order)

        async with _started(mesh, broker):
            await broker.publish({"id": 1}, "own")
            await mesh.publish({"id": 2}, "wild.x")

            def check() -> None:
                assert sorted(map(str, taken)) == ["{'id': 1}", "{'id': 2}"]

            await eventually(check, 40.0)


async def test_nothing_is_lost_while_instances_come_and_go(mesh_home: Path, nats_server: NatsServer) -> None:
    """Orderly ends lose no event and drop no call, and repeat none."""
    done: list[int] = []
    statuses = Counter[int]()
    total = 200

    started = asyncio.Event()

    def all_done() -> None:
        assert len(done) >= total

    async def once(stay: Callable[[], Awaitable[object]]) -> None:
        broker, mesh = _service(nats_server)

        @mesh.subscriber("orders", max_in_flight=8)
        async def take(order: dict[str, int]) -> None:
            await asyncio.sleep(0.01)
            done.append(order["id"])

        @mesh.method("slow")
        async def slow() -> str:
            await asyncio.sleep(0.02)
            return "done"

        async with _started(mesh, broker):
            started.set()
            await stay()

    async def for_a_while() -> None:
        await asyncio.sleep(1.5)

    async with GatewayProcess("shop", mesh_home, backbone=nats_server.url) as gateway:

        async def load() -> None:
            for number in range(total):
                assert (await _post(f"{gateway.api}/publish/pubsub/orders", {"id": number}))[0] == 204
                if number % 4 == 0:
                    statuses[(await _post(f"{gateway.api}/invoke/pricing/method/slow", {}))[0]] += 1

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(once(for_a_while))
            await started.wait()  # Whom nobody has seen, nobody waits for.
            loading = tasks.create_task(load())
            instances = 1
            while instances < 4 or not loading.done():
                await asyncio.sleep(0.8)
                tasks.create_task(once(for_a_while))
                instances += 1
            tasks.create_task(once(lambda: eventually(all_done)))
    assert Counter(done) == Counter(range(total))
    assert statuses == {200: total // 4}


async def test_a_killed_instance_loses_nothing(mesh_home: Path, nats_server: NatsServer) -> None:
    """What a killed process had in flight comes again to the next one."""
    log = mesh_home / "taken.txt"
    log.touch()
    script = mesh_home / "service.py"
    script.write_text(
        f"""
import asyncio
from faststream import FastStream
from faststream.nats import NatsBroker
from brokers.faststream import Mesh

broker = NatsBroker({nats_server.url!r}, logger=None)
mesh = Mesh(broker, app_id="pricing")
app = FastStream(broker, logger=None, lifespan=mesh.lifespan)

@mesh.subscriber("orders", max_in_flight=16)
async def take(order: dict) -> None:
    await asyncio.sleep(0.02)
    with open({str(log)!r}, "a") as out:
        out.write(f"{{order['id']}}\\n")

asyncio.run(app.run())
"""
    )
    environ = {**os.environ, "MESH_HOME": str(mesh_home), "PYTHONPATH": str(ROOT)}

    def taken() -> list[str]:
        return log.read_text().split()

    async with GatewayProcess("shop", mesh_home, backbone=nats_server.url) as gateway:
        first = subprocess.Popen([sys.executable, str(script)], env=environ)
        second = None
        try:
            for number in range(300):
                assert (await _post(f"{gateway.api}/publish/pubsub/orders", {"id": str(number)}))[0] == 204

            def begun() -> None:
                assert len(taken()) > 50

            await eventually(begun, 40.0)
            first.kill()
            second = subprocess.Popen([sys.executable, str(script)], env=environ)

            def all_taken() -> None:
                assert set(taken()) == {str(number) for number in range(300)}

            await eventually(all_taken, 40.0)
            second.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(second.wait, 60) == 0
        finally:
            for process in (first, second):
                if process is not None:
                    process.kill()
                    process.wait()


async def test_the_example_and_its_asyncapi(mesh_home: Path, nats_server: NatsServer, tmp_path: Path) -> None:
    """As its page says; ``mesh asyncapi`` then tells what both do."""
    home = MeshHome(mesh_home)
    environ = home.environ({"MESH_BACKBONE": nats_server.url, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)})
    log = tmp_path / "pricing.log"

    def pricing_says() -> None:
        assert ": piano costs 4000\n" in log.read_text()

    def run() -> None:  # Whichever starts first: orders before the other is there fail, and say so.
        line = ("--app-id", "shop", "--app-port", str(free_port()), "python3", "shop/app.py")
        with home.run(*line, cwd=EXAMPLE, environ={"MESH_BACKBONE": nats_server.url}) as shop:
            shop.until(r"^== APP - shop == Order \d+: one piano is 4000$")
            shop.until(r"^== APP - shop == Order \d+: 4000 to pay \(order.priced\)$")
            shop.until(r"^== APP - shop == Order \d+: 12 to pay \(order.priced\)$")
            told = home.mesh("asyncapi", "-o", "json", environ={"MESH_BACKBONE": nats_server.url})
            assert told.returncode == 0, told.stderr
            document = json.loads(told.stdout)
            assert {
                "shop.send.pubsub.orders",
                "pricing.receive.pubsub.orders",
                "pricing.send.pubsub.priced",
                "shop.receive.pubsub.priced",
                "pricing.answer.price",
                "shop.answer",
            } <= set(document["operations"])
            assert shop.stop() == 0

    with log.open("wb") as out:
        pricing = subprocess.Popen([sys.executable, "pricing/app.py"], cwd=EXAMPLE, env=environ, stdout=out)
    try:
        await asyncio.to_thread(run)
        await eventually(pricing_says)
        pricing.terminate()
        assert await asyncio.to_thread(pricing.wait, 20) == 0
    finally:
        pricing.kill()
        pricing.wait()
