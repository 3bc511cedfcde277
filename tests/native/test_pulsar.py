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

from mesh.errors import ConfigError
from tests.http.harness import App, Backbone, component, gateway
from tests.support.backends import component_of
from tests.support.pulsar_server import PulsarServer, find_pulsar
from tests.support.token_server import TokenServer

pulsar = pytest.importorskip("brokers.native.pulsar")

# Another program: it publishes what it reads, or prints what it takes.
OTHER = """
import base64, json, os, sys, pulsar
asked = json.loads(sys.argv[1])
client = pulsar.Client(asked["url"], logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, os.devnull))
if "publish" in asked:
    producer = client.create_producer(asked["topic"])
    for body, properties, key in asked["publish"]:
        producer.send(base64.b64decode(body), properties=properties, partition_key=key)
else:
    first = pulsar.InitialPosition.Earliest
    consumer = client.subscribe(asked["topic"], asked["group"], pulsar.ConsumerType.Shared, initial_position=first)
    print(json.dumps("ready"), flush=True)
    for _ in range(asked["count"]):
        found = consumer.receive(30000)
        consumer.acknowledge(found)
        body = base64.b64encode(found.data()).decode()
        print(json.dumps([body, found.properties(), found.partition_key()]), flush=True)
client.close()
"""


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
    assert first[1:] == [{"rawPayload": "true", "partitionKey": "k1", "foo": "bar"}, "k1"]
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


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"subscribeMode": "non_durable"}, "subscribeMode"),
        ({"orders.jsonschema": "{}"}, "schemas of topics"),
        ({"oauth2TokenURL": "https://id.example/token"}, "oauth2ClientID"),
        ({"publicKey": "a.pem"}, "needs keys"),
        ({"host": "a:b"}, "host:port"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        pulsar.PulsarTopics.from_component(component_of("pubsub.pulsar", {"host": "localhost", **settings}))
    assert told in str(raised.value)


async def test_a_token_is_fetched_by_client_credentials() -> None:
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
    assert "wrong" not in repr(tokens)
    assert identity.SECRET not in repr(tokens)
