"""SNS and SQS as every other program has them: what stands there, read and written with the vendor's other client.

The server is moto's, not AWS.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import pytest_asyncio

from brokers.native.snssqs import SNSSQSTopics
from mesh import address
from mesh.address import Address
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigError,
    FeatureNotSupportedError,
    MessageTooLargeError,
    TopologyMismatchError,
)
from mesh.registry import Registry
from tests.http.harness import App, Backbone, component, gateway, yaml
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.moto_server import CREDENTIALS, MotoServer
from tests.support.nodes import component as resource
from tests.support.nodes import unique
from tests.support.proxy import Proxy

ENVELOPE = b'{"data":{"a":1},"id":"1","source":"obs","specversion":"1.0","topic":"orders","type":"com.dapr.event.sent"}'


class AWS:
    """The vendor's blocking client."""

    def __init__(self, url: str) -> None:
        keys = {"aws_access_key_id": CREDENTIALS["accessKey"], "aws_secret_access_key": CREDENTIALS["secretKey"]}
        made = partial(boto3.client, region_name=CREDENTIALS["region"], endpoint_url=url, **keys)
        self.url, self._clients = url, {name: made(name) for name in ("sns", "sqs")}

    async def __call__(self, service: str, operation: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(partial(getattr(self._clients[service], operation), **arguments))

    async def topic(self, name: str) -> str:
        return str((await self("sns", "create_topic", Name=name))["TopicArn"])

    async def queue(self, name: str, **attributes: str) -> tuple[str, str]:
        url = str((await self("sqs", "create_queue", QueueName=name, Attributes=attributes))["QueueUrl"])
        return url, str((await self.attributes(url))["QueueArn"])

    async def attributes(self, url: str) -> dict[str, str]:
        got = await self("sqs", "get_queue_attributes", QueueUrl=url, AttributeNames=["All"])
        return dict(got["Attributes"])

    async def bound(self, topic: str, queue: str, **attributes: str) -> str:
        url, arn = await self.queue(queue)
        arguments = {"TopicArn": topic, "Protocol": "sqs", "Endpoint": arn, "Attributes": attributes}
        await self("sns", "subscribe", **arguments)
        return url

    async def received(self, url: str, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        asked = {"QueueUrl": url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 1, "MessageAttributeNames": ["All"]}
        async with asyncio.timeout(20):
            while len(found) < count:
                found += (await self("sqs", "receive_message", **asked)).get("Messages", [])
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MotoServer]:
    async with MotoServer(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def aws(server: MotoServer) -> AWS:
    return AWS(server.url)


def topics(url: str, **settings: str) -> SNSSQSTopics:
    kind = "pubsub.aws.snssqs"
    made = resource("shop", kind, **{**CREDENTIALS, "endpoint": url, **settings})
    return Registry().load(kind).from_component(made)  # type: ignore[attr-defined, no-any-return]


async def test_what_is_published_stands_there_byte_for_byte(aws: AWS, orders: Address) -> None:
    url = await aws.bound(await aws.topic(orders.label), unique("queue"))
    async with topics(aws.url) as broker:
        await broker.publish(orders, Message({}, ENVELOPE))
        await broker.publish(orders, Message({"ce-id": "7", "content-type": "text/plain"}, "é\n".encode()))
    told = [json.loads(each["Body"]) for each in await aws.received(url, 2)]
    assert [each["Message"].encode() for each in told] == [ENVELOPE, "é\n".encode()]
    assert {each["TopicArn"].rpartition(":")[2] for each in told} == {orders.label}
    assert not told[0].get("MessageAttributes")
    assert told[1]["MessageAttributes"]["ce-id"] == {"Type": "String", "Value": "7"}


async def test_names_are_the_reference_ones(aws: AWS, group: str) -> None:
    label = "a.b/" + "x" * 100
    async with topics(aws.url) as broker:
        async with broker.subscribe(address.topic("test", "shop", label), SubscribeOptions(f"{group}!"), Inbox()):
            pass
        with pytest.raises(BrokerError, match="no letter"):
            await broker.publish(address.topic("test", "shop", "§"), Message({}, b"x"))
    arn = await aws.topic("ab" + "x" * 78)
    tags = (await aws("sns", "list_tags_for_resource", ResourceArn=arn))["Tags"]
    assert tags == [{"Key": "dapr-topic-name", "Value": label}]
    url, queue = await aws.queue(group)
    found = await aws("sns", "list_subscriptions_by_topic", TopicArn=arn)
    assert [each["Endpoint"] for each in found["Subscriptions"]] == [queue]
    (statement,) = json.loads((await aws.attributes(url))["Policy"])["Statement"]
    assert statement == {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue,
        "Condition": {"ForAllValues:ArnEquals": {"aws:SourceArn": [arn]}},
    }


async def test_events_of_others(aws: AWS, group: str, orders: Address) -> None:
    inbox = Inbox()
    async with topics(aws.url) as broker, broker.subscribe(orders, SubscribeOptions(group), inbox):
        arn = await aws.topic(orders.label)
        await aws("sns", "publish", TopicArn=arn, Message=' {"j": 1} ')
        attributes = {
            "kind": {"DataType": "String", "StringValue": "é"},
            "blob": {"DataType": "Binary", "BinaryValue": b"\xffx"},
        }
        await aws("sns", "publish", TopicArn=arn, Message="ünï", MessageAttributes=attributes)
        await inbox.holds(2)
    got = {each.message.body: each.message.metadata for each in inbox.deliveries}
    assert got == {b' {"j": 1} ': {}, "ünï".encode(): {"kind": "é", "blob": "\ufffdx"}}
    assert [each.attempt for each in inbox.deliveries] == [1, 1]


async def test_raw_delivery(aws: AWS, group: str, orders: Address) -> None:
    """A subscription that somebody made so is used as it is."""
    arn = await aws.topic(orders.label)
    await aws.bound(arn, group, RawMessageDelivery="true")
    inbox = Inbox()
    async with topics(aws.url) as broker, broker.subscribe(orders, SubscribeOptions(group), inbox):
        kind = {"kind": {"DataType": "String", "StringValue": "x"}}
        await aws("sns", "publish", TopicArn=arn, Message=ENVELOPE.decode(), MessageAttributes=kind)
        await inbox.holds(1)
    message = inbox.deliveries[0].message
    assert (message.headers, message.metadata, message.body) == ({"kind": "x"}, {"kind": "x"}, ENVELOPE)


async def test_topics_of_a_group_share_its_queue(aws: AWS, group: str, orders: Address) -> None:
    bills, options = address.topic("test", "shop", unique("bills")), SubscribeOptions(group, max_in_flight=3)
    one, two = Inbox(), Inbox()
    async with topics(aws.url) as broker:
        async with broker.subscribe(orders, options, one), broker.subscribe(bills, options, two):
            for number in range(15):
                await broker.publish(orders, Message({}, b"o%d" % number))
                await broker.publish(bills, Message({}, b"b%d" % number))
            await one.holds(15)
            await two.holds(15)
            with pytest.raises(BrokerError, match="already"):
                async with broker.subscribe(orders, options, Inbox()):
                    pass
        assert {*one.bodies} == {b"o%d" % number for number in range(15)}
        assert {*two.bodies} == {b"b%d" % number for number in range(15)}
        one, two = Inbox(), Inbox()
        async with broker.subscribe(orders, options, one):
            await broker.publish(bills, Message({}, b"later"))
            await broker.publish(orders, Message({}, b"now"))
            await one.holds(1)
            async with broker.subscribe(bills, options, two):
                await two.holds(1)
    assert (one.bodies, two.bodies) == ([b"now"], [b"later"])
    url, _ = await aws.queue(group)
    (statement,) = json.loads((await aws.attributes(url))["Policy"])["Statement"]
    assert len(statement["Condition"]["ForAllValues:ArnEquals"]["aws:SourceArn"]) == 2


async def test_attempts_delays_and_the_end(aws: AWS, group: str, orders: Address) -> None:
    seen: list[tuple[int, float]] = []

    async def settle(delivery: Delivery) -> None:
        seen.append((delivery.attempt, time.monotonic()))
        await (delivery.nack(1.0) if delivery.attempt == 1 else delivery.reject())

    inbox = Inbox(settle)
    async with topics(aws.url) as broker, broker.subscribe(orders, SubscribeOptions(group), inbox):
        await broker.publish(orders, Message({}, b"x"))
        await inbox.holds(2)
    assert [attempt for attempt, _ in seen] == [1, 2]
    assert seen[1][1] - seen[0][1] >= 0.99
    attributes = await aws.attributes((await aws.queue(group))[0])
    assert (attributes["ApproximateNumberOfMessages"], attributes["ApproximateNumberOfMessagesNotVisible"]) == (
        "0",
        "0",
    )


async def test_who_leaves_gives_back_what_it_has_not_begun(aws: AWS, group: str, orders: Address) -> None:
    hung, inbox, published = Inbox(lambda _: asyncio.Event().wait()), Inbox(), asyncio.Event()  # type: ignore[arg-type]
    options = SubscribeOptions(group, max_in_flight=2)
    async with topics(aws.url) as broker, topics(aws.url) as other, asyncio.TaskGroup() as tasks:

        async def leave() -> None:
            async with broker.subscribe(orders, options, hung):
                for number in range(5):
                    await other.publish(orders, Message({}, b"%d" % number))
                await hung.holds(2)
                published.set()

        leaving = tasks.create_task(leave())
        await published.wait()
        async with other.subscribe(orders, options, inbox):
            await inbox.holds(3)
            leaving.cancel()
            await inbox.holds(5, 10.0)  # Sooner than what is hidden would be seen again.
    assert {*inbox.bodies} == {b"%d" % number for number in range(5)}


async def test_members_of_both_kinds_share_a_group(aws: AWS, group: str, orders: Address) -> None:
    """A stand-in of the reference takes from the same queue as it does: unwraps, handles, deletes."""
    theirs: list[bytes] = []
    ended = threading.Event()

    def sidecar(url: str) -> None:
        client = AWS(aws.url)._clients["sqs"]
        while not ended.is_set():
            got = client.receive_message(
                QueueUrl=url, MaxNumberOfMessages=3, WaitTimeSeconds=1, VisibilityTimeout=10, AttributeNames=["All"]
            )
            for each in got.get("Messages", ()):
                theirs.append(json.loads(each["Body"])["Message"].encode())
                client.delete_message(QueueUrl=url, ReceiptHandle=each["ReceiptHandle"])

    inbox = Inbox()
    arn = await aws.topic(orders.label)
    url = await aws.bound(arn, group)
    async with topics(aws.url) as broker, asyncio.TaskGroup() as tasks:
        joined = tasks.create_task(asyncio.to_thread(sidecar, url))
        try:
            await broker.publish(orders, Message({}, b"0"))
            await eventually(lambda: _is(theirs == [b"0"]))
            async with broker.subscribe(orders, SubscribeOptions(group, max_in_flight=2), inbox):
                for number in range(1, 30):
                    await broker.publish(orders, Message({}, b"%d" % number))
                    await aws("sns", "publish", TopicArn=arn, Message=f"{number + 30}")
                await eventually(lambda: _is(len(inbox.bodies) + len(theirs) >= 59))
                ended.set()
                await asyncio.wait([joined])
                await broker.publish(orders, Message({}, b"30"))
                await eventually(lambda: _is(b"30" in inbox.bodies))
        finally:
            ended.set()
    assert sorted(map(int, (*inbox.bodies, *theirs))) == [*range(60)]


def _is(right: bool) -> None:
    assert right


async def test_fifo(aws: AWS, group: str, orders: Address) -> None:
    """A key's events come in order, also past one that is tried again; equal contents are two events, equal ids one."""
    seen: list[tuple[str, int]] = []

    async def settle(delivery: Delivery) -> None:
        key, _, number = delivery.message.body.decode().partition(":")
        if (key, number, delivery.attempt) == ("a", "1", 1):
            await delivery.nack(1.0)
            return
        seen.append((key, int(number)))
        await delivery.ack()

    inbox, options = Inbox(settle), SubscribeOptions(group, ordered=True)
    async with topics(aws.url, fifo="true", fifoMessageGroupID="g") as broker:
        async with broker.subscribe(orders, options, Inbox()):
            pass
        for number in range(4):
            for key in "ab":
                for _ in range(2):
                    await broker.publish(orders, Message({}, f"{key}:{number}".encode(), key, f"{key}{number}"))
        for own in ("one", "two"):
            await broker.publish(orders, Message({}, b"c:0", id=own))
        async with broker.subscribe(orders, options, inbox):

            def check() -> None:
                assert len(seen) >= 10, seen

            await eventually(check, 30)
    assert {key: [number for each, number in seen if each == key] for key in "abc"} == {
        "a": [0, 1, 2, 3],
        "b": [0, 1, 2, 3],
        "c": [0, 0],
    }
    url, _ = await aws.queue(f"{group}.fifo", FifoQueue="true", ContentBasedDeduplication="true")
    assert (await aws.attributes(url))["ApproximateNumberOfMessages"] == "0"


async def test_without_fifo_there_is_no_order(aws: AWS, group: str, orders: Address) -> None:
    async with topics(aws.url) as broker:
        with pytest.raises(FeatureNotSupportedError, match=r"ordered subscriptions$"):
            async with broker.subscribe(orders, SubscribeOptions(group, ordered=True), Inbox()):
                pass


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        (b"\xff\xfe", BrokerError, "rawPayload"),
        (b"", BrokerError, "without a body"),
        (b"x" * (256 * 1024 + 1), MessageTooLargeError, "262144"),
    ],
)
async def test_bodies_that_sns_does_not_carry(aws: AWS, orders: Address, body: bytes, error: type, told: str) -> None:
    async with topics(aws.url) as broker:
        with pytest.raises(error, match=told):
            await broker.publish(orders, Message({}, body))


@pytest.mark.parametrize("fifo", ["false", "true"])
async def test_what_sns_does_not_carry_is_refused_alone(aws: AWS, orders: Address, fifo: str) -> None:
    async with topics(aws.url, fifo=fifo, fifoMessageGroupID="g") as broker:
        bodies = (b"1", b"", b"x" * (256 * 1024 + 1), b"2")
        results = await broker.publish_many(orders, [Message({}, each) for each in bodies])
    assert [type(each) for each in results] == [type(None), BrokerError, MessageTooLargeError, type(None)]


async def test_the_policy_of_a_queue_keeps_what_others_wrote(aws: AWS, group: str, orders: Address) -> None:
    theirs = {"Sid": "x", "Effect": "Allow", "Principal": "*", "Action": "sqs:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Id": "own", "Statement": [theirs]})
    url, _ = await aws.queue(group, Policy=policy)
    async with topics(aws.url) as broker, broker.subscribe(orders, SubscribeOptions(group), Inbox()):
        pass
    found = json.loads((await aws.attributes(url))["Policy"])
    assert found["Id"] == "own"
    assert found["Statement"][0] == theirs
    assert len(found["Statement"]) == 2


async def test_dead_letters_of_sqs(aws: AWS, group: str, orders: Address) -> None:
    settings = {"sqsDeadLettersQueueName": f"{group}-dead", "messageReceiveLimit": "3"}
    async with topics(aws.url, **settings) as broker, broker.subscribe(orders, SubscribeOptions(group), Inbox()):
        pass
    _, dead = await aws.queue(f"{group}-dead")
    found = json.loads((await aws.attributes((await aws.queue(group))[0]))["RedrivePolicy"])
    assert {name: str(value) for name, value in found.items()} == {"deadLetterTargetArn": dead, "maxReceiveCount": "3"}
    async with topics(aws.url, **{**settings, "messageReceiveLimit": "4"}) as broker:
        with pytest.raises(TopologyMismatchError, match=r"'?maxReceiveCount.*3.*maxReceiveCount.*4"):
            async with broker.subscribe(orders, SubscribeOptions(group), Inbox()):
                pass


async def test_a_topic_of_dead_letters_keeps_them(aws: AWS, group: str, orders: Address) -> None:
    letters = address.topic("test", "shop", unique("letters"))
    options = SubscribeOptions(group, dead_letters=letters)
    async with topics(aws.url) as broker:
        for _ in range(2):
            async with broker.subscribe(orders, options, Inbox()):
                pass
        await broker.publish(letters, Message({"mesh-dead-letter-reason": "no"}, b"x"))
    url, _ = await aws.queue(f"{letters.label}-kept", MessageRetentionPeriod="1209600")
    (kept,) = await aws.received(url, 1)
    assert json.loads(kept["Body"])["Message"] == "x"


async def test_nothing_is_made_where_others_manage(aws: AWS, group: str, orders: Address) -> None:
    inbox, options = Inbox(), SubscribeOptions(group)
    async with topics(aws.url, disableEntityManagement="true", accountId="123456789012") as broker:
        with pytest.raises(BrokerError, match=f"no SNS topic '{orders.label}'"):
            await broker.publish(orders, Message({}, b"x"))
        arn = await aws.topic(orders.label)
        with pytest.raises(BrokerError, match=f"no SQS queue '{group}'"):
            async with broker.subscribe(orders, options, inbox):
                pass
        url, _ = await aws.queue(group)
        with pytest.raises(BrokerError, match="is not subscribed"):
            async with broker.subscribe(orders, options, inbox):
                pass
        await aws.bound(arn, group)
        async with broker.subscribe(orders, options, inbox):
            await broker.publish(orders, Message({}, b"x"))
            await inbox.holds(1)
    assert "Policy" not in await aws.attributes(url)


async def test_an_outage_is_ridden_out(server: MotoServer, group: str, orders: Address) -> None:
    inbox = Inbox()
    async with AsyncExitStack() as stack:
        async with Proxy(server.port) as proxy:
            broker = await stack.enter_async_context(topics(f"http://127.0.0.1:{proxy.port}"))
            await stack.enter_async_context(broker.subscribe(orders, SubscribeOptions(group), inbox))
            await broker.publish(orders, Message({}, b"before"))
            await inbox.holds(1)
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(broker.publish(orders, Message({}, b"after")))
            with pytest.raises(BrokerUnavailableError):
                await broker.check()
            assert not publishing.done()
            await stack.enter_async_context(Proxy(server.port, proxy.port))
        await inbox.holds(2, within=40.0)  # Both the proxy and the server are found again by waits that grow.
    assert {*inbox.bodies} == {b"before", b"after"}


async def test_a_queue_that_is_deleted_ends_its_subscriptions(aws: AWS, group: str, orders: Address) -> None:
    async with topics(aws.url) as broker:
        with pytest.raises(BrokerError, match="is gone") as found:
            async with broker.subscribe(orders, SubscribeOptions(group), Inbox()):
                await aws("sqs", "delete_queue", QueueUrl=(await aws.queue(group))[0])
                await asyncio.Event().wait()
        assert found.value.retryable
        inbox = Inbox()
        async with broker.subscribe(orders, SubscribeOptions(group), inbox):
            await broker.publish(orders, Message({}, b"x"))
            await inbox.holds(1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sqsDeadLettersQueueName": "dead"}, "needs messageReceiveLimit"),
        ({"messageReceiveLimit": "3"}, "needs sqsDeadLettersQueueName"),
        ({"accountId": "12"}, "12 digits"),
        ({"messageMaxNumber": "11"}, "10"),
        ({"layout": "mesh"}, "native"),
        ({"secretKey": ""}, "needs secretKey"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        topics("http://127.0.0.1:1", **settings)


async def test_nobody_there() -> None:
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"):
        async with topics("http://127.0.0.1:1"):
            pass


async def test_through_a_gateway(aws: AWS, tmp_path: Path) -> None:
    """An application gets what others publish, and they what it publishes, as with the reference."""
    topic, raw, own = unique("orders"), unique("raw"), unique("app")
    kind = component("shop", "pubsub.snssqs", **CREDENTIALS, endpoint=aws.url)
    kind = kind.replace('"version"', '"initTimeout": "60s", "version"')  # The vendor's library takes long to load.
    told = "".join(
        yaml("Subscription", name, {"topic": name, "route": f"/{name}", "pubsubname": "shop", **more})
        for name, more in ((topic, {}), (raw, {"metadata": {"rawPayload": "true"}}))
    )
    url = await aws.bound(await aws.topic(topic), unique("queue"))
    async with App() as app, gateway(Backbone("memory:"), tmp_path, app=app, app_id=own, resources=kind + told) as node:
        attributes = {"kind": {"DataType": "String", "StringValue": "x"}}
        await aws("sns", "publish", TopicArn=await aws.topic(topic), Message=ENVELOPE.decode())
        await aws("sns", "publish", TopicArn=await aws.topic(raw), Message="plain", MessageAttributes=attributes)
        reply = await node.post(f"/v1.0/publish/shop/{topic}", b'{"n":1}', "application/json")
        assert reply.status == 204

        def check() -> None:
            assert len(app.got) >= 3

        await eventually(check, 20)
    assert ENVELOPE in [each.body for each in app.got if each.path == f"/{topic}"]
    (plain,) = [each for each in app.got if each.path == f"/{raw}"]
    assert plain.json["data_base64"] == "cGxhaW4="
    assert plain.headers["kind"] == "x"
    published = json.loads(json.loads((await aws.received(url, 2))[1]["Body"])["Message"])
    assert (published["data"], published["topic"], published["source"]) == ({"n": 1}, topic, own)
