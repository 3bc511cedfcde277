"""One gateway over several processes, while these are replaced and killed: nothing of it is seen by anybody else."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from brokers.nats import NatsBroker
from mesh.node.description import Node, collect
from tests.faults.conftest import Figures, everything_arrives
from tests.support.eventually import eventually
from tests.support.gateways import MeshHome
from tests.support.load import Calling, Publishing
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nats import NatsServer
from tests.support.processes import ROOT, free_port

pytestmark = pytest.mark.slow

TOPIC = "orders"
SUBSCRIPTIONS = [{"pubsubname": "pubsub", "topic": TOPIC, "route": f"/events/{TOPIC}"}]
WITHIN = 60.0


async def told(gateway: GatewayProcess, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.api}/{path}") as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def workers(gateway: GatewayProcess) -> set[int]:
    return {each["pid"] for each in (await told(gateway, "mesh/node"))["workers"]}


async def are_two_others(gateway: GatewayProcess, before: set[int]) -> None:
    now = await workers(gateway)
    assert len(now) == 2
    assert not now & before


@asynccontextmanager
async def one_of(
    home: Path, server: NatsServer, app: AppProcess, *more: str, app_id: str = "shop", count: int = 2
) -> AsyncIterator[GatewayProcess]:
    """Run a gateway of so many workers."""
    metrics = ["--metrics-port", str(free_port())]
    arguments = ["--workers", str(count), *metrics, "--dapr-grpc-port", str(free_port()), *more]
    async with GatewayProcess(app_id, home, app=app, backbone=server.url, arguments=arguments) as gateway:

        async def all_serve() -> None:
            assert len(await workers(gateway)) == count
            nodes = await nodes_of(server)
            assert [each.id for each in nodes if each.apps == (app_id,)], nodes

        await eventually(all_serve, WITHIN)
        yield gateway


async def nodes_of(server: NatsServer) -> Sequence[Node]:
    """Ask who is on the mesh."""
    async with NatsBroker.from_url(server.url) as broker:
        return await collect(broker, "default", 0.5)


async def test_a_rolling_restart_is_seen_by_nobody(
    mesh_home: Path, nats_server: NatsServer, figures: Figures, tmp_path: Path
) -> None:
    """Its own workers, one after the other, by SIGHUP: no call fails, no event is lost, and counts go on."""
    app = AppProcess(tmp_path, subscriptions=SUBSCRIPTIONS)
    async with app, one_of(mesh_home, nats_server, app) as gateway:
        calling, publishing = Calling(gateway, "shop", 60.0), Publishing(gateway, TOPIC, 100_000, connections=8)
        node, before = (await told(gateway, "mesh/node"))["node"], await workers(gateway)
        async with asyncio.TaskGroup() as tasks, calling.running():
            tasks.create_task(publishing.run())
            await publishing.until(100)
            gateway.signal(signal.SIGHUP)
            await eventually(lambda: are_two_others(gateway, before), WITHIN)
            await publishing.until(len(publishing.confirmed) + 100)
            publishing.stop()
        assert calling.failures == []
        assert publishing.failed == set()
        await everything_arrives(publishing, app, figures)
        assert await counted(gateway, "/invoke/shop/") == calling.count
        assert (await told(gateway, "mesh/node"))["node"] == node
        figures.note(calls=calling.count)


async def scraped(gateway: GatewayProcess) -> str:
    port = (await told(gateway, "mesh/node"))["listens"]["metrics"]
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as response:
        return await response.text()


async def counted(gateway: GatewayProcess, path: str) -> int:
    """Give how many requests of a path the scrape tells."""
    text = await scraped(gateway)
    found = re.findall(rf"^dapr_http_server_request_count{{[^}}]*{re.escape(path)}[^}}]*}} (\d+)$", text, re.MULTILINE)
    return sum(map(int, found))


async def test_a_killed_worker_is_replaced(
    mesh_home: Path, nats_server: NatsServer, figures: Figures, tmp_path: Path
) -> None:
    """No event that was confirmed is lost; the calls that fail are those on its connections, and no more."""
    connections = 16
    app = AppProcess(tmp_path, subscriptions=SUBSCRIPTIONS)
    async with app, one_of(mesh_home, nats_server, app) as gateway:
        publishing = Publishing(gateway, TOPIC, 100_000, connections=connections)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publishing.run())
            for kills in (1, 2):
                before = await workers(gateway)
                await publishing.until(len(publishing.confirmed) + 100)
                before_it = await counted(gateway, "/publish/")
                os.kill(min(before), signal.SIGKILL)

                async def is_another(before: set[int] = before) -> None:
                    now = await workers(gateway)
                    assert len(now) == 2
                    assert len(now & before) == 1

                await eventually(is_another, WITHIN)
                assert len(publishing.failed) <= kills * connections
                assert await counted(gateway, "/publish/") >= before_it
            publishing.stop()
        await everything_arrives(publishing, app, figures)


async def test_workers_are_one_gateway(mesh_home: Path, nats_server: NatsServer, tmp_path: Path) -> None:
    """To the mesh, to ``mesh list`` and ``mesh status``, in metadata, and in the log; a label is one of all."""
    app = AppProcess(tmp_path, subscriptions=SUBSCRIPTIONS)
    home = MeshHome(mesh_home)
    async with app, one_of(mesh_home, nats_server, app, count=3) as gateway:
        (node,) = [each for each in await nodes_of(nats_server) if each.app_id == "shop"]
        seen = await told(gateway, "mesh/node")
        assert (node.id, gateway.pid) == (seen["node"], seen["pid"])
        async with aiohttp.ClientSession() as session:
            await session.put(f"{gateway.api}/metadata/colour", data="red")
            for _ in range(6):  # Whichever of them is asked.
                about = await told(gateway, "metadata")
                assert about["extended"]["colour"] == "red"
                assert [each["topic"] for each in about["subscriptions"]] == [TOPIC]
        listed = json.loads((await asyncio.to_thread(home.mesh, "list", "-o", "json")).stdout)
        assert [(each["appId"], each["daprdPid"]) for each in listed] == [("shop", gateway.pid)]
        lines = (await told(gateway, "mesh/logs?limit=1000"))["lines"]
        assert [each["n"] for each in lines] == list(range(1, len(lines) + 1))
        assert sum("listens on" in each["message"] for each in lines) == 3
        async with aiohttp.ClientSession() as session:
            await session.post(f"{gateway.api}/shutdown")
        assert await gateway.wait() == 0


async def test_limits_and_probes_are_of_the_whole(mesh_home: Path, nats_server: NatsServer, tmp_path: Path) -> None:
    """``--app-max-concurrency`` holds over all workers, and one of them alone asks the application for its health."""
    app = AppProcess(tmp_path)
    probing = ["--enable-app-health-check", "--app-health-check-path", "/ready", "--app-health-probe-interval", "1"]
    probing += ["--app-health-probe-timeout", "900", "--app-health-threshold", "1000"]  # However busy the machine is.
    started = time.monotonic()
    async with app, one_of(mesh_home, nats_server, app, "--app-max-concurrency", "1", *probing) as gateway:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:

            async def call(number: int) -> int:
                url = f"{gateway.api}/invoke/shop/method/calls/hold?id={number}"
                async with session.post(url, headers={"mesh-timeout": "50s"}) as response:
                    return response.status

            calls = [tasks.create_task(call(number)) for number in range(8)]
            for count in range(1, 9):
                await eventually(lambda count=count: _is(len(app.recorded("begin")), count), WITHIN)
                await app.release()
        assert [each.result() for each in calls] == [200] * 8

        async def probes() -> tuple[int, float]:
            text, took = await scraped(gateway), time.monotonic() - started
            counts = re.findall(r"^dapr_http_healthprobes_completed_count{.*} (\d+)$", text, re.MULTILINE)
            assert sum(map(int, counts)) >= 8
            return sum(map(int, counts)), took

        count, took = await eventually(probes, WITHIN)
        assert count <= took + 3  # One a second, by one of them.


def _is(found: object, wanted: object) -> None:
    assert found == wanted, (found, wanted)


async def test_turns_of_actors_follow_each_other(mesh_home: Path, nats_server: NatsServer, tmp_path: Path) -> None:
    """Whichever worker is asked and whichever has the actor, while one is killed: each count is given once."""
    port = free_port()
    app = AppProcess(tmp_path, "counters", gateway_port=port, ready_path="/dapr/config")
    async with app:
        arguments = ["--workers", "2", "--metrics-port", str(free_port()), "--dapr-grpc-port", str(free_port())]
        async with (
            GatewayProcess(
                "shop", mesh_home, app=app, http_port=port, backbone=nats_server.url, arguments=arguments
            ) as gateway,
            aiohttp.ClientSession() as session,
        ):
            counts: dict[int, list[int]] = {number: [] for number in range(8)}

            async def count(number: int, times: int) -> None:
                url = f"{gateway.api}/actors/counter/{number}/method/add"
                wanted = len(counts[number]) + times
                async with asyncio.timeout(WITHIN):
                    while len(counts[number]) < wanted:
                        try:
                            async with session.post(url, data=b"1") as response:
                                if response.status == 200:
                                    counts[number].append(int(await response.text()))
                                    continue
                        except aiohttp.ClientError:
                            pass
                        await asyncio.sleep(0.1)

            async with asyncio.TaskGroup() as tasks:
                for number in counts:
                    tasks.create_task(count(number, 5))
            os.kill(min(await workers(gateway)), signal.SIGKILL)
            async with asyncio.TaskGroup() as tasks:
                for number in counts:
                    tasks.create_task(count(number, 5))
            for each in counts.values():
                assert each == sorted(set(each))
            view = await told(gateway, "mesh/actors")
            assert [len(each["hosts"]) for each in view if each["type"] == "counter"] == [1]


async def test_workflows_and_jobs_come_to_their_ends(mesh_home: Path, nats_server: NatsServer, tmp_path: Path) -> None:
    """While a worker is killed, and then all are replaced."""
    environ = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "examples/workflow-python")))}
    app = AppProcess(tmp_path, "workflows", environ=environ, ready_path="/dapr/config")
    count = 8
    async with app, one_of(mesh_home, nats_server, app) as gateway, aiohttp.ClientSession() as session:

        async def asked(path: str, data: str) -> None:
            async def once() -> None:
                try:
                    async with session.post(f"{gateway.api}/{path}", data=data) as response:
                        text = await response.text()
                        assert response.status in (200, 202, 204) or "already exists" in text, text
                except aiohttp.ClientError as error:
                    raise AssertionError(repr(error)) from error

            await eventually(once, WITHIN)

        for number in range(count):
            await asked(f"workflows/dapr/order/start?instanceID=order-{number}", str(number + 1))
        os.kill(min(await workers(gateway)), signal.SIGKILL)
        for number in range(count):
            await asked(f"workflows/dapr/order-{number}/raiseEvent/go", str(-number - 1))
        await eventually(lambda: _has_workers(gateway, 2), WITHIN)
        gateway.signal(signal.SIGHUP)

        async def all_ended() -> None:
            page = await told(gateway, "mesh/workflows?limit=100&status=COMPLETED")
            ended = {each["instanceID"] for each in page["workflows"]}
            missing = {f"order-{number}" for number in range(count)} - ended
            assert not missing, missing

        await eventually(all_ended, WITHIN)


async def _has_workers(gateway: GatewayProcess, count: int) -> None:
    assert len(await workers(gateway)) == count
