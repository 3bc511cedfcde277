"""An application on gRPC that records the events that reach it: their data, ``{"id": …}``, under their topic's name."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import grpc
import grpc.aio
import uvloop
from google.protobuf.json_format import ParseDict

from gateway.grpc.messages import message

RECORDS = os.open(os.environ["APP_RECORDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
SUBSCRIPTIONS = json.loads(os.environ.get("APP_SUBSCRIPTIONS", "[]"))
SERVICE = "/dapr.proto.runtime.v1.AppCallback/"


async def subscriptions(request: bytes, context: grpc.aio.ServicerContext) -> Any:
    listed = [
        {"pubsubName": each["pubsubname"], "topic": each["topic"], "deadLetterTopic": each.get("deadLetterTopic", "")}
        for each in SUBSCRIPTIONS
    ]
    return ParseDict({"subscriptions": listed}, message("ListTopicSubscriptionsResponse")())


async def event(request: bytes, context: grpc.aio.ServicerContext) -> Any:
    told = message("TopicEventRequest").FromString(request)
    os.write(RECORDS, f"{told.topic} {json.loads(told.data)['id']} {os.getpid()}\n".encode())
    return message("TopicEventResponse")()


METHODS = {"ListTopicSubscriptions": subscriptions, "OnTopicEvent": event}


class Handler(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = METHODS.get(details.method.removeprefix(SERVICE))
        return method and grpc.unary_unary_rpc_method_handler(
            method, response_serializer=lambda reply: reply.SerializeToString()
        )


async def main() -> None:
    server = grpc.aio.server(handlers=[Handler()], options=[("grpc.so_reuseport", 0)])
    assert server.add_insecure_port(f"127.0.0.1:{os.environ['APP_PORT']}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
