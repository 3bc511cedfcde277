"""An application on gRPC, in the process of the test: the official library, and messages of our descriptors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from gateway.grpc.messages import COMMON, message, service
from tests.support.recorder import Recorder

__all__ = ["Asked", "GRPCApp", "fail", "invoked"]

SERVICES = ("AppCallback", "AppCallbackAlpha", "AppCallbackHealthCheck")
Answer = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


@dataclass
class Asked:
    """A call as the application received it; of repeated metadata the last."""

    name: str
    message: Any
    metadata: dict[str, str | bytes]

    @property
    def path(self) -> str:
        return self.name


def fail(code: str, text: str = "", **trailing: bytes) -> Answer:
    """Answer with a status."""

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        named = tuple((name.replace("_", "-"), value) for name, value in trailing.items())
        await context.abort(getattr(grpc.StatusCode, code), text, named)

    return answer


def invoked(data: bytes = b"", content_type: str = "", **metadata: str) -> Answer:
    """Answer ``OnInvoke``."""

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await context.send_initial_metadata(tuple((name.replace("_", "-"), each) for name, each in metadata.items()))
        reply = message("InvokeResponse", COMMON)(content_type=content_type)
        reply.data.value = data
        return reply

    return answer


class GRPCApp(Recorder[Asked], grpc.GenericRpcHandler):
    """Records what it is asked, and answers as told; what it has no answer for is UNIMPLEMENTED."""

    def __init__(self, *subscriptions: dict[str, Any], credentials: grpc.ServerCredentials | None = None) -> None:
        super().__init__()
        self.port = 0
        self.answers: dict[str, Answer] = {}
        self._credentials = credentials
        self._server: grpc.aio.Server
        listed = message("ListTopicSubscriptionsResponse")(subscriptions=subscriptions)
        if subscriptions:
            self.always("ListTopicSubscriptions", listed)
        self.always("OnTopicEvent", message("TopicEventResponse")())

    def always(self, name: str, reply: Any) -> None:
        """Answer a method with one message."""

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            return reply

        self.answers[name] = answer

    def of(self, name: str) -> list[Asked]:
        return self.at(name)

    async def start(self) -> None:
        self._server = grpc.aio.server(handlers=[self], options=[("grpc.so_reuseport", 0)])
        address = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()

    async def stop(self, grace: float | None = None) -> None:
        await self._server.stop(grace)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = _method(details.method)
        if method is None or method.name not in self.answers:
            return None

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            self.got.append(Asked(method.name, request, dict(context.invocation_metadata() or ())))
            return await self.answers[method.name](request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, GetMessageClass(method.input_type).FromString, lambda reply: reply.SerializeToString()
        )


def _method(path: str) -> MethodDescriptor | None:
    _, of, name = path.split("/")
    for each in map(service, SERVICES):
        if each.full_name == of:
            return each.methods_by_name.get(name)
    return None
