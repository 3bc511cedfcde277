"""The address grammar, by tables."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.address import (
    MAX_NAME_BYTES,
    MAX_TOPIC_BYTES,
    Address,
    Kind,
    app,
    app_id_problem,
    back,
    component,
    decode_token,
    encode_token,
    is_own,
    matches,
    nodes,
    overlaps,
    owners,
    seen,
    taps,
    topic,
)
from mesh.errors import BadArgumentError, ConfigError

TOKEN = re.compile(r"[A-Za-z0-9_=-]+\Z")


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("", "="),
        ("orders", "orders"),
        ("Orders_2-x", "Orders_2-x"),
        ("=", "=3D"),
        ("a.b", "a=2Eb"),
        ("a b", "a=20b"),
        ("*", "=2A"),
        (">", "=3E"),
        ("é", "=C3=A9"),
        ("日", "=E6=97=A5"),
        ("\0\r\n", "=00=0D=0A"),
        ("=41", "=3D41"),
    ],
)
def test_tokens(text: str, token: str) -> None:
    assert encode_token(text) == token
    assert decode_token(token) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_is_one_token_and_comes_back(text: str) -> None:
    token = encode_token(text)
    assert TOKEN.match(token)
    assert decode_token(token) == text


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_different_texts_are_different_tokens(one: str, another: str) -> None:
    assert (encode_token(one) == encode_token(another)) is (one == another)


@pytest.mark.parametrize(
    ("name", "pattern", "expected", "is_pattern"),
    [
        ("orders", False, "orders", False),
        ("orders.eu", False, "orders.eu", False),
        ("a..b", False, "a.=.b", False),
        (".", False, "=.=", False),
        ("a/b c", False, "a=2Fb=20c", False),
        ("*", False, "=2A", False),
        ("a.>", False, "a.=3E", False),
        ("*", True, "*", True),
        ("a.*.c", True, "a.*.c", True),
        ("a.>", True, "a.>", True),
        ("a*", True, "a=2A", False),
        ("orders", True, "orders", False),
        ("a.>b", True, "a.=3Eb", False),
    ],
)
def test_topics(name: str, pattern: bool, expected: str, is_pattern: bool) -> None:
    address = topic("default", "pubsub", name, pattern=pattern)
    assert (address.kind, address.space, address.name) == (Kind.TOPIC, "mesh.default.topic.pubsub", expected)
    assert (address.label, address.is_pattern) == (name, is_pattern)
    assert str(address) == address.text == f"mesh.default.topic.pubsub.{expected}"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("", False), ("", True), ("x" * (MAX_TOPIC_BYTES + 1), False), ("é" * 257, False), (">.a", True), ("a.>.>", True)],
)
def test_impossible_topics(name: str, pattern: bool) -> None:
    with pytest.raises(ConfigError):
        topic("default", "pubsub", name, pattern=pattern)


def test_longest_topic() -> None:
    assert topic("default", "pubsub", "é" * 256).label == "é" * 256


def test_names_of_namespaces_and_components_are_any_text() -> None:
    assert topic("a.b", "c d", "t").space == "mesh.a=2Eb.topic.c=20d"
    assert len(topic("a.b", "c.d", "t").space.split(".")) == 4


def test_apps_and_nodes() -> None:
    assert app("default", "my app").text == "mesh.default.app.my=20app"
    address = app("default", "a")
    assert (address.kind, address.label, address.is_pattern) == (Kind.APP, "a", False)
    assert nodes("default").text == "mesh.default.nodes"
    assert nodes("default").kind is Kind.NODES


@pytest.mark.parametrize(
    ("app_id", "problem"),
    [
        *((each, None) for each in ("shop", "_shop", "-", "café", "x" * MAX_NAME_BYTES)),
        ("", "the app id must not be empty"),
        ("é" * 129, f"the app id '{40 * 'é'}…' is longer than 256 bytes"),
        *(
            (each, f"the app id {each!r} must not contain dots, slashes, '@', blanks or control characters")
            for each in ("a.b", "a/b", "a b", "a\n", "\x00", "\x9f", "\udc80")
        ),
    ],
)
def test_what_an_application_may_be_called(app_id: str, problem: str | None) -> None:
    assert app_id_problem(app_id) == problem
    if problem is None:
        assert app("default", app_id).label == app_id


@pytest.mark.parametrize(
    ("name", "own"),
    [
        *(
            (each.text, True)
            for each in (
                topic("a.b", "c", "t"),
                app("", "a"),
                nodes("default"),
                owners("default", "actors.thing"),
                taps("default", "t"),
            )
        ),
        ("mesh.default.topic.pubsub:bodies", True),
        ("mesh.temperature.room", False),
        ("mesh.topic", False),
        ("my.mesh.default.app.x", False),
    ],
)
def test_names_of_the_meshs_own(name: str, own: bool) -> None:
    assert is_own(name) is own


MATCHES = [
    ("a", "a", True),
    ("a", "b", False),
    ("a", "a.b", False),
    ("a.b", "a", False),
    ("*", "a", True),
    ("*", "a.b", False),
    ("a.*", "a.b", True),
    ("a.*", "a", False),
    ("*.b", "a.b", True),
    ("*.b", "a.c", False),
    (">", "a", True),
    (">", "a.b.c", True),
    ("a.>", "a.b", True),
    ("a.>", "a.b.c", True),
    ("a.>", "a", False),
    ("a.*.>", "a.b.c", True),
    ("a.*.>", "a.b", False),
    ("=2A", "=2A", True),
    ("=2A", "a", False),
]


@pytest.mark.parametrize(("pattern", "name", "expected"), MATCHES)
def test_matches(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected
    assert overlaps(pattern, name) is expected, "a name overlaps with the patterns that it matches"
    assert overlaps(name, pattern) is expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a.*", "*.b", True),
        ("a.*", "b.*", False),
        ("a.>", "*.b.c", True),
        ("a.>", "*", False),
        (">", "a.*.>", True),
        ("a.b.>", "a.*", False),
        ("a.b.>", "a.*.c", True),
        ("*.*", "a.>", True),
    ],
)
def test_overlaps(first: str, second: str, expected: bool) -> None:
    assert overlaps(first, second) is expected
    assert overlaps(second, first) is expected


patterns = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4).flatmap(
    lambda tokens: st.sampled_from([".".join(tokens), ".".join([*tokens, ">"])])
)
dotted = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5).map(".".join)


@given(patterns, patterns, dotted)
def test_what_fits_both_shows_that_they_overlap(first: str, second: str, name: str) -> None:
    if matches(first, name) and matches(second, name):
        assert overlaps(first, second)


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (lambda name: topic(name, "c", "t"), "namespace"),
        (lambda name: topic("ns", name, "t"), "component name"),
        (lambda name: app("ns", name), "app id"),
        (lambda name: app(name, "app"), "namespace"),
        (lambda name: component("ns", name), "component name"),
        (lambda name: seen("ns", name), "app id"),
        (lambda name: back("ns", name), "app id"),
        (lambda name: nodes(name), "namespace"),
    ],
)
def test_names_are_bounded(made: Callable[[str], Address], what: str) -> None:
    """By what a NATS server takes in one line, however they are written."""
    for name in ("x" * MAX_NAME_BYTES, "é" * (MAX_NAME_BYTES // 2)):
        made(name)
        with pytest.raises(BadArgumentError, match=f"{what} is longer than 256 bytes: '{name[:40]}'…"):
            made(name + "x")
    longest = topic("é" * 128, "é" * 128, "é" * 256)
    assert len(longest.text) < 4096 - 512
