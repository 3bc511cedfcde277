"""Publishing over gRPC: an event arrives as one that was published over HTTP, and is refused in the same words."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio

from tests.grpc.harness import Both, Call, Client, calls, check_both, check_call, client, pairs, refused
from tests.http.harness import App, Backbone, Node, component, gateway, matches
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
topics = (f"topic{number}" for number in itertools.count())
RESOURCES = component("pubsub", "pubsub.mesh", publishingScopes="app=closed2;other=x", protectedTopics="secret")
RESOURCES += component("open", "pubsub.mesh")
# Of each event for itself.
APART = {"expiration", "id", "time", "topic", "traceid", "traceparent"}
OWN = b'{"id":"1","source":"s","type":"t","specversion":"1.0","data":{"a":1},"own":true}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app() -> AsyncIterator[App]:
    raw = {"pubsubname": "open", "topic": "raw.>", "route": "/events", "metadata": {"rawPayload": "true"}}
    async with App([{"pubsubname": "open", "topic": "events.>", "route": "/events"}, raw]) as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory, app: App) -> AsyncIterator[Node]:
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), app=app, resources=RESOURCES) as node:
        app.got.clear()
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def called(node: Node) -> AsyncIterator[Client]:
    async with client(node) as called:
        yield called


async def delivered(app: App, topic: str, count: int = 1) -> list[dict[str, Any]]:
    """Give the events of a topic, as the application got them."""

    def check() -> list[dict[str, Any]]:
        found = [got.json for got in app.at("/events") if got.json["topic"] == topic]
        assert len(found) >= count, app.got[-3:]
        return found

    return await eventually(check)


def shared(event: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in event.items() if name not in APART}


@pytest.mark.parametrize(
    ("data", "content_type", "metadata", "kind"),
    [
        (b"hello", "", {}, "events"),
        (b"", "", {}, "events"),
        (b"w\xc3\xb6rd", "text/plain; charset=utf-8", {}, "events"),
        (b'{"a": 1.50}', "application/json", {}, "events"),
        (b"no JSON", "application/json", {}, "events"),
        (b"", "application/json", {}, "events"),
        (b'{"a":1}', "application/vnd.x+json", {}, "events"),
        (b"\xff\x00", "application/octet-stream", {}, "events"),
        (b"\xff\x00", "text/plain", {}, "events"),
        (b"<a/>", "application/xml", {}, "events"),
        (OWN, "application/cloudevents+json", {}, "events"),
        (b"x", "", {"cloudevent.type": "mine", "CloudEvent.Subject": "s", "cloudevent.source": "ö"}, "events"),
        (b"x", "text/plain", {"partitionKey": "p", "unknown": "u"}, "events"),
        (b"x", "text/plain", {"TTLinSeconds": "100"}, "events"),
        (OWN, "application/cloudevents+json", {"ttl": "1m40s"}, "events"),
        (b"\x00raw", "text/plain", {"rawPayload": "true"}, "raw"),
        (b"", "", {"israwpayload": "1"}, "raw"),
    ],
)  # fmt: skip
async def test_an_event_arrives_as_over_http(
    node: Node, called: Client, app: App, data: bytes, content_type: str, metadata: dict[str, str], kind: str
) -> None:
    one, two = f"{kind}.{next(topics)}", f"{kind}.{next(topics)}"
    query = urlencode({f"metadata.{name}": value for name, value in metadata.items()})
    headers = {"Content-Type": content_type} if content_type else None
    reply = await node.request("POST", f"/v1.0/publish/open/{one}?{query}", headers, data)
    assert reply.status == 204, reply
    fields = {"pubsub_name": "open", "topic": two, "data": data, "metadata": metadata}
    assert await called.call("PublishEvent", data_content_type=content_type, **fields) == {}
    (expected,), (event,) = await delivered(app, one), await delivered(app, two)
    assert shared(event) == shared(expected)
    assert set(event) == set(expected)


async def test_names(called: Client, app: App) -> None:
    """A topic is any text; what HTTP writes with escapes is written as it is."""
    for topic in ("events.a b", "events.wörter", "events.a%2Fb", "events.a/b?c#d", "events." + "x" * 100):
        await called.call("PublishEvent", pubsub_name="open", topic=topic, data=b"x")
        assert len(await delivered(app, topic)) == 1


async def test_the_trace_goes_on(called: Client, app: App) -> None:
    """Of a header of HTTP's name, and of gRPC's own binary one."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    binary = b"\0\0" + bytes.fromhex(trace) + b"\1" + bytes.fromhex(span) + b"\2\1"
    for metadata in (("traceparent", f"00-{trace}-{span}-01"), ("grpc-trace-bin", binary)):
        topic = f"events.{next(topics)}"
        await called.call("PublishEvent", (metadata,), pubsub_name="open", topic=topic, data=b"x")
        assert (await delivered(app, topic))[0]["traceparent"].split("-")[1] == trace


def entry(entry_id: str = "1", event: bytes = b"x", kind: str = "text/plain", **metadata: str) -> dict[str, Any]:
    return {"entry_id": entry_id, "event": event, "content_type": kind, "metadata": metadata}


@pytest.mark.parametrize("method", ["BulkPublishEvent", "BulkPublishEventAlpha1"])
async def test_several_events(called: Client, app: App, method: str) -> None:
    """Each has its own type and metadata; bytes are taken as they are."""
    topic = f"events.{next(topics)}"
    own = {"cloudevent.subject": "own"}
    entries = [
        entry("a", b'{"n": 1}', "application/json", **own),
        entry("b", b"text", ""),
        entry("c", b"\xff", "application/octet-stream"),
        entry("d", OWN, "application/cloudevents+json"),
    ]
    whole = {"cloudevent.type": "whole"}
    assert await called.call(method, pubsub_name="open", topic=topic, entries=entries, metadata=whole) == {}
    events = {str(event.get("data", event.get("data_base64"))): event for event in await delivered(app, topic, 4)}
    assert set(events) == {"{'n': 1}", "text", "/w==", "{'a': 1}"}
    first = events["{'n': 1}"]
    # As over HTTP, only an entry with metadata of its own has those of the whole.
    assert (first["subject"], first["type"], events["text"]["type"]) == ("own", "whole", "com.dapr.event.sent")
    assert events["text"]["datacontenttype"] == "text/plain"
    assert events["{'a': 1}"]["own"] is True


async def test_several_raw_events(called: Client, app: App) -> None:
    topic = f"raw.{next(topics)}"
    fields = {"pubsub_name": "open", "topic": topic, "entries": [entry()], "metadata": {"rawPayload": "true"}}
    assert await called.call("BulkPublishEvent", **fields) == {}
    assert (await delivered(app, topic))[0]["data_base64"] == "eA=="


async def test_what_of_several_is_not_stored_is_told(called: Client, app: App) -> None:
    """By its entry, with the others stored; the call itself went well."""
    topic = f"events.{next(topics)}"
    # Data may have any size, attributes stand in the message.
    entries = [entry("small"), entry("large", **{"cloudevent.subject": "x" * 2**21})]
    found = await called.message("BulkPublishEvent", pubsub_name="open", topic=topic, entries=entries)
    assert [(failed.entry_id, "over the limit" in failed.error) for failed in found.failedEntries] == [("large", True)]
    assert [event["data"] for event in await delivered(app, topic)] == ["x"]


def event(topic: str = "t", pubsub: str = "open", data: bytes = b"x", **metadata: str) -> dict[str, Any]:
    return {"pubsub_name": pubsub, "topic": topic, "data": data, "metadata": metadata}


def several(*entries: dict[str, Any], topic: str = "t", pubsub: str = "open", **metadata: str) -> dict[str, Any]:
    return {"pubsub_name": pubsub, "topic": topic, "entries": entries, "metadata": metadata}


def post(path: str, body: object = b"x", content_type: str = "text/plain") -> tuple[Any, ...]:
    return "POST", f"/v1.0/publish/{path}", {"Content-Type": content_type}, body


BAD, DENIED = "INVALID_ARGUMENT", "PERMISSION_DENIED"
SAME = [{"entryId": "1", "event": "x", "contentType": "text/plain"}] * 2
LONG = "x" * 5000


@pairs(
    Both("unknown", post("nope/t"), "PublishEvent", event(pubsub="nope"), BAD, 404),
    Both("without a topic", post("open/"), "PublishEvent", event(""), BAD, 404),
    Both("a topic that is too long", post(f"open/{LONG}"), "PublishEvent", event(LONG), BAD, 400),
    Both("a protected topic", post("pubsub/secret"), "PublishEvent", event("secret", "pubsub"), DENIED, 403),
    Both("a topic that is denied", post("pubsub/t"), "PublishEvent", event("t", "pubsub"), DENIED, 403),
    Both("raw that is no boolean", post("open/t?metadata.rawPayload=yes"), "PublishEvent",
         event(rawPayload="yes"), BAD, 400),
    Both("ttl that is none", post("open/t?metadata.ttlInSeconds=soon"), "PublishEvent",
         event(ttlInSeconds="soon"), BAD, 400),
    Both("ttl that is negative", post("open/t?metadata.ttlInSeconds=-1"), "PublishEvent",
         event(ttlInSeconds="-1"), BAD, 400),
    Both("misspelt metadata", post("open/t?metadata.ttlInSecond=1"), "PublishEvent", event(ttlInSecond="1"), BAD, 400),
    Both("an event of one's own that is none", post("open/t", b"[", "application/cloudevents+json"), "PublishEvent",
         {**event(data=b"["), "data_content_type": "application/cloudevents+json"}, BAD, 500),
    Both("several, unknown", post("bulk/nope/t", SAME), "BulkPublishEvent", several(entry(), pubsub="nope"), BAD, 404),
    Both("several, no topic", post("bulk/open/", SAME), "BulkPublishEvent", several(entry(), topic=""), BAD, 404),
    Both("several, denied", post("bulk/pubsub/t", SAME[:1]), "BulkPublishEvent", several(entry(), pubsub="pubsub"),
         DENIED, 403),
    Both("several with one id", post("bulk/open/t", SAME), "BulkPublishEvent", several(entry(), entry()), BAD, 400),
    Both("several, raw that is no boolean", post("bulk/open/t?metadata.rawPayload=yes", SAME[:1]), "BulkPublishEvent",
         several(entry(), rawPayload="yes"), BAD, 400),
)  # fmt: skip
async def test_failures_are_told_alike(node: Node, called: Client, both: Both) -> None:
    await check_both(node, called, both)


@calls(
    Call("no name", "PublishEvent", event(pubsub=""), (BAD, "pubsub name is empty")),
    Call("no name, several", "BulkPublishEvent", several(pubsub="", topic=""), (BAD, "pubsub name is empty")),
    Call("no entries", "BulkPublishEvent", several()),
    Call("an entry without an id", "BulkPublishEvent", several(entry(), entry("")),
         (BAD, matches(lambda text: text.endswith("in pubsub open: entry 1: entry_id is empty (for example '2')")))),
    Call("misspelt metadata of an entry", "BulkPublishEvent", several(entry(ttlInSecond="1")),
         (BAD, matches(lambda text: "did you mean 'ttlInSeconds'?" in text))),
)  # fmt: skip
async def test_calls(called: Client, call: Call) -> None:
    await check_call(called, call)


async def test_a_gateway_without_pubsub(memory: Backbone, tmp_path_factory: pytest.TempPathFactory) -> None:
    resources, home = component("statestore", "state.mesh"), tmp_path_factory.mktemp("home")
    async with gateway(memory, home, resources=resources) as node, client(node) as called:
        for name in ("pubsub", ""):
            expected = ("FAILED_PRECONDITION", f"pubsub {name} is not configured")
            assert await refused(called, "PublishEvent", **event(pubsub=name)) == expected
