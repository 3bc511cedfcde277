"""What holds on to one worker of a gateway, or belongs to none: streams, subscriptions of configurations, jobs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import grpc.aio
import pytest

from tests.faults.test_workers import WITHIN, are_two_others, one_of, told, workers
from tests.grpc.harness import Client
from tests.grpc.streaming import Subscriber
from tests.support.eventually import eventually
from tests.support.load import Publishing
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nats import NatsServer

pytestmark = pytest.mark.slow

CONFIGURATION = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: conf}
spec: {type: configuration.mesh, version: v1}
"""


async def grpc_port(gateway: GatewayProcess) -> int:
    return int((await told(gateway, "mesh/node"))["listens"]["grpc"])


async def take_all(port: int, topic: str, taken: set[str], began: asyncio.Event) -> None:
    """Take the events of a topic by a stream, and open another one whenever it ends, as SDKs do."""
    while True:
        # A channel keeps to its connection, and so to the worker that has it.
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stream = Subscriber(Client(channel))
            try:
                await stream.begin(topic)
                began.set()
                while True:
                    taken.add((await stream.take())["id"])
            except (grpc.aio.AioRpcError, EOFError, TimeoutError, asyncio.InvalidStateError):
                await asyncio.sleep(0.05)
            finally:
                stream.call.cancel()


async def test_streams_of_events_through_a_rolling_restart(
    mesh_home: Path, nats_server: NatsServer, tmp_path: Path
) -> None:
    """Each event that was confirmed reaches one of two clients, which have streams at whichever workers there are."""
    app = AppProcess(tmp_path)
    taken: set[str] = set()
    async with app, one_of(mesh_home, nats_server, app) as gateway:
        port, before = await grpc_port(gateway), await workers(gateway)
        publishing = Publishing(gateway, "streamed", 100_000, connections=2)
        began = [asyncio.Event(), asyncio.Event()]
        async with asyncio.TaskGroup() as tasks:
            clients = [tasks.create_task(take_all(port, "streamed", taken, each)) for each in began]
            async with asyncio.timeout(WITHIN):
                for each in began:
                    await each.wait()
            load = tasks.create_task(publishing.run())
            await publishing.until(100)
            gateway.signal(signal.SIGHUP)
            await eventually(lambda: are_two_others(gateway, before), WITHIN)
            os.kill(min(await workers(gateway)), signal.SIGKILL)
            await publishing.until(len(publishing.confirmed) + 100)
            publishing.stop()
            await load

            def all_are_taken() -> None:
                missing = publishing.confirmed - taken
                assert not missing, len(missing)

            await eventually(all_are_taken, WITHIN)
            for each in clients:
                each.cancel()


async def on_its_own(verb: str, url: str, body: object = None) -> tuple[int, str]:
    """Ask over a connection of its own, which any worker may get."""
    async with aiohttp.ClientSession() as session, session.request(verb, url, json=body) as response:
        return response.status, await response.text()


async def test_a_configuration_is_unsubscribed_through_any_worker(
    mesh_home: Path, nats_server: NatsServer, tmp_path: Path
) -> None:
    (mesh_home / "resources").mkdir()
    (mesh_home / "resources" / "conf.yaml").write_text(CONFIGURATION)
    app = AppProcess(tmp_path)
    more = ["--resources-path", str(mesh_home / "resources")]
    async with app, one_of(mesh_home, nats_server, app, *more) as gateway:

        async def subscribed(key: str) -> str:
            status, text = await on_its_own("GET", f"{gateway.api}/configuration/conf/subscribe?key={key}")
            assert status == 200, text
            return text.split('"')[3]

        ids = [await subscribed(f"key-{number}") for number in range(12)]
        assert len(set(ids)) == 12
        for each in ids:  # One connection after the other: that all of them find the right worker is not by chance.
            answer = await on_its_own("GET", f"{gateway.api}/configuration/conf/{each}/unsubscribe")
            assert answer == (200, '{"ok":true}')
        status, text = await on_its_own("GET", f"{gateway.api}/configuration/conf/{ids[0]}/unsubscribe")
        assert status == 500, text


async def test_jobs_are_of_the_gateway(mesh_home: Path, nats_server: NatsServer, tmp_path: Path) -> None:
    """Scheduled, told and deleted through any worker; all that are due run, though one is killed."""
    app = AppProcess(tmp_path)
    names = [f"once-{number}" for number in range(12)]
    async with app, one_of(mesh_home, nats_server, app) as gateway:
        for name in (*names, "later"):
            due = "24h" if name == "later" else "3s"
            answer = await on_its_own("POST", f"{gateway.api}/jobs/{name}", {"dueTime": due, "data": {"month": 7}})
            assert answer == (204, "")
        os.kill(min(await workers(gateway)), signal.SIGKILL)
        await eventually(lambda: _all_of(app.recorded("job"), names), WITHIN)

        async def only_the_other_one_is_left() -> None:
            page = await told(gateway, "mesh/jobs")
            assert [each["name"] for each in page["jobs"]] == ["later"]

        await eventually(only_the_other_one_is_left, WITHIN)
        assert (await on_its_own("DELETE", f"{gateway.api}/jobs/later")) == (204, "")
        assert (await told(gateway, "mesh/jobs"))["jobs"] == []


def _all_of(found: Sequence[str], wanted: Sequence[str]) -> None:
    assert set(found) == set(wanted), found
