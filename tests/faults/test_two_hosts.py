"""Two hosts have nothing in common but the broker: each has a home of its own, and they are one mesh all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import aiohttp
import pytest

from tests.faults.conftest import Site
from tests.support.backends import features_of
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess

RESOURCES = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec: {type: pubsub.mesh, version: v1}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: shared}
spec: {type: state.mesh, version: v1, metadata: [{name: keyPrefix, value: none}]}
"""
SUBSCRIPTIONS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders"}]


class Host(NamedTuple):
    """A machine, as far as the mesh can tell."""

    name: str
    app: AppProcess
    gateway: GatewayProcess


def prepared(site: Site, name: str) -> Host:
    """Give a host that is not started."""
    home = site.home / name
    (home / "resources").mkdir(parents=True)
    (home / "resources" / "all.yaml").write_text(RESOURCES)
    app = AppProcess(home, subscriptions=SUBSCRIPTIONS)
    environ = {**site.backend.environ, "NAMESPACE": site.namespace}
    arguments = ["--resources-path", str(home / "resources")]
    gateway = GatewayProcess(name, home, app=app, backbone=site.backend.url, arguments=arguments, environ=environ)
    return Host(name, app, gateway)


@pytest.fixture
async def hosts(site: Site) -> AsyncIterator[tuple[Host, Host]]:
    near, far = prepared(site, "near"), prepared(site, "far")
    async with near.app, far.app, near.gateway, far.gateway:
        yield near, far


async def test_hosts_with_homes_of_their_own_are_one_mesh(site: Site, hosts: tuple[Host, Host]) -> None:
    """Calls, events and, where the broker keeps it, state go from each to the other."""
    async with aiohttp.ClientSession() as client:
        for here, there in (hosts, hosts[::-1]):
            async with client.get(f"{here.gateway.api}/invoke/{there.name}/method/echo") as answer:
                assert (answer.status, (await answer.json())["pid"]) == (200, there.app.pid)
            async with client.post(f"{here.gateway.api}/publish/pubsub/orders", json={"id": here.name}) as answer:
                assert answer.status == 204
            if features_of(site.name).key_value:
                await state_is_shared(client, here, there)

        def everybody_got_both() -> None:
            for host in hosts:
                assert sorted(host.app.recorded("orders")) == ["far", "near"]

        await eventually(everybody_got_both)


async def state_is_shared(client: aiohttp.ClientSession, here: Host, there: Host) -> None:
    """What one saves is what the other reads, and only one of two writers that saw the same value wins."""
    state, key = "/state/shared", f"of-{here.name}"
    async with client.post(f"{here.gateway.api}{state}", json=[{"key": key, "value": 1}]) as answer:
        assert answer.status == 204
    async with client.get(f"{there.gateway.api}{state}/{key}?consistency=strong") as answer:
        assert await answer.json() == 1
        etag = answer.headers["etag"]
    statuses = []
    for host, value in ((there, 2), (here, 3)):
        changed = {"key": key, "value": value, "etag": etag, "options": {"concurrency": "first-write"}}
        async with client.post(f"{host.gateway.api}{state}", json=[changed]) as answer:
            statuses.append(answer.status)
    assert statuses == [204, 409]
    async with client.get(f"{here.gateway.api}{state}/{key}?consistency=strong") as answer:
        assert await answer.json() == 2
