"""Service invocation: an HTTP call to an application, wherever on the mesh it is.

The call travels as a request to the application's address, so there is nothing to discover. Verb,
target and headers stand in the header ``mesh-http`` as JSON, the body is the body; trailers of an answer
come with its end. A call of gRPC is one of HTTP, too, and lasts as long as both sides live. An application
that is restarting is waited for: one that was seen within the last minute, at most until the
caller's deadline. One that was not fails at once. The backbone's connection is waited for likewise.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, Self, cast
from urllib.parse import unquote

import msgspec

from mesh import address, telemetry
from mesh.access import naming, sender
from mesh.application import Application, AppResponse, Headers
from mesh.blocks.answering import note_status, served
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.broker import Message
from mesh.calls.exchange import Reply, Request
from mesh.calls.request import NOTHING, WATCHED_HEADER
from mesh.clusters import CALLED_HEADER, Target, bridge_of, cluster_of, target_of
from mesh.conditions import Condition
from mesh.deadlines import NO_ANSWER, Deadlines
from mesh.error_wire import read_error, to_wire
from mesh.errors import (
    AppAwayError,
    AppFailedError,
    AppUnreachableError,
    BadArgumentError,
    BrokerUnavailableError,
    DeadlineExceededError,
    EventError,
    MeshError,
    NoResponderError,
    NotSpokenError,
    PermissionDeniedError,
    StreamBrokenError,
    UnprovenError,
)
from mesh.event import encode_header_value, required_headers
from mesh.fields import CONNECTION_FIELDS
from mesh.middleware import MiddlewareError
from mesh.operation import Arrival, Caller, Method, Operation
from mesh.packing import Packed, pack
from mesh.passing import Passing, arrives
from mesh.pipeline import InboundHandler
from mesh.policies import Verdict
from mesh.telemetry import UNTOLD

__all__ = [
    "ASKED",
    "BLOCK",
    "HTTP_HEADER",
    "INVOKE",
    "OUTSIDE",
    "Answer",
    "Answered",
    "Asked",
    "Call",
    "Invocation",
    "forwardable",
    "packed_trailers",
    "refuse",
]

HTTP_HEADER = "mesh-http"
TRAILERS_HEADER = "mesh-trailers"
ERROR_HEADER = "mesh-error"
OUTSIDE = ("http://", "https://")
Fields = list[tuple[str, str]]
Asked = tuple[str, str, Fields]
Answered = tuple[Annotated[int, msgspec.Meta(ge=200, le=999)], Fields]  # Below, it would be followed by the answer.
ASKED = Packed(Asked, "request")
_ANSWERED = Packed(Answered, "answer to a call")
_TRAILERS = Packed(tuple[Fields], "trailers of an answer")
OK = 200
# Unknown, DeadlineExceeded, Internal, Unavailable, DataLoss: the application does not work. Any other is an answer.
GRPC_FAILURES = frozenset({2, 4, 13, 14, 15})
NO_GRPC = "the application is not spoken to by gRPC; --app-protocol grpc or h2c of its gateway says that it takes it"
NOT_OUTSIDE = "services outside of the mesh are not called by gRPC through the gateway; connect to the service itself"
MAX_JUDGED_BYTES = 256 * 1024
ABSENT_WAITS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
TOLD_WAIT = 0.5  # One instance takes over from another within less.
AWAY = "no instance is there, and one was within the last minute"
HOP_BY_HOP = CONNECTION_FIELDS | {"proxy-authorization", "proxy-authenticate", "dapr-app-id", "destination-app-id"}


def forwardable(headers: Iterable[tuple[str, str]], *, binary: bool = False) -> list[tuple[str, str]]:
    """Leave out what concerns one connection only; and binary fields, which are gRPC's, unless it is that."""
    headers = list(headers)
    dropped = HOP_BY_HOP
    for name, value in headers:
        if name.lower() == "connection":
            dropped = dropped | {item.strip().lower() for item in value.split(",")}
    return [
        (name, value)
        for name, value in headers
        if (lowered := name.lower()) not in dropped and (binary or lowered[-4:] != "-bin")
    ]


class Call(msgspec.Struct, frozen=True):
    """What the application is asked.

    Attributes:
        verb: The HTTP method.
        target: Path and raw query, with a leading slash.
        headers: Forwardable ones.
        body: The bytes, or a stream.
        grpc: Whether it is one of gRPC: it goes to applications only, and its answer may begin late.
    """

    verb: str
    target: str
    headers: Headers
    body: bytes | AsyncIterator[bytes]
    grpc: bool = False


class Answer:
    """What the application answered: read ``body``, or iterate over ``parts`` when it is None.

    Use it as a context manager: leaving lets go of what has not been read.
    """

    __slots__ = ("_source", "_stack", "body", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Headers,
        body: bytes | None,
        source: AppResponse | Reply | None = None,
        stack: AsyncExitStack | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self._source = source
        self._stack = stack

    def parts(self) -> AsyncIterator[bytes]:
        """Iterate over a streamed body."""
        assert self._source is not None
        return self._source.parts()

    @property
    def trailers(self) -> Headers:
        """What came behind the body, once that was read."""
        if not isinstance(self._source, Reply):
            return () if self._source is None else self._source.trailers
        packed = self._source.last.get(TRAILERS_HEADER)
        return () if packed is None else _TRAILERS.read(packed)[0]

    @property
    def grpc_status(self) -> int | None:
        """The status that stands in it so far: of one without a body, and of one that is here as a whole."""
        told = self.headers if self.body is None else (*self.headers, *self.trailers)
        text = next((value for name, value in told if name == "grpc-status"), "")
        return int(text) if text.isascii() and text.isdigit() else None

    async def aclose(self) -> None:
        """Give up what has not been read."""
        await self.__aexit__()

    async def __aenter__(self) -> Self:
        """Be read."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Give up what has not been read."""
        if self._stack is not None:
            await self._stack.__aexit__(*(exc_info or (None, None, None)))  # type: ignore[arg-type]
        elif isinstance(self._source, Reply):
            await self._source.aclose()


def _judge(operation: Operation, answer: object, error: MeshError | None) -> Verdict:
    """An application that fails, or cannot be called, does not work; a streamed body cannot be sent again.

    What is refused on the way to it says nothing of it.
    """
    call = cast("Call", operation.arguments)
    again = isinstance(call.body, bytes)
    if error is not None:
        said = isinstance(error, (PermissionDeniedError, BadArgumentError, MiddlewareError))
        return Verdict(said, again and error.retryable)
    status = cast("Answer", answer).status
    if call.grpc and status == OK:
        told = cast("Answer", answer).grpc_status or 0  # A stream that has begun works.
        return Verdict(told not in GRPC_FAILURES, again and told > 0, told)
    return Verdict(status < 500, again and status >= 400, status)


def _status(_: object, answer: Answer | AppResponse | None) -> tuple[str, ...]:
    return ("" if answer is None else str(answer.status),)


def _caller_and_status(arrival: Arrival, answer: AppResponse | None) -> tuple[str, ...]:
    return arrival.headers.get("ce-source", ""), "" if answer is None else str(answer.status)


def _path(call: Call) -> str:
    return call.target.partition("?")[0]


INVOKE = Method(
    "invocation", "invoke", Call, Answer, seconds=60.0, judge=_judge, grace=0.5, told=_status, endpoint=_path
)


class Invocation:
    """The building block."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Use an entered exchange."""
        self._parts = parts
        self._exchange = parts.exchange
        self._directory = parts.directory
        self._app_id = parts.caller.app_id
        self._namespace = parts.caller.namespace
        self._numbers = itertools.count(1)
        self._deadlines = Deadlines()
        self._deliver = parts.inbound.towards(_begin, "call", self._app_id, told=_caller_and_status)

    def described(self) -> Mapping[str, object]:
        """Tell of the services outside of the mesh that have a name."""
        return {"endpoints": tuple(self._parts.endpoints)}

    async def run(self, operation: Operation) -> Answer:
        """Call an application.

        The target is ``id``, ``id.namespace``, either with ``@cluster`` behind it, the name of an HTTPEndpoint, or a
        service's absolute URL.

        Raises:
            BadArgumentError: It is none of these.
            NoResponderError: It is not on the mesh.
            AppUnreachableError, AppFailedError: It broke off, or is an endpoint that is not there.
            BrokerUnavailableError: There was no connection to the backbone until the deadline.
            DeadlineExceededError: No answer in time, or it did not come back in time.
        """
        call, target = cast("Call", operation.arguments), operation.target
        if call.grpc and (target.startswith(OUTSIDE) or target in self._parts.endpoints):
            raise BadArgumentError(NOT_OUTSIDE)
        if target.startswith(OUTSIDE):
            if self._parts.open_outside is None:
                raise BadArgumentError("services outside of the mesh are not called")
            return await self._directly(operation, opening=self._parts.open_outside(target))
        if (application := self._parts.endpoints.get(target)) is not None:
            return await self._directly(operation, application)
        asked = target_of(target)
        own = (self._app_id, "", ""), (self._app_id, self._namespace, "")
        if asked in own and self._parts.application is not None:
            if call.grpc and not self._parts.application.takes_grpc:
                raise NotSpokenError(NO_GRPC)
            return await self._directly(operation, self._parts.application, self._deliver)
        reply = await self._request(asked, call, operation)
        problem = reply.headers.get(ERROR_HEADER)
        if problem is not None:
            raise read_error(problem)
        try:
            status, headers = _ANSWERED.read(reply.headers.get(HTTP_HEADER))
        except EventError:
            await reply.aclose()
            raise
        return Answer(status, headers, None if reply.streamed else reply.body, reply)

    async def _request(self, asked: Target, call: Call, operation: Operation) -> Reply:
        deadline = operation.deadline
        namespace, app_id, what = asked.namespace or self._namespace, asked.app_id, f"instance of {asked.app_id}"
        headers = self._headers(operation.context.caller) | {HTTP_HEADER: pack(call.verb, call.target, call.headers)}
        if asked.cluster:
            headers[CALLED_HEADER] = encode_header_value(operation.target)
            namespace, app_id, what = self._namespace, bridge_of(asked.cluster), f"bridge to {asked.cluster}"
            where = address.bridge(namespace, asked.cluster)
        else:
            where = address.app(namespace, app_id)
        whole = isinstance(call.body, bytes)
        message = Message(headers, cast("bytes", call.body) if whole else b"")
        stream = None if whole else cast("AsyncIterator[bytes]", call.body)
        # What may last for a day is not waited for that long before it begins.
        until = min(deadline, time.time() + INVOKE.seconds) if call.grpc else deadline
        waits = iter(ABSENT_WAITS)
        wait = 0.0
        away: Condition | None = None
        try:
            while True:
                try:
                    reply = await self._exchange.request(where, message, deadline, stream, watched=call.grpc)
                    if namespace == self._namespace:
                        self._directory.saw(app_id)
                    if away is not None:
                        away.works(repeated=True)
                    return reply
                except NoResponderError:
                    # A stream's body is untouched, since no callee has granted credit for it.
                    if namespace != self._namespace or not await self._directory.was_seen(app_id, until):
                        raise NoResponderError(f"no {what} is on the mesh") from None
                    wait = next(waits, wait)
                    if wait >= TOLD_WAIT and not operation.waits:
                        raise AppAwayError(f"{app_id} is away: {AWAY}") from None
                    self._parts.observer(telemetry.INVOCATIONS_WAITED, (app_id,))
                    away = self._note_away(app_id, wait, away)
                    await self._wait_for_news(app_id, wait, until)
                except DeadlineExceededError:
                    raise DeadlineExceededError(NO_ANSWER) from None
                except BrokerUnavailableError:
                    if not await self._exchange.comeback.by(until):
                        raise
        finally:
            if away is not None:
                away.leave(waits=True)

    def _note_away(self, app_id: str, wait: float, away: Condition | None) -> Condition | None:
        """Note that a call waits; not of one that came while one instance took over from another."""
        if away is None and wait >= TOLD_WAIT:
            away = self._parts.inbound.conditions.of("invocation", app_id)
            away.enter(waits=True)
        if away is not None:
            away.waits(AWAY)
        return away

    def _headers(self, caller: Caller) -> dict[str, str]:
        """Begin a message of a node that speaks for its own application; or, as a bridge, for one of elsewhere."""
        identity = f"{self._directory.node_id}-{next(self._numbers)}"
        source = caller.app_id if cluster_of(caller.app_id) else self._app_id
        return required_headers(identity, source, "mesh.invocation.request")

    async def _directly(
        self,
        operation: Operation,
        application: Application | None = None,
        deliver: InboundHandler | None = None,
        opening: AbstractAsyncContextManager[Application] | None = None,
    ) -> Answer:
        """Call without the backbone: the own application, or a service outside, perhaps opened for this call."""
        call, deadline = cast("Call", operation.arguments), operation.deadline
        stack = AsyncExitStack()
        headers, begun = call.headers, None
        if deliver is not None:
            headers, begun = served(self._parts.tracing, self._app_id, call.verb, call.target, naming(headers, None))
            if begun is not None:
                stack.enter_context(begun)

        async def begin() -> AppResponse:
            to = application if opening is None else await stack.enter_async_context(opening)
            assert to is not None
            return await stack.enter_async_context(to.call(call.verb, call.target, headers, call.body))

        try:
            if deliver is not None:
                passing = None
                if self._parts.taps.on:
                    passing = _arriving(self._app_id, self._app_id, call.verb, call.target, headers, call.body)
                response = await deliver(Arrival(self._headers(operation.context.caller), deadline, begin, passing))
            else:
                response = await self._deadlines.within(deadline - time.time(), begin)
            # What a call of gRPC came to stands last. Who sees values sees a small answer, as of one over the backbone.
            read = call.grpc or self._parts.taps.reads("invocation")
            whole = await response.read_up_to(MAX_JUDGED_BYTES) if read else None
        except DeadlineExceededError as error:
            await stack.__aexit__(type(error), error, None)
            raise DeadlineExceededError(NO_ANSWER) from None
        except BaseException as error:
            await stack.__aexit__(type(error), error, error.__traceback__)
            raise
        if begun is not None:
            note_status(begun, response.status)
        return Answer(response.status, response.headers, whole, response, stack)

    async def _wait_for_news(self, app_id: str, wait: float, deadline: float) -> None:
        try:
            async with asyncio.timeout(min(wait, deadline - time.time())):
                await self._directory.until_news(app_id)
        except TimeoutError:
            if time.time() >= deadline:
                raise DeadlineExceededError(f"{app_id} was not back within the deadline") from None

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Answer calls to this node's application."""
        return [Held("calls", None, self._served(inbound.application))]

    @asynccontextmanager
    async def _served(self, application: Application) -> AsyncIterator[None]:
        server = _Server(application, self._deliver, self._parts)
        async with self._exchange.serve(address.app(self._namespace, self._app_id), self._app_id, server.handle):
            yield


async def _begin(arrival: Arrival) -> AppResponse:
    """Call the application until its answer begins."""
    response = cast("AppResponse", await arrival.what())
    if arrival.passing is not None:
        arrival.passing.answered(response.status, response.headers)
    return response


def _arriving(
    app_id: str, source: str, verb: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
) -> Passing:
    """Begin with what is told of a call of this application."""
    passing = arrives(("call", app_id))
    passing.source, passing.traceparent = source, telemetry.trace_header(headers) or ""
    passing.asked(verb, target, headers, body if isinstance(body, bytes) else None)
    return passing


class _Server:
    """The callee's side."""

    def __init__(self, application: Application, deliver: InboundHandler, parts: Parts) -> None:
        self._application = application
        self._deliver = deliver
        self._parts, self._namespace = parts, parts.caller.namespace

    async def handle(self, request: Request) -> None:
        """Pass one request to the application and its answer back."""
        try:
            verb, target, headers = ASKED.read(request.headers.get(HTTP_HEADER))
            request.check_caller(source := unquote(request.headers.get("ce-source", "")), vouched=True)
            proven = None if request.caller is None else Caller.proven_by(request.caller, source)
            if WATCHED_HEADER in request.headers and not self._application.takes_grpc:
                raise NotSpokenError(NO_GRPC)
            if (access := self._parts.access).rules is not None:
                caller = proven or sender(request.headers, self._namespace)
                target = access.admit(caller, verb, target, grpc=self._application.is_grpc)
            headers = naming(headers, proven)
        except (EventError, UnprovenError, NotSpokenError, PermissionDeniedError, BadArgumentError) as error:
            await refuse(request, error)
            return
        body: bytes | AsyncIterator[bytes] = request.parts() if request.streamed else request.body
        passed, begun = served(self._parts.tracing, self._parts.caller.app_id, verb, target, headers)
        calling = self._application.call(verb, target, passed, body)
        passing = None
        if self._parts.taps.on:
            passing = _arriving(self._parts.caller.app_id, source, verb, target, passed, body)
            passing.held = True  # Until all of the answer is there.
        try:
            with begun or UNTOLD:
                async with AsyncExitStack() as stack:
                    begin = partial(stack.enter_async_context, calling)
                    response = await self._deliver(Arrival(request.headers, request.deadline, begin, passing))
                    if begun is not None:
                        note_status(begun, response.status)
                    await self._answer(request, response, passing)
        except AppUnreachableError:
            await request.busy()  # Nothing ran: the caller goes to another instance, or waits for this one.
        except (AppFailedError, BadArgumentError, MiddlewareError) as error:
            if request.answered:
                raise StreamBrokenError(str(error)) from error
            await refuse(request, error)
        except DeadlineExceededError:
            return  # The caller has stopped waiting by the same deadline.
        finally:
            if passing is not None:
                self._parts.taps.tell(passing)

    async def _answer(self, request: Request, response: AppResponse, passing: Passing | None) -> None:
        packed = {HTTP_HEADER: pack(response.status, response.headers)}
        whole = await response.read_up_to(request.whole_limit_bytes)
        if passing is not None:
            passing.answered(response.status, response.headers, whole)
        if whole is not None:
            await request.reply(packed, whole, packed_trailers(response))
            return
        await request.begin(packed)
        async for part in response.parts():
            await request.write(part)
        await request.end(packed_trailers(response))


def packed_trailers(response: AppResponse | Answer) -> Mapping[str, str]:
    """Give the header in which trailers travel, if there are any."""
    trailers = response.trailers
    return {TRAILERS_HEADER: pack(trailers)} if trailers else NOTHING


async def refuse(request: Request, error: MeshError) -> None:
    """Answer that a call failed."""
    await request.reply({ERROR_HEADER: json.dumps(to_wire(error))})


BLOCK = Block("invocation", (INVOKE,), Invocation, policy=lambda policies, target: policies.for_app(target))
