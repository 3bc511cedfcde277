"""What `mesh broker permissions` prints: gateways with exactly these rights do all that they should, and no more."""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
from aio_pika import Message, connect
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from aiokafka.protocol.admin import CreateAclsRequest
from aiormq.exceptions import ChannelAccessRefused
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from brokers.kafka import KafkaConfig
from brokers.kafka._cluster import Cluster
from tests.http.actor_app import call
from tests.support.eventually import eventually
from tests.support.kafka_server import KafkaServer
from tests.support.nats import NatsServer
from tests.support.permitted import APPS, everything, pair, printed, runs_once
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import DURABLE, RedisServer

NEWER = re.compile(r" [&~]mesh\.prod\.(?:taps|node\.)\S*?(?=[ )])")

# NATS


def nats_user(capsys: pytest.CaptureFixture[str], app: str, *words: str) -> str:
    text = printed(capsys, "nats", app, *words)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("$PASSWORD", '"secret"')


def violations(server: NatsServer) -> list[str]:
    text = (server.directory / "output.log").read_text()
    return [line.partition("Violation - ")[2] for line in text.splitlines() if "Violation" in line]


@asynccontextmanager
async def nats_of(home: Path, *users: str) -> AsyncIterator[tuple[NatsServer, dict[str, str]]]:
    config = "authorization {{ users: [\n{}\n] }}".format(",\n".join(users))
    async with NatsServer(home / "nats", config=config) as server:
        yield server, {app: f"nats://{app}:secret@{server.address}?inbox={app}" for app in APPS}


@pytest.mark.parametrize("words", [(), ("--calls", "orders")])
async def test_nats(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...]) -> None:
    """Nothing that the gateways do is refused."""
    users = [nats_user(capsys, app, *words) for app in APPS]
    async with nats_of(tmp_path, *users) as (server, urls), pair(urls, tmp_path) as (shop, orders, app):
        await everything(shop, orders, app)
        assert violations(server) == []


NOT_ALLOWED = "the broker does not let this gateway call billing"


async def test_nats_instances_know_each_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    users = [nats_user(capsys, app, "--calls", "orders") for app in APPS]
    async with nats_of(tmp_path, *users) as (server, urls):
        assert NOT_ALLOWED in await runs_once(urls, tmp_path)
        assert [each for each in violations(server) if "mesh.prod.app.billing" not in each] == []


async def test_nats_actors_of_another_application(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Those of who may not be called are not asked, and the error says whose they are."""
    users = [nats_user(capsys, app, "--calls", "billing") for app in APPS]
    async with nats_of(tmp_path, *users) as (server, urls), pair(urls, tmp_path) as (shop, _, app):
        reply = await shop.request(*call("work"))
        assert (reply.status, reply.json["errorCode"]) == (500, "ERR_ACTOR_INVOKE_METHOD")
        assert "does not let this gateway call orders" in reply.json["message"]
        assert app.got == []
        assert [each for each in violations(server) if "mesh.prod.owner.orders." not in each] == []


CALLS = "mesh_prod_topic_mesh-calls"
OTHERS = [
    ("subscribe", "mesh.prod.app.orders"),
    ("subscribe", "mesh.prod.app.*"),
    ("subscribe", "mesh.prod.>"),
    ("subscribe", "mesh.prod.bindings.orders"),
    ("subscribe", "mesh.prod.owner.orders.*"),
    ("subscribe", "mesh.prod.work.orders.*"),
    ("subscribe", "mesh.prod.jobs.orders"),
    ("subscribe", "mesh.prod.topic.mesh-calls.*.orders"),
    ("subscribe", "_INBOX.orders.>"),
    ("subscribe", "_INBOX.>"),
    ("publish", "mesh.prod.app.billing"),
    ("publish", "mesh.prod.owner.billing.node"),
    ("publish", "mesh.prod.work.billing.node"),
    ("publish", "mesh.prod.jobs.orders"),
    ("publish", "mesh.prod.workflows.orders"),
    ("publish", "mesh.prod.topic.mesh-calls._.billing"),
    ("publish", "mesh.prod.topic.another._.placed"),
    ("publish", "mesh.test.app.orders"),
    ("publish", "$KV.prod=2Eother.key"),
    ("publish", f"$JS.API.CONSUMER.CREATE.{CALLS}"),
    ("publish", f"$JS.API.CONSUMER.CREATE.{CALLS}.spy"),
    ("publish", f"$JS.API.CONSUMER.CREATE.{CALLS}.spy.mesh.prod.topic.mesh-calls.*.orders"),
    ("publish", f"$JS.API.CONSUMER.DURABLE.CREATE.{CALLS}.spy"),
    ("publish", f"$JS.API.STREAM.MSG.GET.{CALLS}"),
    ("publish", f"$JS.API.DIRECT.GET.{CALLS}.mesh.prod.topic.mesh-calls._.orders"),
    ("publish", f"$JS.API.STREAM.DELETE.{CALLS}"),
    ("publish", "$JS.API.STREAM.CREATE.another"),
    ("publish", "$JS.API.STREAM.DELETE.KV_prod=2Estatestore"),
]


async def test_nats_refuses_what_is_another_s(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Another application's address, its calls, its answers, other namespaces, and what is nobody's to do."""
    async with nats_of(tmp_path, nats_user(capsys, "shop", "--calls", "orders")) as (server, urls):
        told: list[str] = []

        async def note(error: Exception) -> None:
            told.append(str(error))

        client = await nats.connect(urls["shop"].partition("?")[0], error_cb=note)
        try:
            for what, subject in OTHERS:
                await (client.subscribe(subject) if what == "subscribe" else client.publish(subject, b"{}"))
            await client.flush()

            def all_refused() -> None:
                assert len(violations(server)) == len(OTHERS), violations(server)

            await eventually(all_refused)
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("right", "request_"),
    [
        ("mesh.prod.app.*", ("GET", "/v1.0/invoke/orders/method/work")),
        ("$KV.prod=2Estatestore.>", ("POST", "/v1.0/state/statestore", None, b'[{"key": "k", "value": 1}]')),
        ("mesh.prod.topic.pubsub.>", ("POST", "/v1.0/publish/pubsub/placed", None, b"x")),
        ("mesh.prod.topic.mesh-calls.*.*", ("GET", "/v1.0/invoke/orders/method/work", {"mesh-delivery": "durable"})),
        ("_INBOX.>", ("GET", "/v1.0/invoke/orders/method/work")),
    ],
)
async def test_nats_without_a_right(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, right: str, request_: tuple[object, ...]
) -> None:
    """What it is for is refused by the server, and does not happen."""
    less = {"shop": right, "orders": right} if right == "_INBOX.>" else {"shop": right}
    users = [nats_user(capsys, app).replace(f'"{less.get(app, "none")}"\n', "\n") for app in APPS]
    async with nats_of(tmp_path, *users) as (server, urls), pair(urls, tmp_path) as (shop, _, app):
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(shop.request(*request_))  # type: ignore[arg-type]

            def is_refused() -> None:
                assert [each for each in violations(server) if right.partition("*")[0].partition(">")[0] in each]

            await eventually(is_refused)
            asking.cancel()
        assert app.got == [] or right == "_INBOX.>"


# Redis


def redis_user(capsys: pytest.CaptureFixture[str], app: str, *words: str, without: str = "none") -> list[list[str]]:
    lines = [line for line in printed(capsys, "redis", app, *words).splitlines() if not line.startswith("#")]
    assert without == "none" or any(without in line for line in lines), without
    return [shlex.split(line.replace(">PASSWORD", ">secret")) for line in lines if without not in line]


@asynccontextmanager
async def redis_of(home: Path) -> AsyncIterator[tuple[Redis, dict[str, str]]]:
    async with (
        RedisServer(home / "redis", DURABLE) as server,
        Redis(port=server.port, decode_responses=True) as admin,
    ):
        yield admin, {app: f"redis://{app}:secret@127.0.0.1:{server.port}?inbox={app}" for app in APPS}


async def allow(admin: Redis, commands: list[list[str]]) -> None:
    """Enter all of them as one command, so that nobody is without rights in between."""
    await admin.execute_command(*commands[0], *(word for command in commands[1:] for word in command[3:]))


@pytest.mark.parametrize("words", [(), ("--calls", "orders")])
async def test_redis(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...]) -> None:
    """Nothing that the gateways do is refused, and what a right is for needs it."""
    async with redis_of(tmp_path) as (admin, urls):
        for app in APPS:
            await allow(admin, redis_user(capsys, app, *words))
        async with pair(urls, tmp_path) as (shop, orders, app):
            await everything(shop, orders, app)
            assert await admin.acl_log() == []
            for right, verb, path, headers, body in REDIS_NEEDED:
                await allow(admin, redis_user(capsys, "shop", *words, without=right))
                answer = await shop.request(verb, path, headers, body)
                assert answer.status >= 400, (right, answer)
                await allow(admin, redis_user(capsys, "shop", *words))
            await admin.acl_log_reset()
            await everything(shop, orders, app)


async def test_redis_with_rights_of_an_earlier_version(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway works as before, and says that it can neither be tapped nor asked."""
    async with redis_of(tmp_path) as (admin, urls):
        for app in APPS:
            await allow(admin, [[NEWER.sub("", word) for word in each] for each in redis_user(capsys, app)])
        async with pair(urls, tmp_path) as (shop, _, app):
            app.answer("/work", body={"done": True})
            assert (await shop.get("/v1.0/invoke/orders/method/work")).json == {"done": True}
    assert "nobody can tap this node" in caplog.text
    assert "other nodes cannot ask this one" in caplog.text


async def test_redis_instances_know_each_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async with redis_of(tmp_path) as (admin, urls):
        for app in APPS:
            await allow(admin, redis_user(capsys, app, "--calls", "orders"))
        assert NOT_ALLOWED in await runs_once(urls, tmp_path)
        assert [each["object"] for each in await admin.acl_log()] == ["mesh.prod.app.billing:serve"]


REDIS_NEEDED: list[tuple[str, str, str, dict[str, str] | None, bytes]] = [
    ("mesh.kv:prod=2Estatestore:", "POST", "/v1.0/state/statestore", None, b'[{"key": "k", "value": 1}]'),
    ("mesh.prod.topic.pubsub:", "POST", "/v1.0/publish/pubsub/placed", None, b"x"),
    ("+xadd +xgroup|create", "POST", "/v1.0/invoke/orders/method/work", {"mesh-delivery": "durable"}, b"x"),
    ("+smembers +srandmember", "POST", "/v1.0/invoke/orders/method/work", None, b"x"),
]
REDIS_OTHERS = [
    ("SUBSCRIBE", "mesh-orders:host-1-abc"),
    ("SUBSCRIBE", "mesh-orders:host-1-abc:s1"),
    ("SUBSCRIBE", "mesh.prod.app.orders.members"),
    ("SUBSCRIBE", "mesh.prod.owner.orders.node"),
    ("SUBSCRIBE", "mesh.prod.jobs.orders"),
    ("PUBLISH", "mesh.prod.jobs.orders", "x"),
    ("PSUBSCRIBE", "*"),
    ("PUBSUB", "CHANNELS"),
    ("MONITOR",),
    ("SADD", "mesh.prod.app.orders:serve:orders", "mesh-shop:host-1-abc:s1"),
    ("SADD", "mesh.prod.app.orders:serve", "another"),
    ("SADD", "mesh.prod.owner.orders.node:serve", "mesh-shop:host-1-abc:s1"),
    ("SMEMBERS", "mesh.prod.app.billing:serve"),
    ("SMEMBERS", "mesh.prod.owner.billing.node:serve"),
    ("GET", "mesh-orders:host-1-abc:s1:mesh-billing:host-2-abc:1"),
    ("XRANGE", "mesh.prod.topic.mesh-calls:s:orders", "-", "+"),
    ("XADD", "mesh.prod.topic.mesh-calls:s:billing", "*", ":data", "x"),
    ("XREADGROUP", "GROUP", "orders orders", "x", "STREAMS", "mesh.prod.topic.mesh-calls:s:orders", ">"),
    ("XADD", "mesh.prod.topic.another:s:placed", "*", ":data", "x"),
    ("SMEMBERS", "mesh.test.app.orders:serve"),
    ("HMGET", "mesh.kv:prod=2Eother:shop||k", "v"),
    ("EVAL", "return redis.call('XRANGE', 'mesh.prod.topic.mesh-calls:s:orders', '-', '+')", "0"),
    ("KEYS", "*"),
    ("FLUSHALL",),
    ("CONFIG", "GET", "*"),
    ("ACL", "LIST"),
]


async def test_redis_refuses_what_is_another_s(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async with redis_of(tmp_path) as (admin, urls):
        for command in redis_user(capsys, "shop", "--calls", "orders"):
            await admin.execute_command(*command)
        async with Redis.from_url(urls["shop"].partition("?")[0]) as client:
            assert await client.ping()
            for command in REDIS_OTHERS:
                with pytest.raises(NoPermissionError):
                    pytest.fail(f"{command} was answered {await client.execute_command(*command)}")


# RabbitMQ

RECORDS = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: pubsub}}
spec: {{type: pubsub.mesh, version: v1}}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: statestore}}
spec:
  type: state.sqlite
  version: v1
  metadata:
  - {{name: connectionString, value: "{file}"}}
  - {{name: actorStateStore, value: "true"}}
"""


def rabbitmq_user(capsys: pytest.CaptureFixture[str], app: str, *words: str) -> list[list[str]]:
    lines = [line for line in printed(capsys, "amqp", app, *words).splitlines() if not line.startswith("#")]
    return [["add_user", app, "secret"], *(shlex.split(line)[1:] for line in lines)]


@asynccontextmanager
async def rabbitmq_of(home: Path, *commands: list[str]) -> AsyncIterator[tuple[Path, dict[str, str]]]:
    async with RabbitMQServer(home / "rabbitmq") as server:
        for command in commands:
            server.control(*command)
        yield (
            server.directory / "log",
            {app: f"amqp://{app}:secret@127.0.0.1:{server.port}?inbox={app}" for app in APPS},
        )


async def test_rabbitmq(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing that the gateways do is refused, and what is another's is."""
    users = [command for app in APPS for command in rabbitmq_user(capsys, app, "--calls", "orders")]
    resources = RECORDS.format(file=tmp_path / "state.db")
    async with (
        rabbitmq_of(tmp_path, *users) as (logs, urls),
        pair(urls, tmp_path, resources) as (shop, orders, app),
    ):
        await everything(shop, orders, app)
        assert "access_refused" not in "".join(each.read_text() for each in logs.iterdir())
        await rabbitmq_refuses(urls["shop"])


async def test_rabbitmq_instances_know_each_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    users = [command for app in APPS for command in rabbitmq_user(capsys, app, "--calls", "orders")]
    async with rabbitmq_of(tmp_path, *users) as (logs, urls):
        assert NOT_ALLOWED in await runs_once(urls, tmp_path, RECORDS.format(file=tmp_path / "state.db"))
        refused = [
            line for path in logs.iterdir() for line in path.read_text().splitlines() if "access_refused" in line
        ]
        assert [line for line in refused if "'mesh.prod.app.billing'" not in line] == []


FRAMES, RABBITMQ_CALLS = "mesh.frames.topic", "mesh.prod.topic.mesh-calls"
RABBITMQ_OTHERS = [
    ("bind", FRAMES, "mesh.prod.app.orders"),
    ("bind", FRAMES, "mesh.prod.app.orders.members"),
    ("bind", FRAMES, "#"),
    ("bind", FRAMES, "mesh-inbox-orders:0123456789abcdef"),
    ("bind", FRAMES, "mesh.prod.bindings.orders"),
    ("bind", FRAMES, "mesh.prod.owner.orders.node"),
    ("bind", FRAMES, "mesh.prod.jobs.orders"),
    ("bind", f"{RABBITMQ_CALLS}:groups", "_.orders"),
    ("publish", FRAMES, "mesh.prod.app.billing"),
    ("publish", FRAMES, "mesh.prod.owner.billing.node"),
    ("publish", FRAMES, "mesh.prod.jobs.orders"),
    ("publish", FRAMES, "mesh.test.app.orders"),
    ("publish", RABBITMQ_CALLS, "_.billing"),
    ("publish", f"{RABBITMQ_CALLS}:groups", "_.orders"),
    ("publish", "mesh.prod.topic.another", "_.placed"),
    ("read", "mesh.prod.app.orders:orders", ""),
    ("read", f"{RABBITMQ_CALLS}:orders:orders", ""),
    ("declare", "mesh.prod.app.orders:spy", ""),
    ("declare", "spy", ""),
]


async def rabbitmq_refuses(url: str) -> None:
    async with await connect(url.partition("?")[0]) as connection:
        for what, name, key in RABBITMQ_OTHERS:
            channel = await connection.channel()
            with pytest.raises(ChannelAccessRefused):
                if what == "bind":
                    queue = await channel.declare_queue("mesh-inbox-shop:spy", exclusive=True, auto_delete=True)
                    await queue.bind(name, key)
                elif what == "publish":
                    exchange = await channel.get_exchange(name, ensure=False)
                    await exchange.publish(Message(b"x"), key)
                elif what == "read":
                    queue = await channel.get_queue(name, ensure=False)
                    await queue.get(fail=False)
                else:
                    await channel.declare_queue(name)
                pytest.fail(f"{what} {name} {key} was allowed")


# Kafka

KAFKA = """\
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
username="kafka" password="unused" user_shop="secret" user_orders="secret";
"""
KINDS = {"topic": 2, "group": 3, "cluster": 4}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
PATTERNS = {"literal": 3, "prefixed": 4}


def kafka_rules(capsys: pytest.CaptureFixture[str], app: str, *words: str) -> list[CreateAclsRequest]:
    """What `kafka-acls.sh` would send; a Java machine for each line takes too long here."""
    tool = argparse.ArgumentParser()
    tool.add_argument("--add", action="store_true", required=True)
    tool.add_argument("--allow-principal", required=True)
    tool.add_argument("--operation", choices=OPERATIONS, action="append")
    tool.add_argument("--resource-pattern-type", choices=PATTERNS, default="literal")
    tool.add_argument("--topic")
    tool.add_argument("--group")
    tool.add_argument("--cluster", const="kafka-cluster", action="store_const")
    rules = []
    for line in printed(capsys, "kafka", app, *words).splitlines():
        if not line.startswith("#"):
            found = tool.parse_args(shlex.split(line)[1:])
            [(kind, name)] = [(kind, getattr(found, kind)) for kind in KINDS if getattr(found, kind)]
            pattern, who = PATTERNS[found.resource_pattern_type], found.allow_principal
            rules += [
                CreateAclsRequest(KINDS[kind], name, pattern, who, "*", OPERATIONS[each], 3) for each in found.operation
            ]
    return rules


@asynccontextmanager
async def kafka_of(home: Path, rules: list[CreateAclsRequest]) -> AsyncIterator[dict[str, str]]:
    async with KafkaServer(home / "kafka", KAFKA, {"SASL": "SASL_PLAINTEXT"}) as server:
        cluster = Cluster(KafkaConfig.from_url(server.url))
        await cluster.open()
        try:
            for rule in rules:
                response = await cluster.ask(rule)
                assert response.creation_responses[0][0] == 0, response
        finally:
            await cluster.close()
        yield {app: f"kafka://{app}:secret@127.0.0.1:{server.listeners['SASL']}?partitions=1" for app in APPS}


async def test_kafka(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The gateways can do all that they should, and what is another's is refused."""
    rules = [rule for app in APPS for rule in kafka_rules(capsys, app, "--calls", "orders")]
    resources = RECORDS.format(file=tmp_path / "state.db")
    async with (
        kafka_of(tmp_path, rules) as urls,
        pair(urls, tmp_path, resources) as (shop, orders, app),
    ):
        await everything(shop, orders, app)
        await kafka_refuses(urls["shop"].rpartition("@")[2].partition("?")[0])


async def kafka_refuses(server: str) -> None:
    login = {
        "bootstrap_servers": server,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "shop",
        "sasl_plain_password": "secret",
    }
    calls = "mesh.prod.topic.mesh-calls"
    async with AIOKafkaProducer(**login) as producer:
        for topic in (f"{calls}.billing", "mesh.prod.topic.another.placed", "mesh.test.topic.pubsub.placed"):
            with pytest.raises(TopicAuthorizationFailedError):
                await producer.send_and_wait(topic, b"x", partition=0)
    async with AIOKafkaConsumer(**login) as consumer:
        consumer.assign([TopicPartition(f"{calls}.orders", 0)])
        with pytest.raises(TopicAuthorizationFailedError):
            await consumer.getone()
    placed = TopicPartition("mesh.prod.topic.pubsub.placed", 0)
    async with AIOKafkaConsumer(group_id=f"{calls}.orders@orders", enable_auto_commit=False, **login) as consumer:
        consumer.assign([placed])
        with pytest.raises(GroupAuthorizationFailedError):
            await consumer.committed(placed)
