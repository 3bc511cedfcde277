"""An application on gRPC that records the events that reach it: their data, ``{"id": …}``, under their topic's name."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict

from gateway.grpc.messages import message
from tests.support.grpc_serving import serve

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


def answering(method: Callable[[bytes, grpc.aio.ServicerContext], Awaitable[Any]]) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(method, response_serializer=lambda reply: reply.SerializeToString())


if __name__ == "__main__":
    serve({SERVICE + name: answering(method) for name, method in METHODS.items()})
