"""Queries of state run over values in memory: what a store without a query language of its own needs.

A path leads through objects. A member that is not there compares as null. Only numbers compare with numbers, and
texts with texts; of values of different types neither is greater. For sorting there is one order of all values: null,
false, true, numbers, texts by their code points, then arrays and objects, and of equal ones that of their keys. So a
page's token, which holds what the page ended with, gives the following page whatever was written in between.
"""

from __future__ import annotations

import base64
import binascii
import operator
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import cmp_to_key
from typing import cast

import orjson

from mesh.errors import BadArgumentError
from mesh.query import All, Any, Compare, Filter, Match, Queried, Query, Scalar, Sort

__all__ = ["matches", "run"]

Rank = tuple[int, float | str]
_Row = tuple[Sequence[Rank], Match]
_COMPARED: dict[str, Callable[[typing.Any, typing.Any], bool]] = {
    "GT": operator.gt,
    "GTE": operator.ge,
    "LT": operator.lt,
    "LTE": operator.le,
}
_OTHER = (5, 0.0)


def matches(condition: Filter | None, value: object) -> bool:
    """Tell whether a filter takes a JSON value."""
    match condition:
        case None:
            return True
        case All(filters):
            return all(matches(each, value) for each in filters)
        case Any(filters):
            return any(matches(each, value) for each in filters)
        case Compare(name, path, wanted):
            found = _at(value, path)
            if name in ("EQ", "IN"):
                return any(_equal(found, each) for each in wanted)
            if name == "NEQ":
                return not _equal(found, wanted[0])
            ours, other = _rank(found), _rank(wanted[0])
            return ours[0] == other[0] in (3, 4) and _COMPARED[name](ours[1], other[1])


def run(query: Query, entries: Iterable[tuple[str, bytes, str]]) -> Queried:
    """Find what a query asks for.

    Args:
        query: It.
        entries: Key, value and etag of each; what is no JSON is found by no query.

    Raises:
        BadArgumentError: The token is none, or another query's.
    """
    order = cmp_to_key(lambda one, other: _compare(query.sort, cast("_Row", one), cast("_Row", other)))
    rows: list[_Row] = []
    for key, value, etag in entries:
        try:
            read = orjson.loads(value)
        except orjson.JSONDecodeError:
            continue
        if matches(query.filter, read):
            rows.append(([_rank(_at(read, sort.path)) for sort in query.sort], Match(key, value, etag)))
    rows.sort(key=order)
    if query.token:
        last = order(_read_token(query))
        rows = [row for row in rows if last < order(row)]
    if not query.limit or len(rows) <= query.limit:
        return Queried([match for _, match in rows])
    page = rows[: query.limit]
    return Queried([match for _, match in page], _token(page[-1]))


def _at(value: object, path: Sequence[str]) -> object:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _equal(found: object, wanted: Scalar) -> bool:
    ours = _rank(found)
    return ours != _OTHER and ours == _rank(wanted)


def _rank(value: object) -> Rank:
    """Give a value's place in the order of all."""
    match value:
        case None:
            return 0, 0.0
        case bool():
            return 1 + value, 0.0
        case int() | float():
            return 3, value
        case str():
            return 4, value
        case _:
            return _OTHER


def _compare(sort: Sequence[Sort], one: _Row, other: _Row) -> int:
    for by, ours, theirs in zip(sort, one[0], other[0], strict=True):
        if ours != theirs:
            return -1 if (ours < theirs) is not by.descending else 1
    return (one[1].key > other[1].key) - (one[1].key < other[1].key)


def _token(row: _Row) -> str:
    ranks, match = row
    return base64.urlsafe_b64encode(orjson.dumps([match.key, *ranks])).decode()


def _read_token(query: Query) -> _Row:
    try:
        key, *ranks = orjson.loads(base64.urlsafe_b64decode(query.token))
        read: list[tuple[object, object]] = [(kind, place) for kind, place in ranks]
        if not isinstance(key, str) or len(read) != len(query.sort):
            raise ValueError(key)
        if not all(
            isinstance(kind, int) and isinstance(place, str if kind == 4 else int | float) for kind, place in read
        ):
            raise ValueError(key)
    except (ValueError, TypeError, binascii.Error):
        raise BadArgumentError("page.token is none of this query's") from None
    return cast("list[Rank]", read), Match(key, b"")
