"""The envelope as pure functions; how it looks over HTTP is tested in tests/http/test_publish.py."""

from __future__ import annotations

import base64
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.blocks import envelope
from mesh.blocks.envelope import PublishOptions, build_binary, build_structured, read, wrap_raw
from mesh.errors import EventError
from mesh.event import members_of

OPTIONS = PublishOptions("app", "pubsub", "orders")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


def sent(options: PublishOptions, content_type: str | None, body: bytes, prefix: str = "ce-") -> dict[str, object]:
    """Send through a broker that changes nothing."""
    headers, data = build_binary(options, content_type, body, prefix)
    return orjson.loads(read(headers, data, pubsub="pubsub", topic="orders", prefix=prefix).body)


@settings(derandomize=True, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1), st.binary())
def test_attributes_of_any_text_survive_the_broker(source: str, subject: str, body: bytes) -> None:
    """Headers carry printable ASCII only, values are what they were."""
    options = PublishOptions(source, "pubsub", "orders", overrides={"subject": subject})
    headers, data = build_binary(options, "application/octet-stream", body, "ce-")
    assert all(value.isascii() and value.isprintable() and " " not in value for value in headers.values())
    event = orjson.loads(read(headers, data, pubsub="pubsub", topic="orders", prefix="ce-").body)
    assert (event["source"], event["subject"]) == (source, subject)
    assert base64.b64decode(event["data_base64"]) == body


@settings(derandomize=True, deadline=None)
@given(st.binary(), st.sampled_from(["application/json", "text/plain", "application/octet-stream", None]))
def test_any_body_gives_a_json_envelope(body: bytes, content_type: str | None) -> None:
    """Whatever was published, what is delivered parses, with sorted members."""
    event = sent(OPTIONS, content_type, body)
    assert list(event) == sorted(event)
    assert len({"data", "data_base64"} & set(event)) == 1


@pytest.mark.parametrize("prefix", ["ce-", "ce_", "cloudEvents_"])
def test_every_brokers_prefix(prefix: str) -> None:
    """The prefix is the broker's."""
    assert sent(OPTIONS, "application/json", b"[1]", prefix)["data"] == [1]


def test_expiration_and_trace() -> None:
    """They travel as attributes, and are told beside the body."""
    options = PublishOptions("a", "pubsub", "orders", TRACE, "k=v", None, 2_000_000_000.7)
    headers, data = build_binary(options, None, b"x", "ce-")
    found = read(headers, data, pubsub="pubsub", topic="orders", prefix="ce-")
    assert (found.traceparent, found.tracestate, found.expires_at) == (TRACE, "k=v", 2_000_000_000.0)
    assert orjson.loads(found.body)["expiration"] == "2033-05-18T03:33:20Z"


@pytest.mark.parametrize(
    ("overrides", "traceid", "traceparent"),
    [
        (None, TRACE, TRACE),
        ({"traceid": "i"}, "i", TRACE),
        ({"traceparent": OTHER}, OTHER, OTHER),
        ({"traceparent": OTHER, "traceid": "i"}, "i", OTHER),
        ({"traceid": "i", "traceparent": OTHER}, "i", OTHER),
    ],
)
def test_trace_overrides(overrides: dict[str, str] | None, traceid: str, traceparent: str) -> None:
    """`traceparent` sets both."""
    event = sent(PublishOptions("a", "p", "t", TRACE, "", overrides), None, b"")
    assert (event["traceid"], event["traceparent"]) == (traceid, traceparent)


def test_overrides_by_name() -> None:
    """Names count without regard to case; empty and unknown ones do not count."""
    given_ = {"CloudEvent.ID": "1", "cloudevent.type": "", "cloudevent.time": "x", "other": "y"}
    assert envelope.overrides(given_) == {"id": "1"}
    assert envelope.overrides({"other": "y"}) is None


@pytest.mark.parametrize(
    ("given_", "traceparent", "tracestate"),
    [
        ({}, TRACE, "k=v"),
        ({"tracestate": "a=1"}, TRACE, "a=1"),
        ({"traceparent": OTHER}, OTHER, ""),
        ({"traceparent": OTHER, "tracestate": "a=1"}, OTHER, "a=1"),
        ({"traceparent": "00-bad"}, TRACE, "k=v"),
        ({"tracestate": "a=1", "traceparent": "00-bad"}, TRACE, "k=v"),
    ],
)
def test_a_trace_s_state_goes_with_its_trace(given_: dict[str, str], traceparent: str, tracestate: str) -> None:
    """With another trace goes its own state or none, and what is no trace brings none."""
    named = {f"cloudevent.{name}": value for name, value in given_.items()}
    event = sent(PublishOptions("a", "p", "t", TRACE, "k=v", envelope.overrides(named)), None, b"")
    assert (event["traceparent"], event["traceid"]) == (traceparent, traceparent)
    assert event["tracestate"] == tracestate


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, (TRACE, TRACE, "k=v")),
        ({"tracestate": "a=1"}, (TRACE, TRACE, "k=v")),
        ({"traceparent": OTHER}, (OTHER, OTHER, "")),
        ({"traceparent": OTHER, "tracestate": "a=1"}, (OTHER, OTHER, "a=1")),
        ({"traceparent": OTHER, "traceid": "mine"}, (OTHER, "mine", "")),
        ({"traceid": OTHER, "tracestate": "a=1"}, (OTHER, OTHER, "a=1")),
        ({"traceid": "mine"}, (TRACE, "mine", "k=v")),
        ({"traceparent": None}, (TRACE, TRACE, "k=v")),
        ({"traceparent": 7, "traceid": 7}, (TRACE, TRACE, "k=v")),
        *(({"traceid": wrong}, (TRACE, TRACE, "k=v")) for wrong in (7, 0, True, ["a"], {"a": 1}, {}, [], None)),
        ({"traceparent": "bad", "traceid": ["a"]}, (TRACE, TRACE, "k=v")),
        ({"traceparent": OTHER, "traceid": 7}, (OTHER, OTHER, "")),
        ({"traceparent": OTHER, "traceid": ""}, (OTHER, OTHER, "")),
        ({"traceparent": OTHER, "tracestate": 7}, (OTHER, OTHER, "")),
        ({"traceparent": "", "traceid": "", "tracestate": ""}, (TRACE, TRACE, "k=v")),
        ({"traceparent": "bad", "tracestate": "a=1"}, (TRACE, TRACE, "k=v")),
        ({"traceparent": "bad", "traceid": "bad"}, (TRACE, TRACE, "k=v")),
        ({"traceparent": OTHER.upper(), "tracestate": "a=1"}, (TRACE, TRACE, "k=v")),
        ({"traceparent": "ff" + OTHER[2:]}, (TRACE, TRACE, "k=v")),
        ({"traceparent": "00-" + "0" * 32 + OTHER[35:]}, (TRACE, TRACE, "k=v")),
    ],
)
def test_an_application_s_event_stays_in_its_own_trace(own: dict[str, object], expected: tuple[str, str, str]) -> None:
    """What has no valid trace is put into that of its publish, whose state goes with it; delivery continues it."""
    options = PublishOptions("a", "p", "t", TRACE, "k=v")
    message = build_structured(options, orjson.dumps({"id": "1", "data": 1, **own}), "ce-")
    found = read(*message, pubsub="p", topic="t", prefix="ce-")
    event = orjson.loads(found.body)
    assert (event["traceparent"], event["traceid"], event["tracestate"]) == expected
    assert (found.traceparent, found.tracestate) == (expected[0], expected[2])


@pytest.mark.parametrize(
    ("content_type", "body", "encoded"),
    [
        ("image/png", b"\x89PNG\r\n\x1a\n\x00\xff", True),
        ("text/plain", "grüß".encode("latin-1"), True),
        ("text/plain; charset=iso-8859-1", "grüß".encode("latin-1"), True),
        ("text/plain; charset=ISO-8859-1", b"plain", False),
        ("text/plain; charset=utf-8", "grüß".encode(), False),
        ('text/csv; header=present; charset="UTF-16LE"', "a,b".encode("utf-16-le"), True),
        ("text/plain; charset=utf-16", "a".encode("utf-16"), True),
        ("application/json", '{"a":"grüß"}'.encode("latin-1"), True),
        ("application/json; charset=iso-8859-1", '{"a":"grüß"}'.encode("latin-1"), True),
        ("application/json", '{"a":1}'.encode("utf-16"), True),
        ("application/json", "{oops grüß".encode(), False),
        ("application/json", b'{"a":1}', False),
        ("application/xml", b"<a>\xfc</a>", True),
        ("application/gzip", b"\x1f\x8b\x08", True),
        ("application/vnd.x+json", b'{"a":"\xfc"}', True),
        (None, b"\xff", True),
        (None, b"\xed\xa0\x80", True),
        (None, b"\x00\x1f", False),
    ],
)
def test_what_is_no_utf8_arrives_byte_for_byte(content_type: str | None, body: bytes, encoded: bool) -> None:
    """In ``data_base64``, with the content type it came with; everything else as before."""
    event = sent(OPTIONS, content_type, body)
    assert event["datacontenttype"] == (content_type or "text/plain")
    assert ("data_base64" in event) == encoded
    assert ("data" in event) != encoded
    if encoded:
        assert base64.b64decode(str(event["data_base64"])) == body


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"null"])
def test_what_is_no_event(body: bytes) -> None:
    """An application's own event is a JSON object; so is what is delivered unwrapped."""
    with pytest.raises(EventError):
        build_structured(OPTIONS, body, "ce-")
    with pytest.raises(EventError):
        read({}, body, pubsub="p", topic="t", prefix="ce-")


@pytest.mark.parametrize(
    ("expiration", "ttl", "expected"),
    [
        (None, None, None),
        ("2020-01-01T00:00:00Z", None, 1577836800.0),
        ("x", None, None),
        (5, None, None),
        ("2020-01-01T00:00:00Z", 60.0, 60.0),
    ],
)
def test_expiration_of_an_application_s_event(expiration: object, ttl: float | None, expected: float | None) -> None:
    """Its own counts, unless the request has a time to live; what is no time is none."""
    event = {"id": "1"} if expiration is None else {"id": "1", "expiration": expiration}
    headers, body = build_structured(PublishOptions("a", "p", "t", expires_at=ttl), orjson.dumps(event), "ce-")
    found = read(headers, body, pubsub="p", topic="t", prefix="ce-")
    assert found.expires_at == expected


def test_an_application_s_event_is_kept() -> None:
    """Types of JSON survive, members are sorted, nothing is decoded."""
    body = build_structured(OPTIONS, b'{"z":1.0,"id":"1","data":{"b":1,"a":2}}', "ce-")[1]
    event = orjson.loads(body)
    assert event["z"] == 1.0
    assert list(event) == sorted(event)
    assert event["traceid"] == event["traceparent"] == event["tracestate"] == ""


def test_raw_events() -> None:
    """Trace fields only where there is a trace."""
    with_trace = orjson.loads(wrap_raw(b"x", pubsub="p", topic="t", traceparent=TRACE))
    assert with_trace["traceid"] == with_trace["traceparent"] == TRACE
    assert list(with_trace) == sorted(with_trace)
    assert "traceid" not in orjson.loads(wrap_raw(b"x", pubsub="p", topic="t", traceparent=""))


def test_foreign_binary_events() -> None:
    """What another producer put into headers is delivered; a type that is missing means JSON."""
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s%20t", "ce-type": "t", "ce-own": "%C3%BC"}
    headers |= {"ce-subject": '"in quotes"', "ce-bad": "%FF!"}
    event = orjson.loads(read(headers, b'{"a":1}', pubsub="p", topic="t", prefix="ce-").body)
    assert (event["data"], event["source"], event["own"]) == ({"a": 1}, "s t", "ü")
    assert (event["subject"], event["bad"]) == ("in quotes", "\ufffd!")
    assert orjson.loads(read(headers, b"", pubsub="p", topic="t", prefix="ce-").body)["data"] is None


@pytest.mark.parametrize("state", ["k=é", "k=v\r\nx: y"])
def test_a_tracestate_that_is_none(state: str) -> None:
    """The event keeps it, no header gets it."""
    headers, data = build_binary(PublishOptions("a", "p", "t", TRACE, state), None, b"x", "ce-")
    own = {"id": "1", "traceparent": TRACE, "tracestate": state}
    event = build_structured(OPTIONS, orjson.dumps(own), "ce-")
    for found in (read(*each, pubsub="p", topic="t", prefix="ce-") for each in ((headers, data), event)):
        assert found.tracestate == ""
        assert orjson.loads(found.body)["tracestate"] == state


def test_a_foreign_binary_event_that_is_no_json() -> None:
    """Its envelope does not parse, which rules and batches find out."""
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}
    body = read(headers, b"{oops", pubsub="p", topic="t", prefix="ce-").body
    with pytest.raises(EventError):
        members_of(body)


def test_time_is_formatted_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the local zone, UTC as Z."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        monkeypatch.setattr("mesh.blocks.envelope.time.time", lambda: 1_000_000_000.9)
        assert envelope.timestamp() == "2001-09-09T01:46:40Z"
        monkeypatch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        assert envelope.timestamp() == "2001-09-09T01:46:40Z"
        monkeypatch.setattr("mesh.blocks.envelope.time.time", lambda: 1_000_000_001.0)
        assert envelope.timestamp() == "2001-09-09T03:46:41+02:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_application_s_event_that_is_nested_too_deeply() -> None:
    """It could be read, and not written."""
    for levels in (253, 254, 1020):
        body = b'{"data":' + b"[" * levels + b"]" * levels + b"}"
        if levels == 253:
            assert build_structured(OPTIONS, body, "ce-")
        else:
            with pytest.raises(EventError, match="nested more than 254 levels"):
                build_structured(OPTIONS, body, "ce-")
