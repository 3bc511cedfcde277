"""Several applications on one port: the API token that a client sends tells whose gateway it speaks to.

Health is asked without a token, so that of the port is that of all applications behind it; ``?appid=`` asks for one.
A request with the token of an application whose gateway is not there now gets 503, so that its client tries again.
In a worker that another one replaces, all applications are answered until the clients of the port are passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.api_tokens import Admitted
from gateway.config import GatewayConfig, sharing
from gateway.doors import Doors, Grace, Listening, load_http2
from gateway.errors import APIError
from gateway.given import Given
from gateway.grpc.listener import listening_for_grpc
from gateway.http.middleware import HEALTH
from gateway.http.public import Health, listening_in_public
from gateway.http.response import Answered, Response, render
from gateway.http.scraping import listening_for_metrics
from gateway.http.server import Handler, HTTPServer
from gateway.metrics.endpoint import Scraped
from gateway.metrics.exposition import Told
from gateway.routes.request import query_of
from mesh.tasks import task_group

if TYPE_CHECKING:
    from aiohttp import web
    from httpunk.h2.server import ServerRequest

    from gateway.http2.server import HTTP2Connections, Peer
    from gateway.metrics.endpoint import Metrics
    from gateway.routes.route import API

__all__ = ["opened"]

TOKEN = "dapr-api-token"
CLOSING_SECONDS = 1.0
BEGIN_SECONDS = 5.0
"""How long after its start a port's clients wait for gateways that are not there yet."""

Served = Callable[["ServerRequest", "Peer"], Awaitable[None]]


@asynccontextmanager
async def opened(
    configs: Sequence[GatewayConfig], given: Callable[[GatewayConfig], Given] = lambda _: Given()
) -> AsyncIterator[Callable[[GatewayConfig], Doors]]:
    """Listen where several applications are asked for together, and give where each one's gateway listens.

    Args:
        configs: Of all applications.
        given: Gives those of a gateway that are open already; of what is shared, they are with the first application.

    Raises:
        ConfigError: A port is taken.
    """
    async with AsyncExitStack() as stack:
        shared: dict[str, _Port] = {}
        for group in sharing(configs):
            port = _Port(group, given(group[0]))
            await stack.enter_async_context(port.listening())
            shared |= {each.app_id: port for each in group}
        scraped, metrics_port = Scraped(given(configs[0]).process), 0
        if configs[0].metrics:
            listening = listening_for_metrics(configs[0], scraped.text, given(configs[0]).metrics)
            metrics_port = await stack.enter_async_context(listening)

        together = _Together(each.app_id for each in configs)
        await stack.enter_async_context(listening_in_public(configs[0], together, given(configs[0]).public))

        def doors(config: GatewayConfig) -> Doors:
            made = config, given(config), scraped, metrics_port, together
            port = shared.get(config.app_id)
            return _OfSeveral(*made) if port is None else _OnOnePort(port, *made)

        yield doors


class _Port:
    """One port of HTTP, and one of gRPC, for some applications."""

    def __init__(self, configs: Sequence[GatewayConfig], given: Given) -> None:
        self._configs, self._given = configs, given
        self._tokens = {each.app_id: Admitted(each.tokens) for each in configs}
        self.http: dict[str, Handler] = {}
        self.grpc: dict[str, Callable[[], Served]] = {}
        self._loaded: dict[str, Served] = {}
        self.http_port = self.grpc_port = 0
        self.http_leaving, self.grpc_leaving = _Leaving(), _Leaving()
        self.begun = {each.app_id: asyncio.Event() for each in configs}
        self._begun_by = 0.0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen; leaving closes what is still open."""
        first, given = self._configs[0], self._given
        load = partial(load_http2, config=first, grpc_port=lambda: self.grpc_port) if first.h2c else None
        server = HTTPServer(
            self._answer,
            max_body_bytes=max(each.max_body_bytes for each in self._configs),
            max_header_bytes=max(each.max_header_bytes for each in self._configs),
            load_http2=load,
        )
        self._begun_by = asyncio.get_running_loop().time() + BEGIN_SECONDS
        async with task_group() as tasks:
            left = self.http_leaving.grace
            http = server.listening(first.listen, first.http_port, None, left, given.http, given.passing)
            self.http_port = await self.http_leaving.opened(tasks, http)
            left = self.grpc_leaving.grace
            grpc = listening_for_grpc(
                self._load_grpc, first.listen, first.grpc_port, None, left, given.grpc, passing=given.passing
            )
            self.grpc_port = await self.grpc_leaving.opened(tasks, grpc)
            try:
                yield
            finally:
                for leaving in (self.http_leaving, self.grpc_leaving):
                    leaving.closing.set()

    def _named(self, given: bytes) -> str | None:
        """Give the application whose token it is."""
        return next((app_id for app_id, tokens in self._tokens.items() if tokens.admits(given)), None)

    async def _answer(self, request: web.BaseRequest) -> Answered:
        path, _, query = request.raw_path.partition("?")
        app_id = self._named(request.headers.get(TOKEN, "").encode("utf-8", "surrogateescape"))
        if app_id is None and request.method == "GET" and path in HEALTH:
            asked = query_of(query).get("appid") if query else None
            return await self._healthy(request, [asked] if asked in self._tokens else list(self._tokens))
        if app_id is None:
            return Response(401, b"invalid api token", [("Content-Type", "text/plain; charset=utf-8")])
        return await self._answer_of(app_id, request)

    async def _answer_of(self, app_id: str, request: web.BaseRequest) -> Answered:
        await self._until_begun(app_id)
        handler = self.http.get(app_id)
        return _away(app_id) if handler is None else await handler(request)

    async def _until_begun(self, app_id: str) -> None:
        """Wait for a gateway that starts for the first time: its clients may come by the socket of an older worker."""
        begun = self.begun[app_id]
        if not begun.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._begun_by):
                    await begun.wait()

    async def _healthy(self, request: web.BaseRequest, app_ids: Sequence[str]) -> Answered:
        """Answer with the first that is not well, or the last of those that are."""
        answered: Answered = Response(204)
        for app_id in app_ids:
            answered = await self._answer_of(app_id, request)
            if answered.status >= 300:
                break
        return answered

    def _load_grpc(self) -> HTTP2Connections:
        from gateway.grpc.build import elsewhere
        from gateway.http2.server import HTTP2Connections

        size = max(each.max_header_bytes for each in self._configs)
        return HTTP2Connections(self._call, size, elsewhere(self.http_port)[1])

    async def _call(self, request: ServerRequest, connection: Peer) -> None:
        app_id = self._named(request.headers.get(TOKEN, b""))
        if app_id is not None:
            await self._until_begun(app_id)
        if app_id is not None and app_id not in self.grpc:
            from gateway.grpc.wire import CONTENT_TYPE, status_fields
            from gateway.status import Code

            told = status_fields(Code.UNAVAILABLE, f"the gateway of {app_id} is not there now")
            await request.respond(200, headers=[("content-type", CONTENT_TYPE), *told])
            return
        if app_id is None:  # Whichever it is, it says that the token is none.
            app_id = next(iter(self.grpc), None)
        if app_id is None:
            await request.reset(0x7)  # REFUSED_STREAM: a client may try it again.
            return
        if app_id not in self._loaded:
            self._loaded[app_id] = self.grpc[app_id]()
        await self._loaded[app_id](request, connection)

    def forget_grpc(self, app_id: str) -> None:
        """Call an application no more."""
        self.grpc.pop(app_id, None)
        self._loaded.pop(app_id, None)


def _away(app_id: str) -> Response:
    return render(APIError(503, "ERR_GATEWAY_AWAY", f"the gateway of {app_id} is not there now; try again"))


class _Leaving:
    """The end of what listens for several applications: with the process, or with the last that leaves it.

    Attributes:
        closing: Set once it is to accept no more, and to finish what is open.
    """

    def __init__(self) -> None:
        self.closing, self._closed = asyncio.Event(), asyncio.Event()
        self._left: set[str] = set()
        self._grace: Grace = lambda: CLOSING_SECONDS

    def grace(self) -> float:
        """Give the seconds for what is open."""
        return self._grace()

    async def opened(self, tasks: asyncio.TaskGroup, listening: AbstractAsyncContextManager[int]) -> int:
        """Listen until it is closing; give the port."""
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def listen() -> None:
            async with listening as own:
                port.set_result(own)
                await self.closing.wait()
            self._closed.set()

        tasks.create_task(listen(), name="shared-port")
        return await port

    async def leave(self, app_id: str, there: Iterable[str], grace: Grace) -> None:
        """Wait until all that are there leave, and what is open has ended; not longer than there is time."""
        self._left.add(app_id)
        self._grace = grace
        if self._left.issuperset(there):
            self.closing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace() + CLOSING_SECONDS):
                await self._closed.wait()


class _Together:
    """The health of all applications of the process."""

    def __init__(self, app_ids: Iterable[str]) -> None:
        self.of: dict[str, Health | None] = dict.fromkeys(app_ids)

    @property
    def outbound_ready(self) -> bool:
        return all(each is not None and each.outbound_ready for each in self.of.values())

    @property
    def not_ready(self) -> Sequence[str]:
        missing = []
        for app_id, each in self.of.items():
            missing += [f"{app_id}: {what}" for what in (("gateway",) if each is None else each.not_ready)]
        return missing

    async def drain_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for each in list(self.of.values()):
                if each is not None:
                    tasks.create_task(each.drain_all(), name="public-drain")


class _OfSeveral(Listening):
    """Of one application of several: all of them are scraped together."""

    def __init__(
        self, config: GatewayConfig, given: Given, scraped: Scraped, metrics_port: int, together: _Together
    ) -> None:
        super().__init__(config, given)
        self._app_id, self._scraped, self._metrics_port = config.app_id, scraped, metrics_port
        self._together = together

    @property
    def _replaced(self) -> bool:
        """Whether all applications of the process leave, since another process takes its place."""
        passing = self._given.passing
        return passing is not None and passing.replaced

    @asynccontextmanager
    async def public(self, health: Health) -> AsyncIterator[None]:
        """Answer who asks for the health of all applications."""
        self._together.of[self._app_id] = health
        try:
            yield
        finally:
            if not self._replaced:
                self._together.of[self._app_id] = None

    @asynccontextmanager
    async def metrics(self, told: Callable[[], Awaitable[Told]]) -> AsyncIterator[int]:
        """Answer who asks for metrics of this application among others."""
        self._scraped.sources[self._app_id] = told
        try:
            yield self._metrics_port
        finally:
            del self._scraped.sources[self._app_id]


class _OnOnePort(_OfSeveral):
    """Of one application on a port that it shares."""

    def __init__(self, port: _Port, *of_several: Any) -> None:
        super().__init__(*of_several)
        self._port = port
        self._busy = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    @asynccontextmanager
    async def http(self, handler: Handler, grace: Grace) -> AsyncIterator[int]:
        """Answer clients that send this application's token."""

        async def answer(request: web.BaseRequest) -> Answered:
            with self._counted():
                return await handler(request)

        self._port.http[self._app_id] = answer
        try:
            yield self._port.http_port
        finally:
            if self._replaced:
                await self._port.http_leaving.leave(self._app_id, self._port.http, grace)
            del self._port.http[self._app_id]
            await self._until_quiet(grace)

    @asynccontextmanager
    async def grpc(self, api: API, http_port: int, metrics: Metrics | None, grace: Grace) -> AsyncIterator[int]:
        """Answer clients that send this application's token."""

        def load() -> Served:
            from gateway.grpc.build import elsewhere, handling

            handle = handling(api, elsewhere(http_port)[0], metrics=metrics)

            async def call(request: ServerRequest, connection: Peer) -> None:
                with self._counted():
                    await handle(request, connection)

            return call

        self._port.grpc[self._app_id] = load
        try:
            yield self._port.grpc_port
        finally:
            if self._replaced:
                await self._port.grpc_leaving.leave(self._app_id, self._port.grpc, grace)
            self._port.forget_grpc(self._app_id)
            await self._until_quiet(grace)

    @asynccontextmanager
    async def public(self, health: Health) -> AsyncIterator[None]:
        """Answer who asks for the health of all applications; from here on this one works."""
        self._port.begun[self._app_id].set()
        async with super().public(health):
            yield

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._busy += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._quiet.set()

    async def _until_quiet(self, grace: Grace) -> None:
        """Wait for what is in flight, and not longer than there is time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace()):
                await self._quiet.wait()
