"""Bindings over HTTP: calls, their answers and failures; events, whom they come to, and what is acknowledged.

Source: reference/dapr-surface.md 0.5, 1.11, 2.7.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from bindings.cron import CronBinding, CronSettings, parse_schedule
from mesh.blocks.binding_contract import BindingEvent, Reading
from mesh.blocks.records import LazyRecords
from mesh.errors import ConfigError, RecordsMissingError
from mesh.registry import Registry
from mesh.store import StateStore
from tests.http.harness import ANY, App, Backbone, Case, Got, Node, cases, component, error, gateway
from tests.support import nodes
from tests.support.eventually import eventually
from tests.support.sharing import entered

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAILED = "ERR_INVOKE_OUTPUT_BINDING"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[App]:
    """What the HTTP bindings call."""
    async with App() as app:
        app.answer("/base/teapot", 418, b"no", X_Why="tea")
        app.answer("/base/empty", 200)

        def echo(got: Got, request: web.BaseRequest) -> web.Response:
            said = {"method": got.method, "body": got.body.decode(), "traceparent": got.headers.get("traceparent")}
            given = {name: got.headers.get(name.lower(), "") for name in ("X-Mine", "Authorization")}
            return web.json_response(said, headers=given)

        app.answers["/base/echo"] = echo
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(
    module_backbone: Backbone, service: App, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Node]:
    home = tmp_path_factory.mktemp("home")
    url = f"http://127.0.0.1:{service.port}/base"
    resources = (
        component("web", "bindings.http", url=url)
        + component("mild", "bindings.http", url=url, errorIfNot2XX="false")
        + component("small", "bindings.http", url=url, maxResponseBodySize="1")
        + component("known", "bindings.http", url=url, securityToken="t", securityTokenHeader="Authorization: Bearer")
        + component("away", "bindings.http", url="http://me:s3cret@127.0.0.1:1/base?token=s3cret")
        + component("tick", "bindings.cron", schedule="@yearly", direction="input")
        + component("hidden", "bindings.http", url=url, scopes=["someone"])
        + component("files", "bindings.localstorage", rootPath=str(home / "files"))
    )
    async with gateway(module_backbone, home, resources=resources) as node:
        yield node


def invoke(name: str, operation: str = "get", data: object = ..., **metadata: str) -> tuple[str, str, None, object]:
    body: dict[str, object] = {"operation": operation, "metadata": metadata}
    if data is not ...:
        body["data"] = data
    return "POST", f"/v1.0/bindings/{name}", None, body


def missing(name: str) -> dict[str, object]:
    return error(FAILED, f"error invoking output binding {name}: couldn't find output binding {name}")


def echoed(method: str, body: str = "") -> dict[str, object]:
    return {"method": method, "body": body, "traceparent": ANY}


@cases(
    Case("get", invoke("web", path="/echo"), 200, echoed("GET"), {"metadata.statuscode": "200"}),
    Case("create is POST", invoke("web", "create", {"a": 1}, path="echo"), 200, echoed("POST", '{"a":1}')),
    Case("a text", invoke("web", "put", "text", path="/echo"), 200, echoed("PUT", "text")),
    Case("no data", invoke("web", "post", path="/echo"), 200, echoed("POST")),
    Case("null", invoke("web", "post", None, path="/echo"), 200, echoed("POST")),
    Case("patch", invoke("web", "patch", [1], path="/echo"), 200, echoed("PATCH", "[1]")),
    Case("delete", invoke("web", "delete", path="/echo"), 200, echoed("DELETE")),
    Case("options", invoke("web", "options", path="/echo"), 200, echoed("OPTIONS")),
    Case("trace", invoke("web", "trace", path="/echo"), 200, echoed("TRACE")),
    Case("head", invoke("web", "head", path="/echo"), 200, b"", {"metadata.status": "200 OK"}),
    Case("a field", invoke("web", path="/echo", **{"X-Mine": "m"}), 200, ANY, {"metadata.X-Mine": "m"}),
    Case("no field", invoke("web", path="/echo", **{"x-mine": "m"}), 200, ANY, {"metadata.X-Mine": ""}),
    Case("a name of no field", invoke("web", path="/echo", **{"Host: elsewhere": "m"}), 500, error(FAILED)),
    Case("a name beyond ASCII", invoke("web", path="/echo", **{"Übermut": "m"}), 500, error(FAILED)),
    Case("two fields in one", invoke("web", path="/echo", **{"X-Mine": "m\r\nX-Other: n"}), 500, error(FAILED)),
    Case("a token", invoke("known", path="/echo"), 200, ANY, {"metadata.Authorization": "Bearer t"}),
    Case(
        "no other token",
        invoke("known", path="/echo", Authorization="Bearer u"),
        200,
        ANY,
        {"metadata.Authorization": "Bearer t"},
    ),
    Case("an empty answer", invoke("web", path="/empty"), 200, b""),
    Case("PUT", ("PUT", "/v1.0/bindings/web", None, {"operation": "get", "metadata": {"path": "/empty"}}), 200, b""),
    Case(
        "a failure has the metadata of an answer",
        invoke("web", path="/teapot"),
        500,
        error(FAILED, "error invoking output binding web: received status code 418"),
        {"metadata.X-Why": "tea", "metadata.statusCode": "418"},
    ),
    Case("not strict", invoke("mild", path="/teapot"), 200, b"no", {"metadata.statusCode": "418"}),
    Case("strict for once", invoke("mild", path="/teapot", errorIfNot2XX="true"), 500, error(FAILED)),
    Case("not strict for once", invoke("web", path="/teapot", errorIfNot2XX="false"), 200, b"no"),
    Case("too large", invoke("small", path="/echo"), 500, error(FAILED)),
    Case("up", invoke("web", path="/../x"), 500, error(FAILED)),
    Case("up, escaped", invoke("web", path="/%2e%2e/x"), 500, error(FAILED)),
    Case(
        "an unknown operation",
        invoke("web", "dance"),
        500,
        error(
            FAILED,
            "error invoking output binding web: binding web does not support operation dance. supported operations:"
            "create get head post put patch delete options trace",
        ),
    ),
    Case("no operation", ("POST", "/v1.0/bindings/web", None, {}), 500, error(FAILED)),
    Case("unknown", invoke("nope"), 500, missing("nope")),
    Case("an input alone", invoke("tick", "delete"), 500, missing("tick")),
    Case("not for it", invoke("hidden"), 500, missing("hidden")),
    Case("no JSON", ("POST", "/v1.0/bindings/web", None, b"{"), 400, error("ERR_MALFORMED_REQUEST")),
    Case("no object", ("POST", "/v1.0/bindings/web", None, b"[]"), 400, error("ERR_MALFORMED_REQUEST")),
    Case("malformed before unknown", ("POST", "/v1.0/bindings/no", None, b"{"), 400, error("ERR_MALFORMED_REQUEST")),
    Case(
        "metadata of numbers",
        ("POST", "/v1.0/bindings/web", None, {"operation": "get", "metadata": {"a": 1}}),
        400,
        error("ERR_MALFORMED_REQUEST"),
    ),
)
async def test_calls(node: Node, case: Case) -> None:
    """What was asked of the service, and what its answer becomes."""
    reply = await node.request(*case.request)
    assert reply.status == case.status, reply
    if isinstance(case.body, bytes):
        assert reply.body == case.body
    elif case.body is not ANY:
        assert reply.json == case.body
    for name, value in case.headers.items():
        assert reply.headers.get(name.lower()) == value, reply.fields


async def test_the_trace_goes_along(node: Node) -> None:
    """As metadata, which this binding sends as fields."""
    _, target, _, body = invoke("web", path="/echo")
    reply = await node.request("POST", target, {"traceparent": PARENT}, body)
    assert reply.json["traceparent"][:36] == PARENT[:36]
    assert reply.json["traceparent"] == reply.headers["traceparent"]


async def test_the_url_is_told_without_its_secrets(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """A login and a token in it are nobody's who calls, and stand in no log."""
    reply = await node.request(*invoke("away", path="/x"))
    assert reply.status == 500
    assert b"http://***@127.0.0.1:1/base cannot be called" in reply.body
    assert b"s3cret" not in reply.body
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "settings", "setting"),
    [
        *(
            (kind, {setting: url, **more}, setting)
            for kind, setting, more in (
                ("bindings.http", "url", {}),
                ("bindings.graphql", "endpoint", {}),
                ("bindings.influx", "url", {"org": "o", "bucket": "b", "token": "t"}),
            )
            for url in ("ftp://a", "http://", "http://[::1/", "http://a:99999", "a")
        ),
        ("bindings.http", {"url": "http://a", "MTLSRootCA": "s3cret"}, "MTLSRootCA"),
        ("bindings.http", {"url": "http://a", "MTLSClientCert": "/", "MTLSClientKey": "s3cret"}, "MTLSClientCert"),
        (
            "bindings.http",
            {"url": "http://a", "MTLSClientCert": "-----BEGIN", "MTLSClientKey": "s3cret"},
            "MTLSClientKey",
        ),
        (
            "bindings.http",
            {"url": "http://a", "securityToken": "s3cret", "securityTokenHeader": "X Y"},
            "securityTokenHeader",
        ),
    ],
)
async def test_settings_that_are_wrong(kind: str, settings: dict[str, str], setting: str) -> None:
    """Each is named, and what it holds is not told."""
    component = nodes.component("x", kind, **settings)
    with pytest.raises(ConfigError, match=f"^{setting}: ") as caught:
        async with Registry().load(kind).from_component(component):  # type: ignore[attr-defined]
            pass
    assert "s3cret" not in str(caught.value)


async def files(node: Node, operation: str, data: object = None, **metadata: str) -> tuple[int, bytes]:
    reply = await node.request(*invoke("files", operation, data, **metadata))
    return reply.status, reply.body


async def test_files(node: Node) -> None:
    """Written, read, listed, renamed, deleted; base64 is decoded, a JSON value is written as it is."""
    assert await files(node, "create", "hello", fileName="a/b.txt") == (200, b'{"fileName":"a/b.txt"}')
    assert await files(node, "get", fileName="a/b.txt") == (200, b"hello")
    assert await files(node, "create", {"x": 1}, fileName="a/c.json") == (200, b'{"fileName":"a/c.json"}')
    assert await files(node, "get", fileName="/a/c.json") == (200, b'{"x":1}')
    await files(node, "create", "AAEC/w==", fileName="raw")
    assert await files(node, "get", fileName="raw") == (200, b"\x00\x01\x02\xff")
    await files(node, "create", fileName="nothing")
    assert await files(node, "get", fileName="nothing") == (200, b"")
    status, body = await files(node, "list", fileName="a")
    assert (status, [Path(each).name for each in orjson.loads(body)]) == (200, ["b.txt", "c.json"])
    assert (await files(node, "rename", fileName="raw", destinationFile="d/raw"))[0] == 200
    assert (await files(node, "get", fileName="raw"))[0] == 500
    assert await files(node, "delete", fileName="d/raw") == (204, b"")
    status, body = await files(node, "delete", fileName="d/raw")
    assert orjson.loads(body)["message"] == "error invoking output binding files: file not found: d/raw"
    _, body = await files(node, "create", "unnamed")
    assert await files(node, "get", fileName=orjson.loads(body)["fileName"]) == (200, b"unnamed")


async def test_a_pipe_is_no_file(node: Node) -> None:
    """Whoever opens one waits for who writes, which would take a thread for good."""
    await files(node, "create", "hello", fileName="pipes/file")
    _, body = await files(node, "list", fileName="pipes")
    os.mkfifo(Path(orjson.loads(body)[0]).with_name("pipe"))
    status, body = await files(node, "get", fileName="pipes/pipe")
    assert (status, body.decode().count("get pipes/pipe: is no regular file")) == (500, 1)
    status, body = await files(node, "get", fileName="pipes")
    assert (status, body.decode().count("get pipes: Is a directory")) == (500, 1)


async def test_a_name_that_is_no_text_is_not_listed(node: Node) -> None:
    """The others are."""
    await files(node, "create", "hello", fileName="names/text")
    _, body = await files(node, "list", fileName="names")
    found = Path(orjson.loads(body)[0])
    found.with_name(os.fsdecode(b"none\xff")).write_text("x")
    assert await files(node, "list", fileName="names") == (200, orjson.dumps([str(found)]))


async def test_what_a_killed_gateway_left_is_removed(tmp_path: Path) -> None:
    """At the next start, also one some seconds later; not what another process writes."""
    left, held, mine = (tmp_path / name for name in (f".{'a' * 16}.part", f".{'b' * 16}.part", "mine.part"))
    for path in (left, held, mine):
        path.write_text("x")
        os.utime(path, (time.time() - 10,) * 2)
    adapter: Any = (
        Registry()
        .load("bindings.localstorage")
        .from_component(  # type: ignore[attr-defined]
            nodes.component("x", "bindings.localstorage", rootPath=str(tmp_path))
        )
    )
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        async with adapter:
            assert sorted(tmp_path.iterdir()) == [held, mine]


# Events

EVERY = {"schedule": "@every 1s"}


async def test_an_application_that_wants_it_gets_ticks(memory: Backbone, tmp_path: Path) -> None:
    """Asked by OPTIONS at its route; posted with the headers of the surface."""
    async with App() as app:
        resources = component("tick", "bindings.cron", route="/clock", **EVERY)
        async with gateway(memory, tmp_path, app=app, app_id="ticked", resources=resources):
            await app.until("/clock", 3)
    first, *ticks = app.at("/clock")
    assert first.method == "OPTIONS"
    assert {tick.method for tick in ticks} == {"POST"}
    assert ticks[0].body == b""
    assert ticks[0].headers["content-type"] == "application/json"
    assert ticks[0].headers["timezone"] == "UTC"
    assert ticks[0].headers["mesh-binding"] == "tick"
    assert ticks[0].headers["readtimeutc"].endswith(" +0000 UTC")
    times = [tick.headers["readtimeutc"] for tick in ticks]
    assert len(set(times)) == len(times)


async def test_the_probe(memory: Backbone, tmp_path: Path) -> None:
    """What is answered to it decides; one that is not asked about shows when ticks have passed."""
    asked = {200: True, 204: True, 405: True, 404: False, 500: False}
    async with App() as app:

        def answering(status: int) -> Callable[[Got, web.BaseRequest], web.Response]:
            return lambda got, _: web.Response(status=status if got.method == "OPTIONS" else 200)

        for status in asked:
            app.answers[f"/b{status}"] = answering(status)
        resources = "".join(component(f"b{status}", "bindings.cron", **EVERY) for status in asked)
        resources += component("sure", "bindings.cron", direction="input", **EVERY)
        async with gateway(memory, tmp_path, app=app, resources=resources):
            await app.until("/sure", 2)
            for status, wanted in asked.items():
                await app.until(f"/b{status}", 2 if wanted else 1)
    assert "OPTIONS" not in {got.method for got in app.at("/sure")}
    for status, wanted in asked.items():
        methods = [got.method for got in app.at(f"/b{status}")]
        assert methods[0] == "OPTIONS"
        assert ("POST" in methods) is wanted


async def test_the_limit_of_the_probe(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An application that does not answer within it is asked again."""
    async with App() as app:

        async def slow(got: Got, _: web.BaseRequest) -> web.Response:
            if len(app.at("/late")) == 1:
                await asyncio.Event().wait()
            return web.Response()

        app.answers["/late"] = slow
        resources = component("late", "bindings.cron", **EVERY)
        async with gateway(memory, tmp_path, app=app, resources=resources, app_binding_seconds=0.2):
            await app.until("/late", 3)
    assert [got.method for got in app.at("/late")][:3] == ["OPTIONS", "OPTIONS", "POST"]
    assert "the application does not say within 0.2 s whether it wants it" in caplog.text


async def test_a_host_triggers_applications_of_its_scopes(nats: Backbone, tmp_path: Path) -> None:
    """Their gateways have no such component; who is not in its scopes is not asked."""
    resources = component("hosted", "bindings.cron", scopes=["one", "host"], **EVERY)
    async with (
        App() as one,
        App() as two,
        gateway(nats, tmp_path, app_id="host", resources=resources),
        gateway(nats, tmp_path, app=one, app_id="one", resources=component("p", "pubsub.mesh")),
        gateway(nats, tmp_path, app=two, app_id="two", resources=component("p", "pubsub.mesh")),
    ):
        await one.until("/hosted", 4)
    times = [got.headers["readtimeutc"] for got in one.at("/hosted") if got.method == "POST"]
    assert len(set(times)) == len(times)
    assert two.at("/hosted") == []


@pytest.mark.costly
async def test_instances_and_hosts_share_the_ticks(nats: Backbone, tmp_path: Path) -> None:
    """Two gateways of one application, each with the component, and a host of it: each tick comes once."""
    resources = component("shared", "bindings.cron", **EVERY)
    async with (
        App() as app,
        gateway(nats, tmp_path, app_id="other", resources=resources),
        gateway(nats, tmp_path, app=app, app_id="twin", resources=resources),
        gateway(nats, tmp_path, app=app, app_id="twin", resources=resources),
    ):
        await app.until("/shared", 6)
    times = [got.headers["readtimeutc"] for got in app.at("/shared") if got.method == "POST"]
    assert len(set(times)) == len(times)


async def test_without_a_store_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Then every instance fires, as is logged at start; the schedule works."""
    records: list[BindingEvent] = []

    async def handle(event: BindingEvent) -> bytes:
        records.append(event)
        return b""

    async def missing(name: str) -> StateStore:
        raise RecordsMissingError("there is no place")

    binding, store = CronBinding(CronSettings(parse_schedule("@every 1s"))), LazyRecords("bindings", missing)
    async with entered(binding, store), binding.reading(Reading("tick", "app", handle)):
        await eventually(lambda: _there(records))
    assert "every host and instance fires each tick: there is no place" in caplog.text


def _there(records: list[BindingEvent]) -> None:
    assert records


@pytest.mark.costly
async def test_delete_ends_a_schedule_for_all(nats: Backbone, tmp_path: Path) -> None:
    """The operation of the binding, asked of one of two gateways."""
    resources = component("ended", "bindings.cron", **EVERY) + component("going", "bindings.cron", **EVERY)
    async with (
        App() as app,
        gateway(nats, tmp_path, app=app, app_id="ender", resources=resources),
        gateway(nats, tmp_path, app=app, app_id="ender", resources=resources) as node,
    ):
        await app.until("/ended", 3)
        assert (await node.request(*invoke("ended", "delete"))).status == 204
        count = len(app.at("/ended"))
        await app.until("/going", len(app.at("/going")) + 4)
        assert len(app.at("/ended")) <= count + 1  # One may have been on its way.


async def test_a_policy_tries_again(memory: Backbone, tmp_path: Path) -> None:
    """A tick that the application does not take is handed over again by the inbound policy alone."""
    policy = {
        "policies": {"retries": {"often": {"policy": "constant", "duration": "10ms", "maxRetries": 2}}},
        "targets": {"components": {"retried": {"inbound": {"retry": "often"}}}},
    }
    resources = "".join(component(name, "bindings.cron", direction="input", **EVERY) for name in ("retried", "plain"))
    resources += (
        "---\n"
        + orjson.dumps(
            {"apiVersion": "dapr.io/v1alpha1", "kind": "Resiliency", "metadata": {"name": "r"}, "spec": policy}
        ).decode()
    )
    async with App() as app:
        for path in ("/retried", "/plain"):
            app.answer(path, 500)
        async with gateway(memory, tmp_path, app=app, app_id="retrier", resources=resources + "\n"):
            await app.until("/retried", 4)
            await app.until("/plain", 2)
    times = [got.headers["readtimeutc"] for got in app.at("/retried")]
    assert times[:3] == [times[0]] * 3
    assert times[3] != times[0]
    plain = [got.headers["readtimeutc"] for got in app.at("/plain")]
    assert len(set(plain)) == len(plain)
