"""A client of gRPC for a gateway in the process of the test: the official library, and messages of our descriptors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass

from gateway.grpc.messages import service
from tests.http.harness import Node
from tests.support.eventually import PATIENCE

__all__ = ["Client", "Failed", "client", "refused"]

Metadata = Sequence[tuple[str, str | bytes]]


class Failed(Exception):
    """A call ended with another status than OK: its name, its message, and its trailers."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code: str = error.code().name
        self.text = error.details() or ""
        self.trailers = dict(error.trailing_metadata() or ())


class Client:
    """Calls methods of ``dapr.proto.runtime.v1.Dapr`` by name."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._service = service("Dapr")

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

    def request(self, name: str, **fields: Any) -> Any:
        """Make a request of a method; messages in it may be dictionaries."""
        return GetMessageClass(self._service.methods_by_name[name].input_type)(**fields)

    async def message(self, name: str, metadata: Metadata = (), **fields: Any) -> Any:
        """Call; give the message."""
        try:
            return await self.open(name, self.request(name, **fields), metadata)
        except grpc.aio.AioRpcError as error:
            raise Failed(error) from None

    async def call(self, name: str, metadata: Metadata = (), **fields: Any) -> dict[str, Any]:
        """Call; give the message as a dictionary, without what is empty, bytes as base64."""
        return MessageToDict(await self.message(name, metadata, **fields), preserving_proto_field_name=True)


async def refused(client: Client, name: str, metadata: Metadata = (), **fields: Any) -> tuple[str, str]:
    """Call what is refused; give status and message."""
    try:
        answer = await client.call(name, metadata, **fields)
    except Failed as error:
        return error.code, error.text
    raise AssertionError(f"{name} was answered: {answer}")


@asynccontextmanager
async def client(node: Node, **options: Any) -> AsyncIterator[Client]:
    """Connect to a gateway."""
    target = f"127.0.0.1:{node.gateway.grpc_port}"
    async with grpc.aio.insecure_channel(target, options=list(options.items())) as channel:
        yield Client(channel)
