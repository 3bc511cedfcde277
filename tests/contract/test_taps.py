"""Taps on every backbone: what nodes tell one who asks, whoever of them it passes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from mesh.blocks.invocation import INVOKE, Call
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.blocks.topics import PUBLISH, Publish
from mesh.node.runtime import Runtime
from mesh.resources.subscription import Subscription
from mesh.store import Item
from mesh.tap.sight import Dropped, Rates, Refused, Seen, Sight
from tests.support.backends import Backend
from tests.support.contract import Place
from tests.support.eventually import eventually
from tests.support.nodes import ask, component, node, unique
from tests.support.tapped import App, serving, tapping

pytestmark = pytest.mark.requires("shared", "frames")
ORDERS = Subscription("", "pubsub", "orders", default_path="/orders")
FAILING = Subscription("", "pubsub", "failing", default_path="/failing", dead_letter_topic="letters")
REFUSED = Subscription("", "pubsub", "refused", default_path="/refused")
FIELDS = [("Authorization", "Bearer x"), ("X-Api-Key", "x"), ("content-type", "application/json"), ("x-kind", "test")]


@pytest.fixture
def url(shared_backend: Backend, backend_name: str) -> str:
    if backend_name == "embedded":
        pytest.skip("the same server as nats, found by other means")
    return shared_backend.url


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """A node's start reads what is installed, once, before anything runs; the suite's detector would refuse it."""


@pytest.fixture
async def mesh(url: str) -> AsyncIterator[tuple[Runtime, Runtime, Runtime]]:
    """One who watches, who asks, and who is asked."""
    namespace, pubsub = unique("taps"), component("pubsub", "pubsub.mesh")
    store = component("store", "state.in-memory", placement="backbone")
    asker, orders = (
        node(url, namespace, *of, app_id=app, single_host=True) for app, of in (("watcher", ()), ("orders", (pubsub,)))
    )
    checkout = node(url, namespace, pubsub, store, app_id="checkout", single_host=True)
    app = App(failing=(500, b"no"), refused=(200, b'{"status":"DROP"}'), pay=(402, b'{"paid":false}'))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asker)
        await stack.enter_async_context(orders)
        await stack.enter_async_context(serving(checkout, app, ORDERS, FAILING, REFUSED))
        yield asker, orders, checkout


async def test_calls(mesh: Any) -> None:
    """As their caller sees them, and as they arrive; with all that may be told of their bodies and fields."""
    watcher, orders, checkout = mesh
    async with tapping(watcher, orders, checkout, values=True, blocks=("invocation",)) as seen:
        async with await ask(
            orders, INVOKE, "checkout", Call("POST", "/pay?card=1&token=x", FIELDS, b'{"total":3}')
        ) as answer:
            assert answer.status == 402
        asked = await seen.until(lambda each: each.seen is Seen.ASKED)
        arrived = await seen.until(lambda each: each.seen is Seen.ARRIVED)
    assert (asked.app, asked.source, asked.target, asked.outcome) == ("orders", "orders", "checkout", "ok")
    assert (arrived.app, arrived.source, arrived.target, arrived.outcome) == ("checkout", "orders", "checkout", "ok")
    assert asked.id != arrived.id
    for each in (asked, arrived):
        assert each.details == {"verb": "POST", "path": "/pay", "status": 402, "query": "card=1&token=(hidden)"}
        assert each.request is not None and each.reply is not None
        assert (each.request.body, each.reply.body) == (b'{"total":3}', b'{"paid":false}')
        fields = {name.lower(): value for name, value in each.request.headers or ()}
        assert fields["authorization"] == fields["x-api-key"] == "(hidden)"
        assert fields["x-kind"] == "test"
        assert ("set-cookie", "(hidden)") in (each.reply.headers or ())
        assert not each.hidden


async def test_events(mesh: Any) -> None:
    """As they are published, and each attempt to deliver them, with what follows it."""
    watcher, orders, checkout = mesh
    async with tapping(watcher, orders, checkout, values=True, topics=("pubsub/*",)) as seen:
        for topic in ("orders", "failing", "refused"):
            await ask(orders, PUBLISH, "pubsub", Publish(topic, b'{"id":1}', "application/json"))
        published = await seen.until(lambda each: each.method == "publish" and each.target == "pubsub/orders")
        taken, failed, dropped = [
            await seen.until(lambda each, topic=topic: each.method == "deliver" and each.target == f"pubsub/{topic}")
            for topic in ("orders", "failing", "refused")
        ]
    assert published.request is not None and taken.request is not None
    for each in (published, taken):
        assert each.request is not None and each.request.content_type == "application/cloudevents+json"
        event = orjson.loads(each.request.body or b"")
        assert (event["id"], event["source"], event["data"]) == (each.details["id"], "orders", {"id": 1})
    assert published.details["id"] == taken.details["id"]
    assert (taken.outcome, taken.source, taken.app) == ("success", "orders", "checkout")
    told = {"pubsub": "pubsub", "topic": "orders", "route": "/orders", "attempt": 1, "settlement": "ack", "status": 200}
    assert told.items() <= taken.details.items()
    assert (failed.outcome, failed.details["settlement"], failed.details["status"]) == ("retry", "dead letter", 500)
    assert failed.reply is not None and failed.reply.body == b"no"
    assert (dropped.outcome, dropped.details["settlement"]) == ("drop", "drop")


async def test_operations(mesh: Any) -> None:
    """Of a component: where they are asked, and where it is hosted."""
    watcher, orders, checkout = mesh
    async with tapping(watcher, orders, checkout, values=True, blocks=("state",)) as seen:
        await ask(orders, SAVE, "store", Save([Item("a", b'{"n":1}')]))
        await ask(orders, GET, "store", Get("a"))
        asked = await seen.until(lambda each: each.method == "get" and each.seen is Seen.ASKED)
        hosted = await seen.until(lambda each: each.method == "get" and each.seen is Seen.HOSTED)
    assert (asked.app, hosted.app, hosted.source) == ("orders", "checkout", "orders")
    for each in (asked, hosted):
        assert each.details == {"key": "a"}
        assert each.reply is not None and orjson.loads(each.reply.body or b"")["value"] == {"n": 1}


async def test_large_bodies(mesh: Any) -> None:
    """Both ways at once, as much of them as was asked for and goes into a message of the broker."""
    watcher, orders, checkout = mesh
    large = bytes(range(256)) * 8192
    async with tapping(watcher, orders, checkout, values=True, max_body=1024 * 1024) as seen:
        async with await ask(orders, INVOKE, "checkout", Call("POST", "/large", [], large[: 200 * 1024])) as answer:
            assert answer.status == 200
        await ask(orders, SAVE, "store", Save([Item("a", b"x" * len(large))]))
        await ask(orders, GET, "store", Get("a"))
        called = await seen.until(lambda each: each.block == "invocation" and each.seen is Seen.ASKED)
        got = await seen.until(lambda each: each.method == "get" and each.seen is Seen.ASKED)
    assert called.request is not None and called.request.body == large[: 200 * 1024]
    assert got.reply is not None and got.reply.cut
    assert got.reply.size > len(large)
    assert 400_000 < len(got.reply.body or b"") <= 1024 * 1024
    assert not seen.of(Dropped)


async def test_rates(mesh: Any) -> None:
    """Every second, also when nothing passed; sights are not told then."""
    watcher, orders, checkout = mesh
    async with tapping(watcher, orders, checkout, sights=False, rates=1.0) as seen:
        for _ in range(5):
            await ask(orders, PUBLISH, "pubsub", Publish("orders", b"1"))
        await ask(orders, PUBLISH, "pubsub", Publish("failing", b"1"))

        def check() -> None:
            edges = [edge for each in seen.of(Rates) for edge in each.edges if edge.block == "pubsub"]
            counts: dict[tuple[str, str], list[int]] = {}
            for edge in edges:
                found = counts.setdefault((edge.seen, edge.target), [0, 0])
                found[0] += edge.count
                found[1] += edge.errors
                assert sum(edge.buckets) == edge.count
            assert counts == {
                ("asked", "pubsub/orders"): [5, 0],
                ("asked", "pubsub/failing"): [1, 0],
                ("arrived", "pubsub/orders"): [5, 0],
                ("arrived", "pubsub/failing"): [1, 1],
            }
            assert any(not each.edges for each in seen.of(Rates) if each.app == "watcher")

        await eventually(check)
    assert not seen.of(Sight)
    assert not seen.of(Dropped)
    assert orders.counters.snapshot()["sights", "watcher", "told"] > 0


async def test_a_node_that_comes_later(mesh: Any, url: str) -> None:
    """It is asked as well; and nobody is watched any more once the tap is left."""
    watcher, orders, checkout = mesh
    late = node(url, orders.settings.namespace, app_id="late", single_host=True)
    async with tapping(watcher, orders, checkout, apps=("la*",)) as seen, late:

        async def called() -> None:
            async with await ask(late, INVOKE, "checkout", Call("GET", "/", [], b"")):
                pass
            assert seen.of(Sight)

        await eventually(called)
        assert {each.app for each in seen.of(Sight)} <= {"late", "checkout"}
        assert all(each.source == "late" for each in seen.of(Sight))

    def check() -> None:
        assert not any(each.parts.taps.on for each in (watcher, orders, checkout))

    await eventually(check)


async def test_values_are_refused(url: str) -> None:
    """Where nodes may be anywhere, and nobody is named who may see them; the lines to add are told."""
    namespace = unique("taps")
    store = component("store", "state.in-memory")
    async with node(url, namespace, store, app_id="a") as runtime, tapping(runtime, runtime, values=True) as seen:
        await ask(runtime, SAVE, "store", Save([Item("k", b"hidden")]))
        sight = await seen.until(lambda each: each.block == "state")
    assert sight.hidden
    assert sight.request is not None and sight.request.body is None and sight.request.headers is None
    (refused,) = seen.of(Refused)
    assert "spec.accessControl.tap: {values: [a]}" in refused.reason


@pytest.mark.requires("durable")
async def test_over_a_restart_of_the_broker(rough_place: Place, backend_name: str) -> None:
    if backend_name == "embedded":
        pytest.skip("the same server as nats, found by other means")
    store = component("store", "state.in-memory")
    runtime = node(rough_place.backend.url, unique("taps"), store, app_id="a")
    async with runtime, tapping(runtime, runtime) as seen:
        await rough_place.backend.restart(kill=True)

        async def check() -> None:
            await ask(runtime, SAVE, "store", Save([Item("k", b"1")]))
            assert seen.of(Sight)

        await eventually(check, 60.0)
