"""Coming and going: of the application, of its health, and of the gateway itself.

Source: reference/dapr-surface.md 2.1, 2.5 (shutdown), 2.12; architecture.md 6 and 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web

from gateway.config import HealthCheck
from gateway.http.response import Response, StreamedResponse
from gateway.http.server import HTTPServer
from mesh.errors import BrokerUnavailableError
from tests.http.harness import App, Backbone, Got, error, gateway, matches
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.processes import free_port

SUBSCRIBED = [{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]
HEALTH = HealthCheck(path="/hz", interval=0.03, timeout=2.0, threshold=3)
CALL = "/v1.0/invoke/callee/method/x"


class Held:
    """An answer that the test lets go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.bodies: list[bytes] = []

    async def __call__(self, got: Got, request: web.BaseRequest) -> web.Response:
        self.bodies.append(got.body)
        self.begun.set()
        await self.go.wait()
        return web.Response()


async def test_drain(backbone: Backbone, tmp_path: Path) -> None:
    """A delivery in flight finishes, with HTTP up meanwhile for what it publishes; nothing more is fetched."""
    async with App(SUBSCRIBED) as app:
        held = Held()
        app.answers["/t"] = held
        stack = gateway(backbone, tmp_path, app=app)
        node = await stack.__aenter__()
        await node.publish("t", "first")
        await held.begun.wait()
        async with asyncio.TaskGroup() as tasks:
            node.gateway.shut_down()
            # The body of ``running`` has ended as far as the gateway is concerned; it drains from here on.
            leaving = tasks.create_task(stack.__aexit__(None, None, None))
            status = await node.get("/v1.0/healthz")
            assert (status.status, status.json["message"]) == (500, "dapr is not ready: [shutting-down]")
            await node.publish("t", "second")
            assert (await node.get("/v1.0/healthz/outbound")).status == 204
            assert not leaving.done()
            held.go.set()
        assert len(app.at("/t")) in (1, 2)


async def test_a_client_without_an_open_request_is_not_kept_waiting_by_the_drain() -> None:
    """Its connection ends at once, and not only when the requests of others are answered."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> Response:
        if request.path == "/held":
            begun.set()
            await go.wait()
        return Response(204)

    server = HTTPServer(answer, max_body_bytes=1024, max_header_bytes=1024)
    listening = server.listening(("127.0.0.1",), 0, None, lambda: 60.0)
    port = await listening.__aenter__()
    async with asyncio.TaskGroup() as tasks:
        _, held = await asyncio.open_connection("127.0.0.1", port)
        held.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        reader, idle = await asyncio.open_connection("127.0.0.1", port)
        idle.write(b"GET /before HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        await begun.wait()
        leaving = tasks.create_task(listening.__aexit__(None, None, None))
        async with asyncio.timeout(30.0):
            assert await reader.read() == b""
        assert not leaving.done()
        go.set()
        held.close()
        idle.close()


@pytest.mark.parametrize("begun_before", [False, True], ids=["whole", "streamed"])
async def test_a_connection_ends_with_the_answer_that_the_drain_waits_for(
    begun_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client cannot ask more of it while others are still answered: it is told so, or hung up on."""
    begun = {"/first": asyncio.Event(), "/second": asyncio.Event()}
    go = {"/first": asyncio.Event(), "/second": asyncio.Event()}

    async def answer(request: web.BaseRequest) -> Response | StreamedResponse:
        streamed = StreamedResponse(200, [], 1)
        if begun_before:
            await streamed.prepare(request)
        begun[request.path].set()
        await go[request.path].wait()
        if begun_before:
            await streamed.write(b"x")
            return streamed
        return Response(200, b"x")

    server = HTTPServer(answer, max_body_bytes=1024, max_header_bytes=1024)
    listening = server.listening(("127.0.0.1",), 0, None, lambda: 60.0)
    port = await listening.__aenter__()
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(30.0):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        asked = {}
        for path in begun:
            asked[path] = reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
            await begun[path].wait()
        leaving = tasks.create_task(listening.__aexit__(None, None, None))
        assert await idle.read() == b""  # It drains.
        idle_writer.close()
        for path, (reader, writer) in asked.items():
            assert not leaving.done()
            go[path].set()
            head = await reader.readuntil(b"\r\n\r\n")
            assert (b"Connection: close" in head) is not begun_before
            assert await reader.readexactly(1) == b"x"
            writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
    assert caplog.messages == []


@pytest.fixture
async def two_lives(nats: Backbone, tmp_path: Path) -> AsyncIterator[tuple[Backbone, Path]]:
    yield nats, tmp_path


async def test_what_does_not_finish_is_released(two_lives: tuple[Backbone, Path]) -> None:
    """Deliveries beyond the drain time go to the next gateway; none is lost."""
    nats, tmp_path = two_lives
    async with App(SUBSCRIBED) as app:
        held = Held()
        app.answers["/t"] = held
        async with gateway(nats, tmp_path, app=app, drain=0.1) as node:
            for number in range(5):
                await node.publish("t", str(number))
            await app.until("/t", 5)
        app.got.clear()
        held.go.set()
        async with gateway(nats, tmp_path, app=app):
            got = await app.until("/t", 5)
        assert sorted(each.json["data"] for each in got) == ["0", "1", "2", "3", "4"]


async def test_requests_in_flight_finish(nats: Backbone, tmp_path: Path) -> None:
    """A call, and an upload that is still under way, are answered after the gateway has begun to stop."""
    async with App() as app, gateway(nats, tmp_path, app=app, app_id="callee"):
        held = Held()
        app.answers["/x"] = held
        stack = gateway(nats, tmp_path, app_id="caller", ready=False)
        caller = await stack.__aenter__()
        go_on, begun = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            begun.set()
            await go_on.wait()
            yield b"two"

        app.answers["/upload"] = lambda got, request: web.Response(body=got.body)
        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(caller.get(CALL))
            uploading = tasks.create_task(caller.request("POST", CALL.replace("/x", "/upload"), None, body()))
            await held.begun.wait()
            await begun.wait()
            caller.gateway.shut_down()
            leaving = tasks.create_task(stack.__aexit__(None, None, None))

            async def closed() -> None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", caller.gateway.port)
                except OSError:
                    return
                writer.close()
                raise AssertionError("it still listens")

            await eventually(closed)
            assert not leaving.done()
            held.go.set()
            go_on.set()
            assert (await calling).status == 200
            assert (await uploading).body == b"onetwo"


async def test_events_wait_for_the_application(backbone: Backbone, tmp_path: Path) -> None:
    """Published before it listens, or while it is away: delivered when it is there, each once."""
    app = App(SUBSCRIBED)
    app.port = free_port()
    async with gateway(backbone, tmp_path, app=app, ready=False) as node:
        await node.publish("t", "before")
        async with app:
            await node.until_ready()
            # A subscription that is new gets what is published from its declaration on; on a broker it is
            # created when the application first asks for it.
            await node.publish("t", "during")
            await app.until("/t", 1)

        async def noticed() -> None:
            assert (await node.get("/v1.0/invoke/app/method/x")).status == 500
            assert node.gateway.not_ready == ("app",)

        await eventually(noticed)
        await node.publish("t", "away")
        assert "away" not in [got.json["data"] for got in app.at("/t")]
        async with app:

            def back() -> None:
                assert [got.json["data"] for got in app.at("/t")].count("away") == 1

            await eventually(back)


async def test_a_delivery_during_which_the_application_goes_is_not_counted(memory: Backbone, tmp_path: Path) -> None:
    """An application that does not listen has not failed an attempt."""
    app = App([{**SUBSCRIBED[0], "deadLetterTopic": "dead"}])
    async with app:
        pass  # Only to have a port.
    async with gateway(memory, tmp_path, app=app, ready=False) as node:
        async with app:
            await node.until_ready()
        await node.publish("t", "x")
        await eventually(lambda: _is(node.gateway.not_ready == ("app",)))
        async with app:
            (got,) = await app.until("/t")
            assert got.headers["mesh-attempt"] == "1"


def _is(true: bool) -> None:
    assert true


async def test_calls_wait_for_an_application_that_was_there(nats: Backbone, tmp_path: Path) -> None:
    """A rolling restart is invisible within the deadline; afterwards the documented error."""
    async with App() as app, gateway(nats, tmp_path, app_id="caller") as caller:
        unseen = await caller.get(CALL)
        assert unseen.json == error(
            "ERR_DIRECT_INVOKE", "failed to invoke, id: callee, err: no instance of callee is on the mesh"
        )
        async with gateway(nats, tmp_path, app=app, app_id="callee"):
            assert (await caller.get(CALL)).status == 200
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(caller.request("POST", CALL, None, b"x" * size)) for size in (0, 10, 200_000)]
            await eventually(lambda: _is(_waited(caller.gateway) >= 3))
            async with gateway(nats, tmp_path, app=app, app_id="callee"):
                for call in calls:
                    assert (await call).status == 200
        late = await caller.get(CALL, **{"mesh-timeout": "1s"})
        assert late.json == error(
            "ERR_DIRECT_INVOKE", "failed to invoke, id: callee, err: callee was not back within the deadline"
        )


def _waited(running: object) -> int:
    counts = running._runtime.counters.snapshot()  # type: ignore[attr-defined]
    return sum(number for name, number in counts.items() if name[0] == "invocations_waited")


async def test_calls_wait_while_only_the_application_restarts(nats: Backbone, tmp_path: Path) -> None:
    """The gateway beside it stays, and does not serve it meanwhile."""
    app = App()
    app.port = free_port()
    async with (
        gateway(nats, tmp_path, app_id="caller") as caller,
        gateway(nats, tmp_path, app=app, app_id="callee", ready=False) as callee,
    ):
        async with app:
            await callee.until_ready()
            assert (await caller.get(CALL)).status == 200
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(caller.get(CALL))
            await eventually(lambda: _is(_waited(caller.gateway) >= 1))
            async with app:
                assert (await call).status == 200


async def test_health_transitions(nats: Backbone, tmp_path: Path) -> None:
    """Unhealthy at first and after so many failures: no deliveries, no calls; one success restores both."""
    async with App(SUBSCRIBED) as app:
        app.answer("/hz", 503)
        async with (
            gateway(nats, tmp_path, app=app, app_id="callee", app_health=HEALTH, ready=False) as node,
            gateway(nats, tmp_path, app_id="caller") as caller,
        ):
            await app.until("/hz", 5)
            assert node.gateway.not_ready == ("app",)
            assert not app.init
            app.answer("/hz", 204)
            await node.until_ready()
            await node.publish("t", "one")
            await app.until("/t")
            assert (await caller.get(CALL)).status == 200
            app.answer("/hz", 500)
            await eventually(lambda: _is(node.gateway.not_ready == ("app",)))
            await node.publish("t", "two")
            refused = await caller.get(CALL, **{"mesh-timeout": "100ms"})
            assert refused.json == error("ERR_DIRECT_INVOKE", matches(lambda text: "within the deadline" in text))
            assert (await node.get("/v1.0/state/statestore/k")).status == 204
            assert len(app.at("/t")) == 1
            app.answer("/hz", 200)
            assert (await app.until("/t", 2))[1].json["data"] == "two"
            assert (await caller.get(CALL)).status == 200
        assert {probe.method for probe in app.at("/hz")} == {"GET"}


async def test_fewer_failures_than_the_threshold_do_nothing(memory: Backbone, tmp_path: Path) -> None:
    """Two of three are forgiven."""
    async with App(SUBSCRIBED) as app:
        answers = [200, 500, 500, 200] * 5
        app.answers["/hz"] = lambda got, request: web.Response(status=answers.pop(0) if answers else 200)
        async with gateway(memory, tmp_path, app=app, app_health=HEALTH) as node:
            seen: set[tuple[str, ...]] = set()

            def all_asked() -> None:
                seen.add(tuple(node.gateway.not_ready))
                assert not answers

            await eventually(all_asked)
            assert seen == {()}


async def test_local_calls_of_an_unhealthy_application_are_refused(memory: Backbone, tmp_path: Path) -> None:
    """Its own gateway does not call it either."""
    async with App() as app:
        app.answer("/hz", 500)
        async with gateway(memory, tmp_path, app=app, app_health=HEALTH, ready=False) as node:
            await app.until("/hz", 2)
            reply = await node.get("/v1.0/invoke/app/method/x")
            assert reply.json == error(
                "ERR_DIRECT_INVOKE", "failed to invoke, id: app, err: app is not in a healthy state"
            )
            assert not app.at("/x")


@pytest.mark.parametrize("broken", [1, 3])
async def test_subscriptions_are_asked_for_again(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """An application that breaks off while it is asked is asked again."""
    monkeypatch.setattr("gateway.http.application.SUBSCRIBE_RETRY", 0.01)
    left = broken

    async def subscribe(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal left
        if left:
            left -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.Response(body=b'[{"pubsubname":"pubsub","topic":"t","route":"t"}]', content_type="text/html")

    async with App() as app:
        app.streams["/dapr/subscribe"] = subscribe
        async with gateway(memory, tmp_path, app=app) as node:
            await node.publish("t", "x")
            await app.until("/t")


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b""), (500, b"oops"), (200, b""), (200, b"null"), (200, b"[]"), (200, b"{"), (200, b'{"a":1}')],
)
async def test_no_subscriptions(memory: Backbone, tmp_path: Path, status: int, body: bytes) -> None:
    """Whatever it answers, the application is served."""

    async def subscribe(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    async with App() as app:
        app.streams["/dapr/subscribe"] = subscribe
        async with gateway(memory, tmp_path, app=app) as node:
            assert (await node.get("/v1.0/invoke/app/method/x")).status == 200


async def test_too_many_subscriptions_are_told_of_once(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are not taken for none, and asking again does not fill the log."""
    monkeypatch.setattr("gateway.http.application.SUBSCRIBE_RETRY", 0.01)
    asked = 0

    async def subscribe(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.Response(body=b" " * (1024 * 1024 + 1) if asked < 4 else b"[]")

    async with App() as app:
        app.streams["/dapr/subscribe"] = subscribe
        async with gateway(memory, tmp_path, app=app):
            await eventually(lambda: asked == 4)
    told = [record.getMessage() for record in caplog.records if "application's subscriptions" in record.getMessage()]
    assert len(told) == 1
    assert told[0].endswith("trying again: the application's answer is larger than 1048576 bytes")


async def test_init_endpoints_can_be_switched_off(memory: Backbone, tmp_path: Path) -> None:
    """`--disable-init-endpoints subscribe` asks nothing."""
    async with App(SUBSCRIBED) as app, gateway(memory, tmp_path, app=app, init_endpoints_off=frozenset({"subscribe"})):
        assert not [got for got in app.init if got.path == "/dapr/subscribe"]


async def test_a_broker_that_is_not_there_yet_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At start, for as long as the option says, and the log says what for; after that the cause is told."""
    server = NatsServer(tmp_path / "nats")
    backbone = Backbone(server.url)
    with pytest.raises(BrokerUnavailableError, match=rf"{server.port}.* \(from MESH_BACKBONE\)$"):
        async with gateway(backbone, tmp_path, backbone_timeout=0.3):
            pass
    waiting = gateway(backbone, tmp_path, backbone_timeout=60.0)
    async with asyncio.TaskGroup() as tasks:
        entering = tasks.create_task(waiting.__aenter__())
        await eventually(lambda: _is("waiting for the backbone, 60 s at most" in caplog.text), within=40.0)
        async with server:
            await entering
            await waiting.__aexit__(None, None, None)
