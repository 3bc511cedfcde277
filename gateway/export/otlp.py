"""Spans by OTLP, over HTTP and gRPC: OpenTelemetry's own exporters, each in a thread of its own, for they block.

Only a gateway that has such a collector loads this, and OpenTelemetry with it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHTTP
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gateway.export.queue import ExportError
from gateway.export.targets import OTLP
from gateway.export.zipkin import SCOPE
from mesh.spans import Span

__all__ = ["OTLPExporter", "readable"]

TOLD_SECONDS = 1.0  # For the library to say why, when its own limit is over.
_SCOPE = InstrumentationScope(SCOPE)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_LIBRARY = logging.getLogger("opentelemetry.exporter")
_LIBRARY.addHandler(logging.NullHandler())  # Threads that outlive us would else be heard on the standard error.
logging.getLogger("opentelemetry.util.re").disabled = True  # It tells of a malformed header with its value.
_SPARING = [f"{_LIBRARY.name}.otlp.proto.{each}" for each in ("grpc.exporter", "http.trace_exporter")]


class _Said(logging.Handler):
    """Keeps what the library says of a failure: it gives no reason, it logs one."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


class _Session(requests.Session):
    """Keeps why the collector was not reached, and uses the exporter's certificates.

    The library logs no more than that it was in vain. ``REQUESTS_CA_BUNDLE`` would go before ``session.verify``.
    """

    why = ""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        self.why = ""  # Of a batch that is tried again, the last reason counts.
        try:
            return super().request(*args, **kwargs)
        except requests.exceptions.InvalidHeader:
            self.why = "a header cannot be sent"
            raise
        except ValueError as error:  # As that one, they tell what they were given: URLs, values of headers.
            self.why = type(error).__name__
            raise
        except requests.RequestException as error:
            cause = error.args[0] if error.args else error
            self.why = str(getattr(cause, "reason", cause))  # Around it is the URL, whose query may hold a secret.
            raise

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        if verify is None and isinstance(self.verify, str):
            verify = self.verify
        return super().merge_environment_settings(url, proxies, stream, verify, cert)


class OTLPExporter:
    """Sends spans to a collector."""

    name = "otlp"

    def __init__(self, target: OTLP, resource: Mapping[str, str]) -> None:
        """Prepare; nothing is connected."""
        self.where = target.where
        self.seconds = target.timeout + TOLD_SECONDS
        self._target = target
        self._resource = Resource(dict(resource))
        self._said = _Said()
        self._session = _Session()
        self._exporter = _exporter(target, self._session)

    async def __aenter__(self) -> OTLPExporter:
        """Take what the library says, each time that it says it."""
        for name in _SPARING:  # The filter there drops what is like the line before, and with it a new reason.
            logging.getLogger(name).filters.clear()
        _LIBRARY.addHandler(self._said)
        _LIBRARY.propagate = False
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Let go; a request that still waits ends with the process."""
        _LIBRARY.removeHandler(self._said)
        threading.Thread(target=self._exporter.shutdown, name="otlp-shutdown", daemon=True).start()

    async def send(self, spans: Sequence[Span]) -> None:
        """Send a batch; raises `ExportError`."""
        batch = [readable(each, self._resource) for each in spans]
        self._said.text = self._session.why = ""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[object] = loop.create_future()

        def tell(result: object) -> None:
            if not done.done():
                done.set_result(result)

        def export() -> None:
            result: object
            try:
                result = self._exporter.export(batch)
            except Exception as error:  # noqa: BLE001 - the library's own, which is told to who waits
                result = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell, result)

        # None of an executor: such threads are waited for at the end of the process.
        threading.Thread(target=export, name="otlp-export", daemon=True).start()
        result = await done
        if result is not SpanExportResult.SUCCESS:
            said = type(result).__name__ if isinstance(result, Exception) else self._session.why or self._said.text
            raise ExportError(" ".join(said.split())[:300] or "it did not say why")


def _exporter(target: OTLP, session: requests.Session) -> SpanExporter:
    headers: dict[str, Any] = dict(target.headers)
    if target.protocol == "http":
        compression = Compression.Gzip if target.gzip else Compression.NoCompression
        return OverHTTP(
            endpoint=target.endpoint, headers=headers, timeout=target.timeout, compression=compression, session=session
        )
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as over_grpc  # Loads grpcio.

    given = {name.lower(): value for name, value in headers.items()}
    compressions = over_grpc.Compression  # type: ignore[attr-defined]  # Of its argument; it names it nowhere else.
    compression = compressions.Gzip if target.gzip else compressions.NoCompression
    return over_grpc.OTLPSpanExporter(
        endpoint=target.endpoint,
        insecure=target.insecure,
        headers=given,
        timeout=target.timeout,
        compression=compression,
    )


def _context(trace_id: str, span_id: str, state: str = "") -> SpanContext:
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), True, _SAMPLED, TraceState.from_header([state]) if state else TraceState()
    )


def readable(span: Span, resource: Resource) -> ReadableSpan:
    """Write a span as the library's."""
    status = Status(StatusCode.ERROR, span.error) if span.error else Status()
    links = [each.split("-") for each in span.links]
    return ReadableSpan(
        span.name,
        _context(span.trace_id, span.span_id, span.tracestate),
        _context(span.trace_id, span.parent_id) if span.parent_id else None,
        resource,
        span.attributes,
        kind=SpanKind[span.kind.name],
        links=[Link(_context(trace_id, span_id)) for _, trace_id, span_id, *_ in links],
        status=status,
        start_time=span.started,
        end_time=span.ended,
        instrumentation_scope=_SCOPE,
    )
