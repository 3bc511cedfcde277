"""What the bindings of AWS put where, as the vendor's library reads it; what they refuse; messages handled for long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from bindings.aws import sqs
from mesh.blocks.binding_contract import BindingError, BindingEvent, OutputBinding, Reading
from mesh.registry import Registry
from mesh.resources.settings import settings_of, without_effect
from tests.support.bindings import call
from tests.support.bindings.aws import client, moto
from tests.support.eventually import eventually
from tests.support.nodes import component


@asynccontextmanager
async def opened(kind: str, **settings: str) -> AsyncIterator[Any]:
    adapter = Registry().load(kind).from_component(component("out", kind, **settings))  # type: ignore[attr-defined]
    async with adapter:
        yield adapter


async def bodies(queues: Any, name: str) -> list[dict[str, Any]]:
    url = (await queues.get_queue_url(QueueName=name))["QueueUrl"]
    asked = {"QueueUrl": url, "MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"]}
    return [*(await queues.receive_message(**asked)).get("Messages", ())]


async def test_queues(tmp_path: Path) -> None:
    """A message has the bytes as they are; in a fifo queue a group, and an id by which it is there once."""
    async with moto(tmp_path, "sqs") as (connection, queues):
        async with opened("bindings.aws.sqs", queueName="orders", **connection) as out:
            for data in (b'{"id":1}', b'"text"', "ünï".encode()):
                await out.invoke(call("create", data))
        assert sorted(each["Body"] for each in await bodies(queues, "orders")) == ['"text"', '{"id":1}', "ünï"]
        async with opened("bindings.aws.sqs", queueName="orders.fifo", **connection) as out:
            for data in (b"1", b"1"):
                await out.invoke(call("create", data, messageGroupId="a", messageDeduplicationId="same"))
            await out.invoke(call("create", b"1", partitionKey="b"))
            await out.invoke(call("create", b"1"))
        groups = [each["Attributes"]["MessageGroupId"] for each in await bodies(queues, "orders.fifo")]
        assert sorted(groups) == ["a", "b", "default"]


async def test_topics(tmp_path: Path) -> None:
    """A message that is a text goes as it is, another one as JSON."""
    async with moto(tmp_path, "sns") as (connection, topics), client(connection["endpoint"], "sqs") as queues:
        url = (await queues.create_queue(QueueName="got"))["QueueUrl"]
        arn = (await queues.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"]))["Attributes"]["QueueArn"]
        topic = (await topics.create_topic(Name="orders"))["TopicArn"]
        await topics.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        async with opened("bindings.aws.sns", topicArn=topic, **connection) as out:
            await out.invoke(call("create", b'{"message":"text","subject":"new"}'))
            await out.invoke(call("create", b'{"message":{"id":1}}'))
        said = [json.loads(each["Body"]) for each in await bodies(queues, "got")]
    assert sorted((each["Message"], each.get("Subject")) for each in said) == [("text", "new"), ('{"id":1}', None)]


async def test_tables(tmp_path: Path) -> None:
    """Every kind of JSON has its own, and numbers keep their digits."""
    data = b'{"id":"1","n":1.23456789012345678901,"i":-5,"b":true,"z":null,"l":["a",{"m":""}]}'
    async with moto(tmp_path, "dynamodb") as (connection, tables):
        async with opened("bindings.aws.dynamodb", table="items", **connection) as out:
            await out.invoke(call("create", data))
        found = await tables.get_item(TableName="items", Key={"id": {"S": "1"}})
    assert found["Item"] == {
        "id": {"S": "1"},
        "n": {"N": "1.23456789012345678901"},
        "i": {"N": "-5"},
        "b": {"BOOL": True},
        "z": {"NULL": True},
        "l": {"L": [{"S": "a"}, {"M": {"m": {"S": ""}}}]},
    }


async def test_streams(tmp_path: Path) -> None:
    """A record has the bytes as they are, and the key of the call, of the component, or one made up."""
    keys: list[str] = []
    async with moto(tmp_path, "kinesis") as (connection, streams):
        for more in ({}, {"partitionKey": "usual"}):
            async with opened("bindings.aws.kinesis", streamName="clicks", **connection, **more) as out:
                await out.invoke(call("create", b"\x00\xff", partitionKey="own"))
                await out.invoke(call("create", b"\x00\xff"))
        for shard in (await streams.list_shards(StreamName="clicks"))["Shards"]:
            asked = {"StreamName": "clicks", "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
            iterator = (await streams.get_shard_iterator(**asked))["ShardIterator"]
            records = (await streams.get_records(ShardIterator=iterator))["Records"]
            assert {each["Data"] for each in records} <= {b"\x00\xff"}
            keys += [each["PartitionKey"] for each in records]
    assert len(set(keys)) == 3
    assert sorted(keys.count(each) for each in ("own", "usual")) == [1, 2]


async def test_mail(tmp_path: Path) -> None:
    """A call's metadata come before the component's; all who are named get it."""
    usual = {"emailFrom": "shop@example.com", "emailTo": "usual@example.com", "subject": "Usual"}
    told = {"emailTo": "a@example.com; b@example.com;", "emailcc": "c@example.com", "emailBcc": "d@example.com"}
    async with moto(tmp_path, "ses") as (connection, _):
        async with opened("bindings.aws.ses", **connection, **usual) as out:
            await out.invoke(call("create", b'"<b>Hello</b>"', **told))
        sent = await asyncio.to_thread(_sent, connection["endpoint"])
    assert sent["source"] == "shop@example.com"
    assert (sent["subject"], sent["body"]) == ("Usual", "<b>Hello</b>")
    assert sent["destinations"] == {
        "ToAddresses": ["a@example.com", "b@example.com"],
        "CcAddresses": ["c@example.com"],
        "BccAddresses": ["d@example.com"],
    }


def _sent(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/moto-api/data.json", timeout=5.0) as response:
        (message,) = json.load(response)["ses"]["Message"]
    return dict(message)


# As Dapr documents them.
_ACCESS = {"region": "us-west-2", "accessKey": "key", "secretKey": "secret", "sessionToken": "token"}
DOCUMENTED = [
    ("sqs", {"queueName": "items", "endpoint": "sqs.us-west-2.amazonaws.com"}, 0),
    ("sns", {"topicArn": "mytopic"}, 0),
    ("kinesis", {"streamName": "stream", "consumerName": "myconsumer", "mode": "shared"}, 0),
    ("kinesis", {"streamName": "stream", "mode": "extended", "endpoint": "http://localhost:4566"}, 1),
    ("dynamodb", {"table": "items"}, 0),
    ("ses", {"emailFrom": "a@b", "emailTo": "a@b", "emailCc": "a@b", "emailBcc": "a@b", "subject": "x"}, 0),
]


@pytest.mark.parametrize(("kind", "settings", "warnings"), DOCUMENTED)
def test_documented_settings(kind: str, settings: dict[str, str], warnings: int) -> None:
    """They load, and none is unknown; what has no effect is told."""
    resource = component("out", f"bindings.aws.{kind}", **settings, **_ACCESS)
    adapter = Registry().load(resource.type).from_component(resource)  # type: ignore[attr-defined]
    declared = settings_of(adapter.settings)
    assert {*settings, *_ACCESS} <= {name for each in declared for name in each.names}
    assert len(without_effect(resource, declared)) == warnings


MAIL = {"emailFrom": "a@example.com", "emailTo": "b@example.com", "subject": "x"}


@pytest.mark.parametrize(
    ("kind", "settings", "data", "metadata", "problem"),
    [
        ("sqs", {"queueName": "q"}, b"\xff", {}, "the data for SQS must be text in UTF-8"),
        ("sqs", {"queueName": "q"}, b"a\x00", {}, r"U\+0000"),
        ("sns", {"topicArn": "t"}, b'"text"', {}, "the data for SNS must be a JSON object"),
        ("sns", {"topicArn": "t"}, b"{", {}, "the data for SNS must be a JSON object"),
        ("sns", {"topicArn": "t"}, b'{"subject":"x"}', {}, "lack message"),
        ("dynamodb", {"table": "t"}, b"[]", {}, "the data for DynamoDB must be a JSON object"),
        ("dynamodb", {"table": "t"}, b'{"a":NaN}', {}, "NaN is no JSON"),
        ("dynamodb", {"table": "t"}, b"\xff", {}, "the data for DynamoDB must be a JSON object"),
        ("dynamodb", {"table": "t"}, b"[" * 100_000, {}, "the data for DynamoDB must be a JSON object"),
        *(("ses", {**MAIL, name: ""}, b'"x"', {}, f"{name} is missing") for name in MAIL),
        ("ses", MAIL, b"\xff", {}, "the data for SES must be text in UTF-8"),
        ("sqs", {"queueName": "q"}, b"x", {}, "the SQS queue 'q', get queue url: the service cannot be reached"),
    ],
)
async def test_refused(
    kind: str, settings: dict[str, str], data: bytes, metadata: dict[str, str], problem: str
) -> None:
    """What cannot be sent is told by its name."""
    where = {"region": "eu-central-1", "accessKey": "a", "secretKey": "s3cret", "endpoint": "http://127.0.0.1:1"}
    async with opened(f"bindings.aws.{kind}", **where, **settings) as out:
        assert isinstance(out, OutputBinding)
        with pytest.raises(BindingError, match=problem) as raised:
            await out.invoke(call("create", data, **metadata))
    assert "s3cret" not in str(raised.value)
    assert raised.value.retryable == ("reached" in problem)


async def test_handled_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message stays hidden while it is handled, and is gone when it was taken."""
    monkeypatch.setattr(sqs, "HIDDEN_SECONDS", 2)
    monkeypatch.setattr(sqs, "RENEW_SECONDS", 0.3)
    begun, go, got = asyncio.Event(), asyncio.Event(), list[bytes]()

    async def handle(event: BindingEvent) -> bytes:
        got.append(event.data)
        begun.set()
        await go.wait()
        return b""

    async with moto(tmp_path, "sqs") as (connection, queues):
        url = (await queues.get_queue_url(QueueName="orders"))["QueueUrl"]
        async with opened("bindings.aws.sqs", queueName="orders", **connection) as source:
            async with source.reading(Reading("in", "app", handle)):
                await queues.send_message(QueueUrl=url, MessageBody="one")
                await begun.wait()
                # As long as it would be hidden, and half as long again.
                assert "Messages" not in await queues.receive_message(QueueUrl=url, WaitTimeSeconds=3)
                go.set()

            async def gone() -> None:
                names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
                found = await queues.get_queue_attributes(QueueUrl=url, AttributeNames=names)
                assert [found["Attributes"][name] for name in names] == ["0", "0"]

            await eventually(gone)
    assert got == [b"one"]


async def test_groups(tmp_path: Path) -> None:
    """In a fifo queue a message that is not taken holds back those of its group, and no others."""
    got: list[bytes] = []

    async def handle(event: BindingEvent) -> bytes:
        got.append(event.data)
        if got.count(b"a1") == 1 and event.data == b"a1":
            raise BindingError("not taken")
        return b""

    def all_there() -> None:
        assert len(got) >= 5

    async with moto(tmp_path, "sqs") as (connection, queues):
        url = (await queues.get_queue_url(QueueName="orders.fifo"))["QueueUrl"]
        for body in ("a1", "a2", "b1", "a3"):
            once = {"MessageGroupId": body[0], "MessageDeduplicationId": body}
            await queues.send_message(QueueUrl=url, MessageBody=body, **once)
        async with (
            opened("bindings.aws.sqs", queueName="orders.fifo", **connection) as source,
            source.reading(Reading("in", "app", handle)),
        ):
            await eventually(all_there)
    assert [each for each in got if each.startswith(b"a")] == [b"a1", b"a1", b"a2", b"a3"]
    assert got.index(b"b1") < got.index(b"a2")


async def test_missing_queue(tmp_path: Path) -> None:
    """It is told when it is read or sent to; once it is there, both go."""

    async def handle(event: BindingEvent) -> bytes:
        return b""

    async with (
        moto(tmp_path, "sqs") as (connection, queues),
        opened("bindings.aws.sqs", queueName="later", **connection) as source,
    ):
        with pytest.raises(BindingError, match="the SQS queue 'later'"):
            async with source.reading(Reading("in", "app", handle)):
                pass
        with pytest.raises(BindingError, match="the SQS queue 'later'"):
            await source.invoke(call("create", b"x"))
        await queues.create_queue(QueueName="later")
        await source.invoke(call("create", b"x"))
