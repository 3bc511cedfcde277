"""Rows of message brokers outside of the mesh; one server of each kind serves all tests of a process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiormq
import nats
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bindings.queues._mqtt import Server as MQTTAddress
from bindings.queues._mqtt import connect
from tests.support.bindings.rows import InputKind, OutputKind, ServedInput, ServedOutput, call, nothing
from tests.support.eventually import eventually
from tests.support.kafka_server import KafkaServer
from tests.support.mqtt_server import MQTTServer
from tests.support.nats import NatsServer
from tests.support.nodes import unique
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.server import Server

__all__ = ["INPUTS", "OUTPUTS", "make_topic", "shared"]

_SERVERS: dict[str, Server] = {}


async def shared(name: str, make: Callable[[Path], Server]) -> Any:
    """Give a server that lasts as long as this process, started when it is asked for first."""
    if name not in _SERVERS:
        directory = Path(tempfile.mkdtemp(prefix=f"mesh-{name}-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        server = make(directory / "server")
        await server.start()
        atexit.register(server.end)
        _SERVERS[name] = server
    return _SERVERS[name]


# Kafka


async def make_topic(url: str, topic: str, partitions: int = 1) -> None:
    """Make a topic, and wait until it can be written to."""
    admin = AIOKafkaAdminClient(bootstrap_servers=url)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1)])

        async def there() -> None:
            [told] = await admin.describe_topics([topic])
            assert len([each for each in told["partitions"] if each["leader"] >= 0]) == partitions

        await eventually(there)
    finally:
        await admin.close()


@asynccontextmanager
async def _kafka_topic() -> AsyncIterator[tuple[str, str, dict[str, str]]]:
    """Give an address, a topic, and the settings that belong to them."""
    server, topic = await shared("kafka", KafkaServer), unique("queue")
    address = f"127.0.0.1:{server.port}"
    await make_topic(address, topic)
    yield address, topic, {"brokers": address, "topics": topic, "publishTopic": topic}


@asynccontextmanager
async def _kafka_out(directory: Path) -> AsyncIterator[ServedOutput]:
    async with _kafka_topic() as (_, _, settings):
        calls = (
            (call("create", b'"one"'), nothing),
            (call("create", b"\x00\xff", partitionKey="a", colour="red"), nothing),
            (call("create", b"{}", partitionNumber="0"), nothing),
        )
        yield ServedOutput(settings, calls, call("create", partitionNumber="7"))


@asynccontextmanager
async def _kafka_in(directory: Path) -> AsyncIterator[ServedInput]:
    async with _kafka_topic() as (address, topic, settings):
        producer = AIOKafkaProducer(bootstrap_servers=address)
        await producer.start()

        async def emit(data: bytes) -> None:
            await producer.send_and_wait(topic, data)

        try:
            yield ServedInput({**settings, "initialOffset": "oldest", "sessionTimeout": "6s"}, emit)
        finally:
            await producer.stop()


# RabbitMQ


@asynccontextmanager
async def _rabbitmq_out(directory: Path) -> AsyncIterator[ServedOutput]:
    server = await shared("rabbitmq", RabbitMQServer)
    calls = (
        (call("create", b'"one"'), nothing),
        (call("create", b"\x00\xff", ttlInSeconds="60", priority="3", colour="red"), nothing),
    )
    settings = {"host": server.url, "queueName": unique("queue"), "durable": "true", "maxPriority": "5"}
    yield ServedOutput(settings, calls, call("create", routingKey="there-is-none"))


@asynccontextmanager
async def _rabbitmq_in(directory: Path) -> AsyncIterator[ServedInput]:
    server = await shared("rabbitmq", RabbitMQServer)
    queue = unique("queue")
    connection = await aiormq.connect(server.url)
    channel = await connection.channel()
    await channel.queue_declare(queue, durable=True)

    async def emit(data: bytes) -> None:
        await channel.basic_publish(data, routing_key=queue)

    try:
        yield ServedInput({"host": server.url, "queueName": queue, "durable": "true"}, emit)
    finally:
        await connection.close()


# MQTT


@asynccontextmanager
async def _mqtt_out(directory: Path) -> AsyncIterator[ServedOutput]:
    server = await shared("mqtt", MQTTServer)
    calls = (
        (call("create", b'"one"'), nothing),
        (call("create", b"\x00\xff", retain="true", topic=f"{unique('other')}/x"), nothing),
        (call("create", b"{}", qos="0"), nothing),
    )
    settings = {"url": server.url, "topic": unique("queue"), "consumerID": unique("me")}
    yield ServedOutput(settings, calls, call("create", topic="a/+"))


@asynccontextmanager
async def _mqtt_in(directory: Path) -> AsyncIterator[ServedInput]:
    server = await shared("mqtt", MQTTServer)
    topic, name, address = unique("queue"), unique("me"), MQTTAddress("127.0.0.1", server.port)
    session = await connect(address, f"{name}-consumer", lambda _: None, clean=False)
    await session.subscribe(f"{topic}/#")  # So that the server keeps what comes before anybody reads.
    session.leave()
    wire = await connect(address, unique("emits"), lambda _: None, clean=True)

    async def emit(data: bytes) -> None:
        await wire.publish(f"{topic}/x", data, retain=False, confirmed=True)

    try:
        yield ServedInput({"url": server.url, "topic": f"{topic}/#", "consumerID": name}, emit)
    finally:
        wire.leave()


# NATS


@asynccontextmanager
async def _stream() -> AsyncIterator[tuple[Any, Any, str]]:
    server = await shared("nats", NatsServer)
    client = await nats.connect(server.url)
    subject = unique("queue")
    context = client.jetstream()
    await context.add_stream(name=subject, subjects=[f"{subject}.>"])
    try:
        yield server, context, subject
    finally:
        await client.close()


@asynccontextmanager
async def _jetstream_out(directory: Path) -> AsyncIterator[ServedOutput]:
    async with _stream() as (server, _, subject):
        calls = (
            (call("create", b'"one"'), nothing),
            (call("create", b"\x00\xff", subject=f"{subject}.b", colour="red"), nothing),
        )
        settings = {"natsURL": server.url, "subject": f"{subject}.a"}
        yield ServedOutput(settings, calls, call("create", subject="there-is-none"))


@asynccontextmanager
async def _jetstream_in(directory: Path) -> AsyncIterator[ServedInput]:
    async with _stream() as (server, context, subject):

        async def emit(data: bytes) -> None:
            await context.publish(f"{subject}.a", data)

        yield ServedInput({"natsURL": server.url, "subject": f"{subject}.>", "ackWait": "2s"}, emit)


OUTPUTS: Mapping[str, OutputKind] = {
    "kafka": OutputKind("bindings.kafka", _kafka_out),
    "rabbitmq": OutputKind("bindings.rabbitmq", _rabbitmq_out),
    "mqtt": OutputKind("bindings.mqtt3", _mqtt_out),
    "jetstream": OutputKind("bindings.jetstream", _jetstream_out),
}

INPUTS: Mapping[str, InputKind] = {
    "kafka": InputKind("bindings.kafka", _kafka_in),
    "rabbitmq": InputKind("bindings.rabbitmq", _rabbitmq_in),
    "mqtt": InputKind("bindings.mqtt3", _mqtt_in),
    "jetstream": InputKind("bindings.jetstream", _jetstream_in),
}
