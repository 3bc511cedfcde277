"""What the pages ask for: what there is, and what any node's own API answers, asked over the backbone.

================================ ===================================================================================
``mesh``                         what there is (`gateway/dashboard/overview.py`)
``live``                         the same and what flows, as server-sent events (`gateway/dashboard/live.py`)
``recording``                    what flows with its values, as lines that ``mesh replay`` reads
``replay``                       does again what was seen, and compares (`gateway/replaying/`)
``nodes/<node>/v1.0/…``          a node's own API
``apps/<id>/v1.0/…``             the same, of any instance of an application
``self/v1.0/…``                  the same, of the dashboard's own gateway
================================ ===================================================================================
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Protocol

import orjson
from aiohttp import web

from gateway.dashboard.live import Live
from gateway.errors import APIError, answer, bad_request
from gateway.http.response import Answered, Response
from gateway.remote import RemoteAnswers, as_api_error
from gateway.replaying.comparison import Answer
from gateway.replaying.replay import Replayed, replay
from gateway.replaying.resending import Resend, Skipped
from gateway.routes.request import deadline_of, read_body, read_json, unescape
from gateway.routes.route import API
from mesh.access import TapRights
from mesh.application import Headers
from mesh.errors import EventError, MeshError, NoResponderError
from mesh.node.description import Node
from mesh.node.remote import Question
from mesh.tap.sight import Content
from mesh.tap.wire import as_content, sight_of

__all__ = ["Ask", "Data", "unknown", "wrong_method"]

READ = ("GET", "HEAD")
MESH_SECONDS = 5.0
ASK_SECONDS = 30.0
APIS = ("v1.0", "v1.0-alpha1", "v1.0-beta1")
_ALL = TapRights(sights=True, values=True, manage=True)
# What the browser says of itself and of this page is nobody's business further on.
_KEPT_HERE = frozenset(
    {
        "accept-encoding",
        "accept-language",
        "cookie",  # All that this machine serves shares them.
        "dapr-api-token",
        "dashboard-token",
        "dnt",
        "origin",
        "priority",
        "referer",
        "te",
        "user-agent",
    }
)


class Ask(Protocol):
    """Asks a node; see ``Gateway.ask_node``."""

    def __call__(
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
    ) -> Awaitable[tuple[int, Headers, bytes]]:
        """Ask it."""


class Data:
    """Answers for what is below ``/dashboard/api``, to who has been let in."""

    def __init__(self, live: Live, api: API, ask: Ask) -> None:
        """Prepare.

        Args:
            live: What is heard of the mesh.
            api: What the routes of the dashboard's own gateway are given.
            ask: Asks another node.
        """
        self._live, self._ask, self._api = live, ask, api
        # Who knows the token uses this gateway as who may call it, whatever others may ask of it.
        self._own = RemoteAnswers(api, lambda _: _ALL)

    async def answer(self, request: web.BaseRequest, what: str, query: str) -> Answered:
        """Answer a request.

        Args:
            request: It.
            what: The path below ``api/``, as it was written.
            query: Its query.

        Raises:
            APIError: It failed.
        """
        first, _, rest = what.partition("/")
        if not rest and first in ("mesh", "live", "recording"):
            if request.method not in READ:
                return wrong_method(request, READ)
            if first == "mesh":
                return await self._mesh()
            return await (self._live.stream if first == "live" else self._live.recording)(request, query)
        if what == "replay":
            return await self._replay(request) if request.method == "POST" else wrong_method(request, ("POST",))
        if first in ("nodes", "apps"):
            name, _, path = rest.partition("/")
            return await self._passed_on(request, first, unescape(name), path, query)
        if first == "self":
            return await self._passed_on(request, first, "", rest, query)
        raise unknown(f"dashboard/api/{what}")

    async def _mesh(self) -> Answered:
        try:
            await self._live.presence.current(asyncio.get_running_loop().time() + MESH_SECONDS)
        except MeshError as error:
            raise answer(error) from error
        return Response(200, self._live.overview(), [("Content-Type", "application/json")])

    # What other nodes answer

    async def _passed_on(self, request: web.BaseRequest, first: str, name: str, path: str, query: str) -> Answered:
        if path.partition("/")[0] not in APIS:
            raise unknown(f"dashboard/api/{first}/…/{path}")
        body = await read_body(request)
        headers = [(_text(each), _text(value)) for each, value in request.headers.items() if _goes_on(each)]
        asked = Question(request.method, _text(f"/{path}"), _text(query), tuple(headers), body)
        until = deadline_of(request) or time.time() + ASK_SECONDS
        status, fields, body = await self._asked(first, name, asked, until)
        told = {field.lower(): value for field, value in fields}
        kept = [(field, told[field.lower()]) for field in ("Content-Type", "ETag") if field.lower() in told]
        return Response(status, body, kept)

    async def _asked(self, first: str, name: str, asked: Question, until: float) -> tuple[int, Headers, bytes]:
        if first == "self":
            own = await self._own.answer(self._api.caller, asked)
            return own.status, own.headers, own.body
        nodes = await self._nodes_of(name) if first == "apps" else [self._live.presence.nodes.get(name) or name]
        problem: MeshError | None = None
        for each in nodes:
            node_id, app_id = (each.id, each.app_id) if isinstance(each, Node) else (each, "")
            try:
                return await self._ask(
                    node_id, asked.verb, asked.path, asked.query, asked.headers, asked.body, until, app_id=app_id
                )
            except NoResponderError as error:  # It did nothing: another one may.
                problem = error
            except MeshError as error:
                raise as_api_error(error) from error
        if problem is None:
            raise APIError(404, "ERR_DASHBOARD_UNKNOWN", f"no gateway of {name!r} says that it is there")
        raise as_api_error(problem) from problem

    async def _nodes_of(self, app_id: str) -> Sequence[Node]:
        """Give the nodes of an application, in a fixed order, those that are ready first."""
        try:
            known = await self._live.presence.current(asyncio.get_running_loop().time() + MESH_SECONDS)
        except MeshError as error:
            raise answer(error) from error
        instances = [each for each in known.values() if each.app_id == app_id]
        return sorted(instances, key=lambda each: (app_id not in each.apps, each.id))

    # Again

    async def _replay(self, request: web.BaseRequest) -> Answered:
        asked = await read_json(request)
        if not isinstance(asked, dict) or not isinstance(asked.get("event"), dict):
            raise bad_request("event: the CloudEvent of something that was seen is wanted")
        to = asked.get("to") or ""
        if not isinstance(to, str):
            raise bad_request("to: an app id is wanted")
        try:
            sight = sight_of(asked["event"])
        except EventError as error:
            raise bad_request(f"event: {error}") from None
        if sight is None:
            raise bad_request(f"event: type {asked['event']['type']!r} tells of nothing that could be done again")
        until = deadline_of(request) or time.time() + ASK_SECONDS

        async def send(made: Resend) -> Answer:
            path, _, query = made.path.partition("?")
            question = Question(made.verb, path, query, made.headers, made.body)
            known = made.source and await self._nodes_of(made.source)
            status, headers, body = await self._asked("apps" if known else "self", made.source, question, until)
            kind = next((value for name, value in headers if name.lower() == "content-type"), "")
            return Answer(status, kind, body)

        done = await replay(sight, send, to=to)
        if isinstance(done, Skipped):
            raise bad_request(f"this cannot be done again: {done.reason}")
        return Response(200, orjson.dumps(_told(done)), [("Content-Type", "application/json")])


def _goes_on(name: str) -> bool:
    name = name.lower()
    return name not in _KEPT_HERE and not name.startswith("sec-")


def _text(value: str) -> str:
    """Give text that can be sent, of what may be no UTF-8."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _told(done: Replayed) -> dict[str, object]:
    sent, got, compared = done.sent, done.answer, done.compared
    return {
        "kind": sent.kind.value,
        "from": sent.source,
        "target": sent.target,
        "title": sent.title,
        "status": got.status,
        "outcome": done.outcome,
        "seconds": round(done.seconds, 6),
        "reply": as_content(Content((), got.content_type, len(got.body), got.body, got.cut)),
        "differences": [each.described() for each in compared.differences],
        "uncompared": compared.unknown,
        "withheld": sent.withheld,
        "traceId": sent.trace,
    }


def wrong_method(request: web.BaseRequest, allowed: Sequence[str]) -> Response:
    """Answer that a path has no such method."""
    known = ", ".join(allowed)
    told = {"errorCode": "ERR_DASHBOARD_UNKNOWN", "message": f"{request.method} is not answered here; {known} is"}
    return Response(405, orjson.dumps(told), [("Content-Type", "application/json"), ("Allow", known)])


def unknown(path: str) -> APIError:
    """Say that there is no such path."""
    return APIError(404, "ERR_DASHBOARD_UNKNOWN", f"there is no {path[:200]!r}; the dashboard's page is /dashboard/")
