"""The CloudEvents codec, against the specification's tables and the SDK as a second opinion."""

from __future__ import annotations

import json
import string
import uuid
from contextlib import suppress

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import EventError
from mesh.event import (
    Event,
    encode_header_value,
    from_headers,
    from_structured,
    is_structured,
    new_id,
    to_headers,
    to_structured,
)

REQUIRED = {"specversion": "1.0", "id": "1", "source": "/x", "type": "t"}


def headers_of(**attributes: str) -> dict[str, str]:
    return {f"ce-{name}": value for name, value in {**REQUIRED, **attributes}.items()}


def structured(**members: object) -> bytes:
    return json.dumps({**REQUIRED, **members}).encode()


# HTTP protocol binding 1.0.2, section 3.1.3.2.
@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("Euro \u20ac \U0001f600", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ("plain", "plain"),
        (" ", "%20"),
        ('"', "%22"),
        ("%", "%25"),
        ("100%25", "100%2525"),
        ("\t\r\n\x7f\x00", "%09%0D%0A%7F%00"),
        ("!#$&'()*+,-./:;<=>?@[\\]^_`{|}~", "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"),
        ("", ""),
    ],
)
def test_header_values_are_percent_encoded_as_specified(value: str, encoded: str) -> None:
    assert encode_header_value(value) == encoded
    assert from_headers(headers_of(subject=encoded), b"").subject == value


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ('"quoted"', "quoted"),
        ('"with space"', "with space"),
        (r'"a \"word\" and a \\"', 'a "word" and a \\'),
        ('"percent%20inside"', "percent inside"),
        ('"', '"'),
        ('""', ""),
        ('not"quoted"', 'not"quoted"'),
        ("%41%zz%", "A%zz%"),
        ("%e2%82%ac", "\u20ac"),
    ],
)
def test_header_values_of_others_are_decoded_as_specified(header: str, value: str) -> None:
    assert from_headers(headers_of(subject=header), b"").subject == value


def test_header_value_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(EventError, match="UTF-8"):
        from_headers(headers_of(subject="%FF"), b"")


@pytest.mark.parametrize("missing", ["id", "source", "type", "specversion"])
def test_nothing_is_invented_on_receipt(missing: str) -> None:
    headers = headers_of()
    del headers[f"ce-{missing}"]
    with pytest.raises(EventError, match=missing):
        from_headers(headers, b"")
    members = json.loads(structured())
    del members[missing]
    with pytest.raises(EventError, match=missing):
        from_structured(json.dumps(members).encode())


@pytest.mark.parametrize("empty", ["id", "source", "type"])
def test_required_attributes_are_not_empty(empty: str) -> None:
    with pytest.raises(EventError, match=empty):
        from_headers(headers_of(**{empty: ""}), b"")
    with pytest.raises(EventError, match=empty):
        Event(**{"id": "1", "source": "/x", "type": "t", empty: ""})


@pytest.mark.parametrize("version", ["0.3", "1.1", "1", "", "2.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(EventError, match="specversion"):
        from_headers(headers_of(specversion=version), b"")
    with pytest.raises(EventError, match="specversion"):
        from_structured(structured(specversion=version))


@pytest.mark.parametrize(
    "time",
    [
        "2018-04-05T17:31:00Z",
        "1985-04-12T23:20:50.52Z",
        "1996-12-19T16:39:57-08:00",
        "1990-12-31T23:59:60Z",
        "1990-12-31T15:59:60-08:00",
        "1937-01-01T12:00:27.87+00:20",
        "2020-02-29t00:00:00z",
        "2020-01-01T00:00:00.123456789Z",
    ],
)
def test_times_of_rfc_3339_are_kept_as_given(time: str) -> None:
    assert from_headers(headers_of(time=time), b"").time == time
    assert json.loads(to_structured(from_structured(structured(time=time))))["time"] == time


@pytest.mark.parametrize(
    "time",
    [
        "",
        "yesterday",
        "2018-04-05",
        "2018-04-05T17:31:00",
        "2018-04-05T17:31Z",
        "20180405T173100Z",
        "2018-W14-4T17:31:00Z",
        "2018-04-05T24:00:00Z",
        "2018-04-05T17:61:00Z",
        "2018-13-05T17:31:00Z",
        "2019-02-29T00:00:00Z",
        "2018-04-05T17:31:00+0100",
        "2018-04-05T17:31:00,5Z",
        "2018-04-05T17:31:00Z\n",
        "\u0662018-04-05T17:31:00Z",
        1522949460,
    ],
)
def test_other_times_are_refused(time: object) -> None:
    with pytest.raises(EventError, match="time"):
        from_structured(structured(time=time))


@pytest.mark.parametrize("name", ["Upper", "with-dash", "with_underscore", "ümlaut", "", "sp ace", "data", "id"])
def test_impossible_extension_names_are_refused(name: str) -> None:
    with pytest.raises(EventError):
        Event("1", "/x", "t", extensions={name: "v"})


@pytest.mark.parametrize(
    ("value", "header"),
    [(True, "true"), (False, "false"), (0, "0"), (-(2**31), "-2147483648"), (2**31 - 1, "2147483647"), ("", "")],
)
def test_extension_types(value: str | int | bool, header: str) -> None:
    event = from_structured(structured(ext=value))
    assert event.extensions == {"ext": value}
    assert to_headers(event)["ce-ext"] == header
    assert json.loads(to_structured(event))["ext"] == value


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 1.5, [], {}, ["a"]])
def test_values_that_are_no_attributes_are_refused(value: object) -> None:
    with pytest.raises(EventError, match="ext"):
        from_structured(structured(ext=value))


@pytest.mark.parametrize("name", ["id", "source", "type", "subject", "datacontenttype", "dataschema"])
@pytest.mark.parametrize("value", [1, True, [], {}])
def test_core_attributes_are_strings(name: str, value: object) -> None:
    with pytest.raises(EventError, match=name):
        from_structured(structured(**{name: value}))


def test_null_is_absence() -> None:
    assert from_structured(structured(subject=None, ext=None)) == Event("1", "/x", "t")


def test_prefix_is_read_in_any_case_and_other_headers_are_not_the_event_s() -> None:
    headers = {"Ce-Id": "1", "CE-SOURCE": "/x", "ce-Type": "t", "ce-specversion": "1.0", "cex": "n", "traceparent": "0"}
    assert from_headers(headers, b"") == Event("1", "/x", "t")


def test_prefix_of_the_broker_is_used() -> None:
    event = Event("1", "/x", "t", subject="s")
    assert to_headers(event, "ce_") == {
        "ce_specversion": "1.0",
        "ce_id": "1",
        "ce_source": "/x",
        "ce_type": "t",
        "ce_subject": "s",
    }
    assert from_headers(to_headers(event, "cloudEvents:".lower()), b"", "cloudevents:") == event


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/cloudevents+json", True),
        ("application/cloudevents+json; charset=UTF-8", True),
        ("Application/CloudEvents+JSON", True),
        ("application/json", False),
        ("application/cloudevents-batch+json", False),
        ("application/cloudevents+protobuf", False),
        ("", False),
        (None, False),
    ],
)
def test_is_structured(content_type: str | None, expected: bool) -> None:
    assert is_structured(content_type) is expected


@pytest.mark.parametrize(
    ("media", "data", "member"),
    [
        (None, b'{"a":1}', {"data": {"a": 1}}),
        ("application/json", b"[1, 2]", {"data": [1, 2]}),
        ("application/json; charset=utf-8", b"null", {"data": None}),
        ("application/vnd.x+json", b'"s"', {"data": "s"}),
        ("application/json", b"{not json", {"data_base64": "e25vdCBqc29u"}),
        ("application/json", b'1,"source":"forged"', {"data_base64": "MSwic291cmNlIjoiZm9yZ2VkIg=="}),
        ("text/plain", "grüße".encode(), {"data": "grüße"}),
        ("text/plain", b"\xff", {"data_base64": "/w=="}),
        ("application/octet-stream", b"abc", {"data_base64": "YWJj"}),
        ("image/png", b"\x89PNG", {"data_base64": "iVBORw=="}),
        ("application/json", b"", {}),
    ],
)
def test_data_in_structured_mode(media: str | None, data: bytes, member: dict[str, object]) -> None:
    event = Event("1", "/x", "t", data, media)
    found = json.loads(to_structured(event))
    assert {name: value for name, value in found.items() if name.startswith("data") and name != "datacontenttype"} == (
        member
    )
    assert found["source"] == "/x"


def test_json_data_keeps_its_bytes() -> None:
    data = b'{"a":  1.0, "b":12345678901234567890123 }'
    assert data in to_structured(Event("1", "/x", "t", data))


@pytest.mark.parametrize(
    ("members", "data"),
    [
        ({"data": {"a": 1}}, b'{"a":1}'),
        ({"data": "text"}, b'"text"'),
        ({"data": "text", "datacontenttype": "text/plain"}, b"text"),
        ({"data": None}, b"null"),
        ({"data": 0, "datacontenttype": "application/x+json"}, b"0"),
        ({"data_base64": "AAE="}, b"\0\1"),
        ({}, b""),
    ],
)
def test_data_from_structured_mode(members: dict[str, object], data: bytes) -> None:
    assert from_structured(structured(**members)).data == data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b"\xff",
        structured(data=1, data_base64="AA=="),
        structured(data_base64="!"),
        structured(data_base64=1),
    ],
)
def test_bodies_that_are_no_events_are_refused(body: bytes) -> None:
    with pytest.raises(EventError):
        from_structured(body)


def test_events_are_values() -> None:
    event = Event("1", "/x", "t")
    assert event == Event("1", "/x", "t")
    with pytest.raises(AttributeError):
        event.id = "2"  # type: ignore[misc]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20).filter(
    lambda name: name not in REQUIRED and name not in {"data", "datacontenttype", "dataschema", "subject", "time"}
)
events = st.builds(
    Event,
    id=texts.filter(bool),
    source=texts.filter(bool),
    type=texts.filter(bool),
    data=st.binary(max_size=200),
    datacontenttype=st.none() | st.sampled_from(["application/json", "text/plain", "application/octet-stream", "a/b"]),
    dataschema=st.none() | texts,
    subject=st.none() | texts,
    time=st.none()
    | st.datetimes(timezones=st.timezones())
    .map(lambda t: t.replace(microsecond=0).isoformat())
    .filter(lambda t: len(t) == 25),
    extensions=st.dictionaries(names, texts, max_size=5),
)


@given(events)
def test_binary_mode_round_trips(event: Event) -> None:
    headers = to_headers(event)
    for value in headers.values():
        assert value.isascii()
        assert value.isprintable()
        assert not {" ", '"'} & set(value)
    assert from_headers(headers, event.data) == event


@given(events)
def test_structured_mode_round_trips(event: Event) -> None:
    read = from_structured(to_structured(event))
    if event.data and (event.datacontenttype or "application/json") == "application/json":
        try:
            assert json.loads(read.data) == json.loads(event.data)
        except ValueError:
            assert read.data == event.data
        read = Event(**{name: getattr(read, name) for name in read.__slots__} | {"data": event.data})
    assert read == event


@given(st.binary(max_size=100))
def test_structured_decoding_raises_nothing_else(body: bytes) -> None:
    with suppress(EventError):
        from_structured(body)


@given(st.dictionaries(st.sampled_from(list(headers_of(subject="", time="", ext=""))), texts))
def test_binary_decoding_raises_nothing_else(headers: dict[str, str]) -> None:
    with suppress(EventError):
        from_headers(headers, b"")


@given(events.filter(lambda event: event.time is None or not event.time.startswith("000")))
def test_the_sdk_reads_what_we_write(event: Event) -> None:
    """Binary mode, where the SDK is strict enough to be a second opinion (not on absent attributes)."""
    if event.subject == "" or event.dataschema == "" or any(len(name) > 20 for name in event.extensions):
        return
    message = HTTPMessage(to_headers(event), event.data)
    if event.datacontenttype is not None:
        message.headers.pop("ce-datacontenttype")
        message.headers["content-type"] = event.datacontenttype
    read = from_binary(message, _Opaque(), CloudEvent)
    assert (read.get_id(), read.get_source(), read.get_type()) == (event.id, event.source, event.type)
    assert (read.get_subject(), read.get_dataschema()) == (event.subject, event.dataschema)
    assert {name: read.get_extension(name) for name in event.extensions} == event.extensions


class _Opaque(JSONFormat):
    def read_data(self, body: bytes, datacontenttype: str | None) -> bytes:
        return body


def test_ids_are_uuids_of_version_4() -> None:
    made = {new_id() for _ in range(500)}
    assert len(made) == 500
    for text in made:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
