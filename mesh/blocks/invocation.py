"""Service invocation: an HTTP call to an application, wherever on the mesh it is.

The call travels as a request to the application's address, so there is nothing to discover. Verb,
target and headers stand in the header ``mesh-http`` as JSON, the body is the body. An application
that is restarting is waited for: one that was seen within the last minute, at most until the
caller's deadline. One that was not fails at once. The backbone's connection is waited for likewise.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import cast

import orjson

from mesh import address, telemetry
from mesh.application import AppFailedError, Application, AppResponse, AppUnreachableError, Headers
from mesh.broker import Message
from mesh.calls.exchange import Exchange, Reply, Request
from mesh.errors import (
    BrokerUnavailableError,
    DeadlineExceededError,
    InvocationError,
    MeshError,
    NoResponderError,
    StreamBrokenError,
)
from mesh.node.directory import Directory
from mesh.policies import BUILT_IN_RETRIES, Breaker, Policy
from mesh.telemetry import Counters

__all__ = ["HTTP_HEADER", "OUTSIDE", "Answer", "Call", "Invocation", "forwardable", "pack", "unpack"]

HTTP_HEADER = "mesh-http"
ERROR_HEADER = "mesh-error"
OUTSIDE = ("http://", "https://")
UNAVAILABLE_WAIT = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "te",
        "trailer",
        "proxy-authorization",
        "proxy-authenticate",
        "dapr-app-id",
        "destination-app-id",
        "content-length",
        "expect",
        "host",
    }
)


def forwardable(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out what concerns one connection only."""
    headers = list(headers)
    dropped = HOP_BY_HOP
    for name, value in headers:
        if name.lower() == "connection":
            dropped = dropped | {item.strip().lower() for item in value.split(",")}
    return [
        (name, value) for name, value in headers if (lowered := name.lower()) not in dropped and lowered[-4:] != "-bin"
    ]


@dataclass(frozen=True, slots=True)
class Call:
    """What the application is asked.

    Attributes:
        verb: The HTTP method.
        target: Path and raw query, with a leading slash.
        headers: Forwardable ones.
        body: The bytes, or a stream.
        deadline: Unix time in seconds by which the answer must have begun.
    """

    verb: str
    target: str
    headers: Headers
    body: bytes | AsyncIterator[bytes]
    deadline: float


class Answer:
    """What the application answered: read ``body``, or iterate over ``parts`` when it is None."""

    __slots__ = ("_parts", "body", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Headers,
        body: bytes | None,
        parts: Callable[[], AsyncIterator[bytes]] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self._parts = parts

    def parts(self) -> AsyncIterator[bytes]:
        """Iterate over a streamed body."""
        assert self._parts is not None
        return self._parts()


def pack(*values: object) -> str:
    """Encode as JSON in ASCII."""
    try:
        text = orjson.dumps(values).decode()
        if text.isascii():
            return text
    except orjson.JSONEncodeError:
        pass  # Header bytes that are no UTF-8 come as surrogates, which only the standard encoder takes.
    return json.dumps(values, separators=(",", ":"))


def _plain(text: str) -> str:
    return text.encode("ascii", "replace").decode().replace("\n", " ").strip()


def unpack(text: str) -> Sequence[object]:
    """Decode what ``pack`` made.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return cast("Sequence[object]", orjson.loads(text))
    except orjson.JSONDecodeError:
        return cast("Sequence[object]", json.loads(text))


class Invocation:
    """The building block.

    Attributes:
        endpoints: HTTPEndpoint resources by name; they are called directly.
        open_outside: Opens a service that is named by its absolute URL; None refuses such names.
    """

    def __init__(
        self,
        exchange: Exchange,
        directory: Directory,
        *,
        app_id: str,
        namespace: str,
        policy_for: Callable[[str], Policy],
        counters: Counters,
    ) -> None:
        """Use an entered exchange.

        Args:
            exchange: Carries the calls.
            directory: Knows who was seen.
            app_id: The caller.
            namespace: The caller's namespace.
            policy_for: The policy for an application.
            counters: Where to count.
        """
        self._exchange = exchange
        self._directory = directory
        self._app_id = app_id
        self._namespace = namespace
        self._policy_for = policy_for
        self._policies: dict[str, tuple[Policy, Breaker | None]] = {}
        self._counters = counters
        self._numbers = itertools.count(1)
        self.endpoints: dict[str, Application] = {}
        self.open_outside: Callable[[str], AbstractAsyncContextManager[Application]] | None = None
        self._local: Application | None = None

    def _policy(self, app_id: str) -> tuple[Policy, Breaker | None]:
        known = self._policies.get(app_id)
        if known is None:
            policy = self._policy_for(app_id)
            breaker = None if policy.breaker is None else Breaker(policy.breaker, time.monotonic)
            known = (policy, breaker)
            if len(self._policies) < 10_000:
                self._policies[app_id] = known
        return known

    @asynccontextmanager
    async def invoke(self, target_id: str, call: Call) -> AsyncIterator[Answer]:
        """Call an application.

        Args:
            target_id: ``id``, ``id.namespace``, or the name of an HTTPEndpoint.
            call: What to ask.

        Raises:
            InvocationError: It could not be called, or not in time.
        """
        policy, breaker = self._policy(target_id)
        attempt = 0
        started = time.monotonic()
        while True:
            attempt += 1
            admitted = _Admitted(target_id, breaker)
            answered = False
            try:
                async with self._once(target_id, _timed(call, policy)) as answer:
                    admitted.record(answer.status < 500)
                    delay = self._retry_delay(policy, call, attempt, started, answer.status)
                    if delay is None:
                        answered = True
                        yield answer
                        return
            except InvocationError:
                if answered:
                    raise
                admitted.record(False)
                delay = self._retry_delay(policy, call, attempt, started, None)
                if delay is None:
                    raise
            finally:
                admitted.release()
            await asyncio.sleep(delay)

    def _retry_delay(
        self, policy: Policy, call: Call, attempt: int, started: float, status: int | None
    ) -> float | None:
        """Decide whether to call again; only a policy that a user wrote repeats calls that may have run."""
        retry = policy.retry
        if retry is None or retry.name in BUILT_IN_RETRIES or not isinstance(call.body, bytes):
            return None
        if status is not None and (status < 400 or not retry.should_retry_status(status)):
            return None
        delay = retry.delay(attempt, time.monotonic() - started, random.random)
        # With no time left for another attempt, what the last one gave is the answer.
        return None if delay is None or time.time() + delay >= call.deadline else delay

    @asynccontextmanager
    async def _once(self, target_id: str, call: Call) -> AsyncIterator[Answer]:
        if target_id.startswith(OUTSIDE):
            if self.open_outside is None:
                raise InvocationError(target_id, "services outside of the mesh are not called")
            async with self.open_outside(target_id) as outside, self._directly(target_id, outside, call) as answer:
                yield answer
            return
        endpoint = self.endpoints.get(target_id)
        app_id, _, namespace = target_id.partition(".")
        if endpoint is None and app_id == self._app_id and namespace in ("", self._namespace):
            endpoint = self._local
        if endpoint is not None:
            async with self._directly(target_id, endpoint, call) as answer:
                yield answer
            return
        reply = await self._request(target_id, app_id, namespace or self._namespace, call)
        try:
            problem = reply.headers.get(ERROR_HEADER)
            if problem is not None:
                raise InvocationError(target_id, problem)
            status, headers = unpack(reply.headers[HTTP_HEADER])
            yield Answer(
                cast("int", status), cast("Headers", headers), None if reply.streamed else reply.body, reply.parts
            )
        finally:
            if reply.streamed:
                await reply.aclose()

    @asynccontextmanager
    async def _directly(self, target_id: str, application: Application, call: Call) -> AsyncIterator[Answer]:
        """Call without the backbone: this gateway's own application, or an outside endpoint."""
        try:
            async with asyncio.timeout(call.deadline - time.time()) as limit:
                async with application.call(call.verb, call.target, call.headers, call.body) as response:
                    limit.reschedule(None)  # The deadline is for the beginning of the answer.
                    yield Answer(response.status, response.headers, None, response.parts)
        except (AppUnreachableError, AppFailedError) as error:
            raise InvocationError(target_id, str(error)) from error
        except TimeoutError:
            raise InvocationError(target_id, "no answer within the deadline") from None

    async def _request(self, target_id: str, app_id: str, namespace: str, call: Call) -> Reply:
        where = address.app(namespace, app_id)
        headers = {
            "ce-specversion": "1.0",
            "ce-id": f"{self._directory.node_id}-{next(self._numbers)}",
            "ce-source": address.encode_token(self._app_id),
            "ce-type": "mesh.invocation.request",
            HTTP_HEADER: pack(call.verb, call.target, call.headers),
        }
        whole = isinstance(call.body, bytes)
        message = Message(headers, cast("bytes", call.body) if whole else b"")
        stream = None if whole else cast("AsyncIterator[bytes]", call.body)
        waits = iter(UNAVAILABLE_WAIT)
        wait = 0.0
        while True:
            try:
                reply = await self._exchange.request(where, message, call.deadline, stream)
                if namespace == self._namespace:
                    self._directory.saw(app_id)
                return reply
            except NoResponderError:
                # A stream's body is untouched, since no callee has granted credit for it.
                if namespace != self._namespace or not await self._directory.was_seen(app_id, call.deadline):
                    raise InvocationError(target_id, f"no instance of {app_id} is on the mesh") from None
                wait = next(waits, wait)
                self._counters.add(telemetry.INVOCATIONS_WAITED, app_id)
                await self._wait_for_news(target_id, app_id, wait, call.deadline)
            except BrokerUnavailableError as error:
                wait = next(waits, wait)
                if time.time() + wait >= call.deadline:
                    raise InvocationError(target_id, str(error)) from error
                await asyncio.sleep(wait)
            except DeadlineExceededError:
                raise InvocationError(target_id, "no answer within the deadline") from None
            except MeshError as error:
                raise InvocationError(target_id, str(error)) from error

    async def _wait_for_news(self, target_id: str, app_id: str, wait: float, deadline: float) -> None:
        try:
            async with asyncio.timeout(min(wait, deadline - time.time())):
                await self._directory.until_news(app_id)
        except TimeoutError:
            if time.time() >= deadline:
                raise InvocationError(target_id, f"{app_id} was not back within the deadline") from None

    @asynccontextmanager
    async def serve(self, application: Application) -> AsyncIterator[None]:
        """Answer calls to this node's application while entered."""
        server = _Server(application)
        where = address.app(self._namespace, self._app_id)
        async with self._exchange.serve(where, self._app_id, server.handle):
            yield

    def use_local(self, application: Application) -> None:
        """Call this gateway's own application directly."""
        self._local = application


class _Admitted:
    """A call that the circuit breaker, if there is one, has let through."""

    __slots__ = ("_breaker", "_permit")

    def __init__(self, target_id: str, breaker: Breaker | None) -> None:
        self._breaker = breaker
        self._permit = None if breaker is None else breaker.allow()
        if breaker is not None and self._permit is None:
            raise InvocationError(target_id, "circuit breaker is open")

    def record(self, success: bool) -> None:
        permit, self._permit = self._permit, None
        if self._breaker is not None and permit is not None:
            self._breaker.record(success, permit)

    def release(self) -> None:
        """Say that it was cancelled before it came to anything."""
        permit, self._permit = self._permit, None
        if self._breaker is not None and permit is not None:
            self._breaker.release(permit)


def _timed(call: Call, policy: Policy) -> Call:
    if policy.timeout is None:
        return call
    deadline = min(call.deadline, time.time() + policy.timeout.seconds)
    return Call(call.verb, call.target, call.headers, call.body, deadline)


class _Server:
    """The callee's side."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def handle(self, request: Request) -> None:
        """Pass one request to the application and its answer back."""
        try:
            verb, target, headers = unpack(request.headers[HTTP_HEADER])
        except (KeyError, ValueError):
            await request.reply({ERROR_HEADER: "malformed request"})
            return
        body: bytes | AsyncIterator[bytes] = request.parts() if request.streamed else request.body
        calling = self._application.call(cast("str", verb), cast("str", target), cast("Headers", headers), body)
        try:
            async with asyncio.timeout(request.deadline - time.time()) as limit, calling as response:
                limit.reschedule(None)
                await self._answer(request, response)
        except AppUnreachableError:
            await request.busy()  # Nothing ran: the caller goes to another instance, or waits for this one.
        except AppFailedError as error:
            if request.answered:
                raise StreamBrokenError(str(error)) from error
            await request.reply({ERROR_HEADER: _plain(str(error))})
        except TimeoutError:
            return  # The caller has stopped waiting by the same deadline.

    async def _answer(self, request: Request, response: AppResponse) -> None:
        packed = {HTTP_HEADER: pack(response.status, response.headers)}
        whole = await response.read_up_to(request.whole_limit_bytes)
        if whole is not None:
            await request.reply(packed, whole)
            return
        await request.begin(packed)
        async for part in response.parts():
            await request.write(part)
        await request.end()
