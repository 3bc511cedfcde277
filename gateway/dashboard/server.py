"""What the dashboard serves, in front of the gateway's own API: pages, and what they ask for.

=============================== =========================================================================
``/dashboard/``                 the page
``/dashboard/assets/<path>``    its files
``/dashboard/api/mesh``         what there is (`gateway/dashboard/overview.py`)
``/dashboard/api/live``         the same and what flows, as server-sent events
``/dashboard/api/nodes/<node>`` followed by ``/v1.0/…``: a node's own API, asked over the backbone
``/dashboard/api/apps/<id>``    the same, of any instance of an application
``/dashboard/api/self``         the same, of the dashboard's own gateway
=============================== =========================================================================

All else on the port is the gateway's own API. Nothing is kept here but what was heard last: who wants to know asks the
mesh, for as long as somebody looks (ADR 67).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import orjson
from aiohttp import web

from gateway.config import DashboardConfig, GatewayConfig
from gateway.dashboard.admission import Admission
from gateway.dashboard.assets import INDEX, Assets
from gateway.dashboard.overview import overview
from gateway.dashboard.presence import Presence
from gateway.dashboard.viewers import Viewers, event
from gateway.errors import APIError, answer
from gateway.http.middleware import HEALTH
from gateway.http.response import Answered, Fields, Request, Response, StreamedResponse, completed, split_target
from gateway.http.stages import Handler, answering_errors
from gateway.routes.request import unescape
from mesh import __version__
from mesh.errors import MeshError
from mesh.node.description import collect
from mesh.node.runtime import Runtime
from mesh.tasks import task_group

__all__ = ["PREFIX", "dashboard"]

PREFIX = "/dashboard"
READ = frozenset({"GET", "HEAD"})
MESH_SECONDS = 5.0
MESH_APART = 2.0
KEEP_ALIVE_SECONDS = 10.0
WRITE_SECONDS = 30.0  # That a viewer may take nothing.

_EVERYWHERE: Fields = [("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer")]
_PAGES: Fields = [
    (
        "Content-Security-Policy",
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    *_EVERYWHERE,
]
# What applications answer passes through: it is no page, and none of ours.
_DATA: Fields = [("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox"), *_EVERYWHERE]
_DATA.append(("Cache-Control", "no-store"))


class _Dashboard:
    """Answers for what is below ``/dashboard``."""

    def __init__(self, config: GatewayConfig, own: DashboardConfig, runtime: Runtime, handler: Handler) -> None:
        self._own = own
        self._runtime = runtime
        self._handler = handler
        self._namespace = runtime.settings.namespace
        self._admission = Admission(own.token, config.listen)
        self._assets = Assets()
        self._viewers = Viewers()
        self._presence = Presence(partial(collect, runtime.broker, self._namespace))
        self._told = b""
        self._answer = answering_errors(None)(self._route)

    async def handle(self, request: web.BaseRequest) -> Answered:
        """Answer a request."""
        path = split_target(request)[0]
        if path != PREFIX and not path.startswith(f"{PREFIX}/"):
            return await self._beside(request, path)
        further = _DATA if path.startswith(f"{PREFIX}/api") else _PAGES
        if isinstance(request, Request):
            request.further_fields = further
        answered = await self._answer(request)
        if not answered.prepared:
            answered.fields = completed(answered.fields, further)
        return answered

    async def _beside(self, request: web.BaseRequest, path: str) -> Answered:
        if path == "/" and request.method in READ:
            return _moved()
        if path not in HEALTH:
            try:
                self._admission.check_host(request)
            except APIError as error:
                return await _refusing(request, error)
        return await self._handler(request)

    async def _route(self, request: web.BaseRequest) -> Answered:
        path, query = split_target(request)
        self._admission.check_host(request)
        rest = path.removeprefix(PREFIX)
        if rest.startswith("/api/"):
            self._admission.check_page(request)
            self._admission.check_token(request)
            return await self._data(request, rest.removeprefix("/api/"), query)
        if request.method not in READ:
            return _wrong_method(request, "GET, HEAD")
        if not rest:
            return _moved()
        name = INDEX if rest == "/" else unescape(rest.removeprefix("/assets/")) if rest.startswith("/assets/") else ""
        if name == INDEX:  # A new version of the files needs no restart.
            await asyncio.to_thread(self._assets.look)
        accepted, known = (request.headers.get(each, "") for each in ("Accept-Encoding", "If-None-Match"))
        return self._assets.answer(name, accepted, known) or _unknown(path)

    async def _data(self, request: web.BaseRequest, what: str, query: str) -> Answered:
        if what in ("mesh", "live"):
            if request.method not in READ:
                return _wrong_method(request, "GET, HEAD")
            return await (self._mesh() if what == "mesh" else self._live(request))
        raise _unknown_data(what)

    # What there is

    async def _mesh(self) -> Answered:
        try:
            await self._presence.current(asyncio.get_running_loop().time() + MESH_SECONDS)
        except MeshError as error:
            raise answer(error) from error
        return Response(200, self._overview(), [("Content-Type", "application/json")])

    def _overview(self) -> bytes:
        told = overview(self._presence.nodes.values(), without=self._runtime.settings.app_id)
        if self._presence.problem:
            of = {"app": self._runtime.settings.app_id, "node": "", "target": "backbone"}
            told["problems"] = [{**of, "state": self._presence.problem}]
        about: dict[str, object] = {
            "namespace": self._namespace,
            "backbone": self._runtime.backbone,
            "version": __version__,
            "at": time.time(),
        }
        if self._own.traces_url:
            about["tracesURL"] = self._own.traces_url
        return orjson.dumps({**about, **told})

    async def _tell_changes(self) -> None:
        """Tell all who look what there is, whenever that has changed."""
        while True:
            await self._presence.heard.wait()
            told = self._overview()
            if _without_time(told) != _without_time(self._told):
                self._told = told
                self._viewers.renew("mesh", event("mesh", told))
                await asyncio.sleep(MESH_APART)

    async def _live(self, request: web.BaseRequest) -> Answered:
        runtime = self._runtime
        try:
            with runtime.streams.one(), self._presence.looking(), self._viewers.one() as viewer:
                if self._presence.nodes:
                    viewer.renew("mesh", event("mesh", self._overview()))
                stream = StreamedResponse(200, [("Content-Type", "text/event-stream")], None)
                await stream.prepare(request)
                if request.method == "HEAD":
                    return stream
                async with task_group() as tasks:
                    writing = tasks.create_task(_write(viewer.next, stream), name="dashboard-write")
                    ending = tasks.create_task(runtime.streams.ending.wait(), name="dashboard-ending")
                    await asyncio.wait([writing, ending], return_when=asyncio.FIRST_COMPLETED)
                    writing.cancel()
                    ending.cancel()
                await stream.write_eof()
                return stream
        except MeshError as error:
            raise answer(error) from error

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._assets.look)
        async with self._presence.running(), task_group() as tasks:
            telling = tasks.create_task(self._tell_changes(), name="dashboard-tell")
            try:
                yield
            finally:
                telling.cancel()


async def _write(next_part: Callable[[float], Awaitable[bytes]], stream: StreamedResponse) -> None:
    """Write what a viewer is told, until it takes nothing more."""
    while True:
        part = await next_part(KEEP_ALIVE_SECONDS)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await stream.write(part)
        except TimeoutError:
            stream.break_off()
            return


def _without_time(told: bytes) -> Mapping[str, object]:
    return {**orjson.loads(told), "at": 0} if told else {}


def _moved() -> Response:
    return Response(307, fields=[("Location", f"{PREFIX}/"), ("Cache-Control", "no-store")])


def _wrong_method(request: web.BaseRequest, allowed: str) -> Response:
    error = APIError(405, "ERR_DASHBOARD_UNKNOWN", f"{request.method} is not answered here; {allowed} is")
    return _failed(error, [("Allow", allowed)])


def _unknown(path: str) -> Response:
    text = f"there is no {path[:200]!r}; the dashboard's page is {PREFIX}/"
    return _failed(APIError(404, "ERR_DASHBOARD_UNKNOWN", text), [])


def _unknown_data(what: str) -> APIError:
    return APIError(404, "ERR_DASHBOARD_UNKNOWN", f"the dashboard does not know {what[:200]!r}")


def _failed(error: APIError, fields: Fields) -> Response:
    told = {"errorCode": error.code, "message": error.message}
    return Response(error.status, orjson.dumps(told), [("Content-Type", "application/json"), *fields])


async def _refusing(request: web.BaseRequest, error: APIError) -> Answered:
    return _failed(error, _EVERYWHERE)


@asynccontextmanager
async def dashboard(config: GatewayConfig, runtime: Runtime, handler: Handler) -> AsyncIterator[Handler]:
    """Serve the dashboard while entered; gives what answers all requests of the port.

    Args:
        config: The gateway's, with that of its dashboard.
        runtime: An entered one.
        handler: Answers what is not the dashboard's.
    """
    assert config.dashboard is not None
    made = _Dashboard(config, config.dashboard, runtime, handler)
    async with made.running():
        yield made.handle
