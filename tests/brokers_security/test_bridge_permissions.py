"""What `mesh broker permissions` prints for a bridge, and for who calls over it, is enough for both."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import BridgeConfig, GatewayConfig
from mesh.bridge.routes import Routes, topic_of
from tests.brokers_security.test_permissions import nats_user, violations
from tests.http.harness import App, Backbone, gateway
from tests.support.eventually import eventually
from tests.support.nats import NatsServer

NAMES = ("frontend", "mesh-bridge-west")
TOPIC = [{"pubsubname": "pubsub", "topic": "orders", "route": "/event"}]


async def test_nats(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    calls = {"frontend": "orders@west", "mesh-bridge-west": "frontend"}
    users = [nats_user(capsys, app, "--calls", calls[app]) for app in NAMES]
    config = "authorization {{ users: [\n{}\n] }}".format(",\n".join(users))
    async with NatsServer(tmp_path / "east", config=config) as east, NatsServer(tmp_path / "west") as west:
        urls = [Backbone(f"nats://{app}:secret@{east.address}?inbox={app}", "prod") for app in NAMES]
        peer = GatewayConfig("mesh-bridge-east", tmp_path, backbone=west.url, namespace="prod", metrics=False)
        routes = Routes(["orders@west", "frontend@east"], map(topic_of, ("pubsub/orders@east", "pubsub/back@west")))
        bridge = BridgeConfig("east", "west", peer, routes)
        async with (
            App(TOPIC) as app,
            App() as caller,
            gateway(Backbone(west.url, "prod"), tmp_path, app=app, app_id="orders") as orders,
            gateway(urls[0], tmp_path, app=caller, app_id="frontend") as frontend,
            gateway(urls[1], tmp_path, app_id="mesh-bridge-west", bridge=bridge) as bridging,
        ):

            async def joined() -> None:
                assert (await bridging.get("/v1.0/healthz")).status == 204

            await eventually(joined, 20.0)
            assert (await frontend.post("/v1.0/invoke/orders@west/method/call")).status == 200
            assert (await orders.post("/v1.0/invoke/frontend@east/method/call")).status == 200
            assert (await frontend.post("/v1.0/publish/pubsub/orders", {"n": 1})).status == 204
            durable = {"mesh-delivery": "durable"}
            for asker, target in ((frontend, "orders@west"), (orders, "frontend@east")):
                answer = await asker.request("POST", f"/v1.0/invoke/{target}/method/durable", durable, b"x")
                assert answer.status == 202
                path = f"/v1.0/mesh/invocations/{answer.json['id']}"

                async def succeeded(asker: object = asker, path: str = path) -> None:
                    assert (await asker.get(path)).json["state"] == "succeeded"  # type: ignore[attr-defined]

                await eventually(succeeded, 20.0)

            def came() -> None:
                assert "/event" in [each.target for each in app.got]

            await eventually(came, 20.0)
        assert violations(east) == []
