"""The operator's process: follows the cluster, and, when it leads, serves gateways and writes statuses."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from aiohttp import web

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.injector import Injection, Injector, has_native_sidecars, serving
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

__all__ = ["HEALTH_PORT", "WEBHOOK_PORT", "Operator", "OperatorSettings", "operate", "operating"]

logger = logging.getLogger(__name__)

HEALTH_PORT = 8080
WEBHOOK_PORT = 9443
AGAIN_SECONDS = 5.0
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
        injection: What pods are given; None = they are given nothing.
        webhook_port: Where the API server asks for that.
    """

    namespace: str
    backbone: str
    name: str
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    identities: bool = True
    host: str = "0.0.0.0"  # noqa: S104 - the kubelet asks for its health
    health_port: int = HEALTH_PORT
    kubeconfig: str | None = None
    injection: Injection | None = None
    webhook_port: int = WEBHOOK_PORT


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
        self._cluster, self._settings = cluster, settings
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
            tasks.create_task(self._inject(), name="operator-inject")

    async def _lead(self) -> None:
        """Serve until it is cancelled; raises ``MeshError``, ``ClusterError``."""
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(task_group())
            keeping = tasks.create_task(self.trust.keep(), name="operator-root")
            stack.callback(keeping.cancel)
            await self.trust.ready.wait()
            self.source.resources.retry()  # The API server has just made this one the leader.
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
                self.source.changed = self.trust.changed = _nobody

    def _broker(self) -> Broker:
        adapter = Registry().backbone(self._settings.backbone)
        broker: Broker = adapter.from_url(self._settings.backbone)  # type: ignore[attr-defined]  # as entry points promise
        return broker

    async def _inject(self) -> None:
        """Give pods gateways, whether it leads or not, once there is a root."""
        injection = self._settings.injection
        if injection is None:
            return
        await self.trust.ready.wait()
        native = await self._has_native_sidecars()
        injection = replace(injection, trust_domain=self.trust.trust_domain, native=native)
        injector = Injector(namespace=self._settings.namespace, port=self._settings.webhook_port)
        async with serving(self._cluster, injector, injection, lambda: self.trust.root):
            await asyncio.Event().wait()

    async def _has_native_sidecars(self) -> bool:
        while True:
            try:
                return await has_native_sidecars(self._cluster)
            except ClusterError as error:
                logger.warning("the version of the cluster is not known yet: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)

    @property
    def problem(self) -> str:
        """Why it could not serve at present, if it leads; else nothing."""
        if not self.trust.ready.is_set():
            return "there is no root of identities yet"
        return self.source.resources.failed


async def operate(settings: OperatorSettings) -> None:
    """Run a replica until a signal ends it; raises what `operating` does."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with operating(settings):
        await ended.wait()


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
        return web.json_response({"problem": operator.problem}, status=200 if operator.trust.ready.is_set() else 503)

    app = web.Application()
    app.add_routes([web.get("/healthz", alive), web.get("/readyz", ready)])
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.health_port).start()
        yield
    finally:
        await runner.cleanup()


def _nobody(*_: object) -> None:
    """Tell nobody of what has changed: this replica does not lead."""
