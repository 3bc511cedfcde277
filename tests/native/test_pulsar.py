"""``pubsub.pulsar``: what stands in Pulsar's topics, together with a client of another process, and its faults."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import pytest_asyncio

from mesh import address
from mesh.address import Address
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import ConfigError, PublishRejectedError, TopologyMismatchError
from tests.http.harness import App, Backbone, component, gateway
from tests.support.backends import component_of
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.pulsar_server import PulsarServer, find_pulsar
from tests.support.token_server import TokenServer

pulsar = pytest.importorskip("brokers.native.pulsar")

# Another program: it publishes what it reads, in one batch on request, or prints what it takes.
OTHER = """
import base64, json, os, sys, pulsar
asked = json.loads(sys.argv[1])
client = pulsar.Client(asked["url"], logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, os.devnull))
avro = pulsar.schema.AvroSchema(None, asked["avro"]) if "avro" in asked else pulsar.schema.BytesSchema()
if "publish" in asked:
    batch = {"batching_enabled": asked.get("batch", False), "batching_max_publish_delay_ms": 60000}
    producer = client.create_producer(asked["topic"], schema=avro, **batch)
    for body, properties, key in asked["publish"]:
        body = body if "avro" in asked else base64.b64decode(body)
        producer.send_async(body, lambda *_: None, properties=properties, partition_key=key)
    producer.flush()
else:
    first = pulsar.InitialPosition.Earliest
    shared = pulsar.ConsumerType.Shared
    consumer = client.subscribe(asked["topic"], asked["group"], shared, schema=avro, initial_position=first)
    print(json.dumps("ready"), flush=True)
    for _ in range(asked["count"]):
        found = consumer.receive(30000)
        consumer.acknowledge(found)
        body = found.value() if "avro" in asked else base64.b64encode(found.data()).decode()
        print(json.dumps([body, found.properties(), found.partition_key()]), flush=True)
client.close()
"""

ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [{"name": "id", "type": "int"}, {"name": "note", "type": ["null", "string"], "default": None}],
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PulsarServer]:
    if find_pulsar() is None:
        missing = "Apache Pulsar is not installed: make provision"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    async with PulsarServer(tmp_path_factory.mktemp("pulsar")) as server:
        yield server


@pytest.fixture
def backbone() -> Backbone:
    return Backbone("memory:")


async def other(server: PulsarServer, topic: str, **asked: Any) -> list[Any]:
    """Run the other program; give what it says."""
    told = json.dumps({"url": server.url, "topic": f"persistent://public/default/{topic}", **asked})
    command = [sys.executable, "-c", OTHER, told]
    done = await asyncio.to_thread(subprocess.run, command, check=True, timeout=60, capture_output=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


async def asked(server: PulsarServer, path: str) -> Any:
    """Ask the server's REST interface."""
    with await asyncio.to_thread(urlopen, f"{server.admin_url}/{path}", timeout=10) as reply:
        return json.load(reply)


def topics(server: PulsarServer, **settings: str) -> Any:
    told = {"host": f"127.0.0.1:{server.port}", **settings}
    return pulsar.PulsarTopics.from_component(component_of("pubsub.pulsar", told))


def at(topic: str) -> Address:
    return address.topic("test", "pulsar", topic)


def numbers(count: int) -> list[tuple[str, dict[str, str], str]]:
    """Messages whose bodies are numbers."""
    return [(base64.b64encode(str(number).encode()).decode(), {}, f"k{number}") for number in range(count)]


def resources(server: PulsarServer, **settings: str) -> str:
    return component("shop", "pubsub.pulsar", host=f"127.0.0.1:{server.port}", **settings)


def subscribed(topic: str, *, letters: str = "", **metadata: str) -> dict[str, object]:
    more = {"deadLetterTopic": letters} if letters else {}
    return {"pubsubname": "shop", "topic": topic, "route": f"/{topic}", "metadata": metadata, **more}


async def test_a_message_is_what_others_expect(server: PulsarServer, backbone: Backbone, tmp_path: Path) -> None:
    """The payload is the envelope, the properties are the metadata, and the key is the message's."""
    async with gateway(backbone, tmp_path, app_id="obs", resources=resources(server)) as node:
        path = "/v1.0/publish/shop/written?metadata.rawPayload=true"
        await node.post(f"{path}&metadata.partitionKey=k1&metadata.foo=bar", b"\x89PNG", "application/octet-stream")
        await node.post("/v1.0/publish/shop/written", {"a": 1}, "application/json")
    _, first, second = await other(server, "written", group="reader", count=2)
    assert base64.b64decode(first[0]) == b"\x89PNG"
    assert first[1:] == [{"rawPayload": "true", "foo": "bar"}, "k1"]
    event = json.loads(base64.b64decode(second[0]))
    assert (event["data"], event["source"], event["topic"], second[1]) == ({"a": 1}, "obs", "written", {})


async def test_others_messages_reach_the_application(server: PulsarServer, backbone: Backbone, tmp_path: Path) -> None:
    """Objects as they are, binary mode as an event; what is no event is a dead letter."""
    app = App([subscribed("mixed", letters="refused"), subscribed("refused", rawPayload="true")])
    async with app, gateway(backbone, tmp_path, app=app, resources=resources(server)):
        attributes = {"ce_specversion": "1.0", "ce_id": "9", "ce_source": "/till", "ce_type": "sold"}
        bodies = [
            (b'{ "order" : 7 }', {"Foo": "bar"}),
            (b'{"sum":3}', {**attributes, "content-type": "application/json"}),
            (b"hello", {"from": "till"}),
        ]
        told = [(base64.b64encode(body).decode(), properties, "k") for body, properties in bodies]
        await other(server, "mixed", publish=told)
        plain, binary = sorted(await app.until("/mixed", 2), key=lambda each: "ce_id" in each.headers)
        [letter] = await app.until("/refused")
    assert (plain.body, plain.headers["foo"]) == (b'{ "order" : 7 }', "bar")
    assert (binary.json["id"], binary.json["source"], binary.json["data"]) == ("9", "/till", {"sum": 3})
    assert base64.b64decode(letter.json["data_base64"]) == b"hello"
    assert (letter.headers["from"], letter.headers["mesh-dead-letter-topic"]) == ("till", "mixed")


async def test_an_event_is_delivered_when_its_publisher_says(
    server: PulsarServer, backbone: Backbone, tmp_path: Path
) -> None:
    app = App([subscribed("later")])
    async with app, gateway(backbone, tmp_path, app=app, resources=resources(server)) as node:
        begun = time.monotonic()
        reply = await node.post("/v1.0/publish/shop/later?metadata.deliverAfter=2s", {"n": 1}, "application/json")
        assert reply.status == 204
        wrong = await node.post("/v1.0/publish/shop/later?metadata.deliverAt=soon", {"n": 2}, "application/json")
        assert wrong.status >= 400
        assert "deliverAt" in str(wrong.json)
        [event] = await app.until("/later")
        assert event.json["data"] == {"n": 1}
        assert time.monotonic() - begun >= 1.5  # The broker looks about once a second.


async def test_one_group_of_members_of_both_kinds(server: PulsarServer, backbone: Backbone, tmp_path: Path) -> None:
    """Each event goes to one of them, and a partitioned topic is taken from as a whole."""
    url = f"{server.admin_url}/persistent/public/default/shared/partitions"
    made = Request(url, b"3", {"Content-Type": "application/json"}, method="PUT")
    await asyncio.to_thread(lambda: urlopen(made, timeout=10).close())
    app = App([subscribed("shared")])
    node_of = gateway(backbone, tmp_path, app=app, resources=resources(server, consumerID="both"))
    async with app, node_of as node, asyncio.TaskGroup() as tasks:
        theirs = tasks.create_task(other(server, "shared", group="both", count=5))
        numbers = 0
        while not theirs.done():
            query = f"?metadata.partitionKey=k{numbers % 7}"
            reply = await node.post(f"/v1.0/publish/shop/shared{query}", {"n": numbers}, "application/json")
            assert reply.status == 204
            numbers += 1
        taken = [json.loads(base64.b64decode(body))["data"]["n"] for body, _, _ in (await theirs)[1:]]
        # What the other had fetched and not settled comes here once it has gone.
        ours = [each.json["data"]["n"] for each in await app.until("/shared", numbers - len(taken))]
    assert sorted(set(ours) | set(taken)) == list(range(numbers))
    assert len(ours) + len(taken) == numbers


async def test_of_a_batch_each_message_is_settled_for_itself(server: PulsarServer) -> None:
    """A batch is larger than there is room for; one of it is refused for a time, and one for good."""
    seen: dict[bytes, list[float]] = {}

    async def settle(delivery: Delivery) -> None:
        times = seen.setdefault(delivery.message.body, [])
        times.append(time.monotonic())
        if delivery.message.body == b"7" and len(times) == 1:
            await delivery.nack(0)
        elif delivery.message.body == b"9":
            await delivery.reject()
        else:
            await delivery.ack()

    inbox = Inbox(settle)
    options = SubscribeOptions("g", max_in_flight=5)
    async with topics(server, redeliveryDelay="1s") as ours, ours.subscribe(at("batch"), options, inbox):
        await other(server, "batch", publish=numbers(40), batch=True)
        await inbox.holds(41)

        async def check() -> None:
            told = await asked(server, "persistent/public/default/batch/stats")
            assert told["subscriptions"]["g"]["msgBacklog"] == 0

        await eventually(check)
    assert {body: len(times) for body, times in seen.items() if body != b"7"} == {
        str(number).encode(): 1 for number in range(40) if number != 7
    }
    first, second = seen[b"7"]
    assert second - first >= 1  # As the component's redeliveryDelay says.
    assert [each.attempt for each in inbox.deliveries if each.message.body == b"7"] == [1, 2]
    assert (await asked(server, "persistent/public/default/batch/internalStats"))["entriesAddedCounter"] == 1


async def test_the_rest_of_a_batch_goes_to_others(server: PulsarServer) -> None:
    """Nothing is lost with who leaves in the midst of one; the broker gives out the whole of it again."""
    go_on = asyncio.Event()

    async def settle(delivery: Delivery) -> None:
        if len(first.deliveries) > 10:
            await go_on.wait()
        await delivery.ack()

    first, second = Inbox(settle), Inbox()
    options = SubscribeOptions("g", max_in_flight=5)
    async with topics(server) as ours:
        async with ours.subscribe(at("half"), options, first):
            await other(server, "half", publish=numbers(40), batch=True)
            await first.holds(11)
            go_on.set()
        assert all(each.settled == "ack" for each in first.deliveries)

        def arrived() -> None:
            assert {int(body) for body in first.bodies + second.bodies} == set(range(40))

        async with ours.subscribe(at("half"), options, second):
            await eventually(arrived)  # Some of those that the first one has settled come again.


async def test_a_member_fetches_no_more_ahead_than_it_is_told(server: PulsarServer) -> None:
    go_on = asyncio.Event()

    async def settle(delivery: Delivery) -> None:
        await go_on.wait()
        await delivery.ack()

    busy, idle = Inbox(settle), Inbox()
    alone = SubscribeOptions("g", max_in_flight=1)

    def arrived() -> None:
        assert sorted(map(int, busy.bodies + idle.bodies)) == list(range(10))

    async with (
        topics(server, receiverQueueSize="1") as ours,
        topics(server) as others,
        ours.subscribe(at("ahead"), alone, busy),
    ):
        await ours.publish(at("ahead"), Message({}, b"0"))
        await busy.holds(1)
        async with others.subscribe(at("ahead"), SubscribeOptions("g"), idle):
            await others.publish_many(at("ahead"), [Message({}, str(each).encode()) for each in range(1, 10)])
            await idle.holds(8)
            go_on.set()
            await eventually(arrived)  # One of them may have been fetched by the busy one.


async def test_events_are_of_the_schema_of_their_topic(
    server: PulsarServer, backbone: Backbone, tmp_path: Path
) -> None:
    """The broker keeps that of the envelope, others read by it, and may write by a later one."""
    app = App([subscribed("avro"), subscribed("json")])
    schemas = {"avro.avroschema": json.dumps(ORDER), "json.jsonschema": json.dumps(ORDER)}
    node_of = gateway(backbone, tmp_path, app=app, app_id="obs", resources=resources(server, **schemas))
    async with app, node_of as node:
        for topic in ("avro", "json"):
            path = f"/v1.0/publish/shop/{topic}"
            assert (await node.post(path, {"id": 7, "note": "é"}, "application/json")).status == 204
            assert (await node.post(path, b'{"id":8}', "text/plain")).status == 204
            for wrong in ({"id": 1.5}, {"id": 2**31}, {"id": 9, "more": 1}, {}):
                reply = await node.post(path, wrong, "application/json")
                assert reply.status >= 400
                assert "not of the schema" in str(reply.json)
            raw = await node.post(f"{path}?metadata.rawPayload=true", {"id": 9}, "application/json")
            assert "not of the schema" in str(raw.json)
            first, second = sorted((each.json["data"]["id"], each.json) for each in await app.until(f"/{topic}", 2))
            assert first[1]["data"] == {"id": 7, "note": "é"}
            assert (second[0], second[1]["source"], second[1]["topic"]) == (8, "obs", topic)
            assert None not in first[1].values()
            told = await asked(server, f"schemas/public/default/{topic}/schema")
            kept = json.loads(told["data"])
            assert (told["type"], kept["name"], kept["namespace"]) == (topic.upper(), "CloudEvent", "io.cloudevents")
        kept = json.loads((await asked(server, "schemas/public/default/avro/schema"))["data"])
        _, first, _ = await other(server, "avro", group="reader", count=2, avro=kept)
        assert (first[0]["data"], first[0]["specversion"]) == ({"id": 7, "note": "é"}, "1.0")
        kept["fields"].insert(0, {"name": "shop", "type": "string", "default": "none"})
        event = {"shop": "s1", "id": "1", "source": "/till", "specversion": "1.0", "type": "sold", "data": {"id": 3}}
        await other(server, "avro", publish=[(event, {"from": "till"}, "k")], avro=kept)
        plain = base64.b64encode(b'{"specversion":"1.0","id":"2","source":"/a","type":"b"}').decode()
        await other(
            server, "avro", publish=[(plain, {}, "k")]
        )  # Brokers take what has no schema, unless told otherwise.
        later, without = (await app.until("/avro", 4))[2:]
    assert {**later.json, "data": later.json["data"]["id"]} == {**event, "data": 3}
    assert (later.headers["from"], without.json["id"]) == ("till", "2")


async def test_a_raw_schema_is_of_the_mere_data(server: PulsarServer) -> None:
    raw = {"mere.avroschema": json.dumps(ORDER), "mere.rawschema": "true"}
    differs = raw | {"mere.avroschema": json.dumps(ORDER).replace('"int"', '"string"')}
    inbox = Inbox()
    async with topics(server, **raw) as ours, ours.subscribe(at("mere"), SubscribeOptions("g"), inbox):
        await ours.publish(at("mere"), Message({}, b'{"id":7}'))
        await inbox.holds(1)
        _, [body, *_] = await other(server, "mere", group="reader", count=1, avro=ORDER)
        assert body == {"id": 7, "note": None}
    assert inbox.bodies == [b'{"id":7,"note":null}']
    async with topics(server, **differs) as ours:
        with pytest.raises(PublishRejectedError, match="IncompatibleSchema"):
            await ours.publish(at("mere"), Message({}, b'{"id":"7"}'))
        with pytest.raises(TopologyMismatchError, match="IncompatibleSchema"):
            async with ours.subscribe(at("mere"), SubscribeOptions("g2"), inbox):
                pytest.fail("it takes part")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"subscribeMode": "non_durable"}, "subscribeMode"),
        ({"orders.jsonschema": "{}"}, "orders.jsonschema"),
        ({"orders.avroschema": '{"type":"int"', "orders.rawschema": "true"}, "orders.avroschema"),
        ({"orders.avroschema": '"int"', "orders.rawschema": "yes"}, "orders.rawschema"),
        ({"orders.avroschema": '"int"', "orders.jsonschema": '"int"'}, "one of two schemas"),
        ({"orders.rawschema": "true"}, "needs orders.jsonschema or orders.avroschema"),
        ({"orders.protoschema": "x"}, "Protocol Buffers"),
        ({"topicsPattern": "a.*"}, "a pattern of topics"),
        ({"oauth2TokenURL": "https://id.example/token"}, "oauth2ClientID"),
        ({"publicKey": "a.pem"}, "needs keys"),
        ({"host": "a:b"}, "host:port"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        pulsar.PulsarTopics.from_component(component_of("pubsub.pulsar", {"host": "localhost", **settings}))
    assert told in str(raised.value)


async def test_a_token_is_fetched_by_client_credentials(tmp_path: Path) -> None:
    """The library asks for it in a thread of its own; a server that says no is no end of the process."""
    from brokers.native._pulsar_settings import PulsarSettings, Tokens
    from mesh.resources.settings import read_settings

    with TokenServer() as identity:
        told = {
            "host": "localhost",
            "oauth2TokenURL": f"http://127.0.0.1:{identity.port}/token",
            "oauth2ClientID": identity.CLIENT,
            "oauth2ClientSecret": identity.SECRET,
            "oauth2Audiences": identity.AUDIENCE,
        }
        tokens = Tokens(read_settings(component_of("pubsub.pulsar", told), PulsarSettings))
        first = await asyncio.to_thread(tokens)
        assert first.count(".") == 2
        assert await asyncio.to_thread(tokens) == first
        wrong = {**told, "oauth2ClientSecret": "wrong"}
        assert (
            await asyncio.to_thread(Tokens(read_settings(component_of("pubsub.pulsar", wrong), PulsarSettings))) == ""
        )
        parts = {"client_id": identity.CLIENT, "client_secret": identity.SECRET, "issuer_url": told["oauth2TokenURL"]}
        (tmp_path / "file.json").write_text(json.dumps(parts))
        told = {"host": "localhost", "oauth2CredentialsFile": str(tmp_path / "file.json")}
        told["oauth2Audiences"] = identity.AUDIENCE
        by_file = Tokens(read_settings(component_of("pubsub.pulsar", told), PulsarSettings))
        assert (await asyncio.to_thread(by_file)).count(".") == 2
    assert "wrong" not in repr(tokens)
    assert identity.SECRET not in repr(tokens)
