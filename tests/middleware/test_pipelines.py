"""Both ways through middleware: in front of the API, and towards the application."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import aiohttp
import pytest
from aiohttp import web

from gateway.config import HealthCheck, Tokens
from gateway.http2.client import HTTP2Client
from gateway.runs import list_runs
from mesh.adapter import ComponentAdapter
from mesh.errors import ConfigError
from mesh.middleware import Answer, Given, MiddlewareError, Onward, Request
from mesh.resources.settings import setting
from tests.http.harness import App, Backbone, Got, component, gateway, yaml
from tests.http.test_h2c import ask
from tests.middleware.harness import API, APP, configuration, through
from tests.support.eventually import PATIENCE, eventually
from tests.support.h2app import H2App

CALL = "/v1.0/invoke/app/method"
UPPER = component("upper", "middleware.http.uppercase")
ECHO = component("alias", "middleware.http.routeralias", **{"/hello/{name}": f"{CALL}/greet"})


@dataclass(frozen=True, slots=True)
class TheirSettings:
    does: str = setting("does", "What it does.", required=True)


class Theirs(ComponentAdapter):
    """A middleware of a third party, which does what a test asks for."""

    settings: ClassVar[type[TheirSettings]] = TheirSettings

    async def handle(self, request: Request, onward: Onward) -> Answer:
        match self._settings.does:
            case "mark":
                order = request.header("x-order") or ""
                request = request.with_header("x-order", f"{order}{self._component.name if self._component else ''}")
                return await onward(replace(request, told=(*request.told, ("x-told", request.caller))))
            case "refuse":
                return Answer(418, [("x-by", "them"), ("Connection", "close"), ("Content-Length", "99")], b"no")
            case "twice":
                await onward(request)
                return await onward(request)
            case "break":
                raise ZeroDivisionError
            case "away":
                raise MiddlewareError("nobody answers")
            case "answer":
                answer = await onward(request)
                return replace(answer, status=203, headers=[("x-new", "1")], body=answer.body and answer.body.upper())
            case "look":
                data = await request.body.read()
                return await onward(request.with_header("x-size", str(len(data))))
            case _:
                return await onward(replace(request, method="PUT", query="a=b", body=Given(b"other")))


@pytest.fixture(autouse=True)
def their_package(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a package installed that brings ``middleware.http.theirs``."""
    folder = tmp_path_factory.mktemp("site")
    information = folder / "theirs-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[mesh.components]\nmiddleware.http.theirs = {__name__}:Theirs\n")
    monkeypatch.syspath_prepend(str(folder))


def theirs(**named: str) -> str:
    return "".join(component(name, "middleware.http.theirs", does=does) for name, does in named.items())


async def streamed(request: web.BaseRequest) -> web.StreamResponse:
    """Answer each part of a body as it comes."""
    response = web.StreamResponse(headers={"x-streamed": "1"})
    await response.prepare(request)
    async for part in request.content.iter_any():
        await response.write(part)
    return response


# In front of the API


async def test_the_api_passes_what_is_listed_in_its_order(memory: Backbone, app: App, tmp_path: Path) -> None:
    ways = configuration(httpPipeline=["b:theirs", "a:theirs", "upper:uppercase"])
    async with through(memory, tmp_path, theirs(a="mark", b="mark") + UPPER, ways, app=app) as node:
        reply = await node.request("POST", f"{CALL}/x?q=%20", {"X-Order": ">"}, b"small")
        assert (reply.status, reply.headers["x-told"]) == (200, "app")
        [got] = app.got
        assert (got.target, got.body, got.headers["x-order"]) == ("/x?q=%20", b"SMALL", ">ba")
        upper = [{"KEY": "k", "VALUE": "v"}]
        assert (await node.post("/v1.0/state/statestore", upper)).status == 204
        assert (await node.get("/v1.0/state/statestore/K")).body == b'"V"'


async def test_its_user_is_told_of_the_gateway_past_it(memory: Backbone, tmp_path: Path) -> None:
    """By the key in its entry of what runs; nobody else is, and the key opens nothing else."""
    ways, tokens = configuration(httpPipeline=["no:theirs"]), Tokens("secret")
    async with through(memory, tmp_path, theirs(no="refuse"), ways, registered=True, tokens=tokens) as node:
        [run] = list_runs(tmp_path)
        [entry] = (tmp_path / "run").glob("*.json")
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600
        assert run.key not in repr(run)
        known = {"dapr-api-token": "secret", "mesh-key": run.key}
        reply = await node.request("GET", "/v1.0/metadata", known)
        assert (reply.status, reply.json["id"], run.key in reply.body.decode()) == (200, "app", False)
        assert (await node.request("GET", "/v1.0/metadata", {"mesh-key": run.key})).status == 401
        for key in ("", run.key[:-1], run.key + "x"):
            assert (await node.request("GET", "/v1.0/metadata", {**known, "mesh-key": key})).status == 418, key
        for path in (
            "/v1.0/metadata/../state/statestore/k",
            "/v1.0/state/statestore/k",
            "/v1.0/metadata/",
            "/v1.0/shutdown",
        ):
            assert (await node.request("GET", path, known)).status == 418, path
        assert (await node.request("GET", "/v1.0/metadata/appPID", {**known, "dapr-app-id": "app"})).status == 418
        for command in ("status", "components"):
            await asyncio.to_thread(_told_by, command, tmp_path)


def _told_by(command: str, home: Path) -> None:
    environment = {**os.environ, "MESH_HOME": str(home), "MESH_BACKBONE": "memory:", "DAPR_API_TOKEN": "secret"}
    found = subprocess.run(
        [sys.executable, "-c", f"from gateway.cli import main; raise SystemExit(main([{command!r}]))"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert found.returncode == 0, found
    assert "answered with" not in found.stdout, found
    assert ("well" if command == "status" else "middleware.http.theirs") in found.stdout, found


async def test_health_is_asked_past_it(memory: Backbone, tmp_path: Path) -> None:
    async with through(memory, tmp_path, theirs(no="refuse"), configuration(httpPipeline=["no:theirs"])) as node:
        for path, status in (("healthz", 204), ("healthz/outbound", 204), ("metadata", 418), ("/healthz", 418)):
            reply = await node.get(f"/v1.0/{path}")
            assert reply.status == status, path
        assert (reply.body, reply.headers["x-by"], reply.headers["content-length"]) == (b"no", "them", "2")
        assert (await node.request("GET", "/anything", {"dapr-app-id": "app"})).status == 418, (
            "by header, and unknown paths"
        )


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE"])
async def test_an_answer_of_its_own_is_well_formed(memory: Backbone, tmp_path: Path, method: str) -> None:
    """The connection goes on after it, whatever the middleware said about lengths."""
    async with through(memory, tmp_path, theirs(no="refuse"), configuration(httpPipeline=["no:theirs"])) as node:
        for _ in range(2):
            reply = await node.request(method, "/v1.0/metadata")
            assert (reply.status, reply.body) == (418, b"" if method == "HEAD" else b"no")


async def test_tokens_and_origins_go_before(memory: Backbone, tmp_path: Path) -> None:
    ways = configuration(httpPipeline=["no:theirs"])
    more = {"tokens": Tokens(api="t"), "allowed_origins": ("http://a.example",)}
    async with through(memory, tmp_path, theirs(no="refuse"), ways, **more) as node:
        assert (await node.get("/v1.0/metadata")).status == 401
        reply = await node.request("GET", "/v1.0/metadata", {"dapr-api-token": "t", "Origin": "http://a.example"})
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (418, "http://a.example")


async def test_another_method_target_and_body(memory: Backbone, app: App, tmp_path: Path) -> None:
    async with through(memory, tmp_path, theirs(x="change"), configuration(httpPipeline=["x:theirs"]), app=app) as node:
        await node.request("POST", f"{CALL}/x?c=d", {"Content-Type": "a/b"}, b"a longer one" * 1000)
        [got] = app.got
        assert (got.method, got.target, got.body, got.all("content-length")) == ("PUT", "/x?a=b", b"other", ["5"])


@pytest.mark.parametrize(("does", "status", "code"), [("break", 500, "ERROR"), ("away", 500, "ERR_MIDDLEWARE")])
async def test_one_that_fails_lets_nothing_through(
    memory: Backbone, app: App, tmp_path: Path, does: str, status: int, code: str
) -> None:
    async with through(memory, tmp_path, theirs(x=does), configuration(httpPipeline=["x:theirs"]), app=app) as node:
        reply = await node.get(f"{CALL}/x")
        assert (reply.status, reply.json["errorCode"]) == (status, code)
        assert b"nobody answers" not in reply.body, "that is for the log"
        assert not app.got


async def test_a_request_goes_on_once(memory: Backbone, app: App, tmp_path: Path) -> None:
    for section in (API, APP):
        ways = configuration(**{section: ["x:theirs"]})
        app.got.clear()
        off = ("subscribe", "config")
        async with through(memory, tmp_path, theirs(x="twice"), ways, app=app, init_endpoints_off=off) as node:
            with suppress(aiohttp.ClientError):  # What was answered may be out already.
                await node.get(f"{CALL}/x")
            assert len(app.got) == 1


async def test_a_body_is_read_by_who_asks_and_up_to_the_limit(memory: Backbone, app: App, tmp_path: Path) -> None:
    ways = configuration(httpPipeline=["look:theirs"])
    async with through(memory, tmp_path, theirs(look="look"), ways, app=app, max_body_bytes=200_000) as node:

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"x" * 10_000

        for body in (b"", b"abc", b"x" * 150_000, parts()):
            assert (await node.request("POST", f"{CALL}/x", None, body)).status == 200
        assert [(got.headers["x-size"], len(got.body)) for got in app.got] == [
            (str(size), size) for size in (0, 3, 150_000, 100_000)
        ]
        assert (await node.request("POST", f"{CALL}/x", None, b"x" * 200_001)).status == 413


async def test_whole_answers_can_be_changed(memory: Backbone, tmp_path: Path) -> None:
    async with through(memory, tmp_path, theirs(x="answer"), configuration(httpPipeline=["x:theirs"])) as node:
        assert (await node.post("/v1.0/state/statestore", [{"key": "k", "value": "v"}])).status == 203
        reply = await node.get("/v1.0/state/statestore/k")
        assert (reply.status, reply.body, reply.headers["x-new"]) == (203, b'"V"', "1")


@pytest.mark.parametrize("section", [API, APP])
@pytest.mark.parametrize("version", [1, 2])
async def test_streams_stream_past_who_does_not_look(
    memory: Backbone, app: App, tmp_path: Path, section: str, version: int
) -> None:
    """The first part is answered before the second one is sent."""
    app.streams["/echo"] = streamed
    ways = configuration(**{section: ["a:theirs", "b:theirs"]})
    async with through(memory, tmp_path, theirs(a="mark", b="mark"), ways, app=app, h2c=True) as node:
        answered = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            async with asyncio.timeout(PATIENCE):
                await answered.wait()
            yield b"second"

        got = b""
        if version == 1:
            async with node.open("POST", f"{CALL}/echo", None, body()) as response:
                fields = {name.lower(): value for name, value in response.headers.items()}
                async for part in response.content.iter_any():
                    got += part
                    answered.set()
        else:
            async with (
                HTTP2Client("127.0.0.1", node.gateway.port) as client,
                client.call("POST", f"{CALL}/echo", [], body()) as answer,
            ):
                fields = dict(answer.headers)
                async for part in answer.parts():
                    got += part
                    answered.set()
        assert (got, fields["x-streamed"]) == (b"firstsecond", "1")
        assert fields["x-told"] == "app"


async def test_over_http_2_it_is_the_same(memory: Backbone, app: App, tmp_path: Path) -> None:
    ways = configuration(httpPipeline=["b:theirs", "upper:uppercase"])
    async with (
        through(memory, tmp_path, theirs(b="mark") + UPPER, ways, app=app, h2c=True) as node,
        HTTP2Client("127.0.0.1", node.gateway.port) as client,
    ):
        reply = await ask(client, "POST", f"{CALL}/x", [], b"small" * 50_000)
        [got] = app.got
        assert (reply.status, got.body, got.headers["x-order"]) == (200, b"SMALL" * 50_000, "b")
        assert (await ask(client, "GET", "/v1.0/metadata")).headers["x-told"] == "app"


async def test_a_changed_request_stays_in_its_trace(memory: Backbone, app: App, tmp_path: Path) -> None:
    """The application's span hangs on that of the call which the answer names."""
    async with through(memory, tmp_path, UPPER, configuration(httpPipeline=["upper:uppercase"]), app=app) as node:
        reply = await node.request("POST", f"{CALL}/x", {}, b"small")
        [got] = app.got
        assert got.body == b"SMALL"
        assert got.headers["traceparent"][:36] == reply.headers["traceparent"][:36]


async def test_an_answer_that_breaks_off_does_so_visibly(memory: Backbone, app: App, tmp_path: Path) -> None:
    """Even where the request that the routes saw was another than the client's."""

    async def breaking(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * 100_000)
        assert request.transport is not None
        request.transport.abort()
        return response

    app.streams["/breaking"] = breaking
    ways = configuration(httpPipeline=["a:theirs"])
    async with through(memory, tmp_path, theirs(a="mark"), ways, app=app) as node:
        with pytest.raises(aiohttp.ClientError):
            await node.get(f"{CALL}/breaking")


# Towards the application


async def test_all_calls_of_the_application_pass(memory: Backbone, tmp_path: Path) -> None:
    """Invocations, events and what it is asked at start, but for probes of its health."""
    async with App([{"pubsubname": "pubsub", "topic": "t", "route": "/events"}]) as app:
        ways = configuration(appHttpPipeline=["b:theirs", "a:theirs"])
        health = HealthCheck(path="/health", interval=0.05, timeout=5, threshold=1)
        async with through(memory, tmp_path, theirs(a="mark", b="mark"), ways, app=app, app_health=health) as node:
            reply = await node.get(f"{CALL}/x")
            assert reply.headers["x-told"] == "app", "the caller"
            await node.publish("t")
            await app.until("/events")
            orders = {got.path: got.headers.get("x-order") for got in [*app.got, *app.init]}
            assert orders["/health"] is None
            assert orders["/dapr/subscribe"] == orders["/x"] == orders["/events"] == "ba"


async def test_towards_an_application_of_another_caller(nats: Backbone, app: App, tmp_path: Path) -> None:
    """Only the callee's gateway has it; who asks is known by name."""
    ways = configuration(appHttpPipeline=["a:theirs", "upper:uppercase"])
    async with (
        through(nats, tmp_path, theirs(a="mark") + UPPER, ways, app=app),
        gateway(nats, tmp_path, app_id="asker") as asker,
    ):
        reply = await asker.request("POST", f"{CALL}/x", None, b"small")
        assert (reply.status, reply.headers["x-told"]) == (200, "asker")
        [got] = app.got
        assert (got.body, got.headers["x-order"]) == (b"SMALL", "a")


@pytest.mark.parametrize(("does", "status"), [("refuse", 418), ("break", 500), ("away", 500)])
async def test_what_it_refuses_does_not_reach_the_application(
    memory: Backbone, app: App, tmp_path: Path, does: str, status: int
) -> None:
    ways = configuration(appHttpPipeline=["x:theirs"])
    off = ("subscribe", "config")
    async with through(memory, tmp_path, theirs(x=does), ways, app=app, init_endpoints_off=off) as node:
        reply = await node.get(f"{CALL}/x")
        assert reply.status == status
        assert not app.got
        if does == "refuse":
            assert (reply.body, reply.headers["x-by"]) == (b"no", "them")
        else:
            assert reply.json["errorCode"] == "ERR_DIRECT_INVOKE"
            assert b"nobody answers" not in reply.body


async def test_the_log_names_the_middleware_that_answers(
    memory: Backbone, app: App, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the application's place; where it passes the request on, the application has answered."""
    spec = {"pubsubname": "pubsub", "topic": "t", "routes": {"default": "/t"}}
    made = theirs(pass_on="mark", no="refuse") + yaml("Subscription", "s", spec, version="v2alpha1")
    app.answer("/t", 500)
    caplog.set_level(logging.INFO, "mesh")
    for names, said in (
        (["pass_on", "no"], "the middleware no answered 418"),
        (["pass_on"], "the application answered 500"),
    ):
        caplog.clear()
        ways = configuration(appHttpPipeline=[f"{name}:theirs" for name in names])
        async with through(memory, tmp_path, made, ways, app=app) as node:
            await node.publish("t")

            def told(said: str = said) -> None:
                assert f"attempt 1 failed: {said}; " in caplog.text

            await eventually(told)
        answered = re.findall(r"the (?:application|middleware \w+) answered \d+", caplog.text)
        assert set(answered) == {said}, caplog.text


async def test_what_is_told_is_on_failures_too(memory: Backbone, tmp_path: Path) -> None:
    """Once, and beside what tells of the trace."""
    for names in (["a:theirs"], ["a:theirs", "upper:uppercase"]):
        ways = configuration(httpPipeline=names)
        async with through(memory, tmp_path, theirs(a="mark") + UPPER, ways) as node:
            reply = await node.post("/v1.0/state/nobody", b"[]")
            assert reply.status >= 400
            told = [name.lower() for name, _ in reply.fields if name.lower() in ("x-told", "traceparent")]
            assert sorted(told) == ["traceparent", "x-told"]


@pytest.mark.parametrize("section", [API, APP])
async def test_what_an_outer_one_has_told_is_on_an_inner_ones_answer(
    memory: Backbone, app: App, tmp_path: Path, section: str
) -> None:
    ways = configuration(**{section: ["a:theirs", "no:theirs"]})
    off = ("subscribe", "config")
    async with through(memory, tmp_path, theirs(a="mark", no="refuse"), ways, app=app, init_endpoints_off=off) as node:
        reply = await node.get(f"{CALL}/x")
        assert (reply.status, reply.headers["x-told"], reply.headers["x-by"]) == (418, "app", "them")


async def test_a_middleware_that_fails_is_no_failing_application(memory: Backbone, app: App, tmp_path: Path) -> None:
    """Neither is it called again, nor is its circuit opened."""
    spec = {
        "policies": {
            "retries": {"r": {"policy": "constant", "duration": "1ms", "maxRetries": 3}},
            "circuitBreakers": {"c": {"maxRequests": 1, "timeout": "1h", "trip": "consecutiveFailures > 1"}},
        },
        "targets": {"apps": {"app": {"retry": "r", "circuitBreaker": "c"}}},
    }
    both = theirs(look="look") + yaml("Resiliency", "r", spec)
    ways = configuration(appHttpPipeline=["look:theirs"])
    async with through(memory, tmp_path, both, ways, app=app, max_body_bytes=1000) as node:

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b"x" * 500

        for _ in range(4):
            reply = await node.request("POST", f"{CALL}/x", None, parts())
            assert reply.status == 500
            assert b"larger than 1000 bytes" in reply.body, reply
        assert (await node.request("POST", f"{CALL}/x", None, b"small")).status == 200


async def test_the_head_of_its_answer_can_be_changed(memory: Backbone, app: App, tmp_path: Path) -> None:
    app.answer("/x", 200, b"text" * 100_000, x_old="1")
    ways = configuration(appHttpPipeline=["x:theirs"])
    async with through(memory, tmp_path, theirs(x="answer"), ways, app=app) as node:
        reply = await node.get(f"{CALL}/x")
        assert (reply.status, reply.headers["x-new"], reply.body) == (203, "1", b"text" * 100_000)
        assert "x-old" not in reply.headers


async def test_a_body_that_is_read_on_the_way(memory: Backbone, app: App, tmp_path: Path) -> None:
    ways = configuration(appHttpPipeline=["look:theirs"])
    async with through(memory, tmp_path, theirs(look="look"), ways, app=app, max_body_bytes=200_000) as node:

        async def parts(count: int) -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b"x" * 10_000

        assert (await node.request("POST", f"{CALL}/x", None, parts(15))).status == 200
        [got] = app.got
        assert (got.headers["x-size"], len(got.body)) == ("150000", 150_000)
        assert (await node.request("POST", f"{CALL}/x", None, parts(25))).status == 500, "larger than it may read"


async def test_an_application_on_http_2(memory: Backbone, tmp_path: Path) -> None:
    async with H2App() as app:
        ways = configuration(appHttpPipeline=["a:theirs", "upper:uppercase"])
        async with through(memory, tmp_path, theirs(a="mark") + UPPER, ways, app=app.port, app_protocol="h2c") as node:
            assert (await node.request("POST", f"{CALL}/x", None, b"small")).status == 200
            [got] = [each for each in app.got if each.path == "/x"]
            assert (got.body, got.headers["x-order"]) == (b"SMALL", "a")


# What is wrong with a list


WRONG = {
    "nobody": (["uper:uppercase"], UPPER, "there is no middleware component 'uper'; did you mean 'upper'?"),
    "other type": (["upper:bearer"], UPPER, "the component upper is of the type middleware.http.uppercase, not"),
    "no middleware": (["pubsub:x"], "", "there is no middleware component 'pubsub'"),
    "other application's": (
        ["upper:uppercase"],
        component("upper", "middleware.http.uppercase", scopes=["other"]),
        "the component upper is for other applications alone, by its scopes",
    ),
}


@pytest.mark.parametrize(("names", "components", "expected"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("section", [API, APP])
async def test_a_name_that_is_nobodys_ends_the_start(
    memory: Backbone, tmp_path: Path, section: str, names: list[str], components: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        async with through(memory, tmp_path, components, configuration(**{section: names})):
            pass
    [problem] = caught.value.problems
    assert expected in str(problem)
    assert f"spec.{section}.handlers[0]" in str(problem)
    assert (Path(problem.file or "").name[:13], problem.line) == ("configuration", 2)


async def test_a_type_that_is_no_middleware(memory: Backbone, tmp_path: Path) -> None:
    wrong = yaml("Configuration", "c", {API: {"handlers": [{"name": "a", "type": "state.redis"}]}})
    with pytest.raises(ConfigError, match=r"'state.redis' is no type of middleware"):
        async with through(memory, tmp_path, "", wrong):
            pass


async def test_a_selector_is_told_of(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    handler = {
        "name": "upper",
        "type": "middleware.http.uppercase",
        "selector": {"fields": [{"field": "a", "value": 1}]},
    }
    caplog.set_level(logging.WARNING)
    async with through(memory, tmp_path, UPPER, yaml("Configuration", "c", {API: {"handlers": [handler]}})):
        assert "selector: nothing reads it" in caplog.text


# While it runs


async def test_settings_change_while_it_runs_and_lists_do_not(memory: Backbone, app: App, tmp_path: Path) -> None:
    resources, file = tmp_path / "r", tmp_path / "c.yaml"
    resources.mkdir()
    one, two = resources / "one.yaml", resources / "two.yaml"
    one.write_text(theirs(x="mark"))
    two.write_text(theirs(y="mark"))
    file.write_text(configuration(httpPipeline=["x:theirs"], appHttpPipeline=["y:theirs"]))

    async def until(status: int, order: str | None) -> None:
        async def check() -> None:
            app.got.clear()
            assert (await node.get(f"{CALL}/x")).status == status
            assert [got.headers.get("x-order") for got in app.got] == [order] * (order is not None)

        await eventually(check)

    more = {"resource_paths": (resources,), "configuration_files": (file,)}
    async with gateway(memory, tmp_path, app=app, **more) as node:
        await until(200, "xy")
        one.write_text(theirs(x="refuse"))
        await until(418, None)
        one.write_text(component("x", "middleware.http.uppercase"))  # Another type is another thing.
        two.write_text(theirs(y="mark", z="mark"))

        async def has_z() -> None:
            assert node.gateway._runtime._components.entries.keys() >= {"z"}

        await eventually(has_z)
        await until(418, None)
        one.write_text(theirs(x="mark"))
        await until(200, "xy")
        two.unlink()
        file.write_text(configuration(httpPipeline=["x:theirs", "x:theirs"]))
        await until(200, "xy")


async def test_what_is_left_out_lets_nothing_through(memory: Backbone, tmp_path: Path) -> None:
    """With ``ignoreErrors`` a gateway starts without a component; what would have kept others out is not skipped."""
    broken = yaml(
        "Component",
        "no",
        {"type": "middleware.http.routerchecker", "version": "v1", "ignoreErrors": True, "metadata": []},
    )
    async with through(memory, tmp_path, broken, configuration(httpPipeline=["no:routerchecker"])) as node:
        reply = await node.get("/v1.0/metadata")
        assert (reply.status, reply.json["errorCode"]) == (500, "ERR_MIDDLEWARE")
        assert (await node.get("/v1.0/healthz")).status == 204


async def test_a_call_keeps_what_it_began_with(memory: Backbone, app: App, tmp_path: Path) -> None:
    """One that is replaced is closed when the requests that it has are answered."""
    resources = tmp_path / "r"
    resources.mkdir()
    file, one = tmp_path / "c.yaml", resources / "one.yaml"
    one.write_text(theirs(x="mark"))
    file.write_text(configuration(httpPipeline=["x:theirs"]))
    go = asyncio.Event()

    async def slow(got: Got, request: web.BaseRequest) -> web.StreamResponse:
        await go.wait()
        return web.Response(body=b"late")

    app.answers["/slow"] = slow
    more = {"resource_paths": (resources,), "configuration_files": (file,)}
    async with gateway(memory, tmp_path, app=app, **more) as node, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(node.get(f"{CALL}/slow"))
        await app.until("/slow")
        one.write_text(theirs(x="refuse"))

        async def refused() -> None:
            assert (await node.get("/v1.0/metadata")).status == 418

        await eventually(refused)
        go.set()
        assert (await call).body == b"late"
