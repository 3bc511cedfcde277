"""How gRPC is written, in small."""

from __future__ import annotations

import base64

import pytest

from gateway.grpc.tracing import told
from gateway.grpc.wire import is_grpc
from gateway.spans.context import traceparent_of
from mesh.operation import Trace
from mesh.telemetry import trace_bin

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_trace_in_binary() -> None:
    written = trace_bin(TRACE)
    assert base64.b64decode(written + "=").hex() == f"0000{TRACE[3:35]}01{TRACE[36:52]}0201"
    assert traceparent_of(written) == TRACE


@pytest.mark.parametrize("text", ["", "00", TRACE.upper(), TRACE[:-1]])
def test_what_is_no_trace(text: str) -> None:
    assert trace_bin(text) == ""


@pytest.mark.parametrize(
    ("kind", "true"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc;x=y", True),
        ("application/grpc-web", False),
        ("application/json", False),
    ],
)
def test_types_of_grpc(kind: str, true: bool) -> None:
    assert is_grpc([("X-A", "application/grpc"), ("Content-Type", kind)]) is true
    assert not is_grpc([("x-a", kind)])


def test_what_a_caller_is_told_of_its_span() -> None:
    """Both forms name the same."""
    fields = dict(told(Trace(TRACE)))
    assert fields["traceparent"] == traceparent_of(fields["grpc-trace-bin"]) == TRACE
