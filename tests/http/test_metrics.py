"""The metrics port: what a gateway tells Prometheus, under which names and labels."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from gateway.config import METRICS_PORTS, HealthCheck
from gateway.grpc.messages import message
from gateway.http2.client import HTTP2Client
from mesh.errors import ConfigError
from tests.grpc.app import GRPCApp, fail, invoked
from tests.grpc.harness import client
from tests.http.harness import DEFAULTS, App, Backbone, Got, Node, component, gateway, yaml
from tests.support.eventually import eventually

ON: dict[str, Any] = {"metrics": True, "metrics_port": 0}
Found = dict[str, dict[frozenset[tuple[str, str]], float]]


async def scraped(node: Node, path: str = "/metrics", app_id: str = "app") -> Found:
    """Give all samples by name and labels, without the app id, which each of ours has."""
    async with node.session.get(f"http://127.0.0.1:{node.gateway.metrics_port}{path}") as response:
        assert response.status == 200
        text = await response.text()
    found: Found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if not sample.name.startswith("process_"):
                assert labels.pop("app_id") == app_id, sample
            # The parser makes counters end so.
            name = sample.name if f"{sample.name} " in text or f"{sample.name}{{" in text else sample.name[:-6]
            found.setdefault(name, {})[frozenset(labels.items())] = sample.value
    return found


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def configuration(tmp_path: Path, metrics: object) -> dict[str, Any]:
    path = tmp_path / "config.yaml"
    path.write_text(yaml("Configuration", "c", {"metrics": metrics}))
    return {**ON, "configuration_files": (path,)}


RESILIENCY = yaml(
    "Resiliency",
    "res",
    {
        "policies": {
            "retries": {"again": {"policy": "constant", "duration": "1ms", "maxRetries": 1}},
            "circuitBreakers": {"cut": {"maxRequests": 1, "timeout": "60s", "trip": "consecutiveFailures >= 1"}},
            "timeouts": {"soon": "60s"},
        },
        "targets": {
            "apps": {"nobody": {"retry": "again", "circuitBreaker": "cut", "timeout": "soon"}},
            "components": {"pubsub": {"inbound": {"retry": "again"}}},
        },
    },
)


async def test_each_load_of_a_resiliency_counts(memory: Backbone, tmp_path: Path) -> None:
    """Those of a reload as well; one that is as it was is not loaded again."""
    folder = tmp_path / "resources"
    folder.mkdir()
    (folder / "res.yaml").write_text(RESILIENCY)
    (folder / "other.yaml").write_text(RESILIENCY.replace('"res"', '"other"'))
    async with gateway(memory, tmp_path, resource_paths=(folder,), **ON) as node:

        async def loaded(**times: float) -> None:
            found = (await scraped(node))["dapr_resiliency_loaded"]
            assert found == {labelled(name=name, namespace=""): count for name, count in times.items()}

        await loaded(res=1, other=1)
        (folder / "res.yaml").write_text(RESILIENCY.replace("60s", "61s"))
        await eventually(lambda: loaded(res=2, other=1))


async def test_jobs_are_told(memory: Backbone, tmp_path: Path) -> None:
    """Each attempt to hand one over; one for an application that is away is none."""
    async with App() as app, gateway(memory, tmp_path, app=app, **ON) as node:
        app.answer("/job/bad", 500)
        await node.post("/v1.0/jobs/good", {"dueTime": "0s"})
        await node.post("/v1.0/jobs/bad", {"dueTime": "0s", "failurePolicy": {"drop": {}}})

        async def counted() -> None:
            found = await scraped(node)
            of = labelled(namespace="", operation="job_trigger_op")
            for outcome in ("success", "failure"):
                assert found.get(f"dapr_component_job_{outcome}_count") == {of: 1}
            took = found["dapr_component_job_latencies_count"]
            assert took == {of | {("success", value)}: 1 for value in ("true", "false")}

        await eventually(counted)


async def test_what_a_gateway_does_is_told(nats: Backbone, tmp_path: Path) -> None:
    """Each block's operations, events with their dead letters, batches, calls at both sides, probes and policies."""
    subscriptions = [
        {"pubsubname": "pubsub", "topic": "good", "route": "/good"},
        {"pubsubname": "pubsub", "topic": "bad", "route": "/bad", "deadLetterTopic": "dead"},
        {
            "pubsubname": "pubsub",
            "topic": "many",
            "route": "/many",
            "bulkSubscribe": {"enabled": True, "maxMessagesCount": 2, "maxAwaitDurationMs": 60000},
        },
    ]
    resources = DEFAULTS + component("out", "bindings.localstorage", rootPath=str(tmp_path / "files")) + RESILIENCY
    health = HealthCheck(path="/health", interval=0.05, timeout=2.0)
    async with (
        App(subscriptions) as app,
        gateway(nats, tmp_path, app=app, resources=resources, app_health=health, **ON) as node,
        gateway(nats, tmp_path, app_id="caller", ready=False, **ON) as caller,
        client(node) as called,
    ):
        app.answer("/bad", 500)
        app.answers["/many"] = _all_well
        for topic in ("good", "bad"):
            assert (await node.post(f"/v1.0/publish/pubsub/{topic}", {"a": 1}, "application/json")).status == 204
        entries = [{"entryId": each, "event": each, "contentType": "text/plain"} for each in "ab"]
        path = "/v1.0-alpha1/publish/bulk/pubsub/many"
        assert (await node.post(path, entries, "application/json")).status == 204
        item = [{"key": "k", "value": 1}]
        assert (await node.post("/v1.0/state/statestore", item, "application/json")).status == 204
        assert (await node.get("/v1.0/state/statestore/k")).status == 200
        binding = {"operation": "create", "data": "x", "metadata": {"fileName": "f"}}
        assert (await node.post("/v1.0/bindings/out", binding, "application/json")).status == 200
        assert (await caller.get("/v1.0/invoke/app/method/hello?x=1")).status == 200
        assert (await node.get("/v1.0/invoke/nobody/method/x")).status == 500
        await called.message("GetMetadata")

        async def told() -> Found:
            found = await scraped(node)
            ingress = found["dapr_component_pubsub_ingress_count"]
            told = {(each["topic"], each["status"]): count for each, count in _as_dicts(ingress)}
            assert told == {("good", "success"): 1, ("bad", "retry"): 2, ("bad", "drop"): 1, ("many", "success"): 2}
            return found

        found = await eventually(told)
        other = await scraped(caller, "/", "caller")
    of = {"component": "pubsub", "namespace": ""}
    ours = {"method": "GET", "path": "/v1.0/state/statestore/k", "status": "200"}
    expected: list[tuple[str, Mapping[str, str], float]] = [
        ("dapr_component_pubsub_egress_count", {**of, "topic": "good", "success": "true"}, 1),
        ("dapr_component_pubsub_egress_bulk_count", {**of, "topic": "many", "success": "true"}, 1),
        ("dapr_component_pubsub_ingress_bulk_count", {**of, "topic": "many", "process_status": ""}, 1),
        ("dapr_component_pubsub_ingress_bulk_event_count", {**of, "topic": "many", "process_status": ""}, 2),
        ("dapr_component_state_count", {**_state("get"), "success": "true"}, 1),
        ("dapr_component_state_latencies_count", {**_state("set"), "success": "true"}, 1),
        ("dapr_component_output_binding_count", {**_state("create"), "component": "out", "success": "true"}, 1),
        ("dapr_http_server_request_count", ours, 1),
        ("dapr_http_server_response_count", ours, 1),
        ("dapr_http_server_latency_count", ours, 1),
        ("dapr_http_client_completed_count", {"method": "POST", "path": "/good", "status": "200"}, 1),
        ("dapr_http_client_completed_count", {"method": "GET", "path": "/hello", "status": "200"}, 1),
        ("dapr_runtime_service_invocation_req_recv_total", {"src_app_id": "caller"}, 1),
        ("dapr_runtime_service_invocation_res_sent_total", {"dst_app_id": "caller", "status": "200"}, 1),
        ("dapr_runtime_component_init_total", {"component": "bindings.localstorage"}, 1),
        ("dapr_runtime_component_loaded", {}, 3),
        ("dapr_resiliency_loaded", {"name": "res", "namespace": ""}, 1),
        ("dapr_resiliency_count", _policy("timeout"), 1),
        ("dapr_resiliency_count", _policy("retry"), 1),
        ("dapr_resiliency_count", _policy("circuitbreaker", "closed"), 1),
        ("dapr_resiliency_activations_total", _policy("circuitbreaker", "open"), 1),
        ("dapr_resiliency_cb_state", _policy("circuitbreaker", "open"), 1),
        ("dapr_resiliency_cb_state", _policy("circuitbreaker", "closed"), 0),
        ("mesh_events_dead_lettered_total", {"component": "pubsub", "topic": "bad"}, 1),
    ]
    for name, labels, value in expected:
        assert found[name].get(labelled(**labels)) == value, (name, labels, found[name])
    assert found["dapr_http_healthprobes_completed_count"][labelled(status="200")] >= 1
    rpc = "/dapr.proto.runtime.v1.Dapr/GetMetadata"
    asked = labelled(grpc_server_method=rpc, grpc_server_status="OK")
    assert found["dapr_grpc_io_server_completed_rpcs"] == {asked: 1}
    assert found["process_resident_memory_bytes"][frozenset()] > 0
    sent = labelled(dst_app_id="app", type="unary")
    assert other["dapr_runtime_service_invocation_req_sent_total"] == {sent: 1}
    assert other["dapr_runtime_service_invocation_res_recv_latency_ms_count"] == {
        labelled(src_app_id="app", status="200"): 1
    }


def _all_well(got: Got, request: web.BaseRequest) -> web.Response:
    statuses = [{"entryId": entry["entryId"], "status": "SUCCESS"} for entry in got.json["entries"]]
    return web.json_response({"statuses": statuses})


def _as_dicts(series: Mapping[frozenset[tuple[str, str]], float]) -> list[tuple[dict[str, str], float]]:
    return [(dict(labels), value) for labels, value in series.items()]


def _state(operation: str) -> dict[str, str]:
    return {"component": "statestore", "namespace": "", "operation": operation}


def _policy(policy: str, status: str = "") -> dict[str, str]:
    target = {"flow_direction": "outbound", "target": "app_nobody"}
    return {"name": "res", "namespace": "", "policy": policy, "status": status, **target}


@pytest.mark.parametrize(
    ("http", "labels"),
    [
        ({}, [("GET", "/v1.0/state/statestore/k"), ("DELETE", "/v1.0/state/statestore/k")]),
        ({"pathMatching": ["/v1.0/state/{store}/{key}"]}, [("GET", "/v1.0/state/{store}/{key}")] * 2),
        ({"increasedCardinality": False}, [("", "")] * 2),
        ({"increasedCardinality": False, "pathMatching": ["/v1.0/healthz"]}, [("GET", ""), ("DELETE", "")]),
        ({"excludeVerbs": True}, [("", "/v1.0/state/statestore/k")] * 2),
    ],
)
async def test_labels_of_requests(
    http: dict[str, object], labels: list[tuple[str, str]], memory: Backbone, tmp_path: Path
) -> None:
    """As ``spec.metrics.http`` says; answers have a count of their own only with all labels."""
    async with gateway(memory, tmp_path, ready=False, **configuration(tmp_path, {"http": http})) as node:
        await node.get("/v1.0/state/statestore/k")
        await node.request("DELETE", "/v1.0/state/statestore/k")
        found = await scraped(node)
    told = {(each["method"], each["path"]) for each, _ in _as_dicts(found["dapr_http_server_request_count"])}
    verb = {"GET", "DELETE"}
    assert {(method, path) for method, path in told} == {
        (labels[0][0], labels[0][1]),
        ("DELETE" if labels[0][0] in verb else labels[1][0], labels[1][1]),
    }
    assert ("dapr_http_server_response_count" in found) is http.get("increasedCardinality", True)


async def test_a_configuration_has_a_say(memory: Backbone, tmp_path: Path) -> None:
    """Rules change labels, buckets are as told, and errors that clients are told are counted by their codes."""
    metrics = {
        "recordErrorCodes": True,
        "latencyDistributionBuckets": [5, 60000],
        "rules": [
            {
                "name": "dapr_component_pubsub_egress_count",
                "labels": [{"name": "topic", "regex": {"orders-$1": "orders-([a-z])[0-9]*"}}],
            }
        ],
    }
    async with gateway(memory, tmp_path, ready=False, **configuration(tmp_path, metrics)) as node:
        for topic in ("orders-a1", "orders-a2", "other"):
            await node.post(f"/v1.0/publish/pubsub/{topic}", b"1")
        assert (await node.get("/v1.0/state/nostore/k")).status == 400
        found = await scraped(node)
    egress = {each["topic"]: count for each, count in _as_dicts(found["dapr_component_pubsub_egress_count"])}
    assert egress == {"orders-a": 2, "other": 1}
    bounds = {each["le"] for each, _ in _as_dicts(found["dapr_component_pubsub_egress_latencies_bucket"])}
    assert bounds == {"5", "60000", "+Inf"}
    assert found["dapr_error_code_total"] == {
        labelled(error_code="ERR_STATE_STORE_NOT_FOUND", category="state"): 1,
    }


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("br, GZIP; q=0.5", True),
        ("gzip;q=0, *", False),
        ("x-gzip", False),
        ("", False),
    ],
)
async def test_packed_for_who_takes_it(memory: Backbone, tmp_path: Path, accepted: str, packed: bool) -> None:
    """What comes out of it is what others get within the same second."""
    async with gateway(memory, tmp_path, ready=False, **ON) as node:
        url = f"http://127.0.0.1:{node.gateway.metrics_port}/metrics"

        async def same() -> None:
            async with node.session.get(url) as response:
                plain = await response.read()
            async with node.session.get(url, headers={"Accept-Encoding": accepted}) as response:
                assert response.headers["Vary"] == "Accept-Encoding"
                assert response.headers.get("Content-Encoding") == ("gzip" if packed else None)
                body = await response.read()
            assert (gzip.decompress(body) if packed else body) == plain

        await eventually(same)


async def test_there_may_be_none(memory: Backbone, tmp_path: Path) -> None:
    async with gateway(memory, tmp_path, ready=False, **configuration(tmp_path, {"enabled": False})) as node:
        assert node.gateway.metrics_port == 0


async def test_a_port_that_is_taken(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that was asked for is an error; the usual one gives way to another, and that is said."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}, for metrics: .*--metrics-port"):
            async with gateway(memory, tmp_path, ready=False, metrics=True, metrics_port=port):
                pass
    with caplog.at_level(logging.INFO):
        async with (
            gateway(memory, tmp_path, ready=False, metrics=True) as one,
            gateway(memory, tmp_path, app_id="two", ready=False, metrics=True) as two,
        ):
            ports = {one.gateway.metrics_port, two.gateway.metrics_port}
            assert len(ports) == 2
            await scraped(two, app_id="two")
    assert any(f"{METRICS_PORTS[0]} is taken" in each.getMessage() for each in caplog.records)


async def test_bytes_of_what_streams(memory: Backbone, app: App, tmp_path: Path) -> None:
    """Without a length, both ways."""

    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for part in request.content.iter_any():
            await response.write(part)
        return response

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 10_000

    app.streams["/echo"] = echo
    async with gateway(memory, tmp_path, app=app, **ON) as node:
        assert len((await node.request("POST", "/v1.0/invoke/app/method/echo", None, parts())).body) == 100_000
        found = await scraped(node)
    for way in ("request", "response"):
        assert list(found[f"dapr_http_server_{way}_bytes_sum"].values()) == [100_000]


async def test_only_reading(memory: Backbone, tmp_path: Path) -> None:
    async with gateway(memory, tmp_path, ready=False, **ON) as node:
        url = f"http://127.0.0.1:{node.gateway.metrics_port}/metrics"
        async with node.session.post(url) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


async def test_silent_clients_keep_nobody_out(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest of too many is closed for one more, and all that send no header are, in the end."""
    monkeypatch.setattr("gateway.http.scraping.MAX_CONNECTIONS", 3)
    monkeypatch.setattr("gateway.http.server.HEADER_SECONDS", 3600.0)
    async with gateway(memory, tmp_path, ready=False, **ON) as node, asyncio.timeout(60):
        port = node.gateway.metrics_port
        async with asyncio.TaskGroup() as tasks:  # At once: what is being closed is none of the three that remain.
            opening = [tasks.create_task(asyncio.open_connection("127.0.0.1", port)) for _ in range(20)]
        silent = [each.result() for each in opening]
        assert await scraped(node)
        for at in range(18):
            assert await silent[at][0].read() == b""
        monkeypatch.setattr("gateway.http.server.HEADER_SECONDS", 0.2)
        silent.append(await asyncio.open_connection("127.0.0.1", port))
        assert await silent[-1][0].read() == b""
        for _, writer in silent:
            writer.close()


async def test_many_who_ask_are_told_the_same(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text is made anew when it is old."""
    async with gateway(memory, tmp_path, ready=False, **ON) as node:
        for kept, expected in ((3600.0, 1), (0.0, 2)):
            monkeypatch.setattr("gateway.metrics.endpoint.KEPT_SECONDS", kept)
            texts = []
            for _ in range(2):
                async with node.session.get(f"http://127.0.0.1:{node.gateway.metrics_port}/") as answer:
                    texts.append(await answer.text())
                await node.get("/v1.0/metadata")
            assert len(set(texts)) == expected


@pytest.mark.costly
async def test_what_a_subscription_has_before_it(backbone: Backbone, tmp_path: Path) -> None:
    """As metrics and in metadata: nothing, what waits or is taken, and how old that is."""
    go_on = asyncio.Event()

    async def hang(got: Got, request: web.BaseRequest) -> web.Response:
        await go_on.wait()
        return web.Response()

    subscriptions = [{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]
    async with App(subscriptions) as app, gateway(backbone, tmp_path, app=app, **ON) as node:
        app.answers["/t"] = hang
        for _ in range(3):
            assert (await node.post("/v1.0/publish/pubsub/t", b"1")).status == 204
        labels = labelled(component="pubsub", topic="t")

        async def is_told(count: int, *, done: int) -> None:
            found = await scraped(node)
            waiting, taken = (found[f"mesh_subscription_{name}"][labels] for name in ("waiting", "taken"))
            assert waiting + taken == count
            assert (found["mesh_subscription_oldest_seconds"][labels] > 0) is (count > 0)
            [told] = (await node.get("/v1.0/metadata")).json["backlogs"]
            assert (told["pubsubname"], told["topic"], told["deadLetters"]) == ("pubsub", "t", 0)
            assert told["waiting"] + told["taken"] == count
            assert told["attempts"] == {"success": done, "retry": 0, "drop": 0}

        await eventually(partial(is_told, 3, done=0), within=40)
        go_on.set()
        await eventually(partial(is_told, 0, done=3), within=40)


async def test_an_application_on_grpc(memory: Backbone, tmp_path: Path) -> None:
    """Its calls and probes are told under the names that are those of gRPC, and none as calls of HTTP."""
    health = HealthCheck(interval=0.05, timeout=2.0)
    settings = {"app_protocol": "grpc", "app_health": health, **ON}
    app = GRPCApp()
    app.always("HealthCheck", message("HealthCheckResponse")())
    async with app, gateway(memory, tmp_path, app=app.port, **settings) as node:
        app.answers["OnInvoke"] = invoked(b"1")
        assert (await node.get("/v1.0/invoke/app/method/x")).status == 200
        app.answers["OnInvoke"] = fail("INVALID_ARGUMENT")
        assert (await node.get("/v1.0/invoke/app/method/x")).status == 400
        found = await scraped(node)
    path = "/dapr.proto.runtime.v1.AppCallback/OnInvoke"
    calls = found["dapr_grpc_io_client_completed_rpcs"]
    for status in ("OK", "InvalidArgument"):
        assert calls[labelled(grpc_client_method=path, grpc_client_status=status)] == 1
    assert found["dapr_grpc_io_healthprobes_completed_count"][labelled(grpc_client_status="OK")] >= 1
    assert not [name for name in found if name.startswith(("dapr_http_client", "dapr_http_healthprobes"))]


async def test_input_bindings(memory: Backbone, tmp_path: Path) -> None:
    """Each attempt to hand an event over counts, by whether it was taken."""
    resources = DEFAULTS + component("tick", "bindings.cron", schedule="@every 1s")
    async with App() as app, gateway(memory, tmp_path, app=app, resources=resources, **ON) as node:
        app.answer("/tick", 200)
        labels = labelled(component="tick", namespace="", success="true")

        async def told() -> None:
            found = await scraped(node)
            assert found.get("dapr_component_input_binding_count", {}).get(labels, 0) >= 1

        await eventually(told)


async def test_bodies_of_requests_are_measured_as_they_came(memory: Backbone, tmp_path: Path) -> None:
    """Also those that say no length before."""

    async def parts() -> AsyncIterator[bytes]:
        for part in (b'[{"key":"k",', b'"value":1}]'):
            yield part

    state = "/v1.0/state/statestore"
    async with gateway(memory, tmp_path, ready=False, **ON) as node:
        async with node.session.post(f"{node.url}{state}", data=parts()) as answer:
            assert answer.status == 204
        calling = HTTP2Client("127.0.0.1", node.gateway.port)
        async with calling as http2, http2.call("POST", state, [], parts()) as told:
            assert told.status == 204
        found = await scraped(node)
    assert found["dapr_http_server_request_bytes_sum"][labelled()] == 2 * len(b'[{"key":"k","value":1}]')
