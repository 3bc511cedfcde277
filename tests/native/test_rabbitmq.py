"""RabbitMQ's exchanges that are shared with other programs: names and bytes, as a client of another make sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest
import pytest_asyncio
from pika.adapters.blocking_connection import BlockingChannel

from brokers.native.rabbitmq import RabbitMQTopics
from gateway.cli import main
from mesh import address
from mesh.address import Address
from mesh.blocks.pubsub import component_on
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import (
    BadArgumentError,
    BrokerError,
    ConfigError,
    EventError,
    FeatureNotSupportedError,
    MessageTooLargeError,
    PublishRejectedError,
    TopologyMismatchError,
)
from tests.e2e.test_doctor import COMPONENT, SUBSCRIPTION
from tests.http import harness
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.rabbitmq_server import RabbitMQCluster, RabbitMQServer
from tests.support.reference.rabbitmq import Sidecar, envelope, publish
from tests.support.security import component

WITHIN = 60.0
MAX_MESSAGE_BYTES = 300_000
GROUP = "app"
OPTIONS = SubscribeOptions(GROUP)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RabbitMQServer]:
    limit = f"max_message_size = {MAX_MESSAGE_BYTES}\n"
    async with RabbitMQServer(tmp_path_factory.mktemp("rabbitmq"), limit) as server:
        yield server


def topics(url: str, **settings: str) -> RabbitMQTopics:
    """A component with these settings."""
    return RabbitMQTopics.from_component(component("pubsub.rabbitmq", connectionString=url, **settings))


def at(topic: str) -> Address:
    return address.topic("test", "rabbit", topic)


@contextmanager
def other(url: str) -> Iterator[BlockingChannel]:
    """A channel of the other client."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        yield connection.channel()


def get(url: str, queue: str) -> tuple[pika.BasicProperties, bytes]:
    """Take a message from a queue."""
    with other(url) as channel:
        _, properties, body = channel.basic_get(queue, auto_ack=True)
        assert properties is not None, f"nothing in {queue}"
        return properties, body


def listening(url: str, topic: str) -> None:
    """Bind a queue of the other client's, of the exchange's name, to an exchange that is there."""
    with other(url) as channel:
        channel.queue_declare(topic, durable=True)
        channel.queue_bind(topic, topic, "#")


def refusal(url: str, ask: Callable[[BlockingChannel], object]) -> str:
    """Tell what the server says to a declaration that differs."""
    with other(url) as channel, pytest.raises(pika.exceptions.ChannelClosedByBroker) as caught:
        ask(channel)
    return str(caught.value.reply_text)


async def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(call, *args)


async def test_message_as_others_see_it(server: RabbitMQServer, topic: str) -> None:
    """Properties by their names; what has none is dropped. Without metadata: text, persistent, and nothing else."""
    async with topics(server.url, exchangeKind="topic") as ours, ours.subscribe(at(topic), OPTIONS, Inbox()):
        await in_thread(listening, server.url, topic)
        metadata = {
            **{"routingKey": "a.x", "priority": "3", "ttlInSeconds": "60", "messageID": "m1", "correlationID": "c1"},
            **{"contentType": "image/png", "type": "t1", "foo": "bar", "partitionKey": "pk1", "cloudevent.id": "x"},
        }
        await ours.publish(at(topic), Message({"cloudEvents_id": "1"}, b"\x00\xff", "pk1", "e1", metadata))
        await ours.publish(at(topic), Message({}, b"{}", None, "e2", {"ttlInSeconds": "1m30s"}))
        await ours.publish(at(topic), Message({"content-type": "application/json"}, b"1"))
        full, body = await in_thread(get, server.url, topic)
        plain, _ = await in_thread(get, server.url, topic)
        typed, _ = await in_thread(get, server.url, topic)
    assert body == b"\x00\xff"
    assert {name: value for name, value in vars(full).items() if value is not None} == {
        "content_type": "image/png",
        "headers": {"cloudEvents_id": "1"},
        "delivery_mode": 2,
        "priority": 3,
        "correlation_id": "c1",
        "expiration": "60000",
        "message_id": "m1",
        "type": "t1",
    }
    assert {name: value for name, value in vars(plain).items() if value is not None} == {
        "content_type": "text/plain", "delivery_mode": 2, "expiration": "90000", "message_id": "e2"
    }  # fmt: skip
    assert (typed.content_type, typed.headers) == ("application/json", None)


async def test_routing_keys(server: RabbitMQServer, topic: str) -> None:
    inbox = Inbox()
    options = SubscribeOptions(GROUP, metadata={"routingKey": "a.#,b", "queueName": f"q-{topic}"})
    async with topics(server.url, exchangeKind="topic") as ours, ours.subscribe(at(topic), options, inbox):
        for key in ("a.x", "c", "b", ""):
            await ours.publish(at(topic), Message({}, key.encode(), metadata={"routingKey": key}))
        await ours.publish(at(topic), Message({}, b"last", metadata={"routingKey": "a"}))
        await inbox.holds(3)
    assert sorted(inbox.bodies) == [b"a.x", b"b", b"last"]
    assert await in_thread(exists, server.url, f"q-{topic}") == 0


async def test_places_as_a_sidecar_declares_them(server: RabbitMQServer, topic: str) -> None:
    """The server compares declarations argument by argument: equal ones pass, and what differs is named."""
    url, queue = server.url, f"{GROUP}-{topic}"
    settings = {"deletedWhenUnused": "true", "enableDeadLetter": "true", "maxLen": "100", "maxLenBytes": "100000"}
    options = SubscribeOptions(GROUP, metadata={"maxPriority": "7", "singleActiveConsumer": "true"})

    def declare(channel: BlockingChannel) -> None:
        lengths = {"x-max-length": 100, "x-max-length-bytes": 100_000}
        channel.exchange_declare(topic, "fanout", durable=True, auto_delete=True)
        channel.exchange_declare(f"dlx-{queue}", "fanout", durable=True, auto_delete=True)
        lazy = {**lengths, "x-queue-mode": "lazy"}
        channel.queue_declare(f"dlq-{queue}", durable=True, auto_delete=True, arguments=lazy)
        arguments = {
            **lengths, "x-queue-type": "classic", "x-dead-letter-exchange": f"dlx-{queue}", "x-max-priority": 7,
            "x-single-active-consumer": True,
        }  # fmt: skip
        channel.queue_declare(queue, durable=True, auto_delete=True, arguments=arguments)

    async with topics(url, **settings) as ours, ours.subscribe(at(topic), options, Inbox()):
        with other(url) as channel:
            await in_thread(declare, channel)
    with pytest.raises(AssertionError, match="404"):
        await in_thread(exists, url, queue)


def exists(url: str, queue: str) -> int:
    """Count a queue's messages."""
    with other(url) as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).method.message_count)
        except pika.exceptions.ChannelClosedByBroker as error:
            raise AssertionError(str(error)) from error


async def test_queue_of_ours_outlives_its_member(server: RabbitMQServer, topic: str) -> None:
    """By default, and its exchange with it: what is published meanwhile waits."""
    url, inbox = server.url, Inbox()
    async with topics(url) as ours:
        async with ours.subscribe(at(topic), OPTIONS, Inbox()):
            pass
        await ours.publish(at(topic), Message({}, b"meanwhile"))
        assert (await ours.backlog(at(topic), OPTIONS)).waiting == 1
        with other(url) as channel:
            await in_thread(lambda: channel.exchange_declare(topic, "fanout", durable=True, auto_delete=True))
        async with ours.subscribe(at(topic), OPTIONS, inbox):
            await inbox.holds(1)


async def test_exchange_that_ended_is_made_again(server: RabbitMQServer, topic: str) -> None:
    """A sidecar's exchange goes with its last queue: a publisher that knew it makes another, and hurts nobody else."""
    calm, url = f"calm-{topic}", server.url
    async with topics(url) as ours, ours.subscribe(at(calm), OPTIONS, inbox := Inbox()):
        for number in range(3):
            with Sidecar(url, "obs", topic) as sidecar:
                await ours.publish(at(topic), Message({}, b"%d" % number))
                await eventually(partial(holds, sidecar.got, b"%d" % number))
        many = [Message({}, b"%d" % number) for number in range(50)]
        async with asyncio.TaskGroup() as tasks:
            sending = [tasks.create_task(ours.publish_many(at(name), many)) for name in (topic, calm)]
        assert [error for each in sending for error in each.result()] == [None] * 100
        await inbox.holds(50)
    assert sorted(set(map(int, inbox.bodies))) == list(range(50))


def holds(found: list[bytes], *wanted: bytes) -> None:
    assert set(wanted) <= set(found), found


async def test_message_of_another_program(server: RabbitMQServer, topic: str) -> None:
    """Headers as they are, as text; properties are told when the component says so."""
    inbox, quiet = Inbox(), Inbox()

    def write() -> None:
        with other(server.url) as channel:
            headers = {"ce_id": "1", "count": 3, "yes": True, "none": None, "list": [1, "a"], "at": b"\xff"}
            said = pika.BasicProperties(
                content_type="application/json", headers=headers, message_id="m", correlation_id="c", type="t",
                priority=2, app_id="x",
            )  # fmt: skip
            channel.basic_publish(topic, "", b"\x00raw", said)
            channel.basic_publish(topic, "", b"", pika.BasicProperties())

    async with (
        topics(server.url, publishMessagePropertiesToMetadata="true") as telling,
        topics(server.url) as ours,
        telling.subscribe(at(topic), SubscribeOptions("one"), inbox),
        ours.subscribe(at(topic), SubscribeOptions("two"), quiet),
    ):
        await in_thread(write)
        await inbox.holds(2)
        await quiet.holds(2)
    told, plain = inbox.deliveries[0].message, quiet.deliveries[0].message
    headers = {"ce_id": "1", "count": "3", "yes": "true", "at": "\ufffd"}
    assert told.headers == plain.headers == {**headers, "content-type": "application/json"}
    assert (plain.metadata, plain.id, plain.body) == ({}, "m", b"\x00raw")
    assert told.metadata == {
        **{f"metadata.{name}": value for name, value in headers.items()},
        "metadata.list": '[1, "a"]',
        "metadata.messageid": "m",
        "metadata.correlationid": "c",
        "metadata.contenttype": "application/json",
        "metadata.type": "t",
    }
    empty = quiet.deliveries[1].message
    assert (empty.headers, empty.body, empty.id) == ({}, b"", None)


async def test_queue_that_a_sidecar_made_is_used_as_it_is(
    server: RabbitMQServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning, since it ends with its last consumer; then ours is made."""
    inbox, url = Inbox(), server.url
    async with topics(url) as ours:
        with Sidecar(url, GROUP, topic, lambda body: False):
            async with ours.subscribe(at(topic), OPTIONS, inbox), ours.subscribe(at(topic), OPTIONS, inbox):
                await in_thread(publish, url, topic, [(number, {}) for number in range(10)])
                await inbox.holds(4)  # Taking turns with the other one, which loses what it does not take.
        async with ours.subscribe(at(topic), OPTIONS, inbox):
            pass
        assert await in_thread(exists, url, f"{GROUP}-{topic}") == 0
    assert caplog.text.count(f"queue {GROUP}-{topic} is there, and ends with its last consumer") == 1


@pytest.mark.parametrize(
    ("settings", "metadata", "named"),
    [
        ({"exchangeKind": "topic"}, {}, "type is 'fanout' there, 'topic' here"),
        ({"enableDeadLetter": "true"}, {}, "x-dead-letter-exchange is none there"),
        ({}, {"singleActiveConsumer": "true"}, "x-single-active-consumer is none there"),
    ],
)
async def test_what_would_not_do_is_refused(
    server: RabbitMQServer, topic: str, settings: dict[str, str], metadata: dict[str, str], named: str
) -> None:
    """Both sides are named, nothing is changed, and other subscriptions go on."""
    inbox, calm = Inbox(), f"calm-{topic}"
    options = SubscribeOptions(GROUP, metadata=metadata)
    async with topics(server.url, **settings) as ours, ours.subscribe(at(calm), SubscribeOptions("calm"), inbox):
        with Sidecar(server.url, GROUP, topic), pytest.raises(TopologyMismatchError, match=named):
            async with ours.subscribe(at(topic), options, Inbox()):
                pass
        await ours.publish(at(calm), Message({}, b"x"))
        await inbox.holds(1)
    assert len(inbox.deliveries) == 1


async def test_what_differs_and_would_do_is_used(server: RabbitMQServer, topic: str) -> None:
    inbox, queue = Inbox(), f"{GROUP}-{topic}"

    def declare() -> None:
        with other(server.url) as channel:
            channel.exchange_declare(topic, "fanout")
            arguments = {"x-max-length": 5, "x-message-ttl": 60_000, "x-queue-mode": "lazy"}
            channel.queue_declare(queue, arguments=arguments)

    await in_thread(declare)
    async with topics(server.url, maxLen="7", maxLenBytes="1000") as ours, ours.subscribe(at(topic), OPTIONS, inbox):
        await ours.publish(at(topic), Message({}, b"x"))
        await inbox.holds(1)
    told = await in_thread(refusal, server.url, lambda channel: channel.queue_declare(queue, durable=True))
    assert "inequivalent arg 'durable'" in told


async def test_one_group_of_both_kinds(server: RabbitMQServer, topic: str) -> None:
    """Members of both come and go: each event is handled once, by one of them."""
    url, ours_got = server.url, Inbox()
    settings = {"deletedWhenUnused": "false"}
    theirs: list[bytes] = []
    async with (
        topics(url, **settings) as first,
        topics(url, **settings) as second,
        first.subscribe(at(topic), OPTIONS, ours_got),
    ):
        for number in range(4):
            sent = [(number * 100 + each, {}) for each in range(50)]
            more = [Message({}, envelope(topic, number * 100 + 50 + each)) for each in range(50)]
            with Sidecar(url, GROUP, topic, deleted=False) as sidecar:
                async with second.subscribe(at(topic), OPTIONS, ours_got), asyncio.TaskGroup() as tasks:
                    tasks.create_task(asyncio.to_thread(publish, url, topic, sent, deleted=False))
                    assert await first.publish_many(at(topic), more) == [None] * 50
            theirs += sidecar.got
        await eventually(lambda: handled(ours_got.bodies + theirs, 400))
    assert theirs
    found = sorted(json.loads(body)["data"] for body in ours_got.bodies + theirs)
    assert found == list(range(400))


def handled(bodies: list[bytes], count: int) -> None:
    assert len(bodies) >= count, len(bodies)


async def test_what_fails_waits_and_lets_others_pass(server: RabbitMQServer, topic: str) -> None:
    """More than may be in flight: what is kept for later does not hold up what comes after."""
    again: dict[bytes, list[int]] = {}

    async def settle(delivery: Delivery) -> None:
        body = delivery.message.body
        again.setdefault(body, []).append(delivery.attempt)
        fails = body.startswith(b"bad") and delivery.attempt < 3
        await (delivery.nack(1.5) if fails else delivery.ack())

    inbox = Inbox(settle)
    options = SubscribeOptions(GROUP, max_in_flight=2)
    async with topics(server.url) as ours, ours.subscribe(at(topic), options, inbox):
        await ours.publish_many(at(topic), [Message({}, b"bad%d" % number) for number in range(10)])
        await ours.publish_many(at(topic), [Message({}, b"good%d" % number) for number in range(10)])
        await eventually(lambda: finished(again))
    first_good = next(place for place, body in enumerate(inbox.bodies) if body.startswith(b"good"))
    third = [place for place, each in enumerate(inbox.deliveries) if each.attempt == 3]
    assert first_good < third[0], "the others wait for what is kept"
    assert all(counts == ([1, 2, 3] if body.startswith(b"bad") else [1]) for body, counts in again.items())


def finished(again: dict[bytes, list[int]]) -> None:
    assert len(again) == 20, again
    assert all(len(counts) == 3 for body, counts in again.items() if body.startswith(b"bad")), again


async def test_attempts_on_a_quorum_queue_are_the_servers(server: RabbitMQServer, topic: str) -> None:
    """So another member knows them."""

    async def fail(delivery: Delivery) -> None:
        if delivery.attempt < 4:
            await delivery.nack()

    failing, inbox = Inbox(fail), Inbox()
    options = SubscribeOptions(GROUP, metadata={"queueType": "quorum"})
    async with topics(server.url) as ours, topics(server.url) as theirs:
        async with theirs.subscribe(at(topic), options, failing):
            await theirs.publish(at(topic), Message({}, b"x"))
            await failing.holds(3)
        async with ours.subscribe(at(topic), options, inbox):
            await inbox.holds(1)
    assert [delivery.attempt for delivery in failing.deliveries[:3]] == [1, 2, 3]
    assert inbox.deliveries[0].attempt > 3


async def test_reject_leaves_it_to_the_queues_own_dead_letters(server: RabbitMQServer, topic: str) -> None:
    inbox, queue = Inbox(Delivery.reject), f"{GROUP}-{topic}"
    async with topics(server.url, enableDeadLetter="true") as ours, ours.subscribe(at(topic), OPTIONS, inbox):
        await ours.publish(at(topic), Message({}, b"bad", None, "1"))
        await inbox.holds(1)

        async def check() -> None:
            assert await in_thread(exists, server.url, f"dlq-{queue}") == 1

        await eventually(check)
    properties, body = await in_thread(get, server.url, f"dlq-{queue}")
    assert (body, properties.content_type) == (b"bad", "text/plain")
    [death] = properties.headers["x-death"]
    found = {name: death[name] for name in ("count", "reason", "queue", "exchange", "routing-keys")}
    assert found == {"count": 1, "reason": "rejected", "queue": queue, "exchange": topic, "routing-keys": [""]}


async def test_dead_letters_are_kept_before_anybody_asks(server: RabbitMQServer, topic: str) -> None:
    inbox, letters = Inbox(), f"dead-{topic}"
    options = SubscribeOptions(GROUP, dead_letters=at(letters))
    async with topics(server.url) as ours:
        async with ours.subscribe(at(topic), options, Inbox()):
            await ours.publish(at(letters), Message({"mesh-dead-letter-reason": "it"}, b"letter"))
        async with ours.subscribe(at(letters), OPTIONS, inbox):
            await inbox.holds(1)
    assert (inbox.bodies, dict(inbox.deliveries[0].message.headers)) == ([b"letter"], {"mesh-dead-letter-reason": "it"})


async def test_dead_letters_that_were_kept_are_taken_later(server: RabbitMQServer, topic: str) -> None:
    """The queue that kept them is what a subscription to them would have made, with its own dead letters."""
    letters, inbox = f"{topic}-letters", Inbox()
    async with topics(server.url, enableDeadLetter="true") as ours:
        options = SubscribeOptions(GROUP, dead_letters=at(letters))
        async with ours.subscribe(at(topic), options, Inbox()):
            await ours.publish(at(letters), Message({}, b"kept"))
        async with ours.subscribe(at(letters), OPTIONS, inbox):
            await inbox.holds(1)
    assert inbox.bodies == [b"kept"]


async def test_what_the_server_does_not_take_is_refused_alone(server: RabbitMQServer, topic: str) -> None:
    """And what was under way beside it arrives, and what comes after it."""
    async with topics(server.url) as ours, ours.subscribe(at(topic), OPTIONS, inbox := Inbox()):
        bodies = [b"%d" % number + bytes(MAX_MESSAGE_BYTES if number == 10 else 10) for number in range(20)]
        results = await ours.publish_many(at(topic), [Message({}, body) for body in bodies])
        await inbox.holds(19)
        with pytest.raises(PublishRejectedError, match="is larger than configured"):
            raise results[10] or AssertionError
        assert [each for each in results if each is not None] == [results[10]]
        with pytest.raises(PublishRejectedError, match="ACCESS_REFUSED"):
            await ours.publish(at("amq.others"), Message({}, b""))
        with pytest.raises(BrokerError, match="ACCESS_REFUSED"):
            async with ours.subscribe(at("amq.others"), OPTIONS, Inbox()):
                pass
        before = len(inbox.deliveries)
        await ours.publish(at(topic), Message({}, b"after"))
        await inbox.holds(before + 1)
    assert set(inbox.bodies) == {*bodies[:10], *bodies[11:], b"after"}


async def test_what_cannot_be_published_is_refused_alone(server: RabbitMQServer, topic: str) -> None:
    async with topics(server.url) as ours, ours.subscribe(at(topic), OPTIONS, inbox := Inbox()):
        asked = [{}, {"routingKey": "k" * 256}, {}, {"priority": "high"}, {}]
        messages = [Message({}, b"%d" % number, metadata=each) for number, each in enumerate(asked)]
        results = await ours.publish_many(at(topic), messages)
        assert [type(each) for each in results] == [type(None), BrokerError, type(None), BrokerError, type(None)]
        assert [str(results[1]), str(results[3])] == [
            "the metadata routingKey is too long: RabbitMQ takes up to 255 bytes",
            "the metadata priority is not a whole number from 0 to 255: 'high'",
        ]
        await inbox.holds(3)
    assert sorted(inbox.bodies) == [b"0", b"2", b"4"]


async def test_exchange_that_may_not_be_made_is_used(server: RabbitMQServer) -> None:
    """As it is there, as for a user who may not configure."""
    async with topics(server.url) as ours, ours.subscribe(at("amq.fanout"), OPTIONS, inbox := Inbox()):
        await ours.publish(at("amq.fanout"), Message({}, b"x"))
        await inbox.holds(1)


@pytest.mark.parametrize(
    ("name", "message", "error"),
    [
        ("é", Message({}, b""), FeatureNotSupportedError),
        ("x" * 128, Message({}, b""), FeatureNotSupportedError),
        ("t", Message({}, b"", metadata={"priority": "256"}), BadArgumentError),
        ("t", Message({}, b"", metadata={"ttlInSeconds": "soon"}), BadArgumentError),
        ("t", Message({}, b"", metadata={"routingKey": "k" * 256}), BadArgumentError),
        ("t", Message({"n" * 200: ""}, b""), EventError),
        ("t", Message({"name": "v" * 131_000}, b""), MessageTooLargeError),
    ],
)
async def test_messages_that_cannot_be(
    server: RabbitMQServer, name: str, message: Message, error: type[Exception]
) -> None:
    async with topics(server.url) as ours:
        with pytest.raises(error):
            await ours.publish(at(name), message)
        await ours.check()


@pytest.mark.parametrize("metadata", [{"queueType": "stream"}, {"maxPriority": "x"}, {"singleActiveConsumer": "maybe"}])
async def test_subscriptions_that_cannot_be(server: RabbitMQServer, metadata: dict[str, str]) -> None:
    async with topics(server.url) as ours:
        with pytest.raises(ConfigError, match=next(iter(metadata))):
            async with ours.subscribe(at("t"), SubscribeOptions(GROUP, metadata=metadata), Inbox()):
                pass


# Through gateways


@asynccontextmanager
async def node(
    server: RabbitMQServer, topic: str, home: Path, *more: dict[str, object], **settings: str
) -> AsyncIterator[tuple[harness.Node, harness.App]]:
    """A gateway whose application is subscribed to a topic, and to what else is said."""
    subscriptions = [{"pubsubname": "pubsub", "topic": topic, "route": "/ce"}, *more]
    settings = {"connectionString": server.url, **settings}
    resources = harness.component("pubsub", "pubsub.rabbitmq", **settings)
    async with harness.App(subscriptions) as app:
        backbone = harness.Backbone("memory:")
        async with harness.gateway(backbone, home, app=app, app_id=GROUP, resources=resources) as started:
            yield started, app


async def test_event_from_a_gateway_to_a_gateway(server: RabbitMQServer, topic: str, tmp_path: Path) -> None:
    """The envelope's bytes, which say nothing of when it expires; and nothing told but the component's name."""
    async with node(server, topic, tmp_path) as (ours, app):
        with other(server.url) as channel:
            await in_thread(lambda: (channel.queue_declare(topic), channel.queue_bind(topic, topic)))
        await ours.publish(topic, {"a": 1, "s": "json"}, query="?metadata.ttlInSeconds=60&metadata.foo=bar")
        [got] = await app.until("/ce", 1, WITHIN)
        properties, body = await in_thread(get, server.url, topic)
    members = json.loads(body)
    assert body == json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
    assert (properties.expiration, properties.headers, "expiration" in members) == ("60000", None, False)
    assert properties.message_id == members["id"]
    assert got.body == body
    assert got.headers["pubsubname"] == "pubsub"
    assert not {"foo", "ttlinseconds"} & got.headers.keys()


async def test_events_in_binary_mode_both_ways(server: RabbitMQServer, topic: str, tmp_path: Path) -> None:
    async with node(server, topic, tmp_path) as (ours, app):
        with other(server.url) as channel:
            await in_thread(lambda: (channel.queue_declare(topic), channel.queue_bind(topic, topic)))
        await ours.publish(topic, {"a": 1}, query="?metadata.cloudevents=binary")
        await app.until("/ce", 1, WITHIN)
        properties, body = await in_thread(get, server.url, topic)
        assert (body, properties.content_type) == (b'{"a":1}', "application/json")
        assert {"cloudEvents_id", "cloudEvents_type", "cloudEvents_specversion"} <= properties.headers.keys()

        def write() -> None:
            headers = {"cloudEvents:specversion": "1.0", "cloudEvents:id": "9", "cloudEvents:source": "/x"}
            said = pika.BasicProperties(content_type="text/plain", headers={**headers, "cloudEvents:type": "t"})
            with other(server.url) as channel:
                channel.basic_publish(topic, "", b"hello", said)

        await in_thread(write)
        events = [each.json for each in await app.until("/ce", 2, WITHIN)]
    assert [event["data"] for event in events] == [{"a": 1}, "hello"]
    assert (events[1]["id"], events[1]["datacontenttype"]) == ("9", "text/plain")


async def test_sidecar_and_gateway_understand_each_other(server: RabbitMQServer, topic: str, tmp_path: Path) -> None:
    async with node(server, topic, tmp_path, publishMessagePropertiesToMetadata="true") as (ours, app):
        with Sidecar(server.url, "obs", topic) as sidecar:
            await in_thread(publish, server.url, topic, [({"n": 1}, {"message_id": "m"})])
            [got] = await app.until("/ce", 1, WITHIN)
            await ours.publish(topic, {"n": 2})
            await eventually(lambda: handled(sidecar.got, 2))
    assert got.json["data"] == {"n": 1}
    assert (got.headers["metadata.messageid"], got.headers["metadata.contenttype"]) == ("m", "text/plain")
    assert got.body == sidecar.got[0]
    assert json.loads(sidecar.got[1])["data"] == {"n": 2}


async def test_what_fails_goes_to_the_queues_own_dead_letters(
    server: RabbitMQServer, topic: str, tmp_path: Path
) -> None:
    """Without a topic for them; as from a sidecar."""
    queue = f"dlq-{GROUP}-{topic}"
    async with node(server, topic, tmp_path, enableDeadLetter="true") as (ours, app):
        app.answer("/ce", 500)
        await ours.publish(topic, {"n": 1})

        async def check() -> None:
            assert await in_thread(exists, server.url, queue) == 1

        await eventually(check)
    properties, body = await in_thread(get, server.url, queue)
    assert (json.loads(body)["data"], properties.headers["x-death"][0]["reason"]) == ({"n": 1}, "rejected")


async def test_dead_letter_topic_counts_before_the_queues_own(
    server: RabbitMQServer, topic: str, tmp_path: Path
) -> None:
    letters = f"dead-{topic}"
    failing = {"pubsubname": "pubsub", "topic": f"bad-{topic}", "route": "/bad", "deadLetterTopic": letters}
    async with node(server, topic, tmp_path, failing, enableDeadLetter="true") as (ours, app):
        app.answer("/bad", 500)
        await ours.publish(f"bad-{topic}", {"n": 1})

        async def check() -> None:
            assert await in_thread(exists, server.url, f"{GROUP}-{letters}") == 1

        await eventually(check)
        assert await in_thread(exists, server.url, f"dlq-{GROUP}-bad-{topic}") == 0
    properties, body = await in_thread(get, server.url, f"{GROUP}-{letters}")
    assert json.loads(body)["data"] == {"n": 1}
    assert properties.content_type == "text/plain"


async def test_an_event_is_kept_until_a_queue_has_its_dead_letter(
    server: RabbitMQServer,
    topic: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody took the queue away that kept the letters: an exchange alone keeps nothing."""
    monkeypatch.setattr("mesh.delivery.DEAD_LETTER_RETRY", 0.1)
    letters, url = f"dead-{topic}", server.url
    failing = {"pubsubname": "pubsub", "topic": f"bad-{topic}", "route": "/bad", "deadLetterTopic": letters}
    async with node(server, topic, tmp_path, failing) as (ours, app):
        app.answer("/bad", 500)
        with other(url) as channel:
            await in_thread(channel.queue_delete, f"{GROUP}-{letters}")
        await ours.publish(f"bad-{topic}", {"n": 1})
        await app.until("/bad", 3, WITHIN)
        assert f"no queue takes from the exchange {letters!r}" in caplog.text
        await in_thread(listening, url, letters)

        async def has_it() -> None:
            assert await in_thread(exists, url, letters) == 1

        await eventually(has_it)
    assert await in_thread(exists, url, f"{GROUP}-bad-{topic}") == 0
    _, body = await in_thread(get, url, letters)
    assert json.loads(body)["data"] == {"n": 1}


# Faults


async def test_queue_that_is_deleted_is_made_again(server: RabbitMQServer, topic: str) -> None:
    inbox = Inbox()
    async with topics(server.url) as ours, ours.subscribe(at(topic), OPTIONS, inbox):

        def delete() -> None:
            with other(server.url) as channel:
                channel.queue_delete(f"{GROUP}-{topic}")

        await in_thread(delete)

        async def arrives() -> None:
            await ours.publish(at(topic), Message({}, b"x"))
            assert inbox.deliveries

        await eventually(arrives)


async def test_cut_connections_lose_nothing(server: RabbitMQServer, topic: str) -> None:
    """While some deliveries are at work and some are kept for later."""

    async def settle(delivery: Delivery) -> None:
        await asyncio.sleep(0.01)
        await (delivery.nack(0.1) if delivery.attempt == 1 and int(delivery.message.body) % 5 == 0 else delivery.ack())

    inbox = Inbox(settle)
    settings, options = {"heartBeat": "1", "reconnectWaitSeconds": "0.2"}, SubscribeOptions(GROUP, max_in_flight=10)
    async with (
        Proxy(server.port) as proxy,
        topics(f"amqp://127.0.0.1:{proxy.port}", **settings) as ours,
        ours.subscribe(at(topic), options, inbox),
    ):
        for number in range(5):
            many = [Message({}, b"%d" % (number * 40 + each)) for each in range(40)]
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(ours.publish_many(at(topic), many))
                await inbox.holds(number * 40)
                proxy.cut()
            assert sending.result() == [None] * 40
        await eventually(lambda: emptied(inbox))
    async with topics(server.url) as ours:
        assert (await ours.backlog(at(topic), OPTIONS)).waiting == 0


def emptied(inbox: Inbox) -> None:
    acked = {each.message.body for each in inbox.deliveries if each.settled == "ack"}
    assert len(acked) == 200, len(acked)


async def test_cluster_loses_a_node(topic: str, tmp_path: Path) -> None:
    """Quorum queues go on; the node that everybody is connected to is killed, and the next one is found."""
    inbox = Inbox()
    options = SubscribeOptions(GROUP, metadata={"queueType": "quorum"})
    async with RabbitMQCluster(tmp_path / "cluster") as cluster:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in cluster.servers)
        settings = {"heartBeat": "2", "reconnectWaitSeconds": "0.5", "username": "guest", "password": "guest"}
        async with topics("", hostname=hosts, **settings) as ours, ours.subscribe(at(topic), options, inbox):
            many = [Message({}, b"%d" % number) for number in range(300)]
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(ours.publish_many(at(topic), many))
                await inbox.holds(50)
                await cluster.servers[0].kill()
            assert sending.result() == [None] * 300
            await eventually(lambda: holds(inbox.bodies, *(each.body for each in many)), WITHIN)


async def test_doctor_and_dlq(server: RabbitMQServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both kinds of queues that letters lie in; what a queue's consumers have is theirs."""
    settings = {"connectionString": server.url, "enableDeadLetter": "true"}
    entries = json.dumps([{"name": name, "value": value} for name, value in settings.items()])
    resources = COMPONENT.format(name="pubsub", type="pubsub.rabbitmq", settings=entries) + SUBSCRIPTION
    (tmp_path / "all.yaml").write_text(resources)

    async def run(*words: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(main, [*words, "-d", str(tmp_path), "-a", "shop", "-o", "json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    async def checks() -> dict[tuple[str, str], Any]:
        _, found, _ = await run("doctor")
        return {(each["what"], each["name"]): each for each in found["checks"]}

    found = await checks()
    assert found["topic", "orders"]["status"] == "note", "it is not there yet, and asking has not made it"
    options = SubscribeOptions("shop", dead_letters=at("failed"))
    async with topics(server.url, enableDeadLetter="true") as ours:
        async with ours.subscribe(at("orders"), options, Inbox(Delivery.reject)):
            await ours.publish(at("orders"), Message({"a": "b"}, b'{"data":{"n":1}}'))
            letter = Message(
                {"mesh-dead-letter-topic": "orders", "mesh-dead-letter-attempts": "3"}, b'{"data":{"n":2}}'
            )
            await ours.publish(at("failed"), letter)

            async def has_letters() -> None:
                found = await checks()
                assert [found["letters", name]["letters"] for name in ("dlq-shop-orders", "failed")] == [1, 1]
                assert found["group", "shop of orders"]["status"] == "ok"

            await eventually(has_letters, within=30.0)

        _, piles, _ = await run("dlq", "list")
        assert {each["topic"]: each["letters"] for each in piles} == {"failed": 1, "dlq-shop-orders": 1}
        code, [shown], _ = await run("dlq", "show", "pubsub", "dlq-shop-orders")
        assert (code, shown["topic"], shown["reason"]) == (0, "orders", "rejected")
        code, told, _ = await run("dlq", "replay", "pubsub", "dlq-shop-orders", "--all")
        assert (code, told["replayed"]) == (1, 0), "no subscription names that queue, so somebody has to"
        code, told, _ = await run("dlq", "replay", "pubsub", "dlq-shop-orders", "--all", "--topic", "orders")
        assert (code, told["replayed"]) == (0, 1)
        code, told, _ = await run("dlq", "replay", "pubsub", "failed", "--all")
        assert (code, told["replayed"]) == (0, 1)
        async with ours.subscribe(at("failed"), SubscribeOptions("shop"), Inbox()):
            code, _, err = await run("dlq", "show", "pubsub", "failed")
        assert code == 1
        assert "queue shop-failed on RabbitMQ has consumers (1)" in err
        async with ours.subscribe(at("orders"), options, inbox := Inbox()):
            await inbox.holds(2)
    assert sorted(inbox.bodies) == [b'{"data":{"n":1}}', b'{"data":{"n":2}}']
    assert not any("death" in name or "dead" in name for each in inbox.deliveries for name in each.message.headers)


async def test_doctor_tells_of_losses_and_rights(
    server: RabbitMQServer, tmp_path: Path, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a queue may lose by the way it is made, and what this user may not do; asking changes nothing."""
    queue = f"shop-{topic}"

    def write(url: str) -> None:
        entries = json.dumps([{"name": "connectionString", "value": url}])
        resources = COMPONENT.format(name="pubsub", type="pubsub.rabbitmq", settings=entries) + SUBSCRIPTION
        (tmp_path / "all.yaml").write_text(resources.replace("orders", topic).replace("failed", f"{topic}-failed"))

    async def checks() -> list[dict[str, Any]]:
        capsys.readouterr()
        await asyncio.to_thread(main, ["doctor", "-d", str(tmp_path), "-a", "shop", "-o", "json"])
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["checks"]
        return found

    def declare(**arguments: Any) -> None:
        with other(server.url) as channel:
            channel.queue_delete(queue)
            channel.exchange_declare(topic, "fanout", durable=True, auto_delete=True)
            channel.queue_declare(queue, durable=arguments.pop("durable", True), arguments=arguments)
            channel.queue_bind(queue, topic)

    write(server.url)
    assert [each["told"] for each in await checks() if each["status"] == "problem"] == []
    with pytest.raises(AssertionError, match="no queue"):
        await in_thread(exists, server.url, queue)
    few = (
        'rabbit_auth_backend_internal:add_user(<<"few">>, <<"few">>, <<"tests">>), rabbit_auth_backend_internal:'
        'set_permissions(<<"few">>, <<"/">>, <<"^$">>, <<"^$">>, <<".*">>, <<"tests">>).'
    )
    await asyncio.to_thread(server.control, "eval", few)
    write(server.url.replace("guest:guest", "few:few"))
    problems = [each["told"] for each in await checks() if each["status"] == "problem" and each["name"] == topic]
    # To publish to the exchange, to make it, to make the queue and to bind it; it may read.
    assert [f"'{topic}'" in each or f"'{queue}'" in each for each in problems] == [True] * 4, problems
    assert all("refused for user 'few'" in each for each in problems)

    write(server.url)
    await in_thread(lambda: declare(durable=False, **{"x-max-length": 5, "x-message-ttl": 60_000}))
    notes = {each["told"] for each in await checks() if each["status"] == "note"}
    assert notes >= {
        f"queue {queue} ends with the server, as does what is in it",
        f"queue {queue} drops what is more than 5 messages",
        f"queue {queue} drops what waits for longer than 60000 ms",
    }
    await in_thread(lambda: declare(**{"x-queue-type": "stream"}))
    [problem] = [each["told"] for each in await checks() if each["status"] == "problem"]
    assert "x-queue-type is 'stream' there, 'classic' here" in problem


async def test_letter_goes_back_where_a_queue_takes_it_alone(
    server: RabbitMQServer, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its routing key; what no queue takes, or has no exchange, stays a letter, and nothing is made for it."""
    settings = {"connectionString": server.url, "exchangeKind": "direct"}
    entries = json.dumps([{"name": name, "value": value} for name, value in settings.items()])
    resources = COMPONENT.format(name="pubsub", type="pubsub.rabbitmq", settings=entries) + SUBSCRIPTION
    (tmp_path / "all.yaml").write_text(resources.replace("orders", topic).replace("failed", f"{topic}-failed"))
    failed = at(f"{topic}-failed")

    async def replay(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        words = ("dlq", "replay", "pubsub", failed.label, *words, "-d", str(tmp_path), "-a", "shop", "-o", "json")
        code = await asyncio.to_thread(main, words)
        return code, json.loads(capsys.readouterr().out)

    keyed = SubscribeOptions("shop", dead_letters=failed, metadata={"routingKey": "eu"})
    async with topics(server.url, exchangeKind="direct") as ours:
        made = component_on(ours, component("pubsub.rabbitmq"), "default", "shop")
        async with ours.subscribe(at(topic), keyed, inbox := Inbox()):
            await ours.publish(at(topic), Message({}, b'{"data":{"n":1}}', metadata={"routingKey": "eu"}))
            await inbox.holds(1)
            letter = made.wire.letter(inbox.deliveries[0].message, "it", 1, topic, "shop")
            await ours.publish(failed, letter)
            await ours.publish(failed, Message({"mesh-dead-letter-topic": topic}, b'{"data":{"n":2}}', id="lost"))
            code, told = await replay("--all")
            assert (code, told["replayed"], told["left"]) == (1, 1, 1)
            assert "no queue takes from the exchange" in next(iter(told["why"]))
            await inbox.holds(2)
        assert inbox.bodies == [b'{"data":{"n":1}}'] * 2
        assert not any(name.startswith("mesh-dead") for name in inbox.deliveries[1].message.headers)
        long = {"mesh-dead-letter-topic": topic, "mesh-dead-letter-routing-key": "k" * 300}
        await ours.publish(failed, Message(long, b'{"data":{"n":4}}', id="long"))
        code, told = await replay("--id", "long")
        assert (code, told["left"]) == (1, 1)
        lost = Message({}, b'{"data":{"n":3}}', id="silent")
        await ours.publish(failed, lost)
        code, told = await replay("--id", "silent", "--topic", f"{topic}-typo")
        assert (code, told["replayed"], told["left"]) == (1, 0, 1)
        assert "has no exchange" in next(iter(told["why"]))
    assert await in_thread(get, server.url, f"shop-{topic}-failed")
    assert "no exchange" in refusal(server.url, lambda channel: channel.exchange_declare(f"{topic}-typo", passive=True))


async def test_doctor_counts_each_groups_letters(
    server: RabbitMQServer, topic: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two applications with one dead letter topic have a queue each, and the next step names the application."""
    entries = json.dumps([{"name": "connectionString", "value": server.url}])
    resources = COMPONENT.format(name="pubsub", type="pubsub.rabbitmq", settings=entries) + SUBSCRIPTION
    resources = resources.replace("orders", topic).replace("failed", f"{topic}-failed")
    (tmp_path / "all.yaml").write_text(f"{resources}scopes: [shop, payments]\n")
    failed = at(f"{topic}-failed")
    async with topics(server.url) as ours:
        for group in ("shop", "payments"):
            async with ours.subscribe(at(topic), SubscribeOptions(group, dead_letters=failed), Inbox()):
                await ours.publish(failed, Message({}, b"a letter"))
    assert await asyncio.to_thread(main, ["doctor", "-d", str(tmp_path), "-o", "json"]) == 1
    letters = [each for each in json.loads(capsys.readouterr().out)["checks"] if each["what"] == "letters"]
    assert [(each["letters"], each["next"]) for each in letters] == [
        (count, f"mesh dlq show pubsub {failed.label} -d {tmp_path} -a {app}")
        for count, app in ((2, "shop"), (1, "payments"))
    ]


async def test_looks_at_a_quorum_queue_are_counted(
    server: RabbitMQServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever looks often is told, before the server would let go of a letter."""
    queue = f"{GROUP}-{topic}"
    with other(server.url) as channel:
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", queue, b"a letter")
    async with topics(server.url, consumerID=GROUP) as ours:

        async def look() -> None:
            try:
                async with ours.letters(at(topic)) as pile:
                    assert [each.message.body async for each in pile] == [b"a letter"]
            except BrokerError as error:  # For a moment the server takes the last look for a consumer.
                raise AssertionError(str(error)) from None

        await eventually(look, WITHIN)
        for _ in range(5):
            await eventually(look, WITHIN)
        assert "counts each look as a delivery" not in caplog.text
        for _ in range(6):
            await eventually(look, WITHIN)
        assert "counts each look as a delivery" in caplog.text
