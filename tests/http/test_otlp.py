"""Spans by OTLP: what a collector is sent over HTTP and gRPC, read with the messages that OpenTelemetry publishes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from mesh.errors import ConfigError, MissingDependencyError
from tests.http.harness import DEFAULTS, App, Backbone, component, gateway, yaml
from tests.support.eventually import eventually

grpc.aio.init_grpc_aio()
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Got = tuple[dict[str, str], Any]


@asynccontextmanager
async def over_http(got: list[Got]) -> AsyncIterator[str]:
    """Take what comes to ``/v1/traces``."""

    async def take(request: web.BaseRequest) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.content.read())
        if request.path == "/v1/traces":
            got.append(({name.lower(): value for name, value in request.headers.items()}, message))
        return web.Response()

    runner = web.ServerRunner(web.Server(take, access_log=None), shutdown_timeout=0)  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@asynccontextmanager
async def over_grpc(got: list[Got]) -> AsyncIterator[str]:
    """Serve the method that exporters call."""

    async def export(message: Any, context: Any) -> Any:
        got.append((dict(context.invocation_metadata()), message))
        return ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    server = grpc.aio.server()
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


COLLECTORS = {"http": over_http, "grpc": over_grpc}


def spans(got: list[Got]) -> list[Any]:
    """Give the spans of all batches."""
    return [
        span
        for _, message in got
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def text_of(attributes: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in attributes if each.value.HasField("string_value")}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("said", ["by a file", "by the environment"])
async def test_what_is_sent(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, said: str
) -> None:
    """Spans, and who makes them; with the header fields and the secret of the file, or what the variables say."""
    got: list[Got] = []
    monkeypatch.setenv("COLLECTOR_KEY", "s3cret")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test%20one,service.name=other")
    async with App() as app, COLLECTORS[protocol](got) as where:
        app.answer("/work", 500)
        tracing: dict[str, object] = {"samplingRate": "1"}
        if said == "by a file":
            secret = {"name": "x-key", "secretKeyRef": {"name": "COLLECTOR_KEY"}}
            headers = [{"name": "x-plain", "value": "plain"}, secret]
            tracing["otel"] = {"endpointAddress": where, "protocol": protocol, "isSecure": False, "headers": headers}
        else:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{where}")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf" if protocol == "http" else "grpc")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-plain=wrong")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-plain=plain,x-key=s3cret")
            monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
        file = tmp_path / "tracing.yaml"
        file.write_text(yaml("Configuration", "c", {"tracing": tracing}))
        resources = DEFAULTS + component("secrets", "secretstores.local.env")
        async with gateway(memory, tmp_path, app=app, resources=resources, configuration_files=(file,)) as node:
            headers_ = {"traceparent": PARENT, "tracestate": "a=1"}
            assert (await node.request("GET", "/v1.0/invoke/app/method/work", headers_)).status == 500

            def there() -> list[Any]:
                assert len(spans(got)) == 2
                return sorted(spans(got), key=lambda each: each.kind)

            server, client = await eventually(there)
    fields, message = got[0]
    assert (fields["x-plain"], fields["x-key"]) == ("plain", "s3cret")
    resource = text_of(message.resource_spans[0].resource.attributes)
    assert resource["service.name"] == ("other" if said == "by a file" else "named")
    assert resource["deployment.environment.name"] == "test one"
    assert message.resource_spans[0].scope_spans[0].scope.name == "dapr-diagnostics"
    assert (client.name, client.kind, server.name, server.kind) == ("CallLocal/app/work", 3, "CallLocal/app/work", 2)
    assert (client.trace_id.hex(), client.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    assert (server.trace_id, server.parent_span_id) == (client.trace_id, client.span_id)
    assert client.trace_state == "a=1"
    assert (client.status.code, client.status.message) == (2, "Code(500): Internal Server Error")
    assert text_of(client.attributes)["dapr.status_code"] == "500"
    assert 0 < client.start_time_unix_nano <= server.start_time_unix_nano <= server.end_time_unix_nano


async def test_a_secret_that_no_header_can_hold(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused at start, by the place of its header, and not told."""
    monkeypatch.setenv("COLLECTOR_KEY", "s3cret\n")
    headers = [{"name": "x-plain", "value": "plain"}, {"name": "x-key", "secretKeyRef": {"name": "COLLECTOR_KEY"}}]
    file = tmp_path / "tracing.yaml"
    file.write_text(yaml("Configuration", "c", {"tracing": {"otel": {"endpointAddress": "c:1", "headers": headers}}}))
    resources = DEFAULTS + component("secrets", "secretstores.local.env")
    with pytest.raises(ConfigError) as raised:
        async with gateway(memory, tmp_path, resources=resources, configuration_files=(file,)):
            pass
    refusal = "the value of a header cannot hold the character U+000A"
    assert str(raised.value) == f"{file}: spec.tracing.otel.headers[1]: {refusal}"
    assert "s3cret" not in caplog.text


async def test_without_the_extra(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that asks for it is an error at start; variables may be meant for the application, so a warning."""
    monkeypatch.delitem(sys.modules, "gateway.export.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    file = tmp_path / "tracing.yaml"
    file.write_text(yaml("Configuration", "c", {"tracing": {"otel": {"endpointAddress": "127.0.0.1:4317"}}}))
    with pytest.raises(MissingDependencyError, match=r"pip install .*\[telemetry\]"):
        async with gateway(memory, tmp_path, configuration_files=(file,)):
            pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    async with gateway(memory, tmp_path) as node:
        assert (await node.get("/v1.0/healthz")).status == 204
    assert "OTEL_EXPORTER_OTLP_* have no effect" in caplog.text


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_a_collector_that_is_away(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """Calls are answered, and the gateway ends in its time; what was lost is told."""
    file = tmp_path / "tracing.yaml"
    otel = {"endpointAddress": "127.0.0.1:1", "protocol": protocol, "isSecure": False, "timeout": "500ms"}
    file.write_text(yaml("Configuration", "c", {"tracing": {"samplingRate": "1", "otel": otel}}))
    async with gateway(memory, tmp_path, configuration_files=(file,)) as node:
        assert (await node.get("/v1.0/metadata")).status == 200
        counts = node.gateway._runtime.counters

        def lost() -> None:
            assert counts.snapshot().get(("spans", "otlp", "failed")) == 1

        await eventually(lost)
    assert "spans are lost: " in caplog.text


async def test_a_collector_that_hangs_takes_nothing_of_the_time_to_drain(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is hosted has all of it, and is not said to have been released."""
    ended = asyncio.Event()

    async def hangs(request: web.BaseRequest) -> web.Response:
        await ended.wait()
        return web.Response()

    runner = web.ServerRunner(web.Server(hangs, access_log=None), shutdown_timeout=0)  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{(port := runner.addresses[0][1])}")
    file = tmp_path / "tracing.yaml"
    file.write_text(yaml("Configuration", "c", {"tracing": {"samplingRate": "1"}}))
    async with App() as app, gateway(memory, tmp_path, app=app, configuration_files=(file,), drain=5.0) as node:
        await node.get("/v1.0/invoke/app/method/work")
    ended.set()
    await runner.cleanup()
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert [each for each in told if "spans are lost" in each or "released" in each] == [
        f"spans are lost: http://127.0.0.1:{port}/v1/traces does not take them: the gateway ends"
    ]
