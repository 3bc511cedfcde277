"""JetStream in the native layout, beside programs that are not ours: what stands in the stream, both ways."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from brokers.native._jetstream import JetStreamSettings
from brokers.native.jetstream import JetStreamTopics
from brokers.nats import NatsConfig
from mesh import address
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import BadArgumentError, BrokerError, PublishRejectedError, TopologyMismatchError
from tests.http.harness import App, Backbone, Node, component, gateway
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.nats import NatsServer, find_nats_cli
from tests.support.nats_raw import RawMessage, RawNats
from tests.support.reference.jetstream import ReferenceSidecar

TOPIC = address.topic("test", "pubsub", "orders")
IMAGE = bytes(range(256))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "server") as started:
        yield started


@pytest.fixture
async def raw(server: NatsServer) -> AsyncIterator[RawNats]:
    async with RawNats(server.port) as client:
        yield client


@asynccontextmanager
async def member(server: NatsServer, **settings: Any) -> AsyncIterator[JetStreamTopics]:
    async with JetStreamTopics(JetStreamSettings(**settings), NatsConfig.from_url(server.url)) as broker:
        yield broker


def subscription(topic: str = "orders", **more: object) -> dict[str, object]:
    return {"pubsubname": "pubsub", "topic": topic, "route": f"/{topic.replace('.', '-')}", **more}


@asynccontextmanager
async def node(
    server: NatsServer,
    home: Path,
    subscriptions: Sequence[dict[str, object]] = (),
    *,
    app: App | None = None,
    app_id: str = "shop",
    **settings: str,
) -> AsyncIterator[tuple[Node, App]]:
    """A gateway whose component is on this server, and its application."""
    resources = component("pubsub", "pubsub.jetstream", natsURL=server.url, **settings)
    async with app or App(list(subscriptions)) as serving:
        serving.subscriptions = serving.subscriptions or list(subscriptions)
        async with gateway(Backbone("memory:"), home, app=serving, app_id=app_id, resources=resources) as started:
            yield started, serving


async def test_what_stands_in_the_stream(server: NatsServer, raw: RawNats, tmp_path: Path) -> None:
    await raw.stream("ORDERS", "orders")
    async with node(server, tmp_path) as (gate, _):
        await gate.publish("orders", {"a": 1, "s": "é"})
        await gate.publish("orders", {"a": 2}, query="?metadata.rawPayload=true&metadata.foo=bar")
        await gate.publish("orders", IMAGE, "image/png", query="?metadata.cloudevents=binary&metadata.cloudevent.id=x1")
        own = {"specversion": "1.0", "id": "mine", "source": "s", "type": "t", "data": 1}
        await gate.publish("orders", own, "application/cloudevents+json")
    structured, plain, binary, caller = await raw.stored("ORDERS")
    event = orjson.loads(structured.body)
    assert structured.body == orjson.dumps(event, option=orjson.OPT_SORT_KEYS)
    assert (event["data"], event["source"], event["topic"], event["pubsubname"]) == (
        {"a": 1, "s": "é"},
        "shop",
        "orders",
        "pubsub",
    )
    assert structured.block == b"NATS/1.0\r\nNats-Msg-Id: " + event["id"].encode() + b"\r\n\r\n"
    assert (plain.body, plain.block) == (b'{"a":2}', b"")
    assert binary.body == IMAGE
    told = binary.headers
    assert (told["Nats-Msg-Id"], told["ce-id"], told["content-type"]) == ("x1", "x1", "image/png")
    assert {name for name in told if not name.startswith("ce-")} == {"Nats-Msg-Id", "content-type"}
    assert caller.headers == {"Nats-Msg-Id": "mine"}
    assert orjson.loads(caller.body)["data"] == 1


async def test_what_an_application_gets_of_other_programs(server: NatsServer, raw: RawNats, tmp_path: Path) -> None:
    await raw.stream("ORDERS", "orders", "rest.>")
    event = b'{ "specversion": "1.0", "id": "7", "source": "s", "type": "t", "data": {"a": 1} }'
    attributes = {"ce-specversion": "1.0", "ce-id": "8", "ce-source": "s", "ce-type": "t", "content-type": "image/png"}
    await raw.store("orders", b'{"j":1}')
    await raw.store("orders", event)
    await raw.store("orders", IMAGE, attributes)
    await raw.store("rest.eu", IMAGE, {"Foo": "bar"})
    subscriptions = [subscription(), subscription("rest.*", metadata={"rawPayload": "true"})]
    async with node(server, tmp_path, subscriptions) as (_, app):
        ours = await app.until("/orders", 3)
        [rest] = await app.until("/rest-*")
    bodies = [got.body for got in ours]
    assert b'{"j":1}' in bodies
    assert event in bodies
    [binary] = [got.json for got in ours if got.json.get("id") == "8"]
    assert (binary["datacontenttype"], binary["source"]) == ("image/png", "s")
    assert {(got.headers["topic"], got.headers["pubsubname"]) for got in ours} == {("orders", "pubsub")}
    assert (rest.headers["topic"], "foo" in rest.headers) == ("rest.eu", False)


async def test_with_the_command_line_client(server: NatsServer, raw: RawNats, tmp_path: Path) -> None:
    """What it publishes is delivered, and what is published it shows."""
    if (program := find_nats_cli()) is None:
        pytest.skip("the client of NATS is not there: make provision")
    await raw.stream("ORDERS", "orders")

    async def nats(*words: str) -> str:
        command = [program, "--server", server.url, *words]
        done = await asyncio.to_thread(subprocess.run, command, check=True, timeout=60, capture_output=True, text=True)
        return done.stdout

    async with node(server, tmp_path, [subscription()]) as (gate, app):
        await nats("pub", "orders", '{"j":1}', "--jetstream")
        [got] = await app.until("/orders")
        await gate.publish("orders", {"a": 1})
        shown = await nats("stream", "get", "ORDERS", "2")
    assert (got.body, got.headers["topic"]) == (b'{"j":1}', "orders")
    event = (await raw.stored("ORDERS"))[1]
    assert event.body.decode() in shown
    assert f"Nats-Msg-Id: {event.headers['Nats-Msg-Id']}" in shown


async def test_what_cannot_be_read_is_a_dead_letter_in_the_same_stream(
    server: NatsServer, raw: RawNats, tmp_path: Path
) -> None:
    """The stream has seen the ids; the letters come all the same, each once."""
    await raw.stream("ORDERS", "orders", "dead")
    subscriptions = [subscription(deadLetterTopic="dead"), subscription("dead")]
    await raw.store("orders", b"no event", {"Nats-Msg-Id": "1"})
    async with node(server, tmp_path, subscriptions) as (gate, app):
        app.answer("/orders", 500)
        await gate.publish("orders", {"a": 1})
        await app.until("/dead")  # The other one is no event here either, and stays in the stream.
        await app.until("/orders")

        async def both() -> None:
            assert len([each for each in await raw.stored("ORDERS") if each.subject == "dead"]) == 2

        await eventually(both)
    letters = [each for each in await raw.stored("ORDERS") if each.subject == "dead"]
    assert sorted(each.headers["Nats-Msg-Id"].split("-")[0] for each in letters) == ["dead", "dead"]
    assert b"no event" in [each.body for each in letters]
    info = await raw.api("CONSUMER.LIST.ORDERS")
    counts = {each["config"]["filter_subject"]: each["delivered"]["consumer_seq"] for each in info["consumers"]}
    assert counts["orders"] <= 4, "it loops"


async def test_a_restart_replays_nothing_and_replicas_share(server: NatsServer, raw: RawNats, tmp_path: Path) -> None:
    await raw.stream("ORDERS", "orders")
    async with node(server, tmp_path, [subscription()]) as (gate, app):
        await gate.publish("orders", {"n": 1})
        await app.until("/orders")
    one, two = App([subscription()]), App([subscription()])
    async with (
        node(server, tmp_path, app=one) as (gate, _),
        node(server, tmp_path, app=two),
    ):
        for number in range(2, 42):
            await gate.publish("orders", {"n": number})

        def all_there() -> None:
            assert len(one.got) + len(two.got) >= 40

        await eventually(all_there)
    numbers = [got.json["data"]["n"] for got in (*one.got, *two.got)]
    assert sorted(numbers) == list(range(2, 42))
    assert one.got and two.got


async def test_without_a_stream_it_says_what_to_do(server: NatsServer, raw: RawNats, tmp_path: Path) -> None:
    await raw.stream("ORDERS", "orders")
    heard: list[RawMessage] = []
    raw.subscribe("nowhere", heard.append)  # Without a stream, a mere listener would be all that gets it.
    async with node(server, tmp_path) as (gate, _):
        reply = await gate.post("/v1.0/publish/pubsub/nowhere", {"a": 1})
        assert reply.status >= 400
        assert "nowhere" in reply.json["message"]
        assert "createStream" in reply.json["message"]
    assert not heard
    async with member(server) as broker:
        for options in (SubscribeOptions("g"), SubscribeOptions("g", dead_letters=TOPIC)):
            topic = address.topic("test", "pubsub", "nowhere")
            with pytest.raises(PublishRejectedError, match=r"nowhere.*createStream"):
                async with broker.subscribe(topic, options, Inbox()):
                    pytest.fail("entered")
        with pytest.raises(PublishRejectedError, match="letters"):
            letters = SubscribeOptions("g", dead_letters=address.topic("test", "pubsub", "letters"))
            async with broker.subscribe(TOPIC, letters, Inbox()):
                pytest.fail("entered")


async def test_a_stream_is_made_only_on_request_and_none_is_altered(server: NatsServer, raw: RawNats) -> None:
    await raw.stream("OLD", "old", max_msgs=10, num_replicas=1)
    before = (await raw.api("STREAM.INFO.OLD"))["config"]
    async with member(server, creates=True, memory=True, copies=1) as broker:
        for topic in ("old", "new.eu"):
            await broker.publish(address.topic("test", "pubsub", topic), Message({}, b"{}", id="1"))
    assert (await raw.api("STREAM.INFO.OLD"))["config"] == before
    made = (await raw.api("STREAM.INFO.new=2Eeu"))["config"]
    assert (made["subjects"], made["storage"], made["num_replicas"]) == (["new.eu"], "memory", 1)


@pytest.mark.parametrize(
    "topic", ["a b", "a\r\nPUB x 0", "a..b", "*", "a.>", "$JS.API.STREAM.DELETE.S", "_INBOX.x", "mesh.default.app.x"]
)
async def test_subjects_that_are_none_or_not_a_topic(server: NatsServer, raw: RawNats, topic: str) -> None:
    await raw.stream("S", "s")
    async with member(server, creates=True) as broker:
        with pytest.raises(BadArgumentError, match="topic"):
            await broker.publish(address.topic("test", "pubsub", topic), Message({}, b""))
        results = await broker.publish_many(address.topic("test", "pubsub", topic), [Message({}, b"")] * 2)
        assert ["topic" in str(each) for each in results] == [True, True]
    assert (await raw.api("STREAM.NAMES"))["streams"] == ["S"]


async def test_an_id_cannot_bring_headers_along(server: NatsServer, raw: RawNats) -> None:
    await raw.stream("S", "orders", allow_rollup_hdrs=True)
    async with member(server) as broker:
        await broker.publish(TOPIC, Message({}, b"1", id="1"))
        await broker.publish(TOPIC, Message({}, b"2", id="2\r\nNats-Rollup: all"))
    assert [each.body for each in await raw.stored("S")] == [b"1", b"2"]


async def test_both_kinds_of_sidecar_share_a_push_consumer(server: NatsServer, raw: RawNats) -> None:
    """Members of both come and go; each event is handled, and by nobody twice."""
    await raw.stream("ORDERS", "orders")
    theirs: list[bytes] = []
    sidecar = ReferenceSidecar(raw)
    options, ours = SubscribeOptions("shop", max_in_flight=7), Inbox()

    def take(message: RawMessage) -> bool:
        theirs.append(message.body)
        return True

    def joined() -> Any:
        return sidecar.subscribed("ORDERS", "orders", take, durable="shop", queue="shop")

    async def send(first: int) -> None:
        for number in range(first, first + 100):
            await sidecar.publish("orders", number)

    async def handled(count: int) -> None:
        def check() -> None:
            assert len(theirs) + len(ours.bodies) >= count

        await eventually(check)

    async with member(server, durable="shop", queue="shop") as broker:
        async with joined():
            await send(0)
            async with broker.subscribe(TOPIC, options, ours):
                await send(100)
                await handled(200)
            await send(200)
        async with broker.subscribe(TOPIC, options, ours), joined():
            await send(300)
            await handled(400)
    numbers = [orjson.loads(body)["data"] for body in (*theirs, *ours.bodies)]
    assert sorted(numbers) == list(range(400))
    assert len(ours.bodies) > 50
    assert len(theirs) > 150
    config = (await raw.api("CONSUMER.INFO.ORDERS.shop"))["config"]
    assert (config["deliver_group"], config["ack_wait"], config["max_ack_pending"]) == ("shop", 30_000_000_000, 1000)


async def test_the_reference_takes_up_a_consumer_that_we_made(server: NatsServer, raw: RawNats) -> None:
    await raw.stream("ORDERS", "orders")
    got: list[bytes] = []
    async with member(server, queue="shop") as broker:
        async with broker.subscribe(TOPIC, SubscribeOptions("shop"), Inbox()):
            pass
        await broker.publish(TOPIC, Message({}, b'{"a":1}', id="1"))

    def take(message: RawMessage) -> bool:
        got.append(message.body)
        return len(got) > 1

    async with ReferenceSidecar(raw).subscribed("ORDERS", "orders", take, durable="shop", queue="shop"):

        def twice() -> None:
            assert got == [b'{"a":1}'] * 2

        await eventually(twice)
    config = (await raw.api("CONSUMER.INFO.ORDERS.shop"))["config"]
    wanted = {"durable_name": "shop", "deliver_group": "shop", "filter_subject": "orders", "deliver_policy": "all"}
    assert wanted.items() <= config.items()
    assert (config["max_deliver"], config.get("inactive_threshold")) == (-1, None)


async def test_a_durable_consumer_without_a_group_has_one_member(server: NatsServer, raw: RawNats) -> None:
    await raw.stream("ORDERS", "orders")
    options = SubscribeOptions("shop")
    async with member(server, durable="shop") as one, member(server, durable="shop") as two:
        async with one.subscribe(TOPIC, options, Inbox()):
            with pytest.raises(BrokerError, match="another member"):
                async with two.subscribe(TOPIC, options, Inbox()):
                    pytest.fail("entered")
        inbox = Inbox()
        async with two.subscribe(TOPIC, options, inbox):
            await one.publish(TOPIC, Message({}, b"1"))
            await inbox.holds(1)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({"ack_policy": "explicit", "filter_subject": "orders", "max_deliver": 7}, None, id="pull"),
        pytest.param(
            {
                "ack_policy": "explicit",
                "filter_subject": "orders",
                "max_batch": 3,
                "max_expires": 1_000_000_000,
                "max_bytes": 2_000_000,
            },
            None,
            id="pull, a little at a time",
        ),
        pytest.param({"ack_policy": "explicit"}, "filter_subject is ''", id="all topics"),
        pytest.param({"ack_policy": "none", "filter_subject": "orders"}, "ack_policy", id="no acks"),
        pytest.param({"ack_policy": "explicit", "filter_subject": "other"}, "filter_subject", id="another topic"),
        pytest.param(
            {
                "ack_policy": "explicit",
                "filter_subject": "orders",
                "deliver_subject": "x",
                "deliver_group": "theirs",
            },
            "deliver_group",
            id="another group",
        ),
    ],
)
async def test_a_consumer_that_is_there_is_used_as_it_is(
    server: NatsServer, raw: RawNats, config: dict[str, object], expected: str | None
) -> None:
    await raw.stream("ORDERS", "orders", "other")
    made = {"stream_name": "ORDERS", "config": {"durable_name": "shop", **config}}
    before = (await raw.api("CONSUMER.DURABLE.CREATE.ORDERS.shop", made))["config"]
    inbox = Inbox()
    async with member(server, durable="shop") as broker:
        await broker.publish(TOPIC, Message({}, b"1"))
        if expected is None:
            async with broker.subscribe(TOPIC, SubscribeOptions("shop"), inbox):
                await broker.publish_many(TOPIC, [Message({}, b"1")] * 20)
                await inbox.holds(21)
        else:
            with pytest.raises(TopologyMismatchError, match=expected):
                async with broker.subscribe(TOPIC, SubscribeOptions("shop"), inbox):
                    pytest.fail("entered")
    assert (await raw.api("CONSUMER.INFO.ORDERS.shop"))["config"] == before


async def test_a_consumer_of_a_whole_stream_is_one_of_its_only_topic(server: NatsServer, raw: RawNats) -> None:
    await raw.stream("ORDERS", "orders")
    made = {"stream_name": "ORDERS", "config": {"durable_name": "shop", "ack_policy": "explicit"}}
    await raw.api("CONSUMER.DURABLE.CREATE.ORDERS.shop", made)
    inbox = Inbox()
    async with member(server, durable="shop") as broker, broker.subscribe(TOPIC, SubscribeOptions("shop"), inbox):
        await broker.publish(TOPIC, Message({}, b"1"))
        await inbox.holds(1)


async def test_a_consumer_that_refuses_every_request_is_not_asked_without_end(server: NatsServer, raw: RawNats) -> None:
    """It has a priority group, which requests would have to name."""
    await raw.stream("ORDERS", "orders")
    config = {
        "durable_name": "shop",
        "ack_policy": "explicit",
        "filter_subject": "orders",
        "priority_policy": "overflow",
        "priority_groups": ["one"],
    }
    made = await raw.api("CONSUMER.DURABLE.CREATE.ORDERS.shop", {"stream_name": "ORDERS", "config": config})
    assert "error" not in made
    asked: list[RawMessage] = []
    raw.subscribe("$JS.API.CONSUMER.MSG.NEXT.>", asked.append)

    def twice() -> None:
        assert len(asked) >= 2

    began = asyncio.get_running_loop().time()
    async with member(server, durable="shop") as broker, broker.subscribe(TOPIC, SubscribeOptions("shop"), Inbox()):
        await eventually(twice)
    assert len(asked) <= 3 + (asyncio.get_running_loop().time() - began) / 0.4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"policy": "all"}, [b"1", b"2", b"3"]),
        ({"policy": "last"}, [b"3"]),
        ({"policy": "new"}, []),
        ({"policy": "sequence", "sequence": 2}, [b"2", b"3"]),
        ({"policy": "time", "since": 4_000_000_000}, []),
    ],
)
async def test_where_a_new_consumer_begins(
    server: NatsServer, raw: RawNats, settings: dict[str, Any], expected: list[bytes]
) -> None:
    await raw.stream("ORDERS", "orders")
    for body in (b"1", b"2", b"3"):
        await raw.store("orders", body)
    inbox = Inbox()
    async with member(server, **settings) as broker, broker.subscribe(TOPIC, SubscribeOptions("g"), inbox):
        if settings["policy"] != "time":
            await raw.store("orders", b"4")
            expected = [*expected, b"4"]
        await inbox.holds(len(expected))
    assert inbox.bodies == expected


@pytest.mark.parametrize("retention", ["interest", "workqueue"])
async def test_streams_that_forget_what_was_taken(server: NatsServer, raw: RawNats, retention: str) -> None:
    await raw.stream("ORDERS", "orders", retention=retention)
    inbox = Inbox()
    async with member(server) as broker:
        async with broker.subscribe(TOPIC, SubscribeOptions("one"), inbox):
            await broker.publish(TOPIC, Message({}, b"1"))
            await inbox.holds(1)
        if retention == "workqueue":
            with pytest.raises(BrokerError, match=r"ORDERS.*workqueue"):
                async with broker.subscribe(TOPIC, SubscribeOptions("two"), inbox):
                    pytest.fail("entered")

    async def empty() -> None:
        assert not await raw.stored("ORDERS")

    await eventually(empty)


async def test_a_short_ack_wait_takes_nothing_from_a_handler_that_works(server: NatsServer, raw: RawNats) -> None:
    """Neither what it has, nor what waits behind it."""
    await raw.stream("ORDERS", "orders")
    done = asyncio.Event()

    async def work(delivery: Delivery) -> None:
        await done.wait()
        await delivery.ack()

    inbox, settings = Inbox(work), {"durable": "shop", "queue": "shop", "ack_wait": 3.0}
    alive: set[str] = set()
    raw.subscribe("$JS.ACK.>", lambda told: alive.add(told.subject) if told.body == b"+WPI" else None)
    async with (
        member(server, **settings) as one,
        member(server, **settings) as two,
        AsyncExitStack() as stack,
    ):
        for broker in (one, two):
            await stack.enter_async_context(broker.subscribe(TOPIC, SubscribeOptions("shop", 1), inbox))
        for number in range(6):
            await one.publish(TOPIC, Message({}, str(number).encode()))

        def all_alive() -> None:
            assert len(alive) == 6

        await eventually(all_alive)
        done.set()
        await inbox.holds(6)
    assert sorted(inbox.bodies) == [b"0", b"1", b"2", b"3", b"4", b"5"]
