"""An operator goes on, whatever the API server does, and however much there is."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.informer import Informer, Key
from bindings.kubernetes.operator.kinds import KINDS
from bindings.kubernetes.operator.resource import Resource, resource_of
from tests.support.eventually import eventually
from tests.support.kubernetes.node import LocalCluster
from tests.support.kubernetes.operators import Installed, Pending, component
from tests.support.nats import NatsServer
from tests.support.nodes import unique

MANY = 1500
AT_ONCE = 16


@pytest.fixture
async def installed(cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[Installed]:
    server = NatsServer(tmp_path / "nats")
    async with server, Installed.make(cluster, unique("oper"), tmp_path, server.url) as made:
        yield made


class Followed:
    """An informer of the Components of a namespace."""

    def __init__(self, admin: Cluster, namespace: str) -> None:
        self.path = f"/apis/dapr.io/v1alpha1/namespaces/{namespace}/components"
        self.changes: list[tuple[str, bool]] = []
        self.informer: Informer[str] = Informer(admin, self.path, _spec, self._changed)

    def _changed(self, key: Key, spec: str | None) -> None:
        self.changes.append((key[1], spec is not None))

    async def until(self, *names: str) -> None:
        """Follow until there are these and no others."""

        def check() -> None:
            assert sorted(name for _, name in self.informer.kept) == sorted(names), self.informer.failed

        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self.informer.run())
            await eventually(check)
            following.cancel()


def _spec(item: dict[str, Any]) -> str:
    return str(item["spec"])


async def test_an_api_server_that_restarts(installed: Installed) -> None:
    """Gateways are served no more by who cannot know that it leads; later all is followed, changes in between too."""
    admin, here = installed.admin, await installed.space("oper-restart")
    await admin.apply(component(here, "first"))
    await admin.apply(component(here, "second"))
    pod = await installed.pod(here, "cart-0", app_id="cart")
    followed = Followed(admin, here)
    await followed.until("first", "second")
    [page] = [page async for page in admin.pages(followed.path)]
    async with installed.operator() as operator:

        def serves() -> None:
            assert operator.serving

        def serves_not() -> None:
            assert not operator.serving

        await eventually(serves)
        await asyncio.to_thread(installed.node.kill, "apiserver")
        await eventually(serves_not)
        await asyncio.to_thread(installed.node.run, "apiserver")
        await admin.delete(f"{followed.path}/first")
        await admin.apply(component(here, "third"))
        with pytest.raises(ClusterError) as raised:
            async with admin.watch(followed.path, page.version) as changes:
                async for _ in changes:
                    pass
        assert raised.value.status == 410, "the API server remembers what was before its restart"
        await followed.until("second", "third")
        assert followed.changes == [("first", True), ("second", True), ("third", True), ("first", False)]
        await eventually(serves)

        def knows() -> None:
            assert sorted(operator.source.resources.of(here)) == ["Component/second", "Component/third"]

        await eventually(knows)
        answer = await pod.ask(operator)
        assert [each.name for each in answer.documents or ()] == ["second", "third"]


async def test_a_broker_that_restarts(installed: Installed, tmp_path: Path) -> None:
    """The same operator serves again, and knows all."""
    here = await installed.space("oper-broker")
    await installed.admin.apply(component(here, "first"))
    pod = await installed.pod(here, "cart-0", app_id="cart")
    async with NatsServer(tmp_path / "other") as server:
        other = replace(installed, settings=replace(installed.settings, backbone=server.url))
        pod = Pending(other, pod.namespace, pod.name, pod.uid, pod.app_id, pod.token)
        async with other.operator() as operator:

            def serves() -> None:
                assert operator.serving

            await eventually(serves)
            before = await pod.ask(operator)
            await server.kill()
            await server.start()

            async def again() -> None:
                try:
                    assert (await pod.ask(operator)).revision == before.revision
                except Exception as error:
                    raise AssertionError(error) from error

            await eventually(again)


async def test_a_kind_that_comes_later(cluster: LocalCluster) -> None:
    """Is followed as soon as the API server serves it, which at first says that it cannot (404, then 429)."""
    async with Cluster(str(cluster.kubeconfig)) as admin, asyncio.TaskGroup() as tasks:
        informer: Informer[str] = Informer(admin, "/apis/later.example/v1/things", _spec, lambda key, thing: None)
        following = tasks.create_task(informer.run())
        async with asyncio.timeout(20):
            await informer.synced.wait()
        assert "404" in informer.failed
        await admin.apply(LATER)
        thing = {"apiVersion": "later.example/v1", "kind": "Thing", "metadata": {"name": "one"}, "spec": {"a": 1}}
        path = "/apis/later.example/v1/namespaces/default/things/one"

        async def made() -> None:
            try:
                await admin.apply(thing, path=path)
            except ClusterError as error:
                raise AssertionError(error) from error

        await eventually(made)

        def check() -> None:
            assert informer.kept == {("default", "one"): "{'a': 1}"}
            assert not informer.failed

        await eventually(check)
        following.cancel()
        await admin.delete(await admin.path_of(LATER))


LATER = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "things.later.example"},
    "spec": {
        "group": "later.example",
        "scope": "Namespaced",
        "names": {"kind": "Thing", "plural": "things", "singular": "thing", "listKind": "ThingList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


async def test_thousands_of_resources(installed: Installed) -> None:
    """Are read by pages, and take little room; who is given which is told by scopes."""
    admin, here = installed.admin, await installed.space("oper-many")
    path = f"/apis/dapr.io/v1alpha1/namespaces/{here}/components"
    entry = {"name": "text", "value": "x" * 200}
    numbers = iter(range(MANY))

    async def fill() -> None:
        for number in numbers:
            await admin.create(path, component(here, f"c{number:04}", entry, scopes=[f"app{number % 100}"]))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(fill())
    assert [len(page.items) async for page in admin.pages(path)] == [500] * (MANY // 500)
    informer: Informer[Resource] = Informer(
        admin, path, lambda item: resource_of(KINDS["Component"], item), lambda key, resource: None
    )
    tracemalloc.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(informer.run())
            await informer.synced.wait()
            kept, _ = tracemalloc.get_traced_memory()
            following.cancel()
    finally:
        tracemalloc.stop()
    assert len(informer.kept) == MANY
    assert kept / MANY < 1600, f"{kept / MANY:.0f} bytes a resource"
    pod = await installed.pod(here, "cart-0", app_id="app7")
    async with installed.operator() as operator:

        def serves() -> None:
            assert operator.serving

        await eventually(serves)
        answer = await pod.ask(operator)
        assert [each.name for each in answer.documents or ()] == [f"c{number:04}" for number in range(7, MANY, 100)]
    await admin.delete(f"/api/v1/namespaces/{here}")
