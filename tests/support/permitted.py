"""Two gateways that have what ``mesh broker permissions`` prints for them, and all that they should be able to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from gateway.cli import main
from mesh.calls.exchange import Exchange
from tests.http.actor_app import ActorApp, call
from tests.http.harness import App, Backbone, Got, Node, gateway
from tests.support.eventually import eventually
from tests.support.tapped import tapping

__all__ = ["APPS", "everything", "pair", "printed", "runs_once"]

APPS = ("shop", "orders")
NAMESPACE = "prod"
LARGE = 5_000_000  # Bytes: more than any broker takes in a message.


@asynccontextmanager
async def pair(url_of: dict[str, str], home: Path, resources: str = "") -> AsyncIterator[tuple[Node, Node, App]]:
    """Two gateways, each with the rights of its application; that of orders has the application, which hosts actors."""
    app = ActorApp({"entities": ["thing"]})
    app.subscriptions = [{"pubsubname": "pubsub", "topic": "placed", "route": "/placed"}]
    here: Any = {"resources": resources, "single_host": True, "max_body_bytes": 2 * LARGE}
    async with (
        app,
        gateway(Backbone(url_of["orders"], NAMESPACE), home, app=app, app_id="orders", **here) as orders,
        gateway(Backbone(url_of["shop"], NAMESPACE), home, app_id="shop", **here) as shop,
    ):
        yield shop, orders, app


async def everything(shop: Node, orders: Node, app: App) -> None:
    """Publish, subscribe, invoke, keep state, call durably, use actors, reminders and jobs, and see what passes."""
    app.got.clear()
    app.answer("/work", body={"done": True})
    runtimes = [cast("Any", each.gateway)._runtime for each in (shop, orders)]
    async with tapping(*runtimes, runtimes[0], blocks=("invocation",)) as seen:
        assert (await shop.get("/v1.0/invoke/orders/method/work")).json == {"done": True}
        for name in ("shop", "orders"):
            await seen.until(lambda each, name=name: each.app == name)
    asked = await shop.gateway.ask_node(orders.gateway.node_id, "GET", "/v1.0/mesh/node")
    assert (asked[0], json.loads(asked[2])["app"]) == (200, "orders")
    large = b"x" * LARGE
    assert (await shop.request("POST", "/v1.0/invoke/orders/method/work", None, large)).status == 200
    for node in (shop, orders):
        saved = await node.post("/v1.0/state/statestore", [{"key": "k", "value": 1}], "application/json")
        assert saved.status == 204, saved
        assert (await node.get("/v1.0/state/statestore/k")).json == 1
    await shop.publish("placed", {"id": 1})
    await shop.publish("placed", {"id": 2, "more": "x" * LARGE})
    stored = await shop.request("POST", "/v1.0/invoke/orders/method/work", {"mesh-delivery": "durable"}, large)
    assert stored.status == 202, stored

    await use_actors_and_jobs(shop, orders)

    def have_come() -> None:
        assert {got.json["data"]["id"] for got in app.got if got.path == "/placed"} == {1, 2}
        assert {"/job/soon", "/actors/thing/1/method/remind/soon"} <= {got.path for got in app.got}

    async def has_run() -> None:
        told = await shop.get(f"/v1.0/mesh/invocations/{stored.json['id']}")
        assert told.json["state"] == "succeeded"

    await eventually(have_come)
    await eventually(has_run)


async def use_actors_and_jobs(shop: Node, orders: Node) -> None:
    """Call an actor of the other gateway, keep its state, and have it reminded; both have jobs."""
    assert (await shop.request(*call("work"))).status == 200
    actor = "/v1.0/actors/thing/1"
    upsert = [{"operation": "upsert", "request": {"key": "k", "value": 1}}]
    assert (await orders.post(f"{actor}/state", upsert, "application/json")).status == 204
    assert (await orders.get(f"{actor}/state/k")).json == 1
    for node, path in ((orders, f"{actor}/reminders"), (orders, "/v1.0/jobs"), (shop, "/v1.0/jobs")):
        for name, due in (("soon", "0s"), ("later", "1h")):
            kept = await node.post(f"{path}/{name}", {"dueTime": due, "overwrite": True}, "application/json")
            assert kept.status == 204, kept
        assert (await node.get(f"{path}/later")).status == 200
        assert (await node.request("DELETE", f"{path}/later")).status == 204


ASK_AFTER = 0.2


async def runs_once(urls: dict[str, str], home: Path, resources: str = "") -> str:
    """Have one of two instances work for long, and actors of both be called.

    Gives what the answer to a call that is not allowed says.
    """
    orders, shop = (Backbone(urls[app], NAMESPACE) for app in ("orders", "shop"))
    here: Any = {"resources": resources, "single_host": True, "max_body_bytes": 2 * LARGE}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cast("dict[str, object]", Exchange.__init__.__kwdefaults__), "ask_after", ASK_AFTER)
        async with (
            ActorApp({"entities": ["thing"]}) as app,
            gateway(orders, home, app=app, app_id="orders", **here),
            gateway(orders, home, app=app, app_id="orders", **here),
            gateway(shop, home, app_id="shop", **here) as caller,
        ):

            async def work(got: Got, request: object) -> web.Response:
                await asyncio.sleep(8 * ASK_AFTER)
                return web.Response()

            app.answers["/work"] = work
            await asyncio.sleep(5 * ASK_AFTER)  # Until the instances vouch for each other.
            assert (await caller.post("/v1.0/invoke/orders/method/work", {})).status == 200
            assert len(app.got) == 1
            for number in range(16):
                assert (await caller.request(*call("work", id_=str(number)))).status == 200
            async with asyncio.timeout(5):  # A call has a minute.
                return (await caller.post("/v1.0/invoke/billing/method/work", {})).body.decode()


def printed(capsys: pytest.CaptureFixture[str], broker: str, app: str, *words: str) -> str:
    assert main(["broker", "permissions", app, "--broker", broker, "--namespace", NAMESPACE, *words]) == 0
    return capsys.readouterr().out
