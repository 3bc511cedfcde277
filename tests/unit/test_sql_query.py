"""Queries on jsonb without a database: what is refused before it is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from bindings.sql._query import run_query
from mesh.errors import BadArgumentError
from mesh.query import parse_query


async def never(work: Callable[[Any], Any]) -> Awaitable[Any]:
    raise AssertionError


@pytest.mark.parametrize("token", ["0" * 5000, "0" * 20, "9" * 19, "-1", "x", "²"])
async def test_tokens_that_are_none(token: str) -> None:
    """However long."""
    query = parse_query(b'{"page": {"limit": 1, "token": "%s"}}' % token.encode(), {})
    with pytest.raises(BadArgumentError, match=r"page\.token must be the token of the page before"):
        await run_query(query, "app||", ("public", "state"), never)
