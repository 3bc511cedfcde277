"""One gateway process: builds it, starts it in order, and takes it down in order.

Start: resources → backbone and components → HTTP (``healthz/outbound`` ready) → the application's
port → its subscriptions → ``healthz`` ready. Application and gateway never wait on each other.

Stop: not ready → no more fetching → what is in flight finishes, HTTP still up, since applications
publish while they finish → HTTP closes → brokers flush and close. A second signal skips the waiting.
Told to drain, it does the first half, and the second once it is told to stop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from gateway.application import application_of
from gateway.config import BridgeConfig, GatewayConfig
from gateway.described import actors, backlog, subscription_as_told, without_nothing
from gateway.doors import Doors, Listening
from gateway.export.opening import spans_sent
from gateway.given import socket_path
from gateway.http.application import HTTPApplication, outside_service
from gateway.http.loading import loaded
from gateway.http.middleware import Through, middleware_stage, towards_application
from gateway.http.server import Handler
from gateway.http.stages import staged, stages
from gateway.life import Life
from gateway.logs import LogRing
from gateway.metrics.endpoint import Metrics
from gateway.metrics.settings import of_configuration
from gateway.reload import FEATURE, Look, look, watching
from gateway.remote import RemoteAnswers
from gateway.routes import build_api, build_router
from gateway.routes.invocation import comparable, named_by
from gateway.routes.request import read_body
from gateway.routes.route import API
from gateway.runs import Run, registered
from gateway.settings import Reader, endpoint_client
from gateway.views import Views
from mesh import __version__
from mesh.application import Headers
from mesh.blocks.configuration import UNSUBSCRIBE
from mesh.blocks.middleware import MiddlewareService
from mesh.node.backlogs import Backlogs
from mesh.node.description import NodeDescription
from mesh.node.health import ComponentStatus
from mesh.node.remote import Question
from mesh.node.runtime import Runtime
from mesh.operation import Context, Operation
from mesh.registry import Registry
from mesh.resources.subscription import Subscription
from mesh.tasks import drained_within

if TYPE_CHECKING:
    from gateway.bridging import Bridging
    from gateway.supplied import Agent
    from gateway.workers.child import Siblings
    from mesh.node.spec import NodeSettings

__all__ = ["Gateway"]

logger = logging.getLogger(__name__)

ASK_SECONDS = 15.0


class Gateway(Life):
    """A running gateway."""

    def __init__(
        self,
        config: GatewayConfig,
        ring: LogRing | None = None,
        doors: Doors | None = None,
        siblings: Siblings | None = None,
        agent: Agent | None = None,
    ) -> None:
        """Prepare; ``running`` starts.

        Args:
            config: What it is told.
            ring: The last lines of its log; None = nobody is told them.
            doors: Where it listens; None = at what its configuration names.
            siblings: The same gateway in other processes (``mesh gateway --workers``); None = there is none.
            agent: Keeps fresh what an operator gives; None = there is none.
        """
        super().__init__(config.drain)
        self.config = config
        self._agent = agent
        self._doors, self._siblings = doors or Listening(config), siblings
        self.app_id = config.app_id
        self._open = False
        self.port = self.grpc_port = 0
        self._reloads = True
        self._key = os.urandom(24).hex() if siblings is None else siblings.key
        self._labels = dict(config.labels) if siblings is None else siblings.labels
        self._runtime: Runtime
        self._backlogs: Backlogs
        self._ring = ring or LogRing()
        self.views: Views
        self._application: HTTPApplication | None = None
        self._metrics: Metrics | None = None
        self._bridging: Bridging | None = None
        self.metrics_port = 0

    # What the routes ask

    @property
    def node_id(self) -> str:
        """Which node this is."""
        return self._runtime.remote.node_id

    @property
    def proven(self) -> bool:
        """Whether the gateway can prove who it is, or need not."""
        guard = self._runtime.exchange.guard
        return guard is None or guard.standing.proven.is_set()

    @property
    def outbound_ready(self) -> bool:
        """Whether calls out of the application work."""
        return self._open and self.proven

    @property
    def not_ready(self) -> Sequence[str]:
        """What is missing until everything works."""
        replaced = self._siblings is not None and self._siblings.replaced
        if self.stopping.is_set() and not replaced:  # Who asks a worker asks the gateway, which goes on.
            return ("shutting-down",)
        if self.draining.is_set():
            return ("draining",)
        if not self._open:
            return ("components",)
        if not self.proven:
            return ("identity",)
        if self.config.app_port is not None and not self._runtime.serving:
            elsewhere = self._siblings is not None and self._siblings.well
            return () if elsewhere else ("app",)
        if self._bridging is not None and not self._bridging.works:
            return ("bridge",)
        return ()

    def end(self, *, force: bool = False) -> None:
        """Begin to stop, as a client wants it: the gateway in other processes as well."""
        if self._siblings is None:
            self.shut_down(force=force)
        else:
            self._siblings.tell("stop", force)

    def label(self, name: str, value: str) -> None:
        """Show something in metadata."""
        self._labels[name] = value
        if self._siblings is not None:
            self._siblings.tell("labelled", name, value)

    async def elsewhere(self, name: str, *arguments: object) -> bool:
        """Have another process of the gateway do what this one cannot; False = none can."""
        return self._siblings is not None and any(await self._siblings.others(name, *arguments))

    async def drain_all(self) -> None:
        """Take nothing more for the application, in other processes neither; returns once nothing is in flight."""
        self.drain()
        if self._siblings is not None:
            await self._siblings.drained(self.config.drain)
        await self.drained.wait()

    async def until_lost(self) -> str:
        """Wait until it has lost its backbone for good; give why."""
        return await self._runtime.until_lost()

    def until_unhealthy(self) -> asyncio.Event | None:
        """Give what is set once the application is unhealthy; None = nobody looks."""
        application = self._application
        return None if application is None or self.config.app_health is None else application.unreachable

    async def ask_node(
        self,
        node_id: str,
        verb: str,
        path: str,
        query: str = "",
        headers: Headers = (),
        body: bytes = b"",
        deadline: float | None = None,
        *,
        app_id: str = "",
    ) -> tuple[int, Headers, bytes]:
        """Ask another node for what its own API answers; see docs/node-views.md.

        Args:
            node_id: Which one.
            verb: As in a request line, like the next two.
            path: With its slash at the beginning, as ``/v1.0/mesh/node``.
            query: Without its question mark.
            headers: Names and values.
            body: At most 4 MiB.
            deadline: Unix time in seconds by which the answer must have come; None = in 15 s.
            app_id: Whose node it is; empty = that is asked for first, which takes a second once.

        Returns:
            Status, header fields and body; what the node refuses is a status, too.

        Raises:
            NoResponderError: It is not there, or has too much to do; it did nothing.
            DeadlineExceededError: It did not answer in time; what it did is unknown.
            MeshError: It could not be asked. ``gateway.remote.as_api_error`` gives what clients are told.
        """
        question = Question(verb, path, query, tuple(headers), body)
        until = time.time() + ASK_SECONDS if deadline is None else deadline
        told = await self._runtime.remote.ask(node_id, question, until, app_id)
        return told.status, told.headers, told.body

    async def metadata(self) -> dict[str, object]:
        """Give what ``GET metadata`` answers."""
        own = await self._metadata()
        return own if self._siblings is None else await self._siblings.metadata(own)

    async def _unsubscribe(self, store: str, subscription_id: str) -> object:
        context = Context(self._runtime.caller)
        return await self._runtime.run(Operation(UNSUBSCRIBE, store, subscription_id, context))

    async def _drained(self) -> None:
        self.drain()
        await self.drained.wait()

    async def _metadata(self) -> dict[str, object]:
        async with asyncio.TaskGroup() as asking:  # Either may wait for a server that is silent.
            health = asking.create_task(self._runtime.health(), name="metadata-health")
            looking = asking.create_task(self._backlogs.look(), name="metadata-backlogs")
        status, backlogs = health.result(), looking.result()
        counted = self._runtime.counters.snapshot()
        config, node = self.config, self._runtime.description
        described: dict[str, object] = {
            "id": node.app_id,
            "runtimeVersion": __version__,
            "enabledFeatures": [FEATURE] * self._reloads + [each for each in node.features if each != FEATURE],
            "actors": actors(node),
            "components": [without_nothing(asdict(component)) for component in node.components],
            "extended": {"daprRuntimeVersion": __version__, **self._labels},
            "subscriptions": [subscription_as_told(subscription) for subscription in node.subscriptions],
            "httpEndpoints": [{"name": name} for name in node.endpoints],
            "workflowAccessPolicies": [{"name": name} for name in node.workflow_access],
            "resiliencies": [{"name": name} for name in node.resiliencies],
            "actorRuntime": self._described_actors(node),
            "scheduler": {"connected_addresses": []},
            "workflows": {"connectedWorkers": node.workers},
            "componentStatus": [without_nothing(asdict(each)) for each in status],
            "conditions": self._conditions(status),
            "circuitBreakers": self._runtime.conditions.described_breakers(),
            "backlogs": [backlog(each, counted) for each in backlogs],
        }
        if config.app_port is not None:
            described["appConnectionProperties"] = self._described_connection()
        if self._bridging is not None:
            described["bridge"] = self._bridging.described()
        kept = {"id", "runtimeVersion", "extended", "actorRuntime", "scheduler", "workflows"}
        return {name: value for name, value in described.items() if value or name in kept}

    def _conditions(self, status: Sequence[ComponentStatus]) -> list[dict[str, object]]:
        """Tell what is not as it should be, for ``mesh status``."""
        away = self.config.app_port is not None and not self._runtime.serving
        told: list[dict[str, object]] = [{"target": "application", "state": "away"}] if away else []
        told += [
            {"target": f"component {each.name}", "state": f"{each.health}: {each.reason}"}
            for each in status
            if each.reason
        ]
        return [*told, *self._runtime.conditions.described(), *(self._bridging.conditions() if self._bridging else ())]

    def _described_actors(self, node: NodeDescription) -> dict[str, object]:
        """Tell in the reference's words how the hosting of actors is, for which there is no placement service here."""
        away = self.config.app_port is not None and not self._runtime.serving and not node.actors
        status = "INITIALIZING" if away else "RUNNING"
        if not node.actors_enabled:
            status = "DISABLED"
        runs = status == "RUNNING"
        told: dict[str, object] = {"runtimeStatus": status, "activeActors": actors(node), "hostReady": runs}
        return {**told, "placement": "placement: connected" if runs else ""}

    def _described_connection(self) -> dict[str, object]:
        config = self.config
        described: dict[str, object] = {
            "port": config.app_port,
            "protocol": config.app_protocol,
            "channelAddress": config.app_host,
        }
        if config.app_max_concurrency is not None:
            described["maxConcurrency"] = config.app_max_concurrency
        if config.app_health is not None:
            described["health"] = {
                "healthCheckPath": config.app_health.path,
                "healthProbeInterval": f"{config.app_health.interval:g}s",
                "healthProbeTimeout": f"{config.app_health.timeout * 1000:g}ms",
                "healthThreshold": config.app_health.threshold,
            }
        return described

    # Life

    def _chain(self, api: API) -> Handler:
        """Give what every request passes, down to the router."""
        runtime, config, router = self._runtime, self.config, build_router(api)
        through = _through(runtime, "http_pipeline")

        around = stages(
            config,
            metrics=self._metrics,
            tracing=runtime.tracing,
            api_log=api.api_log,
            names=api.names,
            middleware=middleware_stage(
                through, comparable, read_body, config.app_id, partial(named_by, router), self._key
            ),
        )
        return staged(router, around)

    @asynccontextmanager
    async def _answering(self, api: API) -> AsyncIterator[Handler]:
        """Give all that answers requests: the chain, and the dashboard in front of it if there is one."""
        handler = self._chain(api)
        if self.config.dashboard is None:
            yield handler
            return
        from gateway.dashboard.server import dashboard  # Nobody else has to load it.

        async with dashboard(self.config, self._runtime, api, self.ask_node, handler) as shown:
            yield shown

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start everything; leaving stops everything."""
        config = self.config
        reader = Reader(config)
        looked = look(reader.paths)  # Before they are read, so that no change is missed.
        settings = reader.load()
        reader.log_warnings()
        self._reloads = settings.configuration.features().get(FEATURE, True)
        measured = of_configuration(settings.configuration)
        if config.metrics and measured.enabled:
            self._metrics = Metrics(config, measured, settings.namespace if settings.namespace_given else "")
            settings = replace(settings, observer=self._metrics.recorder)
        async with AsyncExitStack() as stack:
            # Left last: what a collector takes at the end is none of the time to drain.
            last = await stack.enter_async_context(AsyncExitStack())
            self._runtime = runtime = await stack.enter_async_context(self._made_of(settings))
            self._look_after(runtime)
            await last.enter_async_context(spans_sent(runtime, lambda: 0.0 if self.forced else math.inf))
            await runtime.open_endpoints(partial(endpoint_client, runtime=runtime))
            runtime.allow_outside(outside_service)
            metrics = self._metrics
            if self._siblings is not None:
                await stack.enter_async_context(self._joined(self._siblings))
            api = build_api(runtime, config, self, self._labels, _message)
            handler = await stack.enter_async_context(self._answering(api))
            self.port = await stack.enter_async_context(self._doors.http(handler, self.grace))
            grpc = self._doors.grpc(api, self.port, metrics, self.grace)
            self.grpc_port = await stack.enter_async_context(grpc)
            if metrics is not None:
                told = partial(metrics.told, runtime, self._backlogs, self._siblings)
                self.metrics_port = await stack.enter_async_context(self._doors.metrics(told))
            await stack.enter_async_context(self._answering_others(api))
            self._open = True
            if self._siblings is not None:
                self._siblings.opened(self._entry())
            elif config.registered:
                stack.enter_context(registered(config.home, self._entry()))
            http, grpc_at = (socket_path(config, each) for each in ("http", "grpc"))
            where = f"{http or self.port}, for gRPC on {grpc_at or self.grpc_port}"
            logger.info("%s listens on %s, backbone %s", config.app_id, where, runtime.backbone)
            if config.dashboard is not None:
                config.dashboard.announce(self.port)
            await stack.enter_async_context(self._doors.public(self))
            inbound = await stack.enter_async_context(self._inbound())
            async with self._serving(inbound, reader, looked):
                yield
            logger.info("%s has drained", config.app_id)
            self.drained.set()
            await self.outlive()

    @asynccontextmanager
    async def _serving(
        self, inbound: AbstractAsyncContextManager[None], reader: Reader, looked: Look
    ) -> AsyncIterator[None]:
        """Take what is for the application, and what changes; leaving drains."""
        config, runtime, agent = self.config, self._runtime, self._agent
        async with AsyncExitStack() as serving:
            streams = drained_within(runtime.streams.drained(), self.grace, "streams")
            await serving.enter_async_context(streams)
            await serving.enter_async_context(inbound)
            if config.bridge is not None:
                await serving.enter_async_context(self._bridged(config.bridge))
            if agent is not None:
                await serving.enter_async_context(agent.following(runtime))
            if self._reloads:
                watched = watching(reader, looked, runtime.reload, None if agent is None else agent.reloaded)
                await serving.enter_async_context(watched)
            serving.callback(runtime.streams.ending.set)  # They drain beside the application, not after it.
            yield

    def _made_of(self, settings: NodeSettings) -> Runtime:
        if self._siblings is not None:
            self._siblings.check(settings)
        return Runtime(settings, Registry(), grace=self.grace, part=self._siblings)

    def _joined(self, siblings: Siblings) -> AbstractAsyncContextManager[None]:
        """Let the other workers ask and tell this one."""
        metrics = self._metrics
        counted = None if metrics is None else partial(metrics.counted, self._runtime, self._backlogs)
        return siblings.joined(
            self.shut_down, self._drained, self._metadata, self.views.process, counted, self._unsubscribe
        )

    def _bridged(self, config: BridgeConfig) -> AbstractAsyncContextManager[None]:
        from gateway.bridging import Bridging  # Nobody else has to load it.

        self._bridging = Bridging(config, self._runtime, self.grace)
        return self._bridging.running()

    def _look_after(self, runtime: Runtime) -> None:
        self._backlogs = Backlogs(runtime.services)
        self.views = Views(runtime, self.config, self._backlogs, self._ring, self._listens, self._siblings)

    def _answering_others(self, api: API) -> AbstractAsyncContextManager[None]:
        """Answer other nodes, as long as what is in flight may take at the end."""
        answers = RemoteAnswers(api, self._runtime.rights, None if self._metrics is None else self._metrics.note_error)
        return drained_within(self._runtime.remote.answering(answers.answer), self.grace, "requests of other nodes")

    def _listens(self) -> dict[str, object]:
        """Tell where the gateway is reached."""
        folder = self.config.unix_socket_dir
        ports = {"http": self.port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        told: dict[str, object] = {name: port for name, port in ports.items() if port}
        return {"addresses": list(self.config.listen) if folder is None else [str(folder)], **told}

    def _entry(self) -> Run:
        """Give what others on this machine are told."""
        config, node = self.config, self._runtime.description
        path = socket_path(config, "http")
        return Run(
            app_id=node.app_id,
            http_port=0 if path else self.port,
            grpc_port=self.grpc_port,
            metrics_port=self.metrics_port,
            host=config.listen[0],
            socket=str(path) if path else None,
            app_port=config.app_port,
            namespace=node.namespace,
            max_body_bytes=config.max_body_bytes,
            max_header_bytes=config.max_header_bytes,
            labels=config.labels,
            token_file=str(config.tokens.api_file or ""),
            key=self._key,
        )

    @asynccontextmanager
    async def _inbound(self) -> AsyncIterator[AbstractAsyncContextManager[None]]:
        """Give what serves the application, if there is one; draining is bounded in time."""
        config = self.config
        if config.app_port is None:
            yield nullcontext()
            return
        # In a thread: what gRPC stands on takes a tenth of a second to load.
        through = _through(self._runtime, "app_http_pipeline")
        around = towards_application(through, config.app_id, config.max_body_bytes)
        async with await loaded(partial(application_of, config, around, self._siblings)) as application:
            self._application = application
            application.recorder = None if self._metrics is None else self._metrics.recorder
            application.watch()
            inbound = self._runtime.inbound(application, self._subscriptions)
            yield drained_within(inbound, self.grace, "deliveries and calls")

    async def _subscriptions(self) -> Sequence[Subscription]:
        """Ask the application what it wants; tries again while the answer does not come."""
        if self._application is None or "subscribe" in self.config.init_endpoints_off:
            return ()
        return await self._application.subscriptions(self.app_id)


def _through(runtime: Runtime, section: str) -> Through:
    """Give what puts a section's middleware around something."""
    return partial(cast("MiddlewareService", runtime.services["middleware"]).through, section)


def _message(name: str) -> Any:
    """Give the class of one of gRPC's messages."""
    from gateway.grpc.messages import message  # Takes some milliseconds, for clients that need it alone.

    return message(name)
