"""Two clusters, each on a broker's server of its own, and bridges between them as real processes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.backends import BACKENDS, Backend
from tests.support.mesh import AppProcess, GatewayProcess, ManagedProcess, until_answers
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer

__all__ = ["BridgeProcess", "Cluster", "Clusters", "ask", "clusters"]

KEEPS_RECORDS = ("nats", "redis")
STORE = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.redis
  version: v1
  metadata:
    - {name: redisHost, value: "127.0.0.1:%d"}
    - {name: actorStateStore, value: "true"}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec: {type: pubsub.mesh, version: v1}
"""


class BridgeProcess(ManagedProcess):
    """``mesh bridge``."""

    alarming = ("Traceback (most recent call last)",)

    def __init__(self, home: Path, words: Sequence[str], environ: Mapping[str, str]) -> None:
        number = free_port()
        self.metrics_port = free_port()
        ports = ["--dapr-http-port", str(number), "--metrics-port", str(self.metrics_port)]
        command = [sys.executable, "-m", "gateway.cli", "bridge", *ports, *words]
        super().__init__("bridge", command, {"MESH_HOME": str(home), **environ}, home)
        self.port = number

    @property
    def api(self) -> str:
        return f"{self.url}/v1.0"

    async def until_ready(self) -> None:
        await until_answers(self, "/v1.0/healthz")


@dataclass
class Cluster:
    """One of them.

    Attributes:
        name: The cluster's.
        backend: Its broker.
        home: Of its gateways.
        namespace: Of its mesh.
        resources: Arguments of its gateways that give them a place for records, where the broker has none.
    """

    name: str
    backend: Backend
    home: Path
    namespace: str
    resources: Sequence[str] = ()

    def gateway(
        self,
        app_id: str,
        app: AppProcess | None = None,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        http_port: int | None = None,
    ) -> GatewayProcess:
        """Prepare a gateway."""
        told = {**self.backend.environ, "NAMESPACE": self.namespace, **(environ or {})}
        words = [*self.resources, *arguments]
        return GatewayProcess(
            app_id, self.home, app=app, backbone=self.backend.url, arguments=words, environ=told, http_port=http_port
        )


@dataclass
class Clusters:
    """Both.

    Attributes:
        east: One.
        west: The other.
    """

    east: Cluster
    west: Cluster
    environ: Mapping[str, str] = field(default_factory=dict)

    def bridge(self, *words: str, environ: Mapping[str, str] | None = None) -> BridgeProcess:
        """Prepare a bridge by options."""
        east, west = self.east, self.west
        sides = ["--from", east.backend.url, "--as", "east", "--to", west.backend.url, "--peer", "west"]
        for option, cluster in (("--resources-path", east), ("--to-resources-path", west)):
            if cluster.resources:
                sides += [option, cluster.resources[1]]
        return self.bridge_by([*sides, *words], environ)

    def bridge_by(self, words: Sequence[str], environ: Mapping[str, str] | None = None) -> BridgeProcess:
        """Prepare a bridge by all of its options."""
        told = {**self.east.backend.environ, **self.west.backend.environ, "NAMESPACE": self.east.namespace}
        return BridgeProcess(self.east.home, words, {**told, **self.environ, **(environ or {})})


@asynccontextmanager
async def clusters(pair: str, home: Path, directory: Path, namespace: str) -> AsyncIterator[Clusters]:
    """Start both brokers of a pair such as ``nats-kafka``."""
    async with AsyncExitStack() as stack:
        made = []
        for name, kind in zip(("east", "west"), pair.split("-"), strict=True):
            backend = await stack.enter_async_context(BACKENDS[kind](directory / name))
            resources: Sequence[str] = ()
            if kind not in KEEPS_RECORDS:
                store = await stack.enter_async_context(RedisServer(directory / f"store-{name}"))
                folder = directory / f"resources-{name}"
                folder.mkdir()
                (folder / "store.yaml").write_text(STORE % store.port)
                resources = ("--resources-path", str(folder))
            made.append(Cluster(name, backend, home, namespace, resources))
        yield Clusters(*made)


async def ask(
    url: str, *, method: str = "GET", body: bytes | io.BytesIO | None = None, **headers: str
) -> tuple[int, Any]:
    """Send a request; give its status, and what it answered, as JSON where it is that."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session, session.request(method, url, data=body, headers=named) as answer:
        text = await answer.read()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text
