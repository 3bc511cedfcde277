"""Handlers that take and return events of the package ``cloudevents``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import pytest

pytest.importorskip("faststream")

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.http import CloudEvent as FormerCloudEvent
from cloudevents.v1.pydantic import CloudEvent as ModelCloudEvent
from faststream import Context, FastStream
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.nats import NatsBroker, TestNatsBroker
from faststream.rabbit import RabbitBroker, TestRabbitBroker
from faststream.redis import RedisBroker, TestRedisBroker
from pydantic import InstanceOf, WithJsonSchema

from brokers.faststream import Mesh
from brokers.faststream._application import DROP
from brokers.faststream._cloudevents import cloudevent_of, event_of, is_cloudevent
from mesh.errors import ConfigError, EventError
from mesh.event import Event, from_structured, to_structured

ATTRIBUTES = {"id": "1", "source": "/shop", "type": "sold", "time": "2026-01-02T03:04:05.5Z"}
KINDS = [CloudEvent, FormerCloudEvent, ModelCloudEvent]


def _made(kind: Any, data: object, **more: object) -> Any:
    attributes: dict[str, object] = {**ATTRIBUTES, **more}
    if kind is CloudEvent:
        attributes["time"] = datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC)
    return kind(attributes, data)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_of_each_class_is_read_and_made(kind: Any) -> None:
    given = _made(kind, {"a": 1}, size=3, subject="x", datacontenttype="application/json")
    assert is_cloudevent(given)
    event = event_of(given)
    assert (event.id, event.source, event.type, event.subject, event.data) == ("1", "/shop", "sold", "x", b'{"a":1}')
    assert event.time is not None
    assert datetime.fromisoformat(event.time) == datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC)
    assert event.extensions == {"size": 3}
    made: Any = cloudevent_of(event, {"a": 1}, kind)
    assert type(made) is kind
    assert (dict(made.get_attributes()), made.get_data()) == (dict(given.get_attributes()), {"a": 1})


@pytest.mark.parametrize(
    ("data", "media", "body", "read_as"),
    [
        ({"a": [1]}, None, b'{"a":[1]}', None),
        (None, None, b"", None),
        ("text", None, b'"text"', None),
        ("text", "application/json", b'"text"', "application/json"),
        ("t\u00e9xt", "text/plain", "t\u00e9xt".encode(), "text/plain"),
        (b'{"a":1}', "application/json", b'{"a":1}', "application/json"),
        (b'{"a":1}', None, b'{"a":1}', "application/octet-stream"),
        (b"\x00\xff", None, b"\x00\xff", "application/octet-stream"),
    ],
)
def test_data_are_written_by_their_kind(data: Any, media: str | None, body: bytes, read_as: str | None) -> None:
    more = {} if media is None else {"datacontenttype": media}
    event = event_of(_made(CloudEvent, data, **more))
    assert (event.data, event.datacontenttype) == (body, read_as)
    assert from_structured(to_structured(event)).data == body


def test_the_package_reads_what_is_written() -> None:
    given = _made(CloudEvent, {"a": 1}, size=3)
    read = JSONFormat().read(None, to_structured(event_of(given)))
    assert (read.get_attributes(), read.get_data()) == (given.get_attributes(), {"a": 1})


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-01-02t03:04:05z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789+01:00", datetime(2026, 1, 2, 2, 4, 5, 123_456, UTC)),
    ],
)
def test_each_time_that_an_event_may_have_is_read(time: str, expected: datetime) -> None:
    made: Any = cloudevent_of(Event("1", "s", "t", time=time), None, CloudEvent)
    assert made.get_time() == expected


def test_what_is_none_is_refused() -> None:
    assert not any(map(is_cloudevent, ({}, b"", CloudEvent, Event("1", "s", "t"))))
    with pytest.raises(EventError, match=r"specversion.*1\.0.*0\.3"):
        event_of(FormerCloudEvent({**ATTRIBUTES, "specversion": "0.3"}))
    with pytest.raises(EventError, match="holds none"):
        cloudevent_of(None, {}, CloudEvent)


# By a handler

BROKERS = [
    (NatsBroker, TestNatsBroker),
    (RedisBroker, TestRedisBroker),
    (RabbitBroker, TestRabbitBroker),
    (KafkaBroker, TestKafkaBroker),
]


@pytest.mark.parametrize(("broker_kind", "test_kind"), BROKERS, ids=["nats", "redis", "rabbit", "kafka"])
async def test_handlers_take_and_return_events_under_a_test_broker(broker_kind: Any, test_kind: Any) -> None:
    broker = broker_kind()
    mesh = Mesh(broker, app_id="pricing", backbone="memory:")
    taken: list[Any] = []

    @mesh.subscriber("orders")
    @mesh.publisher("priced", type="not.used")
    async def price(order: CloudEvent) -> CloudEvent:
        taken.append(order)
        return CloudEvent({"id": "2", "source": "/pricing", "type": "priced"}, "text")

    @mesh.subscriber("priced")
    async def priced(body: FormerCloudEvent, event: Annotated[Event, Context("message.event")]) -> None:
        taken.append(body)
        assert event.type == body["type"]

    async with test_kind(broker):
        await mesh.publish(_made(CloudEvent, {"a": 1}), "orders")
        await mesh.publish({"a": 2}, "orders", type="plain")
    assert [type(each) for each in taken] == [CloudEvent, FormerCloudEvent] * 2
    assert [each.get_data() for each in taken] == [{"a": 1}, "text", {"a": 2}, "text"]
    assert [taken[0].get_type(), taken[1]["type"], taken[2].get_type()] == ["sold", "priced", "plain"]


async def test_attributes_beside_an_event_are_refused() -> None:
    mesh = Mesh(NatsBroker(), app_id="pricing", backbone="memory:")
    event = _made(CloudEvent, {})
    with pytest.raises(ConfigError, match="give none beside it"):
        await mesh.publish(event, "orders", type="other")
    with pytest.raises(ConfigError, match="give none beside it"):
        await mesh.publish(event, "orders", content_type="text/plain")


async def test_a_handler_of_events_refuses_what_is_none() -> None:
    broker = NatsBroker()
    mesh = Mesh(broker, app_id="pricing", backbone="memory:")

    @mesh.subscriber("orders")
    async def take(order: CloudEvent) -> None:
        raise AssertionError

    async with TestNatsBroker(broker):
        assert await mesh._application.post(mesh.address("orders"), [], b'{"order": 7}') == DROP


async def test_methods_take_and_return_events_as_structured_ones() -> None:
    broker = NatsBroker()
    mesh = Mesh(broker, app_id="pricing", backbone="memory:")

    @mesh.method("price")
    async def price(order: dict[str, Any]) -> CloudEvent:
        return _made(CloudEvent, order["data"])  # type: ignore[no-any-return]

    async with TestNatsBroker(broker):
        body = to_structured(event_of(_made(CloudEvent, {"a": 1})))
        headers = [("Content-Type", "application/cloudevents+json")]
        async with mesh._application.call("POST", "price", headers, body) as answer:
            assert dict(answer.headers)["content-type"] == "application/cloudevents+json"
            assert from_structured(b"".join([part async for part in answer.parts()])).data == b'{"a":1}'


def test_asyncapi_knows_events_that_have_a_schema() -> None:
    broker = NatsBroker()
    mesh = Mesh(broker, app_id="pricing", backbone="memory:")
    shown = Annotated[CloudEvent, InstanceOf(), WithJsonSchema({"type": "object"})]

    async def take(order: Any) -> None:
        """Take it."""

    take.__annotations__["order"] = shown  # Not by its name, which FastStream looks for in the module.
    mesh.subscriber("orders")(take)
    schemas = FastStream(broker).schema.to_specification().to_jsonable()["components"]["schemas"]
    assert [each["type"] for each in schemas.values()] == ["object"]
