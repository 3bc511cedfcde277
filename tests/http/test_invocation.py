"""Service invocation: every form of naming the target, and what passes through unchanged.

Source: Dapr 1.18, service invocation.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from mesh.telemetry import is_traceparent
from tests.http.harness import DEFAULTS, App, Backbone, Case, Got, Node, cases, check, error, gateway, matches, yaml
from tests.support.processes import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")
INVOKE = "/v1.0/invoke/callee/method"


class Pair:
    """An application, its gateway, and another gateway that calls it, on one broker."""

    def __init__(self, app: App, callee: Node, caller: Node, outside: App) -> None:
        self.app = app
        self.callee = callee
        self.caller = caller
        self.outside = outside

    async def got(self, node: Node, *request: object) -> Got:
        """Make a request that must reach the application; give what arrived there."""
        self.app.got.clear()
        self.outside.got.clear()
        reply = await node.request(*request)  # type: ignore[arg-type]
        assert reply.status == 200, reply
        return [*self.app.got, *self.outside.got][-1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    backbone = Backbone(nats_url)
    home = tmp_path_factory.mktemp("home")
    async with App() as app, App() as outside:
        headers = [{"name": "X-Fixed", "value": "yes"}]
        base = f"http://127.0.0.1:{outside.port}/base"
        resources = DEFAULTS + yaml("HTTPEndpoint", "partner", {"baseUrl": base, "headers": headers})
        async with (
            gateway(backbone, home, app=app, app_id="callee") as callee,
            gateway(backbone, home, app_id="caller", resources=resources) as caller,
        ):
            yield Pair(app, callee, caller, outside)


@pytest.fixture(params=["remote", "local"])
def node(request: pytest.FixtureRequest, pair: Pair) -> Node:
    """Whose gateway is called: another application's, or the callee's own."""
    return pair.caller if request.param == "remote" else pair.callee


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("target", "headers", "arrives"),
    [
        (f"{INVOKE}/orders", {}, "/orders"),
        (f"{INVOKE}/a/b/c", {}, "/a/b/c"),
        (f"{INVOKE}/a/", {}, "/a/"),
        (INVOKE, {}, "/"),
        (f"{INVOKE}/", {}, "/"),
        (f"{INVOKE}//a//b/./c", {}, "//a//b/./c"),
        (f"{INVOKE}/a//", {}, "/a//"),
        (f"{INVOKE}/a/../b", {}, "/a/../b"),
        (f"{INVOKE}/../../../../state/statestore", {}, "/../../../../state/statestore"),
        (f"{INVOKE}/%2e%2e/%2E%2E/etc/passwd", {}, "/%2e%2e/%2E%2E/etc/passwd"),
        ("//v1.0//invoke/./callee//method/a//b", {}, "/a/b"),
        (f"/{INVOKE}/a//b", {}, "/a//b"),
        (f"{INVOKE}/value%23x", {}, "/value%23x"),
        (f"{INVOKE}/x%3Fy?z", {}, "/x%3Fy?z"),
        (f"{INVOKE}/a%00%0d%0a%25", {}, "/a%00%0d%0a%25"),
        (f"{INVOKE}/a;v=1,2;w/b+c*(d)", {}, "/a;v=1,2;w/b+c*(d)"),
        (f"{INVOKE}/%41%7e", {}, "/%41%7e"),
        (f"{INVOKE}/a%2Fb%20c", {}, "/a%2Fb%20c"),
        (f"{INVOKE}/gr%C3%BC%C3%9F", {}, "/gr%C3%BC%C3%9F"),
        (f"{INVOKE}/%F0%9F%91%A8%E2%80%8D%F0%9F%91%A9", {}, "/%F0%9F%91%A8%E2%80%8D%F0%9F%91%A9"),
        (f"{INVOKE}/method/method", {}, "/method/method"),
        (f"{INVOKE}/q?a=1&a=2&b=%20+%2B&c", {}, "/q?a=1&a=2&b=%20+%2B&c"),
        (f"{INVOKE}/q?x=%C3%BC&y=[]{{}}'|&z=%zz&&==", {}, "/q?x=%C3%BC&y=[]{}'|&z=%zz&&=="),
        (f"{INVOKE}/q?metadata.a=b", {}, "/q?metadata.a=b"),
        (f"{INVOKE}/q??a?", {}, "/q??a?"),
        ("/v1.0/invoke/%63allee/method/x", {}, "/x"),
        ("/orders/1?x=%20", {"dapr-app-id": "callee"}, "/orders/1?x=%20"),
        ("/a%2Fb", {"dapr-app-id": "callee"}, "/a%2Fb"),
        ("/", {"dapr-app-id": "callee"}, "/"),
        ("//a//./b/../%2e", {"dapr-app-id": "callee"}, "//a//./b/../%2e"),
        (f"{INVOKE}//a/../b", {"dapr-app-id": "callee"}, f"{INVOKE}//a/../b"),
        ("/v1.0/other", {"Dapr-App-Id": "callee"}, "/v1.0/other"),
        ("/v1.0/invoke/x/method/y", {"dapr-app-id": "callee"}, "/v1.0/invoke/x/method/y"),
        ("/v1.0/state/statestore", {"dapr-app-id": "callee"}, "/v1.0/state/statestore"),
        ("/basic/auth", basic("dapr-app-id", "callee"), "/basic/auth"),
    ],
)
async def test_forms(pair: Pair, node: Node, target: str, headers: dict[str, str], arrives: str) -> None:
    """URL, header and basic authentication name the target; path and query arrive byte for byte."""
    assert (await pair.got(node, "GET", target, headers)).target == arrives


@pytest.mark.parametrize(
    "target",
    [f"{INVOKE}/q?", "/q?", '/a|"<>\\^`{}', "//a/..//?%zz"],
)
async def test_untidy_targets(pair: Pair, node: Node, target: str) -> None:
    """What client libraries would tidy up arrives as it was written."""
    pair.app.got.clear()
    fields = "Host: x\r\nConnection: close\r\n" + ("" if target.startswith(INVOKE) else "dapr-app-id: callee\r\n")
    answer = await node.raw(f"GET {target} HTTP/1.1\r\n{fields}\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert pair.app.got[-1].target == target.removeprefix(INVOKE)


async def test_a_field_that_is_said_twice(pair: Pair, node: Node) -> None:
    """Of those that should stand once the first arrives; the Java SDK sends two types."""
    pair.app.got.clear()
    fields = "Host: x\r\nConnection: close\r\nContent-Type: a/b\r\nContent-Length: 2\r\ncontent-type: c/d\r\n"
    answer = await node.raw(f"POST {INVOKE}/q HTTP/1.1\r\n{fields}\r\n{{}}".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    got = pair.app.got[-1]
    assert [value for name, value in got.fields if name.lower() == "content-type"] == ["a/b"]


async def test_trap_6_the_header_does_not_reach_claimed_paths(pair: Pair) -> None:
    """A path that a route claims is that route's, header or not."""
    pair.app.got.clear()
    reply = await pair.caller.get("/v1.0/state/statestore/none", **{"dapr-app-id": "callee"})
    assert (reply.status, pair.app.got) == (204, [])


async def test_target_headers(pair: Pair, node: Node) -> None:
    """dapr-app-id is removed, Authorization is not."""
    got = await pair.got(node, "GET", "/x", {"dapr-app-id": "callee", "Authorization": "Bearer t"})
    assert "dapr-app-id" not in got.headers
    assert got.headers["authorization"] == "Bearer t"
    got = await pair.got(node, "GET", "/x", basic("dapr-app-id", "callee"))
    assert got.headers["authorization"] == basic("dapr-app-id", "callee")["Authorization"]


async def test_namespace_in_the_name(pair: Pair, node: Node) -> None:
    """`id.namespace` is the same application, if the namespace is."""
    namespace = pair.caller.gateway.config.namespace
    assert (await pair.got(node, "GET", f"/v1.0/invoke/callee.{namespace}/method/x")).target == "/x"


FAILED = "failed to invoke, id: "
DIRECT = error("ERR_DIRECT_INVOKE", matches(lambda text: text.startswith(FAILED)))
NO_ID = error("ERR_DIRECT_INVOKE", "failed getting app id either from the URL path or the header dapr-app-id")
NO_API = error(
    "ERR_DIRECT_INVOKE",
    f"{NO_ID['message']}; there is no API 'unknown' in this version, see docs/compatibility.md#other-blocks",
)
CLIMBS = error("ERR_DIRECT_INVOKE", matches(lambda text: text.endswith("/base by '..'")))
LOGIN = "invalid request: a login in the URL of a service is not sent; it belongs into the header Authorization"


@cases(
    Case("no id", ("GET", "/anything"), 404, NO_ID),
    Case("root", ("GET", "/"), 404, NO_ID),
    Case("unknown API", ("POST", "/v1.0/unknown/x", None, b"x"), 404, NO_API),
    Case("wrong verb", ("DELETE", "/v1.0/healthz"), 404, NO_ID),
    Case("no method marker", ("GET", "/v1.0/invoke/callee/x"), 404, NO_ID),
    Case("no app id in the path", ("GET", "/v1.0/invoke/method/x"), 404, NO_ID),
    Case("another user", ("GET", "/x", basic("someone", "callee")), 404, NO_ID),
    Case("broken basic", ("GET", "/x", {"Authorization": "Basic !"}), 404, NO_ID),
    Case("bearer", ("GET", "/x", {"Authorization": "Bearer callee"}), 404, NO_ID),
    Case(
        "unknown app",
        ("GET", "/v1.0/invoke/nobody/method/x"),
        500,
        error("ERR_DIRECT_INVOKE", f"{FAILED}nobody, err: no instance of nobody is on the mesh"),
    ),
    Case("unknown app by header", ("GET", "/x", {"dapr-app-id": "nobody"}), 500, DIRECT),
    Case("unknown namespace", ("GET", "/v1.0/invoke/callee.elsewhere/method/x"), 500, DIRECT),
    Case("two dots", ("GET", "/v1.0/invoke/a.b.c/method/x"), 500, DIRECT),
    Case("a long app id", ("GET", f"/v1.0/invoke/{'a' * 5000}/method/x"), 500, DIRECT),
    Case("an odd app id", ("GET", "/v1.0/invoke/a%2F%20%C3%BC%3E*/method/x"), 500, DIRECT),
    Case("out of an endpoint's base", ("GET", "/v1.0/invoke/partner/method/a/../../b"), 500, CLIMBS),
    Case("the same, escaped", ("GET", "/v1.0/invoke/partner/method/a%2f%2e%2E/..;x/b"), 500, CLIMBS),
    Case("bad escape", ("GET", f"{INVOKE}/a%zz"), 400, error("ERR_BAD_REQUEST")),
    Case("bad timeout", ("GET", f"{INVOKE}/a", {"mesh-timeout": "soon"}), 400, error("ERR_BAD_REQUEST")),
    Case("no time", ("GET", f"{INVOKE}/a", {"mesh-timeout": "0s"}), 500, DIRECT),
    Case("nobody there", ("GET", f"/v1.0/invoke/http://127.0.0.1:{free_port()}/method/x"), 500, DIRECT),
    *(
        Case(f"login in {name}", ("GET", path, headers), 400, error("ERR_BAD_REQUEST", LOGIN))
        for name, path, headers in (
            ("the path", "/v1.0/invoke/http://user:pw@127.0.0.1:1/method/x", {}),
            ("an escaped one", "/v1.0/invoke/http%3A%2F%2Fuser%40127.0.0.1:1/method/x", {}),
            ("the header", "/x", {"dapr-app-id": "https://user:pw@127.0.0.1:1/a"}),
            ("a durable call", "/x", {"dapr-app-id": "http://:pw@127.0.0.1:1?a", "mesh-delivery": "durable"}),
        )
    ),
    Case("an @ behind the host", ("GET", "/x", {"dapr-app-id": f"http://127.0.0.1:{free_port()}/@a"}), 500, DIRECT),
    Case("no URL", ("GET", "/v1.0/invoke/http://[/method/x"), 500, DIRECT),
)
async def test_errors(pair: Pair, case: Case) -> None:
    await check(pair.caller, case)


@pytest.mark.parametrize("form", ["http://{}/base", "http:/{}/base", "http%3A%2F%2F{}%2Fbase", "partner"])
async def test_outside_services(pair: Pair, form: str) -> None:
    """An HTTPEndpoint's name, and an absolute URL, raw or encoded, lead out of the mesh."""
    target = form.format(f"127.0.0.1:{pair.outside.port}")
    got = await pair.got(
        pair.caller, "POST", f"/v1.0/invoke/{target}/method/a/..//b%23?q=%20", {"X-Fixed": "mine"}, b"body"
    )
    assert (got.method, got.target, got.body) == ("POST", "/base/a/..//b%23?q=%20", b"body")
    assert got.all("host") == [f"127.0.0.1:{pair.outside.port}"]
    assert got.all("x-fixed") == ["yes" if form == "partner" else "mine"]


async def test_an_url_in_the_header(pair: Pair) -> None:
    """The header form takes URLs, too."""
    got = await pair.got(pair.caller, "GET", "/x", {"dapr-app-id": f"http://127.0.0.1:{pair.outside.port}"})
    assert got.target == "/x"


@pytest.mark.parametrize(
    "verb", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "QUERY"]
)
async def test_verbs(pair: Pair, node: Node, verb: str) -> None:
    """All verbs pass, with body and without."""
    assert (await pair.got(node, verb, f"{INVOKE}/x")).method == verb
    got = await pair.got(node, verb, f"{INVOKE}/x", None, b"body")
    assert (got.method, got.body) == (verb, b"body")


async def test_connect_is_rejected(pair: Pair) -> None:
    """A gateway is no tunnel."""
    answer = await pair.caller.raw(b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b'"errorCode":"ERR_DIRECT_INVOKE"' in answer


async def test_request_headers(pair: Pair, node: Node) -> None:
    """All pass, duplicates in order, but those of one connection, those of Dapr, and what `Connection` lists."""
    given = [
        ("X-One", "1"),
        ("X-Two", "a"),
        ("X-Two", "b"),
        ("Cookie", "a=1; b=2"),
        ("Accept", "text/html"),
        ("User-Agent", "me"),
        ("Accept-Encoding", "br"),
        ("Connection", "x-hop, keep-alive"),
        ("X-Hop", "secret"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Trailer", "x"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ("Proxy-Authorization", "x"),
        ("Proxy-Authenticate", "x"),
        ("destination-app-id", "x"),
        ("secret-bin", "x"),
        ("dapr-caller-app-id", "forged"),
        ("mesh-proven-by", "spiffe://public/ns/default/payroll"),
        ("mesh_proven_by", "spiffe://public/ns/default/payroll"),
        ("mesh-attempt", "1"),
        ("baggage", "k=v"),
        ("dapr-api-token", "client"),
    ]
    got = await pair.got(node, "POST", f"{INVOKE}/x", given, b"body")
    names = {name for name, _ in ((name.lower(), value) for name, value in got.fields)}
    assert got.all("x-two") == ["a", "b"]
    expected = {
        "x-one": "1",
        "cookie": "a=1; b=2",
        "accept": "text/html",
        "user-agent": "me",
        "accept-encoding": "br",
        "baggage": "k=v",
        "dapr-api-token": "client",
        "content-length": "4",
    }
    assert {name: got.headers[name] for name in expected} == expected
    assert not names & {
        "x-hop",
        "mesh-proven-by",
        "mesh_proven_by",
        "mesh-attempt",
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
        "proxy-authenticate",
        "destination-app-id",
        "secret-bin",
        "content-type",
        "transfer-encoding",
        "expect",
    }
    assert got.all("host") == [f"127.0.0.1:{pair.app.port}"]
    gateway_host = f"127.0.0.1:{node.gateway.port}"
    assert got.all("x-forwarded-for") == ["127.0.0.1"]
    assert got.all("x-forwarded-host") == [gateway_host]
    assert got.all("forwarded") == [f"for=127.0.0.1;by=127.0.0.1;host={gateway_host}"]
    assert got.all("dapr-caller-app-id") == [node.gateway.app_id]
    assert got.all("dapr-caller-namespace") == [node.gateway.config.namespace]
    assert got.all("dapr-callee-app-id") == ["callee"]


async def test_header_bytes(pair: Pair, node: Node) -> None:
    """Header values of any encoding pass in both directions."""
    pair.app.answers["/bytes"] = lambda got, request: web.Response(headers={"X-Back": "grüß"})
    data = f"GET {INVOKE}/bytes HTTP/1.1\r\nHost: x\r\nX-Latin: caf\xe9\r\nConnection: close\r\n\r\n".encode("latin-1")
    answer = await node.raw(data)
    assert "X-Back: grüß\r\n".encode() in answer
    assert pair.app.at("/bytes")[-1].headers["x-latin"] == "café"


async def test_trace_context(pair: Pair, node: Node) -> None:
    """The call is a child of the caller's span."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    got = await pair.got(node, "GET", f"{INVOKE}/x", {"traceparent": traceparent, "tracestate": "a=1"})
    (span,) = got.all("traceparent")
    assert span[:36] == traceparent[:36]
    assert span != traceparent
    assert got.all("tracestate") == ["a=1"]


@pytest.mark.parametrize("traceparent", [None, "00-bad", "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01"])
async def test_a_state_without_its_trace(pair: Pair, node: Node, traceparent: str | None) -> None:
    """It is about another trace than the one that begins here."""
    given = {} if traceparent is None else {"traceparent": traceparent}
    got = await pair.got(node, "GET", f"{INVOKE}/x", {"tracestate": "a=1", **given})
    assert not got.all("tracestate")
    assert got.all("traceparent") != [traceparent]


async def test_trace_context_of_raw_bytes(pair: Pair, node: Node) -> None:
    """What W3C calls invalid is left out, and a trace of its own begins."""
    bad = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-\xff"),
        ("tracestate", "a=\xff"),
    ]
    fields = "".join(f"{name}: {value}\r\n" for name, value in bad)
    await node.raw(f"GET {INVOKE}/bad-trace HTTP/1.1\r\nHost: x\r\n{fields}Connection: close\r\n\r\n".encode("latin-1"))
    got = pair.app.at("/bad-trace")[-1]
    (span,) = got.all("traceparent")
    assert "0af7651916cd43dd8448eb211c80319c" not in span
    assert not got.all("tracestate")


@pytest.mark.parametrize(
    "status", [200, 201, 202, 204, 205, 206, 301, 302, 304, 400, 401, 403, 404, 409, 418, 429, 500, 502, 503, 599]
)
async def test_statuses(pair: Pair, node: Node, status: int) -> None:
    """Every status passes with its body; redirects are not followed."""
    body = b"" if status in (204, 205, 304) else b"the body"
    pair.app.answer("/status", status, body, Location="/elsewhere", ETag='"1"')
    reply = await node.get(f"{INVOKE}/status")
    assert (reply.status, reply.body) == (status, body)
    assert (reply.headers["location"], reply.headers["etag"]) == ("/elsewhere", '"1"')
    assert not pair.app.at("/elsewhere")


async def test_response_headers(pair: Pair, node: Node) -> None:
    """All pass, duplicates in order, but those of one connection; the span of the call is added, and nothing else."""

    def answer(got: Got, request: web.BaseRequest) -> web.Response:
        response = web.Response(
            body=b"x", headers={"Connection": "x-hop", "X-Hop": "1", "Keep-Alive": "5", "Content-Type": "a/b"}
        )
        response.headers.extend([("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Server", "mine"), ("Date", "today")])
        response.headers.add("X-Content-Bin", "x")
        return response

    pair.app.answers["/headers"] = answer
    reply = await node.get(f"{INVOKE}/headers")
    assert is_traceparent(reply.headers["traceparent"])
    assert [each for each in reply.fields if each[0] != "Traceparent"] == [
        ("Content-Type", "a/b"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Server", "mine"),
        ("Date", "today"),
        ("Content-Length", "1"),
    ]


async def test_head(pair: Pair, node: Node) -> None:
    """HEAD gives the length and no body, and the connection stays usable."""
    pair.app.answer("/head", 200, b"x" * 1000, Content_Type="a/b")
    for _ in range(2):
        reply = await node.request("HEAD", f"{INVOKE}/head")
        assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "1000")


async def test_compressed_bodies_pass_as_they_are(pair: Pair, node: Node) -> None:
    """The gateway neither unpacks nor packs, in either direction."""
    packed = gzip.compress(b"hello" * 100)
    pair.app.answer("/gzip", 200, packed, Content_Encoding="gzip")
    reply = await node.request(
        "POST", f"{INVOKE}/gzip", {"Content-Encoding": "gzip", "Content-Type": "text/plain"}, packed
    )
    got = pair.app.at("/gzip")[-1]
    assert (reply.body, reply.headers["content-encoding"]) == (packed, "gzip")
    assert (got.body, got.headers["content-encoding"], got.headers["content-type"]) == (packed, "gzip", "text/plain")


@pytest.mark.parametrize("size", [0, 1, 131072, 131073, 300_000, 1_500_000, 5_000_000])
async def test_bodies(pair: Pair, node: Node, size: int) -> None:
    """Bodies of any size pass both ways, above the gateway's limit for other routes and the broker's for messages."""
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    pair.app.answers["/echo"] = lambda got, request: web.Response(body=got.body)
    reply = await node.request("POST", f"{INVOKE}/echo", None, body)
    assert reply.status == 200
    assert reply.body == body
    assert reply.headers["content-length"] == str(size)


async def test_chunked_upload(pair: Pair, node: Node) -> None:
    """A body without length arrives without one."""

    async def parts() -> AsyncIterator[bytes]:
        for number in range(5):
            yield str(number).encode()

    got = await pair.got(node, "POST", f"{INVOKE}/x", None, parts())
    assert (got.body, got.headers["transfer-encoding"]) == (b"01234", "chunked")
    assert "content-length" not in got.headers


async def test_expect_continue(pair: Pair, node: Node) -> None:
    """A client that asks first is told to go on, small body or large."""
    pair.app.answers["/expect"] = lambda got, request: web.Response(body=str(len(got.body)).encode())
    for target, size in ((f"{INVOKE}/expect", 10), (f"{INVOKE}/expect", 300_000)):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
        writer.write(
            f"POST {target} HTTP/1.1\r\nHost: x\r\n"
            f"Expect: 100-continue\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()
        )
        async with asyncio.timeout(30):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"x" * size)
            answer = await reader.read()
        assert answer.endswith(str(size).encode())
        assert "expect" not in pair.app.at("/expect")[-1].headers
        writer.close()


async def test_expect_continue_of_other_routes(pair: Pair) -> None:
    """The same holds for a save; one that is refused is not told to go on."""
    body = b'[{"key":"expected","value":1}]'
    fields = b"Host: x\r\nExpect: 100-continue\r\nContent-Length: 30\r\nConnection: close"
    head = b"POST /v1.0/state/%b HTTP/1.1\r\n" + fields + b"\r\n\r\n"
    answer = await pair.caller.raw(head % b"statestore" + body)
    assert answer.startswith(b"HTTP/1.1 204 ") or answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 ")
    assert (await pair.caller.raw(head % b"nope" + body)).startswith(b"HTTP/1.1 400 ")


async def test_http_1_0(pair: Pair, node: Node) -> None:
    """An old client gets a body that ends with the connection."""
    pair.app.answer("/old", 200, b"x" * 10)
    answer = await node.raw(f"GET {INVOKE}/old HTTP/1.0\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n" + b"x" * 10)
    assert b"Connection: close" in answer


async def test_absolute_form(pair: Pair, node: Node) -> None:
    """A client that takes the gateway for a proxy is understood."""
    answer = await node.raw(
        f"GET http://h:1{INVOKE}/abs?a=1 HTTP/1.1\r\nHost: h:1\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert pair.app.got[-1].target == "/abs?a=1"
    answer = await node.raw(
        b"GET http://h:1/abs2?a=1 HTTP/1.1\r\nHost: h\r\ndapr-app-id: callee\r\nConnection: close\r\n\r\n"
    )
    assert pair.app.got[-1].target == "/abs2?a=1"


@pytest.mark.parametrize("upgrade", ["h2c", "TLS/1.3", "tcp", "foo, bar"])
async def test_offers_of_an_upgrade_are_ignored(pair: Pair, node: Node, upgrade: str) -> None:
    """A client that offers HTTP/2, as Java's does, is served over HTTP/1.1."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": upgrade, "HTTP2-Settings": "AAMAAABk"}
    got = await pair.got(node, "POST", f"{INVOKE}/up", offer, b"hi")
    assert got.body == b"hi"
    assert "upgrade" not in got.headers
    alone = await pair.got(
        node, "GET", f"{INVOKE}/up", {"Upgrade": "websocket"}
    )  # It asks for no upgrade without this.
    assert "upgrade" not in alone.headers


@pytest.mark.parametrize(
    "target", [f"{INVOKE}/ws", "/v1.0/invoke/partner/method/ws", "/ws"], ids=["application", "endpoint", "header"]
)
@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket"])
async def test_websockets_are_refused(pair: Pair, node: Node, target: str, upgrade: str) -> None:
    """A plain answer of the application would say that it speaks none; the connection stays usable."""
    pair.app.got.clear()
    opening = (
        f"GET {target} HTTP/1.1\r\nHost: x\r\n{'dapr-app-id: callee' if target == '/ws' else 'x: y'}\r\n"
        f"Connection: keep-alive, Upgrade\r\nUpgrade: {upgrade}\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)
    writer.write(opening.encode())
    async with asyncio.timeout(30):
        answer = await reader.readuntil(b"}")
        writer.write(f"GET {INVOKE}/after HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 501 Not Implemented\r\n")
    assert b'{"errorCode":"ERR_DIRECT_INVOKE","message":"WebSocket connections are not carried' in answer
    assert [got.path for got in pair.app.got] == ["/after"]


@pytest.mark.parametrize(
    ("verb", "status", "told", "arrives"),
    [
        ("GET", 204, "0", None),
        ("GET", 304, "17", "17"),
        ("GET", 205, "0", "0"),
        ("GET", 200, "0", "0"),
        ("HEAD", 200, "17", "17"),
        ("HEAD", 204, "0", None),
        ("DELETE", 204, None, None),
    ],
)
async def test_lengths_of_what_has_no_body(
    pair: Pair, node: Node, verb: str, status: int, told: str | None, arrives: str | None
) -> None:
    """The same on either path: 204 has no length, 304 and the answer to HEAD keep theirs."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        length = "" if told is None else f"Content-Length: {told}\r\n"
        request.transport.write(f"HTTP/1.1 {status} X\r\n{length}X-Own: y\r\nConnection: close\r\n\r\n".encode())
        request.transport.close()
        return web.Response()

    pair.app.streams["/length"] = answer
    reply = await node.request(verb, f"{INVOKE}/length")
    assert (reply.status, reply.body, reply.headers.get("content-length")) == (status, b"", arrives)
    assert reply.headers["x-own"] == "y"
    assert "transfer-encoding" not in reply.headers


async def test_pipelined_requests(pair: Pair, node: Node) -> None:
    """Answers come in the order of the requests."""
    for number in range(5):
        pair.app.answer(f"/pipe{number}", 200, str(number).encode())
    requests = "".join(f"GET {INVOKE}/pipe{n} HTTP/1.1\r\nHost: x\r\n\r\n" for n in range(4))
    answer = await node.raw(
        (requests + f"GET {INVOKE}/pipe4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").encode()
    )
    assert re.findall(rb"\r\n\r\n(\d)", answer) == [b"0", b"1", b"2", b"3", b"4"]


async def test_many_pipelined_requests_behind_bodies_that_come_late(node: Node) -> None:
    """All are answered, however many wait; bodies that come with their heads are read another way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port)

    async def answered() -> bytes:
        return (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0]

    try:
        async with asyncio.timeout(60):
            head = b"POST /v1.0/publish/pubsub/pipelined HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
            for late in (True, False, True):
                writer.write(head if late else head + b"abc")
                await writer.drain()
                if late:
                    assert (await node.request("GET", "/v1.0/healthz")).status == 204  # So the head has been read.
                    writer.write(b"abc")
                assert await answered() == b"HTTP/1.1 204 No Content"
            writer.write((head + b"abc") * 200)
            assert {await answered() for _ in range(200)} == {b"HTTP/1.1 204 No Content"}
    finally:
        writer.close()
        await writer.wait_closed()


async def test_an_application_that_breaks_off(pair: Pair, node: Node) -> None:
    """A connection that ends without an answer is a failed invocation, not run twice."""

    async def broken(request: web.BaseRequest) -> web.StreamResponse:
        calls.append(1)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    calls: list[int] = []
    pair.app.streams["/broken"] = broken
    reply = await node.post(f"{INVOKE}/broken", b"x")
    assert reply.status == 500
    assert reply.json == error(
        "ERR_DIRECT_INVOKE", matches(lambda text: text.startswith("failed to invoke, id: callee, err: the app"))
    )
    assert calls == [1]


async def test_deadline(pair: Pair, node: Node) -> None:
    """A call that takes longer than its caller waits fails, and the application's side of it ends."""
    ended = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return web.Response()

    pair.app.streams["/slow"] = slow
    reply = await node.get(f"{INVOKE}/slow", **{"mesh-timeout": "200ms"})
    assert reply.json == error("ERR_DIRECT_INVOKE", "failed to invoke, id: callee, err: no answer within the deadline")
    async with asyncio.timeout(30):
        await ended.wait()


async def test_instances_compete(nats: Backbone, tmp_path: Path) -> None:
    """Two instances of an application share its calls."""
    async with App() as one, App() as two:
        async with (
            gateway(nats, tmp_path, app=one, app_id="callee"),
            gateway(nats, tmp_path, app=two, app_id="callee"),
            gateway(nats, tmp_path, app_id="caller") as caller,
        ):
            for _ in range(40):
                assert (await caller.get(f"{INVOKE}/x")).status == 200
        assert len(one.got) + len(two.got) == 40
        assert one.got
        assert two.got


async def test_app_token_and_concurrency(nats: Backbone, tmp_path: Path) -> None:
    """The application gets its token with every call, and at most so many at once."""
    from gateway.config import Tokens

    running, most = 0, 0

    async def slow(got: Got, request: web.BaseRequest) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return web.Response(body=json.dumps(got.all("dapr-api-token")).encode())

    async with App([]) as app:
        app.answers["/slow"] = slow
        async with (
            gateway(nats, tmp_path, app=app, app_id="callee", app_max_concurrency=3, tokens=Tokens(app="secret")),
            gateway(nats, tmp_path, app_id="caller") as caller,
            asyncio.TaskGroup() as tasks,
        ):
            calls = [tasks.create_task(caller.get(f"{INVOKE}/slow", **{"dapr-api-token": "theirs"})) for _ in range(12)]
        assert {call.result().body for call in calls} == {b'["secret"]'}
        assert [got.headers["dapr-api-token"] for got in app.init if got.path == "/dapr/subscribe"] == ["secret"]
        assert most == 3
