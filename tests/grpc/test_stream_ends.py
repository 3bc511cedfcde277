"""How a stream of events ends whose client does not read what it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.message_factory import GetMessageClass

from gateway.grpc.messages import service
from gateway.grpc.wire import framed
from gateway.http.client import ResponseError
from gateway.http2.client import HTTP2Client, HTTP2Response
from tests.grpc.streaming import METHOD, leaving
from tests.http.harness import Backbone, Node
from tests.support.eventually import PATIENCE, eventually


@asynccontextmanager
async def unread(node: Node) -> AsyncIterator[tuple[HTTP2Response, bytes]]:
    """Subscribe as a client that does not read on: it is sent an event larger than what it takes, and answers that."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    takes = service("Dapr").methods_by_name[METHOD].input_type

    def said(**fields: Any) -> bytes:
        return framed(GetMessageClass(takes)(**fields).SerializeToString())

    async def messages() -> AsyncIterator[bytes]:
        yield said(initial_request={"pubsub_name": "pubsub", "topic": "t"})
        while True:
            yield await answers.get()

    path, headers = f"/dapr.proto.runtime.v1.Dapr/{METHOD}", [("content-type", "application/grpc")]
    async with (
        asyncio.timeout(PATIENCE),
        HTTP2Client("127.0.0.1", node.gateway.grpc_port) as http2,
        http2.call("POST", path, headers, messages()) as answer,
    ):
        parts = answer.parts()
        await anext(parts)  # That it is subscribed.
        event = {"specversion": "1.0", "id": "e", "source": "s", "type": "t", "data": "x" * 500_000}
        reply = await node.request(
            "POST",
            "/v1.0/publish/pubsub/t",
            [("Content-Type", "application/cloudevents+json")],
            orjson.dumps(event),
        )
        assert reply.status == 204
        begun = await anext(parts)
        await answers.put(said(event_processed={"id": "e"}))
        yield answer, begun


def _no_stream_runs() -> None:
    assert "stream-run" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_message_is_written_to_its_end_while_the_gateway_drains(
    nats: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.routes.held_stream.CLOSE_SECONDS", PATIENCE)
    async with leaving(nats, tmp_path, drain=30.0) as (node, stop, running), unread(node) as (answer, begun):
        stop.set()
        await eventually(_no_stream_runs)
        data = begun + b"".join([part async for part in answer.parts()])
        assert int.from_bytes(data[1:5], "big") == len(data) - 5
        assert dict(answer.trailers)["grpc-status"] == "14"
        await running


async def test_a_client_that_does_not_read_while_the_gateway_drains(
    nats: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream is broken off: a status behind half a message would say that this is all of it."""
    monkeypatch.setattr("gateway.routes.held_stream.CLOSE_SECONDS", 0.05)
    async with leaving(nats, tmp_path, drain=30.0) as (node, stop, running), unread(node) as (answer, _):
        stop.set()
        await running
        with pytest.raises(ResponseError):
            async for _ in answer.parts():
                pass
