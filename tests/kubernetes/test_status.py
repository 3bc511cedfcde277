"""What the cluster is told of resources: which gateways use them, and what is wrong with them there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bindings.kubernetes.operator.kinds import KINDS
from bindings.kubernetes.operator.running import Operator
from mesh.trust.certificates import as_pem
from tests.support.eventually import eventually
from tests.support.gateways import MESH, MeshHome, MeshRun
from tests.support.kubernetes.node import LocalCluster
from tests.support.kubernetes.operators import Installed, Pending, component
from tests.support.nats import NatsServer
from tests.support.nodes import unique

SPACE = "oper-status"


@pytest.fixture
async def installed(cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[Installed]:
    server = NatsServer(tmp_path / "nats")
    async with server, Installed.make(cluster, unique("oper"), tmp_path, server.url) as made:
        yield made


@pytest.fixture
async def operator(installed: Installed) -> AsyncIterator[Operator]:
    async with installed.operator() as operator:

        def check() -> None:
            assert operator.serving

        await eventually(check)
        yield operator


@contextmanager
def gateway(pod: Pending, operator: Operator, directory: Path) -> Iterator[MeshRun]:
    """Run the gateway of a pod as a process of this machine."""
    folder, token, settings = directory / "supply", directory / "token", pod.installed.settings
    folder.mkdir(parents=True, exist_ok=True)
    token.write_text(pod.token)
    environ = {
        "MESH_SUPPLY": settings.namespace,
        "MESH_SUPPLY_DIR": str(folder),
        "MESH_SUPPLY_TOKEN_FILE": str(token),
        "MESH_SUPPLY_ROOTS": as_pem(operator.trust.root.roots).decode(),
        "MESH_TRUST_DOMAIN": operator.trust.trust_domain,
        "MESH_TRUST_MODE": "strict",
        "MESH_BACKBONE": settings.backbone,
        "NAMESPACE": pod.namespace,
        "POD_NAME": pod.name,
    }
    home = MeshHome(directory / "home")
    words = [*MESH, "gateway", "--app-id", pod.app_id, "--dapr-http-port", "0", "--dapr-grpc-port", "0"]
    with home.started([*words, "--resources-path", str(folder)], home.environ(environ), None) as running:
        yield running


def path(name: str) -> str:
    return f"/apis/dapr.io/v1alpha1/namespaces/{SPACE}/components/{name}"


async def test_status(installed: Installed, operator: Operator, tmp_path: Path) -> None:
    """A resource that is wrong says so with field and line; once it is right, who uses it. Nobody else is told."""
    admin, kubectl = installed.admin, installed.node.kubectl
    await installed.space(SPACE)
    await admin.apply(component(SPACE, "good"))
    await admin.apply(component(SPACE, "others", scopes=["pay"]))
    entries = [{"name": "redisHost", "value": "x"}, {"name": "maxRetries", "value": "many"}]
    await admin.apply(component(SPACE, "bad", *entries, kind="state.redis"))
    pod = await installed.pod(SPACE, "cart-0", app_id="cart")

    async def status(name: str, state: str) -> dict[str, Any]:
        found = (await admin.get(path(name)) or {}).get("status") or {}
        conditions = [each["status"] for each in found.get("conditions") or ()]
        assert conditions == [state], f"{name}: {found}"
        return found

    with gateway(pod, operator, tmp_path / "cart") as running:
        found = await eventually(lambda: status("bad", "False"))
        assert (found["observedGeneration"], found["loadedBy"]) == (1, {"count": 0, "nodes": []})
        [problem] = found["problems"]
        assert (problem["node"], problem["field"]) == ("cart-0", "spec.metadata[1] (maxRetries)")
        assert "many" in problem["text"]
        shown = kubectl("get", "component", "bad", "-n", SPACE, "-o", "yaml").splitlines()
        assert shown[problem["line"] - 1].strip() == "- name: maxRetries"
        assert found["conditions"][0]["message"].startswith("spec.metadata[1] (maxRetries): ")

        await admin.apply(component(SPACE, "bad"))
        found = await eventually(lambda: status("bad", "True"))
        assert (found["observedGeneration"], found["loadedBy"]) == (2, {"count": 1, "nodes": ["cart-0"]})
        assert found["problems"] == []
        waiting = "wait", "--for=condition=Loaded", "component/good", "component/bad", "-n", SPACE, "--timeout=20s"
        await asyncio.to_thread(kubectl, *waiting)  # The operator is in this loop.
        columns = kubectl("get", "components", "-n", SPACE).splitlines()
        assert columns[0].split() == ["NAME", "TYPE", "VERSION", "LOADED", "NODES", "PROBLEM", "AGE"]
        assert "status" not in (await admin.get(path("others")) or {})
        assert "strict" in running.text, "it did not get its identity"

        await admin.delete(f"/api/v1/namespaces/{SPACE}/pods/cart-0")
        found = await eventually(lambda: status("good", "Unknown"))
        assert found["loadedBy"] == {"count": 0, "nodes": []}


@pytest.mark.parametrize(
    ("kind", "spec", "told"),
    [
        ("Component", "{type: redis, version: v1}", "a type looks like state.redis"),
        ("Component", "{version: v1}", "spec.type: Required value"),
        ("Component", "{type: state.redis, metadata: {}}", "spec.metadata"),
        ("Component", "{type: state.redis, inittimeout: 3s}", 'unknown field "spec.inittimeout"'),
        ("HTTPEndpoint", "{baseUrl: 'host:80'}", "baseUrl is http:// or https:// and a host"),
        ("Subscription", "{pubsubname: p, topic: t}", "needs route (v1alpha1) or routes (v2alpha1), one of them"),
    ],
)
async def test_what_the_api_server_refuses(installed: Installed, kind: str, spec: str, told: str) -> None:
    """Is said by kubectl at once, before any gateway has seen it."""
    text = f"{{apiVersion: dapr.io/v1alpha1, kind: {kind}, metadata: {{name: wrong}}, spec: {spec}}}"
    with pytest.raises(AssertionError) as raised:
        installed.node.kubectl("apply", "-f", "-", given=text)
    assert told in str(raised.value)


async def test_files_of_examples_apply_unchanged(installed: Installed) -> None:
    """All resources of the examples, and those of another mesh with fields that have no effect here."""
    kinds = "|".join(KINDS)
    files = [
        file
        for file in sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
        if re.search(rf"^kind: ({kinds})$", file.read_text(), re.MULTILINE)
    ]
    assert len(files) > 10
    for file in files:
        installed.node.kubectl("apply", "--dry-run=server", "--validate=strict", "-n", "default", "-f", str(file))
    installed.node.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", given=FOREIGN)


FOREIGN = """
apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: daprconfig, namespace: default}
spec:
  mtls: {enabled: true, workloadCertTTL: 24h, allowedClockSkew: 15m}
  nameResolution: {component: mdns}
  tracing: {samplingRate: "1", zipkin: {endpointAddress: "http://zipkin:9411/api/v2/spans"}}
  metric: {enabled: true}
---
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: orders, namespace: default}
spec: {pubsubname: bus, topic: orders, route: /orders, deadLetterTopic: dead}
scopes: [cart]
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore, namespace: default}
spec:
  type: state.redis
  version: v1
  initTimeout: 5m
  ignoreErrors: false
  metadata:
  - {name: redisHost, value: "redis:6379"}
  - {name: redisPassword, secretKeyRef: {name: redis, key: password}}
  - {name: actorStateStore, value: true}
  - {name: maxRetries, value: 3}
auth: {secretStore: kubernetes}
"""
