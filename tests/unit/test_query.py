"""Queries of state as they are written."""

from __future__ import annotations

import pytest

from mesh.errors import BadArgumentError
from mesh.query import All, Any, Compare, Query, Sort, parse_query


@pytest.mark.parametrize(
    ("body", "query"),
    [
        (b"", Query()),
        (b"{}", Query()),
        (b'{"filter": {"EQ": {"person.org": "A"}}}', Query(Compare("EQ", ("person", "org"), ("A",)))),
        (b'{"filter": {"IN": {"state": ["CA", 1, null]}}}', Query(Compare("IN", ("state",), ("CA", 1, None)))),
        (
            b'{"filter": {"OR": [{"GT": {"n": 1.5}}, {"AND": [{"NEQ": {"b": true}}]}]},'
            b' "sort": [{"key": "n", "order": "DESC"}, {"key": "a.b"}], "page": {"limit": 3, "token": "3"}}',
            Query(
                Any((Compare("GT", ("n",), (1.5,)), All((Compare("NEQ", ("b",), (True,)),)))),
                (Sort(("n",), descending=True), Sort(("a", "b"))),
                3,
                "3",
            ),
        ),
    ],
)
def test_what_is_read(body: bytes, query: Query) -> None:
    """Operators, paths, orders and pages."""
    assert parse_query(body, {}) == query


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "the query is no JSON"),
        (b"[]", "the query must be an object"),
        (b'{"filter": []}', "^filter"),
        (b'{"filter": {"EQ": {}, "NEQ": {}}}', "filter must have one member"),
        (b'{"filter": {"LIKE": {"a": 1}}}', "no operator 'LIKE'"),
        (b'{"filter": {"EQ": {"a": 1, "b": 2}}}', "filter.EQ must have one member"),
        (b'{"filter": {"EQ": {"a..b": 1}}}', "filter.EQ must be the path"),
        (b'{"filter": {"EQ": {"a": {}}}}', "filter.EQ.a must be a text"),
        (b'{"filter": {"IN": {"a": 1}}}', "filter.IN.a must be an array"),
        (b'{"filter": {"AND": []}}', "filter.AND must be an array of filters"),
        (b'{"filter": {"AND": [{"EQ": 1}]}}', r"filter.AND\[0\].EQ must be an object"),
        (b'{"filter": ' + b'{"AND": [' * 40 + b'{"EQ": {"a": 1}}' + b"]}" * 40 + b"}", "at most 32 levels"),
        (b'{"sort": {}}', "sort must be an array"),
        (b'{"sort": [{"key": "a", "order": "UP"}]}', r"sort\[0\].order must be ASC or DESC"),
        (b'{"sort": [{"order": "ASC"}]}', r"sort\[0\].key must be the path"),
        (b'{"page": {"limit": -1}}', "page.limit"),
        (b'{"page": {"limit": true}}', "page.limit"),
        (b'{"page": {"token": 1}}', "page.token"),
    ],
)
def test_what_makes_no_sense(body: bytes, text: str) -> None:
    """The error names the member."""
    with pytest.raises(BadArgumentError, match=text):
        parse_query(body, {})
