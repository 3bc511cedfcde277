"""Calls of an application's own gRPC services through two gateways, and through its own one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import enable_server_reflection
from httpunk.h2.server import ServerRequest

from gateway.config import Tokens
from gateway.grpc.wire import framed
from gateway.http2.client import HTTP2Client
from mesh.calls.exchange import PING_INTERVAL
from tests.grpc.harness import Failed
from tests.http.harness import DEFAULTS, App, Backbone, Node, gateway, yaml
from tests.support.eventually import PATIENCE, eventually
from tests.support.h2app import H2App

LARGE = 3 * 1024 * 1024  # Above what one message of the broker holds, and within what one of gRPC may.
TO_CALLEE = ("dapr-app-id", "callee")
Context = grpc.aio.ServicerContext
ON_GRPC: dict[str, Any] = {"app_protocol": "grpc", "grpc_port": 0}


class Service(grpc.GenericRpcHandler):
    """The service ``test.Echo``: its methods take and give bytes."""

    def __init__(self) -> None:
        self.got: list[dict[str, str | bytes]] = []
        self.ended: list[str] = []
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.sent = 0
        self.port = 0
        self._failures = 0
        handlers = grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler
        self._methods = {
            "Unary": handlers[0](self.unary),
            "Fail": handlers[0](self.fail),
            "FailTwice": handlers[0](self.fail_twice),
            "Hang": handlers[0](self.hang),
            "Collect": handlers[1](self.collect),
            "Ignore": handlers[1](self.ignore),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Flood": grpc.unary_stream_rpc_method_handler(self.flood),
            "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        service, _, method = handler_call_details.method[1:].partition("/")
        if service != "test.Echo":
            return None
        self.got.append(dict(handler_call_details.invocation_metadata))
        return self._methods.get(method)

    async def unary(self, message: bytes, context: Context) -> bytes:
        told = [(name, value) for name, value in context.invocation_metadata() or () if name.startswith("x-")]
        if told:
            await context.send_initial_metadata(told)
        context.set_trailing_metadata([("x-last", "end"), ("x-last-bin", b"\0\xff")])
        return message

    async def fail(self, message: bytes, context: Context) -> bytes:
        trailers = (("x-why", "so"), ("grpc-status-details-bin", b"\x08\x05"))
        await context.abort(grpc.StatusCode.NOT_FOUND, "nothing is left: 100 % ✓", trailers)
        raise AssertionError

    async def fail_twice(self, message: bytes, context: Context) -> bytes:
        self._failures += 1
        if self._failures % 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return message

    async def hang(self, message: bytes, context: Context) -> bytes:
        self.begun.set()
        try:
            await asyncio.sleep(600)
        finally:
            self.ended.append("Hang")
        return b""

    async def collect(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        sizes = [len(message) async for message in messages]
        return b"%d of %d" % (len(sizes), sum(sizes))

    async def ignore(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        await self.go_on.wait()
        return await self.collect(messages, context)

    async def count(self, message: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            for number in range(int(message)):
                yield b"%d" % number
                if number == 2:
                    self.begun.set()
                if number >= 1000:
                    await asyncio.sleep(0.01)
        finally:
            self.ended.append("Count")

    async def flood(self, message: bytes, context: Context) -> AsyncIterator[bytes]:
        for _ in range(int(message)):
            yield bytes(64 * 1024)
            self.sent += 64 * 1024

    async def talk(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            yield b"hello"
            async for message in messages:
                if message == b"fail":
                    context.set_trailing_metadata([("x-said", "fail")])
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked")
                yield message.upper()
            yield b"bye"
        finally:
            self.ended.append("Talk")


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[grpc.aio.Server]:
    """Run an application of that service."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([service])
    enable_server_reflection(["test.Echo"], server)
    service.port = server.add_insecure_port(f"127.0.0.1:{service.port}")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)


@asynccontextmanager
async def channel_to(node: Node) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{node.gateway.grpc_port}", options=options) as channel:
        yield channel


class Way(NamedTuple):
    """How the service is reached."""

    service: Service
    node: Node
    channel: grpc.aio.Channel

    def call(self, kind: str, method: str, request: object, *metadata: Any, timeout: float | None = None) -> Any:
        """Begin a call; ``kind`` names two sides as grpc does."""
        open_: Callable[..., Any] = getattr(self.channel, kind)(f"/test.Echo/{method}")
        return open_(request, metadata=[TO_CALLEE, *metadata], timeout=timeout)

    async def refused(self, method: str, request: bytes = b"", *metadata: Any, timeout: float | None = None) -> Failed:
        """Make a unary call that is refused."""
        return await failed(self.call("unary_unary", method, request, *metadata, timeout=timeout))


async def failed(call: Any) -> Failed:
    """Give how a call fails."""
    try:
        answer = await call if hasattr(call, "__await__") else [message async for message in call]
    except grpc.aio.AioRpcError as error:
        return Failed(error)
    raise AssertionError(f"it was answered: {answer[:100]!r}")


POLICY = yaml(
    "Resiliency",
    "calls",
    {
        "policies": {
            "retries": {
                "some": {
                    "policy": "constant",
                    "duration": "10ms",
                    "maxRetries": 4,
                    "matching": {"gRPCStatusCodes": "14"},
                }
            },
            "circuitBreakers": {"careful": {"timeout": "60s", "trip": "consecutiveFailures >= 2"}},
        },
        "targets": {"apps": {"repeated": {"retry": "some"}, "broken": {"circuitBreaker": "careful"}}},
    },
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ways(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Way]]:
    backbone, home, service = Backbone(nats_url), tmp_path_factory.mktemp("home"), Service()
    resources = DEFAULTS + POLICY + yaml("HTTPEndpoint", "partner", {"baseUrl": "http://127.0.0.1:9"})
    async with (
        serving(service),
        gateway(backbone, home, app=service.port, app_id="callee", **ON_GRPC) as callee,
        gateway(backbone, home, app_id="caller", resources=resources, grpc_port=0) as caller,
        channel_to(callee) as direct,
        channel_to(caller) as remote,
    ):
        yield {"remote": Way(service, caller, remote), "local": Way(service, callee, direct)}


@pytest.fixture(params=["remote", "local"])
def way(request: pytest.FixtureRequest, ways: dict[str, Way]) -> Way:
    """From another application's gateway, or from the callee's own."""
    found = ways[request.param]
    found.service.got.clear()
    found.service.ended.clear()
    found.service.begun.clear()
    found.service.go_on.clear()
    return found


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("size", [0, 1, 100_000, 200_000, LARGE])
async def test_unary(way: Way, size: int) -> None:
    """A message comes back as it was, whatever its size, with the metadata of both sides."""
    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    call = way.call("unary_unary", "Unary", message, ("x-text", "ü".encode().hex()), ("x-raw-bin", b"\0\1\xff"))
    assert await call == message
    initial, trailing = dict(await call.initial_metadata()), dict(await call.trailing_metadata())
    assert (initial["x-text"], initial["x-raw-bin"]) == ("c3bc", b"\0\1\xff")
    assert (trailing["x-last"], trailing["x-last-bin"]) == ("end", b"\0\xff")


async def test_what_the_application_is_told(way: Way) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = [("traceparent", parent), ("x-twice", "1"), ("x-twice", "2")]
    call = way.call("unary_unary", "Unary", b"", *metadata, timeout=PATIENCE)
    await call
    assert [value for name, value in await call.initial_metadata() if name == "x-twice"] == ["1", "2"]
    got = way.service.got[-1]
    assert "dapr-app-id" not in got
    assert got["dapr-caller-app-id"] == way.node.gateway.app_id
    assert got["dapr-callee-app-id"] == "callee"
    traceparent = str(got["traceparent"])
    assert traceparent.startswith(parent[:36])
    assert traceparent != parent


@pytest.mark.parametrize("name", ["dapr-app-id", "dapr-callee-app-id"])
async def test_how_the_application_is_named(way: Way, name: str) -> None:
    for target in ("callee", f"callee.{way.node.gateway.config.namespace}"):
        unary = way.channel.unary_unary("/test.Echo/Unary")
        assert await unary(b"x", metadata=[(name, target)]) == b"x"


async def test_streams(way: Way) -> None:
    async def messages() -> AsyncIterator[bytes]:
        for size in (0, 10, 70_000, LARGE):
            yield bytes(size)

    assert await way.call("stream_unary", "Collect", messages()) == b"4 of %d" % (80_000 - 9_990 + LARGE)
    counted = [int(message) async for message in way.call("unary_stream", "Count", b"500")]
    assert counted == list(range(500))


async def test_both_sides_stream_at_once(way: Way) -> None:
    """Neither side waits for the other's end; closing one half leaves the other open."""
    call = way.call("stream_stream", "Talk", None)
    assert await call.read() == b"hello"  # Nothing was sent yet.
    for word in (b"one", b"two"):
        await call.write(word)
        assert await call.read() == word.upper()
    await call.done_writing()
    assert await call.read() == b"bye"
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


async def test_a_failure(way: Way) -> None:
    error = await way.refused("Fail")
    assert (error.code, error.text) == ("NOT_FOUND", "nothing is left: 100 % ✓")
    assert (error.trailers["x-why"], error.trailers["grpc-status-details-bin"]) == ("so", b"\x08\x05")
    call = way.call("stream_stream", "Talk", None)
    assert await call.read() == b"hello"
    await call.write(b"fail")
    late = await failed(call.read())
    assert (late.code, late.text, late.trailers["x-said"]) == ("FAILED_PRECONDITION", "as asked", "fail")


async def test_a_deadline_ends_the_whole_call(way: Way) -> None:
    """It counts for a stream that has begun, too, and the application's side ends with it."""
    error = await way.refused("Hang", timeout=0.3)
    assert error.code == "DEADLINE_EXCEEDED"
    call = way.call("unary_stream", "Count", b"100000", timeout=2)
    assert (await failed(call)).code == "DEADLINE_EXCEEDED"
    await eventually(lambda: _ended(way, "Hang", "Count"))


def _ended(way: Way, *names: str) -> None:
    assert set(names) <= set(way.service.ended)


async def test_a_client_that_gives_up(way: Way) -> None:
    """The application's call ends: before its answer has begun, and in the middle of a stream."""
    hanging = way.call("unary_unary", "Hang", b"")
    async with asyncio.timeout(PATIENCE):
        await way.service.begun.wait()
    hanging.cancel()
    streaming, talking = way.call("unary_stream", "Count", b"100000"), way.call("stream_stream", "Talk", None)
    await streaming.read()
    await talking.read()
    streaming.cancel()
    talking.cancel()
    await eventually(lambda: _ended(way, "Hang", "Count", "Talk"), PING_INTERVAL)  # It is told, not found out.


@pytest.mark.costly
async def test_a_slow_reader_slows_the_sender(way: Way) -> None:
    """What is under way stays bounded, and other calls on the same connections go on."""
    way.service.sent = 0  # Of 20 MiB for each call; what the connections hold is less than 16.
    calls = [way.call("unary_stream", "Flood", b"320") for _ in range(4)]
    for call in calls:
        assert len(await call.read()) == 64 * 1024
    before = -1
    while way.service.sent != before:  # Until the sender waits.
        before = way.service.sent
        assert await way.call("unary_unary", "Unary", b"x", timeout=PATIENCE) == b"x"
        await asyncio.sleep(0.3)
    assert before < 4 * 16 * 1024 * 1024
    for call in calls:
        size = 64 * 1024
        while (message := await call.read()) is not grpc.aio.EOF:
            size += len(message)
        assert size == 320 * 64 * 1024


@pytest.mark.costly
async def test_a_slow_callee_slows_its_callers(way: Way) -> None:
    """Those who send to it, and nobody else on their connection."""
    sent = 0

    async def messages() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(320):
            yield bytes(64 * 1024)
            sent += 64 * 1024

    calls = [asyncio.ensure_future(way.call("stream_unary", "Ignore", messages())) for _ in range(3)]
    before = -1
    while sent != before:
        before = sent
        assert await way.call("unary_unary", "Unary", b"x", timeout=PATIENCE) == b"x"
        await asyncio.sleep(0.3)
    assert before < 3 * 16 * 1024 * 1024
    way.service.go_on.set()
    for call in calls:
        assert await call == b"320 of %d" % (320 * 64 * 1024)


@pytest.mark.costly
async def test_many_streams_at_once(way: Way) -> None:
    async def talk(number: int) -> None:
        call = way.call("stream_stream", "Talk", None, timeout=60)
        await call.read()
        for each in range(5):
            await call.write(b"a%d-%d" % (number, each))
            assert await call.read() == b"A%d-%d" % (number, each)
        await call.done_writing()
        assert await call.read() == b"bye"

    async with asyncio.TaskGroup() as tasks:
        for number in range(200):
            tasks.create_task(talk(number))


async def test_reflection(way: Way) -> None:
    """Tools find out by it what there is."""
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    opened = reflection_pb2_grpc.ServerReflectionStub(way.channel).ServerReflectionInfo
    answers = [answer async for answer in opened(iter([asked]), metadata=[TO_CALLEE])]
    assert [each.name for each in answers[0].list_services_response.service] == ["test.Echo"]


async def test_methods_and_services_that_are_not_there(way: Way) -> None:
    assert (await way.refused("Nothing")).code == "UNIMPLEMENTED"
    unknown = await failed(way.channel.unary_unary("/test.Other/Unary")(b"", metadata=[TO_CALLEE]))
    assert unknown.code == "UNIMPLEMENTED"
    nobody = await failed(way.channel.unary_unary("/test.Echo/Unary")(b""))
    assert nobody.code == "UNIMPLEMENTED"
    assert "dapr-app-id" in nobody.text


@pytest.mark.parametrize(
    ("target", "code", "text"),
    [
        ("nobody", "INTERNAL", "failed to invoke, id: nobody, err: no instance of nobody is on the mesh"),
        ("a.b.c", "INVALID_ARGUMENT", "failed to invoke, id: a.b.c, err: invalid app id"),
        ("partner", "INVALID_ARGUMENT", "services outside of the mesh are not called by gRPC"),
        ("http://127.0.0.1:9", "INVALID_ARGUMENT", "services outside of the mesh are not called by gRPC"),
    ],
)
async def test_targets_that_are_refused(ways: dict[str, Way], target: str, code: str, text: str) -> None:
    error = await failed(
        ways["remote"].channel.unary_unary("/test.Echo/Unary")(b"", metadata=[("dapr-app-id", target)])
    )
    assert error.code == code
    assert text in error.text


async def slowly(node: Node, target: str, method: str) -> bytes:
    """Call as a slow client does: its message comes in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, 105, 35):
            yield framed(b"x" * 100)[at : at + 35]
            await asyncio.sleep(0.15 if at < 70 else 0)

    headers = [("content-type", "application/grpc"), ("dapr-app-id", target)]
    async with (
        HTTP2Client("127.0.0.1", node.gateway.grpc_port) as http2,
        http2.call("POST", f"/test.Echo/{method}", headers, pieces()) as answer,
    ):
        return b"".join([part async for part in answer.parts()])


async def test_a_stream_is_not_held_for_the_message_after_its_first(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.grpc.proxy.SILENT_SECONDS", 3600.0)
    monkeypatch.setattr("gateway.grpc.proxy.FIRST_SECONDS", 3600.0)
    call = way.call("stream_stream", "Talk", None, timeout=PATIENCE)
    await call.write(b"x" * 200_000)  # Announced as longer than what is held.
    assert await call.read() == b"hello"
    call.cancel()
    call = way.call("stream_stream", "Talk", None, timeout=PATIENCE)
    await call.write(b"one")
    assert (await call.read(), await call.read()) == (b"hello", b"ONE")
    await call.done_writing()
    assert await call.read() == b"bye"


async def test_policies(nats_url: str, tmp_path: Path) -> None:
    """Whole calls are repeated for the statuses that a policy names; those that say of a failure open the breaker."""
    backbone, service = Backbone(nats_url), Service()
    async with (
        serving(service),
        gateway(backbone, tmp_path, app=service.port, app_id="repeated", **ON_GRPC),
        gateway(backbone, tmp_path, app=service.port, app_id="broken", **ON_GRPC),
        gateway(backbone, tmp_path, app_id="caller", resources=POLICY, grpc_port=0) as caller,
        channel_to(caller) as channel,
    ):

        async def call(target: str, method: str) -> Any:
            return await channel.unary_unary(f"/test.Echo/{method}")(b"x", metadata=[("dapr-app-id", target)])

        assert await call("repeated", "FailTwice") == b"x"
        assert len(service.got) == 3
        assert (await failed(call("repeated", "Fail"))).code == "NOT_FOUND"
        assert len(service.got) == 4
        assert await slowly(caller, "repeated", "FailTwice") == framed(b"x" * 100)
        assert len(service.got) == 7
        for _ in range(3):
            assert (await failed(call("broken", "Fail"))).code == "NOT_FOUND"
        for _ in range(2):
            assert (await failed(call("broken", "FailTwice"))).code == "UNAVAILABLE"
        opened = await failed(call("broken", "FailTwice"))
        assert await call("broken", "Unary") == b"x", "each method has a breaker of its own"
        assert (opened.code, opened.text) == ("INTERNAL", "failed to invoke, id: broken, err: circuit breaker is open")


@pytest.mark.parametrize("trailers", [None, [("x-last", "end")]], ids=["no trailers", "others"])
async def test_an_answer_without_a_status(
    memory: Backbone, tmp_path: Path, trailers: Sequence[tuple[str, str]] | None
) -> None:
    """It gets one, beside what the application says."""

    async def answer(request: ServerRequest) -> None:
        kind = [("content-type", "application/grpc")]
        await request.respond(200, headers=kind, body=framed(b"x"), trailers=trailers)

    settings = {**ON_GRPC, "app_protocol": "h2c"}
    async with H2App() as app, gateway(memory, tmp_path, app=app.port, **settings) as node:
        app.answers["/test.Echo/Unary"] = answer
        async with channel_to(node) as channel:
            call = channel.unary_unary("/test.Echo/Unary")(b"x", metadata=[("dapr-app-id", "app")])
            error = await failed(call)
            assert (error.code, error.text) == ("UNKNOWN", "the answer has no grpc-status")
            assert list(await call.trailing_metadata()) == (trailers or [])


async def test_an_application_on_http(nats_url: str, tmp_path: Path) -> None:
    """It is not called: what it would make of the bytes nobody knows."""
    backbone = Backbone(nats_url)
    async with (
        App() as app,
        gateway(backbone, tmp_path, app=app, app_id="callee", grpc_port=0) as callee,
        gateway(backbone, tmp_path, app_id="caller", grpc_port=0) as caller,
    ):
        for node in (caller, callee):
            async with channel_to(node) as channel:
                error = await failed(channel.unary_unary("/test.Echo/Unary")(b"x", metadata=[TO_CALLEE]))
                assert error.code == "UNIMPLEMENTED"
                assert "--app-protocol" in error.text
        assert not app.got


async def test_what_the_gateway_allows(memory: Backbone, tmp_path: Path) -> None:
    """It keeps its own token, and passes nothing on where the Configuration takes invocation away."""
    service = Service()
    denied = yaml(
        "Configuration", "api", {"api": {"denied": [{"name": "invoke", "version": "v1", "protocol": "grpc"}]}}
    )
    target, token = ("dapr-app-id", "app"), ("dapr-api-token", "secret")
    async with serving(service):
        settings = {**ON_GRPC, "app": service.port, "tokens": Tokens(api="secret")}
        async with gateway(memory, tmp_path, **settings) as node, channel_to(node) as channel:
            unary = channel.unary_unary("/test.Echo/Unary")
            assert (await failed(unary(b"x", metadata=[target]))).code == "UNAUTHENTICATED"
            assert await unary(b"x", metadata=[target, token]) == b"x"
            assert "dapr-api-token" not in service.got[-1]
        path = tmp_path / "configuration.yaml"
        path.write_text(denied)
        settings = {**ON_GRPC, "app": service.port, "configuration_files": (path,)}
        async with gateway(memory, tmp_path, **settings) as node, channel_to(node) as channel:
            error = await failed(channel.unary_unary("/test.Echo/Unary")(b"x", metadata=[target]))
            assert (error.code, "spec.api" in error.text) == ("UNIMPLEMENTED", True)
