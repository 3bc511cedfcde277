"""Durable invocation: ``mesh-delivery: durable`` on an invoke call, and ``mesh/invocations/{id}``."""

from __future__ import annotations

import re
import time
from typing import cast

from aiohttp import web

from gateway.errors import APIError
from gateway.http.response import Answered, json_response
from gateway.routes.request import header, read_body
from gateway.routes.route import Asked, Route
from mesh.application import Headers
from mesh.blocks.durable import ACCEPT, OUTCOME, DurableCall
from mesh.blocks.durable_record import KEEP_SECONDS, Record
from mesh.values import parse_duration, parse_instant

__all__ = ["DELIVERY_HEADER", "ROUTES", "accept"]

DELIVERY_HEADER = "mesh-delivery"
KEY_HEADERS = ("mesh-idempotency-key", "Idempotency-Key")
WINDOW_HEADER = "mesh-idempotency-window"
DELAY_HEADER = "mesh-delay"
REPLY_HEADER = "mesh-reply-topic"
DEAD_LETTER_HEADER = "mesh-dead-letter-topic"
OURS = frozenset(
    name.lower()
    for name in (DELIVERY_HEADER, *KEY_HEADERS, WINDOW_HEADER, DELAY_HEADER, REPLY_HEADER, DEAD_LETTER_HEADER)
)
_ID = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{16})?\Z")  # The shorter one is of earlier versions.


async def accept(asked: Asked, app_id: str, target: str, headers: Headers) -> Answered:
    """Store a call; answer 202 with its id once the broker has it."""
    request = asked.request
    mode = header(request, DELIVERY_HEADER)
    if mode != "durable":
        raise _bad(DELIVERY_HEADER, f"must be 'durable', not {mode!r}")
    call = DurableCall(
        request.method,
        target,
        [(name, value) for name, value in headers if name.lower() not in OURS],
        await read_body(request),
        key=next((value for name in KEY_HEADERS if (value := header(request, name))), None),
        window=_seconds(request, WINDOW_HEADER, KEEP_SECONDS),
        delay=_seconds(request, DELAY_HEADER, 0.0),
        reply_topic=header(request, REPLY_HEADER) or None,
        dead_letter_topic=header(request, DEAD_LETTER_HEADER) or None,
    )
    return json_response({"id": await asked.run(ACCEPT, app_id, call)}, 202)


async def outcome(asked: Asked) -> Answered:
    """Tell what came of a call."""
    call_id = asked.text(0)
    record = cast("Record | None", await asked.run(OUTCOME, call_id, None)) if _ID.match(call_id) else None
    if record is None:
        raise APIError(404, "ERR_DURABLE_INVOKE_NOT_FOUND", f"no durable call {call_id} is known, or no longer")
    return json_response(record.described())


def _bad(name: str, reason: str) -> APIError:
    return APIError(400, "ERR_BAD_REQUEST", f"invalid request: header {name}: {reason}")


def _seconds(request: web.BaseRequest, name: str, default: float) -> float:
    text = header(request, name)
    if not text:
        return default
    try:
        if text[:4].isdigit() and "T" in text:
            return max(0.0, parse_instant(text) - time.time())
        return parse_duration(text, bare="s")
    except ValueError as error:
        raise _bad(name, str(error)) from None


ROUTES = (Route("mesh/invocations/{id}", outcome, frozenset({"GET"})),)
