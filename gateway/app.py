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
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from gateway.application import application_of
from gateway.config import CLOSE_SECONDS, GatewayConfig
from gateway.described import actors, backlog, subscription_as_told, without_nothing
from gateway.export.opening import spans_sent
from gateway.grpc.build import build_grpc
from gateway.grpc.listener import listening_for_grpc
from gateway.http.application import HTTPApplication, outside_service
from gateway.http.loading import Connections, loaded
from gateway.http.middleware import Through, middleware_stage, towards_application
from gateway.http.public import listening_in_public
from gateway.http.scraping import listening_for_metrics
from gateway.http.server import Handler, HTTPServer
from gateway.http.stages import staged, stages
from gateway.life import Life
from gateway.logs import LogRing, configure_logging, switch_level
from gateway.metrics.endpoint import Metrics
from gateway.metrics.settings import of_configuration
from gateway.reload import FEATURE, look, watching
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
from mesh.blocks.middleware import MiddlewareService
from mesh.errors import ConfigError, MeshError
from mesh.node.backlogs import Backlogs
from mesh.node.description import NodeDescription
from mesh.node.health import ComponentStatus
from mesh.node.remote import Question
from mesh.node.runtime import Runtime
from mesh.registry import Registry
from mesh.resources.subscription import Subscription
from mesh.tasks import drained_within

__all__ = ["Gateway", "run"]

logger = logging.getLogger(__name__)

ASK_SECONDS = 15.0


class Gateway(Life):
    """A running gateway."""

    def __init__(self, config: GatewayConfig, ring: LogRing | None = None) -> None:
        """Prepare; ``running`` starts.

        Args:
            config: What it is told.
            ring: The last lines of its log; None = nobody is told them.
        """
        super().__init__(config.drain)
        self.config = config
        self.app_id = config.app_id
        self._open = False
        self.port = self.grpc_port = 0
        self._reloads = True
        self._key = os.urandom(24).hex()
        self._labels = dict(config.labels)
        self._runtime: Runtime
        self._backlogs: Backlogs
        self._ring = ring or LogRing()
        self.views: Views
        self._application: HTTPApplication | None = None
        self._metrics: Metrics | None = None
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
        if self.stopping.is_set():
            return ("shutting-down",)
        if self.draining.is_set():
            return ("draining",)
        if not self._open:
            return ("components",)
        if not self.proven:
            return ("identity",)
        if self.config.app_port is not None and not self._runtime.serving:
            return ("app",)
        return ()

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
        return told + self._runtime.conditions.described()

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
    async def _answering(self, api: API) -> AsyncIterator[HTTPServer]:
        """Give the server of all that answers requests: the chain, and the dashboard in front of it if there is one."""
        config, handler = self.config, self._chain(api)
        async with AsyncExitStack() as stack:
            if config.dashboard is not None:
                from gateway.dashboard.server import dashboard  # Nobody else has to load it.

                shown = dashboard(config, self._runtime, api, self.ask_node, handler)
                handler = await stack.enter_async_context(shown)
            load = partial(_load_http2, config=config, grpc_port=lambda: self.grpc_port) if config.h2c else None
            yield HTTPServer(
                handler,
                max_body_bytes=config.max_body_bytes,
                max_header_bytes=config.max_header_bytes,
                load_http2=load,
            )

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
            self._runtime = runtime = await stack.enter_async_context(Runtime(settings, Registry(), grace=self.grace))
            self._look_after(runtime)
            await last.enter_async_context(spans_sent(runtime, lambda: 0.0 if self.forced else math.inf))
            await runtime.open_endpoints(partial(endpoint_client, runtime=runtime))
            runtime.allow_outside(outside_service)
            metrics = self._metrics
            api = build_api(runtime, config, self, self._labels, _message)
            server = await stack.enter_async_context(self._answering(api))
            socket_path = None
            if config.unix_socket_dir is not None:
                socket_path = config.unix_socket_dir / f"dapr-{config.app_id}-http.socket"
                _warn_of_ports(config)
            own = config.dashboard
            port = own.port() if own is not None and own.port is not None else config.http_port
            listening = server.listening(config.listen, port, socket_path, self.grace)
            self.port = await stack.enter_async_context(listening)
            grpc_path = socket_path and socket_path.with_name(f"dapr-{config.app_id}-grpc.socket")
            load = partial(build_grpc, api, 0 if socket_path else self.port, metrics=metrics)
            grpc = listening_for_grpc(load, config.listen, config.grpc_port, grpc_path, self.grace)
            self.grpc_port = await stack.enter_async_context(grpc)
            if metrics is not None:
                self.metrics_port = await stack.enter_async_context(
                    listening_for_metrics(config, partial(metrics.text, runtime, self._backlogs))
                )
            await stack.enter_async_context(self._answering_others(api))
            self._open = True
            if config.registered:
                stack.enter_context(registered(config.home, self._entry(socket_path)))
            where = f"{socket_path or self.port}, for gRPC on {grpc_path or self.grpc_port}"
            logger.info("%s listens on %s, backbone %s", config.app_id, where, runtime.backbone)
            if own is not None:
                own.announce(self.port)
            await stack.enter_async_context(listening_in_public(config, self))
            inbound = await stack.enter_async_context(self._inbound())
            async with AsyncExitStack() as serving:
                streams = drained_within(runtime.streams.drained(), self.grace, "streams")
                await serving.enter_async_context(streams)
                await serving.enter_async_context(inbound)
                if self._reloads:
                    await serving.enter_async_context(watching(reader, looked, runtime.reload))
                serving.callback(runtime.streams.ending.set)  # They drain beside the application, not after it.
                yield
            logger.info("%s has drained", config.app_id)
            self.drained.set()
            await self.outlive()

    def _look_after(self, runtime: Runtime) -> None:
        self._backlogs = Backlogs(runtime.services)
        self.views = Views(runtime, self.config, self._backlogs, self._ring, self._listens)

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

    def _entry(self, socket_path: Path | None) -> Run:
        """Give what others on this machine are told."""
        config, node = self.config, self._runtime.description
        return Run(
            app_id=node.app_id,
            http_port=0 if socket_path else self.port,
            grpc_port=self.grpc_port,
            metrics_port=self.metrics_port,
            host=config.listen[0],
            socket=str(socket_path) if socket_path else None,
            app_port=config.app_port,
            namespace=node.namespace,
            max_body_bytes=config.max_body_bytes,
            max_header_bytes=config.max_header_bytes,
            labels=config.labels,
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
        async with await loaded(partial(application_of, config, around)) as application:
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


def _warn_of_ports(config: GatewayConfig) -> None:
    """Say which ports that were given have no effect beside a socket file."""
    usual = GatewayConfig(config.app_id, config.home).http_port  # Which one that was given cannot be told from.
    ports = {"--dapr-http-port": config.http_port, "--dapr-grpc-port": config.grpc_port}
    given = [f"{name} {port}" for name, port in ports.items() if port and (name, port) != ("--dapr-http-port", usual)]
    if given:
        logger.warning("%s without effect: with --unix-domain-socket the API has no port", " and ".join(given))


def _load_http2(handler: Handler, *, config: GatewayConfig, grpc_port: Callable[[], int]) -> Connections:
    """Load what serves the HTTP API over HTTP/2."""
    from gateway.grpc.ports import without_grpc
    from gateway.http2.answering import Answering  # Takes some milliseconds, for clients of HTTP/2 alone.
    from gateway.http2.server import HTTP2Connections

    answering = Answering(handler, config.max_body_bytes, config.max_header_bytes)
    return HTTP2Connections(without_grpc(answering.answer, grpc_port), config.max_header_bytes)


def _message(name: str) -> Any:
    """Give the class of one of gRPC's messages."""
    from gateway.grpc.messages import message  # Takes some milliseconds, for clients that need it alone.

    return message(name)


async def run(config: GatewayConfig) -> int:
    """Run a gateway until it is told to stop; give the process's exit code."""
    gateway = Gateway(config, configure_logging(config))
    loop = asyncio.get_running_loop()
    life = cast("asyncio.Task[int]", asyncio.current_task())

    def stop() -> None:
        if gateway.stopping.is_set():
            life.cancel()  # Ends whatever is waited for: the start, deliveries, calls or open requests.
            loop.call_later(CLOSE_SECONDS, end)
        if config.outlive and not gateway.draining.is_set() and not gateway.stopping.is_set():
            gateway.drain(config.outlive)
        else:
            gateway.shut_down()

    def end() -> None:
        logger.warning("ended without closing all connections: it took more than %g s", CLOSE_SECONDS)
        os._exit(int(gateway.forced or gateway.lost))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGUSR1, switch_level, config.log_level)
    # Many things close one after the other, each in its own time when a broker does not answer.
    gateway.told = lambda: loop.call_later(gateway.grace() + CLOSE_SECONDS, end)
    try:
        async with gateway.running():
            await gateway.until_ending()
    except asyncio.CancelledError:
        if not gateway.forced:
            raise
        life.uncancel()  # Everything has been taken down, without waiting.
    except ConfigError as error:
        for problem in error.problems:
            logger.error("%s", problem)  # noqa: TRY400 - the problem says it all
        return 1
    except MeshError as error:
        logger.error("%s", error)  # noqa: TRY400 - the message is for people
        return 1
    return 1 if gateway.forced or gateway.lost else 0
