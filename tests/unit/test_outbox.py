"""The outbox without a broker: what becomes an event, and what follows from a marker."""

from __future__ import annotations

import orjson
import pytest

from mesh.blocks.outbox import OutboxSettings, Verdict, event_of, judge, outbox_settings, split
from mesh.blocks.store import Item
from mesh.errors import BadArgumentError, ConfigError
from mesh.operation import Caller, Context
from mesh.resources.component import Component, MetadataEntry

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CONTEXT = Context(Caller("ns", "shop"), None, TRACE, "a=b")
PROJECTED = {"outbox.projection": "true"}


@pytest.mark.parametrize(
    ("marker", "left", "verdict"),
    [
        (b'"0"', 5.0, Verdict.PUBLISH),
        (b'"0"', -5.0, Verdict.PUBLISH),
        (b'"given up"', 5.0, Verdict.FORGET),
        (b'"given up"', -5.0, Verdict.FORGET),
        (b'"fenced"', 5.0, Verdict.DONE),
        (b'"fenced"', -5.0, Verdict.DONE),
        (None, 5.0, Verdict.WAIT),
        (None, 0.0, Verdict.FENCE),
        (b"0", 5.0, Verdict.PUBLISH),
    ],
)
def test_judge(marker: bytes | None, left: float, verdict: Verdict) -> None:
    """An event is dropped only where its transaction cannot happen any more."""
    assert judge(marker, left) is verdict


@pytest.mark.parametrize(
    ("items", "stored", "published"),
    [
        ([], [], []),
        ([Item("a", b"1"), Item("b", None), Item("c", b"3")], [True, True, True], [b"1", b"3"]),
        ([Item("a", b"1"), Item("a", b"2", metadata=PROJECTED)], [True, False], [b"2"]),
        ([Item("a", b"2", metadata=PROJECTED), Item("a", b"1"), Item("b", b"3")], [False, True, True], [b"2", b"3"]),
        ([Item("a", b"2", metadata=PROJECTED)], [False], [b"2"]),
        ([Item("a", None), Item("a", b"2", metadata=PROJECTED)], [True, False], [b"2"]),
        ([Item("a", b"1", metadata={"outbox.projection": "false"})], [True], [b"1"]),
        ([Item("a", None, metadata=PROJECTED)], [True], []),
        ([Item("a", None, "1", check=True)], [True], []),
    ],
)
def test_split(items: list[Item], stored: list[bool], published: list[bytes]) -> None:
    """A projection is published and not stored, in the place of what is stored."""
    told, events = split(items)
    assert (told, [each.value for each in events]) == (stored, published)


def test_a_projection_that_is_none() -> None:
    with pytest.raises(BadArgumentError, match=r"outbox\.projection of key a not a boolean: 'ture'"):
        split([Item("a", b"1", metadata={"outbox.projection": "ture"})])


def event(value: bytes, **metadata: str) -> dict[str, object]:
    named = {name.replace("__", "."): text for name, text in metadata.items()}
    made = event_of(Item("k", value, metadata=named), "outbox-1", CONTEXT)
    return dict(orjson.loads(orjson.dumps(made)))


@pytest.mark.parametrize(
    ("value", "content_type", "data"),
    [
        (b'{"x":1}', None, {"data": {"x": 1}, "datacontenttype": "application/json"}),
        (b"12", None, {"data": 12, "datacontenttype": "application/json"}),
        (b"null", None, {"data": None, "datacontenttype": "application/json"}),
        (b'"text"', None, {"data": "text", "datacontenttype": "text/plain"}),
        (b"no JSON", None, {"data": "no JSON", "datacontenttype": "text/plain"}),
        (b"\xff", None, {"data_base64": "/w==", "datacontenttype": "application/octet-stream"}),
        (b'{"x":1}', "application/json", {"data": {"x": 1}, "datacontenttype": "application/json"}),
        (b'"text"', "application/json", {"data": "text", "datacontenttype": "application/json"}),
        (b'{"x":1}', "application/vnd.a+json", {"data": {"x": 1}, "datacontenttype": "application/vnd.a+json"}),
        (b'{"x":1}', "text/plain", {"data": '{"x":1}', "datacontenttype": "text/plain"}),
        (b'"<a/>"', "application/xml", {"data": "<a/>", "datacontenttype": "application/xml"}),
        (b'"abc"', "application/octet-stream", {"data_base64": "YWJj", "datacontenttype": "application/octet-stream"}),
        (b"\xff", "application/json", {"data_base64": "/w==", "datacontenttype": "application/json"}),
    ],
)
def test_data(value: bytes, content_type: str | None, data: dict[str, object]) -> None:
    """JSON stays JSON: nothing becomes the text of a map."""
    for name in ("contentType", "datacontenttype"):
        made = event(value, **({} if content_type is None else {name: content_type}))
        assert {name: made[name] for name in ("data", "data_base64", "datacontenttype") if name in made} == data


def test_attributes() -> None:
    """What the metadata of an operation say stands in the event; of its identity only what is meant to."""
    assert event(b"1") == {
        "id": "outbox-1",
        "source": "shop",
        "type": "com.dapr.event.sent",
        "specversion": "1.0",
        "traceparent": TRACE,
        "tracestate": "a=b",
        "data": 1,
        "datacontenttype": "application/json",
    }
    made = event(b"1", foo="bar", ttlInSeconds="5", cloudevent__type="order.placed", cloudevent__id="mine", subject="s")
    told = {name: made[name] for name in ("foo", "ttlInSeconds", "type", "id", "subject")}
    assert told == {"foo": "bar", "ttlInSeconds": "5", "type": "order.placed", "id": "mine", "subject": "s"}
    guarded = event(
        b"1", id="x", data="x", DATA_BASE64="x", specversion="2", topic="x", outboxmarker="x", outbox__projection="true"
    )
    assert guarded == event(b"1")


def settings(**values: str) -> OutboxSettings | None:
    return outbox_settings(Component("s", "state.test", tuple(MetadataEntry(*each) for each in values.items())))


def test_settings() -> None:
    """Both or none."""
    assert settings() is None
    assert settings(OutboxPublishPubsub="p", outboxPublishTopic="t") == OutboxSettings("p", "t", "p")
    assert settings(
        outboxPublishPubsub="p", outboxPublishTopic="t", outboxPubsub="q", outboxDiscardWhenMissingState="true"
    ) == OutboxSettings("p", "t", "q")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"outboxPublishPubsub": "p"}, r"\(?outboxPublishPubsub\)?.*needs outboxPublishTopic beside it"),
        ({"outboxPubsub": "p"}, "needs outboxPublishPubsub beside it"),
        ({"outboxPublishPubsub": "", "outboxPublishTopic": "t"}, "must not be empty"),
        (
            {"outboxPublishPubsub": "p", "outboxPublishTopic": "t", "outboxDiscardWhenMissingState": "perhaps"},
            "outboxDiscardWhenMissingState.*not a boolean",
        ),
    ],
)
def test_settings_that_are_wrong(values: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        settings(**values)
