"""SIGTERM at every moment: what is in flight finishes, the rest goes to others, and nothing is left running."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import psutil
import pytest

from brokers.embedded_server import read_status
from mesh.tasks import task_group
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess, running_below

ORDERS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders"}]
LONG = ["--dapr-graceful-shutdown-seconds", "60"]


# What is in flight


async def test_deliveries_in_flight_finish_and_are_acknowledged(mesh_home: Path) -> None:
    """The gateway waits for them, and nobody sees them again."""
    app = AppProcess(mesh_home, subscriptions=ORDERS)
    held = [str(number) for number in range(5)]
    async with app, GatewayProcess("publisher", mesh_home) as publisher:
        async with GatewayProcess("subscriber", mesh_home, app=app, arguments=LONG) as leaving:
            for number in held:
                await publish(publisher, {"id": number, "hold": True})
            await recorded(app, "begin", held)
            leaving.signal(signal.SIGTERM)
            await leaving.until_draining()
            await app.release()
            assert await leaving.wait() == 0
        assert sorted(app.recorded("orders")) == held
        async with GatewayProcess("subscriber", mesh_home, app=app):
            await publish(publisher, {"id": "last"})
            await recorded(app, "orders", [*held, "last"])
        assert len(app.recorded("orders")) == 6
        assert len(app.recorded("begin")) == 5


async def test_nothing_new_is_fetched_while_anything_is_in_flight(mesh_home: Path) -> None:
    """Whatever it waits for, a delivery or a call, new events of every topic go to the other instance."""
    subscriptions = [{**ORDERS[0], "topic": topic} for topic in ("orders", "held")]
    async with (
        AppProcess(mesh_home, subscriptions=subscriptions) as busy,
        AppProcess(mesh_home, subscriptions=subscriptions) as idle,
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess("subscriber", mesh_home, app=busy, arguments=LONG) as leaving,
        invoking(publisher, "subscriber/method/calls/hold?id=call") as answer,
    ):
        await publish(publisher, {"id": "event", "hold": True}, topic="held")
        await recorded(busy, "begin", ["event", "call"])
        async with GatewayProcess("subscriber", mesh_home, app=idle):
            leaving.signal(signal.SIGTERM)
            await leaving.until_draining()
            numbers = iter(range(10_000))

            async def all_go_to_the_other() -> None:
                batch = [f"new{next(numbers)}" for _ in range(20)]
                for identity in batch:
                    await publish(publisher, {"id": identity})

                def all_arrived() -> None:
                    assert set(batch) <= {*busy.recorded("orders"), *idle.recorded("orders")}

                await eventually(all_arrived, 40.0)
                assert set(batch) <= set(idle.recorded("orders"))

            await eventually(all_go_to_the_other, 40.0)
        assert not answer.done()
        assert not leaving.ended
        await busy.release()
        assert await answer == 200
        assert await leaving.wait() == 0
        assert "event" in busy.recorded("orders")


async def test_an_application_can_call_out_while_it_drains(mesh_home: Path) -> None:
    """A delivery that finishes during the drain publishes and invokes through the gateway that is going down."""
    number = GatewayProcess("unused", mesh_home).port
    app = AppProcess(mesh_home, subscriptions=ORDERS, gateway_port=number)
    out = AppProcess(mesh_home, subscriptions=[{"pubsubname": "pubsub", "topic": "out", "route": "/events/out"}])
    async with (
        app,
        out,
        GatewayProcess("other", mesh_home, app=out),
        GatewayProcess("subscriber", mesh_home, app=app, http_port=number, arguments=LONG) as leaving,
    ):
        await publish(leaving, {"id": 1, "hold": True, "publish": "out", "call": "other"})
        await recorded(app, "begin", ["1"])
        leaving.signal(signal.SIGTERM)
        await leaving.until_draining()
        await app.release()
        assert await leaving.wait() == 0
        assert app.recorded("published") == app.recorded("called") == app.recorded("orders") == ["1"]
        await recorded(out, "out", ["1-out"])


async def test_what_does_not_finish_in_time_reaches_another_instance_at_once(mesh_home: Path) -> None:
    """After the grace period a delivery is released, well before the broker's own patience ends."""
    first = AppProcess(mesh_home, subscriptions=ORDERS)
    async with (
        first,
        AppProcess(mesh_home, subscriptions=ORDERS) as second,
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess(
            "subscriber", mesh_home, app=first, arguments=["--dapr-graceful-shutdown-seconds", "1"]
        ) as leaving,
    ):
        for number in range(20):
            await publish(publisher, {"id": number, "hold": True})
        await recorded(first, "begin", [str(number) for number in range(20)])
        async with GatewayProcess("subscriber", mesh_home, app=second):
            assert await leaving.terminate() == 0
            ended = time.monotonic()
            await recorded(second, "begin", [str(number) for number in range(20)])
            assert time.monotonic() - ended < 9.0, "it came by the broker's patience, not by a release"
            await second.release()
            await recorded(second, "orders", [str(number) for number in range(20)])
        await recorded(first, "cancelled", [str(number) for number in range(20)])


async def test_the_time_to_drain_is_one_for_everything(mesh_home: Path) -> None:
    """A delivery, a call and a client's own request that never end delay the end once, not one after the other."""
    async with (
        AppProcess(mesh_home, subscriptions=ORDERS) as app,
        AppProcess(mesh_home) as other,
        GatewayProcess("other", mesh_home, app=other) as caller,
        GatewayProcess("app", mesh_home, app=app, arguments=["--dapr-graceful-shutdown-seconds", "8"]) as leaving,
        aiohttp.ClientSession() as session,
        asyncio.TaskGroup() as tasks,
    ):
        await publish(leaving, {"id": "event", "hold": True})
        for gateway, callee in ((leaving, "other"), (caller, "app")):
            url = f"{gateway.api}/invoke/{callee}/method/calls/hold?id=call"
            tasks.create_task(_outcome(session.get(url)))
        await recorded(app, "begin", ["event", "call"])
        await recorded(other, "begin", ["call"])
        told = time.monotonic()
        assert await leaving.terminate() == 0
        assert 7.5 < time.monotonic() - told < 15.5
        await app.release()
        await other.release()


async def test_a_connection_that_does_not_close_ends_with_the_process(mesh_home: Path) -> None:
    """A backbone that has stopped answering delays the end by a bounded time, before `mesh run` would kill it."""
    async with AppProcess(mesh_home) as app, GatewayProcess("app", mesh_home, app=app) as leaving:
        status = read_status(mesh_home)
        assert status is not None
        server = psutil.Process(status.pid)
        server.suspend()
        told = time.monotonic()
        try:
            assert await leaving.terminate() == 0
            assert time.monotonic() - told < 13.0
        except BaseException:
            leaving.show_log()
            raise
        finally:
            server.resume()


async def test_calls_in_flight_are_answered(mesh_home: Path) -> None:
    """A caller gets its answer from a callee that is going down, and from its own gateway that is."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home, arguments=LONG) as caller,
        GatewayProcess("callee", mesh_home, app=app, arguments=LONG) as callee,
        invoking(caller, "callee/method/calls/hold?id=1") as answer,
    ):
        await recorded(app, "begin", ["1"])
        callee.signal(signal.SIGTERM)
        await callee.until_draining()
        caller.signal(signal.SIGTERM)
        await caller.until_draining()
        await app.release()
        assert (await answer) == 200
        assert await callee.wait() == 0
        assert await caller.wait() == 0
        assert app.recorded("call") == ["1"]
        assert app.recorded("cancelled") == []


async def test_publishes_in_flight_are_answered(mesh_home: Path) -> None:
    """SIGTERM under load: each request is either refused as a whole or answered 204 and stored."""
    app = AppProcess(mesh_home, subscriptions=ORDERS)
    confirmed: list[str] = []
    broken: list[str] = []

    async def load(worker: int) -> None:
        async with aiohttp.ClientSession() as session:
            for number in range(100_000):
                identity = f"{worker}.{number}"
                url = f"{leaving.api}/publish/pubsub/orders"
                try:
                    async with session.post(url, json={"id": identity}) as response:
                        assert response.status == 204, await response.text()
                except aiohttp.ClientConnectorError:
                    return
                except (aiohttp.ClientError, OSError):
                    broken.append(identity)
                    return
                confirmed.append(identity)

    async with app, GatewayProcess("subscriber", mesh_home, app=app):
        async with GatewayProcess("publisher", mesh_home) as leaving, asyncio.TaskGroup() as tasks:
            for worker in range(16):
                tasks.create_task(load(worker))
            await eventually(lambda: _assert_at_least(len(confirmed), 500), 40.0)
            assert await leaving.terminate() == 0
        await recorded(app, "orders", confirmed, more=broken)


# How it ends


@pytest.mark.parametrize("moment", ["idle", "in flight", "waiting for its application", "starting"])
async def test_the_exit_code_is_zero(mesh_home: Path, moment: str) -> None:
    """At whatever moment SIGTERM comes."""
    async with AppProcess(mesh_home, subscriptions=ORDERS) as app:
        gateway = GatewayProcess("app", mesh_home, app=app)
        if moment == "waiting for its application":
            await app.kill()
        await gateway.start(ready=moment in ("idle", "in flight"))
        try:
            if moment == "in flight":
                await publish(gateway, {"id": 1, "seconds": 1})
                await recorded(app, "begin", ["1"])
            elif moment == "waiting for its application":
                await gateway.until_outbound_ready()
            elif moment == "starting":
                await eventually(lambda: _assert_at_least(len(running_below(mesh_home)), 2))
            expected = {0, -signal.SIGTERM} if moment == "starting" else {0}
            assert await gateway.terminate() in expected
        except BaseException:
            gateway.show_log()
            raise
        finally:
            await gateway.kill()
        if moment == "in flight":
            assert app.recorded("orders") == ["1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_skips_the_wait(mesh_home: Path, number: signal.Signals) -> None:
    """It does not wait for what is in flight, says so by its exit code, and releases it all the same."""
    app = AppProcess(mesh_home, subscriptions=ORDERS)
    async with app, GatewayProcess("publisher", mesh_home) as publisher:
        async with GatewayProcess("subscriber", mesh_home, app=app, arguments=LONG) as leaving:
            await publish(publisher, {"id": 1, "hold": True})
            await recorded(app, "begin", ["1"])
            leaving.signal(number)
            await leaving.until_draining()
            leaving.signal(number)
            assert await leaving.wait(within=40.0) == 1
        async with GatewayProcess("subscriber", mesh_home, app=app):
            await eventually(lambda: _assert_at_least(len(app.recorded("begin")), 2), 40.0)
            await app.release()
            await recorded(app, "orders", ["1"])


async def test_a_second_signal_skips_the_wait_for_open_requests(mesh_home: Path) -> None:
    """A client's own call that takes long is given up."""
    async with (
        AppProcess(mesh_home) as app,
        GatewayProcess("caller", mesh_home, arguments=LONG) as caller,
        GatewayProcess("callee", mesh_home, app=app),
        aiohttp.ClientSession() as session,
        asyncio.TaskGroup() as tasks,
    ):
        calling = tasks.create_task(_outcome(session.get(f"{caller.api}/invoke/callee/method/calls/hold?id=1")))
        await recorded(app, "begin", ["1"])
        caller.signal(signal.SIGTERM)
        await caller.until_draining()
        assert not calling.done()
        caller.signal(signal.SIGTERM)
        assert await caller.wait(within=40.0) == 1
        assert await calling in ("500", "broken")
        await app.release()


async def test_a_call_can_shut_it_down(mesh_home: Path) -> None:
    """``POST shutdown`` is the same as SIGTERM; that the client keeps its connection open does not delay it."""
    async with GatewayProcess("app", mesh_home, arguments=LONG) as gateway, aiohttp.ClientSession() as session:
        async with session.post(f"{gateway.api}/shutdown") as response:
            assert response.status == 204
        assert await gateway.wait() == 0


async def test_the_server_ends_with_the_last_gateway_and_what_it_stores_stays(mesh_home: Path) -> None:
    """Nothing runs afterwards; a state value and an event are there when everything is started again."""
    app = AppProcess(mesh_home, subscriptions=ORDERS)
    async with aiohttp.ClientSession() as session:
        async with GatewayProcess("first", mesh_home) as first, GatewayProcess("second", mesh_home):
            state = [{"key": "order", "value": {"id": 41}}]
            async with session.post(f"{first.api}/state/statestore", json=state) as response:
                assert response.status == 204
            await publish(first, {"id": "kept"})
            assert await first.terminate() == 0
            status = read_status(mesh_home)
            assert status is not None
            assert psutil.pid_exists(status.pid), "the second gateway still needs it"
        await eventually(lambda: _assert_equal(running_below(mesh_home), []))
        async with app, GatewayProcess("first", mesh_home, app=app) as first:
            async with session.get(f"{first.api}/state/statestore/order") as response:
                assert await response.json() == {"id": 41}
            await recorded(app, "orders", ["kept"])


async def test_everything_killed_at_once_leaves_nothing_running_and_keeps_the_data(mesh_home: Path) -> None:
    """SIGKILL of gateways, supervisor and server in the middle of work."""
    app = AppProcess(mesh_home, subscriptions=ORDERS)
    async with app, aiohttp.ClientSession() as session:
        gateway = GatewayProcess("app", mesh_home)
        async with gateway:
            async with session.post(f"{gateway.api}/state/statestore", json=[{"key": "k", "value": 1}]) as response:
                assert response.status == 204
            await publish(gateway, {"id": "kept"})
            status = read_status(mesh_home)
            assert status is not None
            for pid in (gateway.pid, status.supervisor_pid, status.pid):
                with suppress(psutil.NoSuchProcess):  # Each ends by itself when those before it are gone.
                    psutil.Process(pid).kill()
            await gateway.wait()
        await eventually(lambda: _assert_equal([p for p in running_below(mesh_home) if "gateway" in p], []))
        async with GatewayProcess("app", mesh_home, app=app) as again:
            async with session.get(f"{again.api}/state/statestore/k") as response:
                assert await response.json() == 1
            await recorded(app, "orders", ["kept"])


# Helpers


async def publish(gateway: GatewayProcess, event: Mapping[str, object], topic: str = "orders") -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.api}/publish/pubsub/{topic}", json=event) as response,
    ):
        assert response.status == 204, await response.text()


async def recorded(
    app: AppProcess, kind: str, ids: list[str], within: float = 40.0, more: list[str] | None = None
) -> None:
    """Wait until all of these are recorded; besides them only some of ``more``."""

    def check() -> None:
        assert set(ids) <= set(app.recorded(kind)) <= {*ids, *(more or ())}

    await eventually(check, within)


@asynccontextmanager
async def invoking(gateway: GatewayProcess, what: str) -> AsyncIterator[asyncio.Task[int]]:
    async def get() -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{gateway.api}/invoke/{what}") as response:
            await response.read()
            return response.status

    async with task_group() as tasks:
        yield tasks.create_task(get())


async def _outcome(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> str:
    try:
        async with request as response:
            return str(response.status)
    except aiohttp.ClientError:
        return "broken"


def _assert_equal(found: object, wanted: object) -> None:
    assert found == wanted


def _assert_at_least(found: int, wanted: int) -> None:
    assert found >= wanted
