"""The operator's process: follows the cluster, and, when it leads, serves gateways and writes statuses."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from bindings.kubernetes.api import Cluster
from bindings.kubernetes.operator.election import Election
from bindings.kubernetes.operator.rights import LEASE
from bindings.kubernetes.operator.source import ClusterSource
from bindings.kubernetes.operator.trust import Trust
from mesh.broker import Broker
from mesh.calls.exchange import Exchange
from mesh.registry import Registry
from mesh.supply.answering import answering
from mesh.tasks import task_group
from mesh.trust.identity import DEFAULT_TRUST_DOMAIN

__all__ = ["HEALTH_PORT", "Operator", "OperatorSettings", "operating"]

logger = logging.getLogger(__name__)

HEALTH_PORT = 8080
BEGUN_SECONDS = 30.0
"""Over which gateways spread their asks when another replica leads."""


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """How an operator works.

    Attributes:
        namespace: Its own.
        backbone: URL of the broker that it meets gateways on.
        name: Of this replica: its pod's.
        trust_domain: Of a root that is to be made.
        identities: Whether gateways are given certificates.
        host: Where its health can be asked.
        health_port: Likewise; 0 = a free one.
        kubeconfig: Path of a kubeconfig file; None looks for it.
    """

    namespace: str
    backbone: str
    name: str
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    identities: bool = True
    host: str = "0.0.0.0"  # noqa: S104 - the kubelet asks for its health
    health_port: int = HEALTH_PORT
    kubeconfig: str | None = None


class Operator:
    """One replica.

    Attributes:
        trust: The root, and the operator's own certificate.
        source: What it knows of the cluster.
        election: Whether it leads.
        serving: Whether it serves gateways.
    """

    def __init__(self, cluster: Cluster, settings: OperatorSettings) -> None:
        """Follow nothing yet.

        Args:
            cluster: To ask; its errors have to be ``ClusterError``.
            settings: How it works.
        """
        self._settings = settings
        self.trust = Trust(cluster, settings.namespace, settings.trust_domain)
        self.source = ClusterSource(cluster, self.trust, identities=settings.identities)
        identity = f"{settings.name}_{secrets.token_hex(4)}"
        self.election = Election(cluster, settings.namespace, LEASE, identity)
        self.serving = False

    async def run(self) -> None:
        """Work until it is cancelled."""
        async with task_group() as tasks:
            tasks.create_task(self.trust.run(), name="operator-trust")
            tasks.create_task(self.source.resources.run(), name="operator-resources")
            tasks.create_task(self.election.run(self._lead), name="operator-election")

    async def _lead(self) -> None:
        """Serve until it is cancelled; raises ``MeshError``, ``ClusterError``."""
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(task_group())
            keeping = tasks.create_task(self.trust.keep(), name="operator-root")
            stack.callback(keeping.cancel)
            await self.trust.ready.wait()
            await self.source.resources.settled()
            exchange = Exchange(await stack.enter_async_context(self._broker()))
            await stack.enter_async_context(exchange)
            await stack.enter_async_context(self._answering(exchange))
            writing = tasks.create_task(self.source.statuses.run(), name="operator-status")
            stack.callback(writing.cancel)
            await asyncio.Event().wait()

    @asynccontextmanager
    async def _answering(self, exchange: Exchange) -> AsyncIterator[None]:
        async with answering(exchange, self._settings.namespace, self.source) as supply:

            def all_changed(within: float = BEGUN_SECONDS) -> None:
                for namespace in self.source.resources.namespaces:
                    supply.changed(namespace, within)

            self.source.changed, self.trust.changed = supply.changed, all_changed
            self.serving = True
            logger.info("gateways are served")
            all_changed()
            try:
                yield
            finally:
                self.serving = False
                self.source.quiet()
                self.trust.quiet()

    def _broker(self) -> Broker:
        broker: Broker = Registry().backbone(self._settings.backbone).from_url(self._settings.backbone)  # type: ignore[attr-defined]  # as entry points promise
        return broker

    def ready(self) -> str:
        """Tell why it could not lead now; empty: it could."""
        if not self.trust.ready.is_set() and self.election.leader not in ("", self.election.identity):
            return "there is no root yet"
        return ""


@asynccontextmanager
async def operating(settings: OperatorSettings) -> AsyncIterator[Operator]:
    """Run a replica while it is entered, with its health for whoever asks.

    Raises:
        ClusterError: Nothing says how to reach the cluster.
        OSError: The port of its health is taken.
    """
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(settings.kubeconfig))
        operator = Operator(cluster, settings)
        await stack.enter_async_context(_health(operator, settings))
        tasks = await stack.enter_async_context(task_group())
        running = tasks.create_task(operator.run(), name="operator")
        try:
            yield operator
        finally:
            running.cancel()


@asynccontextmanager
async def _health(operator: Operator, settings: OperatorSettings) -> AsyncIterator[None]:
    async def alive(request: web.Request) -> web.Response:
        return web.json_response({"leads": operator.election.leads, "leader": operator.election.leader})

    async def ready(request: web.Request) -> web.Response:
        problem = operator.ready()
        return web.json_response({"problem": problem}, status=503 if problem else 200)

    app = web.Application()
    app.add_routes([web.get("/healthz", alive), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.health_port).start()
        yield
    finally:
        await runner.cleanup()
