"""A span as a value: what is told of one hop of a traced request, once it is over, and only where it is sampled.

Who makes a span asks `mesh.telemetry.Tracing` for its ``traceparent``, which is all that an unsampled one costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, Self

from mesh.errors import MeshError

__all__ = ["Begun", "Sink", "Span", "SpanKind", "Value"]

MAX_ERROR = 500
MAX_TEXT = 1024
"""Characters of a name, and of an attribute: callers choose them, and many spans may wait."""

Value = str | int | bool


class SpanKind(StrEnum):
    """Which side of a hop it is."""

    CLIENT = "CLIENT"
    SERVER = "SERVER"
    PRODUCER = "PRODUCER"


class Span(NamedTuple):
    """One that is over.

    Attributes:
        name: What was done.
        kind: At which side.
        trace_id: 32 hexadecimal digits.
        span_id: 16 of them.
        parent_id: Of the span it is a child of; empty for the first of a trace.
        tracestate: What came with the trace.
        started: Unix time in nanoseconds.
        ended: The same.
        attributes: By the names of the semantic conventions, and the reference's own.
        error: Why it failed; empty when it did not.
        links: The ``traceparent`` of each span that it follows from without being its child.
    """

    name: str
    kind: SpanKind
    trace_id: str
    span_id: str
    parent_id: str
    tracestate: str
    started: int
    ended: int
    attributes: Mapping[str, Value]
    error: str
    links: tuple[str, ...] = ()


Sink = Callable[[Span], None]


class Begun:
    """A sampled span that is not over yet; as a context manager it ends, and is told.

    Attributes:
        name: What is done; may become more exact.
        traceparent: Its own.
        attributes: To be added to.
        error: Why it fails, where no exception says so.
    """

    __slots__ = (
        "_kind",
        "_links",
        "_parent",
        "_sink",
        "_started",
        "_state",
        "attributes",
        "error",
        "name",
        "traceparent",
    )

    def __init__(
        self,
        sink: Sink,
        traceparent: str,
        parent: str | None,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Value],
        *,
        tracestate: str = "",
        links: tuple[str, ...] = (),
        started: int | None = None,
    ) -> None:
        """Begin now, unless it was ``started`` before; see `Span`."""
        self._sink, self._parent, self._kind = sink, parent, kind
        self._state, self._links = tracestate, links
        self.name = name
        self.traceparent = traceparent
        self.attributes: dict[str, Value] = dict(attributes)
        self.error = ""
        self._started = time.time_ns() if started is None else started

    def __enter__(self) -> Self:
        """Go on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and tell of it."""
        if error is not None and not self.error:
            # An adapter's own text may hold a secret.
            self.error = f"{error.code}: {error}" if isinstance(error, MeshError) else type(error).__name__
        self.end()

    def end(self) -> None:
        """Tell of it."""
        _, trace_id, span_id, _ = self.traceparent.split("-", 3)
        self._sink(
            Span(
                _kept(self.name),
                self._kind,
                trace_id,
                span_id,
                self._parent[36:52] if self._parent else "",
                self._state,
                self._started,
                time.time_ns(),
                {key: _kept(value) if isinstance(value, str) else value for key, value in self.attributes.items()},
                _kept(self.error[:MAX_ERROR]),
                self._links,
            )
        )


def _kept(text: str) -> str:
    """Cut a text, and write what is no Unicode, as bytes of a header may be, so that it can be sent."""
    if len(text) <= MAX_TEXT and text.isascii():
        return text
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()
