"""The port for whoever starts and ends a gateway: its health, and that it drains while the application still works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.config import HealthCheck
from gateway.http.public import ALIVE, DRAIN, DRAIN_KEY_HEADER
from tests.http.harness import App, Backbone, Node, gateway
from tests.http.test_lifecycle import SUBSCRIBED, Held
from tests.support.processes import free_port

KEY = {DRAIN_KEY_HEADER: "known"}


@asynccontextmanager
async def _asking(port: int) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


async def _status(session: aiohttp.ClientSession, path: str, **headers: str) -> int:
    async with session.get(path, headers=headers) as response:
        return response.status


async def test_it_answers_for_health_alone(backbone: Backbone, tmp_path: Path) -> None:
    port = free_port()
    async with App([]) as app, gateway(backbone, tmp_path, app=app, public_port=port), _asking(port) as session:
        for path in ("/v1.0/healthz", "/v1.0/healthz/outbound", ALIVE):
            assert await _status(session, path) == 204
        assert await _status(session, "/v1.0/metadata") == 404
        async with session.post("/v1.0/shutdown") as response:
            assert response.status == 405
        assert await _status(session, DRAIN) == 401  # Without a key nobody may.
        assert await _status(session, "/v1.0/healthz") == 204


async def test_a_gateway_that_drains_serves_its_application_to_the_end(backbone: Backbone, tmp_path: Path) -> None:
    """What is in flight finishes, nothing more is taken, and what the application calls works until the end."""
    port = free_port()
    async with App(SUBSCRIBED) as app:
        held = Held()
        app.answers["/t"] = held
        stack = gateway(backbone, tmp_path, app=app, public_port=port, drain_key="known")
        node = await stack.__aenter__()
        async with _asking(port) as session, asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(_run(node, stack))
            await node.publish("t", "first")
            await held.begun.wait()
            assert await _status(session, DRAIN, **{DRAIN_KEY_HEADER: "guessed"}) == 401
            draining = tasks.create_task(_status(session, DRAIN, **KEY))
            await node.gateway.draining.wait()
            assert await _status(session, "/v1.0/healthz") == 500
            assert await _status(session, ALIVE) == 204
            assert not draining.done()
            held.go.set()
            assert await draining == 204
            assert await _status(session, DRAIN, **KEY) == 204  # Again, it is told the same.
            await node.publish("t", "second")
            assert (await node.get("/v1.0/healthz/outbound")).status == 204
            assert await _status(session, "/v1.0/healthz") == 500
            assert held.bodies and not any(b"second" in body for body in held.bodies)
            assert not ended.done()
            node.gateway.shut_down()


async def _run(node: Node, stack: object) -> None:
    """Do what the process does: leave ``running`` once it is to end."""
    await node.gateway.until_ending()
    await stack.__aexit__(None, None, None)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["time", "health"])
async def test_the_end_is_put_off(backbone: Backbone, tmp_path: Path, how: str) -> None:
    """As ``--dapr-block-shutdown-duration`` says: for so long, or until the application is unhealthy."""
    health = HealthCheck(path="/hz", interval=0.03, timeout=2.0, threshold=1) if how == "health" else None
    async with App([]) as app:
        app.answer("/hz")
        stack = gateway(backbone, tmp_path, app=app, app_health=health)
        node = await stack.__aenter__()
        async with asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(_run(node, stack))
            node.gateway.drain(0.2 if how == "time" else 600.0)
            await node.gateway.drained.wait()
            assert not node.gateway.stopping.is_set()
            assert (await node.get("/v1.0/healthz/outbound")).status == 204
            app.answer("/hz", status=500)
            await ended
            assert node.gateway.stopping.is_set()
