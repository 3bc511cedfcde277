"""Queries run over values in memory."""

from __future__ import annotations

import base64

import orjson
import pytest

from mesh.blocks import matching
from mesh.errors import BadArgumentError
from mesh.query import parse_query

VALUE = {"a": {"b": 1.5}, "s": "m", "t": True, "n": None, "list": [1], "big": 2**63}


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        ({"EQ": {"a.b": 1.5}}, True),
        ({"EQ": {"a.b": "1.5"}}, False),
        ({"EQ": {"a": 1.5}}, False),
        ({"EQ": {"a.b.c": None}}, True),
        ({"EQ": {"t": True}}, True),
        ({"EQ": {"t": 1}}, False),
        ({"EQ": {"n": None}}, True),
        ({"EQ": {"none": None}}, True),
        ({"EQ": {"list": 1}}, False),
        ({"EQ": {"list": None}}, False),
        ({"EQ": {"big": 2**63}}, True),
        ({"EQ": {"big": 2**63 - 1}}, False),
        ({"NEQ": {"s": "m"}}, False),
        ({"NEQ": {"s": 1}}, True),
        ({"NEQ": {"none": 1}}, True),
        ({"GT": {"a.b": 1}}, True),
        ({"GT": {"a.b": 1.5}}, False),
        ({"GTE": {"a.b": 1.5}}, True),
        ({"LT": {"s": "n"}}, True),
        ({"LTE": {"s": "l"}}, False),
        ({"LT": {"s": 100}}, False),
        ({"GT": {"t": False}}, False),
        ({"LT": {"none": 1}}, False),
        ({"GTE": {"list": 1}}, False),
        ({"IN": {"s": ["x", "m"]}}, True),
        ({"IN": {"s": []}}, False),
        ({"AND": [{"EQ": {"s": "m"}}, {"EQ": {"s": "x"}}]}, False),
        ({"OR": [{"EQ": {"s": "x"}}, {"AND": [{"EQ": {"s": "m"}}]}]}, True),
    ],
)
def test_matches(condition: object, matches: bool) -> None:
    """Types are told apart; what is not there compares as null."""
    assert matching.matches(parse_query(orjson.dumps({"filter": condition}), {}).filter, VALUE) is matches


@pytest.mark.parametrize("value", [1, "text", None, [1], True])
def test_values_without_members(value: object) -> None:
    """They are found where nothing is asked of a member."""
    assert matching.matches(None, value)
    assert not matching.matches(parse_query(b'{"filter": {"EQ": {"a": 1}}}', {}).filter, value)


def entries(**values: object) -> list[tuple[str, bytes, str]]:
    return [(key, orjson.dumps(value), "1") for key, value in values.items()]


def found(query: dict[str, object], given: list[tuple[str, bytes, str]]) -> tuple[list[str], str]:
    result = matching.run(parse_query(orjson.dumps(query), {}), given)
    return [match.key for match in result.matches], result.token


def test_order() -> None:
    """One order of all values, of equal ones that of their keys."""
    given = entries(h={"v": []}, g={"v": "é"}, f={"v": "a"}, e={"v": 2}, d={"v": -1.5}, c={"v": True}, b={}, a={"v": 2})
    assert found({"sort": [{"key": "v"}]}, given)[0] == [*"bcdaefgh"]
    assert found({"sort": [{"key": "v", "order": "DESC"}]}, given)[0] == [*"hgfaedcb"]
    assert found({}, given)[0] == [*"abcdefgh"]
    two = entries(a={"x": 1, "y": 1}, b={"x": 0, "y": 1}, c={"x": 0, "y": 2})
    assert found({"sort": [{"key": "y", "order": "DESC"}, {"key": "x"}]}, two)[0] == [*"cba"]


def test_what_is_no_json_is_not_found() -> None:
    assert found({}, [("a", b"{", "1"), ("b", b"1", "1")])[0] == ["b"]


@pytest.mark.parametrize("order", ["ASC", "DESC"])
def test_pages_while_values_come_and_go(order: str) -> None:
    """Nothing is given twice, and nothing is left out that was there all the time."""
    given = entries(**{f"k{number:02}": {"v": number // 3} for number in range(20)})
    query: dict[str, object] = {"sort": [{"key": "v", "order": order}], "page": {"limit": 3}}
    pages, token = [], ""
    while True:
        keys, token = found(query | {"page": {"limit": 3, "token": token}}, given)
        pages += keys
        if not token:
            break
        gone = pages[-1]
        given = [each for each in given if each[0] != gone] + entries(**{f"new{len(pages)}": {"v": 3}})
    assert [key for key in pages if not key.startswith("new")] == found(
        {"sort": query["sort"]}, entries(**{f"k{number:02}": {"v": number // 3} for number in range(20)})
    )[0]
    assert len(pages) == len(set(pages))


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "é",
        "[]",
        base64.b64encode(b"[]").decode(),
        *(
            base64.urlsafe_b64encode(orjson.dumps(each)).decode()
            for each in (
                {},
                1,
                [1, [3, 1]],
                ["k"],
                ["k", [3, "1"]],
                ["k", [4, 1]],
                ["k", ["3", 1]],
                ["k", 1],
                ["k", [3, 1], [3, 1]],
            )
        ),
    ],
)
def test_tokens_that_are_none(token: str) -> None:
    """Also one of a query with another order."""
    with pytest.raises(BadArgumentError, match=r"page.token is none of this query's"):
        found({"sort": [{"key": "v"}], "page": {"token": token}}, entries(a={"v": 1}))
