"""Events while processes die: what was answered 204 is delivered, whoever is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import Figures
from tests.support.eventually import eventually
from tests.support.load import Publishing
from tests.support.mesh import AppProcess, GatewayProcess, kill_embedded_server
from tests.support.nats import NatsServer

pytestmark = pytest.mark.timeout(120)

EVENTS = 10_000
KILL_AT = (3_000, 6_500)
ORDERS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders"}]


async def everything_arrives(publishing: Publishing, app: AppProcess, figures: Figures, within: float = 45.0) -> None:
    """Wait until each confirmed event is recorded; note duplicates."""

    def check() -> None:
        missing = publishing.confirmed - set(app.recorded())
        assert not missing, f"{len(missing)} confirmed events are missing: {sorted(missing)[:5]}"

    await eventually(check, within)
    recorded = app.recorded()
    counted = Counter(recorded)
    unexpected = set(counted) - publishing.confirmed - publishing.failed
    assert not unexpected
    figures.note(
        confirmed=len(publishing.confirmed),
        unconfirmed=len(publishing.failed),
        delivered=len(counted),
        duplicates=len(recorded) - len(counted),
    )


async def test_the_subscribers_gateway_is_killed_twice(mesh_home: Path, figures: Figures) -> None:
    """Killed under load, it comes back, and every confirmed event is delivered."""
    async with (
        AppProcess(mesh_home, subscriptions=ORDERS) as app,
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess("subscriber", mesh_home, app=app) as subscriber,
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, "orders", EVENTS)
        tasks.create_task(publishing.run())
        for count in KILL_AT:
            await publishing.until(count)
            await subscriber.kill()
            await subscriber.start()
        await everything_arrives(publishing, app, figures)


async def test_the_publishers_gateway_is_killed_twice(mesh_home: Path, figures: Figures) -> None:
    """What it confirmed before it died is stored."""
    async with (
        AppProcess(mesh_home, subscriptions=ORDERS) as app,
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess("subscriber", mesh_home, app=app),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, "orders", EVENTS)
        work = tasks.create_task(publishing.run())
        for count in KILL_AT:
            await publishing.until(count)
            await publisher.kill()
            await publisher.start()
        await work
        await everything_arrives(publishing, app, figures)


async def test_the_embedded_server_is_killed_twice(mesh_home: Path, figures: Figures) -> None:
    """Its supervisor starts it again; publishers wait for that rather than fail."""
    async with (
        AppProcess(mesh_home, subscriptions=ORDERS) as app,
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess("subscriber", mesh_home, app=app),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, "orders", EVENTS)
        work = tasks.create_task(publishing.run())
        for count in KILL_AT:
            await publishing.until(count)
            await kill_embedded_server(mesh_home)
        await work
        await everything_arrives(publishing, app, figures)
        assert publishing.failed == set()


async def test_an_external_server_is_killed_twice(mesh_home: Path, nats_server: NatsServer, figures: Figures) -> None:
    """The same with a server that somebody else runs and restarts."""
    async with (
        AppProcess(mesh_home, subscriptions=ORDERS) as app,
        GatewayProcess("publisher", mesh_home, backbone=nats_server.url) as publisher,
        GatewayProcess("subscriber", mesh_home, app=app, backbone=nats_server.url),
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, "orders", EVENTS)
        work = tasks.create_task(publishing.run())
        for count in KILL_AT:
            await publishing.until(count)
            await nats_server.restart(kill=True)
        await work
        await everything_arrives(publishing, app, figures)
        assert publishing.failed == set()
