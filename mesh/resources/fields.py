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
    "EnvText",
    "GRPCCodes",
    "HTTPCodes",
    "JSONText",
    "Limit",
    "MatchText",
    "Name",
    "Parsed",
    "Ratio",
    "ScalarText",
    "Seconds",
    "Texts",
    "TimeoutValue",
    "TripExpression",
    "described",
    "plain_text",
    "whole_number",
]


_SCALAR = (str, bool, int, float)
_JSON_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


class Parsed:
    """Marks a field that is read by a function, which raises ValueError for what it refuses."""

    def __init__(
        self, parse: Callable[..., object], kinds: type | tuple[type, ...] = str, expected: str = "text"
    ) -> None:
        """Set how it is read.

        Args:
            parse: Given the value as it stands in the file.
            kinds: The types it may have there; a boolean is no number.
            expected: What they are, in words.
        """
        self._parse = parse
        self._kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        self._expected = expected

    @property
    def is_text(self) -> bool:
        """Whether a number there means the same as its text."""
        return str in self._kinds and (len(self._kinds) == 1 or bool in self._kinds)

    def __get_pydantic_core_schema__(self, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        """Give pydantic the function as the whole of the field's validation."""
        # Imported here because pydantic is loaded already when it calls this.
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> dict[str, object]:
        """Say what may stand there, for schemas of the files."""
        if object in self._kinds:
            return {}
        kinds = {*self._kinds} | ({str, bool, int, float} if self.is_text else set())
        names = [name for kind, name in _JSON_TYPES.items() if kind in kinds and not (kind is int and float in kinds)]
        return {"type": names[0] if len(names) == 1 else names, "description": f"Expected: {self._expected}."}

    def _checked(self, value: object) -> object:
        refused = isinstance(value, bool) and not {bool, object} & {*self._kinds}
        if refused or not isinstance(value, self._kinds):
            raise ValueError(f"expected {self._expected}, got {described(value)}")
        try:
            return self._parse(value)
        except ExpressionError as error:
            raise ValueError(str(error)) from error


def whole_number(expected: str, least: int, most: int | None = None) -> Parsed:
    """Mark a field that is a whole number within bounds."""

    def parse(value: int) -> int:
        if value < least or (most is not None and value > most):
            raise ValueError(f"expected {expected}, got {described(value)}")
        return value

    return Parsed(parse, int, expected)


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


def plain_text(text: str) -> str:
    """Give text that is not empty, without blanks around it.

    Raises:
        ValueError: It is empty.
    """
    text = text.strip()
    if not text:
        raise ValueError("must not be empty")
    return text


def _json_text(value: object) -> str:
    return orjson.dumps(value).decode()


def _any_text(value: object) -> str:
    return value if isinstance(value, str) else _json_text(value)


def _ratio(value: str | float) -> float:
    try:
        ratio = float(value)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"expected a number from 0 to 1, got {described(value)}")
    return ratio


def _http_codes(value: object) -> StatusCodes:
    return parse_status_codes(_any_text(value), "http")


def _grpc_codes(value: object) -> StatusCodes:
    return parse_status_codes(_any_text(value), "grpc")


def _timeout(value: str | int) -> Timeout | None:
    seconds = parse_duration(value, bare="ms")
    return Timeout(seconds) if seconds > 0 else None


def _texts(value: str | list[object]) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    wrong = next((item for item in items if not isinstance(item, _SCALAR)), None)
    if wrong is not None:
        raise ValueError(f"expected text, got {described(wrong)}")
    return tuple(plain_text(_any_text(item)) for item in items)


Seconds = Annotated[float, Parsed(parse_duration, str, "a duration such as '5s'")]
"""A duration with a unit."""

TimeoutValue = Annotated[Timeout | None, Parsed(_timeout, (str, int), "a duration such as '5s', or milliseconds")]
"""A duration; a bare whole number is milliseconds, and as in Dapr zero is no timeout."""

Ratio = Annotated[float, Parsed(_ratio, (str, int, float), "a number from 0 to 1")]
"""A number from 0 to 1, as text or not."""

EnvText = Annotated[
    str, Parsed(lambda value: "" if value is None else _any_text(value), (*_SCALAR, type(None)), "text")
]
"""Text; a number or boolean is taken as its JSON text, nothing as empty text."""

Texts = Annotated[tuple[str, ...], Parsed(_texts, (str, list), "text, or a list of texts")]
"""A list of texts; a single one may stand alone."""

ScalarText = Annotated[str, Parsed(_any_text, _SCALAR)]
"""Text; a number or boolean is taken as its JSON text."""

AnyText = Annotated[str, Parsed(_any_text, (*_SCALAR, list, dict))]
"""Text; everything else is taken as its JSON text."""

JSONText = Annotated[str, Parsed(_json_text, object)]
"""The JSON text of a free-form value."""

MatchText = Annotated[str, Parsed(lambda text: compile_match(text).expression)]
"""A CEL rule over ``event``, checked."""

TripExpression = Annotated[Trip, Parsed(compile_trip)]
"""A CEL condition over the counts of a circuit breaker."""

Name = Annotated[str, Parsed(plain_text)]
"""Text that is not empty."""

Count = Annotated[int, whole_number("a whole number of at least 0", 0)]
"""A whole number of at least 0."""

Limit = Annotated[int, whole_number("a whole number of at least 1", 1)]
"""A whole number of at least 1."""

HTTPCodes = Annotated[StatusCodes, Parsed(_http_codes, _SCALAR)]
GRPCCodes = Annotated[StatusCodes, Parsed(_grpc_codes, _SCALAR)]

Action = Literal["allow", "deny"]
