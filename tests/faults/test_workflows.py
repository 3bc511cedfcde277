"""Workflows while workers, gateways, owners and the broker are killed: each ends as it should, and none twice.

``WORKFLOW_INSTANCES=10000 WORKFLOW_WORKERS=python,node`` makes it the large proof, with the official workers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.faults.conftest import Figures
from tests.sdk.harness import HERE, NODE, PYTHON, needs
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess, ManagedProcess
from tests.support.nats import NatsServer
from tests.support.nodes import node
from tests.support.processes import ROOT, free_port

pytestmark = pytest.mark.slow
COUNT = int(os.environ.get("WORKFLOW_INSTANCES", "96"))
WORKERS = os.environ.get("WORKFLOW_WORKERS", "http").split(",")
GATEWAYS = 3
STARTERS = 16
FAULTS_APART = 1.0
STARTS_TAKE = 10.0  # At least, so that faults come in between.
STILL = 13.0  # A session is over after ten seconds.
WITHIN = 60.0 + COUNT / 20
STEPS = 6  # Effects of an instance and of its child.
LAST_TASKS = (7, 8)  # With and without a number for what it waits for.
PAGE = 1000
DONE_BEFORE = ("already exists", "has ended")  # Told to who asks again, since no answer came.


def worker_of(kind: str, home: Path, records: Path, grpc_port: int) -> tuple[ManagedProcess, bool]:
    """Prepare a worker; says also whether it is the application beside its gateway."""
    if kind == "http":
        path = os.pathsep.join(map(str, (ROOT, ROOT / "examples/workflow-python")))
        environ = {"PYTHONPATH": path}
        return AppProcess(home, "workflows", records=records, environ=environ, ready_path="/dapr/config"), True
    program = HERE / f"workflow_faults.{'py' if kind == 'python' else 'js'}"
    needs(PYTHON if kind == "python" else NODE)
    command = [str(PYTHON) if kind == "python" else "node", str(program)]
    return SDKWorker(
        f"{kind}-{grpc_port}", command, {"DAPR_GRPC_PORT": str(grpc_port), "APP_RECORDS": str(records)}, home
    ), False


class SDKWorker(ManagedProcess):
    """A worker that goes to its gateway by itself."""

    async def until_ready(self) -> None:
        """It waits for its gateway."""


@dataclass(slots=True)
class Mesh:
    """Gateways of one application, each with a worker, and what they are asked for.

    Attributes:
        server: The broker.
        namespace: Theirs.
        gateways: With their workers.
        records: What activities did.
        started: Instances of which a start was answered, by number.
    """

    server: NatsServer
    namespace: str
    gateways: list[tuple[GatewayProcess, ManagedProcess]]
    records: AppProcess
    session: aiohttp.ClientSession
    started: set[int] = field(default_factory=set)

    async def asked(self, method: str, path: str, *, expected: Iterable[int] = (200, 202), **options: Any) -> Any:
        """Ask one gateway after the other until one answers so."""
        end, told = time.monotonic() + WITHIN, ""
        turn = hash(path)
        while time.monotonic() < end:
            turn += 1
            gateway, _ = self.gateways[turn % GATEWAYS]
            try:
                async with self.session.request(method, f"{gateway.api}/{path}", **options) as response:
                    told = await response.text()
                    if response.status in expected or any(each in told for each in DONE_BEFORE):
                        return await response.json(content_type=None) if told else None
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                told = repr(error)
            await asyncio.sleep(0.2)
        raise AssertionError(f"{path}: {told}")

    async def start(self, numbers: Iterable[int]) -> None:
        """Start instances one after the other, and raise the event of each."""
        for number in numbers:
            await self.asked("POST", f"workflows/dapr/order/start?instanceID=order-{number}", data=str(number + 1))
            await self.asked("POST", f"workflows/dapr/order-{number}/raiseEvent/go", data=str(-number - 1))
            self.started.add(number)
            await asyncio.sleep(STARTS_TAKE * STARTERS / COUNT)

    async def listed(self, *statuses: str) -> list[str]:
        """List instances."""
        found: list[str] = []
        after = ""
        while True:
            query = f"limit={PAGE}&status={','.join(statuses)}&after={after}"
            page = await self.asked("GET", f"mesh/workflows?{query}")
            found += [each["instanceID"] for each in page["workflows"]]
            if not (after := page.get("after", "")):
                return found


@asynccontextmanager
async def running(kind: str, home: Path, server: NatsServer) -> AsyncIterator[Mesh]:
    """Have the gateways and their workers run."""
    records = AppProcess(home, records=home / "effects.txt")  # It is not started: it reads.
    gateways: list[tuple[GatewayProcess, ManagedProcess]] = []
    namespace = f"workflows{os.getpid()}"
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)))
        for _ in range(GATEWAYS):
            grpc_port = free_port()
            worker, beside = worker_of(kind, home, records.records, grpc_port)
            if beside:
                await stack.enter_async_context(worker)
            gateway = GatewayProcess(
                "shop",
                home,
                app=worker if isinstance(worker, AppProcess) else None,
                backbone=server.url,
                arguments=("--dapr-grpc-port", str(grpc_port)),
                environ={"NAMESPACE": namespace},
            )
            gateways.append((await stack.enter_async_context(gateway), worker))
            if not beside:
                await stack.enter_async_context(worker)
        yield Mesh(server, namespace, gateways, records, session)


async def again(process: ManagedProcess) -> None:
    """Kill it, and start it again."""
    await process.kill()
    await process.start(ready=False)


async def faults(mesh: Mesh) -> Counter[str]:
    """Let everything fail, over and over until all instances have been started, and each at least once."""
    done: Counter[str] = Counter()
    while len(mesh.started) < COUNT or not done:
        for number, (gateway, worker) in enumerate(mesh.gateways):
            await asyncio.sleep(FAULTS_APART)
            await again(worker)
            done["worker killed"] += 1
            await asyncio.sleep(FAULTS_APART)
            if number == 0:
                await again(gateway)
                done["gateway killed"] += 1
            elif number == 1:
                gateway.signal(signal.SIGSTOP)
                await asyncio.sleep(STILL)
                gateway.signal(signal.SIGCONT)
                done["gateway stood still"] += 1
            else:
                await mesh.server.kill()
                await asyncio.sleep(FAULTS_APART)
                await mesh.server.start()
                done["broker killed"] += 1
        for _, worker in mesh.gateways:
            if worker.ended:  # One of Node's ends for good when it cannot connect.
                await worker.start(ready=False)
    return done


@pytest.mark.parametrize("kind", WORKERS)
@pytest.mark.timeout(WITHIN * 3)
async def test_all_end_and_none_twice(mesh_home: Path, nats_server: NatsServer, figures: Figures, kind: str) -> None:
    """Outputs are right, histories have each result once, each effect was had; then nothing is left."""
    async with running(kind, mesh_home, nats_server) as mesh:
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            failing = tasks.create_task(faults(mesh))
            for starter in range(STARTERS):
                tasks.create_task(mesh.start(range(starter, COUNT, STARTERS)))
        for _, worker in mesh.gateways:
            if worker.ended:
                await worker.start(ready=False)

        begun_again = set[str]()

        async def none_runs() -> None:
            left = await mesh.listed("RUNNING", "PENDING", "SUSPENDED", "STALLED")
            done = set(mesh.records.recorded("effect"))
            for each in [each for each in left if each not in begun_again and each.removeprefix("order-").isdigit()]:
                if any(f"{each}/{last}" in done for last in LAST_TASKS):
                    begun_again.add(each)  # A gateway that stood still took a start later, when it had ended.
                    data = str(-int(each.removeprefix("order-")) - 1)
                    await mesh.asked("POST", f"workflows/dapr/{each}/raiseEvent/go", data=data)
            assert not left, f"{len(left)} run: {left[:5]}"

        try:
            await eventually(none_runs, WITHIN)
        except AssertionError:
            print(await stuck(mesh))
            raise
        figures.note(instances=COUNT, seconds=round(time.monotonic() - began), **failing.result())
        again_run = await it_is_right(mesh)
        figures.note(effects=COUNT * STEPS, had_again=again_run, begun_again=len(begun_again))
        await it_is_gone(mesh)


async def stuck(mesh: Mesh) -> list[Any]:
    """Tell of some that do not end."""
    left = await mesh.listed("RUNNING", "PENDING", "SUSPENDED", "STALLED")
    return [
        (await mesh.asked("GET", f"mesh/workflows/{each}"), await mesh.asked("GET", f"mesh/workflows/{each}/history"))
        for each in left[:3]
    ]


async def it_is_right(mesh: Mesh) -> int:
    """Look at each instance; gives how many effects were had again."""
    effects = Counter(mesh.records.recorded("effect"))
    children = [each for each in await mesh.listed("COMPLETED") if not each.removeprefix("order-").isdigit()]
    assert len(children) == COUNT

    async def check(numbers: Iterable[int]) -> None:
        for number in numbers:
            name = f"order-{number}"
            shown = await mesh.asked("GET", f"mesh/workflows/{name}")
            assert shown["runtimeStatus"] == "COMPLETED", shown
            given = number + 1  # One of the SDKs takes 0 for nothing.
            assert shown["output"] == [given + 1, 3 * given + 6, 2 * given + 1, -given, 2], shown
            await check_history(mesh, name, effects)
        for child in children[numbers.start :: STARTERS]:  # type: ignore[attr-defined]
            await check_history(mesh, child, effects)

    async with asyncio.TaskGroup() as tasks:
        for starter in range(STARTERS):
            tasks.create_task(check(range(starter, COUNT, STARTERS)))
    assert len(effects) >= COUNT * STEPS
    return effects.total() - COUNT * STEPS


async def check_history(mesh: Mesh, name: str, effects: Counter[str]) -> None:
    """Each thing that was asked for stands there once, and so does what came of it; each activity's effect was had."""
    page = await mesh.asked("GET", f"mesh/workflows/{name}/history")
    assert len(page["events"]) == page["total"]
    asked, came = Counter[int](), Counter[int]()
    for event in page["events"]:
        if event["event"] in ("scheduled", "timer", "child"):
            asked[event["task"]] += 1
        elif event["event"] in ("completed", "failed", "fired"):
            came[event["task"]] += 1
        if event["event"] == "scheduled":
            assert effects[f"{name}/{event['task']}"] >= 1, (name, event)
    assert set(asked.values()) | set(came.values()) == {1}, page["events"]
    assert came.keys() <= asked.keys()
    assert sum(event["event"] == "ended" for event in page["events"]) == 1


async def it_is_gone(mesh: Mesh) -> None:
    """Purge all, and find no key of theirs."""

    async def all_purged() -> None:
        told = await mesh.asked("POST", "mesh/workflows/purge", json={"limit": PAGE})
        assert (told["purged"], told["complete"]) == (0, True)

    await eventually(all_purged, WITHIN)
    assert await mesh.listed() == []
    async with node(mesh.server.url, mesh.namespace, app_id="reader") as reader:

        async def nothing_left() -> None:
            for name in ("mesh:workflows", "mesh:workflows-ended"):
                store = await reader.parts.records(name, dotted=True)
                keys = [key for key in await store.keys("", "", PAGE) if not key.startswith("fence.")]
                assert keys == []

        await eventually(nothing_left)
