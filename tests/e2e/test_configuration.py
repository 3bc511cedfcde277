"""A configuration of another node is followed by an application, whoever of them restarts; with real processes."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from tests.http.harness import App
from tests.support.eventually import eventually
from tests.support.mesh import GatewayProcess
from tests.support.nats import NatsServer
from tests.support.redis_server import RedisServer, find_redis_server

RESOURCES = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: conf}
spec: {type: configuration.mesh, version: v1}
"""
ABOUT_A = "/configuration/conf/a"


async def test_changes_through_restarts(mesh_home: Path, nats_server: NatsServer) -> None:
    """Of the server, the host and the application's gateway: each change is told, in order, and none later again."""
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

            await eventually(written, 40.0)
            told.append(value)
            await eventually(all_are_told, 40.0)

        def all_are_told() -> None:
            """One after the other; what was written again may be told again."""
            assert [value for value, _ in groupby(_value(got.json) for got in app.at(ABOUT_A))] == told

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
            await change(host, "the gateway was restarted")
            await subscribe()  # Whoever does so again is told as before.
            await change(host, "the application subscribed again")


OF_REDIS = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: conf}
spec:
  type: configuration.redis
  version: v1
  initTimeout: 60s
  metadata:
    - {name: redisHost, value: "127.0.0.1:%d"}
"""


@pytest.mark.skipif(find_redis_server() is None and "CI" not in os.environ, reason="redis-server is not installed")
async def test_a_gateway_is_killed_without_its_application(
    mesh_home: Path, tmp_path: Path, nats_server: NatsServer
) -> None:
    """The next one tells what has changed meanwhile on a Redis server, also while that was away, and goes on."""
    (mesh_home / "resources").mkdir()
    arguments = ["--resources-path", str(mesh_home / "resources")]
    async with App() as app, aiohttp.ClientSession() as session, RedisServer(tmp_path / "redis") as redis:
        (mesh_home / "resources" / "conf.yaml").write_text(OF_REDIS % redis.port)
        gateway = GatewayProcess("app", mesh_home, app=app.port, backbone=nats_server.url, arguments=arguments)

        async def asked(path: str) -> Any:
            async with session.get(f"{gateway.api}/configuration/conf/{path}") as response:
                return response.status, await response.json()

        def told(key: str) -> list[Any]:
            """Give what was told, each once: what a gateway has told just before it is killed may come again."""
            return [each for each, _ in groupby(got.json["items"][key] for got in app.at(f"/configuration/conf/{key}"))]

        async def until_told(key: str, *expected: object) -> None:
            def check() -> None:
                assert told(key) == list(expected)

            await eventually(check, 40.0)

        async def change(key: str, value: str | None) -> None:
            async with Redis.from_url(redis.url) as store:
                await (store.delete(key) if value is None else store.set(key, value))

        for key in "abc":
            await change(key, "first")
        async with gateway:
            made = [(await asked(f"subscribe?key={key}"))[1]["id"] for key in "abc"]
            expected = []
            for number in ("1", "2"):
                await change("a", f"it runs||{number}")
                await until_told("a", *expected, {"value": "it runs", "version": number})
                await gateway.kill()
                await change("a", f"it was away||{number}")
                await gateway.start()
                expected += [{"value": value, "version": number} for value in ("it runs", "it was away")]
                await until_told("a", *expected)
            await gateway.kill()
            await change("b", None)
            await redis.kill()
            await gateway.start(ready=False)
            await redis.start()
            await gateway.until_ready()
            await until_told("b", {})
            await until_told("a", *expected)
            assert not app.at("/configuration/conf/c")
            assert {got.json["id"] for key in "ab" for got in app.at(f"/configuration/conf/{key}")} == set(made[:2])
            for subscription in made:
                assert await asked(f"{subscription}/unsubscribe") == (200, {"ok": True})
        assert list((mesh_home / "subscriptions").iterdir()) == []


def _value(event: Any) -> str:
    value: str = event["items"]["a"]["value"]
    return value
