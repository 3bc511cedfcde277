"""CEL rules and circuit breaker conditions."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import ExpressionError
from mesh.expressions import TRIP_VARIABLES, compile_match, compile_trip

EVENT: dict[str, object] = {
    "id": "1",
    "type": "order.created",
    "my-ext": "x",
    "data": {"n": 3, "f": 2.5, "s": "abc", "z": None, "l": [1, 2], "deep": {"a": [{"b": "c"}]}, "on": True},
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", True),
        ("  ", True),
        ('event.type == "order.created"', True),
        ("event.type == 'x'", False),
        ("event.type.startsWith('order.') && event.data.n > 1", True),
        ("has(event.data.z)", True),
        ("has(event.data.y)", False),
        ("has(event.data.y) && event.data.y == 1", False),
        ("event.data.z == null", True),
        ("event.data.deep.a[0].b == 'c'", True),
        ("event['my-ext'] == 'x'", True),
        ("event.data.n == 3.0", True),
        ("event.data.n > 2.5", True),
        ("event.data.f > 2", True),
        ("event.data.f * 2.0 == 5.0", True),
        ("event.data.n * 1.5 == 4.5", True),
        ("event.data.n == '3'", False),
        ("event.data.on", True),
        ("event.data.l.exists(item, item == 2)", True),
        ("event.data.l.all(x, x > 1)", False),
        ("size(event.data.l) == 2", True),
        ("event.data.s.matches('^a.c$')", True),
        ("type(event.data.s) == string", True),
        ("true || event.nope", True),
    ],
)
def test_matches(expression: str, expected: bool) -> None:
    """Rules see the whole event; numbers compare whatever their kind."""
    assert compile_match(expression).matches(EVENT) is expected


def test_raw_payloads_are_text() -> None:
    """For raw payloads the event is the text itself."""
    assert compile_match("event == 'raw'").matches("raw")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("event.nope == 1", "expression 'event.nope == 1' cannot be evaluated: no such key 'nope'"),
        ("event.data", "expression 'event.data' must give true or false, not dict"),
        ("event.data.n", "expression 'event.data.n' must give true or false, not int"),
        ("event.data.n > 'a'", "expression 'event.data.n > 'a'' cannot be evaluated: No such overload: "),
        ("event.data.n / 0 == 1", "expression 'event.data.n / 0 == 1' cannot be evaluated: division by zero"),
        ("event.data.l[9] == 1", "expression 'event.data.l[9] == 1' cannot be evaluated: index out of bounds"),
        ("nofunction(event)", "expression 'nofunction(event)' cannot be evaluated: Undefined variable or function"),
    ],
)
def test_evaluation_errors(expression: str, message: str) -> None:
    """An expression that gives no boolean is an error that names it, in one line."""
    match = compile_match(expression)
    with pytest.raises(ExpressionError) as caught:
        match.matches(EVENT)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (
            "event.type ==",
            "expression 'event.type ==' does not compile: mismatched input 'end of expression' at 1:14",
        ),
        (
            "event.type = 'x'",
            "expression 'event.type = 'x'' does not compile: token recognition error at: '= ' at 1:12",
        ),
        ("a b", "expression 'a b' does not compile: extraneous input 'b' expecting end of expression at 1:3"),
        ("has(event)", "expression 'has(event)' does not compile: invalid argument to has() macro at 1:5"),
        ("evnt.type == 'x'", "expression 'evnt.type == 'x'' names an unknown variable 'evnt' (known: event)"),
    ],
)
def test_compile_errors(expression: str, message: str) -> None:
    """A wrong expression is refused before any event comes, in one line."""
    with pytest.raises(ExpressionError) as caught:
        compile_match(expression)
    assert str(caught.value) == message


@settings(derandomize=True, deadline=None)
@given(
    st.text(max_size=20), st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists)
)
def test_only_expression_errors(expression: str, data: object) -> None:
    """Whatever the expression and the event, nothing but ExpressionError comes out."""
    for candidate in (expression, "event.data == 1", "event.data + 1.0 > 0.0"):
        with contextlib.suppress(ExpressionError):
            compile_match(candidate).matches({"data": data})


COUNTS = dict(zip(TRIP_VARIABLES, (10, 4, 6, 0, 6), strict=True))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("consecutiveFailures > 5", True),
        ("consecutiveFailures > 6", False),
        ("requests >= 10 && totalFailures > totalSuccesses", True),
        ("double(totalFailures) / double(requests) >= 0.6", True),
        ("double(totalFailures) / double(requests - totalSuccesses) >= 2.0", False),
    ],
)
def test_trip(expression: str, expected: bool) -> None:
    """A condition sees the five counts."""
    assert compile_trip(expression).tripped(COUNTS) is expected


@pytest.mark.parametrize(
    "expression",
    [
        *("", "requests", "failures > 3", "requests > 'a'", "consecutiveFailures >"),
        "consecutiveFailures > 1 && consecutiveFailures > 'a'",
        "totalFailures < 5000 || totalSuccesses > 'a'",
        "totalSuccesses > 0 && totalFailures > 2 && nope(requests)",
        "requests > 1 ? requests : true",
        "double(totalFailures) / double(totalSuccesses) > 0.5 && consecutiveFailures > 'a'",
    ],
)
def test_refused_trips(expression: str) -> None:
    """A condition that can never give a boolean is refused when compiled."""
    with pytest.raises(ExpressionError):
        compile_trip(expression)


def test_nothing_heavy_is_imported() -> None:
    """The values of the core need neither CEL nor pydantic nor YAML until they are used."""
    code = (
        "import sys, mesh.policies, mesh.expressions, mesh.values, mesh.scopes, mesh.resources.configuration\n"
        "from mesh.resources import component, resiliency, subscription\n"
        'subscription.programmatic_subscriptions(b\'[{"pubsubname":"p","topic":"t","route":"r"}]\')\n'
        "print([name for name in ('cel', 'pydantic', 'yaml') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
