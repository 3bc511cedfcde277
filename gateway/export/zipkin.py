"""Spans in Zipkin's format, version 2, as JSON over HTTP.

Source: the OpenAPI document of Zipkin's API, version 2; OpenTelemetry, "Zipkin exporter", for what it has no field for.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from urllib.parse import unquote, urlsplit, urlunsplit

import orjson

from gateway.export.queue import SEND_SECONDS, ExportError
from gateway.http.application import HTTPApplication
from mesh.errors import MeshError
from mesh.spans import Span, SpanKind, Value

__all__ = ["PATH", "SCOPE", "ZipkinExporter", "encoded"]

PATH = "/api/v2/spans"
SCOPE = "dapr-diagnostics"  # As the reference has it, for queries that were made for its spans.


class ZipkinExporter:
    """Posts spans to Zipkin, or what takes its format."""

    name = "zipkin"
    seconds = SEND_SECONDS

    def __init__(self, endpoint: str, resource: Mapping[str, str]) -> None:
        """Prepare.

        Args:
            endpoint: A URL; without a path it is that of Zipkin.
            resource: What is told of this node, with ``service.name``.
        """
        parts = urlsplit(endpoint)
        path = parts.path if parts.path.strip("/") else PATH
        self._target = urlunsplit(("", "", path, parts.query, ""))
        login, _, place = parts.netloc.rpartition("@")
        base = f"{parts.scheme}://{place}"
        self.where = f"{base}{path}"
        self._headers = [("Content-Type", "application/json")]
        if login:
            self._headers.append(("Authorization", f"Basic {base64.b64encode(unquote(login).encode()).decode()}"))
        self._client = HTTPApplication(base, called="the collector")
        self._resource = resource

    async def __aenter__(self) -> ZipkinExporter:
        """Open the connection pool."""
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        await self._client.__aexit__(None, None, None)

    async def send(self, spans: Sequence[Span]) -> None:
        """Send a batch; raises `ExportError`."""
        body = orjson.dumps([encoded(each, self._resource) for each in spans])
        try:
            async with self._client.call("POST", self._target, self._headers, body) as response:
                if not 200 <= response.status < 300:
                    raise ExportError(f"it answered {response.status}")
        except MeshError as error:
            raise ExportError(str(error)) from error


def encoded(span: Span, resource: Mapping[str, str]) -> dict[str, object]:
    """Write a span as the members of its JSON object."""
    tags: dict[str, Value] = {**resource, "otel.scope.name": SCOPE, **span.attributes}
    if span.error:
        tags |= {"otel.status_code": "ERROR", "error": span.error}
    written: dict[str, object] = {
        "traceId": span.trace_id,
        "id": span.span_id,
        "name": span.name.lower(),
        "kind": span.kind.value,
        "timestamp": span.started // 1000,
        "duration": max(1, (span.ended - span.started) // 1000),
        "localEndpoint": {"serviceName": resource["service.name"]},
        "tags": {name: value if isinstance(value, str) else str(value).lower() for name, value in tags.items()},
    }
    if span.parent_id:
        written["parentId"] = span.parent_id
    if span.links:  # Zipkin has none: they are told, and not drawn.
        written["annotations"] = [{"timestamp": span.started // 1000, "value": f"link {each}"} for each in span.links]
    if span.kind is SpanKind.CLIENT and (peer := span.attributes.get("net.peer.name")):
        written["remoteEndpoint"] = {"serviceName": str(peer)}
    return written
