"""A durable call at its callee: an outcome that is known is never asked for again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import msgspec
import orjson
import pytest

from mesh import address
from mesh.access import Gate
from mesh.application import Headers
from mesh.blocks.durable import _Callee
from mesh.blocks.durable_outcome import DEAD_LETTER_HEADER, OUTCOME_HEADER, REPLY_HEADER, Sent, split_topic
from mesh.blocks.durable_record import ID_HEADER, KEEP_SECONDS, Record, Records, State
from mesh.blocks.invocation import HTTP_HEADER
from mesh.blocks.records import LazyRecords
from mesh.broker import Delivery, Message
from mesh.delivery import SUCCESS
from mesh.errors import BadArgumentError, BrokerUnavailableError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.operation import Caller
from mesh.packing import pack
from mesh.store import KeyValueStateStore, StateStore, Stored
from mesh.telemetry import nobody
from mesh.trust.kept import Kept


class Response:
    status = 200
    headers: Headers = ()

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        return b'"done"'

    async def parts(self) -> AsyncIterator[bytes]:
        yield b'"done"'


class Application:
    """Counts its calls."""

    is_grpc = False

    def __init__(self) -> None:
        self.calls = 0

    @asynccontextmanager
    async def call(self, method: str, target: str, headers: Headers, body: object) -> AsyncIterator[Response]:
        self.calls += 1
        yield Response()


class Topic:
    """Where the outcome is wanted; fails as often as told."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.published: list[tuple[str, str, object]] = []
        self.sent: list[tuple[str, Message]] = []

    async def publish(self, delivery: Delivery, topic: str, event_id: str, body: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise BrokerUnavailableError("away")
        self.published.append((topic, event_id, orjson.loads(body)["state"]))

    async def send_back(self, queue: str, message: Message) -> None:
        if self.failures:
            self.failures -= 1
            raise BrokerUnavailableError("away")
        self.sent.append((queue, message))


class Failing(KeyValueStateStore):
    """A store that refuses so many writes."""

    def __init__(self, failures: int) -> None:
        super().__init__(MemoryKeyValue())
        self.failures = failures

    async def write(self, items: object) -> None:
        if self.failures:
            self.failures -= 1
            raise StateError("full")
        await super().write(items)  # type: ignore[arg-type]


def delivery(attempt: int = 1, caller: str = "caller") -> Delivery:
    headers = {
        HTTP_HEADER: pack("POST", "/work", []),
        ID_HEADER: "c1",
        REPLY_HEADER: "outcomes",
        DEAD_LETTER_HEADER: "dead",
        "ce-source": quote(caller),
    }
    return Delivery(Message(headers, b"x"), address.topic("ns", "calls", "callee"), attempt, None)  # type: ignore[arg-type]


async def record(store: StateStore) -> Record | None:
    stored: Stored | None = await store.get("c1", strong=True)
    return None if stored is None else Record.decode(stored.value)


def callee(store: StateStore, topic: Topic, application: Application, kept: Kept | None = None) -> _Callee:
    async def opened(name: str) -> StateStore:
        return store

    own = Caller("ns", "callee")
    records = Records(LazyRecords("invocations", opened), own, kept)
    return _Callee(records, topic.publish, topic.send_back, application, own, Gate(own, None, nobody))  # type: ignore[arg-type]


async def test_publishing_the_outcome_is_tried_again_without_the_application() -> None:
    """However often it fails; it is published at least once, under the call's id."""
    store, topic, application = KeyValueStateStore(MemoryKeyValue()), Topic(failures=3), Application()
    handler = callee(store, topic, application)
    for attempt in (1, 2, 3):
        with pytest.raises(BrokerUnavailableError):
            await handler.attempt(delivery(attempt))
    known = await record(store)
    assert known is not None
    assert (known.state, known.status, known.caller, known.told) == (State.SUCCEEDED, 200, "caller", False)
    assert await handler.attempt(delivery(4)) is SUCCESS
    assert await handler.attempt(delivery(5)) is SUCCESS
    assert application.calls == 1
    assert topic.published == [("outcomes", "c1", "succeeded")]


async def test_an_outcome_is_kept_until_it_is_published() -> None:
    """The callee may be away for days in between: the call comes again for as long as the broker keeps it."""
    away = 0.0
    store, topic, application = KeyValueStateStore(MemoryKeyValue(lambda: away)), Topic(failures=1), Application()
    handler = callee(store, topic, application)
    with pytest.raises(BrokerUnavailableError):
        await handler.attempt(delivery())
    away = 7 * 24 * 3600.0
    assert await handler.attempt(delivery(2)) is SUCCESS
    assert (application.calls, topic.published) == (1, [("outcomes", "c1", "succeeded")])
    away += KEEP_SECONDS + 60
    assert await record(store) is None  # It is as old as any other then.


async def test_an_outcome_that_cannot_be_noted_is_asked_for_again() -> None:
    """At least once: nothing says that it ran."""
    application = Application()
    handler = callee(Failing(1), Topic(), application)
    with pytest.raises(StateError):
        await handler.attempt(delivery())
    assert await handler.attempt(delivery(2)) is SUCCESS
    assert application.calls == 2


async def test_giving_up_does_not_undo_what_was_done() -> None:
    """A call that ran stays succeeded, though its outcome could not be published."""
    store, topic = KeyValueStateStore(MemoryKeyValue()), Topic(failures=9)
    handler = callee(store, topic, Application())
    with pytest.raises(BrokerUnavailableError):
        await handler.attempt(delivery())
    await handler.give_up(delivery(2), "away", 2)
    known = await record(store)
    assert known is not None
    assert known.state is State.SUCCEEDED


async def test_an_outcome_goes_back_to_the_cluster_of_its_caller() -> None:
    """By the topic of that cluster alone, until it is stored there; it publishes nothing here in the name of others."""
    store, topic, application = KeyValueStateStore(MemoryKeyValue()), Topic(failures=1), Application()
    handler = callee(store, topic, application)
    with pytest.raises(BrokerUnavailableError):
        await handler.attempt(delivery(caller="caller@east"))
    for attempt in (2, 3):
        assert await handler.attempt(delivery(attempt, caller="caller@east")) is SUCCESS
    assert (application.calls, topic.published) == (1, [])
    ((queue, message),) = topic.sent
    sent = msgspec.msgpack.decode(message.body, type=Sent)
    assert (queue, message.headers[OUTCOME_HEADER], message.headers[REPLY_HEADER]) == ("@east", "1", "outcomes")
    record = Record.decode(sent.record)
    assert (record.state, record.caller, sent.body) == (State.SUCCEEDED, "caller@east", b"")


async def test_a_call_of_another_cluster_that_is_given_up_brings_its_body_along() -> None:
    """It is for the dead letter topic of its caller, which is there."""
    topic = Topic()
    handler = callee(KeyValueStateStore(MemoryKeyValue()), topic, Application())
    await handler.give_up(delivery(caller="caller@east"), "enough", 3)
    ((queue, message),) = topic.sent
    sent = msgspec.msgpack.decode(message.body, type=Sent)
    record = Record.decode(sent.record)
    assert (queue, record.state, record.reason, sent.body) == ("@east", State.FAILED, "enough", b"x")
    assert topic.published == []


async def test_a_record_of_before_can_be_read() -> None:
    """It names no caller, and owes no publishing."""
    head = {"id": "c1", "app_id": "a", "method": "/m", "state": "pending", "attempts": 0, "reason": "", "status": None}
    old = orjson.dumps({**head, "headers": pack(), "truncated": False}) + b"\nbody"
    assert Record.decode(old) == Record("c1", "a", "/m", headers=[], body=b"body")


@pytest.mark.parametrize(
    ("text", "where"),
    [("t", ("pubsub", "t")), ("p/t", ("p", "t")), ("p/a/b", ("p", "a/b")), ("", None), ("p/", None), ("/t", None)],
)
def test_where_an_outcome_goes(text: str, where: tuple[str, str] | None) -> None:
    """A topic, or a component and a topic; neither is empty."""
    if where is None:
        with pytest.raises(BadArgumentError, match="component/topic"):
            split_topic(text)
    else:
        assert split_topic(text) == where
