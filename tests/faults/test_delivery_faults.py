"""Events while processes die: what was answered 204 is delivered, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.faults.conftest import Figures, everything_arrives, portion
from tests.support.eventually import eventually
from tests.support.load import Publishing
from tests.support.mesh import AppProcess, GatewayProcess, kill_embedded_server, running_below

EVENTS = portion(10_000)
KILL_AT = (portion(3_000), portion(6_500))
ORDERS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders"}]
WITH_DEAD_LETTERS = [
    {**ORDERS[0], "deadLetterTopic": "dead"},
    {"pubsubname": "pubsub", "topic": "dead", "route": "/events/dead"},
]


@dataclass(frozen=True)
class Death:
    """A fault, and whose it is; None = the server's."""

    fault: str
    victim: str | None


DEATHS = (
    Death(fault="the subscriber's gateway is killed", victim="subscriber"),
    Death(fault="the publisher's gateway is killed", victim="publisher"),
    Death(fault="the broker is killed", victim=None),
)


@pytest.mark.parametrize("death", DEATHS, ids=[death.victim or "server" for death in DEATHS])
async def test_who_is_killed_twice_loses_nothing(mesh_home: Path, figures: Figures, death: Death) -> None:
    """Killed under load, it comes back: what was confirmed is delivered. Publishers wait for the server."""
    async with (
        AppProcess(mesh_home, subscriptions=ORDERS) as app,
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess("subscriber", mesh_home, app=app) as subscriber,
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, "orders", EVENTS)
        work = tasks.create_task(publishing.run())
        for count in KILL_AT:
            await publishing.until(count)
            if death.victim is None:  # Its supervisor starts it again.
                await kill_embedded_server(mesh_home)
            else:
                gateway = publisher if death.victim == "publisher" else subscriber
                await gateway.kill()
                await gateway.start()
        await work
        await everything_arrives(publishing, app, figures, fault=death.fault)
        assert death.victim == "publisher" or publishing.failed == set()


async def publish(gateway: GatewayProcess, topic: str, *events: Mapping[str, object], query: str = "") -> None:
    """Publish each in turn; all must be confirmed."""
    async with aiohttp.ClientSession() as session:
        for event in events:
            async with session.post(f"{gateway.api}/publish/pubsub/{topic}{query}", json=event) as response:
                assert response.status == 204, await response.text()


async def recorded(app: AppProcess, kind: str, ids: Iterable[str], within: float = 40.0) -> None:
    """Wait until all of these, and only these, are recorded."""
    wanted = set(ids)

    def check() -> None:
        assert set(app.recorded(kind)) == wanted

    await eventually(check, within)


# The application


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_an_application_that_is_away_loses_and_dead_letters_nothing(
    mesh_home: Path, figures: Figures, protocol: str
) -> None:
    """Killed and restarted under its living gateway, it gets every event; none is blamed for that."""
    name, ready = ("recorder", "/ready") if protocol == "http" else ("grpc_recorder", "")
    told = ("--app-protocol", protocol)
    async with (
        AppProcess(mesh_home, name, subscriptions=WITH_DEAD_LETTERS, ready_path=ready) as app,
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess("subscriber", mesh_home, app=app, arguments=told) as subscriber,
        asyncio.TaskGroup() as tasks,
    ):
        publishing = Publishing(publisher, "orders", 3_000)
        work = tasks.create_task(publishing.run())
        for count in (800, 1_600):
            await publishing.until(count)
            await app.kill()
            await publishing.until(count + 400)
            await app.start()
        await work
        await everything_arrives(publishing, app, figures)
        assert publishing.failed == set()
        await subscriber.until_ready()
        assert app.recorded("dead") == []


async def test_an_event_that_crashes_its_application(mesh_home: Path) -> None:
    """One that crashes it once is tried again, one that always does is dead-lettered; those beside are not blamed."""
    async with (
        AppProcess(mesh_home, subscriptions=WITH_DEAD_LETTERS) as app,
        GatewayProcess("subscriber", mesh_home, app=app) as subscriber,
    ):
        await publish(subscriber, "orders", {"id": "beside", "hold": True})
        await eventually(lambda: _assert_equal(app.recorded("begin"), ["beside"]))
        await publish(subscriber, "orders", {"id": "once", "crash": 1})
        assert await app.wait() == 1
        await app.start()
        await recorded(app, "orders", ["once"])
        await eventually(lambda: _assert_equal(app.recorded("begin"), ["beside", "beside"]), 40.0)
        await app.release()
        await recorded(app, "orders", ["once", "beside"])
        assert app.recorded("dead") == []
        await publish(subscriber, "orders", {"id": "poison", "crash": 5})
        for _ in range(5):
            assert await app.wait() == 1
            await app.start(ready=False)  # The next attempt may end it before it is asked.
        await recorded(app, "dead", ["poison"])


# The subscriber's absence


async def test_events_wait_for_their_subscriber(mesh_home: Path) -> None:
    """One that starts after the publisher, and later is away for a while, gets all that was stored; once."""
    async with GatewayProcess("publisher", mesh_home) as publisher:
        app = AppProcess(mesh_home, subscriptions=ORDERS)
        before, away = (Publishing(publisher, "orders", 500, name=name) for name in ("before", "away"))
        await before.run()
        async with app, GatewayProcess("subscriber", mesh_home, app=app):
            await recorded(app, "orders", before.confirmed)
        await away.run()
        async with app, GatewayProcess("subscriber", mesh_home, app=app):
            await recorded(app, "orders", before.confirmed | away.confirmed)
        assert len(app.recorded("orders")) == len(before.confirmed | away.confirmed)


async def test_two_applications_get_everything_each(mesh_home: Path) -> None:
    """Instances of one application compete; another application has events of its own."""
    async with (
        AppProcess(mesh_home, subscriptions=ORDERS) as first,
        AppProcess(mesh_home, subscriptions=ORDERS, records=first.records) as second,
        AppProcess(mesh_home, subscriptions=ORDERS) as other,
        GatewayProcess("shop", mesh_home, app=first) as publisher,
        GatewayProcess("shop", mesh_home, app=second),
        GatewayProcess("audit", mesh_home, app=other),
    ):
        publishing = Publishing(publisher, "orders", 1_000)
        await publishing.run()
        for app in (first, other):
            await recorded(app, "orders", publishing.confirmed)
            assert len(app.recorded("orders")) == len(publishing.confirmed)
        assert {pid for _, pid in first.recorded_by("orders")} == {first.pid, second.pid}


# Order


@pytest.mark.slow
async def test_order_by_key_survives_the_death_of_an_instance(mesh_home: Path, figures: Figures) -> None:
    """Events of one partition key are handled one after the other, over two instances, while one is killed."""
    subscriptions = [{**ORDERS[0], "metadata": {"ordered": "true"}}]
    keys, each = 12, 60
    async with (
        AppProcess(mesh_home, subscriptions=subscriptions) as first,
        AppProcess(mesh_home, subscriptions=subscriptions, records=first.records) as second,
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess("subscriber", mesh_home, app=first) as killed,
        GatewayProcess("subscriber", mesh_home, app=second),
        asyncio.TaskGroup() as tasks,
    ):

        async def publish_key(key: int) -> None:
            events = [{"id": f"{key}:{number}"} for number in range(each)]
            await publish(publisher, "orders", *events, query=f"?metadata.partitionKey=key{key}")

        for key in range(keys):
            tasks.create_task(publish_key(key))
        await eventually(lambda: _assert_at_least(len(first.recorded("orders")), keys * each // 4), 40.0)
        await killed.kill()
        await killed.start()
        await recorded(first, "orders", {f"{key}:{number}" for key in range(keys) for number in range(each)}, 45.0)
        in_order = first.recorded("orders")
        for key in range(keys):
            numbers = [int(number) for found, number in (i.split(":") for i in in_order) if int(found) == key]
            assert list(dict.fromkeys(numbers)) == list(range(each)), f"key {key}"
        assert {pid for _, pid in first.recorded_by("orders")} == {first.pid, second.pid}
        figures.note(delivered=len(set(in_order)), duplicates=len(in_order) - len(set(in_order)))


# Resources


async def test_a_full_disk_refuses_and_recovers(mesh_home: Path, figures: Figures) -> None:
    """Publishes fail with a clear error, nothing confirmed is lost, and it works again once there is space."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("needs to mount a small file system")
    disk = mesh_home / "disk"
    disk.mkdir()
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk))
    if await mount.wait() != 0:
        pytest.skip("cannot mount here")
    try:
        app = AppProcess(mesh_home, subscriptions=ORDERS)
        confirmed: list[str] = []
        async with GatewayProcess("publisher", disk) as publisher, aiohttp.ClientSession() as session:

            async def attempt(name: str) -> tuple[int, str]:
                event = {"id": f"{name}-{len(confirmed)}", "padding": "x" * 60_000}
                async with session.post(f"{publisher.api}/publish/pubsub/orders", json=event) as response:
                    if response.status == 204:
                        confirmed.append(str(event["id"]))
                    return response.status, await response.text()

            for _ in range(50):
                assert (await attempt("before"))[0] == 204
            with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as fill:
                while True:
                    fill.write(b"x" * 65536)
            for _ in range(1_000):
                status, text = await attempt("full")
                if status != 204:
                    break
            assert status == 500, "the disk is full, and everything was accepted"
            assert "ERR_PUBSUB_PUBLISH_MESSAGE" in text
            figures.note(said=json.loads(text)["message"][:160], confirmed=len(confirmed))
            (disk / "fill").unlink()

            async def works() -> None:
                status, text = await attempt("after")
                assert status == 204, text

            await eventually(works, 40.0)
            async with app, GatewayProcess("subscriber", disk, app=app):
                await eventually(lambda: _assert_equal(set(confirmed) - set(app.recorded("orders")), set()), 40.0)
        await eventually(lambda: _assert_equal(running_below(disk), []))
    finally:
        assert await (await asyncio.create_subprocess_exec("umount", "-l", str(disk))).wait() == 0


@pytest.mark.slow
async def test_memory_stays_flat(mesh_home: Path, figures: Figures) -> None:
    """After a warm-up, thousands of events and calls leave the gateways as large as they were."""
    async with (
        AppProcess(mesh_home, subscriptions=ORDERS) as app,
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=app) as callee,
    ):

        async def work(events: int, name: str) -> None:
            publishing = Publishing(caller, "orders", events, name=name)
            await publishing.run()
            await eventually(lambda: _assert_equal(publishing.confirmed - set(app.recorded("orders")), set()), 60.0)
            await invoke_many(caller, events // 4)

        await work(3_000, "warm")
        before = {gateway.app_id: rss_mebibytes(gateway) for gateway in (caller, callee)}
        await work(6_000, "more")
        after = {gateway.app_id: rss_mebibytes(gateway) for gateway in (caller, callee)}
        figures.note(before_mebibytes=before, after_mebibytes=after)
        for name, size in after.items():
            assert size <= before[name] * 1.1  # A kilobyte for each event would be more.


def rss_mebibytes(gateway: GatewayProcess) -> float:
    return round(psutil.Process(gateway.pid).memory_info().rss / 2**20, 1)


async def invoke_many(gateway: GatewayProcess, count: int) -> None:
    numbers = iter(range(count))

    async def call(session: aiohttp.ClientSession) -> None:
        for _ in numbers:
            async with session.post(f"{gateway.api}/invoke/callee/method/echo", data=b"x" * 1000) as response:
                assert response.status == 200
                await response.read()

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for _ in range(16):
            tasks.create_task(call(session))


def _assert_equal(found: object, wanted: object) -> None:
    assert found == wanted


def _assert_at_least(found: int, wanted: int) -> None:
    assert found >= wanted
