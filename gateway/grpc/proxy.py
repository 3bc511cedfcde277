"""Calls of an application's own gRPC services, passed on to the application that their metadata name.

They go as they are, messages are not looked into: a call is an invocation like any other, with trailers. What is whole
when it begins is sent whole, and policies may repeat it; anything else is a stream in both directions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import cast

from httpunk.exceptions import HTTPunkError
from httpunk.h2.server import ServerRequest

from gateway.errors import answer as told
from gateway.grpc.call import Call
from gateway.grpc.service import TARGETS
from gateway.grpc.wire import PREFIX_BYTES, StatusError, is_type, status_fields
from gateway.http2.fields import to_wire
from gateway.routes.route import API
from gateway.status import OF_STRANGERS, Code
from mesh.application import Headers
from mesh.blocks.invocation import INVOKE, Answer, forwardable
from mesh.blocks.invocation import Call as Invoked
from mesh.errors import MeshError
from mesh.operation import Context, Operation
from mesh.telemetry import trace_bin

__all__ = ["pass_on"]

WHOLE_BODY_BYTES = 128 * 1024
SILENT_SECONDS = 0.1  # Without a byte of the body.
FIRST_SECONDS = 60.0  # For the first message, once it has begun.
MOMENT_SECONDS = 0.02  # For the end behind it.
AGAIN_SECONDS = 0.02  # In a process that is busy the time may be over before what has come is read.
# A method may stream for as long as it likes, and send nothing at first. Whether both sides live is watched besides.
LONGEST_SECONDS = 24 * 3600.0
_SET_HERE = frozenset({"dapr-caller-app-id", "dapr-caller-namespace", "dapr-callee-app-id", "grpc-trace-bin"})
_TRACE = frozenset({"traceparent", "tracestate"})


async def pass_on(api: API, request: ServerRequest, call: Call) -> None:
    """Pass a call on, and its answer back.

    Raises:
        APIError: It failed.
        StatusError: What answers speaks no gRPC.
    """
    target = next(call.metadata[name] for name in TARGETS if call.metadata.get(name))
    headers, context = _headers(api, request, call, target)
    invoked = Invoked("POST", request.path or "", headers, await _body(request), grpc=True)
    try:
        async with cast("Answer", await api.run(Operation(INVOKE, target, invoked, context))) as answer:
            await _respond(call, answer)
    except MeshError as error:
        raise told(error, INVOKE, target, invoked, api.caller.app_id) from error


def _headers(api: API, request: ServerRequest, call: Call, target: str) -> tuple[Headers, Context]:
    span, state = call.trace.traceparent, call.trace.tracestate
    dropped = (_SET_HERE if span else _SET_HERE | _TRACE) | {"traceparent"}
    if not state:  # It may be about another trace.
        dropped |= {"tracestate"}
    given = forwardable(call.metadata.all(), binary=True)
    headers = [(name, value) for name, value in given if name not in dropped]
    headers += [
        ("te", "trailers"),
        ("dapr-caller-app-id", api.caller.app_id),
        ("dapr-caller-namespace", api.caller.namespace),
        ("dapr-callee-app-id", target.partition(".")[0]),
    ]
    if span:
        headers += [("traceparent", span), ("grpc-trace-bin", trace_bin(span))]
    until = time.time() + LONGEST_SECONDS if call.deadline is None else call.deadline
    return headers, Context(api.caller, until, *call.trace)


async def _body(request: ServerRequest) -> bytes | AsyncIterator[bytes]:
    """Take a short body as a whole, so that policies may repeat the call; anything else as a stream.

    Whether another message follows is told by nothing but what comes. So once the first one is here, its end may take a
    moment: some clients send it later. One that says nothing at first may be waiting for the other side to begin.
    """
    begun = bytearray()
    for seconds in (SILENT_SECONDS, AGAIN_SECONDS):
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds) as limit:
                if await _is_whole(request, begun, limit):
                    return bytes(begun)
                break
    return _streamed(begun, request.aiter_bytes())  # What was waited for comes to this one.


async def _is_whole(request: ServerRequest, begun: bytearray, limit: asyncio.Timeout) -> bool:
    """Read to the end, which is True; what is too long for that, or is announced so, is not read on."""
    loop = asyncio.get_running_loop()
    async for part in request.aiter_bytes():
        before = len(begun)
        begun += part
        first = PREFIX_BYTES + int.from_bytes(begun[1:PREFIX_BYTES], "big") if len(begun) >= PREFIX_BYTES else 0
        if max(len(begun), first) > WHOLE_BODY_BYTES:
            return False
        if before < first <= len(begun):
            limit.reschedule(loop.time() + MOMENT_SECONDS)
        elif begun and not before:
            limit.reschedule(loop.time() + FIRST_SECONDS)
    return True


async def _streamed(begun: bytearray, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if begun:
        yield bytes(begun)
        begun.clear()
    try:
        async for part in rest:
            yield part
    except HTTPunkError:
        raise ConnectionError("the client is gone") from None  # Not as what ends a client's own upload.


async def _respond(call: Call, answer: Answer) -> None:
    kind = next((value for name, value in answer.headers if name.lower() == "content-type"), "none")
    if answer.status != 200 or not is_type(kind):
        text = f"the application does not speak gRPC: it answered {answer.status} with the content type {kind[:80]}"
        raise StatusError(OF_STRANGERS.get(answer.status, Code.UNKNOWN), text)
    headers = to_wire(forwardable(answer.headers, binary=True))
    if answer.body == b"" and not answer.trailers and answer.grpc_status is not None:
        await call.begin(headers, ends=True)
        return
    await call.begin(headers)
    if answer.body is None:
        async for part in answer.parts():
            await call.write(part)
    elif answer.body:
        await call.write(answer.body)
    trailers = list(answer.trailers)
    if not any(name == "grpc-status" for name, _ in trailers):
        trailers += status_fields(Code.UNKNOWN, "the answer has no grpc-status")
    await call.finish(to_wire(trailers))
