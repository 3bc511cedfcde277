"""Names of spans, metrics and log events in one place, trace context, and the counters themselves.

Source: W3C Trace Context level 1, sections 3.2 and 3.3; W3C Baggage sections 3.3.1 and 3.3.2.
"""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Protocol

from mesh.spans import Begun, Sink, SpanKind, Value

__all__ = [
    "ACCESS",
    "ACTOR_TURNS",
    "ANSWERED_BY",
    "APPLICATION_CALLED",
    "ARRIVALS",
    "BAGGAGE",
    "BATCHES",
    "BRIDGED",
    "CANCELLED",
    "COMPONENTS_OPENED",
    "CURRENT",
    "Counters",
    "EVENTS_DEAD_LETTERED",
    "EVENTS_DELIVERED",
    "FAILED",
    "NOT_TRACED",
    "OK",
    "OPERATIONS",
    "OTHER",
    "Observer",
    "POLICIES_ACTIVATED",
    "POLICIES_APPLIED",
    "PROOFS_ASKED",
    "RESILIENCIES_LOADED",
    "SIGHTS",
    "Tracing",
    "UNPROVEN",
    "UNTOLD",
    "WORKFLOW_ACCESS",
    "WORKFLOW_ACTIVITIES",
    "WORKFLOW_ACTIVITY_RUNS",
    "WORKFLOW_BEGINNINGS",
    "WORKFLOW_EXECUTIONS",
    "WORKFLOW_TURNS",
    "both",
    "child_span",
    "is_baggage",
    "is_traceparent",
    "is_tracestate",
    "nobody",
    "trace_bin",
    "trace_header",
    "unusable",
    "who_answered",
    "within",
]

# What is observed, by name; labels follow in the order given, and behind a semicolon the details.
OPERATIONS = "operations"  # block, method, target, outcome; what the method tells of it
ARRIVALS = "arrivals"  # what; of what; outcome; of a call its caller and the status; only for an observer of its own
BATCHES = "batches"  # component, topic; handed to the application, ``times`` is the number of events
BRIDGED = "bridged"  # call, durable, outcome or event; from and to which cluster; application or topic; outcome
BROKER_PUBLISHED = "broker_published"  # broker (nats/orders: of a component), kind of address, outcome; likewise
APPLICATION_CALLED = "application_called"  # verb, path, status, or outcome as of an operation; likewise
COMPONENTS_OPENED = "components_opened"  # name, type, outcome; likewise
RESILIENCIES_LOADED = "resiliencies_loaded"  # name; likewise
POLICIES_APPLIED = "policies_applied"  # what is called, of what, Resiliency, policy, state of a breaker; likewise
POLICIES_ACTIVATED = "policies_activated"  # the same, when one begins to act; likewise
EVENTS_PUBLISHED = "events_published"  # component, topic
EVENTS_DELIVERED = "events_delivered"  # component, topic, outcome: success, retry, drop
EVENTS_DEAD_LETTERED = "events_dead_lettered"  # component, topic
EVENTS_DROPPED = "events_dropped"  # component, topic
EVENTS_DUPLICATE = "events_duplicate"  # component, topic
EVENTS_EXPIRED = "events_expired"  # component, topic
DURABLE_CALLS = "durable_calls"  # app id, outcome
INVOCATIONS_WAITED = "invocations_waited"  # app id
ACCESS = "access"  # what decided (app: its policy; global); allowed or blocked; namespace and trust domain if proven
ACTOR_TURNS = "actor_turns"  # type; method, reminder, timer or deactivation; outcome as of an operation
PROOFS_ASKED = "proofs_asked"  # asked: a caller was, here; downgrade: a sealing one was, by who proves nothing
UNPROVEN = "unproven"  # request, answer, told, event, call or outcome; missing, invalid, scope, replayed or crowded
WORKFLOW_EXECUTIONS = "workflow_executions"  # name; success or failed; when one has ended, since its first turn
WORKFLOW_BEGINNINGS = "workflow_beginnings"  # name; of the first turn, since it was due
WORKFLOW_TURNS = "workflow_turns"  # name; success, or recoverable: handed out again
WORKFLOW_ACTIVITIES = "workflow_activities"  # name; success or failed; since it was asked for
WORKFLOW_ACTIVITY_RUNS = "workflow_activity_runs"  # name; the same, or recoverable; since a worker was given it
WORKFLOW_ACCESS = "workflow_access"  # allowed or denied; caller; operation; workflow or activity
SIGHTS = "sights"  # asker: app id; outcome: told, left out (they came faster than they could be sent)
SPANS = "spans"  # exporter; outcome: sent, failed (not taken by the collector), left out (too many waited)

MAX_SERIES = 1000
MAX_LABEL = 200
OTHER = "(other)"

# What follows the flags is for versions to come: version 00 ends there.
# Outcomes of an operation, besides an error's code.
OK, CANCELLED, FAILED = "ok", "CANCELLED", "FAILED"

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:(?<!\A00.{53})-[!-~]*)?\Z"
)
_PRINTABLE = re.compile(r"[ -~]*\Z")
_KEY = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = r"(?:[!#-+.-:<-\[\]-~-]+[ \t]*)?"
_MEMBER = rf"[ \t]*{_KEY}[ \t]*=[ \t]*{_VALUE}(?:;[ \t]*{_KEY}[ \t]*(?:=[ \t]*{_VALUE})?)*"
_BAGGAGE = re.compile(rf"{_MEMBER}(?:,{_MEMBER})*\Z")
MAX_BAGGAGE_BYTES = 8192
_ODD = frozenset("13579bdf")
SAMPLED, NOT_SAMPLED = "01", "00"

BAGGAGE = "baggage"
CURRENT: ContextVar[str] = ContextVar("traceparent", default="")
"""The span within which this task works, for lines of the log."""
ANSWERED_BY: ContextVar[str] = ContextVar("answered_by", default="")
"""The middleware that gave the last answer in this task in the application's place, for lines of the log."""
UNTOLD: AbstractContextManager[None] = nullcontext()
"""In the place of a span that is not recorded."""


def who_answered(what: object) -> str:
    """Say what was answered, and by whom: the application, or a middleware that has not passed the request on."""
    by = ANSWERED_BY.get()
    return f"the middleware {by} answered {what}" if by else f"the application answered {what}"


def is_traceparent(value: str) -> bool:
    """Tell whether a header value is a valid ``traceparent``."""
    return _TRACEPARENT.match(value) is not None


def is_tracestate(value: str) -> bool:
    """Tell whether a header value can be a ``tracestate``: printable ASCII."""
    return _PRINTABLE.match(value) is not None


def is_baggage(value: str) -> bool:
    """Tell whether a header value is a ``baggage``: members ``key=value;property``, of no more than 8192 bytes."""
    return len(value) <= MAX_BAGGAGE_BYTES and _BAGGAGE.match(value) is not None


def unusable(headers: Mapping[str, str]) -> list[str]:
    """Name the headers of trace context that cannot be what they are called; W3C asks to leave those out.

    So it does with a ``tracestate`` that has no valid ``traceparent`` beside it: it is about another trace.
    """
    traced = is_traceparent(headers.get("traceparent", ""))
    return [
        name
        for name, valid in (
            ("traceparent", traced),
            ("tracestate", traced and is_tracestate(headers.get("tracestate", ""))),
            ("baggage", is_baggage(headers.get("baggage", ""))),
        )
        if name in headers and not valid
    ]


class Tracing:
    """Makes trace context, and begins the spans that are told of.

    Attributes:
        enabled: Whether any are made.
        sink: Is given each sampled span when it is over; None = nobody wants them.
    """

    __slots__ = ("_sample_below", "enabled", "sink")

    def __init__(self, sampling_ratio: float, sink: Sink | None = None) -> None:
        """Set the share of traces that begin here and are marked as sampled.

        Args:
            sampling_ratio: 0 switches tracing off; then nothing is generated.
            sink: Is given each sampled span.
        """
        self.sink = sink
        self.sample(sampling_ratio)

    def sample(self, sampling_ratio: float) -> None:
        """Set another share from here on."""
        self.enabled = sampling_ratio > 0
        self._sample_below = int(sampling_ratio * 2**32)

    def span(self, traceparent: str | None) -> str:
        """Give a new span's ``traceparent``: a child of the given one, or of a new trace.

        Returns:
            Empty when tracing is off and none was given.
        """
        if traceparent is not None and is_traceparent(traceparent):
            return child_span(traceparent) if self.enabled else traceparent
        if not self.enabled:
            return ""
        random = os.urandom(28)
        flags = SAMPLED if int.from_bytes(random[24:], "big") < self._sample_below else NOT_SAMPLED
        text = random.hex()
        return f"00-{text[:32]}-{text[32:48]}-{flags}"

    def records(self, traceparent: str | None) -> bool:
        """Tell whether what is done in a span, or below it, is told of."""
        return self.sink is not None and self.enabled and (traceparent or "")[54:55] in _ODD

    def begin(
        self,
        traceparent: str,
        parent: str | None,
        name: str,
        kind: SpanKind,
        attributes: Mapping[str, Value],
        *,
        tracestate: str = "",
        links: Sequence[str] = (),
    ) -> Begun:
        """Begin a span that is recorded, whose ``traceparent`` is there already."""
        assert self.sink is not None
        valid = parent if parent and is_traceparent(parent) else None
        return Begun(self.sink, traceparent, valid, name, kind, attributes, tracestate=tracestate, links=tuple(links))

    def served(
        self, parent: str | None, name: str, attributes: Mapping[str, Value], *, later: bool = False
    ) -> Begun | None:
        """Begin the span of who does what another one asked; None where that is not recorded.

        Args:
            parent: The asker's span.
            name: What is done.
            attributes: More about it.
            later: Whether the asker no longer waits: then it is a trace of its own with a link to the asker's.
        """
        if not self.records(parent) or parent is None or not is_traceparent(parent):
            return None
        if not later:
            return self.begin(child_span(parent), parent, name, SpanKind.SERVER, attributes)
        text = os.urandom(24).hex()
        own = f"00-{text[:32]}-{text[32:]}-{SAMPLED}"
        return self.begin(own, None, name, SpanKind.SERVER, attributes, links=(parent,))


def trace_header(headers: Sequence[tuple[str, str]]) -> str | None:
    """Find the ``traceparent`` among header fields."""
    return next((value for name, value in headers if name.lower() == "traceparent"), None)


def within(headers: Sequence[tuple[str, str]], traceparent: str) -> list[tuple[str, str]]:
    """Give header fields that name another span, in the forms in which they named one."""
    made = []
    for name, value in headers:
        lowered = name.lower()
        if lowered == "traceparent":
            made.append((name, traceparent))
        elif lowered == "grpc-trace-bin":
            made.append((name, trace_bin(traceparent)))
        else:
            made.append((name, value))
    return made


def trace_bin(traceparent: str) -> str:
    """Write a span as ``grpc-trace-bin``; empty for one that is none.

    Source: OpenCensus, BinaryEncoding: version, and then each field behind its number.
    """
    if not is_traceparent(traceparent):
        return ""
    _, trace, span, flags = (bytes.fromhex(part) for part in traceparent[:55].split("-"))
    return base64.b64encode(b"\0\0" + trace + b"\1" + span + b"\2" + flags).decode().rstrip("=")


def child_span(traceparent: str) -> str:
    """Give a child of a valid ``traceparent``: same trace and flags, a new span id.

    It is of version 00, so of a later one's only what that knows is kept: whether it is sampled.
    """
    if traceparent[:3] == "00-":
        return f"{traceparent[:36]}{os.urandom(8).hex()}{traceparent[52:]}"
    flags = SAMPLED if traceparent[54] in _ODD else NOT_SAMPLED
    return f"00{traceparent[2:36]}{os.urandom(8).hex()}-{flags}"


NOT_TRACED = Tracing(0.0)


class Observer(Protocol):
    """Is told what happens by pipelines and blocks, some of it for each operation: in arguments, not in a value."""

    def __call__(
        self,
        name: str,
        labels: tuple[str, ...],
        times: int = 1,
        seconds: float = 0.0,
        details: tuple[str, ...] = (),
    ) -> None:
        """Take note of something that happened.

        Args:
            name: One of the names above.
            labels: As the name's comment says.
            times: How often.
            seconds: How long it took; 0 where that is not measured.
            details: What more there is to tell; counters leave it out.
        """


def both(first: Observer, second: Observer) -> Observer:
    """Tell two observers."""

    def tell(
        name: str, labels: tuple[str, ...], times: int = 1, seconds: float = 0.0, details: tuple[str, ...] = ()
    ) -> None:
        first(name, labels, times, seconds, details)
        second(name, labels, times, seconds, details)

    return tell


def nobody(
    name: str, labels: tuple[str, ...], times: int = 1, seconds: float = 0.0, details: tuple[str, ...] = ()
) -> None:
    """Observe nothing."""


class Counters:
    """Counts of this node, by name and labels; an `Observer`.

    Labels come from outside, so each name has at most ``MAX_SERIES`` of them; what comes beyond is counted
    under the label ``OTHER``, and a long one by its beginning. Nothing is lost from the sums.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        self._counts: dict[tuple[str, ...], int] = {}
        self._series: Counter[str] = Counter()

    def __call__(
        self,
        name: str,
        labels: tuple[str, ...],
        times: int = 1,
        seconds: float = 0.0,
        details: tuple[str, ...] = (),
    ) -> None:
        """Count what happened."""
        counts, key = self._counts, (name, *labels)
        if key in counts:
            counts[key] += times
        else:
            self.add(name, *labels, by=times)

    def add(self, name: str, *labels: str, by: int = 1) -> None:
        """Count."""
        key = (name, *(each[:MAX_LABEL] for each in labels))
        try:
            self._counts[key] += by
        except KeyError:
            if self._series[name] >= MAX_SERIES:
                key = (name, *(OTHER for _ in labels))
            self._series[name] += 1
            self._counts[key] = self._counts.get(key, 0) + by

    def snapshot(self) -> Mapping[tuple[str, ...], int]:
        """Give all counts as of now."""
        return dict(self._counts)
