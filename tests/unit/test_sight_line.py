"""Sights as people read them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.cli.sight_line import content_lines, duration, sight_line
from mesh.tap.sight import Content, Seen, Sight

CALL: dict[str, Any] = {
    "id": "n-1",
    "time": 1_700_000_000.123,
    "seconds": 0.0123,
    "seen": Seen.ASKED,
    "block": "invocation",
    "method": "invoke",
    "target": "orders",
    "source": "shop",
    "app": "shop",
    "node": "n",
    "outcome": "ok",
    "details": {"verb": "POST", "path": "/new", "status": 201},
}
EVENT = {
    "seen": Seen.ARRIVED,
    "block": "pubsub",
    "method": "deliver",
    "target": "pubsub/orders",
    "app": "shipping",
    "outcome": "retry",
    "details": {
        "pubsub": "pubsub",
        "topic": "orders",
        "route": "/orders",
        "attempt": 3,
        "settlement": "dead letter",
        "reason": "the application answered 500",
    },
}
TURN = {"seen": Seen.TURN, "block": "actors", "method": "invoke", "target": "cart/7", "source": "", "app": "carts"}


FAILED = {"outcome": "APP_AWAY", "details": {"verb": "GET", "path": "/x", "reason": "gone"}}
LETTER = (
    "arrived  pubsub/orders → shipping  pubsub.deliver route=/orders attempt=3 "
    "+retry, dead letter: the application answered 500  12.3 ms"
)


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({}, "asked    shop → orders             POST /new +201  12.3 ms"),
        (FAILED, "GET /x +APP_AWAY: gone  12.3 ms"),
        (EVENT, LETTER),
        ({**EVENT, "outcome": "success", "details": {"settlement": "ack"}}, "pubsub.deliver +success  12.3 ms"),
        (
            {**TURN, "details": {"type": "cart", "method": "add"}},
            "turn     carts → cart/7 +actors.invoke method=add +ok",
        ),
        ({"target": "a\x1b[2Jb"}, "shop → a�\\[2Jb"),
    ],
)
def test_a_line(members: dict[str, Any], line: str) -> None:
    text = sight_line(Sight(**{**CALL, **members}), colours=False)
    assert re.match(r"\d\d:\d\d:\d\d\.123  ", text)
    assert re.search(line, text), text


@pytest.mark.parametrize(
    ("members", "colour"),
    [({}, None), ({"outcome": "APP_AWAY"}, 31), ({"details": {"status": 503}}, 31), ({"outcome": "retry"}, 33)],
)
def test_what_failed_has_a_colour(members: dict[str, Any], colour: int | None) -> None:
    found = re.findall(r"\x1b\[(3\d)m", sight_line(Sight(**{**CALL, **members}), colours=True))
    assert found == ([] if colour is None else [str(colour)])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00004, "0.0 ms"), (0.0123, "12.3 ms"), (0.25, "250 ms"), (12.3456, "12.3 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_values_are_lines_of_their_own() -> None:
    """Headers and bodies, cut where they are long; nothing in them acts on the terminal."""
    sight = Sight(
        **CALL,
        request=Content((("a", "b\x07"),), "text/plain", 5000, b"one\ntwo" + b"x" * 3000, cut=True),
        reply=Content((), "", 3, b"\xff\x00\x01"),
    )
    asked, *middle, answered = content_lines(sight)
    assert asked == "    > a: b�"
    assert middle[0] == "    > one"
    assert middle[-1] == "    > … of 5000 bytes"
    assert answered == "    < (3 bytes)"
    assert sum(map(len, middle)) < 2100
    streamed = Sight(**CALL, request=Content((), "", -1), reply=Content(None, "", 7))
    assert list(content_lines(streamed)) == ["    > (streamed)", "    < (7 bytes)"]
