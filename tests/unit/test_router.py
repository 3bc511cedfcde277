"""Which route answers a path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from gateway.config import GatewayConfig
from gateway.errors import APIError
from gateway.grpc.messages import message
from gateway.http.response import Answered, Response
from gateway.http.server import Found, Router
from gateway.routes import ROUTES, RPCS, build_api, build_router
from gateway.routes.invocation import comparable
from gateway.routes.request import metadata_of, query_of, unescape
from gateway.routes.route import Asked, Route
from mesh.resources.configuration import (
    API_NAMES,
    API_VERSIONS,
    APIOperation,
    APISpec,
    Configuration,
    ConfigurationSpec,
)


def answering(status: int, segments: Sequence[str]) -> Found:
    async def answer(request: web.BaseRequest, query: str) -> Answered:
        return Response(status, repr((list(segments), query)).encode())

    return answer


def find(method: str, segments: Sequence[str]) -> Found | None:
    return answering(200, segments) if method == "GET" and len(segments) == 1 else None


def fallback(method: str, segments: Sequence[str]) -> Found:
    return answering(404, segments)


ROUTER = Router({("v1.0", "x"): find}, fallback, comparable)


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v1.0/x/a", 200, "(['a'], '')"),
        ("GET", "/v1.0/x/a?b=1", 200, "(['a'], 'b=1')"),
        ("GET", "/v1.0/x/a/", 200, "(['a'], '')"),
        ("GET", "//v1.0/./x//a", 200, "(['a'], '')"),
        ("GET", "/v1.0/y/../x/a", 200, "(['a'], '')"),
        ("GET", "/v1.0/x/a%2Fb", 200, "(['a%2Fb'], '')"),
        ("GET", "/v1.0/x/%2e%2e", 200, "(['%2e%2e'], '')"),
        ("GET", "http://h/v1.0/x/a?q", 200, "(['a'], 'q')"),
        ("GET", "http://h", 404, "(['/'], '')"),
        ("POST", "/v1.0/x/a", 404, "(['/v1.0/x/a'], '')"),
        ("GET", "/v1.0/x/a/b?q=1", 404, "(['/v1.0/x/a/b'], 'q=1')"),
        ("GET", "/v1.0/x", 404, "(['/v1.0/x'], '')"),
        ("GET", "//v1.0/./y//a/..", 404, "(['//v1.0/./y//a/..'], '')"),
        ("GET", "/y\udcff", 404, "(['/y\\udcff'], '')"),
        ("GET", "/v2.0/x/a", 404, "(['/v2.0/x/a'], '')"),
        ("GET", "/", 404, "(['/'], '')"),
        ("OPTIONS", "*", 404, "(['/'], '')"),
    ],
)
async def test_routing(method: str, path: str, status: int, text: str) -> None:
    """Version, block, segments; anything else is the fallback's, with its path as it was written."""
    request: web.BaseRequest = SimpleNamespace(method=method, raw_path=path)  # type: ignore[assignment]
    response = await ROUTER(request)
    assert isinstance(response, Response)
    assert (response.status, response.body.decode()) == (status, text)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("CONNECT", "h:1", 405),
        ("CONNECT", "/v1.0/x/a", 405),
        ("GET", "/v1.0/x/a#b", 400),
        ("GET", "/v1.0/x/a?b#c", 400),
    ],
)
async def test_refused(method: str, path: str, status: int) -> None:
    """A tunnel, and a fragment."""
    request: web.BaseRequest = SimpleNamespace(method=method, raw_path=path)  # type: ignore[assignment]
    with pytest.raises(APIError) as raised:
        await ROUTER(request)
    assert raised.value.status == status


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("/", "/"),
        ("//", "/"),
        ("/a//b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../../b", "/b"),
        ("/a/..", "/"),
        ("/a/%2E%2e/b", "/b"),
        ("/%2e/b", "/b"),
        ("/a/%2Fb", "/a/%2Fb"),
        ("/.well-known/x", "/.well-known/x"),
        ("/a/..b", "/a/..b"),
        ("/%252e%252e/b", "/%252e%252e/b"),
        ("//v1.0//invoke//a//method//b/../c", "/v1.0/invoke/a/method//b/../c"),
        ("/v1.0/invoke/a/method/../../../state/x", "/v1.0/invoke/a/method/../../../state/x"),
        ("/v1.0/invoke/HTTP://h:1/b//method/a//b", "/v1.0/invoke/HTTP://h:1/b//method/a//b"),
        ("/v1.0/invoke/../method/b", "/v1.0/method/b"),
        ("/v1.0/invoke/a/methods/../b", "/v1.0/invoke/a/b"),
        ("/v1.0/invoke/" + "http:" + "/" * 16_000, "/v1.0/invoke/http:/"),
    ],
)
def test_what_routes_are_compared_with(path: str, clean: str) -> None:
    """No empty or dotted segments, escaped ones included; a final slash stays, and so does what is invoked."""
    assert comparable(path) == clean


@pytest.mark.parametrize(
    ("text", "plain"),
    [("a", "a"), ("a+b", "a+b"), ("a%2Bb", "a+b"), ("a%20b", "a b"), ("%C3%BC", "ü"), ("%2f", "/"), ("", "")],
)
def test_unescape(text: str, plain: str) -> None:
    """A plus is a plus."""
    assert unescape(text) == plain


@pytest.mark.parametrize("text", ["%", "%a", "%zz", "a%g0", "%ff", "%C3"])
def test_bad_escapes(text: str) -> None:
    """400."""
    with pytest.raises(APIError) as raised:
        unescape(text)
    assert (raised.value.status, raised.value.code) == (400, "ERR_BAD_REQUEST")


def test_queries() -> None:
    """The first of a name counts; metadata by its exact prefix."""
    assert query_of("a=1&a=2&b=&c&d=%ff&e=x+y") == {"a": "1", "b": "", "c": "", "d": "\ufffd", "e": "x y"}
    assert query_of("a=\udcff") == {"a": "\ufffd"}
    assert metadata_of("metadata.a=1&METADATA.b=2&metadata.A=3&metadata.=4&xmetadata.c=5") == {
        "a": "1",
        "A": "3",
        "": "4",
    }
    assert metadata_of("") == {}


async def told(asked: Asked) -> Answered:
    return Response(200, repr(list(asked.segments)).encode())


def route(path: str, *versions: str, always: bool = False) -> Route:
    return Route(path, told, frozenset({"GET"}), versions or ("v1.0",), always)


PATTERNS = (
    route("things/{a}/fixed"),
    route("things/{a}/{b}"),
    route("things"),
    route("many/{a}/{b}/{rest*}"),
    route("any/{rest*}"),
)


def router(routes: Sequence[Route], api: APISpec | None = None) -> Router:
    runtime: Any = SimpleNamespace(
        run=None,
        services={},
        caller=None,
        tracing=None,
        tap=None,
        streams=None,
        settings=SimpleNamespace(configuration=Configuration("", ConfigurationSpec(api=api))),
    )
    node: Any = None
    return build_router(build_api(runtime, GatewayConfig("app", Path("home")), node, {}, message, routes), routes)


async def answered(made: Router, path: str) -> str | None:
    request: Any = SimpleNamespace(method="GET", raw_path=path, headers={})
    try:
        response = await made(request)
    except APIError as error:
        assert error.status == 404
        return None
    assert isinstance(response, Response)
    return response.body.decode()


@pytest.mark.parametrize(
    ("path", "opened"),
    [
        ("/v1.0/things/x/fixed", "['x']"),
        ("/v1.0/things/x/y", "['x', 'y']"),
        ("/v1.0/things", "[]"),
        ("/v1.0/things/x", None),
        ("/v1.0/things/x/y/z", None),
        ("/v1.0/many/x", None),
        ("/v1.0/many/x/y", "['x', 'y']"),
        ("/v1.0/many/x/", "['x', '']"),
        ("/v1.0/many/x/y/z/w", "['x', 'y', 'z', 'w']"),
        ("/v1.0/any", "[]"),
        ("/v1.0/any/x/y", "['x', 'y']"),
        ("/v1.0/none/x", None),
    ],
)
async def test_patterns(path: str, opened: str | None) -> None:
    """The first row that fits; fixed segments must be there, the rest may be empty."""
    assert await answered(router(PATTERNS), path) == opened


ROWS = (
    route("state/{k}", "v1.0", "v1.0-alpha1"),
    route("publish/{k}"),
    route("healthz/{k}", always=True),
)
ALL = {"v1.0/state", "v1.0-alpha1/state", "v1.0/publish", "v1.0/healthz"}


def operation(name: str, version: str = "v1", protocol: str = "http") -> APIOperation:
    return APIOperation(name=name, version=version, protocol=protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("api", "left"),
    [
        (None, ALL),
        (APISpec(), ALL),
        (APISpec(allowed=(operation("state"),)), {"v1.0/state", "v1.0/healthz"}),
        (APISpec(allowed=(operation("state", "v1.0-alpha1"),)), {"v1.0-alpha1/state", "v1.0/healthz"}),
        (APISpec(denied=(operation("state", "v1alpha1"),)), ALL - {"v1.0-alpha1/state"}),
        (APISpec(denied=(operation("state", "v1.0"),)), ALL - {"v1.0/state"}),
        (APISpec(denied=(operation("state", protocol="grpc"),)), ALL),
        (APISpec(denied=(operation("healthz"),)), ALL),
        (APISpec(allowed=(operation("publish"),), denied=(operation("publish"),)), {"v1.0/healthz"}),
    ],
)
async def test_allowed(api: APISpec | None, left: set[str]) -> None:
    """What Configuration `spec.api` leaves; health always, denied beats allowed."""
    made = router(ROWS, api)
    assert {name for name in ALL if await answered(made, f"/{name}/k") is not None} == left


def test_every_part_of_the_api_can_be_named() -> None:
    """In `spec.api` of a Configuration, where other names are errors."""
    assert {route.name for route in ROUTES} | {row.api for row in RPCS} <= set(API_NAMES)
    for route in ROUTES:
        assert set(route.versions) <= set(API_NAMES[route.name]) <= set(API_VERSIONS.values())
    for row in RPCS:
        told = {f"v1.0-alpha{name[-1]}" if "Alpha" in name else "v1.0" for name in (row.name, *row.aliases)}
        assert told <= set(API_NAMES[row.api])
