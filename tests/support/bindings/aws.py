"""Rows of what runs on AWS: moto's server stands for it."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from aiobotocore.session import AioSession

from tests.support.bindings.rows import InputKind, OutputKind, ServedInput, ServedOutput, call, nothing
from tests.support.moto_server import CREDENTIALS, MotoServer

__all__ = ["INPUTS", "OUTPUTS", "client", "moto"]

_TOPIC = "arn:aws:sns:eu-central-1:123456789012"


def client(url: str, service: str) -> AbstractAsyncContextManager[Any]:
    """Connect to a service, by the vendor's library."""
    made: AbstractAsyncContextManager[Any] = AioSession().create_client(
        service,
        region_name=CREDENTIALS["region"],
        endpoint_url=url,
        aws_access_key_id=CREDENTIALS["accessKey"],
        aws_secret_access_key=CREDENTIALS["secretKey"],
    )
    return made


async def _prepare(asked: Any, service: str) -> None:
    """Make what the components of the rows name."""
    match service:
        case "sqs":
            await asked.create_queue(QueueName="orders")
            await asked.create_queue(QueueName="orders.fifo", Attributes={"FifoQueue": "true"})
        case "sns":
            await asked.create_topic(Name="orders")
            await asked.create_topic(Name="orders.fifo", Attributes={"FifoTopic": "true"})
        case "dynamodb":
            await asked.create_table(
                TableName="items",
                KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )
        case "kinesis":
            await asked.create_stream(StreamName="clicks", ShardCount=2)
        case "ses":
            await asked.verify_email_identity(EmailAddress="shop@example.com")


@asynccontextmanager
async def moto(directory: Path, service: str) -> AsyncIterator[tuple[dict[str, str], Any]]:
    """Serve one service with what the rows name; gives settings to connect, and the vendor's client."""
    async with MotoServer(directory) as server, client(server.url, service) as asked:
        await _prepare(asked, service)
        yield {**CREDENTIALS, "endpoint": server.url}, asked


def _output(
    service: str, settings: Mapping[str, str], calls: tuple[tuple[Any, Any], ...], refused: Any
) -> Callable[[Path], AbstractAsyncContextManager[ServedOutput]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[ServedOutput]:
        async with moto(directory, service) as (connection, _):
            yield ServedOutput({**connection, **settings}, calls, refused)

    return serve


def _queue(name: str) -> Callable[[Path], AbstractAsyncContextManager[ServedInput]]:
    more = {"MessageGroupId": "one"} if name.endswith(".fifo") else {}

    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[ServedInput]:
        async with moto(directory, "sqs") as (connection, asked):
            url = (await asked.get_queue_url(QueueName=name))["QueueUrl"]

            async def emit(data: bytes) -> None:
                once = {"MessageDeduplicationId": data.hex()} if more else {}
                await asked.send_message(QueueUrl=url, MessageBody=b64encode(data).decode(), **more, **once)

            yield ServedInput({**connection, "queueName": name}, emit, read=b64decode)  # A message is a text.

    return serve


@asynccontextmanager
async def _stream(directory: Path) -> AsyncIterator[ServedInput]:
    async with moto(directory, "kinesis") as (connection, asked):

        async def emit(data: bytes) -> None:
            await asked.put_record(StreamName="clicks", Data=data, PartitionKey=data.hex())

        yield ServedInput({**connection, "streamName": "clicks"}, emit)


_MAIL = {"emailFrom": "shop@example.com", "subject": "Your order"}

OUTPUTS: Mapping[str, OutputKind] = {
    "sqs": OutputKind(
        "bindings.aws.sqs",
        _output(
            "sqs",
            {"queueName": "orders"},
            ((call("create", b'{"id":1}'), nothing), (call("create", b'"text"'), nothing)),
            call("create", b"\x00\xff"),
        ),
    ),
    "sns": OutputKind(
        "bindings.aws.sns",
        _output(
            "sns",
            {"topicArn": f"{_TOPIC}:orders"},
            (
                (call("create", b'{"message":"text","subject":"new"}'), nothing),
                (call("create", b'{"message":{"id":1}}'), nothing),
            ),
            call("create", b'"text"'),
        ),
    ),
    "dynamodb": OutputKind(
        "bindings.aws.dynamodb",
        _output(
            "dynamodb",
            {"table": "items"},
            ((call("create", b'{"id":"1","n":1.5}'), nothing),),
            call("create", b'{"other":1}'),
        ),
    ),
    "kinesis": OutputKind(
        "bindings.aws.kinesis",
        _output(
            "kinesis",
            {"streamName": "clicks"},
            ((call("create", b"\x00\xff"), nothing), (call("create", b"{}", partitionKey="one"), nothing)),
            call("create", b"{}", partitionKey="x" * 300),
        ),
    ),
    "ses": OutputKind(
        "bindings.aws.ses",
        _output(
            "ses", _MAIL, ((call("create", b'"Hello"', emailTo="a@example.com"), nothing),), call("create", b'"Hello"')
        ),
    ),
}

INPUTS: Mapping[str, InputKind] = {
    "sqs": InputKind("bindings.aws.sqs", _queue("orders")),
    "sqs, fifo": InputKind("bindings.aws.sqs", _queue("orders.fifo")),
    "kinesis": InputKind("bindings.aws.kinesis", _stream),
}
