"""Jobs while what they need is away or killed: none is lost, and another gateway takes over."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.faults.conftest import Figures
from tests.http.harness import App, Got
from tests.support.eventually import eventually
from tests.support.mesh import GatewayProcess
from tests.support.redis_server import RedisServer

WITHIN = 12.0  # Of a killed owner's jobs, at another one.
TOLERANCE = 12.0  # Both processors are busy.
NOTED_WITHIN = 5.0  # That a job was done, behind its answer.
EVERY, COUNT = 0.25, 120


@pytest.fixture(params=["embedded", "redis"])
async def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str | None]:
    """The URL of a broker; None = the embedded one."""
    if request.param == "embedded":
        yield None
        return
    async with RedisServer(tmp_path / "redis") as server:
        yield server.url


class Told(App):
    """An application that notes when it is told of which job."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[str, float]] = []

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path.startswith("/job/"):
            self.times.append((request.raw_path.removeprefix("/job/"), time.time()))
        return await super()._handle(request)

    @property
    def names(self) -> Counter[str]:
        return Counter(name for name, _ in self.times)


async def schedule(gateway: GatewayProcess, name: str, **job: object) -> None:
    async with aiohttp.ClientSession() as session, session.post(f"{gateway.api}/jobs/{name}", json=job) as response:
        assert response.status == 204, await response.text()


async def names(gateway: GatewayProcess) -> set[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.api}/mesh/jobs?limit=1000") as response:
        assert response.status == 200, await response.text()
        return {each["name"] for each in (await response.json())["jobs"]}


async def test_an_application_that_is_away_is_told_when_it_comes(mesh_home: Path, backbone: str | None) -> None:
    """Also after its gateway was killed meanwhile; nobody has to ask for it. Times that passed are one."""
    app = Told()
    await app.start()
    port = app.port
    await app.stop()
    gateway = GatewayProcess("shop", mesh_home, app=port, backbone=backbone)
    await gateway.start(ready=False)
    try:
        await gateway.until_outbound_ready()
        await schedule(gateway, "once", dueTime="0s")
        await schedule(gateway, "often", schedule="@every 1s", dueTime="0s")
        await gateway.kill()
        await gateway.start(ready=False)
        await gateway.until_outbound_ready()
        assert await names(gateway) == {"once", "often"}
        async with app:  # Partitions are free once the session of the killed one is over.
            await app.until("/job/once", within=60.0)
            await app.until("/job/often", 2, within=60.0)

            async def done() -> None:
                assert await names(gateway) == {"often"}

            await eventually(done)
        assert app.names["once"] == 1
    except BaseException:
        gateway.show_log()
        raise
    finally:
        await gateway.terminate()
        await gateway.kill()


async def test_instances_share_jobs_and_one_is_killed(mesh_home: Path, backbone: str | None, figures: Figures) -> None:
    """Each instance gets some. What the killed one owned comes to the other one, late by what is promised at most."""
    due: dict[str, float] = {}
    async with (
        Told() as first,
        Told() as second,
        GatewayProcess("shop", mesh_home, app=first.port, backbone=backbone) as stays,
    ):
        killed = GatewayProcess("shop", mesh_home, app=second.port, backbone=backbone)
        async with killed:
            for number in range(16):
                await schedule(stays, f"shared-{number}", dueTime="0s")

            async def shared() -> None:
                """Partitions of one who comes move to it one by one."""
                await schedule(stays, f"shared-{len(first.times) + len(second.times)}", dueTime="0s", overwrite=True)
                assert first.names
                assert second.names

            await eventually(shared)
            begun = time.time() + 2
            for number in range(COUNT):
                due[f"spread-{number}"] = at = begun + number * EVERY
                await schedule(stays, f"spread-{number}", dueTime=f"{max(0.0, at - time.time()):.3f}s")

            def some_came() -> None:
                assert sum(name.startswith("spread") for name, _ in second.times) >= 5

            await eventually(some_came)
            killed_at = time.time()
            await killed.kill()

        def all_came() -> None:
            missing = due.keys() - (first.names + second.names).keys()
            assert not missing, sorted(missing)

        await eventually(all_came, within=120.0)
        counted = first.names + second.names
        late = max(at - max(due[name], killed_at) for name, at in first.times if name in due)
        again = sum(counted[name] - 1 for name in due)
        figures.note(jobs=len(due), again=again, late_by=round(late, 1))
        assert again <= 1 + len([name for name, at in second.times if at > killed_at - NOTED_WITHIN])
        assert late < WITHIN + TOLERANCE

        async def done() -> None:
            assert not await names(stays) & due.keys()

        await eventually(done)


async def test_a_gateway_without_its_application_leaves_jobs_to_others(mesh_home: Path, backbone: str | None) -> None:
    """It keeps what it is given, and hands it over to one that has the application, which may be idle until then."""
    async with (
        Told() as app,
        GatewayProcess("shop", mesh_home, app=app.port, backbone=backbone) as has,
        GatewayProcess("shop", mesh_home, backbone=backbone) as alone,
    ):
        await alone.until_outbound_ready()
        for number in range(20):
            await schedule(alone, f"job-{number}", dueTime="0s")

        def all_came() -> None:
            assert len(app.names) == 20

        await eventually(all_came)

        async def done() -> None:
            assert await names(has) == await names(alone) == set()

        await eventually(done)
        assert set(app.names.values()) == {1}


async def test_one_that_ends_hands_over(mesh_home: Path, backbone: str | None) -> None:
    """Nothing waits for a session to end."""
    async with (
        Told() as first,
        Told() as second,
        GatewayProcess("shop", mesh_home, app=first.port, backbone=backbone) as stays,
    ):
        async with GatewayProcess("shop", mesh_home, app=second.port, backbone=backbone) as ends:
            for number in range(40):
                await schedule(ends, f"job-{number}", dueTime=f"{2 + number * 0.1:.1f}s")

        def all_came() -> None:
            assert len(first.names + second.names) == 40

        await eventually(all_came)
        assert set((first.names + second.names).values()) == {1}

        async def done() -> None:
            assert not await names(stays)

        await eventually(done)


async def test_an_application_takes_its_time_while_its_gateway_ends(mesh_home: Path) -> None:
    """What it has been told of is done before the gateway has gone, so that it does not come again."""
    app, told, go = Told(), asyncio.Event(), asyncio.Event()

    async def slow(got: Got, request: web.BaseRequest) -> web.Response:
        told.set()
        await go.wait()
        return web.Response()

    app.answers["/job/slow"] = slow
    async with app:
        async with GatewayProcess("shop", mesh_home, app=app.port) as gateway:
            await schedule(gateway, "slow", dueTime="0s")
            async with asyncio.timeout(60):
                await told.wait()
            gateway.signal(signal.SIGTERM)
            await gateway.until_draining()
            go.set()
            assert await gateway.wait() == 0
        async with GatewayProcess("shop", mesh_home, app=app.port) as gateway:
            assert not await names(gateway)
    assert app.names["slow"] == 1
