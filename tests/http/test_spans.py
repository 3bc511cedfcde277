"""Spans of the HTTP API as a collector gets them: names, kinds, tags, and whose children they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.http.harness import DEFAULTS, App, Backbone, Case, Node, cases, component, gateway, yaml
from tests.support.collector import Collector
from tests.support.eventually import eventually

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + "00"
SUBSCRIBED = [
    {"pubsubname": "pubsub", "topic": "t", "route": "/t"},
    {"pubsubname": "pubsub", "topic": "b", "route": "/b", "bulkSubscribe": {"enabled": True, "maxMessagesCount": 2}},
]


def configured(home: Path, url: str, rate: str = "1", **more: object) -> dict[str, Any]:
    """Write a Configuration that sends spans to a collector."""
    file = home / "tracing.yaml"
    file.write_text(
        yaml("Configuration", "c", {"tracing": {"samplingRate": rate, "zipkin": {"endpointAddress": url}}, **more})
    )
    return {"configuration_files": (file,)}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as collector:
        yield collector


@pytest.fixture
async def node(backbone: Backbone, collector: Collector, app: App, tmp_path: Path) -> AsyncIterator[Node]:
    """A gateway beside an application, whose traces are all sampled."""
    app.subscriptions = SUBSCRIBED
    resources = (
        DEFAULTS
        + component("secrets", "secretstores.local.env")
        + component("away", "bindings.http", url="http://127.0.0.1:1")
    )
    async with gateway(backbone, tmp_path, app=app, resources=resources, **configured(tmp_path, collector.url)) as node:
        yield node


SHOWN = {"dapr.protocol": "http", "otel.scope.name": "dapr-diagnostics", "service.name": "app"}


def database(block: str, name: str, statement: str) -> dict[str, str]:
    return {"db.system": block, "db.connection_string": block, "db.name": name, "db.statement": statement}


@cases(
    Case(
        "state",
        ("GET", "/v1.0/state/statestore/k?metadata.x=y"),
        204,
        database("state", "statestore", "GET /v1.0/state/statestore/k"),
    ),
    Case(
        "secret",
        ("GET", "/v1.0/secrets/secrets/PATH"),
        200,
        database("secrets", "secrets", "GET /v1.0/secrets/secrets/PATH"),
    ),
    Case(
        "binding that fails",
        ("POST", "/v1.0/bindings/away", None, b'{"operation":"get"}'),
        500,
        {
            **database("bindings", "away", "POST /v1.0/bindings/away"),
            "otel.status_code": "ERROR",
            "error": "Code(500): Internal Server Error",
        },
    ),
    Case("publish", ("POST", "/v1.0/publish/pubsub/t", None, b"x"), 204, {"messaging.system": "pubsub"}),
    Case("publish to nobody", ("POST", "/v1.0/publish/nope/t", None, b"x"), 404, {"error": "Code(404): Not Found"}),
    Case(
        "call",
        ("GET", "/v1.0/invoke/app/method/a/b?x=y"),
        200,
        {"net.peer.name": "app", "rpc.service": "ServiceInvocation"},
    ),
    Case(
        "call by header", ("GET", "/a/b", {"dapr-app-id": "app"}), 200, {"net.peer.name": "app", "dapr-app-id": "app"}
    ),
    Case("actor", ("POST", "/v1.0/actors/a%20b/1/method/m"), 500, {"dapr.actor": "a b.1", "db.name": None}),
    Case("state of one", ("GET", "/v1.0/actors/a/1/state/k"), 500, {"dapr.actor": "a.1", "db.name": "actor"}),
    Case("metadata", ("GET", "/v1.0/metadata"), 200, {}),
    Case(
        "fields of the caller",
        (
            "GET",
            "/v1.0/metadata",
            {"dapr-mine": "1", "Dapr-Api-Token": "s3cret", "dapr-other-token": "s3cret", "x": "no"},
        ),
        200,
        {"dapr-mine": "1", "dapr-api-token": None, "dapr-other-token": None, "x": None},
    ),
)
async def test_calls_of_the_api(node: Node, collector: Collector, case: Case) -> None:
    """A CLIENT span of each, a child of the caller's, which the answer names."""
    method, target, *rest = case.request
    headers = {**(rest[0] or {} if rest else {}), "traceparent": PARENT, "tracestate": "a=1"}
    reply = await node.request(method, target, headers, *rest[1:])
    assert reply.status == case.status, reply
    path = target.partition("?")[0]
    name = "calllocal/app/a/b" if path.endswith("/a/b") else path.lower()
    name = "callactor/a b/m" if path.endswith("/method/m") else name
    found = await collector.until(*(name,) * (1 + path.endswith("/a/b")))
    (span,) = [each for each in found if each.raw["kind"] == "CLIENT"]
    assert (span.raw["kind"], span.raw["traceId"], span.raw["parentId"]) == ("CLIENT", PARENT[3:35], PARENT[36:52])
    assert (reply.headers["traceparent"], reply.headers["tracestate"]) == (span.traceparent, "a=1")
    assert isinstance(case.body, dict)
    expected = {
        **SHOWN,
        "dapr.api": f"{method} {path}",
        "http.request.method": method,
        "dapr.status_code": str(case.status),
        **case.body,
    }
    expected["url.full"] = f"{node.url}{path}"
    expected["server.address"] = "127.0.0.1"
    assert {key: span.tags.get(key) for key in expected} == expected
    assert "error" in span.tags or case.status < 400
    assert "s3cret" not in str(span.raw)
    assert span.raw["duration"] >= 1
    assert collector.requests[0] == ("POST", "application/json")


async def test_an_event(node: Node, app: App, collector: Collector) -> None:
    """Its delivery is a child of its publish, and the application is told which span it is in."""
    await node.publish("t", "x")
    published, delivered = await collector.until("/v1.0/publish/pubsub/t", "pubsub/t")
    assert delivered.is_below(published)
    assert delivered.raw["kind"] == "CLIENT"
    assert (delivered.tags["messaging.system"], delivered.tags["messaging.destination.name"]) == ("pubsub", "t")
    (got,) = await app.until("/t")
    assert got.json["traceparent"] == got.json["traceid"] == published.traceparent
    assert got.headers["traceparent"] == delivered.traceparent


async def test_a_delivery_that_fails(node: Node, app: App, collector: Collector) -> None:
    """Each attempt is a span, and says what became of it."""
    codes = iter((500, 200))
    app.answers["/t"] = lambda got, request: web_response(next(codes))
    await node.publish("t", "x")
    published, first, second = await collector.until("/v1.0/publish/pubsub/t", "pubsub/t", "pubsub/t")
    assert first.is_below(published)
    assert second.is_below(published)
    assert [(each.tags["mesh.attempt"], each.tags.get("error")) for each in (first, second)] == [
        ("1", "the application answered 500"),
        ("2", None),
    ]


def web_response(status: int) -> Any:
    from aiohttp import web

    return web.Response(status=status)


async def test_events_in_bulk(node: Node, app: App, collector: Collector) -> None:
    """One PRODUCER span an entry below the call; one delivery of both, with a link to the other publish."""
    entries = [{"entryId": name, "event": name, "contentType": "text/plain"} for name in ("one", "two")]
    reply = await node.post("/v1.0-alpha1/publish/bulk/pubsub/b", entries, "application/json")
    assert reply.status == 204, reply
    path = "/v1.0-alpha1/publish/bulk/pubsub/b"
    called, *made = await collector.until(path, "/v1.0/publish/bulk/pubsub/b", "/v1.0/publish/bulk/pubsub/b")
    assert [each.raw["kind"] for each in (called, *made)] == ["CLIENT", "PRODUCER", "PRODUCER"]
    assert all(each.is_below(called) for each in made)
    (got, *_) = await app.until("/b")
    (delivered,) = await collector.until("pubsub/b")
    assert got.headers["traceparent"] == delivered.traceparent
    assert {entry["event"]["traceparent"] for entry in got.json["entries"]} <= {each.traceparent for each in made}
    assert any(delivered.is_below(each) for each in made)
    assert len(delivered.raw.get("annotations", [])) == len(got.json["entries"]) - 1


async def test_a_call_of_the_own_application(node: Node, app: App, collector: Collector) -> None:
    """Both sides are there: CLIENT, and below it SERVER, which the application is told."""
    app.answer("/work", 503)
    await node.get("/v1.0/invoke/app/method/work")
    await both_sides(app, collector, "app", "app", "503")


async def both_sides(app: App, collector: Collector, caller: str, callee: str, status: str) -> None:
    sides = await collector.until(f"calllocal/{callee}/work", f"calllocal/{callee}/work")
    client, server = sorted(sides, key=lambda each: str(each.raw["kind"]))
    assert (client.raw["kind"], client.app, server.raw["kind"], server.app) == ("CLIENT", caller, "SERVER", callee)
    assert server.is_below(client)
    assert (server.tags["dapr.invoke_method"], server.tags["dapr.status_code"]) == ("work", status)
    assert app.at("/work")[-1].headers["traceparent"] == server.traceparent


@asynccontextmanager
async def two(nats: Backbone, collector: Collector, app: App, home: Path) -> AsyncIterator[Node]:
    """A caller and the gateway of a callee, both traced."""
    traced = configured(home, collector.url)
    async with (
        gateway(nats, home, app=app, app_id="callee", **traced),
        gateway(nats, home, app_id="caller", **traced) as node,
    ):
        yield node


@pytest.mark.parametrize("size", [1, 300_000], ids=["whole", "streamed"])
async def test_a_call_over_the_backbone(
    nats: Backbone, collector: Collector, app: App, tmp_path: Path, size: int
) -> None:
    """The same, whoever of the two has which span."""
    app.answer("/work", 200, b"x" * size)
    async with two(nats, collector, app, tmp_path) as node:
        reply = await node.request("POST", "/v1.0/invoke/callee/method/work", None, b"y" * size)
        assert (reply.status, len(reply.body)) == (200, size)
        await both_sides(app, collector, "caller", "callee", "200")


async def test_a_durable_call(nats: Backbone, collector: Collector, app: App, tmp_path: Path) -> None:
    """Who runs it later begins a trace of its own, with a link to the call; the outcome's publish is of the first."""
    app.subscriptions = [{"pubsubname": "pubsub", "topic": "outcomes", "route": "/outcomes"}]
    async with two(nats, collector, app, tmp_path) as node:
        headers = {
            "mesh-delivery": "durable",
            "mesh-reply-topic": "outcomes",
            "traceparent": PARENT,
            "tracestate": "a=1",
            "baggage": "k=v",
        }
        reply = await node.request("POST", "/v1.0/invoke/callee/method/work", headers, b"x")
        assert reply.status == 202
        sides = await collector.until("calllocal/callee/work", "calllocal/callee/work")
        client, server = sorted(sides, key=lambda each: str(each.raw["kind"]))
        assert "parentId" not in server.raw
        assert server.raw["traceId"] != client.raw["traceId"]
        assert [each["value"] for each in server.raw["annotations"]] == [f"link {client.traceparent}"]
        (got,) = await app.until("/work")
        assert (got.headers["traceparent"], got.headers["tracestate"], got.headers["baggage"]) == (
            server.traceparent,
            "a=1",
            "k=v",
        )
        (published,) = await collector.until("/v1.0/publish/pubsub/outcomes")
        assert published.is_below(client)


async def test_a_component_of_another_node(nats: Backbone, collector: Collector, tmp_path: Path) -> None:
    """The host's side is a SERVER span below the call."""
    traced = configured(tmp_path, collector.url)
    store = component("mine", "state.in-memory", scopes=["host", "caller"]).replace(
        '"metadata":{"name":"mine"}', '"metadata":{"name":"mine","annotations":{"mesh.placement":"backbone"}}'
    )
    async with (
        gateway(nats, tmp_path, app_id="host", resources=store, **traced),
        gateway(nats, tmp_path, app_id="caller", **traced) as node,
    ):

        async def found() -> None:
            reply = await node.get("/v1.0/state/mine/k", traceparent=PARENT)
            assert reply.status == 204, reply

        await eventually(found)
        called, served = await collector.until("/v1.0/state/mine/k", "component/mine/state.get")
        assert (served.raw["kind"], served.app, served.tags["db.name"]) == ("SERVER", "host", "mine")
        assert any(served.is_below(each) for each in collector.spans if each.name == called.name)


async def test_an_input_binding(memory: Backbone, collector: Collector, app: App, tmp_path: Path) -> None:
    """Its event begins a trace; what the application's answer has done belongs to it."""
    app.answer("/tick", 200, {"state": [{"key": "k", "value": 1}], "storeName": "statestore"})
    resources = DEFAULTS + component("tick", "bindings.cron", schedule="@every 1s", direction="input")
    async with gateway(memory, tmp_path, app=app, resources=resources, **configured(tmp_path, collector.url)):
        (got, *_) = await app.until("/tick")
        (span, *_) = await collector.until("bindings/tick")
        assert "parentId" not in span.raw
        assert span.tags["db.name"] == "tick"
        assert any(got.headers["traceparent"] == each.traceparent for each in collector.spans)


async def test_what_is_not_sampled_is_not_told(node: Node, app: App, collector: Collector) -> None:
    """The caller's decision holds on all hops; the health of the gateway is in no trace."""
    await node.request("POST", "/v1.0/publish/pubsub/t", {"traceparent": UNSAMPLED}, b"x")
    (got,) = await app.until("/t")
    assert got.headers["traceparent"][:36] == UNSAMPLED[:36]
    assert got.headers["traceparent"].endswith("-00")
    reply = await node.get("/v1.0/healthz")
    assert "traceparent" not in reply.headers
    await node.request("GET", "/v1.0/metadata", {"traceparent": PARENT})
    await collector.until("/v1.0/metadata")
    assert [each.name for each in collector.spans] == ["/v1.0/metadata"]


@pytest.mark.parametrize(
    ("rate", "given", "told"), [("0", PARENT, False), ("0", None, False), ("0.000000001", None, True)]
)
async def test_rates(
    memory: Backbone, collector: Collector, tmp_path: Path, rate: str, given: str | None, told: bool
) -> None:
    """0 makes no span at all, and passes on what came; any other rate says whether a trace that begins is sampled."""
    app = App(SUBSCRIBED)
    async with app, gateway(memory, tmp_path, app=app, **configured(tmp_path, collector.url, rate)) as node:
        reply = await node.request("POST", "/v1.0/publish/pubsub/t", {"traceparent": given} if given else None, b"x")
        (got,) = await app.until("/t")
        assert ("traceparent" in reply.headers) == told
        assert got.headers.get("traceparent", "").endswith("-00") == told
        assert got.json["traceparent"] == (given or (reply.headers["traceparent"] if told else ""))
    assert collector.spans == []


@pytest.mark.parametrize("status", [500, None], ids=["that refuses", "that is not there"])
async def test_a_collector_that_does_not_take_them(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int | None
) -> None:
    """Nothing fails, it is said once, and counted."""
    async with Collector(status or 202) as away:
        url = away.url
        if status is None:
            await away.__aexit__()
        async with gateway(memory, tmp_path, **configured(tmp_path, url)) as node:
            counts = node.gateway._runtime.counters
            for number in (1, 2):
                for _ in range(3):
                    assert (await node.get("/v1.0/metadata")).status == 200

                def lost(number: int = number) -> None:
                    assert counts.snapshot().get(("spans", "zipkin", "failed")) == 3 * number

                await eventually(lost)
    (told,) = [each.getMessage() for each in caplog.records if "spans are lost" in each.getMessage()]
    assert "application" not in told


async def test_spans_of_the_last_moment(memory: Backbone, collector: Collector, tmp_path: Path) -> None:
    """What waits at the end is sent before the gateway is gone."""
    async with gateway(memory, tmp_path, **configured(tmp_path, collector.url)) as node:
        await node.get("/v1.0/metadata")
    assert [each.name for each in collector.spans] == ["/v1.0/metadata"]


@pytest.mark.parametrize(
    ("tracing", "told"),
    [
        ({"otel": {"endpointAddress": "", "protocol": "grpc"}}, True),
        ({"otel": {"headers": [{"name": "a", "value": "b"}]}, "stdout": True}, True),
        ({"otel": {"endpointAddress": ""}}, False),
        ({}, False),
    ],
)
async def test_a_collector_without_a_place_is_told(
    memory: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tracing: dict[str, Any],
    *,
    told: bool,
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "tracing.yaml"
    file.write_text(yaml("Configuration", "c", {"tracing": {"samplingRate": "1", **tracing}}))
    async with gateway(memory, tmp_path, ready=False, configuration_files=(file,)):
        assert ("spec.tracing.otel: has no endpointAddress" in caplog.text) == told
