"""Actors whose application hosts them over a stream that it holds open here (``mesh/actors/stream.py``).

Source: Dapr 1.18, SubscribeActorEventsAlpha1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from gateway.routes.held_stream import INITIAL, HeldStream
from gateway.routes.rpc import RPC, Called
from gateway.status import HTTP_STATUS, Code
from mesh.actors.host import CANCEL_HEADER, ERROR_HEADER, Turn, TurnAnswer, TurnKind
from mesh.actors.settings import read_settings
from mesh.actors.stream import StreamHost
from mesh.blocks.actors import HOST

__all__ = ["RPCS"]

logger = logging.getLogger(__name__)

FAILED = 500


async def host_actors(called: Called) -> None:
    """Hand the turns of actors to their host, who answers each."""
    held = HeldStream(called, "request_type")
    host = _host(called, await held.initial())

    def take(kind: str, said: Any) -> None:
        host.answered(said.id, *ANSWERS[kind](said))

    await held.hold(host, partial(called.run, HOST, "", host), take)


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
