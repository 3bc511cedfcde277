"""Trace context and counters."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.spans.context import trace_context
from mesh.telemetry import OTHER, Counters, Tracing, child_span, is_traceparent, unusable

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (TRACE, True),
        (TRACE[:-2] + "00", True),
        ("01" + TRACE[2:] + "-more", True),
        ("", False),
        ("ff" + TRACE[2:], False),
        (TRACE.upper(), False),
        (TRACE[:3] + "0" * 32 + TRACE[35:], False),
        (TRACE[:36] + "0" * 16 + TRACE[52:], False),
        (TRACE + "\n", False),
        (TRACE + "x", False),
        (TRACE + "-more", False),
        ("01" + TRACE[2:] + "-\udcff", False),
        ("01" + TRACE[2:] + "-é", False),
        ("x" + TRACE, False),
        ("é" * 55, False),
    ],
)
def test_is_traceparent(text: str, valid: bool) -> None:
    """W3C Trace Context level 1."""
    assert is_traceparent(text) == valid


def test_children() -> None:
    """The same trace and flags, another span."""
    children = {child_span(TRACE) for _ in range(100)}
    assert len(children) == 100
    assert all(is_traceparent(child) and child[:36] == TRACE[:36] and child[-2:] == "01" for child in children)


@pytest.mark.parametrize(
    ("version", "flags", "child"),
    [("01", "01-extra", "01"), ("cc", "02-", "00"), ("fe", "ff", "01"), ("00", "03", "03")],
)
def test_a_child_of_a_later_version_is_of_ours(version: str, flags: str, child: str) -> None:
    """What its rest means is not known, so it is not said under another span."""
    parent = f"{version}{TRACE[2:53]}{flags}"
    assert is_traceparent(parent)
    made = child_span(parent)
    assert is_traceparent(made)
    assert (made[:36], made[52:]) == (f"00{TRACE[2:36]}", f"-{child}")


@pytest.mark.parametrize("given", [None, "", "nonsense"])
def test_new_traces(given: str | None) -> None:
    """Begun where none came in, and sampled as configured."""
    spans = [Tracing(1.0).span(given) for _ in range(50)]
    assert all(is_traceparent(span) and span.endswith("-01") for span in spans)
    assert len({span[3:35] for span in spans}) == 50
    few = [Tracing(0.000001).span(given)[-2:] for _ in range(50)]
    assert few.count("00") >= 49


def test_trap_25_switched_off() -> None:
    """Nothing is begun; what came in is passed on as it is."""
    tracing = Tracing(0.0)
    assert tracing.span(None) == tracing.span("nonsense") == ""
    assert tracing.span(TRACE) == TRACE


def test_counters() -> None:
    """By name and labels; a snapshot does not change."""
    counters = Counters()
    counters.add("a", "x")
    before = counters.snapshot()
    counters.add("a", "x", by=2)
    counters.add("a", "y")
    assert (dict(before), dict(counters.snapshot())) == ({("a", "x"): 1}, {("a", "x"): 3, ("a", "y"): 1})


@pytest.mark.parametrize(
    ("parent", "state", "expected"),
    [
        (TRACE, "a=1", (TRACE, "a=1")),
        ("01" + TRACE[2:] + "-é", "a=é", (None, "")),
        ("nonsense", "a=1", (None, "")),
        (None, "a=1", (None, "")),
    ],
)
def test_trace_context_of_a_request(parent: str | None, state: str, expected: tuple[str | None, str]) -> None:
    """It is the trace context of whatever the request asks, also of what goes over the backbone."""
    headers = {"tracestate": state} | ({} if parent is None else {"traceparent": parent})
    assert trace_context(make_mocked_request("GET", "/", headers).headers) == expected


def test_labels_of_counters_are_bounded() -> None:
    """What has no place of its own is counted with the others of its name; another name has room of its own."""
    counters = Counters()
    for number in range(5000):
        counters.add("published", "pubsub", f"topic-{number}")
    counters.add("published", "pubsub", "topic-0")
    counters.add("delivered", "topic-4999")
    counts = counters.snapshot()
    assert len(counts) <= 1002
    assert sum(count for (name, *_), count in counts.items() if name == "published") == 5001
    assert counts["published", "pubsub", "topic-0"] == 2
    assert counts["published", OTHER, OTHER] == 4000
    assert counts["delivered", "topic-4999"] == 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"traceparent": TRACE, "tracestate": "a=1,b=2", "baggage": "k=v;p=1"}, []),
        ({}, []),
        (
            {"traceparent": "\udcff", "tracestate": "a=\udcff", "baggage": "k=é"},
            ["traceparent", "tracestate", "baggage"],
        ),
        ({"traceparent": TRACE, "tracestate": "a=1\r\nx: y", "other": "\udcff"}, ["tracestate"]),
        ({"traceparent": TRACE.upper(), "tracestate": "a=1"}, ["traceparent", "tracestate"]),
        ({"tracestate": "a=1", "baggage": "k=v"}, ["tracestate"]),
    ],
)
def test_headers_that_are_left_out(headers: dict[str, str], expected: list[str]) -> None:
    """Trace context that is none is not passed on."""
    assert unusable(headers) == expected
