"""What the contract does not ask of every broker, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from brokers.rabbitmq import RabbitMQBroker, RabbitMQConfig, _balance, _consumer, _topology
from brokers.rabbitmq._channel import TAG, Publish
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._names import exchange_name
from brokers.rabbitmq._publisher import Publisher
from brokers.rabbitmq._session import Session
from brokers.shared.outage import Outage
from brokers.shared.tls import TLSFiles
from mesh.address import encode_token
from mesh.broker import Broker, Delivery, Frame, Message, SubscribeOptions
from mesh.calls.exchange import Exchange, Request
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    MessageTooLargeError,
    NoResponderError,
    PublishRejectedError,
)
from tests.support.backends import RabbitMQBackend, skip_unless_chosen
from tests.support.contract import Inbox, Place, text
from tests.support.eventually import eventually
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.rabbitmq_server import RabbitMQServer

aio_pika = pytest.importorskip("aio_pika")
spec = pytest.importorskip("aiormq").spec

NODE = RabbitMQConfig(())


@pytest.fixture(autouse=True, scope="module")
def _chosen(request: pytest.FixtureRequest) -> None:
    skip_unless_chosen(request.config, "rabbitmq")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(_chosen: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RabbitMQServer]:
    async with RabbitMQServer(tmp_path_factory.mktemp("rabbitmq") / "server") as server:
        yield server


@pytest.fixture
async def place(server: RabbitMQServer) -> AsyncIterator[Place]:
    place = Place(RabbitMQBackend(server))
    async with place.stack:
        yield place


@pytest.fixture
async def raw(server: RabbitMQServer) -> AsyncIterator[Connection]:
    """A connection without the adapter."""
    connection = await Connection.open("127.0.0.1", server.port, NODE, "test")
    yield connection
    await connection.close()


async def holds(raw: Connection, queue: str, messages: int) -> None:
    async def check() -> None:
        assert (await _topology.count(raw, queue))[0] == messages

    await eventually(check)


def space_of(place: Place) -> _topology.Space:
    return _topology.Space(place.topology())


def equal(one: object, another: object) -> None:
    assert one == another


# Who may come in


@pytest.mark.parametrize("settings", [{"password": "secret-wrong"}, {"vhost": "nowhere"}, {"external": True}], ids=str)
async def test_refused_login_is_known_at_once(server: RabbitMQServer, settings: dict[str, object]) -> None:
    config = dataclasses.replace(RabbitMQConfig.from_url(server.url), **settings)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(BrokerUnavailableError) as raised:
        async with RabbitMQBroker(config):
            pytest.fail("entered")
    assert time.monotonic() - began < config.connect_wait / 2
    assert f"127.0.0.1:{server.port}" in str(raised.value)
    assert "secret" not in str(raised.value)


async def test_one_node_of_several_is_enough(server: RabbitMQServer) -> None:
    async with RabbitMQBroker(RabbitMQConfig((("127.0.0.1", 1), ("127.0.0.1", server.port)))) as broker:
        await broker.check()


async def test_tls(tmp_path: Path) -> None:
    key, certificate, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    config = (
        f"listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {certificate}\n"
        f"ssl_options.certfile = {certificate}\nssl_options.keyfile = {key}\n"
    )
    hosts = (("localhost", port),)
    async with RabbitMQServer(tmp_path / "server", config):
        async with RabbitMQBroker.from_url(f"amqps://localhost:{port}?cacertfile={certificate}") as broker:
            await broker.check()
        async with RabbitMQBroker(RabbitMQConfig(hosts, tls=TLSFiles(ca=certificate.read_text()).context())) as broker:
            await broker.check()
        with pytest.raises(BrokerUnavailableError, match="certificate verify failed"):
            async with RabbitMQBroker(RabbitMQConfig(hosts, tls=TLSFiles().context(), connect_wait=1.0)):
                pytest.fail("entered")


# Nothing is lost


async def test_event_that_only_an_ephemeral_group_got_is_kept_for_a_lasting_one(place: Place) -> None:
    broker = await place.connect()
    passing, lasting = Inbox(), Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("e", ephemeral=True), passing):
        await broker.publish(place.topic(), text("x"))
        await passing.holds(1)
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), lasting):
        await lasting.holds(1)


async def test_new_group_takes_its_topic_only(place: Place, raw: Connection) -> None:
    broker = await place.connect()
    for number in range(20):
        await broker.publish(place.topic("a" if number % 2 else "b"), text(number))
    one, other = Inbox(), Inbox()
    async with broker.subscribe(place.topic("a"), SubscribeOptions("g", max_in_flight=1), one):
        await one.holds(10)
    await holds(raw, space_of(place).unclaimed, 10)
    async with broker.subscribe(place.topic("b"), SubscribeOptions("g", max_in_flight=1), other):
        await other.holds(10)
    await holds(raw, space_of(place).unclaimed, 0)
    assert [int(body) for body in one.bodies] == list(range(1, 20, 2))
    assert [int(body) for body in other.bodies] == list(range(0, 20, 2))
    assert {delivery.attempt for delivery in (*one.deliveries, *other.deliveries)} == {1}


async def test_what_is_published_while_a_group_begins_comes_to_it(place: Place, inbox: Inbox) -> None:
    """Also what lies where nobody's events are just when those have been looked through."""
    publisher, reader = await place.connect(), await place.connect()
    messages = [text(number) for number in range(20)] + [Message({}, bytes(3_500_000))]

    async def publish() -> None:
        for message in messages:
            await publisher.publish(place.topic(), message)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        async with reader.subscribe(place.topic(), SubscribeOptions("g"), inbox):
            await inbox.holds(len(messages))
    assert {len(body) for body in inbox.bodies} == {1, 2, 3_500_000}


async def test_two_new_members_at_once_get_everything_once(place: Place) -> None:
    one, other = await place.connect(), await place.connect()
    await one.publish_many(place.topic(), [text(number) for number in range(500)])
    inbox = Inbox()

    async def member(broker: Broker) -> None:
        async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
            await inbox.holds(500)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(member(one))
        tasks.create_task(member(other))
    assert sorted(map(int, inbox.bodies)) == list(range(500))


async def test_group_whose_queue_somebody_deletes_gets_what_comes_meanwhile(place: Place, raw: Connection) -> None:
    broker = await place.connect()
    inbox = Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        await broker.publish(place.topic(), text("before"))
        await inbox.holds(1)
        async with raw.channel() as channel:
            await channel.call(spec.Queue.Delete(queue=f"{place.topic().space}:g:orders"))
        await broker.publish(place.topic(), text("after"))
        await inbox.holds(2)


async def test_publish_without_any_queue_is_rejected(place: Place, raw: Connection) -> None:
    broker = await place.connect()
    async with raw.channel() as channel:
        await channel.call(spec.Queue.Delete(queue=space_of(place).unclaimed))
    with pytest.raises(PublishRejectedError, match="no queue"):
        await broker.publish(place.topic(), text("x"))
    results = await broker.publish_many(place.topic(), [text(number) for number in range(5)])
    assert all(isinstance(result, PublishRejectedError) for result in results)
    same = await broker.publish_many(place.topic(), [Message({}, b"", id="same")] * 5)
    assert all(isinstance(result, PublishRejectedError) for result in same)


async def test_call_that_is_cancelled_does_not_end_its_channel(raw: Connection) -> None:
    """As aiormq has it, its channel would be closed, for everybody."""
    async with raw.channel() as channel:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await channel.call(spec.Basic.Qos(prefetch_count=1))
        await channel.call(spec.Basic.Qos())
        assert channel.error is None


async def test_nothing_is_missed_that_comes_while_a_consumer_is_cancelled(raw: Connection) -> None:
    found: list[bytes] = []
    queue = spec.Queue.Declare(queue="cancelled", exclusive=True)
    async with raw.channel(queue) as publishing:
        taking = await raw.open_channel(
            spec.Basic.Consume(queue="cancelled", consumer_tag=TAG, no_ack=True),
            take=lambda delivered: found.append(delivered.body),
        )
        for number in range(500):
            publishing.post(Publish("", "cancelled", spec.Basic.Properties(), b"%d" % number, mandatory=False))
        await taking.cancel()
        left, consumers = await _topology.count_on(publishing, "cancelled")
        assert consumers == 0
        assert found == [b"%d" % number for number in range(500 - left)]
        taking.close()


async def test_exchange_deleted_at_run_time_ends_no_publish_for_ever(
    place: Place, server: RabbitMQServer, raw: Connection
) -> None:
    broker = await place.connect()
    async with RabbitMQBroker.from_url(server.url) as stranger:
        await stranger.publish(place.topic(), text("seen"))
        async with raw.channel() as channel:
            for name in (space_of(place).exchange, space_of(place).groups):
                await channel.call(spec.Exchange.Delete(exchange=name))
        async with asyncio.timeout(30):
            with pytest.raises(PublishRejectedError, match="never declared"):
                await stranger.publish(place.topic(), text("x"))
            await broker.publish(place.topic(), text("declared again"))  # It declared the space itself.


async def test_expired_events_are_in_the_dead_letter_queue(place: Place, raw: Connection) -> None:
    broker = await place.connect()
    address = dataclasses.replace(place.topic(), space=place.topic().space + "-short")
    await broker.declare(dataclasses.replace(place.topology(max_age=1.0), space=address.space))
    async with broker.subscribe(address, SubscribeOptions("g"), Inbox()):
        pass
    await broker.publish(address, text("x"))
    await holds(raw, f"{address.space}:dead", 1)
    await holds(raw, f"{address.space}:g:orders", 0)


async def test_group_made_just_before_the_server_is_killed_lives_on(tmp_path: Path) -> None:
    """RabbitMQ 3.10 forgets the log of a queue that it made in its last two seconds."""
    async with RabbitMQServer(tmp_path / "server") as own:
        place = Place(RabbitMQBackend(own))
        async with place.stack:
            broker = await place.connect()
            inbox = Inbox(lambda delivery: delivery.nack(1.0) if delivery.attempt == 1 else delivery.ack())
            async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
                for number in range(10):
                    await broker.publish(place.topic(), text(number))
                await inbox.holds(10)
                await asyncio.sleep(0.1)  # So that the retry queue has them.
                await own.restart(kill=True)

                def check() -> None:
                    again = {delivery.message.body for delivery in inbox.deliveries if delivery.attempt > 1}
                    assert again == {b"%d" % number for number in range(10)}

                await eventually(check, within=40)


# Limits


async def test_limits_of_a_component(server: RabbitMQServer, place: Place) -> None:
    config = dataclasses.replace(RabbitMQConfig.from_url(server.url), max_events=5, max_in_flight=2, max_age=60.0)
    address = dataclasses.replace(place.topic(), space=place.topic().space + "-few")
    running = most = 0

    async def work(delivery: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        await delivery.ack()

    async with RabbitMQBroker(config) as limited:
        await limited.declare(dataclasses.replace(place.topology(), space=address.space))
        with pytest.raises(PublishRejectedError):
            for number in range(20):
                await limited.publish(address, text(number))
        inbox = Inbox(work)
        async with limited.subscribe(address, SubscribeOptions("g"), inbox):
            await inbox.holds(5)
    assert most == 2


@pytest.mark.parametrize("recovers", [True, False])
async def test_refusal_without_a_limit_of_ours_is_waited_out(
    server: RabbitMQServer, place: Place, recovers: bool
) -> None:
    """A queue may be without a leader for a moment; one that keeps refusing is an error."""
    broker, topic = await place.connect(), place.topic()
    connection = await aio_pika.connect(server.url)
    async with connection:
        channel = await connection.channel()
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue(f"full-{topic.space}", arguments=full)
        await channel.default_exchange.publish(aio_pika.Message(b"x"), queue.name)
        await queue.bind(exchange_name(topic.space), "#")
        publishing = asyncio.ensure_future(broker.publish(topic, text("x")))
        await asyncio.wait([publishing], timeout=0.6)  # It is refused at once, and again after 0.25 s.
        assert not publishing.done()
        if recovers:
            await queue.delete(if_empty=False)
            await publishing
            return
        with pytest.raises(PublishRejectedError, match="is full"):
            await publishing
        await queue.delete(if_empty=False)


async def test_headers_that_do_not_fit_into_a_frame_are_refused(place: Place) -> None:
    broker = await place.connect()
    for headers in ({"a": "v" * 200_000}, {f"n{number}": "v" * 1000 for number in range(200)}):
        with pytest.raises(MessageTooLargeError):
            await broker.publish(place.topic(), Message(headers, b""))
        with pytest.raises(MessageTooLargeError):
            await broker.send(place.app(), Message(headers, b""))
    await broker.publish(place.topic(), Message({"a": "v" * 130_000}, b""))


async def test_patterns_and_long_topics(place: Place) -> None:
    broker = await place.connect()
    long = ".".join(["a", "x" * 100, *["b"] * 100])
    inboxes = {pattern: Inbox() for pattern in ("a.>", f"a.{'x' * 100}.>", f"a.*.{'b.' * 99}*", f"*.*.{'b.' * 99}c")}
    stop = asyncio.Event()
    ready = 0

    async def member(pattern: str, inbox: Inbox) -> None:
        nonlocal ready
        async with broker.subscribe(place.topic(pattern, pattern=True), SubscribeOptions("g"), inbox):
            ready += 1
            await stop.wait()

    async with asyncio.TaskGroup() as tasks:
        for pattern, inbox in inboxes.items():
            tasks.create_task(member(pattern, inbox))
        await eventually(lambda: equal(ready, 4))
        for name in ("a.c", long):
            await broker.publish(place.topic(name), text(name))
        await eventually(lambda: equal([len(inbox.bodies) for inbox in inboxes.values()], [2, 1, 1, 0]))
        stop.set()
    assert place.topic(long) in [delivery.address for delivery in inboxes["a.>"].deliveries]


# Members


async def test_lanes_are_shared_out_among_the_members(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_balance.balance, "__defaults__", (0.3,))
    one, other = await place.connect(), await place.connect()
    seen: Counter[str] = Counter()
    order: defaultdict[str, list[int]] = defaultdict(list)
    busy: set[str] = set()
    overlaps: list[str] = []

    def member(name: str) -> Callable[[Delivery], Awaitable[None]]:
        async def work(delivery: Delivery) -> None:
            key, _, number = delivery.message.body.decode().partition(":")
            overlaps.extend({key} & busy)
            busy.add(key)
            await asyncio.sleep(0.001)
            busy.discard(key)
            order[key].append(int(number))
            seen[name] += 1
            await delivery.ack()

        return work

    options = SubscribeOptions("g", ordered=True)
    async with (
        one.subscribe(place.topic(), options, member("one")),
        other.subscribe(place.topic(), options, member("other")),
    ):
        for number in range(100):
            await one.publish_many(place.topic(), [text(f"k{key}:{number}", key=f"k{key}") for key in range(30)])
            await asyncio.sleep(0.02)
        await eventually(lambda: equal(sum(map(len, order.values())), 3000), within=40)
    assert overlaps == []
    assert all(numbers == list(range(100)) for numbers in order.values())
    assert min(seen["one"], seen["other"]) > 300


async def test_delay_of_an_ordered_group_is_kept_by_its_member(place: Place) -> None:
    """Leaving ends it: the next member gets the event at once, before what follows it."""
    one, other = await place.connect(), await place.connect()
    first, second = Inbox(lambda delivery: delivery.nack(60.0)), Inbox()
    options = SubscribeOptions("g", ordered=True)
    await one.publish_many(place.topic(), [text(number, key="k") for number in range(5)])
    async with one.subscribe(place.topic(), options, first):
        await first.holds(1)
    async with other.subscribe(place.topic(), options, second):
        await second.holds(5)
    assert [int(body) for body in second.bodies] == list(range(5))
    assert len(first.bodies) == 1


# Services without a gateway, through another client


async def test_event_as_another_client_sees_it(place: Place, server: RabbitMQServer) -> None:
    broker = await place.connect()
    connection = await aio_pika.connect(server.url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(place.topic().space, "*.orders")
        headers = {"cloudEvents_specversion": "1.0", "cloudEvents_datacontenttype": "application/json", "x": "y"}
        await broker.publish(place.topic(), Message(headers, b"{}", id="17"))
        message = await queue.get(timeout=5)
        assert (message.body, message.content_type, message.message_id) == (b"{}", "application/json", "17")
        assert message.headers == headers
        await message.ack()


async def test_event_from_another_client(place: Place, server: RabbitMQServer) -> None:
    broker, inbox = await place.connect(), Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        connection = await aio_pika.connect(server.url)
        async with connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange(place.topic().space, ensure=False)
            made = aio_pika.Message(b"x", headers={"cloudEvents:specversion": "1.0", "n": 5}, content_type="text/plain")
            await exchange.publish(made, routing_key="_.orders")
        await inbox.holds(1)
    [delivery] = inbox.deliveries
    assert delivery.address == place.topic()
    assert delivery.message.headers == {
        "cloudEvents_specversion": "1.0",
        "cloudEvents_datacontenttype": "text/plain",
        "n": "5",
    }


async def test_an_answer_goes_to_no_queue_of_the_mesh(place: Place, server: RabbitMQServer) -> None:
    """What waits there is events, or calls."""
    node = await place.connect()
    frames: list[Frame] = []
    connection = await aio_pika.connect(server.url)
    async with connection, node.serve(place.app("mesh"), "g", frames.append):
        channel = await connection.channel(publisher_confirms=False)
        kept = await channel.declare_queue(f"{place.topic().space}:g:orders", exclusive=True)
        exchange = await channel.get_exchange("mesh.frames.topic", ensure=False)
        for name in (kept.name, "theirs"):
            asked = aio_pika.Message(b"hello", reply_to=name, correlation_id="c1")
            await exchange.publish(asked, routing_key=place.app("mesh").text)

        def came() -> None:
            assert [frame.reply_to for frame in frames] == ["", "theirs.c1"]

        await eventually(came)
        with pytest.raises(BrokerError, match="inbox"):
            await node.send(f"{encode_token(kept.name)}.c1", Message({}, b"harm"))


async def test_request_and_reply_with_another_client(place: Place, server: RabbitMQServer) -> None:
    node = await place.connect()
    connection = await aio_pika.connect(server.url)
    async with connection, Exchange(node) as exchange:
        channel = await connection.channel(publisher_confirms=False)

        async def answer(request: Request) -> None:
            await request.reply({}, request.body + b" from the mesh")

        async with exchange.serve(place.app("mesh"), "g", answer):
            replies = await channel.declare_queue(exclusive=True)
            frames = await channel.get_exchange("mesh.frames.topic", ensure=False)
            deadline = {"mesh-deadline": str(int((time.time() + 30) * 1000))}
            asked = aio_pika.Message(b"hello", headers=deadline, reply_to=replies.name, correlation_id="c1")
            await frames.publish(asked, routing_key=place.app("mesh").text)

            async def reply_came() -> None:
                message = await replies.get(fail=False)
                assert message is not None
                assert (message.body, message.correlation_id) == (b"hello from the mesh", "c1")

            await eventually(reply_came)

        served = await channel.declare_queue(exclusive=True)
        await served.bind("mesh.frames.topic", place.app("elsewhere").text)

        async def serve(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            made = aio_pika.Message(message.body + b" from elsewhere", correlation_id=message.correlation_id)
            await channel.default_exchange.publish(made, routing_key=message.reply_to or "")

        await served.consume(serve, no_ack=True)
        reply = await exchange.request(place.app("elsewhere"), Message({}, b"hello"), time.time() + 30)
        assert reply.body == b"hello from elsewhere"
        with pytest.raises(NoResponderError):
            await exchange.request(place.app("nowhere"), Message({}, b"hello"), time.time() + 30)


async def test_message_that_the_server_closes_the_channel_for_is_rejected(
    place: Place, server: RabbitMQServer, raw: Connection
) -> None:
    """Others on that channel are published again, and it is not."""
    address = dataclasses.replace(place.topic(), space=place.topic().space + "-internal")
    refusing = spec.Exchange.Declare(exchange=address.space, exchange_type="topic", durable=True, internal=True)
    async with raw.channel(refusing):
        pass
    broker = await place.connect()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(broker.publish_many(place.topic(), [text(number) for number in range(50)]))
        bad = tasks.create_task(broker.publish_many(address, [text("x")] * 3))
        last = tasks.create_task(broker.publish_many(place.topic(), [text(number) for number in range(50)]))
    assert first.result() + last.result() == [None] * 100
    assert all(isinstance(result, PublishRejectedError) for result in bad.result())
    await broker.check()


async def test_event_given_up_while_nothing_can_be_stored_is_not_lost(
    place: Place, server: RabbitMQServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is to be stored anew, for others, when its handler fails; and then that cannot be done."""
    monkeypatch.setattr(_consumer, "STORE_WAIT", 3.0)
    fail = asyncio.Event()

    async def work(delivery: Delivery) -> None:
        if delivery.attempt == 1:
            await fail.wait()
            await delivery.nack(0.1)
        else:
            await delivery.ack()

    def is_given_up() -> None:
        assert "no sign of life" in caplog.text

    broker, inbox = RabbitMQBroker.from_url(server.url), Inbox(work)
    async with Proxy(server.port) as proxy:
        stalling = RabbitMQConfig.from_url(f"amqp://127.0.0.1:{proxy.port}?heartbeat=60")
        outage = Outage(logging.getLogger("test"), "RabbitMQ", "test")
        broker._publisher = Publisher(stalling, broker._inbox.take_back, broker._inbox.refuse, outage)
        await (await place.connect()).publish(place.topic(), text("x"))
        async with broker, broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=0.3), inbox):
            await inbox.holds(1)
            proxy.stall()
            await eventually(is_given_up)
            fail.set()
            await inbox.holds(2)


async def test_event_that_waits_for_a_retry_is_not_lost_with_its_queue(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ removes a quorum queue when its time is over, whether it is in use or not."""
    monkeypatch.setattr(_topology, "EPHEMERAL_LEASE", 1.0)
    broker = await place.connect()
    inbox = Inbox(lambda delivery: delivery.nack(0.5) if delivery.attempt == 1 else delivery.ack())
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ephemeral=True), inbox):
        for number in range(40):  # Over several leases.
            await broker.publish(place.topic(), text(number))
            await asyncio.sleep(0.15)
        await inbox.holds(80)
    assert Counter(int(body) for body in inbox.bodies) == dict.fromkeys(range(40), 2)


# Connections


async def test_stalled_server_is_an_error_and_no_cancellation(server: RabbitMQServer) -> None:
    async with Proxy(server.port) as proxy:
        connection = await Connection.open("127.0.0.1", proxy.port, dataclasses.replace(NODE, heartbeat=1), "test")
        proxy.stall()
        with pytest.raises(BrokerUnavailableError):
            async with asyncio.timeout(30):
                await connection.open_channel()
        await connection.close()


async def test_a_server_that_is_behind_keeps_its_connections(server: RabbitMQServer) -> None:
    """It answers that a channel is closed after more than a heartbeat: it is told that once."""
    async with Proxy(server.port) as proxy:
        config = RabbitMQConfig((("127.0.0.1", proxy.port),), heartbeat=1)
        async with RabbitMQBroker(config) as broker:
            connections = proxy.accepted
            await broker.check()  # On both a channel is opened, and is about to be closed.
            proxy.delay(0.6)
            await broker.check()
            proxy.delay(0.0)
            await broker.check()
            assert proxy.accepted == connections


async def test_broken_connection_is_known_to_whoever_met_its_end(server: RabbitMQServer) -> None:
    """Else the same connection would be tried again and again, without a pause."""
    connection = await Connection.open("127.0.0.1", server.port, NODE, "test")
    unknown = []

    async def ask() -> None:
        try:
            await connection.open_channel()
        except BrokerUnavailableError:
            unknown.append(connection.error is None)

    async with asyncio.TaskGroup() as tasks:
        connection._transport.close()
        while connection.error is None:
            tasks.create_task(ask())
            await asyncio.sleep(0)
    assert unknown
    assert not any(unknown)


async def test_connections_that_do_not_last_are_made_less_and_less_often(server: RabbitMQServer) -> None:
    opened = 0

    async def prepare(connection: Connection) -> None:
        nonlocal opened
        opened += 1
        asyncio.get_running_loop().call_soon(connection.abort, BrokerUnavailableError("unwanted"))

    session = Session(
        RabbitMQConfig.from_url(server.url), "test", prepare, Outage(logging.getLogger("test"), "RabbitMQ", "test")
    )
    await session.open()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await session.keep()
    await session.close()
    assert 2 <= opened <= 10


async def test_what_a_broken_connection_sends_back_keeps_its_order(place: Place, server: RabbitMQServer) -> None:
    broker, inbox = await place.connect(), Inbox()
    async with (
        Proxy(server.port) as proxy,
        RabbitMQBroker.from_url(f"amqp://127.0.0.1:{proxy.port}") as publishing,
        broker.subscribe(place.topic(), SubscribeOptions("g", ordered=True), inbox),
    ):
        await publishing.publish(place.topic(), text(-1, key="k"))
        proxy.cut_after(10_000)
        results = await publishing.publish_many(place.topic(), [text(number, key="k") for number in range(300)])
        assert results == [None] * 300
        await eventually(lambda: equal(set(inbox.bodies), {b"%d" % number for number in range(-1, 300)}), within=40)
    assert [int(body) for body in dict.fromkeys(inbox.bodies)] == list(range(-1, 300))
