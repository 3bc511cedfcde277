"""Hosts of a schedule are killed: each tick comes, and once, but for what was on its way in the one that was killed."""

from __future__ import annotations

import asyncio
import time
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


async def test_hosts_are_killed(tmp_path: Path) -> None:
    """The owner is among them; the next host makes up for its ticks."""
    async with NatsServer(tmp_path / "nats") as server, App() as app:
        backbone = Backbone(server.url)
        async with gateway(backbone, tmp_path, app=app, resources=component("pubsub", "pubsub.mesh")):
            async with (
                host(tmp_path / "first", backbone, "first") as first,
                host(tmp_path / "second", backbone, "second") as second,
            ):
                await until(app, int(time.time()) + 2)
                for killed in (first, second):
                    killed.kill()
            async with host(tmp_path / "third", backbone, "third"):
                await until(app, int(time.time()) + 1)
        again = sum(count - 1 for count in Counter(ticks(app)).values())
        assert again <= 2
