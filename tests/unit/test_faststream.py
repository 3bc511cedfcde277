"""A FastStream application on a mesh: its handlers under TestBroker, and on a mesh of memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("faststream")

from faststream import AckPolicy, BaseMiddleware, Context, FastStream, TestApp
from faststream.exceptions import NackMessage, RejectMessage
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.nats import NatsBroker, TestNatsBroker
from faststream.rabbit import RabbitBroker, TestRabbitBroker
from faststream.redis import RedisBroker, TestRedisBroker
from pydantic import BaseModel

from brokers.faststream import IncomingCall, Mesh, MeshMessage, Reply
from brokers.faststream._application import DROP, RETRY, SUCCESS
from brokers.memory import MemoryBroker, MemoryHub
from mesh.address import topic
from mesh.broker import Message
from mesh.errors import (
    ConfigError,
    FeatureNotSupportedError,
    HandlerFailedError,
    MeshError,
    NoResponderError,
    PermissionDeniedError,
)
from mesh.event import Event, from_headers, to_structured
from mesh.node.description import collect
from tests.support.eventually import eventually

BROKERS = [
    (NatsBroker, TestNatsBroker, ()),
    (RedisBroker, TestRedisBroker, ()),
    (RabbitBroker, TestRabbitBroker, ()),
    (KafkaBroker, TestKafkaBroker, ()),
]
IDS = ["nats", "redis", "rabbit", "kafka"]


RESOURCES = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: events
spec:
  type: pubsub.mesh
  version: v1
  metadata:
    - name: allowedTopics
      value: orders,failed
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata:
  name: declared
spec:
  pubsubname: events
  topic: orders
  routes:
    default: /orders
---
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata:
  name: retries
spec:
  policies:
    retries:
      twice:
        policy: constant
        duration: 10ms
        maxRetries: 2
  targets:
    components:
      events:
        inbound:
          retry: twice
"""


class Order(BaseModel):
    id: int
    amount: float = 1.0


def _mesh(broker: Any = None, **more: Any) -> Mesh:
    return Mesh(broker or NatsBroker(), app_id="pricing", backbone="memory:", **more)


# Under TestBroker, as a user tests an application


@pytest.mark.parametrize(("kind", "test_kind", "_"), BROKERS, ids=IDS)
async def test_published_events_reach_handlers_under_a_test_broker(kind: Any, test_kind: Any, _: Any) -> None:
    """By the mesh and by FastStream's own publish; data is validated, the event is at hand, mocks record."""
    broker = kind()
    mesh = _mesh(broker)
    events: list[Event] = []

    @mesh.subscriber("orders")
    async def take(order: Order, event: Annotated[Event, Context("message.event")]) -> None:
        events.append(event)

    async with test_kind(broker):
        await mesh.publish(Order(id=1), "orders", type="order.made", key="k")
        await broker.publish({"id": 2}, mesh.address("orders"))
        assert take.mock is not None
        assert [json.loads(json.dumps(call.args[0])) for call in take.mock.call_args_list] == [
            {"id": 1, "amount": 1.0},
            {"id": 2},
        ]
    assert [(event.type, event.source, event.datacontenttype) for event in events] == [
        ("order.made", "pricing", "application/json"),
        ("com.dapr.event.sent", "pricing", "application/json"),
    ]
    assert events[0].extensions["partitionkey"] == "k"


async def test_methods_answer_under_a_test_broker() -> None:
    broker = NatsBroker()
    mesh = _mesh(broker)

    @mesh.method("price")
    async def price(order: Order, call: Annotated[IncomingCall, Context("message.call")]) -> dict[str, float]:
        assert call.verb == "POST"
        return {"price": order.amount * 2}

    async with TestNatsBroker(broker):
        answer = await broker.request({"id": 1, "amount": 3}, mesh.method_address("price"))
        assert await answer.decode() == {"price": 6.0}


async def test_a_publisher_decorator_sends_an_event_under_a_test_broker() -> None:
    broker = NatsBroker()
    mesh = _mesh(broker)
    taken: list[tuple[object, str]] = []

    @mesh.subscriber("orders")
    @mesh.publisher("priced", type="order.priced")
    async def take(order: Order) -> dict[str, int]:
        return {"id": order.id}

    @mesh.subscriber("priced")
    async def priced(body: dict[str, int], event: Annotated[Event, Context("message.event")]) -> None:
        taken.append((body, event.type))

    async with TestNatsBroker(broker):
        await mesh.publish({"id": 7}, "orders")
    assert taken == [({"id": 7}, "order.priced")]


def test_asyncapi_of_faststream_shows_topics_and_methods() -> None:
    broker = NatsBroker()
    mesh = _mesh(broker)
    mesh.subscriber("orders", title="orders")(_nothing)
    mesh.method("price", title="price")(_nothing)
    mesh.publisher("priced", title="priced")
    channels = FastStream(broker).schema.to_specification().to_jsonable()["channels"]
    assert {channel["address"] for channel in channels.values()} == {
        "mesh/default/pubsub/orders",
        "mesh/default/app/pricing/price",
        "mesh/default/pubsub/priced",
    }


async def _nothing(body: object) -> None:
    """Take anything."""


# What FastStream's ways to end mean


def _event(**more: Any) -> bytes:
    given = {"id": "1", "source": "test", "type": "t", "data": b'{"id": 1}', "datacontenttype": "application/json"}
    return to_structured(Event(**{**given, **more}))


async def _posted(handler: Any, body: bytes | None = None, **options: Any) -> tuple[int, bytes]:
    broker = NatsBroker()
    mesh = _mesh(broker)
    mesh.subscriber("orders", **options)(handler)
    async with TestNatsBroker(broker):
        return await mesh._application.post(mesh.address("orders"), [("mesh-attempt", "3")], body or _event())


async def _rejects(body: object) -> None:
    raise RejectMessage


async def _nacks(body: object) -> None:
    raise NackMessage(delay=5)


async def _fails(body: object) -> None:
    raise RuntimeError("no.")


async def _fails_without_words(body: object) -> None:
    raise RuntimeError


async def _needs_more(body: Order, missing: int) -> None:
    """Never fits."""


async def _settles_by_hand(body: object, message: Annotated[MeshMessage, Context("message")]) -> None:
    assert message.attempt == 3
    await message.reject()


async def _gives_back_by_hand(body: object, message: Annotated[MeshMessage, Context("message")]) -> None:
    await message.nack(delay=3)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (_nothing, SUCCESS),
        (_rejects, DROP),
        (_nacks, RETRY),
        (_settles_by_hand, DROP),
        (_gives_back_by_hand, RETRY),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("policy", [None, AckPolicy.MANUAL])
async def test_how_a_handler_ends_settles_the_event(
    handler: Any, expected: tuple[int, bytes], policy: AckPolicy | None
) -> None:
    options = {} if policy is None else {"ack_policy": policy}
    assert await _posted(handler, **options) == expected


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (_fails, "the handler raised RuntimeError: no\\.$"),
        (_fails_without_words, "the handler raised RuntimeError$"),
        (_needs_more, "the handler raised ValidationError: .*missing"),
    ],
)
async def test_what_a_handler_raises_is_told(handler: Any, reason: str) -> None:
    """On one line, in the words of Python, not as an answer of HTTP that nobody gave."""
    with pytest.raises(HandlerFailedError, match=reason):
        await _posted(handler)


async def test_an_event_that_is_none_is_dropped() -> None:
    assert await _posted(_nothing, b'{"specversion":"1.0","source":"s","type":"t"}') == DROP


@pytest.mark.parametrize(
    ("body", "expected"), [(b'{"order": 7}', {"order": 7}), (b"{}", {}), (b"[]", b"[]"), (b"\x00no", b"\x00no")]
)
async def test_what_other_programs_write_is_data(body: bytes, expected: object) -> None:
    """As a gateway hands them over: any JSON object, or bytes."""
    taken: list[object] = []

    async def take(body: Any, message: Annotated[MeshMessage, Context("message")]) -> None:
        taken.extend((body, message.event, message.attempt))

    assert await _posted(take, body) == SUCCESS
    assert taken == [expected, None, 3]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, {"id": 1}),
        ({"data": b"text", "datacontenttype": "text/plain"}, "text"),
        ({"data": b"\x00\xff", "datacontenttype": "application/octet-stream"}, b"\x00\xff"),
        ({"data": b'{"a":1}', "datacontenttype": "application/vnd.x+json"}, {"a": 1}),
        ({"data": b"", "datacontenttype": "application/json"}, None),
    ],
)
async def test_data_comes_by_its_media_type(more: dict[str, Any], expected: object) -> None:
    taken: list[object] = []

    async def take(body: Any) -> None:
        taken.append(body)

    assert await _posted(take, _event(**more)) == SUCCESS
    assert taken == [expected]


# Refusals


def test_a_broker_that_is_not_supported_is_refused() -> None:
    class Other:
        pass

    with pytest.raises(FeatureNotSupportedError, match=r"Other does not support .*nats, rabbit, kafka, redis"):
        Mesh(Other(), app_id="pricing")


@pytest.mark.parametrize("app_id", ["", "a.b"])
def test_an_app_id_that_is_none_is_refused(app_id: str) -> None:
    with pytest.raises(ConfigError, match="app_id"):
        Mesh(NatsBroker(), app_id=app_id)


def test_a_topic_or_method_is_taken_once() -> None:
    mesh = _mesh()
    mesh.subscriber("orders")
    mesh.method("price", verb="GET")
    mesh.method("price")
    with pytest.raises(ConfigError, match="orders is subscribed to already"):
        mesh.subscriber("orders")
    with pytest.raises(ConfigError, match="price is served already"):
        mesh.method("/price")


async def test_calls_and_events_need_what_they_need() -> None:
    mesh = _mesh()
    with pytest.raises(MeshError, match="lifespan"):
        await mesh.invoke("other", "method")
    with pytest.raises(ConfigError, match="colour"):
        await mesh.publish({}, "orders", colour="red")
    with pytest.raises(ConfigError, match="start the broker first"):
        await mesh.__aenter__()


@pytest.mark.parametrize(
    ("broker", "url"),
    [
        (NatsBroker(["nats://a:4222", "nats://b:4222"]), "nats://a:4222,nats://b:4222"),
        (KafkaBroker("k:9092"), "kafka://k:9092"),
        (RedisBroker("redis://r:6379/2"), "redis://r:6379/2"),
        (RabbitBroker("amqp://q:5672/"), "amqp://q:5672/"),
    ],
    ids=IDS,
)
def test_the_backbone_is_the_brokers_server_unless_told(broker: Any, url: str) -> None:
    assert Mesh(broker, app_id="pricing")._settings.backbone == url


@pytest.mark.parametrize("name", ["orders", "a.b", "*", "a.>", "ä/{x} y", "3.orders", "_.x"])
def test_addresses_are_read_back_and_never_wild(name: str) -> None:
    """A wildcard on FastStream's own connection would take what is meant for the mesh."""
    mesh = _mesh(namespace="n.s")
    made = mesh.address(name, pubsub="my/pubsub")
    assert mesh._topic_of(made) == ("my/pubsub", name)
    assert not {"*", ">", "{"} & set(made)
    assert mesh._topic_of(mesh.method_address("price")) is None
    assert mesh._topic_of("orders") is None


# On a mesh, in memory


@asynccontextmanager
async def _running(
    mesh: Mesh, broker: NatsBroker, *leaving: Callable[[], Awaitable[None]]
) -> AsyncIterator[FastStream]:
    """Run an application; ``leaving`` is called when the mesh is about to be left."""
    app = FastStream(broker, lifespan=mesh.lifespan, on_shutdown=leaving)
    async with TestNatsBroker(broker, connect_only=True), TestApp(app):
        yield app


@pytest.fixture
async def backbone(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryBroker]:
    """A member of the mesh that all nodes of a test are on."""
    hub = MemoryHub()
    monkeypatch.setattr(MemoryBroker, "from_url", lambda _: MemoryBroker(hub))
    async with MemoryBroker(hub) as entered:
        yield entered


async def test_events_arrive_from_the_mesh_and_go_to_it(backbone: MemoryBroker) -> None:
    """By all three ways to publish, each with the application's attributes and the trace of what it answers."""
    broker = NatsBroker()
    mesh = _mesh(broker)
    seen: list[tuple[object, str]] = []
    traces: set[object] = set()

    @mesh.subscriber("orders")
    @mesh.publisher("priced", type="order.priced")
    async def take(order: Order, event: Annotated[Event, Context("message.event")]) -> dict[str, int]:
        traces.add(str(event.extensions["traceparent"])[3:35])
        await mesh.publish(b"raw", "log", content_type="text/plain", id="mine")
        await broker.publish({"id": order.id}, mesh.address("seen"))
        return {"id": order.id}

    for name in ("priced", "log", "seen"):

        @mesh.subscriber(name)
        async def record(body: object, event: Annotated[Event, Context("message.event")]) -> None:
            seen.append((body, event.type))
            traces.add(str(event.extensions["traceparent"])[3:35])

    async with _running(mesh, broker):
        await mesh.publish({"id": 5}, "orders")

        async def check() -> None:
            assert sorted(seen, key=str) == [
                ("raw", "com.dapr.event.sent"),
                ({"id": 5}, "com.dapr.event.sent"),
                ({"id": 5}, "order.priced"),
            ]

        await eventually(check)
    assert len(traces) == 1


async def test_a_batch_of_faststreams_own_is_published_whole(backbone: MemoryBroker) -> None:
    broker = KafkaBroker()
    mesh = _mesh(broker)
    taken: list[object] = []

    @mesh.subscriber("orders", max_in_flight=1)
    async def take(body: object) -> None:
        taken.append(body)

    app = FastStream(broker, lifespan=mesh.lifespan)
    async with TestKafkaBroker(broker, connect_only=True), TestApp(app):
        await broker.publish_batch({"id": 1}, {"id": 2}, topic=mesh.address("orders"))
        await broker.publish({"id": 3}, mesh.address("orders"), key=b"k")

        async def check() -> None:
            assert taken == [{"id": 1}, {"id": 2}, {"id": 3}]

        await eventually(check)


async def test_the_message_is_the_one_that_a_gateway_publishes(backbone: MemoryBroker) -> None:
    from mesh.broker import SubscribeOptions

    taken: list[Message] = []

    async def keep(delivery: Any) -> None:
        taken.append(delivery.message)
        await delivery.ack()

    broker = NatsBroker()
    mesh = _mesh(broker)
    async with _running(mesh, broker):
        where = topic("default", "pubsub", "orders")
        async with backbone.subscribe(where, SubscribeOptions("g"), keep):
            await mesh.publish({"id": 5}, "orders", type="t", key="k", subject="s", ttl=60)

            async def check() -> None:
                assert len(taken) == 1

            await eventually(check)
    event = from_headers(taken[0].headers, taken[0].body)
    assert (event.source, event.type, event.subject, event.data) == ("pricing", "t", "s", b'{"id":5}')
    assert event.extensions["partitionkey"] == taken[0].key == "k"
    assert set(event.extensions) == {"partitionkey", "traceparent", "expiration"}


async def test_the_trace_goes_along(backbone: MemoryBroker) -> None:
    """From a call into what its handler publishes and calls, with state and baggage."""
    given = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        "tracestate": "a=1",
        "baggage": "k=v",
    }
    callee, caller = NatsBroker(), NatsBroker()
    mesh = _mesh(callee)
    other = Mesh(caller, app_id="shop", backbone="memory:")
    seen: list[dict[str, str]] = []

    @mesh.method("first")
    async def first(message: Annotated[MeshMessage, Context("message")]) -> None:
        seen.append(message.headers)
        await mesh.publish("x", "orders")
        await mesh.invoke("shop", "second")

    @mesh.subscriber("orders")
    async def take(body: object, message: Annotated[MeshMessage, Context("message")]) -> None:
        seen.append(message.headers)

    @other.method("second")
    async def second(message: Annotated[MeshMessage, Context("message")]) -> None:
        seen.append(message.headers)

    async with _running(mesh, callee), _running(other, caller):
        await other.invoke("pricing", "first", headers=given)

        async def check() -> None:
            assert len(seen) == 3

        await eventually(check)
    assert {each["traceparent"][:36] for each in seen} == {given["traceparent"][:36]}
    assert [(each["tracestate"], each["baggage"]) for each in seen] == [("a=1", "k=v")] * 3


async def test_what_fails_is_dead_lettered(backbone: MemoryBroker) -> None:
    broker = NatsBroker()
    mesh = _mesh(broker)
    dead: list[dict[str, Any]] = []

    @mesh.subscriber("orders", dead_letter="failed")
    async def take(order: Order) -> None:
        raise RuntimeError

    @mesh.subscriber("failed")
    async def failed(body: object, message: Annotated[MeshMessage, Context("message")]) -> None:
        dead.append(dict(message.headers))

    async with _running(mesh, broker):
        await mesh.publish({"id": 5}, "orders")

        async def check() -> None:
            assert [each["mesh-dead-letter-attempts"] for each in dead] == ["1"]

        await eventually(check)


async def test_calls_are_answered_over_the_mesh(backbone: MemoryBroker) -> None:
    """By verb and path; refusals, failures, large bodies in both directions, and an answer's own status."""
    callee, caller = NatsBroker(), NatsBroker()
    mesh = _mesh(callee, max_body_bytes=3_000_000)
    other = Mesh(caller, app_id="shop", backbone="memory:")

    @mesh.method("price")
    async def price(order: Order) -> dict[str, float]:
        return {"price": order.amount * 2}

    @mesh.method("stock/teapot", verb="GET")
    async def stock(call: Annotated[IncomingCall, Context("message.call")]) -> str:
        return call.query

    @mesh.method("teapot")
    async def teapot() -> Reply:
        return Reply({"short": True}, status=418, headers={"X-Kind": "tea"})

    @mesh.method("nothing")
    async def nothing() -> None:
        return None

    @mesh.method("fail")
    async def fail() -> None:
        raise RuntimeError("broken")

    @mesh.method("confused")
    async def confused() -> None:
        Order.model_validate({})

    @mesh.method("lying")
    async def lying() -> int:
        return "no number"  # type: ignore[return-value]

    @mesh.method("echo")
    async def echo(body: bytes) -> bytes:
        return body

    async with _running(mesh, callee), _running(other, caller):
        answer = await other.invoke("pricing", "price", Order(id=1, amount=2))
        assert (answer.status, answer.json()) == (200, {"price": 4.0})
        assert answer.headers["content-type"] == "application/json"
        assert (await other.invoke("pricing", "stock/teapot?a=1", verb="GET")).body == b"a=1"
        assert (await other.invoke("pricing", "stock/teapot", b"")).status == 404
        answer = await other.invoke("pricing", "teapot")
        assert (answer.status, answer.headers["x-kind"], answer.json()) == (418, "tea", {"short": True})
        assert (await other.invoke("pricing", "nothing")).status == 204
        answer = await other.invoke("pricing", "fail")
        assert (answer.status, answer.json()) == (500, {"error": "RuntimeError: broken"})
        assert (await other.invoke("pricing", "price", {"id": "no"})).status == 400
        assert (
            await other.invoke("pricing", "price", b"{", headers={"Content-Type": "application/json"})
        ).status == 400
        assert (await other.invoke("pricing", "confused")).status == 500
        assert (await other.invoke("pricing", "lying")).status == 500
        large = bytes(2_000_000)
        assert (await other.invoke("pricing", "echo", large)).body == large
        assert (await other.invoke("pricing", "echo", bytes(3_000_001))).status == 413
        assert (await other.invoke("shop", "price")).status == 404
        with pytest.raises(NoResponderError, match="no instance of nobody"):
            await other.invoke("nobody", "price")


async def test_leaving_finishes_what_is_in_flight(backbone: MemoryBroker) -> None:
    """A handler that has begun ends before FastStream's broker stops; nothing new is taken, and nothing lost."""
    broker = NatsBroker()
    mesh = _mesh(broker)
    begun, go_on, done = asyncio.Event(), asyncio.Event(), list[int]()

    @mesh.subscriber("orders", max_in_flight=1)
    async def take(order: Order) -> None:
        begun.set()
        await go_on.wait()
        done.append(order.id)

    @mesh.subscriber("other")
    async def other(body: object) -> None:
        """Nothing."""

    async def go() -> None:
        asyncio.get_running_loop().call_later(0.05, go_on.set)

    async with _running(mesh, broker, go):
        await mesh.publish({"id": 1}, "orders")
        await mesh.publish({"id": 2}, "orders")
        await begun.wait()
    assert done == [1]
    async with _running(mesh, broker):  # The same application again, as a test suite does.

        async def check() -> None:
            assert done == [1, 2]

        await eventually(check)


async def test_what_does_not_end_in_time_is_released(backbone: MemoryBroker) -> None:
    """The handler is cancelled, and the event comes again."""
    broker = NatsBroker()
    mesh = _mesh(broker, graceful_timeout=0.05)
    begun, ended, hang = asyncio.Event(), list[str](), True

    @mesh.subscriber("orders")
    async def take(body: object) -> None:
        begun.set()
        try:
            if hang:
                await asyncio.Event().wait()
            ended.append("done")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with _running(mesh, broker):
        await mesh.publish({}, "orders")
        await begun.wait()
    assert ended == ["cancelled"]
    hang = False
    async with _running(mesh, broker):

        async def check() -> None:
            assert ended == ["cancelled", "done"]

        await eventually(check)


async def test_it_can_be_entered_around_a_started_broker(backbone: MemoryBroker) -> None:
    broker = NatsBroker()
    mesh = _mesh(broker)

    @mesh.method("price")
    async def price() -> str:
        return "1"

    async with TestNatsBroker(broker, connect_only=False):
        with pytest.raises(ConfigError):
            await mesh.__aenter__()
        broker.running = True  # As start() has it, which TestBroker replaces.
        async with mesh:
            assert (await mesh.invoke("pricing", "price")).body == b"1"
        with pytest.raises(MeshError, match="not on the mesh"):
            await mesh.invoke("pricing", "price")


async def test_resources_bring_components_and_policies(backbone: MemoryBroker, tmp_path: Path) -> None:
    """A component of its own name with scopes, and a retry policy; declared subscriptions are not for FastStream."""
    (tmp_path / "all.yaml").write_text(RESOURCES)
    broker = NatsBroker()
    mesh = _mesh(broker, pubsub="events", resources=[tmp_path])
    attempts: list[int] = []

    @mesh.subscriber("orders", dead_letter="failed")
    async def take(body: object) -> None:
        attempts.append(1)
        raise RuntimeError

    @mesh.subscriber("failed")
    async def failed(body: object) -> None:
        attempts.append(0)

    async with _running(mesh, broker):
        await mesh.publish({}, "orders")

        async def check() -> None:
            assert attempts == [1, 1, 1, 0]

        await eventually(check)
        with pytest.raises(PermissionDeniedError):
            await mesh.publish({}, "secret")
        with pytest.raises(ConfigError, match="no pub/sub component 'pubsub'"):
            await mesh.publish({}, "orders", pubsub="pubsub")


async def test_nodes_say_what_they_do_when_asked(backbone: MemoryBroker) -> None:
    broker = NatsBroker()
    mesh = _mesh(broker)
    mesh.subscriber("orders", dead_letter="failed")(_nothing)
    mesh.method("price", verb="get")(_nothing)
    mesh.method("stock/teapot")(_nothing)
    async with _running(mesh, broker):
        await mesh.publish(b"", "elsewhere")

        async def check() -> None:
            found = await collect(backbone, "default", 0.05)
            assert len(found) == 1
            (node,) = found
            assert (node.app_id, node.apps) == ("pricing", ("pricing",))
            assert node.subscriptions == (("pubsub", "orders", "failed"),)
            assert node.published == (("pubsub", "elsewhere"),)
            assert node.methods == ("GET price", "stock/teapot")
            assert node.components == (("pubsub", "pubsub.mesh"),)

        await eventually(check)


async def test_foreign_middlewares_see_a_message_of_the_mesh(backbone: MemoryBroker) -> None:
    """Those that read the raw message find at least a subject, data and headers there."""
    seen: list[object] = []

    class Watching(BaseMiddleware):
        async def on_receive(self) -> None:
            seen.append((self.msg.subject, self.msg.headers) if self.msg is not None else None)

    broker = NatsBroker(middlewares=[Watching])
    mesh = _mesh(broker)
    mesh.subscriber("orders")(_nothing)
    async with _running(mesh, broker):
        await mesh.publish({}, "orders")

        async def check() -> None:
            assert seen == [("mesh/default/pubsub/orders", {})]

        await eventually(check)
