"""A real gateway, a real application beside it and a client, in the process of the test."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import orjson
import pytest
from aiohttp import web
from yarl import URL

from gateway.app import Gateway
from gateway.config import GatewayConfig
from tests.support.eventually import eventually
from tests.support.recorder import Recorder

__all__ = ["ANY", "App", "Backbone", "Case", "Got", "Node", "Reply", "cases", "check", "gateway", "matches", "yaml"]

SKIPPED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_numbers = itertools.count()
Answer = Callable[["Got", web.BaseRequest], Awaitable[web.StreamResponse] | web.StreamResponse]


class _Any:
    """Equal to everything; with a check, to what passes it."""

    def __init__(self, check: Callable[[Any], object] | None = None) -> None:
        self._check = check

    def __eq__(self, other: object) -> bool:
        return self._check is None or bool(self._check(other))

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "ANY" if self._check is None else f"matches({self._check})"


ANY = _Any()


def matches(check: Callable[[Any], object]) -> _Any:
    """Give a value that equals whatever passes a check."""
    return _Any(check)


@dataclass
class Backbone:
    """Where a test's gateways meet; ``namespace`` is the test's own."""

    url: str
    namespace: str = field(default_factory=lambda: f"t{os.getpid()}-{next(_numbers)}")


@dataclass
class Got:
    """A request as an application received it."""

    method: str
    target: str
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.fields}

    def all(self, name: str) -> list[str]:
        return [value for given, value in self.fields if given.lower() == name]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


def _decoded(raw: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]


class App(Recorder[Got]):
    """An application: records what it gets, and answers as told."""

    def __init__(self, subscriptions: object = None) -> None:
        super().__init__()
        self.subscriptions = subscriptions
        self.answers: dict[str, Answer] = {}
        self.streams: dict[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {}
        self.init: list[Got] = []
        self.port = 0
        self._runner: web.ServerRunner | None = None

    def answer(self, path: str, status: int = 200, body: object = b"", **headers: str) -> None:
        """Answer a path always in one way."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[path] = lambda got, request: web.Response(status=status, body=data, headers=named)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        server = web.Server(self._handle, handler_cancellation=True, auto_decompress=False, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        if path in self.streams:
            return await self.streams[path](request)
        got = Got(request.method, request.raw_path, _decoded(request.raw_headers), await request.content.read())
        if path in ("/dapr/subscribe", "/dapr/config"):
            self.init.append(got)
            if path == "/dapr/config" or self.subscriptions is None:
                return web.Response(status=404)
            return web.Response(body=orjson.dumps(self.subscriptions), content_type="application/json")
        self.got.append(got)
        answer = self.answers.get(path)
        if answer is None:
            return web.Response()
        made = answer(got, request)
        return await made if isinstance(made, Awaitable) else made


@dataclass
class Reply:
    """What a gateway answered."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.fields}

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Node:
    """A running gateway and a client to it."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.session = session

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def open(self, method: str, target: str, headers: object = None, body: object = None) -> Any:
        """Begin a request; the path goes out as it is."""
        url = URL(self.url + target, encoded=True)
        return self.session.request(method, url, headers=headers, data=body, allow_redirects=False)  # type: ignore[arg-type]

    async def request(self, method: str, target: str, headers: object = None, body: object = None) -> Reply:
        if body is not None and not isinstance(body, bytes | str) and not hasattr(body, "__aiter__"):
            body = orjson.dumps(body)
        if isinstance(body, bytes) and len(body) > 2**20:
            body = io.BytesIO(body)  # aiohttp warns of larger bytes.
        async with self.open(method, target, headers, body) as response:
            return Reply(response.status, _decoded(response.raw_headers), await response.read())

    async def get(self, target: str, **headers: str) -> Reply:
        return await self.request("GET", target, headers)

    async def post(self, target: str, body: object = None, content_type: str | None = None) -> Reply:
        return await self.request("POST", target, {"Content-Type": content_type} if content_type else None, body)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own; give all that comes until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            writer.write(data)
            async with asyncio.timeout(30):
                return await reader.read()
        finally:
            writer.close()

    async def publish(
        self, topic: str, body: object = "hello", content_type: str | None = None, query: str = ""
    ) -> None:
        data = body if isinstance(body, bytes | str) else orjson.dumps(body)
        if content_type is None and not isinstance(body, bytes | str):
            content_type = "application/json"
        reply = await self.post(f"/v1.0/publish/pubsub/{topic}{query}", data, content_type)
        assert (reply.status, reply.body) == (204, b"")

    async def until_ready(self) -> None:
        def check() -> None:
            assert not self.gateway.not_ready

        await eventually(check)


@asynccontextmanager
async def gateway(
    backbone: Backbone,
    home: Path,
    *,
    app: App | int | None = None,
    app_id: str = "app",
    resources: str = "",
    ready: bool = True,
    **settings: Any,
) -> AsyncIterator[Node]:
    """Run a gateway; with ``ready``, until the application is served.

    Args:
        backbone: Where.
        home: For its files.
        app: The application beside it, or its port.
        app_id: Its name.
        resources: YAML, besides which nothing is configured; empty for the defaults.
        ready: Wait.
        settings: Further members of ``GatewayConfig``.
    """
    if resources:
        directory = home / f"resources-{next(_numbers)}"
        directory.mkdir()
        (directory / "all.yaml").write_text(resources)
        settings["resource_paths"] = (directory,)
    config = GatewayConfig(
        app_id=app_id,
        home=home,
        app_port=app.port if isinstance(app, App) else app,
        http_port=0,
        namespace=backbone.namespace,
        backbone=backbone.url,
        **{"metrics": False, "registered": False, **settings},
    )
    async with AsyncExitStack() as stack:
        session = aiohttp.ClientSession(
            auto_decompress=False,
            skip_auto_headers=SKIPPED,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=60),
        )
        await stack.enter_async_context(session)  # Closed after the gateway: its clients do not leave first.
        started = Gateway(config)
        await stack.enter_async_context(started.running())
        node = Node(started, session)
        if ready:
            await node.until_ready()
        yield node


def yaml(kind: str, name: str, spec: object, *, version: str = "v1alpha1", scopes: Sequence[str] = ()) -> str:
    """Write a resource; JSON is YAML."""
    document = {"apiVersion": f"dapr.io/{version}", "kind": kind, "metadata": {"name": name}, "spec": spec}
    if scopes:
        document["scopes"] = list(scopes)
    return "---\n" + orjson.dumps(document).decode() + "\n"


def component(name: str, kind: str, *, scopes: Sequence[str] = (), **settings: str) -> str:
    """Write a component."""
    metadata = [{"name": key, "value": value} for key, value in settings.items()]
    return yaml("Component", name, {"type": kind, "version": "v1", "metadata": metadata}, scopes=scopes)


def subscription(pubsub: str, topic: str, *, letters: str = "", **metadata: str) -> dict[str, object]:
    """Write a subscription as an application tells of it; its route is the topic's name, without a ``queue:``."""
    route = f"/{topic.rpartition(':')[2]}"
    told = {"pubsubname": pubsub, "topic": topic, "route": route, "metadata": metadata}
    return {**told, "deadLetterTopic": letters} if letters else told


DEFAULTS = component("pubsub", "pubsub.mesh") + component("statestore", "state.mesh")


@dataclass(frozen=True)
class Case:
    """A request and what it gives.

    Attributes:
        id: Says what is tested.
        request: Method, target, and then headers and body if there are any.
        status: Expected.
        body: Bytes are compared as they are, anything else as JSON.
        headers: Expected among others; None for one that must not be there.
    """

    id: str
    request: tuple[Any, ...]
    status: int
    body: object = ANY
    headers: Mapping[str, object] = field(default_factory=dict)


def cases(*table: Case) -> pytest.MarkDecorator:
    """Run a test for each case."""
    return pytest.mark.parametrize("case", table, ids=[case.id for case in table])


def error(code: str, message: object = ANY, details: object = None) -> dict[str, object]:
    """Give the body of a failure."""
    body = {"errorCode": code, "message": message}
    return body if details is None else {**body, "details": details}


async def check(node: Node, case: Case) -> Reply:
    """Make a case's request and compare."""
    reply = await node.request(*case.request)
    assert reply.status == case.status, reply
    if isinstance(case.body, bytes):
        assert reply.body == case.body
    elif case.body is not ANY:
        assert reply.json == case.body, reply.body
        assert reply.headers["content-type"] == "application/json"
    if reply.status >= 400 and reply.headers.get("content-type") == "application/json" and case.body is not ANY:
        assert_error_shape(reply)
    for name, value in case.headers.items():
        assert reply.headers.get(name.lower()) == value, reply.fields
    return reply


def assert_error_shape(reply: Reply) -> None:
    """Every failure is one JSON object with a code and a text, and perhaps details."""
    body = reply.json
    assert isinstance(body, dict)
    assert set(body) - {"details"} == {"errorCode", "message"}, body
    for detail in body.get("details", ()):
        assert detail["@type"].startswith("type.googleapis.com/google.rpc."), detail
