"""A bridge between clusters that trust different roots: who it may speak for, and who may not be it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from gateway.config import BridgeConfig, GatewayConfig
from mesh import address
from mesh.blocks.invocation import INVOKE, Call
from mesh.bridge.routes import Routes, topic_of
from mesh.broker import Message
from mesh.calls.exchange import Request
from mesh.error_wire import read_error
from mesh.errors import DeadlineExceededError, UnprovenError
from mesh.event import required_headers
from mesh.node.runtime import NodeSettings, Runtime
from mesh.operation import Caller, Context, Operation
from mesh.packing import pack
from mesh.registry import Registry
from mesh.trust.folder import Folder
from mesh.trust.identity import TrustSettings
from tests.http.harness import App, Backbone, Node, gateway
from tests.support.eventually import eventually
from tests.support.nats import NatsServer

ACCESS = """
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: access}
spec:
  accessControl:
    defaultAction: deny
    trustDomain: west
    policies:
      - appId: frontend@east
        trustDomain: west
        namespace: default
        operations: [{name: /order, httpVerb: [POST], action: allow}]
"""


@dataclass
class Side:
    backbone: Backbone
    trust: TrustSettings

    def config(self, app_id: str, home: Path) -> GatewayConfig:
        return GatewayConfig(
            app_id=app_id,
            home=home,
            http_port=0,
            namespace=self.backbone.namespace,
            backbone=self.backbone.url,
            trust=self.trust,
            metrics=False,
            registered=False,
        )


@dataclass
class Both:
    east: Side
    west: Side
    home: Path

    def bridge(self, *apps: str, topics: tuple[str, ...] = ()) -> Any:
        routes = Routes(apps, map(topic_of, topics))
        peer = self.west.config("mesh-bridge-east", self.home)
        config = BridgeConfig("east", "west", peer, routes)
        east = self.east
        return gateway(east.backbone, self.home, app_id="mesh-bridge-west", trust=east.trust, bridge=config)

    def gateway(self, side: Side, app_id: str, app: App | None = None, **settings: Any) -> Any:
        return gateway(side.backbone, self.home, app=app, app_id=app_id, trust=side.trust, **settings)


def _side(server: NatsServer, folder: Path, domain: str, *, seal: bool) -> Side:
    Folder(folder).init(domain)
    return Side(Backbone(server.url, "default"), TrustSettings("strict", domain, folder=folder, seal=seal))


@pytest_asyncio.fixture(params=("plain", "sealed"))
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Both]:
    seal = request.param == "sealed"
    async with NatsServer(tmp_path / "east") as east, NatsServer(tmp_path / "west") as west:
        sides = [
            _side(each, tmp_path / f"root-{name}", name, seal=seal) for name, each in (("east", east), ("west", west))
        ]
        yield Both(*sides, tmp_path)


async def until_joined(bridge: Node) -> None:
    async def check() -> None:
        assert (await bridge.get("/v1.0/healthz")).status == 204

    await eventually(check, 20.0)


async def test_rules_name_callers_of_the_other_cluster(both: Both, tmp_path: Path) -> None:
    access = tmp_path / "access.yaml"
    access.write_text(ACCESS)
    async with (
        App() as app,
        both.gateway(both.west, "orders", app, configuration_files=(access,)),
        both.gateway(both.east, "frontend") as frontend,
        both.gateway(both.east, "other") as other,
        both.bridge("orders@west") as bridge,
    ):
        await until_joined(bridge)
        assert (await frontend.post("/v1.0/invoke/orders@west/method/order", {"n": 1})).status == 200
        headers = dict(app.got[-1].headers)
        assert headers["dapr-caller-app-id"] == "frontend@east"
        assert (await frontend.post("/v1.0/invoke/orders@west/method/secret", {"n": 1})).status == 403
        assert (await other.post("/v1.0/invoke/orders@west/method/order", {"n": 1})).status == 403
        assert len(app.got) == 1


async def test_only_the_bridge_of_a_cluster_speaks_for_it(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    """With a certificate of another name neither callers nor those who are called believe it."""
    west, east = both.west, both.east
    evil_there = NodeSettings("evil", "default", west.backbone.url, components=(), trust=west.trust)
    evil_here = NodeSettings("evil", "default", east.backbone.url, components=(), trust=east.trust)
    honest = NodeSettings("frontend", "default", east.backbone.url, components=(), trust=east.trust)
    call = Call("POST", "/order", [], b"")
    async with (
        App() as app,
        both.gateway(west, "orders", app),
        Runtime(evil_there, Registry()) as there,
        Runtime(evil_here, Registry()) as here,
        Runtime(honest, Registry()) as frontend,
    ):
        context = Context(Caller("default", "frontend@east"), time.time() + 5.0)
        with pytest.raises(UnprovenError, match="in the name of app id frontend@east"):
            await there.run(Operation(INVOKE, "orders", call, context))
        assert app.got == []
        asked: list[Request] = []

        async def lie(request: Request) -> None:
            asked.append(request)
            await request.reply({"mesh-http": "[200,[]]"}, b"a lie")

        async with here.exchange.serve(address.bridge("default", "west"), "evil", lie):
            with pytest.raises(DeadlineExceededError):
                context = Context(frontend.caller, time.time() + 3.0)
                await frontend.run(Operation(INVOKE, "orders@west", call, context))
        assert "may not answer for mesh.default.bridge.west" in caplog.text
        assert asked == [], "it is not even told what was asked"


async def test_callers_of_another_namespace_are_none_of_this_one(both: Both) -> None:
    """On the other side nothing but its app id would be left of who it is."""
    foreign = NodeSettings("frontend", "shop", both.east.backbone.url, components=(), trust=both.east.trust)
    async with (
        App() as app,
        both.gateway(both.west, "orders", app),
        both.bridge("orders@west") as bridge,
        Runtime(foreign, Registry()) as frontend,
    ):
        await until_joined(bridge)
        headers = required_headers("1", "frontend", "mesh.invocation.request")
        headers |= {"mesh-http": pack("POST", "/order", ()), "mesh-called": "orders@west"}
        where, until = address.bridge("default", "west"), time.time() + 10.0
        reply = await frontend.exchange.request(where, Message(headers, b""), until)
        with pytest.raises(UnprovenError, match="is not in default"):
            raise read_error(reply.headers["mesh-error"])
        assert app.got == []


async def test_events_are_by_the_bridge_and_say_who_published_them(both: Both) -> None:
    topic = [{"pubsubname": "pubsub", "topic": "orders", "route": "/orders"}]
    async with (
        App(topic) as app,
        both.gateway(both.west, "orders", app),
        both.gateway(both.east, "frontend") as frontend,
        both.bridge(topics=("pubsub/orders@east",)) as bridge,
    ):
        await until_joined(bridge)
        assert (await frontend.post("/v1.0/publish/pubsub/orders", {"n": 1}, "application/json")).status == 204
        await eventually(lambda: _count(app, 1), 20.0)
        (got,) = app.got
        headers, event = dict(got.headers), orjson.loads(got.body)
        assert headers["mesh-proven-by"] == "spiffe://west/ns/default/mesh-bridge-east"
        assert (event["meshpublisher"], event["meshpath"]) == ("spiffe://east/ns/default/frontend", "east")
        assert event["data"] == {"n": 1}


async def test_durable_calls_are_proven_on_either_side(both: Both) -> None:
    durable = {"mesh-delivery": "durable"}
    async with (
        App() as app,
        both.gateway(both.west, "orders", app),
        both.gateway(both.east, "frontend") as frontend,
        both.bridge("orders@west") as bridge,
    ):
        await until_joined(bridge)
        app.answer("/order", body={"done": True})
        answer = await frontend.request("POST", "/v1.0/invoke/orders@west/method/order", durable, b"x")
        assert answer.status == 202

        async def check() -> None:
            told = (await frontend.get(f"/v1.0/mesh/invocations/{answer.json['id']}")).json
            assert (told["state"], told.get("data")) == ("succeeded", {"done": True})

        await eventually(check, 20.0)
        assert dict(app.got[-1].headers)["dapr-caller-app-id"] == "frontend@east"
        assert len(app.got) == 1


def _count(app: App, count: int) -> None:
    assert len(app.got) == count
