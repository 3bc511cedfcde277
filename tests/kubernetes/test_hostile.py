"""What somebody may write who has one namespace of a cluster, and what the others must not notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from bindings.kubernetes.operator import resources
from bindings.kubernetes.operator.running import Operator
from bindings.kubernetes.operator.source import ClusterPod
from mesh.supply.wire import Answer
from tests.support.eventually import eventually
from tests.support.kubernetes.node import LocalCluster
from tests.support.kubernetes.operators import Installed, component, secret
from tests.support.nats import NatsServer


@pytest.fixture
async def installed(cluster: LocalCluster, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Installed]:
    namespace = f"hostile-{abs(hash(request.node.name)) % 10**8}"
    server = NatsServer(tmp_path / "nats")
    async with server, Installed.make(cluster, namespace, tmp_path, server.url) as made:
        yield made


@pytest.fixture
async def operator(installed: Installed) -> AsyncIterator[Operator]:
    async with installed.operator() as operator:

        def check() -> None:
            assert operator.serving

        await eventually(check)
        yield operator


async def test_no_name_of_a_secret_leads_elsewhere(installed: Installed, operator: Operator) -> None:
    """Neither to another namespace nor to the root of identities; a name that is one is given beside it."""
    here, there = await installed.space("hostile-here"), await installed.space("hostile-there")
    await installed.admin.apply(secret(there, "login", password="of-there"))
    await installed.admin.apply(secret(here, "login", password="of-here"))
    wanted = {
        f"../../{there}/secrets/login": "password",
        f"../../{installed.namespace}/secrets/mesh-trust": "root.key",
        f"%2e%2e/%2e%2e/{there}/secrets/login": "password",
        "login?watch=1": "password",
        "login": "password",
    }
    entries = [
        {"name": f"n{number}", "secretKeyRef": {"name": name, "key": key}}
        for number, (name, key) in enumerate(wanted.items())
    ]
    await installed.admin.apply(component(here, "store", *entries))
    pod = await installed.pod(here, "cart-0", app_id="cart")

    async def check() -> Answer:
        answer = await pod.ask(operator)
        assert len(answer.documents or ()) == 1
        return answer

    assert (await eventually(check)).secrets == {"login": {"password": b"of-here"}}


@pytest.mark.parametrize("depth", [300, 3000])
async def test_a_resource_without_end(installed: Installed, operator: Operator, depth: int) -> None:
    """It is nobody's, whether it is listed or watched; what is beside it is given as before."""
    here = await installed.space("hostile-deep")
    pod = await installed.pod(here, f"cart-{depth}", app_id="cart")
    deep, list_of = {"name": "x", "value": "DEEP"}, f"/apis/dapr.io/v1alpha1/namespaces/{here}/components"
    text = orjson.dumps(component(here, "deep", deep)).decode().replace('"DEEP"', "[" * depth + "]" * depth)
    installed.node.kubectl("create", "-f", "-", given=text)
    await installed.admin.apply(component(here, "beside"))

    async def given(by: Operator) -> None:
        answer = await pod.ask(by)
        assert [each.name for each in answer.documents or ()] == ["beside"]

    await eventually(lambda: given(operator))
    async with installed.operator("two") as listing:
        await listing.source.resources.settled()
        assert given_of(listing.source.resources, here) == ["Component/beside"]

    async def told() -> None:
        found = (await installed.admin.get(f"{list_of}/deep") or {}).get("status") or {}
        assert [each["text"] for each in found.get("problems", ())] == [
            "no gateway is given it: it is nested more than 64 times"
        ]

    await eventually(told)
    assert await installed.admin.delete(f"{list_of}/deep")


async def test_many_secrets_of_one_namespace(installed: Installed, operator: Operator) -> None:
    """Who refers to thousands of them waits for them alone."""
    here, there = await installed.space("hostile-many"), await installed.space("hostile-few")
    await installed.admin.apply(secret(there, "login", password="of-there"))
    pod = await installed.pod(there, "cart-0", app_id="cart")
    entries = [{"name": f"n{n}", "secretKeyRef": {"name": f"none-{n}", "key": "k"}} for n in range(6000)]
    list_of = f"/apis/dapr.io/v1alpha1/namespaces/{here}/components"
    await installed.admin.create(list_of, component(here, "many", *entries))

    def taken() -> None:
        assert operator.source.resources.of(here)

    await eventually(taken)
    entry = {"name": "password", "secretKeyRef": {"name": "login", "key": "password"}}
    await installed.admin.apply(component(there, "store", entry))

    async def given() -> None:
        assert (await pod.ask(operator)).secrets == {"login": {"password": b"of-there"}}

    await eventually(given)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(operator.source.resources.secrets.settled(here))
        assert not (await asyncio.wait([waiting], timeout=0.1))[0]
        assert await installed.admin.delete(f"{list_of}/many")


async def test_a_pod_names_configurations_without_end(installed: Installed, operator: Operator) -> None:
    """What is kept of it is short: it may name others each second."""
    here = await installed.space("hostile-names")
    pod = await installed.pod(here, "cart-0", app_id="cart", config=",".join(f"c{n}" for n in range(30_000)))
    found = await operator.source.authenticate(pod.token, pod.name)
    assert isinstance(found, ClusterPod)
    assert "c0" in found.configurations
    assert sum(map(len, found.configurations)) < 1024


async def test_a_namespace_has_its_share_of_the_memory(
    installed: Installed, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is beyond it is left out; when there is room, a change of it brings it."""
    monkeypatch.setattr(resources, "MAX_NAMESPACE_BYTES", 100_000)
    here, there = await installed.space("hostile-large"), await installed.space("hostile-small")
    for number in range(4):
        await installed.admin.apply(component(here, f"c{number}", {"name": "x", "value": "x" * 40_000}))
    await installed.admin.apply(component(there, "store"))
    known = operator.source.resources

    def kept() -> None:
        assert given_of(known, there) == ["Component/store"]
        assert given_of(known, here) == ["Component/c0", "Component/c1"]

    await eventually(kept)
    await installed.admin.delete(f"/apis/dapr.io/v1alpha1/namespaces/{here}/components/c0")
    await eventually(lambda: gone(known, here))
    await installed.admin.apply(component(here, "c3", {"name": "x", "value": "y" * 40_000}))

    def again() -> None:
        assert sorted(given_of(known, here)) == ["Component/c1", "Component/c3"]

    await eventually(again)


def given_of(known: resources.Resources, namespace: str) -> list[str]:
    """Give what gateways of a namespace may be given."""
    return [key for key, each in known.of(namespace).items() if not each.refused]


def gone(known: resources.Resources, namespace: str) -> None:
    """Look whether the first one has gone."""
    assert "Component/c0" not in known.of(namespace)
