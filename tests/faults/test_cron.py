"""Hosts of a schedule are killed: each tick comes, and once, but for what was on its way in the one that was killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path

import pytest

from tests.http.harness import App, Backbone, component, gateway
from tests.support.eventually import eventually
from tests.support.host_process import host_process
from tests.support.nats import NatsServer, find_nats_server

pytestmark = pytest.mark.skipif(find_nats_server() is None, reason="nats-server is not installed")


def host(directory: Path, backbone: Backbone, app_id: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run one with the schedule."""
    resources = component("tick", "bindings.cron", schedule="@every 1s")
    return host_process(directory, backbone.url, backbone.namespace, resources, app_id)


def ticks(app: App) -> list[int]:
    """Give the ticks that came, in Unix time."""
    given = [got.headers["readtimeutc"] for got in app.at("/tick") if got.method == "POST"]
    return [int(datetime.strptime(each, "%Y-%m-%d %H:%M:%S %z UTC").timestamp()) for each in given]


async def until(app: App, tick: int) -> None:
    """Wait until every tick from the first to this one has come."""

    def check() -> None:
        got = ticks(app)
        assert got
        assert set(got) >= set(range(min(got), tick + 1)), got[-20:]

    await eventually(check, within=90.0)


async def test_a_host_of_two_is_killed(tmp_path: Path) -> None:
    """Each of them in turn, while the other one goes on; then it is there again."""
    async with NatsServer(tmp_path / "nats") as server, App() as app:
        backbone, kills = Backbone(server.url), 0
        async with (
            gateway(backbone, tmp_path, app=app, resources=component("pubsub", "pubsub.mesh")),
            host(tmp_path / "stays", backbone, "stays"),
        ):
            await app.until("/tick", 4)
            for number in range(2):
                async with host(tmp_path / f"killed{number}", backbone, f"killed{number}") as killed:
                    await until(app, max(ticks(app)) + 3)
                    killed.kill()
                    kills += 1
                    await killed.wait()
                await until(app, max(ticks(app)) + 3)
        again = sum(count - 1 for count in Counter(ticks(app)).values())
        assert again <= kills


async def test_the_only_host_is_killed(tmp_path: Path) -> None:
    """Another one goes on with the ticks from then; what came is not repeated."""
    async with NatsServer(tmp_path / "nats") as server, App() as app:
        backbone = Backbone(server.url)
        async with gateway(backbone, tmp_path, app=app, resources=component("pubsub", "pubsub.mesh")):
            async with host(tmp_path / "first", backbone, "first") as first:
                await app.until("/tick", 4)
                first.kill()
                await first.wait()
            count = len(ticks(app))
            async with host(tmp_path / "second", backbone, "second"):
                await app.until("/tick", len(app.at("/tick")) + 3)
        assert len(ticks(app)) > count
        assert sum(each - 1 for each in Counter(ticks(app)).values()) <= 1
