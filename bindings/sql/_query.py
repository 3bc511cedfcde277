"""Queries of state on jsonb: every value and every path is a parameter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, assert_never

import orjson
from sqlalchemy import text

from bindings.sql._postgresql import quoted
from mesh.errors import BadArgumentError
from mesh.query import All, Compare, Filter, Match, Queried, Query
from mesh.query import Any as AnyOf

__all__ = ["condition", "run_query"]

_ORDERED = {"GT": ">", "GTE": ">=", "LT": "<", "LTE": "<="}
_MOST_SKIPPED = 2**62
_MOST_DIGITS = len(str(_MOST_SKIPPED))


def condition(found: Filter, parameters: dict[str, Any]) -> str:
    """Give the condition of a filter, and put what it compares with among the parameters.

    Values are compared as JSON: a number with numbers, a text with texts. What is not there compares to nothing.
    """
    match found:
        case All() | AnyOf():
            word = " AND " if isinstance(found, All) else " OR "
            return f"({word.join(condition(each, parameters) for each in found.filters)})"
        case Compare():
            member = _member(found.path, parameters)
            values = [_value(each, parameters) for each in found.values]
            if found.operator in _ORDERED:
                same = f"jsonb_typeof({member}) = jsonb_typeof({values[0]})"
                return f"({same} AND {member} {_ORDERED[found.operator]} {values[0]})"
            if found.operator == "NEQ":
                return f"{member} <> {values[0]}"
            return f"{member} IN ({', '.join(values)})" if values else "false"
        case _:
            assert_never(found)


def _member(path: Sequence[str], parameters: dict[str, Any]) -> str:
    _check(*path)
    name = f"p{len(parameters)}"
    parameters[name] = list(path)
    return f"(value #> CAST(:{name} AS text[]))"


def _value(value: object, parameters: dict[str, Any]) -> str:
    _check(value)
    name = f"p{len(parameters)}"
    parameters[name] = orjson.dumps(value).decode()
    return f"CAST(CAST(:{name} AS text) AS jsonb)"


def _check(*texts: object) -> None:
    if any(isinstance(each, str) and "\0" in each for each in texts):
        raise BadArgumentError("a text of the query holds a NUL, which no text in PostgreSQL's jsonb does")


async def run_query(
    query: Query, prefix: str, table: Sequence[str], do: Callable[[Callable[[Any], Any]], Awaitable[Any]]
) -> Queried:
    """Find what a query asks for; its token is how many were given before.

    Raises:
        BadArgumentError: The token is none, or a text holds a NUL.
    """
    skipped = 0
    if query.token:
        digits = query.token.isascii() and query.token.isdigit() and len(query.token) <= _MOST_DIGITS
        if not digits or int(query.token) > _MOST_SKIPPED:
            raise BadArgumentError("page.token must be the token of the page before")
        skipped = int(query.token)
    parameters: dict[str, Any] = {"prefix": prefix}
    where = "true" if query.filter is None else condition(query.filter, parameters)
    order = [f"{_member(each.path, parameters)} {'DESC' if each.descending else 'ASC'}" for each in query.sort]
    statement = (
        f"SELECT key, CAST(value AS text), CAST(xmin AS text) FROM {quoted(table)} "
        "WHERE left(key, char_length(CAST(:prefix AS text))) = CAST(:prefix AS text) AND NOT isbinary "
        f"AND (expiredate IS NULL OR expiredate > CURRENT_TIMESTAMP) AND {where} "
        f"ORDER BY {', '.join([*order, 'key'])}"
    )
    if query.limit:
        statement += f" LIMIT {query.limit + 1}"
    if skipped:
        statement += f" OFFSET {skipped}"
    rows = await do(lambda connection: connection.execute(text(statement), parameters).all())
    more = bool(query.limit) and len(rows) > query.limit
    given = rows[: query.limit] if more else rows
    matches = [Match(row[0], row[1].encode(), row[2]) for row in given]
    return Queried(matches, str(skipped + len(given)) if more else "")
