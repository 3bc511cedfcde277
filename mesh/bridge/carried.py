"""Calls of one side to applications of the other.

A bridge answers for all applications of a cluster at one address, calls the one that is meant on the other side, and
passes the answer back as it comes: bodies in parts, under the credit of whoever reads them. The caller's deadline is
absolute, and goes along. Who has called is named with its cluster, and goes over no second bridge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import unquote

from mesh import address
from mesh.access import naming
from mesh.application import Headers
from mesh.blocks.invocation import ASKED, HTTP_HEADER, INVOKE, Answer, Call, packed_trailers, refuse
from mesh.bridge.routes import Routes
from mesh.bridge.side import Side
from mesh.calls.exchange import Request
from mesh.calls.request import WATCHED_HEADER
from mesh.clusters import CALLED_HEADER, Target, at_cluster, cluster_of, target_of
from mesh.errors import (
    BadArgumentError,
    DeadlineExceededError,
    EventError,
    MeshError,
    PermissionDeniedError,
    UnprovenError,
)
from mesh.operation import Caller, Context, Operation
from mesh.packing import pack
from mesh.telemetry import OK, trace_header

__all__ = ["Carried", "check_called", "passing_on"]

CALLEE = "dapr-callee-app-id"


class Carried:
    """Carries calls from one side to the other."""

    def __init__(self, here: Side, there: Side, routes: Callable[[], Routes]) -> None:
        """Prepare.

        Args:
            here: Where callers are.
            there: Where the applications are.
            routes: Says which of them may be called.
        """
        self._here, self._there, self._routes = here, there, routes

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Take calls while entered; leaving waits for those in flight."""
        here, where = self._here, address.bridge(self._here.namespace, self._there.cluster)
        async with here.parts.exchange.serve(where, here.app_id, self._handle):
            here.parts.directory.host(here.app_id, ready=True)
            yield

    async def _handle(self, request: Request) -> None:
        here, there = self._here, self._there
        called = unquote(request.headers.get(CALLED_HEADER, ""))
        try:
            source = unquote(request.headers.get("ce-source", ""))
            request.check_caller(source)
            if (who := request.caller) is not None and who.namespace != here.namespace:
                raise UnprovenError(f"{who} is not in {here.namespace}, the namespace whose calls this bridge carries")
            verb, path, headers = ASKED.read(request.headers.get(HTTP_HEADER))
            target = check_called(called, source, here, there, self._routes())
        except (BadArgumentError, EventError, PermissionDeniedError, UnprovenError) as error:
            here.count("call", there.cluster, called, error.code)
            await refuse(request, error)
            return
        caller = Caller(here.namespace, at_cluster(source, here.cluster))
        passed = passing_on(headers, caller, target)
        call = Call(verb, path, passed, self._body(request), grpc=WATCHED_HEADER in request.headers)
        name = f"{target.app_id}.{target.namespace}" if target.namespace else target.app_id
        operation = Operation(INVOKE, name, call, Context(caller, request.deadline, trace_header(headers)))
        try:
            answer = cast("Answer", await there.runtime.run(operation))
        except DeadlineExceededError as error:
            here.count("call", there.cluster, called, error.code)
            return  # The caller has stopped waiting by the same deadline.
        except MeshError as error:
            here.count("call", there.cluster, called, error.code)
            await refuse(request, error)
            return
        here.count("call", there.cluster, called, OK)
        async with answer:
            await _relay(request, answer)

    def _body(self, request: Request) -> bytes | AsyncIterator[bytes]:
        """Give the body as it came; in parts also if the other backbone carries no whole one of this size."""
        if not request.streamed and len(request.body) <= self._there.parts.exchange.part_bytes:
            return request.body
        return request.parts()


def check_called(called: str, source: str, here: Side, there: Side, routes: Routes) -> Target:
    """Give who is called, if the bridge carries that.

    Args:
        called: As the caller named it.
        source: The caller.
        here: Its side.
        there: The other one.
        routes: What is carried.

    Raises:
        BadArgumentError: It is none of the other side, or the caller is none of this one.
        PermissionDeniedError: No list has it.
    """
    target = target_of(called)
    if target.cluster != there.cluster:
        raise BadArgumentError(f"{called} is not in {there.cluster}, where this bridge leads")
    if cluster_of(source):
        raise BadArgumentError(f"{source} calls over a bridge already, and a call goes over one")
    if not routes.may_call(target, there.namespace):
        text = f"the bridge from {here.cluster} carries no calls to {called}; its list of apps would name it"
        raise PermissionDeniedError(text)
    return target


def passing_on(headers: Headers, caller: Caller, target: Target) -> Headers:
    """Give header fields of a call as the other side may believe them."""
    kept = [each for each in naming(headers, caller) if each[0].lower() != CALLEE]
    return [*kept, (CALLEE, target.app_id)]


async def _relay(request: Request, answer: Answer) -> None:
    """Pass an answer back as it comes."""
    head = {HTTP_HEADER: pack(answer.status, answer.headers)}
    if answer.body is not None:
        await request.reply(head, answer.body, packed_trailers(answer))
        return
    await request.begin(head)
    async for part in answer.parts():
        await request.write(part)
    await request.end(packed_trailers(answer))
