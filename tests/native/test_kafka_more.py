"""Kafka topics that are shared: of a cluster of three, with tokens to log in, and with schemas of a registry."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import fastavro
import pytest
import pytest_asyncio
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from brokers.native.kafka import KafkaTopics
from mesh import address
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BadArgumentError, BrokerError, BrokerUnavailableError, ConfigError
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.kafka_server import MAKES_TOPICS, OAUTH, KafkaCluster, KafkaServer
from tests.support.schema_registry import SchemaRegistry
from tests.support.security import component
from tests.support.token_server import TokenServer

WITHIN = 60.0
ORDER = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "stamp", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "mark", "type": "bytes"},
    ],
}


def topics(bootstrap: str, **settings: str) -> KafkaTopics:
    settings = {"brokers": bootstrap, "authType": "none", "sessionTimeout": "3s", **settings}
    return KafkaTopics.from_component(component("pubsub.kafka", **settings))


def at(topic: str) -> Address:
    return address.topic("test", "kafka", topic)


@asynccontextmanager
async def taking(ours: KafkaTopics, topic: str, inbox: Inbox, options: SubscribeOptions) -> AsyncIterator[KafkaTopics]:
    async with ours, ours.subscribe(at(topic), options, inbox):
        yield ours


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tokens(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[KafkaServer, TokenServer]]:
    """A broker with a listener that takes tokens, and one without."""
    directory = tmp_path_factory.mktemp("tokens")
    with TokenServer() as provider:
        config = OAUTH.format(name="oauth", keys=provider.keys_url, audience=provider.AUDIENCE) + MAKES_TOPICS
        async with KafkaServer(directory / "kafka", config, {"OAUTH": "SASL_PLAINTEXT"}) as server:
            yield server, provider


def by_token(server: KafkaServer, provider: TokenServer, **settings: str) -> KafkaTopics:
    settings = {
        "oidcTokenEndpoint": provider.url,
        "oidcClientID": provider.CLIENT,
        "oidcClientSecret": provider.SECRET,
        "disableTls": "true",
        "authType": "oidc",
        **settings,
    }
    return topics(f"127.0.0.1:{server.listeners['OAUTH']}", **settings)


async def test_login_by_a_token(tokens: tuple[KafkaServer, TokenServer]) -> None:
    """One is asked for once, for all connections, with the scopes."""
    server, provider = tokens
    inbox, before = Inbox(), len(provider.forms)
    async with taking(
        by_token(server, provider, oidcScopes="kafka,more"), "by-token", inbox, SubscribeOptions("g")
    ) as ours:
        await ours.publish(at("by-token"), Message({}, b"x"))
        await inbox.holds(1, WITHIN)
    assert provider.forms[before:] == [{"grant_type": "client_credentials", "scope": "kafka more"}]


async def test_token_that_ends_is_replaced(tokens: tuple[KafkaServer, TokenServer]) -> None:
    server, provider = tokens
    provider.max_age, before = 1, len(provider.forms)
    try:
        async with by_token(server, provider) as ours:
            provider.max_age = 3600

            async def another() -> None:
                async with ours.subscribe(at("by-token"), SubscribeOptions("again"), Inbox()):
                    assert len(provider.forms) > before + 1

            await eventually(another, WITHIN)
            assert provider.forms[-1]["scope"] == "openid"
    finally:
        provider.max_age = 3600


async def test_no_token(tokens: tuple[KafkaServer, TokenServer]) -> None:
    server, provider = tokens
    with pytest.raises(BrokerUnavailableError, match="gives no token: status 401 'invalid_client'") as raised:
        async with by_token(server, provider, oidcClientSecret="wr0ng"):
            pass
    assert "wr0ng" not in str(raised.value)
    with pytest.raises(BrokerUnavailableError, match="no token: http"):
        async with by_token(server, provider, oidcTokenEndpoint="http://127.0.0.1:1/token"):
            pass


def test_settings_of_tokens() -> None:
    with pytest.raises(ConfigError, match="'oidc' needs oidcTokenEndpoint"):
        topics("h", authType="oidc", oidcClientID="c", oidcClientSecret="s")
    with pytest.raises(ConfigError, match="is no JSON object of texts"):
        topics("h", oidcExtensions="[1]")
    with pytest.raises(ConfigError, match="is one of none, password, mtls, certificate, awsiam, oidc, not 'kerberos'"):
        topics("h", authType="kerberos")
    with pytest.raises(ConfigError, match=r"by a signed assertion .* is not supported"):
        topics("h", authType="oidc_private_key_jwt")


# Avro


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def registry(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SchemaRegistry]:
    async with SchemaRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def register(registry: SchemaRegistry, topic: str, schema: object) -> int:
    """Have the registry keep a schema of a topic's values; gives its number."""
    body = json.dumps({"schema": json.dumps(schema)}).encode()
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    with urlopen(Request(f"{registry.url}/subjects/{topic}-value/versions", body, headers), timeout=30) as response:
        return int(json.load(response)["id"])


def read_all(server: KafkaServer, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=server.bootstrap, auto_offset_reset="earliest", group_id=None)
    consumer.assign([TopicPartition(topic, each) for each in consumer.partitions_for_topic(topic) or ()])
    found: list[bytes] = []
    end = time.monotonic() + WITHIN
    while len(found) < count and time.monotonic() < end:
        found += [record.value for records in consumer.poll(timeout_ms=500).values() for record in records]
    consumer.close()
    return found


AVRO = {"valueSchemaType": "Avro"}


async def test_avro_both_ways(tokens: tuple[KafkaServer, TokenServer], registry: SchemaRegistry) -> None:
    """Another program reads what is published by the schema, and what it writes arrives as JSON; so does any other."""
    server, _ = tokens
    number = await asyncio.to_thread(register, registry, "avro", ORDER)
    order = {"id": 7, "note": "é", "stamp": 1_700_000_000_000, "mark": "\u00ff\u0000"}
    parsed, foreign = fastavro.parse_schema(dict(ORDER)), io.BytesIO()
    fastavro.schemaless_writer(foreign, parsed, {"id": 8, "note": None, "stamp": 1, "mark": b"\xfe"})

    def write() -> None:
        producer = KafkaProducer(bootstrap_servers=server.bootstrap)
        for value in (
            b"\x00" + number.to_bytes(4, "big") + foreign.getvalue(),
            b'{"plain":1}',
            b"\x00\xff\xff\xff\xff!",
        ):
            producer.send("avro", value, partition=0).get(WITHIN)
        producer.close()

    inbox = Inbox()
    async with taking(
        topics(server.bootstrap, schemaRegistryURL=registry.url), "avro", inbox, SubscribeOptions("g", metadata=AVRO)
    ) as ours:
        await ours.publish(at("avro"), Message({}, json.dumps(order).encode(), None, None, AVRO))
        with pytest.raises(BadArgumentError, match="is not of the schema"):
            await ours.publish(at("avro"), Message({}, b'{"id":"seven"}', None, None, AVRO))
        assert [type(each) for each in await ours.publish_many(at("avro"), [Message({}, b"{}", None, None, AVRO)])] == [
            BrokerError
        ]
        with pytest.raises(BrokerError, match="has no none-value"):
            await ours.publish(at("none"), Message({}, b"{}", None, None, AVRO))
        await asyncio.to_thread(write)
        await inbox.holds(4, WITHIN)
    [value] = [each for each in await asyncio.to_thread(read_all, server, "avro", 4) if each[5:6] == b"\x0e"]
    assert value[:5] == b"\x00" + number.to_bytes(4, "big")
    read: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed, parsed)
    assert (read["id"], read["note"], read["mark"]) == (7, "é", b"\xff\x00")
    assert json.loads(inbox.bodies[0] if b'"id":7' in inbox.bodies[0] else inbox.bodies[1]) == order
    assert b'{"id":8,"note":null,"stamp":1,"mark":"\xc3\xbe"}' in inbox.bodies
    assert {b'{"plain":1}', b"\x00\xff\xff\xff\xff!"} <= {*inbox.bodies}


async def test_avro_s_own_json(tokens: tuple[KafkaServer, TokenServer], registry: SchemaRegistry) -> None:
    server, _ = tokens
    await asyncio.to_thread(register, registry, "typed", ORDER)
    inbox, body = Inbox(), b'{"id": 7, "note": {"string": "x"}, "stamp": 5, "mark": "\\u00ff"}'
    async with taking(
        topics(server.bootstrap, schemaRegistryURL=registry.url, useAvroJson="true"),
        "typed",
        inbox,
        SubscribeOptions("g", metadata=AVRO),
    ) as ours:
        await ours.publish(at("typed"), Message({}, body, None, None, AVRO))
        await inbox.holds(1, WITHIN)
    assert json.loads(inbox.bodies[0]) == json.loads(body)


async def test_records_wait_while_the_registry_is_away(
    tokens: tuple[KafkaServer, TokenServer], registry: SchemaRegistry
) -> None:
    server, _ = tokens
    number = await asyncio.to_thread(register, registry, "away", ORDER)
    value = io.BytesIO()
    order = {"id": 9, "note": None, "stamp": 1, "mark": b""}
    fastavro.schemaless_writer(value, fastavro.parse_schema(dict(ORDER)), order)
    inbox = Inbox()
    async with taking(
        topics(server.bootstrap, schemaRegistryURL="http://127.0.0.1:1"),
        "away",
        inbox,
        SubscribeOptions("g", metadata=AVRO),
    ) as ours:
        await ours.publish(at("away"), Message({}, b"\x00" + number.to_bytes(4, "big") + value.getvalue()))
        with pytest.raises(BrokerUnavailableError, match="the schema registry does not answer"):
            await ours.publish(at("away"), Message({}, b"{}", None, None, AVRO))
    assert not inbox.bodies
    async with taking(
        topics(server.bootstrap, schemaRegistryURL=registry.url), "away", inbox, SubscribeOptions("g", metadata=AVRO)
    ) as ours:
        await inbox.holds(1, WITHIN)
    assert json.loads(inbox.bodies[0])["id"] == 9


async def test_avro_without_a_registry(tokens: tuple[KafkaServer, TokenServer]) -> None:
    server, _ = tokens
    async with topics(server.bootstrap) as ours:
        with pytest.raises(BadArgumentError, match="needs the component's setting schemaRegistryURL"):
            await ours.publish(at("x"), Message({}, b"{}", None, None, AVRO))
        with pytest.raises(BadArgumentError, match="is Avro or None, not 'xml'"):
            async with ours.subscribe(at("x"), SubscribeOptions("g", metadata={"valueSchemaType": "xml"}), Inbox()):
                pass


# A cluster


@pytest.mark.costly
async def test_one_broker_of_three_is_killed(tmp_path: Path) -> None:
    """What leads the topic, and keeps the group perhaps: nothing confirmed is lost, and publishes go on."""
    inbox = Inbox()

    def all_of_them() -> None:
        assert len(set(inbox.bodies)) == 300

    async with KafkaCluster(tmp_path / "cluster") as cluster:
        await cluster.create_topic("orders", partitions=3)
        async with taking(
            topics(cluster.bootstrap, sessionTimeout="10s"), "orders", inbox, SubscribeOptions("g")
        ) as ours:
            messages = [Message({}, b"%d" % number, f"k{number % 9}") for number in range(300)]
            assert await ours.publish_many(at("orders"), messages[:100]) == [None] * 100
            leader = await cluster.leader("orders")
            async with asyncio.TaskGroup() as tasks:
                publishing = tasks.create_task(ours.publish_many(at("orders"), messages[100:200]))
                await leader.kill()
            assert publishing.result() == [None] * 100
            assert await ours.publish_many(at("orders"), messages[200:]) == [None] * 100
            await eventually(all_of_them, WITHIN)
