"""Publish and bulk publish: what is accepted, what is refused, and the exact envelope that arrives.

Source: Dapr 1.18, publish and bulk publish.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import orjson
import pytest
import pytest_asyncio

from tests.http.harness import ANY, App, Backbone, Case, Node, cases, check, component, error, gateway, matches
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UUID = matches(re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z").match)
TRACE = matches(re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]\Z").match)
NOW = matches(lambda text: abs(datetime.fromisoformat(text).timestamp() - time.time()) < 5 and "." not in text)
INFO = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "domain": "dapr.io"}
topics = (f"topic{number}" for number in itertools.count())
RESOURCES = (
    component("pubsub", "pubsub.mesh", publishingScopes="app=closed2;other=x", protectedTopics="secret")
    + component("open", "pubsub.mesh")
    + component("bulk", "pubsub.mesh")
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    app = App([{"pubsubname": name, "topic": ">", "route": "/events"} for name in ("open", "bulk")])
    home = tmp_path_factory.mktemp("home")
    async with app, gateway(module_backbone, home, app=app, resources=RESOURCES) as node:
        node.app = app  # type: ignore[attr-defined]
        yield node


async def delivered(node: Node, topic: str, count: int = 1) -> list[Any]:
    """Give the events of a topic, as the application got them."""
    app: App = node.app  # type: ignore[attr-defined]

    def check() -> list[Any]:
        found = [got for got in app.at("/events") if got.json["topic"] == topic]
        assert len(found) >= count, app.got[-3:]
        return found

    return await eventually(check)


async def publish(
    node: Node, body: bytes, content_type: str | None = None, query: str = "", headers: dict[str, str] | None = None
) -> dict[str, Any]:
    topic = next(topics)
    given = {**({"Content-Type": content_type} if content_type else {}), **(headers or {})}
    reply = await node.request("POST", f"/v1.0/publish/open/{topic}{query}", given, body)
    assert (reply.status, reply.body) == (204, b""), reply
    got = (await delivered(node, topic))[0]
    assert got.json["topic"] == topic
    return got.json


def info(reason: str, **metadata: object) -> dict[str, object]:
    return {**INFO, "reason": reason, "metadata": metadata}


def resource(name: object, description: object = ANY) -> dict[str, object]:
    return {
        "@type": "type.googleapis.com/google.rpc.ResourceInfo",
        "resource_type": "pubsub",
        "resource_name": name,
        "owner": "",
        "description": description,
    }


NOT_FOUND = error("ERR_PUBSUB_NOT_FOUND", "pubsub nope is not found", [info("DAPR_PUBSUB_NOT_FOUND")])
EMPTY_TOPIC = error(
    "ERR_TOPIC_NAME_EMPTY",
    "topic is empty in pubsub open",
    [resource("open", "topic is empty in pubsub open"), info("DAPR_PUBSUB_TOPIC_NAME_EMPTY")],
)
FORBIDDEN = error(
    "ERR_PUBSUB_FORBIDDEN",
    "topic t is not allowed for app id app",
    [
        resource("pubsub", "topic t is not allowed for app id app"),
        info("DAPR_PUBSUB_FORBIDDEN", appID="app", topic="t"),
    ],
)


def bad_metadata(**asked: str) -> dict[str, object]:
    """Make the answer, which holds the metadata of the request."""
    return error(
        "ERR_PUBSUB_REQUEST_METADATA",
        matches(re.compile("failed deserializing metadata. Error: ").match),
        [resource(ANY), info("DAPR_PUBSUB_METADATA_DESERIALIZATION", **asked)],
    )


NOT_RAW = bad_metadata(rawPayload="yes")
BAD_EVENTS = error("ERR_PUBSUB_EVENTS_SER", ANY, [resource("open"), info("DAPR_PUBSUB_UNMARSHAL_EVENTS")])
NO_ID = error("ERR_DIRECT_INVOKE", "failed getting app id either from the URL path or the header dapr-app-id")
CE = {"Content-Type": "application/cloudevents+json"}
OK_ENTRY = {"entryId": "1", "event": "x", "contentType": "text/plain"}


@cases(
    Case("post", ("POST", "/v1.0/publish/open/a", None, b"x"), 204, b"", {"Content-Type": None}),
    Case("put", ("PUT", "/v1.0/publish/open/a", None, b"x"), 204, b""),
    Case("trap_1 unknown component", ("POST", "/v1.0/publish/nope/t", None, b"x"), 404, NOT_FOUND),
    Case("unknown component before empty topic", ("POST", "/v1.0/publish/nope/", None, b"x"), 404, NOT_FOUND),
    Case("empty topic", ("POST", "/v1.0/publish/open/", None, b"x"), 404, EMPTY_TOPIC),
    Case("empty topic before metadata", ("POST", "/v1.0/publish/open/?metadata.rawPayload=x"), 404, EMPTY_TOPIC),
    Case("no topic falls through", ("POST", "/v1.0/publish/open", None, b"x"), 404, NO_ID),
    Case("get falls through", ("GET", "/v1.0/publish/open/t"), 404, NO_ID),
    Case("delete falls through", ("DELETE", "/v1.0/publish/open/t"), 404, NO_ID),
    Case("scope refuses", ("POST", "/v1.0/publish/pubsub/t", None, b"x"), 403, FORBIDDEN),
    Case(
        "rawPayload before scope",
        ("POST", "/v1.0/publish/pubsub/t?metadata.rawPayload=yes"),
        400,
        NOT_RAW,
    ),
    Case("envelope before scope", ("POST", "/v1.0/publish/pubsub/t", CE, b"[]"), 500),
    Case("rawPayload is a Go bool", ("POST", "/v1.0/publish/open/t?metadata.rawPayload=TRUE", None, b"x"), 204),
    Case(
        "rawPayload is none",
        ("POST", "/v1.0/publish/open/t?metadata.rawPayload=yes"),
        400,
        NOT_RAW,
    ),
    Case("trap_5 prefix case", ("POST", "/v1.0/publish/open/t?Metadata.rawPayload=yes", None, b"x"), 204),
    Case("trap_5 first value", ("POST", "/v1.0/publish/open/t?metadata.rawPayload=0&metadata.rawPayload=no"), 204),
    Case(
        "all metadata are told",
        ("POST", "/v1.0/publish/open/t?metadata.rawPayload=zz&metadata.a=%C3%BC"),
        400,
        bad_metadata(rawPayload="zz", a="ü"),
    ),
    Case(
        "bad ttl", ("POST", "/v1.0/publish/open/t?metadata.ttlInSeconds=soon"), 400, bad_metadata(ttlInSeconds="soon")
    ),
    Case("ttl of zero", ("POST", "/v1.0/publish/open/t?metadata.ttlInSeconds=0"), 400, bad_metadata(ttlInSeconds="0")),
    Case(
        "near miss of metadata",
        ("POST", "/v1.0/publish/open/t?metadata.ttlInSecond=5&metadata.my-header=1"),
        400,
        error(
            "ERR_PUBSUB_REQUEST_METADATA",
            "failed deserializing metadata. Error: unknown metadata 'ttlInSecond'; did you mean 'ttlInSeconds'?",
            [resource(ANY), info("DAPR_PUBSUB_METADATA_DESERIALIZATION", **{"ttlInSecond": "5", "my-header": "1"})],
        ),
    ),
    Case("negative ttl", ("POST", "/v1.0/publish/open/t?metadata.ttl=-3"), 400, bad_metadata(ttl="-3")),
    Case(
        "an event that is no object",
        ("POST", "/v1.0/publish/open/t", CE, b'"x"'),
        500,
        error("ERR_PUBSUB_CLOUD_EVENTS_SER", ANY, [resource("open"), ANY]),
    ),
    Case(
        "an event that is no JSON",
        ("POST", "/v1.0/publish/open/t", CE, b"{"),
        500,
        error("ERR_PUBSUB_CLOUD_EVENTS_SER", ANY, [resource("open"), ANY]),
    ),
    Case("a body of half a megabyte", ("POST", "/v1.0/publish/open/t", None, b"x" * 500_000), 204),
    Case(
        "a body over the limit",
        ("POST", "/v1.0/publish/open/t", None, b"x" * (4 * 1024 * 1024 + 1)),
        413,
        error("ERR_BODY_READ"),
    ),
    Case("topic too long", ("POST", "/v1.0/publish/open/" + "t" * 600, None, b"x"), 400),
    Case("bad escape in the topic", ("POST", "/v1.0/publish/open/%zz", None, b"x"), 400, error("ERR_BAD_REQUEST")),
    Case("no UTF-8 in the topic", ("POST", "/v1.0/publish/open/%ff", None, b"x"), 400, error("ERR_BAD_REQUEST")),
    # Bulk
    Case("bulk", ("POST", "/v1.0/publish/bulk/open/t", None, [OK_ENTRY]), 204, b""),
    Case("bulk put", ("PUT", "/v1.0/publish/bulk/open/t", None, [OK_ENTRY]), 204),
    Case("bulk alpha", ("POST", "/v1.0-alpha1/publish/bulk/open/t", None, [OK_ENTRY]), 204),
    Case("bulk of nothing", ("POST", "/v1.0/publish/bulk/open/t", None, b"[]"), 204),
    Case("bulk unknown component", ("POST", "/v1.0/publish/bulk/nope/t", None, b"{"), 404, NOT_FOUND),
    Case("bulk empty topic", ("POST", "/v1.0/publish/bulk/open/", None, b"{"), 404, EMPTY_TOPIC),
    Case(
        "bulk metadata first",
        ("POST", "/v1.0/publish/bulk/open/t?metadata.rawPayload=x&metadata.ttl=1", None, b"{"),
        400,
        bad_metadata(rawPayload="x", ttl="1"),
    ),
    Case("bulk no JSON", ("POST", "/v1.0/publish/bulk/open/t", None, b"{"), 400, BAD_EVENTS),
    Case("bulk no array", ("POST", "/v1.0/publish/bulk/open/t", None, {}), 400, BAD_EVENTS),
    Case("bulk empty body", ("POST", "/v1.0/publish/bulk/open/t"), 400, BAD_EVENTS),
    Case("bulk no object", ("POST", "/v1.0/publish/bulk/open/t", None, [1]), 400, BAD_EVENTS),
    Case(
        "near miss in the metadata of a bulk publish",
        ("POST", "/v1.0/publish/bulk/open/t?metadata.raw_payload=true", None, [OK_ENTRY]),
        400,
        bad_metadata(raw_payload="true"),
    ),
    Case(
        "near miss in the metadata of an entry",
        ("POST", "/v1.0/publish/bulk/open/t", None, [{**OK_ENTRY, "metadata": {"ttlSeconds": "5"}}]),
        400,
        bad_metadata(),
    ),
    Case(
        "bulk metadata of numbers",
        ("POST", "/v1.0/publish/bulk/open/t", None, [{**OK_ENTRY, "metadata": {"a": 1}}]),
        400,
        BAD_EVENTS,
    ),
    Case("bulk scope refuses", ("POST", "/v1.0/publish/bulk/pubsub/t", None, [OK_ENTRY]), 403, FORBIDDEN),
    Case(
        "the Node SDK writes entryID",
        ("POST", "/v1.0/publish/bulk/open/t", None, [{"entryID": "1", "event": "x", "contentType": "text/plain"}]),
        204,
    ),
    Case("a component named bulk takes short topics", ("POST", "/v1.0/publish/bulk/t", None, b"x"), 204),
)
async def test_route(node: Node, case: Case) -> None:
    await check(node, case)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"entryId": 1}, "entry 1: entryId must be a string, not the number 1 (for example '2')"),
        ({"entryId": None}, "entry 1: entryId is missing (for example '2')"),
        ({"entryId": ""}, "entry 1: entryId is empty (for example '2')"),
        ({"entryId": ["a"]}, "entry 1: entryId must be a string, not a list (for example '2')"),
        ({"entryId": "1"}, "entry 1: entryId '1' is that of entry 0 already"),
        ({"contentType": None}, "entry 1: contentType is missing (for example 'application/json')"),
        ({"contentType": ""}, "entry 1: contentType is empty (for example 'application/json')"),
        (
            {"contentType": 5},
            "entry 1: contentType must be a string, not the number 5 (for example 'application/json')",
        ),
        (
            {"contentType": "image/png"},
            "entry 1: contentType 'image/png' is none of application/json, application/cloudevents+json, "
            "application/octet-stream (base64), application/xml and text/…",
        ),
        ({"event": 1, "entryId": None}, "entry 1: event must be a string for text/plain, not the number 1"),
        ({"event": {}}, "entry 1: event must be a string for text/plain, not a mapping"),
        (
            {"event": "?", "contentType": "application/octet-stream"},
            "entry 1: event is not base64, which application/octet-stream needs",
        ),
        (
            {"event": 1, "contentType": "application/octet-stream"},
            "entry 1: event must be a base64 string for application/octet-stream, not the number 1",
        ),
        ({"metadata": {"a": 1}}, "entry 1: metadata must be an object of strings"),
    ],
)
async def test_what_is_wrong_with_an_entry(node: Node, changed: dict[str, object], message: object) -> None:
    """The refusal names the entry, its member, and what is there instead; nothing is stored."""
    entries = [OK_ENTRY, {**OK_ENTRY, "entryId": "2", **changed}]
    reply = await node.post("/v1.0/publish/bulk/open/t", entries)
    assert (reply.status, reply.json["errorCode"]) == (400, "ERR_PUBSUB_EVENTS_SER")
    prefix = "error when unmarshaling the request for topic t in pubsub open: "
    assert reply.json["message"].removeprefix(prefix) == message


@pytest.mark.parametrize("missing", ["event", "contentType", "entryId"])
async def test_an_entry_that_lacks_a_member(node: Node, missing: str) -> None:
    """Each is needed."""
    entry = {name: value for name, value in OK_ENTRY.items() if name != missing}
    reply = await node.post("/v1.0/publish/bulk/open/t", [entry])
    assert (reply.status, f"entry 0: {missing} is missing" in reply.json["message"]) == (400, True)


async def test_bulk_failures_name_their_entries(node: Node) -> None:
    """trap_11: the failure's body has no message, and repeats itself in headers."""
    topic = next(topics)
    large = {"cloudevent.subject": "x" * 2_000_000}  # Data may have any size, attributes stand in the message.
    entries = [OK_ENTRY, {"entryId": "2", "event": "x", "contentType": "text/plain", "metadata": large}]
    reply = await node.post(f"/v1.0/publish/bulk/open/{topic}", entries)
    assert reply.status == 500
    assert reply.json == {
        "failedEntries": [{"entryId": "2", "error": matches(lambda text: "over the limit" in text)}],
        "errorCode": "ERR_PUBSUB_PUBLISH_MESSAGE",
    }
    assert orjson.loads(reply.headers["metadata.responsedata"]) == reply.json
    assert reply.headers["metadata.error"]
    assert len(await delivered(node, topic)) == 1


async def test_trap_11_request_metadata_reaches_entries_with_metadata(node: Node) -> None:
    """A request's time to live is applied only to entries that carry a metadata object; theirs wins."""
    topic = next(topics)
    entries = [
        {**OK_ENTRY, "event": "none"},
        {**OK_ENTRY, "entryId": "2", "event": "empty", "metadata": {}},
        {**OK_ENTRY, "entryId": "3", "event": "own", "metadata": {"ttlInSeconds": "7200", "rawPayload": "true"}},
    ]
    reply = await node.post(f"/v1.0/publish/bulk/open/{topic}?metadata.ttlInSeconds=60", entries)
    assert reply.status == 204
    got = {each.json["data"]: each.json.get("expiration") for each in await delivered(node, topic, 3)}
    assert got["none"] is None
    for name, seconds in (("empty", 60), ("own", 7200)):
        assert abs(datetime.fromisoformat(got[name]).timestamp() - time.time() - seconds) < 5


async def test_bulk_entries_have_envelopes_of_their_own(node: Node) -> None:
    """Each content type is placed as in a single publish, with an id and a span per entry."""
    topic = next(topics)
    event = {"id": "mine", "source": "s", "type": "t", "specversion": "1.0", "data": 1}
    entries = [
        {"entryId": "1", "event": "text", "contentType": "text/plain; charset=utf-8"},
        {"entryId": "2", "event": {"a": [1]}, "contentType": "application/json"},
        {"entryId": "3", "event": "AAE=", "contentType": "application/octet-stream"},
        {"entryId": "4", "event": event, "contentType": "application/cloudevents+json"},
        {"entryId": "5", "event": "<a/>", "contentType": "application/xml"},
    ]
    headers = {"traceparent": TRACEPARENT}
    assert (await node.request("POST", f"/v1.0/publish/bulk/open/{topic}", headers, entries)).status == 204
    got = [each.json for each in await delivered(node, topic, 5)]
    by_type = {each.get("datacontenttype"): each for each in got}
    assert by_type["text/plain; charset=utf-8"]["data"] == "text"
    assert by_type["application/json"]["data"] == {"a": [1]}
    assert by_type["application/octet-stream"]["data_base64"] == "AAE="
    assert by_type[None]["id"] == "mine"
    assert by_type["application/xml"]["data"] == "<a/>"
    assert len({each["id"] for each in got}) == 5
    spans = {each["traceparent"] for each in got}
    assert len(spans) == 5
    assert all(span.startswith(TRACEPARENT[:36]) and span != TRACEPARENT for span in spans)


async def test_envelope(node: Node) -> None:
    """All members, in alphabetical order, data first, without blanks."""
    topic = next(topics)
    assert (await node.post(f"/v1.0/publish/open/{topic}", b'{"orderId":"42"}', "application/json")).status == 204
    got = (await delivered(node, topic))[0]
    assert got.json == {
        "data": {"orderId": "42"},
        "datacontenttype": "application/json",
        "id": UUID,
        "pubsubname": "open",
        "source": "app",
        "specversion": "1.0",
        "time": NOW,
        "topic": topic,
        "traceid": TRACE,
        "traceparent": TRACE,
        "tracestate": "",
        "type": "com.dapr.event.sent",
    }
    assert list(got.json) == sorted(got.json)
    assert got.body.startswith(b'{"data":{"orderId":"42"},"datacontenttype":"application/json","id":"')
    assert got.json["traceid"] == got.json["traceparent"]  # trap_8


@pytest.mark.parametrize(
    ("content_type", "body", "member", "value"),
    [
        ("application/json", b'{"a":1}', "data", {"a": 1}),
        ("application/json; charset=utf-8", b"[1.50]", "data", [1.5]),
        ("Application/JSON", b"null", "data", None),
        ("application/json", b"", "data", ""),
        ("application/json", b"{oops", "data", "{oops"),
        ("application/json", b"NaN", "data", "NaN"),
        ("application/json", b'"\xff"', "data_base64", "Iv8i"),
        pytest.param("application/vnd.foo+json", b'{"a":1}', "data", '{"a":1}', id="trap_10"),
        ("text/plain", "grüß".encode(), "data", "grüß"),
        ("text/plain", b"\xff\x00", "data_base64", "/wA="),
        ("text/plain; charset=iso-8859-1", "ü".encode("latin-1"), "data_base64", "/A=="),
        ("image/png", b"\x89PNG\r\n\x1a\n", "data_base64", "iVBORw0KGgo="),
        ("application/xml", b"<a/>", "data", "<a/>"),
        ("application/x-www-form-urlencoded", b"a=b", "data", "a=b"),
        (None, b"plain", "data", "plain"),
        (None, b"", "data", ""),
        ("application/octet-stream", b"\x00\xff", "data_base64", "AP8="),
        ("application/octet-stream", b"", "data_base64", ""),
        ("application/cloudevents+protobuf", b"\x0a\x01", "data_base64", "CgE="),
    ],
)
async def test_placement(node: Node, content_type: str | None, body: bytes, member: str, value: object) -> None:
    """The content type decides where data stands; only exactly application/json is JSON."""
    event = await publish(node, body, content_type)
    assert event["datacontenttype"] == (content_type or "text/plain")
    assert event[member] == value
    assert len({"data", "data_base64"} & set(event)) == 1


async def test_json_arrives_byte_for_byte(node: Node) -> None:
    """Numbers keep their precision, objects the order of their members."""
    topic = next(topics)
    data = b'{"z":12345678901234567890123.10,"a":1e3}'
    await node.post(f"/v1.0/publish/open/{topic}", data, "application/json")
    assert (await delivered(node, topic))[0].body.startswith(b'{"data":' + data + b",")


@pytest.mark.parametrize(
    ("query", "changed"),
    [
        ("cloudevent.id=i", {"id": "i"}),
        ("cloudevent.source=/a%20b", {"source": "/a b"}),
        ("cloudevent.type=ty%C3%BC", {"type": "tyü"}),
        ("cloudevent.subject=s", {"subject": "s"}),
        ("cloudevent.subject=", {"subject": None}),
        ("cloudevent.traceid=x", {"traceid": "x", "traceparent": TRACE}),
        (f"cloudevent.traceparent={TRACEPARENT}", {"traceid": TRACEPARENT, "traceparent": TRACEPARENT}),
        ("cloudevent.traceparent=y", {"traceid": TRACE, "traceparent": TRACE}),
        ("cloudevent.tracestate=z", {"tracestate": "z"}),
        ("CloudEvent.ID=i", {"id": "i"}),
        ("cloudevent.specversion=2.0", {"specversion": "1.0"}),
        ("cloudevent.topic=other", {}),
        ("cloudevent.pubsubname=other", {"pubsubname": "open"}),
        ("cloudevent.datacontenttype=text/html", {"datacontenttype": "text/plain"}),
        ("cloudevent.time=2020-01-01T00:00:00Z", {"time": NOW}),
        ("cloudevent.data=x", {"data": "hello"}),
        ("cloudevent.own=x", {"own": None}),
        ("ttlInSeconds=60", {"expiration": matches(lambda text: text.endswith("Z"))}),
        ("ttl=1h30m", {"expiration": ANY}),
    ],
)
async def test_overrides(node: Node, query: str, changed: dict[str, object]) -> None:
    """Metadata replaces some attributes, whatever the case of their names, and no others."""
    event = await publish(node, b"hello", query=f"?metadata.{query}")
    for name, value in changed.items():
        assert event.get(name) == value, event


async def test_cloud_event_of_the_caller(node: Node) -> None:
    """An event that the application built keeps what it says; topic and pubsubname are always overwritten."""
    given = {
        "id": "1",
        "source": "src",
        "type": "my.type",
        "specversion": "1.0",
        "datacontenttype": "text/x",
        "subject": "sub",
        "data": {"k": None},
        "ext": 5,
        "topic": "wrong",
        "pubsubname": "wrong",
        "time": "2020-01-01T00:00:00Z",
        "traceid": "mine",
        "traceparent": TRACEPARENT,
        "tracestate": "st",
    }
    event = await publish(
        node, orjson.dumps(given), "application/cloudevents+json; charset=utf-8", "?metadata.cloudevent.id=no"
    )
    assert event == {**given, "topic": event["topic"], "pubsubname": "open"}
    assert list(event) == sorted(event)


@pytest.mark.parametrize("bulk", [False, True], ids=["single", "bulk"])
@pytest.mark.parametrize(
    ("own", "kept"),
    [(TRACEPARENT, True), (None, False), ("own", False), ("00-" + "0" * 32 + TRACEPARENT[35:], False)],
)
async def test_an_event_s_own_trace_is_continued(node: Node, own: str | None, kept: bool, bulk: bool) -> None:
    """Its delivery is a child of it, whatever the request's trace is; what is no trace is replaced, with its state."""
    topic = next(topics)
    event = {"id": "1", "data": 1, "tracestate": "a=1", **({} if own is None else {"traceparent": own})}
    other = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "b=2"}
    entry = {"entryId": "1", "event": event, "contentType": CE["Content-Type"]}
    target = f"/v1.0/publish/{'bulk/' if bulk else ''}open/{topic}"
    sent = [entry] if bulk else event
    assert (await node.request("POST", target, {**CE, **other}, sent)).status == 204
    got = (await delivered(node, topic))[0]
    expected = own if kept else matches(lambda text: text[:36] == other["traceparent"][:36])
    assert got.json == {
        "data": 1,
        "id": "1",
        "pubsubname": "open",
        "source": "Dapr",
        "specversion": "1.0",
        "time": NOW,
        "topic": topic,
        "traceid": expected,
        "traceparent": expected,
        "tracestate": "a=1" if kept else "b=2",
        "type": "com.dapr.event.sent",
    }
    assert got.headers["traceparent"] == matches(lambda text: text[:36] == got.json["traceparent"][:36])
    assert got.headers["traceparent"] != got.json["traceparent"]
    assert got.headers["tracestate"] == got.json["tracestate"]


async def test_trap_9_an_event_without_id_stays_without(node: Node) -> None:
    """None is made up."""
    event = await publish(node, b'{"data_base64":"AA=="}', "application/cloudevents+json")
    assert "id" not in event
    assert event["data_base64"] == "AA=="


async def test_trace_context_continues(node: Node) -> None:
    """The publish is a child of the caller's span; tracestate is passed on."""
    event = await publish(node, b"x", headers={"traceparent": TRACEPARENT, "tracestate": "a=1"})
    assert event["traceparent"][:36] == TRACEPARENT[:36]
    assert event["traceparent"] != TRACEPARENT
    assert event["tracestate"] == "a=1"
    bad = await publish(node, b"x", headers={"traceparent": "00-bad", "tracestate": "a=1"})
    assert (bad["traceparent"], bad["tracestate"]) == (TRACE, "")


async def test_trace_context_of_raw_bytes(node: Node) -> None:
    """What W3C calls invalid is left out, and a trace of its own begins."""
    topic = next(topics)
    lines = [
        f"POST /v1.0/publish/open/{topic} HTTP/1.1",
        "Host: x",
        "Connection: close",
        "Content-Length: 0",
        f"traceparent: {TRACEPARENT}-\xff",
        "tracestate: a=\xff",
        "",
        "",
    ]
    assert b" 204 " in await node.raw("\r\n".join(lines).encode("latin-1"))
    event = (await delivered(node, topic))[0].json
    assert event["traceparent"] == TRACE
    assert TRACEPARENT[3:35] not in event["traceparent"]
    assert event["tracestate"] == ""


@pytest.mark.parametrize(
    ("written", "topic"),
    [
        ("a/b", "a/b"),
        ("a%2Fb", "a/b"),
        ("a//b/./c", "a/b/c"),
        ("a+b", "a+b"),
        ("a%2Bb", "a+b"),
        ("gr%C3%BC", "grü"),
        ("x?", "x"),
        ("dotted.name", "dotted.name"),
        ("a*b", "a*b"),
        ("sp%20ace/", "sp ace/"),
    ],
)
async def test_topic_names(node: Node, written: str, topic: str) -> None:
    """A topic is the rest of the path, decoded; slashes belong to it."""
    assert (await node.post(f"/v1.0/publish/open/{written}", b"x")).status == 204
    assert (await delivered(node, topic))[0].json["topic"] == topic


async def test_a_raw_payload_travels_as_it_is(node: Node) -> None:
    """Without an envelope, a JSON object arrives at an ordinary subscription byte for byte."""
    topic = next(topics)
    body = orjson.dumps({"topic": topic, "blank": " "}).replace(b":", b" : ")
    assert (await node.post(f"/v1.0/publish/open/{topic}?metadata.rawPayload=true", body)).status == 204
    assert (await delivered(node, topic))[0].body == body


async def test_trap_1_no_component_at_all(memory: Backbone, tmp_path: Any) -> None:
    """Without any pub/sub component the answer differs from an unknown one."""
    async with gateway(memory, tmp_path, resources=component("s", "state.in-memory")) as node:
        reply = await node.post("/v1.0/publish/x/t", b"y")
    assert reply.status == 400
    expected = error("ERR_PUBSUB_NOT_CONFIGURED", "pubsub x is not configured", [info("DAPR_PUBSUB_NOT_CONFIGURED")])
    assert reply.json == expected


async def test_trap_15_namespace_in_settings_prefixes_topics(nats: Backbone, tmp_path: Any) -> None:
    """`{namespace}` in any setting puts the namespace before every topic, unseparated, which subscribers do not see."""
    resources = component("pubsub", "pubsub.mesh", consumerID="{namespace}") + component("plain", "pubsub.mesh")
    app = App([{"pubsubname": "pubsub", "topic": "t", "route": "/t"}])
    async with app, gateway(nats, tmp_path, app=app, resources=resources) as node:
        await node.publish("t", "x")
        assert (await app.until("/t"))[0].json["topic"] == "t"
        assert node.gateway._runtime.services["pubsub"].components["pubsub"].address("t").label == f"{nats.namespace}t"
        assert node.gateway._runtime.services["pubsub"].components["pubsub"].group == f"{nats.namespace}.app"


async def test_trap_25_without_tracing_trace_fields_are_empty(memory: Backbone, tmp_path: Any) -> None:
    """A sampling rate of "0" switches tracing off."""
    file = tmp_path / "config.yaml"
    file.write_text(
        '{"apiVersion":"dapr.io/v1alpha1","kind":"Configuration","metadata":{"name":"c"},"spec":{"tracing":{"samplingRate":"0"}}}'
    )
    app = App([{"pubsubname": "pubsub", "topic": "t", "route": "/t"}])
    async with app, gateway(memory, tmp_path, app=app, configuration_files=(file,)) as node:
        await node.publish("t", "x")
        got = (await app.until("/t"))[0]
    assert (got.json["traceid"], got.json["traceparent"], got.json["tracestate"]) == ("", "", "")
    assert "traceparent" not in got.headers


@pytest.mark.costly
async def test_2500_concurrent_publishes_succeed(memory: Backbone, tmp_path: Any) -> None:
    """As the Node SDK's upstream load test does on one machine."""
    async with gateway(memory, tmp_path) as node, asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(node.post("/v1.0/publish/pubsub/t", b"x")) for _ in range(2500)]
    assert {task.result().status for task in made} == {204}
