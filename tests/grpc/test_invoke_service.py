"""InvokeService, the deprecated method that carries a call of HTTP in a message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from httpunk.h2.server import ServerRequest

from gateway.grpc.messages import COMMON, STATUS, message
from tests.grpc.harness import Client, Failed, client, refused
from tests.http.harness import App, Backbone, gateway
from tests.support.h2app import H2App

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Called:
    def __init__(self, app: App, caller: Client) -> None:
        self.app = app
        self.caller = caller

    async def invoke(self, method: str, target: str = "callee", metadata: Any = (), **fields: Any) -> dict[str, Any]:
        self.app.got.clear()
        return await self.caller.call("InvokeService", metadata, id=target, message={"method": method, **fields})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def called(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Called]:
    backbone, home = Backbone(nats_url), tmp_path_factory.mktemp("home")
    async with (
        App() as app,
        gateway(backbone, home, app=app, app_id="callee"),
        gateway(backbone, home, app_id="caller", grpc_port=0) as caller,
        client(caller) as connected,
    ):
        yield Called(app, connected)


@pytest.mark.parametrize(
    ("method", "fields", "got"),
    [
        ("order", {}, ("POST", "/order", b"")),
        ("/a/b%2Fc", {"http_extension": {"verb": "GET"}}, ("GET", "/a/b%2Fc", b"")),
        ("a?x=1", {"http_extension": {"verb": "PUT", "querystring": "y=%20&x=2"}}, ("PUT", "/a?x=1&y=%20&x=2", b"")),
        ("", {"http_extension": {"verb": "PATCH"}, "data": {"value": b"\0"}}, ("PATCH", "/", b"\0")),
        ("ü #", {"http_extension": {"verb": "DELETE"}}, ("DELETE", "/%C3%BC%20%23", b"")),
    ],
)
async def test_what_the_application_gets(
    called: Called, method: str, fields: dict[str, Any], got: tuple[str, str, bytes]
) -> None:
    await called.invoke(method, **fields)
    assert [(each.method, each.target, each.body) for each in called.app.got] == [got]


async def test_headers_both_ways(called: Called) -> None:
    called.app.answer("/told", 201, b"made", Content_Type="text/x; charset=a", X_A="1", Set_Cookie="a=b")
    request = called.caller.request(
        "InvokeService",
        id="callee",
        message={"method": "told", "data": {"value": b"{}"}},
    )
    metadata = [("x-own", "é".encode().hex()), ("x-raw-bin", b"\0"), ("x-twice", "1"), ("x-twice", "2")]
    call = called.caller.open("InvokeService", request, metadata)
    answer = await call
    assert (answer.data.value, answer.content_type) == (b"made", "text/x; charset=a")
    told = dict(await call.initial_metadata())
    assert (told["x-a"], told["set-cookie"], told["dapr-http-status"]) == ("1", "a=b", "201")
    got = called.app.got[-1].headers
    assert called.app.got[-1].all("x-twice") == ["1", "2"]
    assert (got["x-own"], got["content-type"]) == ("c3a9", "application/json")
    assert (got["dapr-caller-app-id"], got["dapr-callee-app-id"]) == ("caller", "callee")
    assert got["traceparent"]
    assert not {name for name in got if name.startswith("grpc-") or name.endswith("-bin") or name == "te"}


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (204, None, ""),
        (302, "UNKNOWN", "Found"),
        (400, "INTERNAL", "Bad Request"),
        (401, "UNAUTHENTICATED", "Unauthorized"),
        (403, "PERMISSION_DENIED", "Forbidden"),
        (404, "NOT_FOUND", "Not Found"),
        (408, "CANCELLED", "Request Timeout"),
        (409, "ALREADY_EXISTS", "Conflict"),
        (418, "UNKNOWN", "I'm a Teapot"),
        (429, "RESOURCE_EXHAUSTED", "Too Many Requests"),
        (500, "UNKNOWN", "Internal Server Error"),
        (501, "UNIMPLEMENTED", "Not Implemented"),
        (503, "UNAVAILABLE", "Service Unavailable"),
        (504, "DEADLINE_EXCEEDED", "Gateway Timeout"),
        (599, "UNKNOWN", ""),
    ],
)
async def test_statuses(called: Called, status: int, code: str | None, text: str) -> None:
    """Of one that is no success the body stands in the details."""
    called.app.answer("/failing", status, b"" if status == 204 else b"the reason", X_A="1")
    if code is None:
        assert await called.invoke("failing") == {"data": {}}
        return
    with pytest.raises(Failed) as raised:
        await called.invoke("failing")
    assert (raised.value.code, raised.value.text) == (code, text)
    told = message("Status", STATUS).FromString(raised.value.trailers["grpc-status-details-bin"])
    reason = message("ErrorInfo", STATUS).FromString(told.details[0].value)
    assert (reason.reason, reason.domain) == (text, "dapr.io")
    assert dict(reason.metadata) == {"http.code": str(status), "http.error_message": "the reason"}


async def test_what_is_refused(called: Called) -> None:
    async def says(target: str, **fields: Any) -> tuple[str, str]:
        return await refused(called.caller, "InvokeService", id=target, message=fields)

    assert await says("nobody", method="a") == (
        "INTERNAL",
        "failed to invoke, id: nobody, err: no instance of nobody is on the mesh",
    )
    assert (await says("", method="a"))[0] == "INVALID_ARGUMENT"
    assert (await says("callee", method="a%zz"))[0] == "INVALID_ARGUMENT"
    assert (await says("callee", method="a", http_extension={"verb": "CONNECT"}))[0] == "INVALID_ARGUMENT"


async def test_an_answer_that_is_too_large(called: Called) -> None:
    called.app.answer("/large", 200, bytes(5 * 1024 * 1024))
    assert (await refused(called.caller, "InvokeService", id="callee", message={"method": "large"}))[0] == (
        "RESOURCE_EXHAUSTED"
    )


class OnInvoke(grpc.GenericRpcHandler):
    """An application on gRPC: echoes, or fails when it is asked to."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if not handler_call_details.method.endswith("/OnInvoke"):
            return None
        return grpc.unary_unary_rpc_method_handler(self._invoke)

    async def _invoke(self, asked: bytes, context: grpc.aio.ServicerContext) -> bytes:
        request = message("InvokeRequest", COMMON).FromString(asked)
        if request.method == "fail":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
        answer = message("InvokeResponse", COMMON)(data=request.data, content_type=request.content_type)
        return bytes(answer.SerializeToString())


async def test_an_application_on_grpc(nats_url: str, tmp_path: Path) -> None:
    """Its status comes back as it was, which one of HTTP on the way would not tell; from here and from elsewhere."""
    server = grpc.aio.server(handlers=[OnInvoke()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    backbone = Backbone(nats_url)
    try:
        async with (
            gateway(backbone, tmp_path, app=port, app_id="callee", app_protocol="grpc", grpc_port=0) as callee,
            gateway(backbone, tmp_path, app_id="caller", grpc_port=0) as caller,
        ):
            for node in (callee, caller):
                async with client(node) as called:
                    sent = {"method": "echo", "data": {"value": b"x"}, "content_type": "text/x"}
                    answer = await called.message("InvokeService", id="callee", message=sent)
                    assert (answer.data.value, answer.content_type) == (b"x", "text/x")
                    failed = await refused(called, "InvokeService", id="callee", message={"method": "fail"})
                    assert failed == ("FAILED_PRECONDITION", "not now")
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b'{"code": 5, "message": "gone", "details": [{"@type": "x"}, {"@type": 1}]}', ("NOT_FOUND", "gone")),
        (b'{"code": -1, "message": "gone"}', ("UNKNOWN", "the application's status cannot be read")),
        (b'{"code": 0, "message": "gone"}', ("UNKNOWN", "the application's status cannot be read")),
        (b"no JSON", ("UNKNOWN", "the application's status cannot be read")),
    ],
)
async def test_a_status_of_an_application_that_is_none(
    memory: Backbone, tmp_path: Path, said: bytes, told: tuple[str, str]
) -> None:
    """What can be read of it is told, and the call has a status in any case."""

    async def answer(request: ServerRequest) -> None:
        await request.respond(500, body=said, trailers=[("grpc-status", "5")])

    async with (
        H2App() as app,
        gateway(memory, tmp_path, app=app.port, app_protocol="h2c", grpc_port=0) as node,  # type: ignore[arg-type]
        client(node) as called,
    ):
        app.answers["/fails"] = answer
        assert await refused(called, "InvokeService", id="app", message={"method": "fails"}) == told
