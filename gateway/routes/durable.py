"""Durable invocation: ``mesh-delivery: durable`` on an invoke call, and ``mesh/invocations/{id}``."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime

from aiohttp import web

from gateway.errors import APIError
from gateway.http.response import Answered, json_response
from gateway.routes.request import header, read_body, unescape
from mesh.application import Headers
from mesh.blocks.durable import KEEP_SECONDS, DurableCall, DurableInvocation
from mesh.durations import parse_duration
from mesh.errors import MeshError

__all__ = ["DELIVERY_HEADER", "DurableRoutes"]

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
ACCEPT_SECONDS = 30.0
MAX_KEY_BYTES = 512
_ID = re.compile(r"[0-9a-f]{32}\Z")


class DurableRoutes:
    """Calls that the broker keeps."""

    def __init__(self, block: DurableInvocation) -> None:
        """Bind the block."""
        self._block = block

    async def accept(self, request: web.BaseRequest, app_id: str, target: str, headers: Headers) -> Answered:
        """Store a call; answer 202 with its id once the broker has it."""
        mode = header(request, DELIVERY_HEADER)
        if mode != "durable":
            raise _bad(DELIVERY_HEADER, f"must be 'durable', not {mode!r}")
        if "." in app_id or app_id.startswith("http"):
            raise _bad(DELIVERY_HEADER, "a durable call goes to an application of this namespace")
        key = next((value for name in KEY_HEADERS if (value := header(request, name))), None)
        if key is not None and len(key.encode("utf-8", "surrogateescape")) > MAX_KEY_BYTES:
            raise _bad(KEY_HEADERS[0], f"is longer than {MAX_KEY_BYTES} bytes")
        call = DurableCall(
            app_id,
            request.method,
            target,
            [(name, value) for name, value in headers if name.lower() not in OURS],
            await read_body(request),
            key=key,
            window=_seconds(request, WINDOW_HEADER, KEEP_SECONDS),
            delay=_seconds(request, DELAY_HEADER, 0.0),
            reply_topic=header(request, REPLY_HEADER) or None,
            dead_letter_topic=header(request, DEAD_LETTER_HEADER) or None,
        )
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                call_id = await self._block.accept(call)
        except TimeoutError:
            reason = f"no confirmation within {ACCEPT_SECONDS:g} s; whether it was stored is unknown"
            raise _failed(app_id, reason) from None
        except MeshError as error:
            raise _failed(app_id, str(error)) from error
        return json_response({"id": call_id}, 202)

    async def outcome(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Tell what came of a call."""
        call_id = unescape(segments[1])
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                record = await self._block.outcome(call_id) if _ID.match(call_id) else None
        except TimeoutError:
            raise APIError(500, "ERR_DURABLE_INVOKE", f"no answer within {ACCEPT_SECONDS:g} s") from None
        except MeshError as error:
            raise APIError(500, "ERR_DURABLE_INVOKE", str(error)) from error
        if record is None:
            raise APIError(404, "ERR_DURABLE_INVOKE_NOT_FOUND", f"no durable call {call_id} is known, or no longer")
        return json_response(record.described())


def _bad(name: str, reason: str) -> APIError:
    return APIError(400, "ERR_BAD_REQUEST", f"invalid request: header {name}: {reason}")


def _failed(app_id: str, reason: str) -> APIError:
    return APIError(500, "ERR_DURABLE_INVOKE", f"failed to store the call to {app_id}: {reason}")


def _seconds(request: web.BaseRequest, name: str, default: float) -> float:
    text = header(request, name)
    if not text:
        return default
    if text[:4].isdigit() and "T" in text:  # An instant.
        try:
            return max(0.0, datetime.fromisoformat(text).timestamp() - datetime.now().timestamp())
        except ValueError as error:
            raise _bad(name, str(error)) from None
    try:
        return float(text) if text.isascii() and text.isdigit() else parse_duration(text)
    except ValueError as error:
        raise _bad(name, str(error)) from None
