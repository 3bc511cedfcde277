"""What the bindings to message brokers promise beyond the contract, against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiormq
import nats
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bindings.queues import mqtt
from bindings.queues._mqtt import Message, Wire, connect
from bindings.queues._mqtt import Server as MQTTAddress
from mesh.blocks.binding_contract import BindingError, BindingEvent, Reading
from mesh.errors import AppUnreachableError, ConfigError, MeshError
from mesh.key_value import MemoryKeyValue
from mesh.registry import Registry
from mesh.store import KeyValueStateStore, StateStore
from tests.support.bindings import call
from tests.support.bindings.queues import make_topic, shared
from tests.support.eventually import eventually
from tests.support.kafka_server import KafkaServer
from tests.support.mqtt_server import MQTTServer
from tests.support.nats import NatsServer
from tests.support.nodes import component, unique
from tests.support.processes import free_port
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.server import Server
from tests.support.sharing import entered

QUEUES = ("kafka", "rabbitmq", "mqtt", "jetstream")
BACK_WITHIN = 120.0


class App:
    """Takes events, or refuses the first ones.

    Attributes:
        events: All that it was handed.
    """

    def __init__(self, *errors: MeshError) -> None:
        self.events: list[BindingEvent] = []
        self._errors = list(errors)

    async def __call__(self, event: BindingEvent) -> bytes:
        self.events.append(event)
        if self._errors:
            raise self._errors.pop(0)
        return b""

    async def has(self, *data: bytes, within: float = 40.0) -> None:
        """Wait until it was handed these, in this order and nothing else."""

        def there() -> None:
            assert [event.data for event in self.events] == list(data)

        await eventually(there, within)

    def reading(self, app_id: str = "app") -> Reading:
        return Reading("in", app_id, self)


def made(kind: str, records: StateStore | None = None, **settings: str) -> AbstractAsyncContextManager[Any]:
    adapter = Registry().load(f"bindings.{kind}").from_component(component("in", f"bindings.{kind}", **settings))  # type: ignore[attr-defined]
    return entered(adapter, records)


# All of them


@pytest.mark.parametrize(
    ("kind", "settings", "setting", "text"),
    [
        ("kafka", {"brokers": "localhost:9092", "authType": "oidc"}, "authType", "is one of none, password, mtls"),
        ("kafka", {"brokers": "localhost:9092", "authType": "password"}, "saslUsername", "is missing"),
        ("kafka", {"brokers": "localhost:9092", "authType": "mtls"}, "authType", "needs clientCert and clientKey"),
        ("kafka", {"brokers": "localhost:9092", "caCert": "/there/is/none"}, "caCert", "cannot be used"),
        ("kafka", {"brokers": "u:secret@localhost"}, "brokers", "host:port"),
        ("kafka", {"brokers": "localhost", "oidcClientID": "me"}, "oidcClientID", "OpenID Connect is not supported"),
        ("rabbitmq", {"host": "http://u:secret@localhost", "queueName": "q"}, "host", "is no URL of RabbitMQ"),
        ("rabbitmq", {"host": "amqps://localhost", "queueName": "q", "clientKey": "k"}, "clientCert", "go together"),
        ("rabbitmq", {"host": "amqp://localhost", "queueName": "q", "maxPriority": "256"}, "maxPriority", "255"),
        ("mqtt3", {"url": "ws://u:secret@localhost", "topic": "t"}, "url", "is no URL of an MQTT server"),
        ("mqtt", {"url": "tcp://localhost", "topic": "t", "caCert": "x"}, "url", "begins with mqtts://"),
        ("mqtt3", {"url": "tcp://localhost", "topic": "t", "backOffMaxRetries": "-2"}, "backOffMaxRetries", "whole"),
        ("jetstream", {"natsURL": "http://u:secret@localhost", "subject": "s"}, "natsURL", "is no URL of NATS"),
        ("jetstream", {"natsURL": "nats://localhost", "subject": "s", "jwt": "secret"}, "jwt", "go together"),
        ("rabbitmq", {"host": "amqp://localhost", "queueName": "ü" * 128}, "queueName", "255 bytes"),
        (
            "rabbitmq",
            {"host": "amqp://localhost", "queueName": "q", "routingKey": "k" * 256},
            "routingKey",
            "255 bytes",
        ),
    ],
)
async def test_wrong_settings(kind: str, settings: dict[str, str], setting: str, text: str) -> None:
    """They are named when it is opened; what is secret is not."""
    with pytest.raises(ConfigError) as caught:
        async with made(kind, **settings):
            pass
    assert setting in str(caught.value)
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", QUEUES)
async def test_nobody_is_there(kind: str) -> None:
    """It opens; calls and readings fail soon, may be tried again, and tell no password."""
    at = f"127.0.0.1:{free_port()}"
    settings = {
        "kafka": {"brokers": at, "topics": "t", "publishTopic": "t"},
        "rabbitmq": {"host": f"amqp://u:secret@{at}", "queueName": "q"},
        "mqtt": {"url": f"tcp://u:secret@{at}", "topic": "t"},
        "jetstream": {"natsURL": f"nats://u:secret@{at}", "subject": "s"},
    }
    async with made(kind, **settings[kind]) as adapter:
        for attempt in ("call", "reading"):
            with pytest.raises(BindingError) as caught:
                if attempt == "call":
                    await adapter.invoke(call("create", b"x"))
                else:
                    async with adapter.reading(App().reading()):
                        await asyncio.Event().wait()
            assert caught.value.retryable
            assert "secret" not in str(caught.value)


@asynccontextmanager
async def kept_open(adapter: Any, reading: Reading) -> AsyncIterator[list[str]]:
    """Read as the mesh does: again whenever it failed."""
    failures: list[str] = []
    entered = asyncio.Event()

    async def read() -> None:
        while True:
            try:
                async with adapter.reading(reading):
                    entered.set()
                    await asyncio.Event().wait()
            except MeshError as error:
                failures.append(str(error))
                await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(read())
        await entered.wait()
        yield failures
        task.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUEUES)
async def test_server_is_killed_while_it_is_read(kind: str, tmp_path: Path) -> None:
    """What it stored comes after that, and what is written then."""
    servers: dict[str, type[Server]] = {
        "kafka": KafkaServer,
        "rabbitmq": RabbitMQServer,
        "mqtt": MQTTServer,
        "jetstream": NatsServer,
    }
    server: Any = servers[kind](tmp_path / "server")
    settings = {
        "kafka": {"topics": "t", "publishTopic": "t", "initialOffset": "oldest", "sessionTimeout": "6s"},
        "rabbitmq": {"queueName": "q", "durable": "true"},
        "mqtt": {"topic": "t", "consumerID": "me"},
        "jetstream": {"subject": "s", "streamName": "S"},
    }[kind]
    async with server:
        if kind == "kafka":
            await make_topic(f"127.0.0.1:{server.port}", "t")
        elif kind == "jetstream":
            client = await nats.connect(server.url)
            await client.jetstream().add_stream(name="S", subjects=["s"])
            await client.close()
        address = {"kafka": "brokers", "rabbitmq": "host", "mqtt": "url", "jetstream": "natsURL"}[kind]
        settings[address] = f"127.0.0.1:{server.port}" if kind == "kafka" else server.url
        app = App()
        async with made(kind, **settings) as adapter, kept_open(adapter, app.reading()) as failures:
            async with asyncio.timeout(BACK_WITHIN):
                await write(adapter, b"one")
                await app_has(app, b"one")
                if kind == "mqtt":
                    await server.save()
                await server.restart(kill=True)
                await write(adapter, b"two")
                await app_has(app, b"two")
        assert failures or kind in ("kafka", "jetstream")  # Their clients connect again by themselves.


async def write(adapter: Any, data: bytes) -> None:
    """Write until it is there: the server may just be starting."""

    async def wrote() -> None:
        try:
            await adapter.invoke(call("create", data))
        except BindingError as error:
            assert error.retryable
            raise AssertionError(str(error)) from error

    await eventually(wrote, BACK_WITHIN)


async def app_has(app: App, data: bytes) -> None:
    def there() -> None:
        assert data in [event.data for event in app.events]

    await eventually(there, BACK_WITHIN)


# Kafka


@pytest.fixture
async def kafka() -> AsyncIterator[tuple[str, str, AIOKafkaProducer]]:
    server, topic = await shared("kafka", KafkaServer), unique("queue")
    address = f"127.0.0.1:{server.port}"
    await make_topic(address, topic)
    producer = AIOKafkaProducer(bootstrap_servers=address)
    await producer.start()
    yield address, topic, producer
    await producer.stop()


async def test_kafka_order(kafka: tuple[str, str, AIOKafkaProducer]) -> None:
    """A record that was not taken comes again before the next one; what was taken does not come to the next reader."""
    address, topic, producer = kafka
    settings = {"brokers": address, "topics": topic, "initialOffset": "oldest"}
    await producer.send_and_wait(topic, b"one", key=b"k", headers=[("colour", b"red")], timestamp_ms=1700000000000)
    await producer.send_and_wait(topic, b"two")
    first, second = App(BindingError("not now"), AppUnreachableError("away")), App()
    async with made("kafka", **settings) as adapter:
        async with adapter.reading(first.reading()):
            await first.has(b"one", b"one", b"one", b"two")
        await producer.send_and_wait(topic, b"three")
        async with adapter.reading(second.reading()):
            await second.has(b"three")
    assert first.events[0].metadata == {
        "colour": "red",
        "__key": "k",
        "__topic": topic,
        "__partition": "0",
        "__offset": "0",
        "__timestamp": "1700000000000",
    }


async def test_kafka_passes_over_what_is_refused(kafka: tuple[str, str, AIOKafkaProducer]) -> None:
    """Where its file says so; but not what could not be handed over."""
    address, topic, producer = kafka
    settings = {"brokers": address, "topics": topic, "initialOffset": "oldest", "consumeRetryEnabled": "false"}
    await producer.send_and_wait(topic, b"one")
    await producer.send_and_wait(topic, b"two")
    app = App(AppUnreachableError("away"), BindingError("no"))
    async with made("kafka", **settings) as adapter, adapter.reading(app.reading()):
        await app.has(b"one", b"one", b"two")


async def test_kafka_begins_once(kafka: tuple[str, str, AIOKafkaProducer]) -> None:
    """A group begins with what comes from then on, and a restart before its first commit skips nothing."""
    address, topic, producer = kafka
    await producer.send_and_wait(topic, b"before")
    app = App()
    async with made("kafka", brokers=address, topics=topic) as adapter:
        async with adapter.reading(app.reading()):
            pass
        await producer.send_and_wait(topic, b"meanwhile")
        async with adapter.reading(app.reading()):
            await app.has(b"meanwhile")
        other = App()
        async with adapter.reading(other.reading("other")):  # Another application is another group.
            await producer.send_and_wait(topic, b"both")
            await app_has(other, b"both")


async def test_kafka_partitions_go_to_others(kafka: tuple[str, str, AIOKafkaProducer]) -> None:
    """Two readers of one group share the partitions, and the one that stays has all of them."""
    address, _, producer = kafka
    topic = unique("queue")
    await make_topic(address, topic, 2)
    first, second = App(), App()
    settings = {"brokers": address, "topics": topic, "initialOffset": "oldest"}
    async with made("kafka", **settings) as adapter, AsyncExitStack() as stack:
        await stack.enter_async_context(adapter.reading(first.reading()))
        async with adapter.reading(second.reading()):

            async def both_have_some() -> None:
                for partition in (0, 1):
                    await producer.send_and_wait(topic, b"x", partition=partition)
                assert first.events
                assert second.events

            await eventually(both_have_some, 40.0)
        for partition in (0, 1):
            await producer.send_and_wait(topic, b"last", partition=partition)

        def there() -> None:
            assert [event.data for event in first.events].count(b"last") >= 2

        await eventually(there, 40.0)


async def test_kafka_loses_nothing_while_partitions_move(kafka: tuple[str, str, AIOKafkaProducer]) -> None:
    """What is fetched while another reader comes or goes is handed over, by one of them."""
    address, _, producer = kafka
    topic, app, sent = unique("queue"), App(), set[bytes]()
    await make_topic(address, topic, 4)
    settings = {"brokers": address, "topics": topic, "initialOffset": "oldest", "heartbeatInterval": "0.2s"}
    ending = asyncio.Event()

    async def write(partition: int) -> None:
        while not ending.is_set():
            data = b"%d" % len(sent)
            sent.add(data)
            await producer.send_and_wait(topic, data, partition=partition)

    def all_there() -> None:
        assert sent <= {event.data for event in app.events}

    async with made("kafka", **settings) as adapter, adapter.reading(app.reading()):
        async with asyncio.TaskGroup() as tasks:
            for partition in range(4):
                tasks.create_task(write(partition))
            for _ in range(3):
                other = App()
                async with adapter.reading(other.reading()):
                    await eventually(lambda other=other: _some(other), 40.0)  # type: ignore[misc]
                app.events += other.events
            ending.set()
        await eventually(all_there, 40.0)


def _some(app: App) -> None:
    assert app.events


async def test_kafka_records(kafka: tuple[str, str, AIOKafkaProducer]) -> None:
    """Are the bytes that were given, with metadata as headers."""
    address, topic, _ = kafka
    settings = {"publishTopic": topic, "excludeHeaderMetaRegex": "^x-", "escapeHeaders": "true"}
    async with made("kafka", brokers=address, **settings) as adapter:
        await adapter.invoke(call("create", b'"text"', partitionKey="k", colour="dark red", **{"x-not": "1"}))
    consumer = AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        record = await consumer.getone()
    finally:
        await consumer.stop()
    assert (record.value, record.key) == (b'"text"', b"k")
    assert dict(record.headers) == {"partitionKey": b"k", "colour": b"dark+red"}


async def test_kafka_without_topic(kafka: tuple[str, str, AIOKafkaProducer]) -> None:
    address, *_ = kafka
    async with made("kafka", brokers=address, topics=unique("none")) as adapter:
        with pytest.raises(BindingError, match="no such topic"):
            async with adapter.reading(App().reading()):
                pass
        with pytest.raises(BindingError, match="publishTopic"):
            await adapter.invoke(call("create"))


# RabbitMQ


@pytest.fixture
async def rabbit() -> AsyncIterator[tuple[str, Any]]:
    server = await shared("rabbitmq", RabbitMQServer)
    connection = await aiormq.connect(server.url)
    yield server.url, await connection.channel()
    await connection.close()


async def test_rabbitmq_message(rabbit: tuple[str, Any]) -> None:
    url, channel = rabbit
    queue = unique("queue")
    settings = {"host": url, "queueName": queue, "durable": "true", "maxPriority": "5", "ttlInSeconds": "90"}
    async with made("rabbitmq", **settings) as adapter:
        await adapter.invoke(
            call("create", b"{}", ttlInSeconds="60", priority="3", contentType="a/b", colour="dark red")
        )
        message = await channel.basic_get(queue)
        properties = message.header.properties
        assert message.body == b"{}"
        assert (properties.expiration, properties.priority, properties.content_type) == ("60000", 3, "a/b")
        assert (properties.delivery_mode, properties.headers["colour"]) == (2, "dark red")
        await channel.basic_nack(message.delivery_tag, requeue=True)
        app = App()
        async with adapter.reading(app.reading()):
            await app.has(b"{}")
        assert app.events[0].metadata["colour"] == "dark+red"
        for metadata in ({"priority": "256"}, {"ttlInSeconds": "x"}, {"x" * 200: "1"}):
            with pytest.raises(BindingError, match=next(iter(metadata))[:15]):
                await adapter.invoke(call("create", b"{}", **metadata))
        await adapter.invoke(call("create", b"{}"))  # The channel is none the worse.
    async with made("rabbitmq", host=url, queueName=queue) as other:
        with pytest.raises(BindingError, match="PRECONDITION_FAILED"):
            await other.invoke(call("create"))


async def test_rabbitmq_exclusive_and_deleted(rabbit: tuple[str, Any]) -> None:
    """A queue of its own is read and written by one component; a reading ends with its queue."""
    url, channel = rabbit
    app, queue = App(), unique("queue")
    mine = made("rabbitmq", host=url, queueName=queue, exclusive="true")
    async with mine as adapter, adapter.reading(app.reading()):
        await adapter.invoke(call("create", b"one"))
        await app.has(b"one")
    queue = unique("queue")
    async with made("rabbitmq", host=url, queueName=queue, durable="true") as adapter:
        with pytest.raises(BindingError, match="not there any more"):
            async with adapter.reading(app.reading()):
                await channel.queue_delete(queue)
                await asyncio.Event().wait()


async def test_rabbitmq_leaves_the_rest_to_others(rabbit: tuple[str, Any]) -> None:
    """Who leaves keeps what is at work, however long that takes, and nothing else."""
    url, _ = rabbit
    slow, other, going_on = App(), App(), (asyncio.Event(), asyncio.Event())

    async def handle(event: BindingEvent) -> bytes:
        await slow(event)
        await going_on[len(slow.events) - 1].wait()
        return b""

    async with made("rabbitmq", host=url, queueName=unique("queue"), prefetchCount="2") as adapter:
        async with asyncio.TaskGroup() as tasks, AsyncExitStack() as leaving:
            await leaving.enter_async_context(adapter.reading(Reading("in", "app", handle)))
            numbers = [b"%d" % each for each in range(6)]
            for each in numbers:
                await adapter.invoke(call("create", each))
            await eventually(lambda: _is(len(slow.events), 2))
            task = tasks.create_task(leaving.pop_all().aclose())
            await asyncio.sleep(0)
            going_on[1].set()
            async with adapter.reading(other.reading()):
                await eventually(lambda: _is(len(other.events), 4))
                assert not task.done()
                going_on[0].set()
        assert sorted(event.data for event in (*slow.events, *other.events)) == numbers


async def test_rabbitmq_prefetch(rabbit: tuple[str, Any]) -> None:
    """So many are at work at once, and what is at work when it is left is acknowledged."""
    url, channel = rabbit
    queue, at_work, release = unique("queue"), [0], asyncio.Event()

    async def handle(event: BindingEvent) -> bytes:
        at_work[0] += 1
        await release.wait()
        return b""

    def two() -> None:
        assert at_work[0] == 2

    async with made("rabbitmq", host=url, queueName=queue, durable="true", prefetchCount="2") as adapter:
        for _ in range(3):
            await adapter.invoke(call("create", b"x"))

        async def read() -> None:
            async with adapter.reading(Reading("in", "app", handle)):
                await eventually(two)
                release.set()

        async with asyncio.timeout(30.0):
            await read()
    assert 2 <= at_work[0] <= 3

    async def the_rest_is_there() -> None:
        left = await channel.queue_declare(queue, passive=True)
        assert left.message_count == 3 - at_work[0]

    await eventually(the_rest_is_there)


# MQTT


@asynccontextmanager
async def client(server: MQTTServer, topic: str) -> AsyncIterator[tuple[Wire, list[Message]]]:
    got: list[Message] = []
    wire = await connect(MQTTAddress("127.0.0.1", server.port), unique("client"), got.append, clean=True)
    await wire.subscribe(topic)
    yield wire, got
    wire.leave()


async def test_mqtt_turns() -> None:
    """Of two hosts one reads; the other one has the session when it leaves, with what came meanwhile."""
    server: MQTTServer = await shared("mqtt", MQTTServer)
    topic, records = unique("queue"), KeyValueStateStore(MemoryKeyValue())
    first, second = App(), App()
    settings = {"url": server.url, "topic": f"{topic}/+", "consumerID": unique("me")}
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(made("mqtt", records, **settings))
        two = await stack.enter_async_context(made("mqtt3", records, **settings))
        leaving = await stack.enter_async_context(AsyncExitStack())
        await leaving.enter_async_context(one.reading(first.reading()))
        await stack.enter_async_context(two.reading(second.reading()))
        await one.invoke(call("create", b"one", topic=f"{topic}/x"))
        await first.has(b"one")
        async with asyncio.timeout(30.0), two.reading(App().reading()):
            pass  # One that waits for its turn can leave.
        await leaving.aclose()
        await one.invoke(call("create", b"two", topic=f"{topic}/y"))
        await second.has(b"two")
    assert [event.data for event in first.events] == [b"one"]
    assert second.events[0].metadata == {"topic": f"{topic}/y"}


async def test_mqtt_unacknowledged() -> None:
    """What was not taken by the last attempt comes with the next connection."""
    server: MQTTServer = await shared("mqtt", MQTTServer)
    topic, app = unique("queue"), App(BindingError("no"))
    settings = {"url": server.url, "topic": topic, "backOffMaxRetries": "0", "consumerID": unique("me")}
    async with made("mqtt3", **settings) as adapter:
        async with adapter.reading(app.reading()):
            await adapter.invoke(call("create", b"one"))
            await adapter.invoke(call("create", b"two"))
            await app_has(app, b"two")
        async with adapter.reading(app.reading()):
            await app.has(b"one", b"two", b"one")


async def test_mqtt_goes_on_behind_what_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server hands over no more than some messages that are not acknowledged; then a new connection has all again."""
    monkeypatch.setattr(mqtt, "AGAIN_SECONDS", 0.05)
    server: MQTTServer = await shared("mqtt", MQTTServer)
    topic, got = unique("queue"), list[bytes]()

    async def handle(event: BindingEvent) -> bytes:
        got.append(event.data)
        if event.data == b"bad" and got.count(b"bad") <= 25:
            raise BindingError("no")
        return b""

    settings = {"url": server.url, "topic": topic, "backOffMaxRetries": "0", "consumerID": unique("me")}
    async with made("mqtt3", **settings) as adapter, adapter.reading(Reading("in", "app", handle)):
        for data in (*[b"bad"] * 25, b"good"):
            await adapter.invoke(call("create", data))

        def there() -> None:
            assert b"good" in got

        await eventually(there)


async def test_mqtt_sessions_are_of_one_component_each() -> None:
    """A session holds all that its client has subscribed to: of one that two share, each would get the other's."""
    server: MQTTServer = await shared("mqtt", MQTTServer)
    topics, apps, app_id = [unique("queue") for _ in range(2)], [App() for _ in range(2)], unique("app")
    async with AsyncExitStack() as stack:
        for topic, app in zip(topics, apps, strict=True):
            adapter = await stack.enter_async_context(made("mqtt3", url=server.url, topic=topic))
            await stack.enter_async_context(adapter.reading(replace(app.reading(), component=topic, app_id=app_id)))
        for number in range(5):
            for topic in topics:
                await adapter.invoke(call("create", f"{topic} {number}".encode(), topic=topic))
        for topic, app in zip(topics, apps, strict=True):
            await app.has(*(f"{topic} {number}".encode() for number in range(5)))


async def test_mqtt_session_with_much(tmp_path: Path) -> None:
    """A server may send what a session has kept before it answers, also more than is taken at once."""
    app, number = App(), 1000
    settings = ["max_queued_messages 0", f"max_inflight_messages {number}"]
    async with MQTTServer(tmp_path, settings) as server, made("mqtt3", url=server.url, topic="t") as adapter:
        async with adapter.reading(app.reading()):
            pass
        async with asyncio.TaskGroup() as tasks:
            for _ in range(number):
                tasks.create_task(adapter.invoke(call("create", bytes(1000))))
        async with adapter.reading(app.reading()):
            await eventually(lambda: _is(len(app.events), number), 40.0)


async def test_mqtt_publishes() -> None:
    server: MQTTServer = await shared("mqtt", MQTTServer)
    topic = unique("queue")
    async with made("mqtt3", url=server.url, topic=topic, retain="true") as adapter:
        await adapter.invoke(call("create", b"kept"))
        await adapter.invoke(call("create", b"not kept", topic=f"{topic}/b", retain="false", qos="0"))
        async with client(server, f"{topic}/#") as (_, got):
            await eventually(lambda: _is([each.data for each in got], [b"kept"]))
        for metadata in ({"topic": "a/#"}, {"retain": "perhaps"}, {"qos": "3"}):
            with pytest.raises(BindingError, match=next(iter(metadata))):
                await adapter.invoke(call("create", b"x", **metadata))


async def test_mqtt_shared_subscription() -> None:
    """Readers with sessions of their own share messages by a topic that says so."""
    server: MQTTServer = await shared("mqtt", MQTTServer)
    topic, apps = unique("queue"), (App(), App())
    async with made("mqtt3", url=server.url, topic=f"$share/group/{topic}") as adapter, AsyncExitStack() as stack:
        for app, name in zip(apps, (unique("app"), unique("app")), strict=True):
            await stack.enter_async_context(adapter.reading(app.reading(name)))
        for number in range(6):
            await adapter.invoke(call("create", b"%d" % number, topic=topic))

        def all_there() -> None:
            assert sorted(event.data for app in apps for event in app.events) == [b"%d" % each for each in range(6)]

        await eventually(all_there)


def _is(found: object, wanted: object) -> None:
    assert found == wanted


# JetStream


@asynccontextmanager
async def _context() -> AsyncIterator[tuple[str, Any]]:
    server = await shared("nats", NatsServer)
    connection = await nats.connect(server.url)
    yield server.url, connection.jetstream()
    await connection.close()


async def test_jetstream_messages() -> None:
    """A handler may take longer than the time to acknowledge; headers are passed on in both directions."""
    async with _context() as (url, context):
        subject, app = unique("queue"), App(BindingError("no"))
        await context.add_stream(name=subject, subjects=[f"{subject}.>"])
        settings = {"natsURL": url, "subject": f"{subject}.*", "ackWait": "4s", "concurrency": "single"}
        done: list[BindingEvent] = []

        async def slow(event: BindingEvent) -> bytes:
            await asyncio.sleep(5.0)  # What is slow is the application.
            done.append(event)
            return b""

        async with made("jetstream", **settings) as adapter:
            await adapter.invoke(call("create", b"one", subject=f"{subject}.a", colour="red"))
            async with adapter.reading(Reading("in", "slow", slow)):
                await eventually(lambda: _is([each.data for each in done], [b"one"]))

            async def acknowledged() -> None:
                left = await context.consumer_info(subject, "in-slow")
                assert (left.num_ack_pending, left.num_redelivered, left.num_pending) == (0, 0, 0)

            await eventually(acknowledged)
            assert len(done) == 1
            async with adapter.reading(app.reading()):
                await app.has(b"one", b"one")
        assert {"colour": "red", "subject": f"{subject}.a", "sequence": "1"}.items() <= app.events[0].metadata.items()


async def test_jetstream_leaves_nothing_behind() -> None:
    """What the server sent to a reader that leaves is handed over, and not held until its time is over."""
    async with _context() as (url, stream):
        subject = unique("s")
        await stream.add_stream(name=subject, subjects=[subject])
        app, sent = App(), 0
        settings = {"natsURL": url, "subject": subject, "ackWait": "10m", "durableName": "d"}
        async with made("jetstream", **settings) as adapter:

            async def asked_for() -> None:
                assert (await stream.consumer_info(subject, "d")).num_waiting == 10

            for _ in range(5):
                async with asyncio.TaskGroup() as tasks:
                    async with adapter.reading(app.reading()):
                        await eventually(asked_for)
                        writing = [stream.publish(subject, b"%d" % number) for number in range(sent, sent + 10)]
                        running = [tasks.create_task(each) for each in writing]
                        await running[0]
                    sent += 10
            async with adapter.reading(app.reading()):

                def all_there() -> None:
                    assert {int(event.data) for event in app.events} == set(range(sent))

                await eventually(all_there, 40.0)


async def test_jetstream_message_that_cannot_be_read() -> None:
    """It comes without headers, and those behind it come as well."""
    async with _context() as (url, context):
        subject, app = unique("queue"), App()
        await context.add_stream(name=subject, subjects=[f"{subject}.>"])
        settings = {"natsURL": url, "subject": f"{subject}.>", "concurrency": "single"}
        async with made("jetstream", **settings) as adapter, adapter.reading(app.reading()):
            reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
            writer.write(b'CONNECT {"headers":true,"verbose":false}\r\n')
            for block in (b"\r\n", b"NATS/1.0 \xff\xff\xff\r\n\r\n"):
                size = len(block)
                writer.write(f"HPUB {subject}.a {size} {size + 3}\r\n".encode() + block + b"odd\r\n")
            writer.write(b"PING\r\n")
            await reader.readuntil(b"PONG\r\n")
            writer.close()
            await adapter.invoke(call("create", b"last", subject=f"{subject}.a"))
            await app.has(b"odd", b"odd", b"last")


async def test_jetstream_wants_tls() -> None:
    """A server without it is told no password."""
    async with (
        _context() as (url, _),
        made("jetstream", natsURL=url.replace("nats://", "tls://u:secret@"), subject="s") as adapter,
    ):
        with pytest.raises(BindingError, match=r"NATS: .*secure"):
            await adapter.invoke(call("create", b"x"))


async def test_jetstream_failures() -> None:
    async with _context() as (url, context):
        subject = unique("queue")
        async with made("jetstream", natsURL=url, subject=f"{subject}.a") as adapter:
            with pytest.raises(BindingError, match="no stream"):
                async with adapter.reading(App().reading()):
                    pass
            for metadata in ({"subject": "a.*"}, {"a": "b\r\nc"}, {"a:b": "c"}):
                with pytest.raises(BindingError, match=r"subject|metadata"):
                    await adapter.invoke(call("create", b"x", **metadata))
            await context.add_stream(name=subject, subjects=[f"{subject}.>"])
            with pytest.raises(BindingError):
                async with adapter.reading(App().reading()):
                    await context.delete_stream(subject)
                    await asyncio.Event().wait()
