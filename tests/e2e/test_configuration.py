"""A configuration of another node is followed by an application, whoever of them restarts; with real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp

from tests.http.harness import App
from tests.support.eventually import eventually
from tests.support.mesh import GatewayProcess
from tests.support.nats import NatsServer

RESOURCES = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: conf}
spec: {type: configuration.mesh, version: v1}
"""
ABOUT_A = "/configuration/conf/a"


async def test_changes_through_restarts(mesh_home: Path, nats_server: NatsServer) -> None:
    """Of the server, the host and the application's gateway: each change is told, and none twice."""
    (mesh_home / "resources").mkdir()
    (mesh_home / "resources" / "conf.yaml").write_text(RESOURCES)
    arguments = ["--resources-path", str(mesh_home / "resources")]
    async with App() as app, aiohttp.ClientSession() as session:
        host = GatewayProcess("host", mesh_home, backbone=nats_server.url, arguments=arguments)
        gateway = GatewayProcess("app", mesh_home, app=app.port, backbone=nats_server.url)
        told: list[str] = []

        async def subscribe() -> None:
            async with session.get(f"{gateway.api}/configuration/conf/subscribe?key=a") as response:
                assert response.status == 200, await response.text()

        async def change(by: GatewayProcess, value: str) -> None:
            """Write; what fails while something restarts is written again."""

            async def written() -> None:
                async with session.put(f"{by.api}/mesh/configuration/conf/a", data=value) as response:
                    assert response.status == 204, await response.text()

            await eventually(written, 30.0)
            told.append(value)
            await app.until(ABOUT_A, len(told), within=40.0)

        async with host, gateway:
            await subscribe()
            await change(gateway, "changed")
            await nats_server.restart(kill=True)
            await change(gateway, "the server was killed")
            await host.kill()
            await host.start()
            await change(gateway, "the host was killed")
            await host.terminate()
            await host.start()
            await change(host, "the host was restarted")
            await gateway.terminate()
            await gateway.start()
            await subscribe()  # A subscription is the gateway's; whoever restarts it subscribes again.
            await change(host, "the gateway was restarted")
            assert [_value(got.json) for got in app.at(ABOUT_A)] == told


def _value(event: Any) -> str:
    value: str = event["items"]["a"]["value"]
    return value
