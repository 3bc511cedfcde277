"""The events of a topic for a client that holds a stream open (``mesh/blocks/event_stream.py``)."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from gateway.routes.held_stream import HeldStream
from gateway.routes.pubsub import check_topic, find_pubsub
from gateway.routes.rpc import RPC, Called, Stream
from mesh.blocks.event_stream import SUBSCRIBE_STREAM, EventStream, SubscribeStream

__all__ = ["RPCS"]

ANSWERS = {0: b"", 2: b'{"status":"DROP"}'}  # By TopicEventResponseStatus; every other one is RETRY.
RETRY = b'{"status":"RETRY"}'


async def subscribe_topic(called: Called) -> None:
    """Hand a topic's events to the client, who answers each."""
    held = HeldStream(called, "subscribe_topic_events_request_type")
    name, asked = await _topic(called, await held.initial())

    def take(kind: str, said: Any) -> None:
        asked.stream.processed(said.id, ANSWERS.get(said.status.status, RETRY))

    await held.hold(asked.stream, partial(called.run, SUBSCRIBE_STREAM, name, asked), take)


async def _topic(called: Called, initial: Any) -> tuple[str, SubscribeStream]:
    """Give component and topic, and what takes the events."""
    name = initial.pubsub_name
    await find_pubsub(called, name)
    check_topic(name, initial.topic)
    client = cast("Stream", called.stream)

    def render(path: str, body: bytes, proven: str | None) -> tuple[str, Any]:
        handed = client.event(body, path, proven, lambda event: called.reply(event_message=event))
        return handed.event_message.id, handed

    metadata, dead_letter_topic = dict(initial.metadata), initial.dead_letter_topic or None
    return name, SubscribeStream(initial.topic, EventStream(render), metadata, dead_letter_topic)


RPCS = (RPC("SubscribeTopicEventsAlpha1", subscribe_topic, "subscribe"),)
