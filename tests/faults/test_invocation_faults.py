"""Calls while callees, callers and the backbone come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from mesh.calls.exchange import PING_INTERVAL, SILENCE_LIMIT
from tests.faults.conftest import Figures
from tests.support.eventually import eventually
from tests.support.load import Calling
from tests.support.mesh import AppProcess, GatewayProcess, kill_embedded_server
from tests.support.nats import NatsServer

RATE = 200.0
CALLS = 1_600
PATIENT = {"mesh-timeout": "90s"}  # A gateway may take long to start on a busy machine.


def failed(calling: Calling) -> str:
    return f"{len(calling.failures)} of {calling.made} calls failed: {calling.failures[:3]}"


async def calls_made(calling: Calling, count: int, within: float = 60.0) -> None:
    def check() -> None:
        assert calling.made >= count, failed(calling)

    await eventually(check, within)


async def answered_by(calling: Calling, instances: int, within: float = 60.0) -> None:
    def check() -> None:
        assert len(calling.answered) == instances, failed(calling)

    await eventually(check, within)


def note(figures: Figures, calling: Calling) -> None:
    figures.note(
        calls=calling.made,
        failed=len(calling.failures),
        by_instance=sorted(calling.answered.values(), reverse=True),
        slowest_seconds=round(calling.slowest, 2),
    )


# Restarts


async def test_a_rolling_restart_of_the_only_instance_fails_no_call(mesh_home: Path, figures: Figures) -> None:
    """Gateway and application are stopped and started again under load, twice: calls wait for them."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=app) as callee,
    ):
        calling = Calling(caller, "callee", RATE)
        async with calling.running():
            for count in (400, 1_000):
                await calls_made(calling, count)
                assert await callee.terminate() == 0
                await app.terminate()
                await app.start()
                await callee.start()
            await calls_made(calling, CALLS)
        note(figures, calling)
        assert not calling.failures, failed(calling)
        assert len(calling.answered) == 3


async def test_a_rolling_restart_of_two_instances_fails_no_call(mesh_home: Path, figures: Figures) -> None:
    """One after the other is replaced; the other takes the calls meanwhile."""
    async with (
        AppProcess(mesh_home) as first_app,
        AppProcess(mesh_home) as second_app,
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=first_app) as first,
        GatewayProcess("callee", mesh_home, app=second_app) as second,
    ):
        calling = Calling(caller, "callee", RATE)
        async with calling.running():
            for number, (app, gateway) in enumerate([(first_app, first), (second_app, second)]):
                await calls_made(calling, 400 + 500 * number)
                assert await gateway.terminate() == 0
                await app.terminate()
                await app.start()
                await gateway.start()
            await answered_by(calling, 4)
            await calls_made(calling, CALLS)
        note(figures, calling)
        assert not calling.failures, failed(calling)


async def test_a_callers_restart_knows_whom_to_wait_for(mesh_home: Path) -> None:
    """A caller that starts while its callee restarts has heard of it from others, and waits."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("bystander", mesh_home),
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=app) as callee,
    ):
        assert await callee.terminate() == 0
        await caller.terminate()
        await caller.start()
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(call(caller, "callee/method/echo", **PATIENT))
            await callee.start()
        assert (await answer)[0] == 200


async def test_an_application_that_restarts_under_its_gateway_is_waited_for(mesh_home: Path, figures: Figures) -> None:
    """Killed under load, it may fail what it was working on, and nothing else."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=app),
    ):
        calling = Calling(caller, "callee", RATE)
        connections = 0
        async with calling.running():
            for instances in (1, 2):
                await answered_by(calling, instances)
                await calls_made(calling, calling.made + 200)
                await app.kill()
                connections += calling.peak
                await calls_made(calling, calling.made + 100)
                await app.start()
            await answered_by(calling, 3)
        note(figures, calling)
        # At the moment of the kill some calls were with the application, each on a connection of its own; whether these
        # ran is unknown. Whoever notices first, the call or the gateway, says so in its own words.
        known = ("broke off", "the request was not answered")
        assert all(any(words in failure for words in known) for failure in calling.failures), failed(calling)
        assert len(calling.failures) <= connections, failed(calling)


async def test_an_application_never_seen_fails_at_once(mesh_home: Path) -> None:
    """There is nothing to wait for."""
    async with GatewayProcess("caller", mesh_home) as caller:
        started = time.monotonic()
        status, text = await call(caller, "nobody/method/echo")
        assert status == 500
        assert "ERR_DIRECT_INVOKE" in text
        assert time.monotonic() - started < 10.0


async def test_a_killed_callee_is_waited_for(mesh_home: Path) -> None:
    """A gateway killed with SIGKILL and restarted: calls made meanwhile are answered."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=app) as callee,
    ):
        assert (await call(caller, "callee/method/echo"))[0] == 200
        await callee.kill()
        async with asyncio.TaskGroup() as tasks:
            answers = [
                tasks.create_task(call(caller, f"callee/method/echo?id={number}", **PATIENT)) for number in range(50)
            ]
            await callee.start()
        assert {(await answer)[0] for answer in answers} == {200}
        assert sorted(app.recorded("call")) == sorted(str(number) for number in range(50))


_POLICIES = """\
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata: {{name: r}}
spec:
  policies:
    timeouts: {{t: 60s}}
    retries: {{r: {{policy: constant, duration: 100ms, maxRetries: -1}}, none: {{maxRetries: 0}}}}
    circuitBreakers: {{c: {{maxRequests: 1, timeout: 600s, trip: consecutiveFailures >= 5}}}}
  targets: {{apps: {{callee: {{{policies}}}}}}}
"""


@pytest.mark.parametrize(
    ("policies", "calls", "said"),
    [
        ("retry: r, circuitBreaker: c, timeout: t", 1, "circuit breaker is open"),
        ("circuitBreaker: c", 6, "circuit breaker is open"),
        ("retry: none, timeout: t", 1, "callee is away"),
    ],
)
@pytest.mark.parametrize("kill", [True, False])
async def test_a_policy_decides_about_an_application_that_is_away(
    mesh_home: Path, policies: str, calls: int, said: str, kill: bool
) -> None:
    """Each attempt fails soon, so that a breaker opens after as many as it counts, with its gateway and without."""
    files = mesh_home / "resources"
    files.mkdir(parents=True)
    (files / "r.yaml").write_text(_POLICIES.format(policies=policies))
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home, arguments=["--resources-path", str(files)]) as caller,
        GatewayProcess("callee", mesh_home, app=app) as callee,
    ):
        assert (await call(caller, "callee/method/echo"))[0] == 200
        await app.kill()
        if kill:
            await callee.kill()
        started = time.monotonic()
        answers = [await call(caller, "callee/method/echo") for _ in range(calls)]
        assert time.monotonic() - started < 50.0, "an attempt has 60 seconds"
        assert (answers[-1][0], said in answers[-1][1]) == (500, True), answers[-1]


async def test_a_timeout_alone_bounds_how_long_a_call_waits(mesh_home: Path) -> None:
    """It says nothing of what follows a failure."""
    files = mesh_home / "resources"
    files.mkdir(parents=True)
    (files / "r.yaml").write_text(_POLICIES.format(policies="timeout: t"))
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home, arguments=["--resources-path", str(files)]) as caller,
        GatewayProcess("callee", mesh_home, app=app) as callee,
    ):
        assert (await call(caller, "callee/method/echo"))[0] == 200
        await callee.kill()
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(call(caller, "callee/method/echo"))
            await callee.start()
        assert (await answer)[0] == 200


# Streams


@pytest.mark.slow
async def test_a_stream_whose_callee_is_killed_breaks_visibly(mesh_home: Path, figures: Figures) -> None:
    """The body does not end as if it were complete, and does not hang for longer than the silence limit."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=app) as callee,
        streaming(caller, "callee/method/calls/stream") as response,
    ):
        await tick(app)
        assert await response.content.readline() == b"tick\n"
        await callee.kill()
        killed = time.monotonic()
        with pytest.raises(aiohttp.ClientError):
            async with asyncio.timeout(SILENCE_LIMIT + 2 * PING_INTERVAL + 5.0):
                await response.content.read()
        figures.note(seconds_until_broken=round(time.monotonic() - killed, 1))
        await recorded(app, "cancelled", ["stream"])


async def test_a_caller_that_is_killed_stops_the_callees_work(mesh_home: Path, figures: Figures) -> None:
    """Streams end, for nobody reads them, within the silence limit."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=app),
        streaming(caller, "callee/method/calls/flow"),
    ):
        await recorded(app, "begin", ["flow"])
        await caller.kill()
        killed = time.monotonic()
        await recorded(app, "cancelled", ["flow"], within=SILENCE_LIMIT + 2 * PING_INTERVAL + 5.0)
        figures.note(seconds_until_cancelled=round(time.monotonic() - killed, 1))


async def test_a_client_that_leaves_stops_the_callees_work(mesh_home: Path) -> None:
    """The same at once when only the client of the caller's gateway goes."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home) as caller,
        GatewayProcess("callee", mesh_home, app=app),
    ):
        async with streaming(caller, "callee/method/calls/flow"):
            await recorded(app, "begin", ["flow"])
        await recorded(app, "cancelled", ["flow"], within=40.0)


# The backbone


@pytest.mark.parametrize("kind", ["embedded", "external"])
async def test_calls_after_a_restart_of_the_server(
    mesh_home: Path, nats_server: NatsServer, figures: Figures, kind: str
) -> None:
    """Killed under load, twice: calls are answered or fail by their deadline, and later ones work."""
    backbone = nats_server.url if kind == "external" else None
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home, backbone=backbone, arguments=()) as caller,
        GatewayProcess("callee", mesh_home, app=app, backbone=backbone),
    ):
        calling = Calling(caller, "callee", RATE, timeout_seconds=5.0)
        async with calling.running():
            for count in (200, 500):
                await calls_made(calling, count)
                await (nats_server.restart(kill=True) if backbone else kill_embedded_server(mesh_home))
            await calls_made(calling, 800)
        note(figures, calling)
        assert all(failure.startswith("500 ") for failure in calling.failures), failed(calling)

        async def works() -> None:
            assert (await call(caller, "callee/method/echo"))[0] == 200

        await eventually(works, 40.0)


# Helpers


async def call(gateway: GatewayProcess, what: str, **headers: str) -> tuple[int, str]:
    url = f"{gateway.api}/invoke/{what}"
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


async def tick(app: AppProcess) -> None:
    async with aiohttp.ClientSession() as session, session.post(f"{app.url}/tick") as response:
        assert response.status == 200


@asynccontextmanager
async def streaming(gateway: GatewayProcess, what: str) -> AsyncIterator[aiohttp.ClientResponse]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"{gateway.api}/invoke/{what}") as response,
    ):
        assert response.status == 200
        yield response


async def recorded(app: AppProcess, kind: str, ids: list[str], within: float = 40.0) -> None:
    def check() -> None:
        assert app.recorded(kind) == ids

    await eventually(check, within)
