"""Spans by OTLP to a real OpenTelemetry Collector, read from the file that it writes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.http.harness import App, Backbone, Node, gateway, yaml
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.otel_collector_server import OTelCollector, needs_otel_collector, strings

grpc.aio.init_grpc_aio()
pytestmark = [pytest.mark.usefixtures("collector_there"), pytest.mark.costly]
PROTOCOLS = ("grpc", "http")
TOKEN = "t0ken-of-the-collector"


@pytest.fixture
def collector_there() -> None:
    needs_otel_collector()


def by_file(tmp_path: Path, where: str, protocol: str, **more: object) -> tuple[Path, ...]:
    """Write a Configuration that sends every span there."""
    otel = {"endpointAddress": where, "protocol": protocol, "isSecure": False, **more}
    file = tmp_path / "tracing.yaml"
    file.write_text(yaml("Configuration", "c", {"tracing": {"samplingRate": "1", "otel": otel}}))
    return (file,)


async def call(node: Node, number: int) -> str:
    """Make a call that is a trace of its own, and give its id."""
    trace_id = f"{number:032x}"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    assert (await node.request("GET", "/v1.0/invoke/app/method/work", headers)).status == 200
    return trace_id


async def written(collector: OTelCollector, traces: Sequence[str]) -> list[dict[str, Any]]:
    """Wait for whole traces, the span of the caller and that of the callee; give what is in the file."""

    def there() -> list[dict[str, Any]]:
        found = collector.spans()
        kinds = {(each["traceId"], each["kind"]) for each in found}
        missing = {(trace, kind) for trace in traces for kind in (2, 3)} - kinds
        assert not missing, (missing, collector.output())
        return found

    return await eventually(there, within=40)


def counted(node: Node) -> Mapping[str, int]:
    """Tell what became of the spans."""
    counts = node.gateway._runtime.counters.snapshot()
    return {outcome: counts.get(("spans", "otlp", outcome), 0) for outcome in ("sent", "failed", "left out")}


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_by_the_environment(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, compression: str
) -> None:
    """With TLS of an own authority, a header that it asks for, compressed or not, under the names of the variables."""
    authority = Authority(tmp_path / "ca")
    own = authority.issue("collector")
    tls = {"cert_file": str(own.certificate), "key_file": str(own.key)}
    file = tmp_path / "sampling.yaml"
    file.write_text(yaml("Configuration", "c", {"tracing": {"samplingRate": "1"}}))
    only = ["gzip"] if compression == "gzip" else [""]
    async with (
        App() as app,
        OTelCollector(tmp_path / "collector", token=TOKEN, tls=tls, http_encodings=only) as collector,
    ):
        variables = {
            "ENDPOINT": f"https://{collector.place(protocol)}",
            "PROTOCOL": {"grpc": "grpc", "http": "http/protobuf"}[protocol],
            "HEADERS": f"authorization=Bearer%20{TOKEN}",
            "COMPRESSION": compression,
            "CERTIFICATE": str(authority.path),
        }
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test%20one,service.name=other")
        async with gateway(memory, tmp_path, app=app, configuration_files=(file,)) as node:
            spans = await written(collector, [await call(node, 1)])
    resource = strings(collector.batches()[0]["resource"]["attributes"])
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("named", "test one")
    client, server = sorted(spans, key=lambda each: -each["kind"])
    assert (client["name"], client["parentSpanId"]) == ("CallLocal/app/work", "b7ad6b7169203331")
    assert (server["name"], server["parentSpanId"]) == ("CallLocal/app/work", client["spanId"])
    assert strings(client["attributes"])["dapr.protocol"] == "http"
    assert int(client["startTimeUnixNano"]) <= int(server["startTimeUnixNano"]) <= int(server["endTimeUnixNano"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_restart(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str) -> None:
    """What it took is whole; what was lost meanwhile is counted and told once; afterwards it takes spans again."""
    caplog.set_level("INFO")
    async with App() as app, OTelCollector(tmp_path / "collector") as collector:
        files = by_file(tmp_path, collector.place(protocol), protocol, timeout="1s")
        async with gateway(memory, tmp_path, app=app, configuration_files=files) as node:
            before = [await call(node, number) for number in range(1, 21)]
            await written(collector, before)
            assert counted(node) == {"sent": 40, "failed": 0, "left out": 0}
            await collector.stop()
            for failed in (2, 4):
                await call(node, 100 + failed)

                def lost(count: int = failed) -> None:
                    assert counted(node)["failed"] == count

                await eventually(lost, within=40)
            await collector.start()
            after: list[str] = []

            async def taken() -> None:  # What goes out while a client waits to connect again is lost.
                after.append(await call(node, 1000 + len(after)))
                await asyncio.sleep(0.05)
                assert "takes spans again" in caplog.text, collector.output()

            await eventually(taken, within=60)
            last = await call(node, 5000)
            spans = await written(collector, [*before, last])
    assert {each["traceId"] for each in spans} <= {*before, *after, last}
    assert len({each["spanId"] for each in spans}) == len(spans)
    told = [each.getMessage() for each in caplog.records if each.name == "gateway.export.queue"]
    assert len(told) == 2, told
    assert "spans are lost" in told[0]
    assert "refused" in told[0], told
    assert told[1].endswith("takes spans again")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_token_that_it_refuses(
    memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    """It is told once, with what the collector answered and without the token; calls are answered."""
    async with App() as app, OTelCollector(tmp_path / "collector", token=TOKEN) as collector:
        headers = [{"name": "Authorization", "value": "Bearer wrong-one"}]
        files = by_file(tmp_path, collector.place(protocol), protocol, headers=headers)
        async with gateway(memory, tmp_path, app=app, configuration_files=files) as node:
            for failed in (2, 4):
                await call(node, failed)

                def refused(count: int = failed) -> None:
                    assert counted(node) == {"sent": 0, "failed": count, "left out": 0}

                await eventually(refused, within=40)
        assert collector.spans() == []
    [told] = [each.getMessage() for each in caplog.records if "spans are lost" in each.getMessage()]
    assert {"grpc": "UNAUTHENTICATED", "http": "401"}[protocol] in told
    assert "wrong-one" not in caplog.text
