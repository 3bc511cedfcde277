"""What becomes of spans on their way out, whatever they hold and whoever takes them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from typing import Literal

import orjson
import pytest
from aiohttp import web

from gateway.export import queue
from gateway.export.otlp import OTLPExporter
from gateway.export.queue import ExportError, exporting
from gateway.export.targets import OTLP
from gateway.export.zipkin import ZipkinExporter, encoded
from mesh.spans import MAX_TEXT, Span, SpanKind
from mesh.telemetry import SPANS, Counters, Tracing
from tests.support.eventually import eventually

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Taking:
    """An exporter that does as it is told."""

    name, where, seconds = "test", "here", 10.0

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.got: list[Span] = []
        self.asked = asyncio.Event()
        self.holds = False

    async def send(self, spans: Sequence[Span]) -> None:
        self.asked.set()
        if self.holds:
            await asyncio.Event().wait()
        if self.failures:
            raise self.failures.pop(0)
        self.got += spans


def begin(tracing: Tracing, name: str = "x", **attributes: str) -> None:
    tracing.begin(PARENT, None, name, SpanKind.CLIENT, attributes).end()


def test_a_span_can_be_sent_whatever_it_holds() -> None:
    """Callers choose names and attributes: bytes that are no Unicode, and any number of them."""
    told: list[Span] = []
    tracing = Tracing(1.0, told.append)
    with tracing.begin(PARENT, None, "a\udcff" + "n" * 5000, SpanKind.CLIENT, {"url.full": "h\udcff" * 5000}) as begun:
        begun.error = "e\ud800"
    [span] = told
    assert len(span.name) == len(str(span.attributes["url.full"])) == MAX_TEXT
    assert orjson.dumps(encoded(span, {"service.name": "app"}))
    assert span.error == "e?"


async def test_a_batch_that_cannot_be_sent_ends_nothing() -> None:
    """Whatever the reason; it is counted."""
    exporter, counters, tracing = Taking(TypeError("odd"), ExportError("away")), Counters(), Tracing(1.0)
    async with exporting([exporter], tracing, counters, lambda: 5.0):
        for name in ("first", "second", "third"):
            begin(tracing, name)
            before = sum(counters.snapshot().values())

            def counted(before: int = before) -> None:
                assert sum(counters.snapshot().values()) > before

            await eventually(counted)
    assert [each.name for each in exporter.got] == ["third"]
    assert counters.snapshot() == {(SPANS, "test", "failed"): 2, (SPANS, "test", "sent"): 1}


async def test_a_batch_takes_as_long_as_its_exporter_says() -> None:
    exporter, counters, tracing = Taking(), Counters(), Tracing(1.0)
    exporter.holds, exporter.seconds = True, 0.01
    async with exporting([exporter], tracing, counters, lambda: 0.0):
        begin(tracing)

        def lost() -> None:
            assert counters.snapshot() == {(SPANS, "test", "failed"): 1}

        await eventually(lost)
    assert OTLPExporter(OTLP("http", "http://127.0.0.1:1/", True, {}, timeout=60.0), {}).seconds > 60.0


async def test_a_gateway_that_fails_sends_what_waits() -> None:
    exporter, counters, tracing = Taking(), Counters(), Tracing(1.0)
    with pytest.raises(RuntimeError, match="failed"):
        async with exporting([exporter], tracing, counters, lambda: 5.0):
            begin(tracing)
            raise RuntimeError("failed")
    assert counters.snapshot() == {(SPANS, "test", "sent"): 1}


async def test_what_is_on_its_way_at_the_end_is_sent_or_told() -> None:
    exporter, counters, tracing = Taking(), Counters(), Tracing(1.0)
    exporter.holds = True
    async with exporting([exporter], tracing, counters, lambda: 5.0):
        begin(tracing)
        await exporter.asked.wait()
        exporter.holds = False
    assert len(exporter.got) == 1
    exporter.holds = True
    async with exporting([exporter], tracing, counters, lambda: 0.05):
        exporter.asked.clear()
        begin(tracing)
        await exporter.asked.wait()
    assert counters.snapshot() == {(SPANS, "test", "sent"): 1, (SPANS, "test", "failed"): 1}


def test_where_spans_go_is_told_without_secrets() -> None:
    zipkin = ZipkinExporter("http://user:p4ss@zipkin:9411", {})
    assert "p4ss" not in zipkin.where
    assert "p4ss" not in vars(zipkin._client)["_base"]
    assert ("Authorization", "Basic dXNlcjpwNHNz") in zipkin._headers
    assert OTLP("http", "https://u:p@c/v1/traces?key=s", False, {}).where == "c/v1/traces"


async def test_an_end_is_bounded_whatever_time_there_is() -> None:
    """A collector that hangs has a moment; what it was not sent counts as failed."""
    exporter, counters, tracing = Taking(), Counters(), Tracing(1.0)
    exporter.holds = True
    async with asyncio.timeout(queue.FLUSH_SECONDS + 20):
        async with exporting([exporter], tracing, counters, lambda: math.inf):
            begin(tracing)
    assert counters.snapshot() == {(SPANS, "test", "failed"): 1}


@pytest.mark.parametrize(
    ("protocol", "value", "why"),
    [
        ("http", " s3cret", "a header cannot be sent"),
        ("http", "s3cret\n", "a header cannot be sent"),
        ("http", "s3cr\u20act", "UnicodeEncodeError"),
        ("grpc", "s3cret\n", "Invalid metadata"),
    ],
)
async def test_why_a_header_cannot_be_sent_is_told_without_it(
    protocol: Literal["http", "grpc"], value: str, why: str
) -> None:
    """The libraries quote it."""
    endpoint = "http://127.0.0.1:1/v1/traces" if protocol == "http" else "127.0.0.1:1"
    told: list[Span] = []
    begin(Tracing(1.0, told.append))
    async with OTLPExporter(OTLP(protocol, endpoint, True, {"x-key": value}), {}) as exporter:
        with pytest.raises(ExportError) as raised:
            await exporter.send(told)
    assert str(raised.value).endswith(why)
    assert "s3cr" not in str(raised.value)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_malformed_headers_of_the_environment_are_not_told(
    protocol: Literal["http", "grpc"], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library reads them itself, and would quote them."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "s3cret")
    async with OTLPExporter(OTLP(protocol, "127.0.0.1:1", True, {}), {}):
        pass
    assert caplog.text == ""


async def test_the_last_of_several_reasons_is_told() -> None:
    """A batch is tried again, and then the collector answers."""
    told: list[Span] = []
    begin(Tracing(1.0, told.append))
    tries = 0

    async def answer(request: web.BaseRequest) -> web.Response:
        nonlocal tries
        tries += 1
        if tries == 1:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=403)

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0)  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    target = OTLP("http", f"http://127.0.0.1:{runner.addresses[0][1]}/", True, {}, timeout=60.0)
    async with OTLPExporter(target, {}) as exporter:
        with pytest.raises(ExportError, match="403"):
            await exporter.send(told)
    assert tries == 2
    await runner.cleanup()


async def test_the_library_is_not_heard_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    """Its threads may outlive the exporter; the standard error is the log's alone."""
    async with OTLPExporter(OTLP("http", "http://127.0.0.1:1/v1/traces", True, {}), {}):
        pass
    logging.getLogger("opentelemetry.exporter.otlp").warning("Shutdown in progress, aborting retry.")
    assert capsys.readouterr().err == ""
