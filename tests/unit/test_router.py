"""Which route answers a path."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from aiohttp import web

from gateway.api import _allowed
from gateway.errors import APIError
from gateway.http.response import Answered, Response
from gateway.http.server import Route, Router
from gateway.routes.invocation import clean_path
from gateway.routes.request import metadata_of, query_of, unescape
from mesh.resources.configuration import APIOperation, APISpec


async def found(request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
    return Response(200, repr((list(segments), query)).encode())


async def fallback(request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
    return Response(404, repr((list(segments), query)).encode())


def find(method: str, segments: Sequence[str]) -> Route | None:
    return found if method == "GET" and len(segments) == 1 else None


ROUTER = Router({("v1.0", "x"): find}, fallback, clean_path)


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v1.0/x/a", 200, "(['a'], '')"),
        ("GET", "/v1.0/x/a?b=1#c", 200, "(['a'], 'b=1')"),
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
        ("GET", "/v2.0/x/a", 404, "(['/v2.0/x/a'], '')"),
        ("GET", "/", 404, "(['/'], '')"),
        ("OPTIONS", "*", 404, "(['/'], '')"),
    ],
)
async def test_routing(method: str, path: str, status: int, text: str) -> None:
    """Version, block, segments; anything else is the fallback's, with its cleaned path."""
    request: web.BaseRequest = SimpleNamespace(method=method, raw_path=path)  # type: ignore[assignment]
    response = await ROUTER(request)
    assert isinstance(response, Response)
    assert (response.status, response.body.decode()) == (status, text)


@pytest.mark.parametrize(("method", "path", "status"), [("CONNECT", "h:1", 405), ("GET", "/v1.0/x/\udcff", 400)])
async def test_refused(method: str, path: str, status: int) -> None:
    """A tunnel, and bytes that are no text."""
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
    ],
)
def test_clean_path(path: str, clean: str) -> None:
    """No empty or dotted segments, escaped ones included; a final slash stays."""
    assert clean_path(path) == clean


@pytest.mark.parametrize(
    ("text", "plain"), [("a", "a"), ("a+b", "a b"), ("a%2Bb", "a+b"), ("%C3%BC", "ü"), ("%2f", "/"), ("", "")]
)
def test_unescape(text: str, plain: str) -> None:
    """As a query is decoded."""
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


BLOCKS = {("v1.0", "state"): find, ("v1.0-alpha1", "state"): find, ("v1.0", "publish"): find, ("v1.0", "healthz"): find}


def operation(name: str, version: str = "v1", protocol: str = "http") -> APIOperation:
    return APIOperation(name=name, version=version, protocol=protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("api", "left"),
    [
        (None, set(BLOCKS)),
        (APISpec(), set(BLOCKS)),
        (APISpec(allowed=(operation("state"),)), {("v1.0", "state"), ("v1.0", "healthz")}),
        (APISpec(allowed=(operation("state", "v1.0-alpha1"),)), {("v1.0-alpha1", "state"), ("v1.0", "healthz")}),
        (APISpec(denied=(operation("state", "v1alpha1"),)), set(BLOCKS) - {("v1.0-alpha1", "state")}),
        (APISpec(denied=(operation("state", "v1.0"),)), set(BLOCKS) - {("v1.0", "state")}),
        (APISpec(denied=(operation("state", protocol="grpc"),)), set(BLOCKS)),
        (APISpec(denied=(operation("healthz"),)), set(BLOCKS)),
        (APISpec(allowed=(operation("publish"),), denied=(operation("publish"),)), {("v1.0", "healthz")}),
    ],
)
def test_allowed(api: APISpec | None, left: set[tuple[str, str]]) -> None:
    """What Configuration `spec.api` leaves; health always, denied beats allowed."""
    assert set(_allowed(BLOCKS, api)) == left
