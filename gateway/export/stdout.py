"""Spans as lines of the log: ``spec.tracing.stdout``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from gateway.export.queue import SEND_SECONDS
from gateway.export.zipkin import encoded
from mesh.spans import Span

__all__ = ["LogExporter"]

logger = logging.getLogger("gateway.spans")


class LogExporter:
    """Writes a line for each span."""

    name = "stdout"
    where = "the log"
    seconds = SEND_SECONDS

    def __init__(self, resource: Mapping[str, str]) -> None:
        """Tell with each span what is told of this node."""
        self._resource = resource

    async def send(self, spans: Sequence[Span]) -> None:
        """Write them."""
        for span in spans:
            fields = {**encoded(span, self._resource), "trace_id": span.trace_id}
            del fields["traceId"]
            fields["name"], fields["tags"] = span.name, {name: str(value) for name, value in span.attributes.items()}
            if span.error:
                fields["error"] = span.error
            logger.info("span", extra={"fields": fields})
