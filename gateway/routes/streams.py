"""The events of a topic for a client that holds a stream open (``mesh/blocks/event_stream.py``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, cast

from gateway.errors import APIError, bad_request
from gateway.routes.pubsub import check_topic, find_pubsub
from gateway.routes.rpc import RPC, Called, Stream
from mesh.blocks.event_stream import SUBSCRIBE_STREAM, EventStream, SubscribeStream
from mesh.tasks import task_group

__all__ = ["RPCS"]

BEGIN_SECONDS = 60.0
LEAVE_SECONDS = 2.0
CLOSE_SECONDS = 1.0
INITIAL = "initial_request"
ANSWERS = {0: b"", 2: b'{"status":"DROP"}'}  # By TopicEventResponseStatus; every other one is RETRY.
RETRY = b'{"status":"RETRY"}'


async def subscribe_topic(called: Called) -> None:
    """Hand a topic's events to the client, who answers each."""
    messages = cast("Stream", called.stream).messages()
    try:
        async with asyncio.timeout(BEGIN_SECONDS):
            first = await anext(messages, None)
    except TimeoutError:
        text = f"the first message of the stream did not arrive within {BEGIN_SECONDS:g} s"
        raise APIError(408, "ERR_BODY_READ", text) from None
    if first is None or _kind(first) != INITIAL:
        raise bad_request(f"the first message of the stream must be its {INITIAL}")
    name, asked = await _topic(called, first.initial_request)
    async with task_group() as tasks:
        handing = _Handing(called, asked.stream)
        reading = tasks.create_task(handing.read(messages), name="stream-read")
        writing = tasks.create_task(handing.write(), name="stream-write")
        running = tasks.create_task(handing.run(name, asked), name="stream-run")
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:  # The client is gone: what it had is given back before this ends.
            asked.stream.end()
            await asyncio.wait([running], timeout=LEAVE_SECONDS)
            raise
        asked.stream.end()
        reading.cancel()
        begun = asked.stream.begun.is_set()
        if begun:  # A message is not cut off in the middle, as far as the client reads.
            await asyncio.wait([writing], timeout=CLOSE_SECONDS)
        cut = writing.cancel() and begun
    if cut:  # A status behind half a message could not be read.
        await cast("Stream", called.stream).break_off()
        raise ConnectionError("the client did not read to the end")
    if handing.problem is not None:
        raise handing.problem


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


class _Handing:
    """Both directions of a client's stream.

    Attributes:
        problem: What was wrong with what the client sent, or else why the stream ends.
    """

    def __init__(self, called: Called, stream: EventStream) -> None:
        self._called, self._stream = called, stream
        self.problem: Exception | None = None

    async def run(self, name: str, asked: SubscribeStream) -> None:
        """Subscribe until it ends."""
        try:
            await self._called.run(SUBSCRIBE_STREAM, name, asked)
        except Exception as error:  # noqa: BLE001 - raised once what was begun is written
            self.problem = error

    async def write(self) -> None:
        """Send events, behind what says that it is subscribed."""
        await self._stream.begun.wait()
        client = cast("Stream", self._called.stream)
        with suppress(OSError):
            await client.send(self._called.reply(initial_response={}))
            async for event in self._stream.outgoing():
                await client.send(event)
        self._stream.end()

    async def read(self, messages: AsyncIterator[Any]) -> None:
        """Take answers; the end of them is that of the stream."""
        try:
            async for message in messages:
                kind = _kind(message)
                if kind == INITIAL:
                    raise bad_request(f"a stream has one {INITIAL}, at its beginning")
                if kind is not None:  # Of none nothing is known, and a later version may tell something new so.
                    said = message.event_processed
                    self._stream.processed(said.id, ANSWERS.get(said.status.status, RETRY))
        except Exception as error:  # noqa: BLE001 - raised by whoever waits for the stream's end
            self.problem = error
        self._stream.end()


def _kind(message: Any) -> str | None:
    return cast("str | None", message.WhichOneof("subscribe_topic_events_request_type"))


RPCS = (RPC("SubscribeTopicEventsAlpha1", subscribe_topic, "subscribe"),)
