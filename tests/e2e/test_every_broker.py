"""The examples on every broker: one line is all that differs. And what a broker without key/value needs besides."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.errors import NoResponderError
from mesh.telemetry import EVENTS_DELIVERED, EVENTS_DUPLICATE
from tests.e2e.test_examples import copied, needs_node
from tests.http.actor_app import ACTORS, ActorApp, call
from tests.http.harness import App, Backbone, Node, component, gateway
from tests.support.backends import BACKENDS
from tests.support.eventually import eventually
from tests.support.gateways import MeshHome
from tests.support.postgresql_server import PostgreSQLServer
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer

BROKERS = ("nats", "redis", "kafka", "rabbitmq")


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=BROKERS)
async def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The line of the environment that names a server which runs."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(BACKENDS[request.param](tmp_path_factory.mktemp(request.param)))
        yield f"MESH_BACKBONE={server.url}"


@needs_node
def test_the_examples_run(line: str, home: MeshHome, tmp_path: Path) -> None:
    """Calls, state and events, all on the broker that the line names."""
    # RabbitMQ and Kafka keep no state: it is in a file of this machine, which all gateways here are on.
    environ = dict([line.split("=", 1)]) | {"MESH_SINGLE_HOST": "true"}
    ports = {name: free_port() for name in ("3000", "3500", "6001", "6002")}
    with home.run("-f", str(copied("hello-world", tmp_path, ports)), environ=environ) as run:
        run.until("^== APP - nodeapp == Got a new order! Order ID: 3$")
        run.until("^== APP - pythonapp == Order 3 was taken$")
        kept = home.mesh("invoke", "-a", "nodeapp", "-m", "order", "-v", "GET")
        assert json.loads(kept.stdout)["orderId"] >= 3
    with home.run("-f", str(copied("pubsub", tmp_path, ports)), environ=environ) as run:
        # Any of them: on RabbitMQ an event is not kept for a group that comes after another one has taken it.
        run.until(r"^== APP - warehouse == Order \d+: teapot goes by post$")
        run.until(r"^== APP - warehouse == Order \d+: piano goes by lorry$")
        run.until(r"^== APP - office == Order \d+: writing to the customer that there is no unicorn$")
        run.until(r"^== APP - office == Order \d+: turnover is now ")
        words = ("--publish-app-id", "publisher", "--pubsub", "pubsub", "--topic", "orders", "--data")
        assert home.mesh("stop", "warehouse").returncode == 0
        assert home.mesh("publish", *words, '{"orderId": 1001, "item": "spoon", "total": 2}').returncode == 0
        run.until("^== APP - office == Order 1001: turnover is now ")
        again = ("--app-id", "warehouse", "--app-port", str(ports["6001"]), "--resources-path", "../resources")
        directory = tmp_path / "pubsub" / "warehouse"
        with home.run(*again, "python3", "app.py", environ=environ, cwd=directory) as warehouse:
            warehouse.until("^== APP - warehouse == Order 1001: spoon goes by post$")
        assert run.stop() == 0
    assert not (home.path / "backbone").exists(), "the embedded broker was used as well"


async def test_a_node_is_asked_for_what_its_own_api_answers(line: str, tmp_path: Path) -> None:
    """Views, a call with a body of some parts both ways, and events as they lie in a topic."""
    backbone = Backbone(line.partition("=")[2])
    body = bytes(range(256)) * 8192
    async with (
        App() as app,
        gateway(backbone, tmp_path, app=app, app_id="shop", single_host=True) as shop,
        gateway(backbone, tmp_path, app_id="desk", single_host=True) as desk,
    ):
        app.answer("/echo", 200, body)

        async def ask(verb: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
            status, _, told = await desk.gateway.ask_node(shop.gateway.node_id, verb, f"/v1.0/{path}", body=body)
            return status, told

        assert json.loads((await ask("GET", "mesh/node"))[1])["app"] == "shop"
        assert await ask("POST", "invoke/shop/method/echo", body) == (200, body)
        assert app.got[-1].body == body
        await shop.publish("orders", {"a": 1})
        status, told = await ask("GET", "mesh/topics/pubsub/orders/events")
        assert (status, json.loads(told)["events"][0]["event"]["data"]) == (200, {"a": 1})
        node_id = shop.gateway.node_id
    async with gateway(backbone, tmp_path, app_id="desk", single_host=True) as desk:
        with pytest.raises(NoResponderError):
            await desk.gateway.ask_node(node_id, "GET", "/v1.0/mesh/node", app_id="shop")


# Where the broker keeps no records


@pytest_asyncio.fixture
async def store(line: str, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """A component for a store of another system: of Redis beside RabbitMQ, of PostgreSQL beside Kafka."""
    server = RedisServer(tmp_path / "store") if "amqp" in line else PostgreSQLServer(tmp_path / "store")
    async with server:
        if isinstance(server, RedisServer):
            yield {"kind": "state.redis", "redisHost": f"127.0.0.1:{server.port}"}
        else:
            yield {"kind": "state.postgresql", "connectionString": server.connection_string}


@pytest.mark.parametrize("line", ["kafka", "rabbitmq"], indirect=True)
async def test_a_store_is_marked_for_records(line: str, store: dict[str, str], tmp_path: Path) -> None:
    """Without, whoever needs none sees nothing, and the others which line to add; then all works, with no restart.

    No file could have done it: the gateways have different homes.
    """
    resources = tmp_path / "resources"
    resources.mkdir()
    own = component("statestore", "state.mesh", keyPrefix="none") + component("pubsub", "pubsub.mesh")
    (resources / "own.yaml").write_text(own)

    def write(mark: str) -> None:
        (resources / "new").write_text(component("shared", keyPrefix="none", actorStateStore=mark, **store))
        (resources / "new").rename(resources / "shared.yaml")

    write("false")
    backbone, homes = Backbone(line.partition("=")[2]), [tmp_path / "one", tmp_path / "two"]
    apps = [ActorApp({"entities": ["thing"]}) for _ in homes]
    for app in apps:
        app.subscriptions = [
            {"pubsubname": "pubsub", "topic": "plain", "route": "/plain"},
            {"pubsubname": "pubsub", "topic": "once", "route": "/once", "metadata": {"deduplicate": "1h"}},
        ]
        app.answer("/work", body={"done": True})
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for app, home in zip(apps, homes, strict=True):
            await stack.enter_async_context(app)
            node = gateway(backbone, home, app=app, app_id="shop", resource_paths=(resources,))
            nodes.append(await stack.enter_async_context(node))
        one, two = nodes
        await needs_none(one, apps)
        await is_refused(one, str(resources / "shared.yaml"))
        write("true")

        async def is_saved() -> None:
            for node in nodes:
                saved = await node.post("/v1.0/state/statestore", [{"key": "k", "value": "mesh"}])
                assert saved.status == 204, saved

        await eventually(is_saved, within=40.0)
        assert (await one.post("/v1.0/state/shared", [{"key": "k", "value": "own"}])).status == 204
        assert (await two.get("/v1.0/state/statestore/k")).json == "mesh"
        assert (await two.get("/v1.0/state/shared/k")).json == "own"
        await is_called_durably(one, two)
        await is_handled_once(nodes, apps)
        await is_hosted(nodes, apps)
    assert not [path for home in homes for path in home.rglob("*.db")]


async def needs_none(node: Node, apps: list[ActorApp]) -> None:
    """Events and calls are as ever."""
    await node.publish("plain", "event")
    await eventually(lambda: _came(apps, "/plain"), within=40.0)
    assert (await node.get("/v1.0/invoke/shop/method/work")).json == {"done": True}


def _came(apps: list[ActorApp], path: str) -> None:
    assert any(app.at(path) for app in apps)


async def is_refused(node: Node, file: str) -> None:
    """What needs a place says which line of which file gives it one."""
    requests: list[Any] = [
        ("GET", "/v1.0/state/statestore/k"),
        ("POST", "/v1.0/invoke/shop/method/work", {"mesh-delivery": "durable"}, b"x"),
        ("POST", "/v1.0/jobs/soon", None, {"dueTime": "0s"}),
    ]
    for request in requests:
        reply = await node.request(*request)
        assert reply.status == 500, reply
        said = reply.json["message"]
        assert "; mark the state store shared, if every node reaches it, by this line in its spec.metadata" in said
        assert f"({file}:" in said
        assert 'name: actorStateStore, value: "true"' in said


async def is_called_durably(one: Node, two: Node) -> None:
    """The outcome of a call is known at both, whichever has made it."""
    stored = await one.request("POST", "/v1.0/invoke/shop/method/work", {"mesh-delivery": "durable"}, b"later")
    assert stored.status == 202, stored

    async def is_done() -> None:
        for node in (one, two):
            told = await node.get(f"/v1.0/mesh/invocations/{stored.json['id']}")
            assert told.json["state"] == "succeeded"

    await eventually(is_done, within=40.0)


async def is_handled_once(nodes: list[Node], apps: list[ActorApp]) -> None:
    """An event that comes again, whichever member of the group has it then."""

    def counted(name: str, *labels: str) -> int:
        key = (name, "pubsub", "once", *labels)
        return sum(node.gateway._runtime.counters.snapshot().get(key, 0) for node in nodes)  # type: ignore[attr-defined]

    def was_noted() -> None:
        assert counted(EVENTS_DELIVERED, "success")

    def were_held_back() -> None:
        assert counted(EVENTS_DUPLICATE) == 4

    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": "x"}
    await nodes[0].publish("once", event, "application/cloudevents+json")
    await eventually(was_noted, within=40.0)
    for number in range(4):
        await nodes[number % 2].publish("once", event, "application/cloudevents+json")
    await eventually(were_held_back, within=40.0)
    assert sum(len(app.at("/once")) for app in apps) == 1


def _hosts_jobs(node: Node) -> None:
    assert node.gateway._runtime.services["jobs"]._owning.hosts  # type: ignore[attr-defined]


async def is_hosted(nodes: list[Node], apps: list[ActorApp]) -> None:
    """Actors, which were refused at the start, and jobs."""

    async def are_called() -> None:
        for node in nodes:
            reply = await node.request(*call("x"))
            assert reply.status == 200, reply

    await eventually(are_called, within=40.0)
    for path in (f"{ACTORS}/thing/1/reminders/soon", "/v1.0/jobs/soon"):
        kept = await nodes[1].post(path, {"dueTime": "0s", "overwrite": True})
        assert kept.status == 204, kept
    for node in nodes:  # Also the one that was not asked.
        await eventually(lambda node=node: _hosts_jobs(node), within=40.0)  # type: ignore[misc]
    for path in ("/actors/thing/1/method/remind/soon", "/job/soon"):
        await eventually(lambda path=path: _came(apps, path), within=40.0)  # type: ignore[misc]
