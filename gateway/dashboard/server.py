"""What the dashboard serves, in front of the gateway's own API: pages, their files, and what they ask for.

============================ ===========================================================
``/dashboard/``              the page
``/dashboard/assets/<path>`` its files
``/dashboard/api/…``         what it asks for (`gateway/dashboard/data.py`)
============================ ===========================================================

All else on the port is the gateway's own API. Nothing is kept here but what was heard last: who wants to know asks the
mesh, for as long as somebody looks (ADR 67).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from gateway.config import GatewayConfig
from gateway.dashboard.admission import Admission
from gateway.dashboard.assets import INDEX, Assets
from gateway.dashboard.data import Ask, Data, unknown, wrong_method
from gateway.dashboard.live import Live
from gateway.http.middleware import HEALTH
from gateway.http.response import Answered, Fields, Request, Response, completed, split_target
from gateway.http.stages import Handler, answering_errors
from gateway.routes.request import unescape
from gateway.routes.route import API
from mesh.node.runtime import Runtime

__all__ = ["PREFIX", "dashboard"]

PREFIX = "/dashboard"
READ = ("GET", "HEAD")
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
_DATA: Fields = [
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
    ("Cache-Control", "no-store"),
    *_EVERYWHERE,
]


class _Dashboard:
    """Answers for what is below ``/dashboard``."""

    def __init__(self, admission: Admission, assets: Assets, data: Data, handler: Handler) -> None:
        self._admission, self._assets, self._data, self._handler = admission, assets, data, handler
        self._answer = answering_errors(None)(self._route)

    async def handle(self, request: web.BaseRequest) -> Answered:
        """Answer a request."""
        path = split_target(request)[0]
        own = path == PREFIX or path.startswith(f"{PREFIX}/")
        if not own and (path in HEALTH or not self._admission.is_foreign(request)) and path != "/":
            return await self._handler(request)
        further = _DATA if path.startswith(f"{PREFIX}/api/") else _PAGES
        if isinstance(request, Request):
            request.further_fields = further
        answered = await self._answer(request)
        if not answered.prepared:
            answered.fields = completed(answered.fields, further)
        return answered

    async def _route(self, request: web.BaseRequest) -> Answered:
        path, query = split_target(request)
        self._admission.check_host(request)
        if path.startswith(f"{PREFIX}/api/"):
            self._admission.check_page(request)
            self._admission.check_token(request)
            return await self._data.answer(request, path.removeprefix(f"{PREFIX}/api/"), query)
        if path != "/" and not path.startswith(PREFIX):
            self._admission.check_site(request)
        if request.method not in READ:
            return wrong_method(request, READ)
        if path in ("/", PREFIX):
            return Response(307, fields=[("Location", f"{PREFIX}/"), ("Cache-Control", "no-store")])
        return await self._asset(request, path.removeprefix(f"{PREFIX}/"))

    async def _asset(self, request: web.BaseRequest, path: str) -> Answered:
        name = unescape(path.removeprefix("assets/")) if path.startswith("assets/") else ""
        if not path:
            name = INDEX
            await asyncio.to_thread(self._assets.look)  # A new version of the files needs no restart.
        accepted, known = (request.headers.get(each, "") for each in ("Accept-Encoding", "If-None-Match"))
        found = self._assets.answer(name, accepted, known)
        if found is None:
            raise unknown(f"dashboard/{path}")
        return found


@asynccontextmanager
async def dashboard(
    config: GatewayConfig, runtime: Runtime, api: API, ask: Ask, handler: Handler
) -> AsyncIterator[Handler]:
    """Serve the dashboard while entered; gives what answers all requests of the port.

    Args:
        config: The gateway's, with that of its dashboard.
        runtime: The node's, entered.
        api: What the gateway's own routes are given.
        ask: Asks another node.
        handler: Answers what is not the dashboard's.
    """
    own = config.dashboard
    assert own is not None
    assets, live = Assets(), Live(own, runtime)
    await asyncio.to_thread(assets.look)
    async with live.running():
        yield _Dashboard(Admission(own.token, config.listen), assets, Data(live, api, ask), handler).handle
