"""What came of a durable call, on its way to who called: to a topic, or to the caller's cluster."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import cast

import msgspec

from mesh.application import Headers
from mesh.blocks.durable_record import ID_HEADER, Record, State
from mesh.blocks.invocation import HTTP_HEADER, Asked
from mesh.blocks.topics import PUBLISH, Publish
from mesh.broker import Delivery, Message
from mesh.clusters import CALLED_HEADER
from mesh.errors import BadArgumentError, MeshError
from mesh.event import required_headers
from mesh.operation import Caller, Context, Operation
from mesh.packing import Packed
from mesh.pipeline import Handler
from mesh.telemetry import BAGGAGE

__all__ = [
    "DEAD_LETTER_HEADER",
    "OUTCOME_HEADER",
    "REPLY_HEADER",
    "Sent",
    "asked_of",
    "going_back",
    "of_call",
    "publish_outcome",
    "queue_of",
    "split_topic",
]

logger = logging.getLogger(__name__)

REPLY_HEADER = "mesh-reply-topic"
DEAD_LETTER_HEADER = "mesh-dead-letter-topic"
OUTCOME_HEADER = "mesh-outcome"
DEFAULT_PUBSUB = "pubsub"
_ASKED = Packed(Asked, "durable call")


async def publish_outcome(
    run: Handler, caller: Caller, delivery: Delivery, topic: str, event_id: str, body: bytes
) -> None:
    """Publish what came of a call, in its caller's name; what can never be published is logged.

    Args:
        run: The pipeline.
        caller: Whose call it was.
        delivery: Of the call, or of its outcome.
        topic: Where to; see `split_topic`.
        event_id: Of the event.
        body: JSON.

    Raises:
        MeshError: It may succeed later.
    """
    try:
        component, name = split_topic(topic)
        asked = Publish(name, body, "application/json", {"cloudevent.id": event_id})
        await run(Operation(PUBLISH, component, asked, Context(caller, None, *trace_of(delivery))))
    except MeshError as error:
        if error.retryable:
            raise
        logger.warning("the outcome of call %s is not published to %s: %s", event_id, topic, error)


def queue_of(cluster: str) -> str:
    """Name the topic of calls, and of outcomes, that go to another cluster; no app id begins so."""
    return f"@{cluster}"


def split_topic(where: str) -> tuple[str, str]:
    """Read ``topic`` or ``component/topic``.

    Raises:
        BadArgumentError: The topic is empty.
    """
    component, slash, topic = where.partition("/")
    if not slash:
        component, topic = DEFAULT_PUBSUB, where
    if not component or not topic:
        raise BadArgumentError(f"{where!r} must be a topic, or a pub/sub component and a topic: component/topic")
    return component, topic


def trace_of(delivery: Delivery) -> tuple[str | None, str, str]:
    """Give the trace context of a call, in which its outcome is published."""
    _, _, given = asked_of(delivery.message.headers)
    fields = {name.lower(): value for name, value in given}
    return fields.get("traceparent"), fields.get("tracestate", ""), fields.get(BAGGAGE, "")


def asked_of(headers: Mapping[str, str]) -> tuple[str, str, Headers]:
    """Read verb, target and headers of a call; raises ``EventError``, whatever was stored."""
    return cast("Asked", _ASKED.read(headers.get(HTTP_HEADER)))


class Sent(msgspec.Struct, frozen=True, array_like=True):
    """An outcome on its way to the caller's cluster.

    Attributes:
        record: The encoded record.
        body: Of the call, if that goes to a dead letter topic with it.
    """

    record: bytes
    body: bytes = b""


def of_call(headers: Mapping[str, str]) -> dict[str, str]:
    """Give what the next one on the way of a call, or of its outcome, has to know of it."""
    names = (HTTP_HEADER, CALLED_HEADER, REPLY_HEADER, DEAD_LETTER_HEADER)
    return {name: headers[name] for name in names if name in headers}


def going_back(call: Message, record: Record) -> Message:
    """Make what tells the caller's cluster of an outcome."""
    identity = f"{record.id}-outcome"
    headers = required_headers(identity, record.app_id, "mesh.invocation.outcome") | of_call(call.headers)
    headers |= {ID_HEADER: record.id, OUTCOME_HEADER: "1"}
    dead = record.state is State.FAILED and DEAD_LETTER_HEADER in headers
    body = msgspec.msgpack.encode(Sent(record.encode(), call.body if dead else b""))
    return Message(headers, body, id=identity)
