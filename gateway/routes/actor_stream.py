"""Actors whose application hosts them over a stream that it holds open here (``mesh/actors/stream.py``).

Source: Dapr 1.18, SubscribeActorEventsAlpha1.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, cast

import orjson

from gateway.errors import APIError, bad_request
from gateway.routes.rpc import RPC, Called, Stream
from gateway.status import HTTP_STATUS, Code
from mesh.actors.host import CANCEL_HEADER, ERROR_HEADER, Turn, TurnAnswer, TurnKind
from mesh.actors.settings import read_settings
from mesh.actors.stream import StreamHost
from mesh.blocks.actors import HOST
from mesh.tasks import task_group

__all__ = ["RPCS"]

logger = logging.getLogger(__name__)

BEGIN_SECONDS = 60.0
LEAVE_SECONDS = 2.0
CLOSE_SECONDS = 1.0
INITIAL = "initial_request"
FAILED = 500


async def host_actors(called: Called) -> None:
    """Hand the turns of actors to their host, who answers each."""
    client = cast("Stream", called.stream)
    messages = client.messages()
    try:
        async with asyncio.timeout(BEGIN_SECONDS):
            first = await anext(messages, None)
    except TimeoutError:
        text = f"the first message of the stream did not arrive within {BEGIN_SECONDS:g} s"
        raise APIError(408, "ERR_BODY_READ", text) from None
    if first is None or _kind(first) != INITIAL:
        raise bad_request(f"the first message of the stream must be its {INITIAL}")
    hosting = _Hosting(called, _host(called, first.initial_request))
    async with task_group() as tasks:
        reading = tasks.create_task(hosting.read(messages), name="actors-read")
        writing = tasks.create_task(hosting.write(), name="actors-write")
        running = tasks.create_task(hosting.run(), name="actors-run")
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:  # The client is gone: others take its actors before this ends.
            hosting.host.end()
            await asyncio.wait([running], timeout=LEAVE_SECONDS)
            raise
        hosting.host.end()
        reading.cancel()
        begun = hosting.host.begun.is_set()
        if begun:  # A message is not cut off in the middle, as far as the client reads.
            await asyncio.wait([writing], timeout=CLOSE_SECONDS)
        cut = writing.cancel() and begun
    if cut:  # A status behind half a message could not be read.
        await client.break_off()
        raise ConnectionError("the client did not read to the end")
    if hosting.problem is not None:
        raise hosting.problem


def _host(called: Called, initial: Any) -> StreamHost:
    from google.protobuf.json_format import MessageToDict  # It is there: a message came.

    settings, problems = read_settings(orjson.dumps(MessageToDict(initial)))
    for problem in problems:
        logger.warning("SubscribeActorEventsAlpha1: %s: %s", INITIAL, problem)

    def render(id_: str, turn: Turn) -> Any:
        field, make = REQUESTS[turn.kind]
        reply = called.reply()
        request = getattr(reply, field)
        request.id, request.actor_type, request.actor_id = id_, turn.type, turn.id
        make(request, turn)
        return reply

    return StreamHost(settings, render)


class _Hosting:
    """Both directions of a host's stream.

    Attributes:
        host: The host.
        problem: What was wrong with what the client sent, or else why the stream ends.
    """

    def __init__(self, called: Called, host: StreamHost) -> None:
        self.host = host
        self.problem: Exception | None = None
        self._called = called

    async def run(self) -> None:
        """Host until it ends."""
        try:
            await self._called.run(HOST, "", self.host)
        except Exception as error:  # noqa: BLE001 - raised once what was begun is written
            self.problem = self.problem or error

    async def write(self) -> None:
        """Send turns, behind what says that the types are hosted."""
        await self.host.begun.wait()
        client = cast("Stream", self._called.stream)
        with suppress(OSError):
            await client.send(self._called.reply(initial_response={}))
            async for turn in self.host.outgoing():
                await client.send(turn)
        self.host.end()

    async def read(self, messages: AsyncIterator[Any]) -> None:
        """Take answers; the end of them is that of the stream."""
        try:
            async for message in messages:
                kind = _kind(message)
                if kind == INITIAL:
                    raise bad_request(f"a stream has one {INITIAL}, at its beginning")
                if kind is not None:  # Of none nothing is known, and a later version may tell something new so.
                    said = getattr(message, kind)
                    self.host.answered(said.id, *ANSWERS[kind](said))
        except Exception as error:  # noqa: BLE001 - raised by whoever waits for the stream's end
            self.problem = error
        self.host.end()


def _kind(message: Any) -> str | None:
    return cast("str | None", message.WhichOneof("request_type"))


# What a turn is as a message.


def _headers(request: Any, turn: Turn) -> None:
    for name, value in turn.headers:
        request.metadata.setdefault(name, value.encode("utf-8", "replace").decode())


def _method(request: Any, turn: Turn) -> None:
    request.method, request.data = turn.name, turn.body
    _headers(request, turn)


def _reminder(request: Any, turn: Turn) -> None:
    _headers(request, turn)
    request.name, request.due_time, request.period = turn.name, turn.due_time, turn.period
    if turn.body:
        from google.protobuf.wrappers_pb2 import BytesValue

        request.data.Pack(BytesValue(value=turn.body))


def _timer(request: Any, turn: Turn) -> None:
    _reminder(request, turn)
    request.callback = turn.callback


def _nothing(request: Any, turn: Turn) -> None:
    """Say no more than which actor it is."""


REQUESTS: dict[TurnKind, tuple[str, Callable[[Any, Turn], None]]] = {
    TurnKind.METHOD: ("invoke_request", _method),
    TurnKind.REMINDER: ("reminder_request", _reminder),
    TurnKind.TIMER: ("timer_request", _timer),
    TurnKind.DEACTIVATION: ("deactivate_request", _nothing),
}


# What a message says of a turn.


def _invoked(said: Any) -> tuple[TurnKind, TurnAnswer]:
    headers = [(name, value) for name, value in said.metadata.items() if name.lower() != ERROR_HEADER]
    if said.error:
        headers.append((ERROR_HEADER, "true"))
    return TurnKind.METHOD, TurnAnswer(200, headers, said.data)


def _fired(kind: TurnKind) -> Callable[[Any], tuple[TurnKind, TurnAnswer]]:
    def fired(said: Any) -> tuple[TurnKind, TurnAnswer]:
        return kind, TurnAnswer(200, [(CANCEL_HEADER, "true")] if said.cancel else ())

    return fired


def _failed(said: Any) -> tuple[None, TurnAnswer]:
    """Give the status of HTTP; a failure with the status of success is one."""
    known = said.code in HTTP_STATUS and said.code != Code.OK
    return None, TurnAnswer(HTTP_STATUS[Code(said.code)] if known else FAILED, (), said.message.encode())


ANSWERS: dict[str, Callable[[Any], tuple[TurnKind | None, TurnAnswer]]] = {
    "invoke_response": _invoked,
    "reminder_response": _fired(TurnKind.REMINDER),
    "timer_response": _fired(TurnKind.TIMER),
    "deactivate_response": lambda said: (TurnKind.DEACTIVATION, TurnAnswer()),
    "request_failed": _failed,
}


RPCS = (RPC("SubscribeActorEventsAlpha1", host_actors, "actors"),)
