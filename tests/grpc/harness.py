"""A client of gRPC for a gateway in the process of the test: the official library, and messages of our descriptors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from gateway.grpc.messages import STATUS, message, service
from tests.http.harness import Node
from tests.support.eventually import PATIENCE

__all__ = ["Both", "Call", "Client", "Failed", "calls", "check_both", "check_call", "client", "pairs", "refused"]

grpc.aio.init_grpc_aio()  # Held for good: the library would wait in the event loop for the end of its thread.

Metadata = Sequence[tuple[str, str | bytes]]


class Failed(Exception):
    """A call ended with another status than OK: its name, its message, and its trailers."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code: str = error.code().name
        self.text = error.details() or ""
        self.trailers = dict(error.trailing_metadata() or ())

    @property
    def details(self) -> list[dict[str, Any]]:
        """The details in proto-JSON, without what is empty."""
        status = message("Status", STATUS).FromString(self.trailers.get("grpc-status-details-bin", b""))
        pool = status.DESCRIPTOR.file.pool
        found = MessageToDict(status, preserving_proto_field_name=True, descriptor_pool=pool)
        details: list[dict[str, Any]] = found.get("details", [])
        return details


class Client:
    """Calls methods of ``dapr.proto.runtime.v1.Dapr``, or of another service, by name."""

    def __init__(self, channel: grpc.aio.Channel, described: Any = None) -> None:
        self.channel = channel
        self._service = described or service("Dapr")

    def open(self, name: str, request: object = None, metadata: Metadata = (), timeout: float = PATIENCE) -> Any:
        """Begin a call; streams are given ``request`` as an iterator of messages."""
        method = self._service.methods_by_name[name]
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        open_ = getattr(self.channel, kind)(
            f"/{self._service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return open_(request, metadata=metadata, timeout=timeout)

    def request(self, name: str, /, **fields: Any) -> Any:
        """Make a request of a method; messages in it may be dictionaries."""
        return GetMessageClass(self._service.methods_by_name[name].input_type)(**fields)

    async def message(self, name: str, metadata: Metadata = (), /, **fields: Any) -> Any:
        """Call, with the metadata of a call; give the message."""
        try:
            return await self.open(name, self.request(name, **fields), metadata)
        except grpc.aio.AioRpcError as error:
            raise Failed(error) from None

    async def call(self, name: str, metadata: Metadata = (), /, **fields: Any) -> dict[str, Any]:
        """Call; give the message as a dictionary, without what is empty, bytes as base64."""
        return MessageToDict(await self.message(name, metadata, **fields), preserving_proto_field_name=True)


async def refused(client: Client, name: str, metadata: Metadata = (), /, **fields: Any) -> tuple[str, str]:
    """Call what is refused; give status and message."""
    try:
        answer = await client.call(name, metadata, **fields)
    except Failed as error:
        return error.code, error.text
    raise AssertionError(f"{name} was answered: {answer}")


@dataclass(frozen=True)
class Call:
    """A call and what it gives.

    Attributes:
        id: Says what is tested.
        method: Name of the RPC.
        fields: Of its request.
        answer: The fields of the reply, bytes in base64; or status and text of the failure.
        metadata: Of the call.
    """

    id: str
    method: str
    fields: Mapping[str, Any]
    answer: Mapping[str, object] | tuple[object, object] = field(default_factory=dict)
    metadata: Metadata = ()


def calls(*table: Call) -> pytest.MarkDecorator:
    """Run a test for each call."""
    return pytest.mark.parametrize("call", table, ids=[call.id for call in table])


async def check_call(called: Client, call: Call) -> None:
    """Make a call and compare."""
    try:
        answer: object = await called.call(call.method, call.metadata, **call.fields)
    except Failed as error:
        answer = error.code, error.text
    assert answer == call.answer


@dataclass(frozen=True)
class Both:
    """A request over HTTP and a call that fail alike: in text and details.

    Attributes:
        id: Says what is tested.
        request: Method, target, and then headers and body if there are any.
        method: Name of the RPC.
        fields: Of its request.
        code: Status of the call.
        status: That of HTTP.
    """

    id: str
    request: tuple[Any, ...]
    method: str
    fields: Mapping[str, Any]
    code: str
    status: int


def pairs(*table: Both) -> pytest.MarkDecorator:
    """Run a test for each pair."""
    return pytest.mark.parametrize("both", table, ids=[both.id for both in table])


async def check_both(node: Node, called: Client, both: Both) -> None:
    """Make both and compare."""
    reply = await node.request(*both.request)
    try:
        answer = await called.call(both.method, **both.fields)
    except Failed as error:
        failed = error
    else:
        raise AssertionError(f"{both.method} was answered: {answer}")
    assert (failed.code, failed.text, reply.status) == (both.code, reply.json["message"], both.status)
    told = [_without_empty(detail) for detail in reply.json.get("details", ())]
    assert failed.details == told


def _without_empty(detail: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in detail.items() if value}


@asynccontextmanager
async def client(node: Node, **options: Any) -> AsyncIterator[Client]:
    """Connect to a gateway."""
    target = f"127.0.0.1:{node.gateway.grpc_port}"
    async with grpc.aio.insecure_channel(target, options=list(options.items())) as channel:
        yield Client(channel)
