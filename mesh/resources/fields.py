"""Field types that are read from text, shared by the file models and the frozen values.

A plain dataclass whose fields carry these marks is a strict model too; pydantic is imported only
when it asks for a mark's schema, so a process that never loads a file never pays for it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import orjson

from mesh.errors import ExpressionError
from mesh.expressions import Trip, compile_match, compile_trip
from mesh.policies import StatusCodes, Timeout, parse_status_codes
from mesh.values import parse_duration

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

__all__ = [
    "Action",
    "AnyText",
    "Count",
    "GRPCCodes",
    "HTTPCodes",
    "JSONText",
    "MatchText",
    "Name",
    "Parsed",
    "Ratio",
    "ScalarText",
    "Seconds",
    "TimeoutValue",
    "TripExpression",
    "described",
    "plain_text",
]


class Parsed:
    """Marks a field that is read by a function, which raises ValueError for what it refuses."""

    def __init__(self, parse: Callable[[object], object]) -> None:
        """Keep the function, which is given the value as it stands in the file."""
        self._parse = parse

    def __get_pydantic_core_schema__(self, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Give pydantic the function as the whole of the field's validation."""
        # Imported here because pydantic is loaded already when it calls this.
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self._checked)

    def _checked(self, value: object) -> object:
        try:
            return self._parse(value)
        except ExpressionError as error:
            raise ValueError(str(error)) from error


def described(value: object) -> str:
    """Say what a value from a file is: ``the number 5``, ``a list``."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"'{value}'"
        case list():
            return "a list"
        case _:
            return "a mapping"


def plain_text(value: object) -> str:
    """Give text that is not empty, without blanks around it.

    Raises:
        ValueError: It is something else, or empty.
    """
    text = _text(value).strip()
    if not text:
        raise ValueError("must not be empty")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {described(value)}")  # noqa: TRY004 - pydantic takes ValueError
    return value


def _scalar(value: object) -> str:
    match value:
        case str():
            return value
        case bool() | int() | float():
            return orjson.dumps(value).decode()
        case _:
            raise ValueError(f"expected text, got {described(value)}")


def _any_text(value: object) -> str:
    return orjson.dumps(value).decode() if isinstance(value, list | dict) else _scalar(value)


def _json_text(value: object) -> str:
    return orjson.dumps(value).decode()


def _duration(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError(f"expected a duration such as '5s', got {described(value)}")  # noqa: TRY004 - pydantic takes ValueError
    return parse_duration(value)


def _timeout(value: object) -> Timeout:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"expected a duration such as '5s', or milliseconds, got {described(value)}")  # noqa: TRY004 - pydantic takes ValueError
    return Timeout(parse_duration(value, bare="ms"))


def _ratio(value: object) -> float:
    try:
        ratio = float(_scalar(value))
    except ValueError:
        ratio = -1.0
    if isinstance(value, bool) or not 0 <= ratio <= 1:
        raise ValueError(f"expected a number from 0 to 1, got {described(value)}")
    return ratio


def _match(value: object) -> str:
    return compile_match(_text(value)).expression


def _trip(value: object) -> Trip:
    return compile_trip(_text(value))


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a whole number of at least 0, got {described(value)}")
    return value


def _http_codes(value: object) -> StatusCodes:
    return parse_status_codes(_scalar(value), "http")


def _grpc_codes(value: object) -> StatusCodes:
    return parse_status_codes(_scalar(value), "grpc")


Seconds = Annotated[float, Parsed(_duration)]
"""A duration with a unit."""

TimeoutValue = Annotated[Timeout, Parsed(_timeout)]
"""A duration; a bare whole number is milliseconds."""

Ratio = Annotated[float, Parsed(_ratio)]
"""A number from 0 to 1, as text or not."""

ScalarText = Annotated[str, Parsed(_scalar)]
"""Text; a number or boolean is taken as its JSON text."""

AnyText = Annotated[str, Parsed(_any_text)]
"""Text; everything else is taken as its JSON text."""

JSONText = Annotated[str, Parsed(_json_text)]
"""The JSON text of a free-form value."""

MatchText = Annotated[str, Parsed(_match)]
"""A CEL rule over ``event``, checked."""

TripExpression = Annotated[Trip, Parsed(_trip)]
"""A CEL condition over the counts of a circuit breaker."""

Name = Annotated[str, Parsed(plain_text)]
"""Text that is not empty."""

Count = Annotated[int, Parsed(_count)]
"""A whole number of at least 0."""

HTTPCodes = Annotated[StatusCodes, Parsed(_http_codes)]
GRPCCodes = Annotated[StatusCodes, Parsed(_grpc_codes)]

Action = Literal["allow", "deny"]
