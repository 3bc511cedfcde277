"""Queries of state: what the API takes, read into values that adapters translate to their store's language.

Source: Dapr 1.18, the state query API (alpha).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson

from mesh.errors import BadArgumentError

__all__ = ["All", "Any", "Compare", "Filter", "Match", "Queried", "Query", "Scalar", "Sort", "parse_query"]

OPERATORS = ("EQ", "NEQ", "GT", "GTE", "LT", "LTE", "IN")
MAX_DEPTH = 32
MAX_LIMIT = 2**31 - 1

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Compare:
    """A member of the value against one value, or for ``IN`` several.

    Attributes:
        operator: One of OPERATORS.
        path: Names of members, outermost first.
        values: One; of ``IN`` any number.
    """

    operator: str
    path: tuple[str, ...]
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class All:
    """Every one of the filters."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """At least one of the filters."""

    filters: tuple[Filter, ...]


Filter = Compare | All | Any


@dataclass(frozen=True, slots=True)
class Sort:
    """An order of what is found."""

    path: tuple[str, ...]
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked.

    Attributes:
        filter: None finds all.
        sort: Outermost first.
        limit: Most that are given; 0 = all.
        token: Where the page before ended, as the store said; empty for the first.
        metadata: Of the request.
    """

    filter: Filter | None = None
    sort: tuple[Sort, ...] = ()
    limit: int = 0
    token: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """One that was found."""

    key: str
    value: bytes
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Queried:
    """What was found; a token says that there is more."""

    matches: Sequence[Match]
    token: str = ""


def parse_query(body: bytes, metadata: Mapping[str, str]) -> Query:
    """Read a query.

    Raises:
        BadArgumentError: It is none; the text names the member.
    """
    try:
        read = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise BadArgumentError(f"the query is no JSON: {error}") from None
    query = {name: value for name, value in _object(read, "the query").items() if value is not None}
    page = _object(query.get("page", {}), "page")
    limit = page.get("limit") or 0
    if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= MAX_LIMIT:
        raise BadArgumentError("page.limit must be a whole number that is not negative")
    token = page.get("token") or ""
    if not isinstance(token, str):
        raise BadArgumentError("page.token must be a text")
    sort = query.get("sort", [])
    if not isinstance(sort, list):
        raise BadArgumentError("sort must be an array")
    given = _object(query.get("filter", {}), "filter")
    return Query(
        _filter(given, "filter", 0) if given else None,
        tuple(_sort(each, f"sort[{index}]") for index, each in enumerate(sort)),
        limit,
        token,
        metadata,
    )


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadArgumentError(f"{where} must be an object")
    return cast("dict[str, object]", value)


def _path(text: object, where: str) -> tuple[str, ...]:
    parts = tuple(text.split(".")) if isinstance(text, str) else ()
    if not parts or not all(parts):
        raise BadArgumentError(f"{where} must be the path of a member, as 'person.org'")
    return parts


def _sort(value: object, where: str) -> Sort:
    members = _object(value, where)
    order = str(members.get("order") or "ASC").upper()
    if order not in ("ASC", "DESC"):
        raise BadArgumentError(f"{where}.order must be ASC or DESC")
    return Sort(_path(members.get("key"), f"{where}.key"), order == "DESC")


def _filter(value: object, where: str, depth: int) -> Filter:
    members = _object(value, where)
    if len(members) != 1 or depth > MAX_DEPTH:
        raise BadArgumentError(f"{where} must have one member, an operator, and at most {MAX_DEPTH} levels")
    ((operator, operand),) = members.items()
    here = f"{where}.{operator}"
    if operator in ("AND", "OR"):
        if not isinstance(operand, list) or not operand:
            raise BadArgumentError(f"{here} must be an array of filters")
        filters = tuple(_filter(each, f"{here}[{index}]", depth + 1) for index, each in enumerate(operand))
        return All(filters) if operator == "AND" else Any(filters)
    if operator not in OPERATORS:
        raise BadArgumentError(f"{where} has no operator {operator!r}; there are AND, OR, {', '.join(OPERATORS)}")
    compared = _object(operand, here)
    if len(compared) != 1:
        raise BadArgumentError(f"{here} must have one member, a path")
    ((path, wanted),) = compared.items()
    many = operator == "IN"
    if many and not isinstance(wanted, list):
        raise BadArgumentError(f"{here}.{path} must be an array")
    values = tuple(cast("list[object]", wanted)) if many else (wanted,)
    if any(isinstance(each, (dict, list)) for each in values):
        raise BadArgumentError(f"{here}.{path} must be a text, a number, true, false or null")
    return Compare(operator, _path(path, here), cast("tuple[Scalar, ...]", values))
