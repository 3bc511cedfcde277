"""Gateways that an operator gives what they work with; the operator comes, goes and is wrong."""

from __future__ import annotations

import asyncio
import datetime
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mesh.registry import Registry
from mesh.supply.answering import Answering
from mesh.supply.wire import Document, Reported
from tests.http.harness import App
from tests.support.eventually import eventually
from tests.support.mesh import GatewayProcess
from tests.support.nats import NatsServer
from tests.support.supply import DOMAIN, Table, component, operating

CONTROL, NAMESPACE = "mesh-system", "shop"


class Cluster:
    """A broker, a table that an operator serves, and gateways."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.table = Table(CONTROL)
        self.answering: Answering
        self._stack = AsyncExitStack()

    async def operate(self) -> None:
        """Start the operator."""
        broker = await self._stack.enter_async_context(Registry().backbone(self.url).from_url(self.url))  # type: ignore[attr-defined]
        self.answering = await self._stack.enter_async_context(operating(broker, self.table))

    async def end(self) -> None:
        """End the operator, if there is one."""
        await self._stack.aclose()

    def put(self, *documents: Document) -> None:
        """Have other documents than before, and tell."""
        self.table.documents[NAMESPACE] = list(documents)
        self.answering.changed(NAMESPACE, within=0.1)

    def gateway(self, app_id: str, *arguments: str, app: App | None = None, **environ: str) -> GatewayProcess:
        token = self.folder / f"{app_id}.token"
        token.write_text(self.table.admit(NAMESPACE, app_id))
        given = {
            "MESH_SUPPLY": CONTROL,
            "MESH_SUPPLY_DIR": str(self.folder / f"{app_id}-supply"),
            "MESH_SUPPLY_TOKEN_FILE": str(token),
            "MESH_SUPPLY_ROOTS": self.table.roots_pem,
            "MESH_TRUST_DOMAIN": DOMAIN,
            "NAMESPACE": NAMESPACE,
            "POD_NAME": f"{app_id}-0",
        }
        words = ["--dapr-grpc-port", "0", "--metrics-port", "0", *arguments]
        port = None if app is None else app.port
        home = self.folder / f"{app_id}-home"
        return GatewayProcess(app_id, home, app=port, backbone=self.url, arguments=words, environ={**given, **environ})

    def report(self, app_id: str = "cart") -> tuple[list[str], tuple[Reported, ...]]:
        found = self.table.reports.get(f"{app_id}-0")
        assert found is not None
        return list(found.loaded), found.problems

    def problem(self) -> tuple[list[str], Reported]:
        loaded, problems = self.report()
        assert len(problems) == 1
        return loaded, problems[0]

    async def until_reported(self, *loaded: str, app_id: str = "cart") -> None:
        def check() -> None:
            assert self.report(app_id) == (list(loaded), ())

        await eventually(check)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with NatsServer(tmp_path / "nats") as server:
        cluster = Cluster(server.url, tmp_path)
        try:
            yield cluster
        finally:
            await cluster.end()


@asynccontextmanager
async def starting(process: GatewayProcess) -> AsyncIterator[GatewayProcess]:
    """Start one that need not be ready."""
    await process.start(ready=False)
    try:
        yield process
    except BaseException:
        process.show_log()
        raise
    finally:
        await process.kill()


def sqlite(name: str) -> Document:
    """Write a store whose file is a secret."""
    text = (
        f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n"
        "spec:\n  type: state.sqlite\n  version: v1\n  metadata:\n"
        "  - name: connectionString\n    secretKeyRef:\n      name: database\n      key: file\n"
    )
    return Document("Component", name, NAMESPACE, text)


async def ask(process: GatewayProcess, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, process.api + path, json=body, headers=headers) as response,
    ):
        text = await response.text()
        return response.status, json.loads(text) if text and response.content_type == "application/json" else text


async def names(process: GatewayProcess) -> set[str]:
    """Give its components, but for the secrets of the cluster, which are always there."""
    _, metadata = await ask(process, "GET", "/metadata")
    found = {each["name"] for each in metadata.get("components", ())}
    assert "kubernetes" in found, found
    return found - {"kubernetes"}


async def until_named(process: GatewayProcess, *expected: str) -> None:
    async def check() -> None:
        assert await names(process) == set(expected)

    await eventually(check)


async def until_logged(process: GatewayProcess, text: str) -> None:
    await eventually(lambda: _logged(process, text))


def _logged(process: GatewayProcess, text: str) -> None:
    assert text in process.log.read_text()


async def test_resources_come_change_and_go(cluster: Cluster) -> None:
    async with starting(cluster.gateway("cart")) as cart:
        await until_logged(cart, "waiting for what the operator of mesh-system gives")
        cluster.table.documents[NAMESPACE] = [component("store", NAMESPACE)]
        await cluster.operate()
        await cart.until_ready()
        assert await names(cart) == {"store"}
        await cluster.until_reported("Component/store")
        cluster.put(component("store", NAMESPACE), component("other", NAMESPACE))
        await until_named(cart, "store", "other")
        await cluster.until_reported("Component/other", "Component/store")
        cluster.put(component("other", NAMESPACE))
        await until_named(cart, "other")
        await cluster.until_reported("Component/other")
        cluster.put()  # Then there is what is there without any.
        await until_named(cart, "pubsub", "statestore")


async def test_a_wrong_resource_is_reported_with_its_line(cluster: Cluster) -> None:
    await cluster.operate()
    good = component("store", NAMESPACE)
    cluster.put(good)
    async with cluster.gateway("cart") as cart:
        await cluster.until_reported("Component/store")
        cluster.put(good, component("wrong", NAMESPACE, "state.sqlit"))

        def reported() -> None:
            loaded, problem = cluster.problem()
            assert loaded == ["Component/store"]
            assert (problem.kind, problem.name, problem.field, problem.line) == ("Component", "wrong", "spec.type", 7)
            assert "sqlite" in problem.text

        await eventually(reported)
        assert await names(cart) == {"store"}
        cluster.put(good)
        await cluster.until_reported("Component/store")


async def test_a_gateway_that_cannot_start_says_why_and_waits(cluster: Cluster) -> None:
    """Until then it uses nothing. It begins once that is mended: nobody has to start it again."""
    await cluster.operate()
    cluster.put(component("store", NAMESPACE, "state.sqlit"), component("beside", NAMESPACE))
    async with starting(cluster.gateway("cart")) as cart:

        def reported() -> None:
            loaded, problem = cluster.problem()
            assert (loaded, problem.name, problem.line) == ([], "store", 7)

        await eventually(reported, 30.0)
        cluster.put(component("store", NAMESPACE))
        await cart.until_ready()
        await cluster.until_reported("Component/store")


async def test_secrets_reach_resources_and_nobody_else(cluster: Cluster, tmp_path: Path) -> None:
    one, two = (str(tmp_path / f"{name}.db") for name in ("one", "two"))
    cluster.table.secrets = {"database": {"file": one.encode()}}
    cluster.table.documents[NAMESPACE] = [sqlite("store")]
    await cluster.operate()
    async with cluster.gateway("cart") as cart:
        assert (await ask(cart, "POST", "/state/store", [{"key": "k", "value": "one"}]))[0] == 204
        assert Path(one).exists()
        for path in ("/secrets/kubernetes/database", "/secrets/kubernetes/bulk"):
            status, told = await ask(cart, "GET", path)
            assert status == 500
            assert "service account" in told["message"]
            assert one not in json.dumps(told)
        cluster.table.secrets = {"database": {"file": two.encode()}}
        cluster.put(sqlite("store"))

        async def another() -> None:
            assert await ask(cart, "GET", "/state/store/k") == (204, "")

        await eventually(another)
        assert Path(two).exists()


async def test_workers_are_one_gateway_to_the_operator(cluster: Cluster, tmp_path: Path) -> None:
    """One of them asks, and another one once it has ended."""
    cluster.table.secrets = {"database": {"file": str(tmp_path / "one.db").encode()}}
    cluster.table.documents[NAMESPACE] = [sqlite("store")]
    await cluster.operate()
    async with cluster.gateway("cart", "--workers", "2") as cart:
        await eventually(lambda: _logged_times(cart, "Component loaded: store", 2), 30.0)
        await cluster.until_reported("Component/store")
        assert (await ask(cart, "POST", "/state/store", [{"key": "k", "value": "one"}]))[0] == 204
        second, third = (
            component(name, NAMESPACE, "state.sqlite", connectionString=str(tmp_path / f"{name}.db"))
            for name in ("other", "third")
        )
        cluster.put(sqlite("store"), second)
        await eventually(lambda: _logged_times(cart, "Component other added", 2), 30.0)
        cart.signal(signal.SIGHUP)  # One worker after the other is replaced.
        await eventually(lambda: _logged_times(cart, "Component loaded: other", 2), 60.0)
        cluster.put(third)
        await eventually(lambda: _logged_times(cart, "Component third added", 2), 30.0)
        await cluster.until_reported("Component/third")
        assert "has come already" not in cart.log.read_text()


def _logged_times(process: GatewayProcess, text: str, times: int) -> None:
    assert process.log.read_text().count(text) >= times


async def test_identities_hold_without_the_operator(cluster: Cluster) -> None:
    """Who was given a certificate calls and is called; so is one that is started again while the operator is away."""
    await cluster.operate()
    cluster.put(component("store", NAMESPACE))
    async with App() as app:
        app.answer("/hello", body=b"hello")
        cart, front = cluster.gateway("cart", app=app), cluster.gateway("front")
        async with cart, front:
            await until_logged(front, f"proves to be spiffe://{DOMAIN}/ns/{NAMESPACE}/front, and is strict")
            call = "POST", "/invoke/cart/method/hello", {}
            assert await ask(front, *call) == (200, "hello")
            await cluster.end()
            assert await ask(front, *call) == (200, "hello")
            await cart.kill()
            await cart.start()
            await until_logged(cart, "starts with what the operator gave it before")
            assert await names(cart) == {"store"}

            async def again() -> None:
                assert await ask(front, *call) == (200, "hello")

            await eventually(again)


async def test_certificates_are_renewed_and_roots_followed(cluster: Cluster) -> None:
    cluster.table.ttl = datetime.timedelta(seconds=16)
    await cluster.operate()
    cluster.put(component("store", NAMESPACE))
    async with App() as app, cluster.gateway("cart", app=app), cluster.gateway("front") as front:
        app.answer("/hello", body=b"hello")
        files = [cluster.folder / "front-supply/identity" / name for name in ("tls.crt", "tls.key", "ca.crt")]
        first = [each.read_bytes() for each in files]
        cluster.table.rotate()
        cluster.answering.changed(NAMESPACE, within=0.1)

        def trusted() -> None:
            assert files[2].read_bytes().count(b"BEGIN") == 2

        await eventually(trusted)

        def renewed() -> None:
            assert files[0].read_bytes() != first[0]
            assert files[1].read_bytes() != first[1]

        await eventually(renewed, 30.0)
        before = files[0].read_bytes()
        await eventually(lambda: _other(files[0], before), 30.0)
        assert (await ask(front, "POST", "/invoke/cart/method/hello", {}))[0] == 200


def _other(file: Path, before: bytes) -> None:
    assert file.read_bytes() != before


async def test_a_gateway_of_another_application_gets_nothing(cluster: Cluster) -> None:
    await cluster.operate()
    cluster.put(component("store", NAMESPACE))
    thief = cluster.gateway("thief", MESH_SUPPLY_TOKEN_FILE=str(cluster.folder / "cart.token"))
    (cluster.folder / "cart.token").write_text(cluster.table.admit(NAMESPACE, "cart"))
    async with starting(thief):
        await until_logged(thief, "the operator refuses: the token is of no pod of that name")
        assert [each.name for each in (cluster.folder / "thief-supply").iterdir()] == [".lock"]


async def test_without_identities_it_says_so(cluster: Cluster) -> None:
    cluster.table.identities = False
    await cluster.operate()
    cluster.put(component("store", NAMESPACE))
    async with cluster.gateway("cart"), starting(cluster.gateway("front", MESH_TRUST_MODE="strict")) as front:
        await until_logged(front, "identities are asked for (MESH_TRUST_MODE), and the operator gives none")


async def test_a_configuration_is_waited_for_by_its_name(cluster: Cluster) -> None:
    await cluster.operate()
    cluster.put(component("store", NAMESPACE))
    text = (
        f"apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata:\n  name: seen\n  namespace: {NAMESPACE}\n"
        "spec:\n  api:\n    denied:\n    - name: state\n      version: v1.0\n      protocol: http\n"
    )
    seen = Document("Configuration", "seen", NAMESPACE, text)
    other = replace_name(seen, "other")
    async with starting(cluster.gateway("cart", "--config", "seen")) as cart:
        await until_logged(cart, "there is no Configuration 'seen' in the namespace shop")
        cluster.put(component("store", NAMESPACE), seen, other)
        await cart.until_ready()
        assert (await ask(cart, "GET", "/state/store/k"))[0] in (403, 404)
        await cluster.until_reported("Component/store", "Configuration/seen")


def replace_name(document: Document, name: str) -> Document:
    return Document(document.kind, name, document.namespace, document.text.replace(document.name, name))


async def test_what_nobody_could_be_trusted_by_is_refused_at_once(cluster: Cluster) -> None:
    process = cluster.gateway("cart", MESH_SUPPLY_ROOTS="")
    async with starting(process):
        assert await process.wait() == 2
        _logged(process, "MESH_SUPPLY_ROOTS")
    nonsense = cluster.gateway("front", MESH_SUPPLY_ROOTS="nonsense")
    async with starting(nonsense):
        assert await nonsense.wait() in (1, 2)
        _logged(nonsense, "MESH_SUPPLY_ROOTS holds no certificates")


async def test_what_it_needs_of_its_machine_is_named(cluster: Cluster, tmp_path: Path) -> None:
    """The log says which file it is about, and which variable names it; a folder whose parents miss is made."""
    (tmp_path / "file").touch()
    deep = cluster.gateway("deep", MESH_SUPPLY_DIR=str(tmp_path / "a" / "b" / "c"), MESH_SUPPLY_TOKEN_FILE="/no/token")
    async with starting(deep), starting(cluster.gateway("flat", MESH_SUPPLY_DIR=str(tmp_path / "file" / "x"))) as flat:
        await until_logged(deep, "MESH_SUPPLY_TOKEN_FILE")
        _logged(deep, "/no/token: No such file")
        assert (tmp_path / "a" / "b" / "c").is_dir()
        await until_logged(flat, "MESH_SUPPLY_DIR")


async def test_it_ends_while_it_waits(cluster: Cluster) -> None:
    async with starting(cluster.gateway("cart")) as cart:
        await until_logged(cart, "waiting for what the operator")
        async with asyncio.timeout(20.0):
            await cart.terminate()
