"""What a tap is told of requests and answers, and that nothing that is watched fails for it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from brokers.memory import MemoryBroker
from mesh import address
from mesh.address import Address
from mesh.blocks.invocation import INVOKE, Answer, Call
from mesh.blocks.lock import ACQUIRE, Acquire
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.blocks.telling import Telling
from mesh.blocks.topics import BULK_PUBLISH, PUBLISH, BulkEntry, BulkPublish, Publish
from mesh.broker import Message, Sink
from mesh.errors import BrokerUnavailableError, EventError, PermissionDeniedError
from mesh.operation import Caller, Context, Method, Operation
from mesh.passing import NOBODY, Part, Passing
from mesh.store import Item
from mesh.tap.content import HIDDEN, MAX_HEADER_BYTES, content
from mesh.tap.sight import Content, Dropped, Seen, Sight
from mesh.tap.wire import as_event, sight_of
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, component, node
from tests.support.tapped import tapping

CONTEXT = Context(Caller("ns", "orders"))


def noted(method: Method, target: str, asked: object, result: object = None) -> Passing:
    operation = Operation(method, target, asked, CONTEXT)
    made = Passing("asked", method.block, method.name, target)
    Telling.asked(made, operation)
    Telling.came(made, operation, result)
    return made


def told(part: Part | None, limit: int = 65536, *, values: bool = True) -> Content:
    found = content(Passing("asked", "state", "get", "store"), part, limit, values=values)
    assert found is not None
    return found


async def _stream() -> AsyncIterator[bytes]:
    yield b"x"


def test_streams_have_no_bodies() -> None:
    call = Call("POST", "/up", [("Content-Length", "77")], _stream())
    made = noted(INVOKE, "checkout", call, Answer(200, [("content-type", "text/event-stream")], None))
    assert told(made.request) == Content((("Content-Length", "77"),), "", 77)
    assert told(made.reply) == Content((("content-type", "text/event-stream"),), "text/event-stream", -1)


def test_calls_of_grpc() -> None:
    call = Call("POST", "/shop.Orders/Add", [], _stream(), grpc=True)
    answer = Answer(200, [("grpc-status", "5")], None)
    assert noted(INVOKE, "checkout", call, answer).details == {
        "verb": "POST",
        "path": "/shop.Orders/Add",
        "status": 200,
        "grpc": True,
        "grpcStatus": 5,
    }


def test_a_publish_that_was_refused() -> None:
    """Before it was an event: as it was asked."""
    made = noted(PUBLISH, "pubsub", Publish("orders", b"1", "text/plain", {"ttlInSeconds": "no"}))
    assert (made.target, made.details) == ("pubsub/orders", {"pubsub": "pubsub", "topic": "orders"})
    assert told(made.request) == Content((("ttlInSeconds", "no"),), "text/plain", 1, b"1")


def test_an_owner_of_a_lock_is_a_value() -> None:
    """Whoever knows it may release the lock."""
    made = noted(ACQUIRE, "locks", Acquire("orders", "the-owner", 10.0))
    assert (made.target, made.details) == ("locks", {"resource": "orders", "seconds": 10.0})


def test_many_events() -> None:
    entries = [BulkEntry(str(number), "application/json", b'{"n":1}', {}) for number in range(2)]
    made = noted(BULK_PUBLISH, "pubsub", BulkPublish("orders", entries))
    entries.clear()
    assert made.details == {"pubsub": "pubsub", "topic": "orders", "count": 2}
    body = orjson.loads(told(made.request).body or b"")
    assert body == [{"entryId": str(number), "contentType": "application/json", "event": {"n": 1}} for number in (0, 1)]


def test_what_is_no_json_is_told_as_well() -> None:
    deep: list[object] = []
    for _ in range(40):
        deep = [deep]
    value = {"deep": deep, "object": object(), "large": 2**70, "half": "\ud800", "bytes": b"text", "odd": float("nan")}
    found = orjson.loads(told(Part(value=value)).body or b"")
    assert found["object"] == "(object)"
    assert found["large"] == str(2**70)
    assert (found["bytes"], found["half"], found["odd"]) == ("text", "?", None)
    assert "…" in str(found["deep"])


@pytest.mark.parametrize("depth", [200, 250, 252, 300, 1000])
def test_what_nests_deeply_is_told_too(depth: int) -> None:
    body = b"[" * depth + b"]" * depth
    event = as_event("ns", _sight_of(told(Part(body=body, content_type="application/json"))), 1.0)
    read = sight_of(orjson.loads(orjson.dumps(event)))
    assert read is not None and read.request is not None and read.request.body == body
    within = told(Part(value=Save([Item("key", body)])))
    read = sight_of(orjson.loads(orjson.dumps(as_event("ns", _sight_of(within), 1.0))))
    assert read is not None and read.request is not None and body in (read.request.body or b"")


def _sight_of(request: Content) -> Sight:
    return Sight(
        id="n-1",
        time=1.0,
        seconds=0.1,
        seen=Seen.ASKED,
        block="state",
        method="save",
        target="store",
        source="orders",
        app="orders",
        node="n",
        outcome="ok",
        request=request,
    )


def test_headers_are_bounded() -> None:
    fields = [("authorization", "x" * 50_000), *((f"x-{number}", "y" * 1000) for number in range(200))]
    headers = told(Part(fields, body=b"")).headers or ()
    assert headers[0] == ("authorization", HIDDEN)
    assert len(headers) > 10
    assert sum(len(name) + len(value) for name, value in headers) <= MAX_HEADER_BYTES


def test_an_event_is_told_in_the_place_of_its_bytes() -> None:
    part = Part((), "text/plain", b"1")
    part.event = lambda: b'{"id":"1"}'
    assert told(part) == Content((), "application/cloudevents+json", 10, b'{"id":"1"}')
    assert told(part, values=False) == Content(None, "text/plain", 1)
    part.event = lambda: None
    assert told(part) == Content((), "text/plain", 1, b"1")
    assert content(Passing("asked", "state", "get", "store"), None, 1, values=True) is None


def test_nobody_watches() -> None:
    assert not NOBODY.on
    assert not NOBODY.takes("state")


def test_a_sight_is_read_back() -> None:
    sight = Sight(
        id="n-1",
        time=1.5,
        seconds=0.25,
        seen=Seen.ARRIVED,
        block="pubsub",
        method="deliver",
        target="pubsub/orders",
        source="shop",
        app="orders",
        node="n",
        outcome="retry",
        details={"attempt": 2},
        request=Content((("a", "b"),), "application/json", 7, b'{"a":1}'),
        reply=Content((), "", 2, b"\xff\x00", True),
        hidden=True,
    )
    event = orjson.loads(orjson.dumps(as_event("ns", sight, 0.0)))
    assert sight_of(event) == sight
    assert sight_of(as_event("ns", Dropped("a", "n", 1), 0.0)) is None
    for wrong in ({}, {**event, "type": "other"}, {**event, "data": 1}, {**event, "data": {}}):
        with pytest.raises(EventError):
            sight_of(wrong)


async def test_an_error_of_ours_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and what is watched goes on."""

    def broken(*_: object) -> None:
        raise ValueError("ours")

    store = component("store", "state.in-memory")
    async with node("memory:", "ns", store, app_id="a", registry=MemoryMesh()) as runtime, tapping(runtime, runtime):
        for name in ("asked", "came"):
            monkeypatch.setattr(Telling, name, staticmethod(broken))
        monkeypatch.setattr("mesh.tap.watch.Watch.see", broken)
        for _ in range(3):
            await ask(runtime, SAVE, "store", Save([Item("k", b"1")]))
        await ask(runtime, GET, "store", Get("k"))
    assert caplog.text.count("cannot tell a tap of state.save") == 1
    assert caplog.text.count("cannot tell a tap of state.get") == 1
    caplog.clear()


class Away(MemoryBroker):
    """Sends nothing to taps while it is away, and lets nobody listen who may not."""

    away = False
    refusal: Exception | None = None

    async def broadcast(self, address: Address, message: Message) -> None:
        if self.away and ".taps." in address.text:
            raise BrokerUnavailableError("away")
        await super().broadcast(address, message)

    @asynccontextmanager
    async def listen(self, address: Address, sink: Sink) -> AsyncIterator[None]:
        if self.refusal is not None and address.text.endswith(".taps"):
            raise self.refusal
        async with super().listen(address, sink):
            yield


def _mesh(broker: Away) -> MemoryMesh:
    mesh = MemoryMesh()
    mesh._made["backbone.memory"] = SimpleNamespace(from_url=lambda url: broker)
    return mesh


async def test_what_cannot_be_sent_is_counted() -> None:
    broker, store = Away(), component("store", "state.in-memory")
    runtime = node("memory:", "ns", store, app_id="a", registry=_mesh(broker))
    async with runtime, tapping(runtime, runtime) as seen:
        broker.away = True
        for _ in range(5):
            await ask(runtime, GET, "store", Get("k"))
        watched = next(iter(cast("Any", runtime).parts.taps._watches.values()))

        def lost() -> None:
            assert watched._dropped >= 5

        await eventually(lost)
        broker.away = False

        async def told_of_it() -> None:
            await ask(runtime, GET, "store", Get("k"))
            assert sum(each.count for each in seen.of(Dropped)) >= 5

        await eventually(told_of_it)


async def test_a_node_that_may_not_listen(caplog: pytest.LogCaptureFixture) -> None:
    """It works, and says that nobody can tap it; a broker that is just away is another matter."""
    broker = Away()
    broker.refusal = PermissionDeniedError("no right")
    caplog.set_level(logging.WARNING)
    async with node("memory:", "ns", component("store", "state.in-memory"), registry=_mesh(broker)) as runtime:
        await ask(runtime, GET, "store", Get("k"))
    assert f"may not listen at {address.taps('ns')}: no right" in caplog.text
    broker.refusal = BrokerUnavailableError("away")
    with pytest.raises(BrokerUnavailableError):
        await node("memory:", "ns", registry=_mesh(broker)).__aenter__()
