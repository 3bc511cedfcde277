"""The native layout as pure functions: what is written is what Dapr's runtime writes, what is read is told apart."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import orjson
import pytest

from mesh.address import topic
from mesh.blocks.envelope import PublishOptions
from mesh.blocks.native import NativeWire
from mesh.broker import Delivery, Features, Message
from mesh.errors import EventError, FeatureNotSupportedError
from mesh.event import from_headers
from mesh.features import not_in_layout
from mesh.registry import Registry
from tests.support.nodes import component

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OPTIONS = PublishOptions("obs", "predis", "o1", TRACE)
FEATURES = Features("broker", event_prefix="ce_", layout="native", publish_metadata=("priority",))
WIRE = NativeWire(FEATURES, "predis")


def written(body: bytes, content_type: str | None, options: PublishOptions = OPTIONS, **metadata: str) -> Message:
    raw = metadata.get("rawPayload") == "true"
    return WIRE.compose(options, content_type, body, metadata, raw=raw, key=metadata.get("partitionKey"))


def without(body: bytes, *names: str) -> bytes:
    """Write an event without members that no two have alike."""
    members = orjson.loads(body)
    for name in names:
        assert members.pop(name)
    return orjson.dumps(members)


MIDDLE = b'"datacontenttype":"%b","pubsubname":"predis","source":"obs","specversion":"1.0","topic":"o1",'
TRACED = b'"traceid":"' + TRACE.encode() + b'","traceparent":"' + TRACE.encode() + b'","tracestate":""'
TAIL = TRACED + b',"type":"com.dapr.event.sent"}'


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("application/json", b'{"a":1,"s":"json"}', b'"data":{"a":1,"s":"json"}'),
        ("application/json; charset=utf-8", b"[1]", b'"data":[1]'),
        ("application/json", b"notjson", b'"data":"notjson"'),
        ("application/vnd.x+json", b'{"v":1}', b'"data":"{\\"v\\":1}"'),
        ("text/plain", "plain text é".encode(), '"data":"plain text é"'.encode()),
        ("application/octet-stream", b"\x89PNG", b'"data_base64":"iVBORw=="'),
        ("image/png", b"\x89PNG", b'"data_base64":"iVBORw=="'),
        ("application/json", b"12345678901234567890", b'"data":12345678901234567890'),
    ],
    ids=["json", "parameter", "no-json", "vendor", "text", "octets", "binary", "digits"],
)
def test_envelopes_are_what_dapr_writes(content_type: str, body: bytes, data: bytes) -> None:
    """Members in alphabetical order, compact, UTF-8. Bytes and digits that Dapr would spoil are kept."""
    message = written(body, content_type)
    expected = b"{" + data + b"," + MIDDLE % content_type.encode() + TAIL
    assert without(message.body, "id", "time") == expected
    assert list(orjson.loads(message.body)) == sorted(orjson.loads(message.body))
    assert (message.headers, message.metadata) == ({}, {})
    assert message.id == orjson.loads(message.body)["id"]


def test_an_event_that_the_application_built_is_completed() -> None:
    """Its own attributes stay; one without an id gets none."""
    own = {"id": "1", "source": "/x", "type": "t", "specversion": "1.0", "ext1": 5, "data": {"b": 1}}
    message = written(orjson.dumps(own), "application/cloudevents+json")
    added = {"pubsubname": "predis", "topic": "o1", "traceid": TRACE, "traceparent": TRACE, "tracestate": ""}
    assert orjson.loads(without(message.body, "time")) == {**own, **added}
    assert message.id == "1"
    bare = orjson.loads(written(b'{"data":1}', "application/cloudevents+json").body)
    assert "id" not in bare
    assert (bare["source"], bare["type"]) == ("Dapr", "com.dapr.event.sent")


def test_raw_is_the_body_and_nothing_else() -> None:
    """Byte for byte."""
    message = written(b'{"raw" : true}', "application/json", rawPayload="true", foo="bar")
    assert (message.body, message.headers) == (b'{"raw" : true}', {})
    assert message.metadata == {"rawPayload": "true", "foo": "bar"}


def test_metadata_go_to_the_broker_as_they_were_written() -> None:
    """And so does the key, by either name."""
    message = written(b"1", "application/json", partitionKey="pk1", priority="3", Foo="Bar")
    assert message.metadata == {"partitionKey": "pk1", "priority": "3", "Foo": "Bar"}
    assert message.key == "pk1"
    assert written(b"1", "application/json", __key="k").key == "k"


def test_expiry_is_in_the_envelope_unless_the_broker_has_it() -> None:
    """Then it is the broker's metadata alone."""
    options = PublishOptions("obs", "predis", "o1", expires_at=2_000_000_000.0)
    assert orjson.loads(written(b"1", "application/json", options).body)["expiration"] == "2033-05-18T03:33:20Z"
    wire = NativeWire(Features("broker", layout="native", expires=True), "predis")
    message = wire.compose(options, "application/json", b"1", {"ttlInSeconds": "60"}, raw=False, key=None)
    assert b"expiration" not in message.body
    assert message.metadata == {"ttlInSeconds": "60"}


def test_binary_mode_on_request() -> None:
    """Attributes are headers by the broker's own binding, the content type as well, and the body is the data."""
    message = written(b'{"a":1}', "application/json", cloudevents="binary")
    assert message.headers["content-type"] == "application/json"
    assert message.headers["ce_id"] == message.id
    assert "ce_datacontenttype" not in message.headers
    event = from_headers({k: v for k, v in message.headers.items() if k.startswith("ce_")}, message.body, "ce_")
    assert (event.data, event.source, event.extensions["topic"]) == (b'{"a":1}', "obs", "o1")
    [read] = [orjson.loads(got(message).body)]
    assert (read["data"], read["id"], read["datacontenttype"]) == ({"a": 1}, message.id, "application/json")


@pytest.mark.parametrize(
    ("features", "metadata"),
    [(Features("b", layout="native", headers=False), {"cloudevents": "binary"})],
)
def test_binary_mode_needs_headers(features: Features, metadata: Mapping[str, str]) -> None:
    """It is refused where there are none."""
    with pytest.raises(FeatureNotSupportedError):
        NativeWire(features, "p").compose(OPTIONS, None, b"", metadata, raw=False, key=None)


def test_what_the_layout_lacks_names_the_line_to_change() -> None:
    """Delayed events are of the mesh's own layout."""
    options = PublishOptions("obs", "predis", "o1", not_before=2_000_000_000.0)
    with pytest.raises(FeatureNotSupportedError, match="layout: mesh"):
        written(b"", None, options)


@pytest.mark.parametrize(
    ("kind", "settings", "both"),
    [
        ("pubsub.redis", {"redisHost": "127.0.0.1:1"}, True),
        ("pubsub.gcp.pubsub", {"projectId": "shop"}, False),
        ("pubsub.solace.amqp", {"url": "amqp://127.0.0.1:1", "anonymous": "true"}, False),
    ],
)
def test_no_line_is_named_where_there_is_none(kind: str, settings: dict[str, str], both: bool) -> None:
    """Some types have this layout alone."""
    if kind == "pubsub.solace.amqp":
        pytest.importorskip("proton")
    made = Registry().load(kind).from_component(component("shop", kind, **settings))  # type: ignore[attr-defined]
    assert ("layout: mesh" in str(not_in_layout(made.features, "it", "ordering"))) is both


def got(message: Message, *, raw: bool = False, batch: bool = False):  # type: ignore[no-untyped-def]
    return WIRE.read(message, "o1", raw=raw, batch=batch)


@pytest.mark.parametrize(
    "body",
    [b'{"j":1}', b'{ "id" : "1", "source":"/x",  "type":"t", "specversion":"1.0" }', rb'{"cut":"\ud83d"}'],
    ids=["object", "event", "half-a-pair"],
)
def test_json_objects_of_others_arrive_byte_for_byte(body: bytes) -> None:
    """With their spaces, and nothing filled in."""
    assert got(Message({}, body)).body == body
    assert got(Message({"content-type": "application/cloudevents+json"}, body)).body == body


@pytest.mark.parametrize("body", [b"hello text", b"[1]", b"7", b"\xff\x00"])
def test_what_is_no_event_says_how_to_get_it(body: bytes) -> None:
    """A subscription to raw payloads takes it."""
    with pytest.raises(EventError, match="rawPayload"):
        got(Message({}, body))
    wrapped = orjson.loads(got(Message({}, body), raw=True).body)
    assert base64.b64decode(wrapped.pop("data_base64")) == body
    assert wrapped.pop("id")
    assert wrapped == {
        "datacontenttype": "application/octet-stream",
        "pubsubname": "predis",
        "source": "Dapr",
        "specversion": "1.0",
        "topic": "o1",
        "type": "com.dapr.event.sent",
    }


@pytest.mark.parametrize("prefix", ["ce_", "ce-", "cloudEvents:", "cloudEvents_"])
def test_binary_mode_of_any_binding(prefix: str) -> None:
    """Programs write it as they do for other protocols."""
    attributes = {"specversion": "1.0", "id": "7", "source": "/dev%20ice", "type": "t", "ext": "x"}
    headers = {prefix + name: value for name, value in attributes.items()} | {"content-type": "application/json"}
    event = orjson.loads(got(Message(headers, b'{"t":21}')).body)
    assert (event["id"], event["source"], event["ext"]) == ("7", "/dev ice", "x")
    assert (event["data"], event["datacontenttype"]) == ({"t": 21}, "application/json")


@pytest.mark.parametrize(
    ("body", "data"),
    [
        (b"hello", "hello"),
        (b'1,"expiration":"2001-01-01T00:00:00Z","x":2', '1,"expiration":"2001-01-01T00:00:00Z","x":2'),
        (b"", None),
        (b"7", 7),
    ],
    ids=["text", "members", "nothing", "number"],
)
def test_data_of_others_stay_data(body: bytes, data: object) -> None:
    """Whatever they are: they add no members, and an attribute is not taken for them."""
    headers = {"ce_specversion": "1.0", "ce_id": "7", "ce_source": "/x", "ce_type": "t", "ce_data": "forged"}
    event = orjson.loads(got(Message(headers, body)).body)
    assert (event["data"], event.get("x"), event.get("expiration")) == (data, None, None)


def test_octets_of_others_arrive_as_they_are() -> None:
    """Where the broker tells their type; in a batch, whose entries are JSON, as base64."""
    message = Message({"content-type": "application/octet-stream"}, b"\x00\xff")
    assert got(message).body == b"\x00\xff"
    assert base64.b64decode(orjson.loads(got(message, batch=True).body)["data_base64"]) == b"\x00\xff"


def test_trace_of_the_brokers_metadata() -> None:
    """Where the event has none of its own."""
    assert got(Message({}, b"{}", metadata={"traceparent": TRACE})).traceparent == TRACE
    assert got(Message({}, b"x", metadata={"traceparent": TRACE}), raw=True).traceparent == TRACE


def test_applications_are_told_what_the_broker_says() -> None:
    """By the names that it has there; nothing that the call says itself, or that would be believed."""
    metadata = {
        "__offset": "7",
        "Foo": "bar",
        "text": "größe\r\nX-Evil: 1",
        "share": "10% é",
        "content-type": "x",
        "dapr-api-token": "forged",
        "mesh-proven-by": "forged",
        "mesh_proven_by": "forged",
        "Dapr-Caller-App-Id": "forged",
        "Authorization": "forged",
        "x_forwarded_for": "forged",
        "baggage": "no\tbaggage",
        "mesh-dead-letter-reason": "a\r\nb",
        "no token": "x",
        "empty": "",
    }
    told = WIRE.told(Message({}, b"", metadata=metadata))
    assert told.pop("mesh-dead-letter-reason") == "a%0D%0Ab"
    assert told == {"__offset": "7", "Foo": "bar", "text": "größe%0D%0AX-Evil: 1", "share": "10% é", "empty": ""}
    much = {f"n{n}": "v" * 1000 for n in range(100)}
    told = WIRE.told(Message({"mesh-dead-letter-reason": "a\r\nb"}, b"", metadata=much))
    assert (len(told) < 20, told["mesh-dead-letter-reason"]) == (True, "a%0D%0Ab")


def test_dead_letters_are_copies() -> None:
    """Same bytes, with what the broker told of the message, and the reason."""
    message = Message({}, b"body", "k", "1", {"__offset": "0", "__topic": "odl"})
    letter = WIRE.letter(message, "status 500", 3, "odl", "group")
    assert (letter.body, letter.key) == (b"body", "k")
    assert letter.metadata == {"__offset": "0", "__topic": "odl", "pubsubName": "predis"}
    assert letter.headers["mesh-dead-letter-attempts"] == "3"
    assert letter.id not in (None, "1")
    told = WIRE.told(letter)
    assert told["mesh-dead-letter-reason"] == "status%20500"


def test_what_is_signed_is_what_is_the_meshs_own() -> None:
    """A broker's own headers come and go."""
    seen: list[Message] = []

    def sign(address: object, message: Message) -> Message:
        seen.append(message)
        return Message({**message.headers, "mesh-signature": "s"}, message.body)

    message = Message({"ce_id": "1", "content-type": "x"}, b"b", metadata={"foo": "bar"})
    where = topic("ns", "predis", "o1")
    signed = WIRE.sign(sign, where, message)
    assert seen[0].headers == {"ce_id": "1"}
    assert signed.headers == {"ce_id": "1", "content-type": "x", "mesh-signature": "s"}
    assert signed.metadata == {"foo": "bar"}

    class Settler:
        async def ack(self) -> None: ...
        async def nack(self, delay: float) -> None: ...
        async def reject(self) -> None: ...
        async def extend(self) -> None: ...

    read = WIRE.signed(Delivery(Message({**signed.headers, "foo": "bar"}, b"b"), where, 1, Settler()))
    assert read.message.headers == {"ce_id": "1", "mesh-signature": "s"}
