"""Resource files that are changed under load, in real processes: no operation fails, and no event is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.faults.conftest import Site
from tests.support.eventually import eventually
from tests.support.gateways import MESH, MeshHome
from tests.support.load import Publishing
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.processes import free_port

CHANGES = 4


def resource(kind: str, name: str, spec: object, *, version: str = "v1alpha1", placement: str = "") -> str:
    """Write a resource; JSON is YAML."""
    metadata: dict[str, object] = {"name": name}
    if placement:
        metadata["annotations"] = {"mesh.placement": placement}
    return json.dumps({"apiVersion": f"dapr.io/{version}", "kind": kind, "metadata": metadata, "spec": spec}) + "\n"


def component(name: str, kind: str, *, placement: str = "", **settings: str) -> str:
    metadata = [{"name": key, "value": value} for key, value in settings.items()]
    return resource("Component", name, {"type": kind, "version": "v1", "metadata": metadata}, placement=placement)


def replace(folder: Path, name: str, text: str) -> None:
    """Write a file as editors do."""
    draft = folder / f"{name}.draft"
    draft.write_text(text)
    draft.replace(folder / f"{name}.yaml")


class Working:
    """Saves to and reads from a state store without a break; notes what was answered.

    Attributes:
        done: How many were right.
        failures: What was not, in words.
    """

    def __init__(self, api: str, store: str) -> None:
        self._url = f"{api}/state/{store}"
        self.done = 0
        self.failures: list[str] = []

    @asynccontextmanager
    async def running(self, clients: int = 8) -> AsyncIterator[None]:
        """Work while entered."""
        stopping = asyncio.Event()
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._work(session, f"key{number}", stopping))
            try:
                yield
            finally:
                stopping.set()

    async def _work(self, session: aiohttp.ClientSession, key: str, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            async with session.post(self._url, json=[{"key": key, "value": self.done}]) as response:
                self._note(response.status == 204, f"save: {response.status} {await response.text()}")
            async with session.get(f"{self._url}/{key}") as response:
                self._note(response.status in (200, 204), f"get: {response.status} {await response.text()}")

    def _note(self, right: bool, text: str) -> None:
        if right:
            self.done += 1
        else:
            self.failures.append(text)

    async def more(self) -> None:
        """Wait until some more are done."""
        before = self.done

        def check() -> None:
            assert self.done >= before + 50

        await eventually(check, within=60.0)


async def test_a_component_is_changed_under_load(mesh_home: Path, tmp_path: Path) -> None:
    """Every operation is done, by the store before or the one after."""
    folder = tmp_path / "resources"
    folder.mkdir()
    replace(folder, "store", component("store", "state.sqlite", connectionString=str(tmp_path / "0.db")))
    arguments = ["--resources-path", str(folder)]
    async with GatewayProcess("app", mesh_home, arguments=arguments) as gateway:
        working = Working(gateway.api, "store")
        async with working.running():
            await working.more()
            for number in range(1, CHANGES + 1):
                database = tmp_path / f"{number}.db"
                replace(folder, "store", component("store", "state.sqlite", connectionString=str(database)))
                await eventually(lambda database=database: _exists(database), within=60.0)
                await working.more()
            replace(folder, "store", component("store", "state.sqlite", connectionString="/dev/null/x.db"))
            await eventually(lambda: _logged(gateway, "resources are kept as they were"), within=60.0)
            await working.more()
        assert working.failures == []


def _exists(path: Path) -> None:
    assert path.exists()


def _logged(process: GatewayProcess, text: str, times: int = 1) -> None:
    assert process.log.read_text().count(text) >= times


def subscription(route: str, **more: object) -> str:
    spec = {"pubsubname": "pubsub", "topic": "orders", "routes": {"default": f"/events/{route}"}, **more}
    return resource("Subscription", "orders", spec, version="v2alpha1")


async def test_a_subscription_and_its_component_are_changed_under_load(site: Site, tmp_path: Path) -> None:
    """Every event that was confirmed is delivered, and no publish fails."""
    folder = tmp_path / "resources"
    folder.mkdir()
    replace(folder, "pubsub", component("pubsub", "pubsub.mesh"))
    replace(folder, "orders", subscription("r0"))
    prepared = GatewayProcess(
        "app",
        site.home,
        app=(app := AppProcess(site.home)),
        backbone=site.backend.url,
        arguments=["--resources-path", str(folder)],
        environ={**site.backend.environ, "NAMESPACE": site.namespace},
    )
    async with app, prepared as gateway:
        publishing = Publishing(gateway, "orders", 1_000_000, connections=8)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publishing.run())
            for number in range(CHANGES):
                route = f"r{number}"
                replace(folder, "orders", subscription(route, metadata={"maxInFlight": str(10 + number)}))
                await eventually(lambda route=route: _some(app, route), within=60.0)
                replace(folder, "pubsub", component("pubsub", "pubsub.mesh", allowedTopics=f"orders,t{number}"))
                times = number + 1
                await eventually(lambda times=times: _logged(gateway, "Component pubsub changed", times), within=60.0)
            publishing.stop()
        assert publishing.failed == set()

        def all_there() -> None:
            got = {each for number in range(CHANGES) for each in app.recorded(f"r{number}")}
            assert publishing.confirmed - got == set()

        await eventually(all_there, within=60.0)


def _some(app: AppProcess, route: str) -> None:
    assert app.recorded(route)


async def test_a_hosted_component_is_changed_while_another_gateway_uses_it(mesh_home: Path, tmp_path: Path) -> None:
    """Also when its fingerprint is another one, so that it is found anew."""
    folder = tmp_path / "resources"
    folder.mkdir()

    def store(number: int) -> str:
        file = str(tmp_path / f"{number}.db")
        return component("store", "state.sqlite", placement="backbone", connectionString=file)

    replace(folder, "store", store(0))
    port = free_port()
    environ = MeshHome(mesh_home).environ({})
    words = ("host", "--resources-path", str(folder), "--dapr-http-port", str(port))
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text(component("pubsub", "pubsub.mesh"))
    async with GatewayProcess("app", mesh_home, arguments=["--resources-path", str(nothing)]) as gateway:
        process = await asyncio.create_subprocess_exec(*MESH, *words, env=environ)
        try:
            working = Working(gateway.api, "store")
            await eventually(lambda: _answered(f"{gateway.api}/state/store/k"), within=90.0)
            async with working.running():
                await working.more()
                for number in range(1, CHANGES + 1):
                    replace(folder, "store", store(number))
                    await eventually(lambda number=number: _exists(tmp_path / f"{number}.db"), within=60.0)
                    await working.more()
            assert working.failures == []
        finally:
            process.terminate()
            await process.wait()


async def _answered(url: str) -> None:
    async with aiohttp.request("GET", url) as response:
        assert response.status == 204
