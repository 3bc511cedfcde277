"""The transactional outbox through a gateway: what is written is published, and nothing else.

Source: Dapr 1.18, the outbox pattern of the state API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mesh.errors import ConfigError
from tests.http.harness import App, Backbone, Node, component, gateway
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
URL = "/v1.0/state/store/transaction"
OUTBOX = {"outboxPublishPubsub": "pubsub", "outboxPublishTopic": "orders"}
PUBSUB = component("pubsub", "pubsub.mesh")
SUBSCRIBED = [{"pubsubname": "pubsub", "topic": "orders", "route": "/orders"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app() -> AsyncIterator[App]:
    async with App(SUBSCRIBED) as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, app: App, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    resources = PUBSUB + component("store", "state.mesh", **OUTBOX) + component("other", "state.mesh", **OUTBOX)
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), app=app, resources=resources) as node:
        yield node


@pytest.fixture(autouse=True)
def nothing_yet(app: App) -> None:
    app.got.clear()


def upsert(key: str, value: object, **metadata: str) -> dict[str, object]:
    return {"operation": "upsert", "request": {"key": key, "value": value, "metadata": metadata}}


async def transact(node: Node, *operations: object, store: str = "store") -> int:
    return (await node.post(f"/v1.0/state/{store}/transaction", {"operations": list(operations)})).status


async def markers(node: Node, store: str = "store") -> list[str]:
    key_value = await node.gateway._runtime.broker.key_value(f"{node.gateway._runtime.settings.namespace}.{store}")  # type: ignore[attr-defined]
    return [key async for key in key_value.keys("outbox-")]


async def until_clean(node: Node, store: str = "store") -> None:
    async def clean() -> None:
        assert await markers(node, store) == []

    await eventually(clean)


async def test_what_a_transaction_writes_is_published(node: Node, app: App) -> None:
    """Each upsert, once it is written; the value as it is."""
    assert (
        await transact(
            node, upsert("a", {"n": 1}), upsert("b", "text"), {"operation": "delete", "request": {"key": "c"}}
        )
        == 204
    )
    events = [got.json for got in await app.until("/orders", 2)]
    assert {type(event["data"]): event["datacontenttype"] for event in events} == {
        dict: "application/json",
        str: "text/plain",
    }
    for event in events:
        assert event["id"].startswith("outbox-")
        told = {name: event[name] for name in ("source", "type", "specversion", "topic", "pubsubname")}
        assert told == {
            "source": "app",
            "type": "com.dapr.event.sent",
            "specversion": "1.0",
            "topic": "orders",
            "pubsubname": "pubsub",
        }
        assert not [name for name in event if name.startswith("outbox")]
    assert (await node.get("/v1.0/state/store/a")).json == {"n": 1}
    await until_clean(node)
    assert len(app.at("/orders")) == 2


async def test_projections_and_attributes(node: Node, app: App) -> None:
    """What is published need not be what is stored."""
    projection = upsert(
        "p", {"seen": True}, **{"outbox.projection": "true", "cloudevent.type": "placed", "colour": "red"}
    )
    assert await transact(node, upsert("p", {"secret": 1}), projection) == 204
    (got,) = await app.until("/orders")
    assert {name: got.json[name] for name in ("data", "type", "colour")} == {
        "data": {"seen": True},
        "type": "placed",
        "colour": "red",
    }
    assert (await node.get("/v1.0/state/store/p")).json == {"secret": 1}
    await until_clean(node)


async def test_a_transaction_that_fails_publishes_nothing(node: Node, app: App) -> None:
    """A wrong etag; a later one is published all the same, and nothing is left over."""
    wrong = {"operation": "upsert", "request": {"key": "e", "value": 1, "etag": "99999999"}}
    assert await transact(node, upsert("f", "never"), wrong) == 500
    assert await transact(node, upsert("f", "after")) == 204
    await app.until("/orders")
    await until_clean(node)
    assert [got.json["data"] for got in app.at("/orders")] == ["after"]
    assert (await node.get("/v1.0/state/store/f")).json == "after"


async def test_stores_that_publish_to_one_topic(node: Node, app: App) -> None:
    """They share the internal topic, and none takes the other's events for its own."""
    numbers = list(range(10))
    async with asyncio.TaskGroup() as tasks:
        for number in numbers:
            store = ("store", "other")[number % 2]
            tasks.create_task(transact(node, upsert(f"s{number}", number), store=store))
    got = await app.until("/orders", len(numbers))
    assert sorted(each.json["data"] for each in got) == numbers
    for store in ("store", "other"):
        await until_clean(node, store)


async def test_other_writes_publish_nothing(node: Node, app: App) -> None:
    """Only transactions have an outbox; one without an upsert has no event."""
    assert (await node.post("/v1.0/state/store", [{"key": "x", "value": 1}])).status == 204
    assert await transact(node, {"operation": "delete", "request": {"key": "x"}}) == 204
    assert await transact(node) == 204
    assert await transact(node, upsert("last", 1)) == 204
    await app.until("/orders")
    await until_clean(node)
    assert len(app.at("/orders")) == 1


async def test_markers_are_no_keys(memory: Backbone, tmp_path: Path) -> None:
    """Also where the application's keys have no prefix; the event waits for a pub/sub that refuses its topic."""
    pubsub = component("pubsub", "pubsub.mesh", allowedTopics="apporders,nsapporders") + component(
        "inner", "pubsub.mesh"
    )
    store = component("store", "state.mesh", keyPrefix="none", outboxPubsub="inner", **OUTBOX)
    async with gateway(memory, tmp_path, resources=pubsub + store) as node:
        assert await transact(node, upsert("k", 1)) == 204
        assert len(await markers(node)) == 1
        assert (await node.get("/v1.0/mesh/state/store")).json == {"keys": ["k"]}


async def test_without_the_event_nothing_is_written(memory: Backbone, tmp_path: Path) -> None:
    """The topic scopes refuse the internal topic."""
    refusing = component("pubsub", "pubsub.mesh", allowedTopics="orders")
    async with gateway(memory, tmp_path, resources=refusing + component("store", "state.mesh", **OUTBOX)) as node:
        reply = await node.post(URL, {"operations": [upsert("k", 1)]})
        assert (reply.status, reply.json["errorCode"]) == (500, "ERR_PUBLISH_OUTBOX")
        assert reply.json["message"].startswith("error while publishing outbox message: topic ")
        assert (await node.get("/v1.0/state/store/k")).status == 204


async def test_a_pubsub_that_is_not_there(memory: Backbone, tmp_path: Path) -> None:
    """An error at start, with its place."""
    resources = component("other", "pubsub.mesh") + component("store", "state.mesh", **OUTBOX, outboxPubsub="third")
    with pytest.raises(ConfigError) as raised:
        async with gateway(memory, tmp_path, resources=resources):
            pass
    told = [(problem.message, problem.line is not None) for problem in raised.value.problems]
    assert told == [("there is no pubsub component 'pubsub'", True), ("there is no pubsub component 'third'", True)]


async def test_a_pubsub_with_a_broker_of_its_own(memory: Backbone, tmp_path: Path) -> None:
    """It is closed after those who take messages of it, whatever it is."""
    resources = component("pubsub", "pubsub.in-memory") + component("store", "state.in-memory", **OUTBOX)
    async with App(SUBSCRIBED) as app, gateway(memory, tmp_path, app=app, resources=resources) as node:
        assert await transact(node, *(upsert(f"k{number}", number) for number in range(20))) == 204
        got = await app.until("/orders", 20)
        assert sorted(each.json["data"] for each in got) == list(range(20))
        assert await transact(node, upsert("last", 1)) == 204


async def test_a_value_that_is_nested_too_deeply_for_an_event(node: Node) -> None:
    """Nothing is written that nobody could publish."""

    async def nested(levels: int, key: str) -> int:
        value = b"[" * levels + b"]" * levels
        body = b'{"operations":[{"operation":"upsert","request":{"key":"%s","value":%s}}]}' % (key.encode(), value)
        return (await node.post("/v1.0/state/store/transaction", body)).status

    assert await nested(253, "deep") == 204
    assert await nested(254, "deeper") == 500
    assert (await node.get("/v1.0/state/store/deeper")).status == 204
    await until_clean(node)
