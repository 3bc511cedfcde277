"""CEL expressions: which events a rule takes, and when a circuit breaker trips.

The CEL library is imported when the first expression is compiled: most meshes have none.

Source: CEL specification (github.com/google/cel-spec).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.errors import ExpressionError

if TYPE_CHECKING:
    from cel import Program

__all__ = ["TRIP_VARIABLES", "Match", "Trip", "compile_match", "compile_trip"]

TRIP_VARIABLES = ("requests", "totalSuccesses", "totalFailures", "consecutiveSuccesses", "consecutiveFailures")

_TYPE_NAMES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
_MACRO_NAME = re.compile(r"\.\s*(?:all|exists|exists_one|filter|map)\s*\(\s*(\w+)")
_SYNTAX_ERROR = re.compile(
    r"^.*?ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?(.*?)(?: expecting \{.*)?$", re.MULTILINE
)
_INTEGER = re.compile(r"\b\d{1,9}\b")
# What depends on the values; everything else is wrong with any.
_ERRORS_OF_VALUES = (ArithmeticError, LookupError)
_EVALUATION_ERRORS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Match:
    """A compiled routing rule; an empty expression takes every event."""

    expression: str
    _program: Program | None = field(repr=False, compare=False)

    def matches(self, event: Mapping[str, object] | str) -> bool:
        """Tell whether the rule takes this event.

        Args:
            event: The structured CloudEvent; for raw payloads, their text.

        Raises:
            ExpressionError: The expression cannot be evaluated for this event, or gives no boolean.
        """
        if self._program is None:
            return True
        try:
            return _evaluate(self._program, self.expression, {"event": event})
        except ExpressionError as error:
            if not isinstance(error.__cause__, TypeError):
                raise
        # JSON has one kind of number and Dapr reads it as a double, so `event.data.total * 1.5`
        # must work for `{"total": 3}` too. Only an expression that failed pays for this.
        return _evaluate(self._program, self.expression, {"event": _with_doubles(event)})


@dataclass(frozen=True, slots=True)
class Trip:
    """A compiled circuit breaker condition."""

    expression: str
    _program: Program = field(repr=False, compare=False)

    def tripped(self, counts: Mapping[str, int]) -> bool:
        """Tell whether these counts open the breaker.

        Args:
            counts: A value for each of `TRIP_VARIABLES`.

        Raises:
            ExpressionError: The expression cannot be evaluated, for example divides by zero.
        """
        return _evaluate(self._program, self.expression, counts)


def compile_match(expression: str) -> Match:
    """Compile a routing rule over the variable ``event``.

    Raises:
        ExpressionError: The expression does not compile or names another variable.
    """
    if not expression.strip():
        return Match(expression, None)
    return Match(expression, _compile(expression, ("event",)))


def compile_trip(expression: str) -> Trip:
    """Compile a circuit breaker condition over `TRIP_VARIABLES`.

    Raises:
        ExpressionError: The expression does not compile, names another variable, compares what cannot be compared, or
            gives no boolean. Dividing by zero is none here: it depends on the counts.
    """
    trip = Trip(expression, _compile(expression, TRIP_VARIABLES))
    for counts in _samples(expression):
        try:
            trip.tripped(counts)
        except ExpressionError as error:
            if not isinstance(error.__cause__, _ERRORS_OF_VALUES):
                raise
    return trip


def _samples(expression: str) -> Iterator[dict[str, int]]:
    """Give counts for which, together, most parts of a condition are evaluated: CEL leaves out what it can."""
    if (
        "/" in expression
    ):  # The library calls the division of doubles by zero a wrong type: no count nor difference is 0.
        yield from (
            dict(zip(TRIP_VARIABLES, each, strict=True)) for each in itertools.permutations((1, 3, 17, 170, 1009))
        )
        return
    for values in itertools.product((0, 1, 1000), repeat=len(TRIP_VARIABLES)):
        yield dict(zip(TRIP_VARIABLES, values, strict=True))
    for number in map(int, _INTEGER.findall(expression)):
        yield from (dict.fromkeys(TRIP_VARIABLES, value) for value in (number, number + 1))


def _compile(expression: str, variables: tuple[str, ...]) -> Program:
    # Imported here because it costs about 70 ms, which a mesh without rules need not pay.
    import cel

    try:
        program = cel.compile(expression)
    except ValueError as error:
        raise ExpressionError(f"expression '{expression}' does not compile: {_syntax_reason(error)}") from error
    known = {*variables, *_TYPE_NAMES, *_MACRO_NAME.findall(expression)}
    for name in program.variables():
        if name not in known:
            expected = ", ".join(variables)
            raise ExpressionError(f"expression '{expression}' names an unknown variable '{name}' (known: {expected})")
    return program


def _evaluate(program: Program, expression: str, variables: Mapping[str, object]) -> bool:
    try:
        result: object = program.execute(dict(variables))
    except _EVALUATION_ERRORS as error:
        raise ExpressionError(f"expression '{expression}' cannot be evaluated: {_reason(error)}") from error
    if not isinstance(result, bool):
        raise ExpressionError(f"expression '{expression}' must give true or false, not {type(result).__name__}")
    return result


def _syntax_reason(error: ValueError) -> str:
    match = _SYNTAX_ERROR.search(str(error))
    if match is None:
        return str(error).partition("\n")[0]
    return f"{match[3].replace('<EOF>', 'end of expression')} at {match[1]}:{match[2]}"


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"no such key '{error.args[0]}'"
    return str(error).partition("\n")[0].partition(". ")[0]


def _with_doubles(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Mapping):
        return {key: _with_doubles(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_doubles(item) for item in value]
    return value
