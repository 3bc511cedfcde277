"""What an operator reads of a cluster when who writes resources means harm, or the API server does not answer all."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.delivery.installing import install
from bindings.kubernetes.informer import Informer
from bindings.kubernetes.injector import has_native_sidecars
from bindings.kubernetes.operator.kinds import KINDS
from bindings.kubernetes.operator.resource import Resource, resource_of, text_of
from bindings.kubernetes.operator.secrets import Secrets
from bindings.kubernetes.operator.source import ClusterPod, ClusterSource
from bindings.kubernetes.operator.trust import Trust
from mesh.errors import ConfigError
from tests.support.eventually import eventually

Record = dict[str, Any]
SECONDS = 10.0


class Server:
    """An API server with Secrets, that keeps to the paths and statuses of the Kubernetes documentation.

    Attributes:
        secrets: Values by path.
        refuses: A status by path.
        text: What each list says in place of Secrets.
        minor: Of its version.
        asked: Paths.
    """

    def __init__(self) -> None:
        self.secrets: dict[str, Record] = {}
        self.refuses: dict[str, int] = {}
        self.text: bytes | None = None
        self.minor = "37"
        self.asked: list[str] = []
        self._ended = asyncio.Event()

    def put(self, namespace: str, name: str, **values: str) -> None:
        about = {"namespace": namespace, "name": name, "resourceVersion": "1"}
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        self.secrets[f"/api/v1/namespaces/{namespace}/secrets/{name}"] = {"metadata": about, "data": data}

    @asynccontextmanager
    async def cluster(self, folder: Path) -> AsyncIterator[Cluster]:
        runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            where = f"http://127.0.0.1:{runner.addresses[0][1]}"
            file = folder / "kubeconfig"
            contexts = [{"name": "c", "context": {"cluster": "c"}}]
            clusters = [{"name": "c", "cluster": {"server": where}}]
            file.write_bytes(orjson.dumps({"current-context": "c", "contexts": contexts, "clusters": clusters}))
            async with Cluster(str(file)) as cluster:
                yield cluster
        finally:
            self._ended.set()
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        if refused := self.refuses.get(request.path):
            return web.json_response({"message": "refused", "reason": "Refused"}, status=refused)
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": self.minor})
        if "watch" in request.query:
            await self._ended.wait()
        if request.path.endswith("s"):
            listed = orjson.dumps({"metadata": {"resourceVersion": "1"}, "items": list(self.secrets.values())})
            return web.Response(body=self.text or listed, content_type="application/json")
        found = self.secrets.get(request.path)
        return web.json_response(found or {"message": "not found"}, status=200 if found else 404)


def component(spec: Record, **more: Any) -> Record:
    return {"metadata": {"namespace": "shop", "name": "store", "generation": 1}, "spec": spec, **more}


def read(item: Record) -> Resource:
    return resource_of(KINDS["Component"], item)


@asynccontextmanager
async def following(cluster: Cluster, told: list[str]) -> AsyncIterator[Secrets]:
    secrets = Secrets(cluster, told.append)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(secrets.run())
        try:
            yield secrets
        finally:
            running.cancel()


@pytest.mark.parametrize(
    "name", ["../../kube-system/secrets/login", "x/../../../other/secrets/login", "login?x=1", "login#", "%2e%2e", ""]
)
def test_a_reference_is_no_path(name: str) -> None:
    """Who may write a resource may not have the operator read Secrets of other namespaces for it."""
    reference = {"name": "password", "secretKeyRef": {"name": name, "key": "password"}}
    assert not read(component({"metadata": [reference]})).secrets


async def test_a_path_leads_nowhere_else(tmp_path: Path) -> None:
    server = Server()
    server.put("kube-system", "login", password="of-others")
    async with server.cluster(tmp_path) as cluster:
        for name in ("../../kube-system/secrets/login", "..", "a?b", "a/./b", "a//b"):
            with pytest.raises(ClusterError, match="no object of a cluster has the path"):
                await cluster.get(f"/api/v1/namespaces/shop/secrets/{name}")
        assert await cluster.get("/api/v1/namespaces/kube-system/secrets/login") is not None
    assert server.asked == ["/api/v1/namespaces/kube-system/secrets/login"]


@pytest.mark.parametrize("depth", [100, 990, 1500, 9000])
async def test_what_is_nested_without_end_keeps_nobody_from_the_others(tmp_path: Path, depth: int) -> None:
    """A resource that somebody nests as deeply as an API server takes it is read, and so are those beside it."""
    deep = b'{"a":"]}\\"["}'.join([b"[" * depth, b"]" * depth])
    server = Server()
    server.text = b'{"metadata":{"resourceVersion":"7"},"items":[%s,%s]}' % (
        b'{"metadata":{"namespace":"shop","name":"deep"},"spec":{"metadata":[{"name":"a","value":%s}]}}' % deep,
        b'{"metadata":{"namespace":"shop","name":"other"},"spec":{"type":"state.redis"}}',
    )
    async with server.cluster(tmp_path) as cluster:
        listed = await cluster.list("/apis/dapr.io/v1alpha1/components")
    one, other = (resource_of(KINDS["Component"], each) for each in listed)
    assert (one.refused, one.data) == ("it is nested more than 64 times", b"")
    assert "type: state.redis" in text_of(other)


def test_a_status_of_others_is_any() -> None:
    for status in ("x", ["x"], 1):
        assert read(component({}, status=status)).status == {}


async def test_who_may_not_read_a_list_does_not_take_it_for_empty(tmp_path: Path) -> None:
    server = Server()
    server.refuses = {"/api/v1/secrets": 403, "/api/v1/pods": 404}
    async with server.cluster(tmp_path) as cluster, asyncio.TaskGroup() as tasks:
        informers = [
            Informer(cluster, f"/api/v1/{each}", lambda item: item, lambda key, item: None)
            for each in ("secrets", "pods")
        ]
        running = [tasks.create_task(each.run()) for each in informers]

        def check() -> None:
            assert all(each.failed for each in informers)

        try:
            await eventually(check, SECONDS)
            assert [each.synced.is_set() for each in informers] == [False, True]
        finally:
            for each in running:
                each.cancel()


@pytest.mark.parametrize("status", [403, 500, 503])
async def test_a_secret_that_cannot_be_read_is_not_taken_for_none(
    tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that there is no such Secret; others are read; once it can be, who waits for it is told."""
    monkeypatch.setattr("bindings.kubernetes.operator.secrets.AGAIN_SECONDS", 0.05)
    server, told = Server(), list[str]()
    server.put("shop", "login", password="p")
    server.put("shop", "other", password="o")
    path = "/api/v1/namespaces/shop/secrets/login"
    server.refuses[path] = status
    async with server.cluster(tmp_path) as cluster, following(cluster, told) as secrets, asyncio.timeout(SECONDS):
        secrets.want("shop", (), [("login", "password"), ("other", "password"), ("absent", "password")])
        await secrets.settled("shop")
        assert f"answered {status}" in secrets.unread("shop", ["absent", "login"])
        assert not secrets.unread("shop", ["other", "absent"])
        assert secrets.value("shop", "other", "password") == ("1", b"o")
        told.clear()
        server.refuses.clear()

        def check() -> None:
            assert told

        await eventually(check, SECONDS)
        assert not secrets.unread("shop", ["login"])
        assert secrets.value("shop", "login", "password") == ("1", b"p")
        secrets.want("shop", [("login", "password")], ())
        assert secrets.value("shop", "login", "password") is None


@pytest.mark.parametrize("name", ["a.yaml", "x" * 253])
async def test_one_that_no_gateway_takes_keeps_nobody_from_the_others(name: str, tmp_path: Path) -> None:
    """An API server takes such names; gateways write files."""
    source = ClusterSource(Cluster(str(tmp_path)), Trust(Cluster(str(tmp_path)), "mesh-system", "cluster.example"))
    items = [component({}) | {"metadata": {"namespace": "shop", "name": each}} for each in (name, "store")]
    made = source._supply("shop", [read(each) for each in items])
    assert [each.name for each in made.documents] == ["store"]
    component_of = KINDS["Component"]
    for item in items:
        kept = source.resources._kept(component_of, item)
        assert kept is not None
        source.resources._changed(component_of, ("shop", kept.name), kept)
    pod = ClusterPod("shop", "cart", "default", "cart-0", "1")
    source.resources.secrets.informer.synced.set()
    assert [each.name for each in (await source.supplied(pod)).documents] == ["store"]
    place, resource = ("shop", f"Component/{name}"), source.resources.of("shop")[f"Component/{name}"]
    status = source.statuses._status(place, resource)
    assert status is not None
    assert status["conditions"][0]["status"] == "False"
    assert status["conditions"][0]["message"].startswith("no gateway is given it: ")
    assert place in source.statuses._due


async def test_nothing_is_installed_where_every_pod_would_be_asked_about(tmp_path: Path) -> None:
    server = Server()
    async with server.cluster(tmp_path) as cluster:
        server.minor = "27+"
        with pytest.raises(ConfigError, match=r"is Kubernetes 1.27, and needs to be 1.29"):
            await anext(install(cluster, [], dry_run=False))
        assert not await has_native_sidecars(cluster)
        server.minor = "29"
        assert [each async for each in install(cluster, [], dry_run=False)] == []
        assert await has_native_sidecars(cluster)
