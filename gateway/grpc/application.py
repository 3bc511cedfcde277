"""The application beside the gateway, if it speaks gRPC: the services that it implements in place of paths.

It is an application on HTTP/2 for what does not depend on that: whether it is there, how many calls at once, the token.
A call of gRPC is passed on as it is; any other becomes ``OnInvoke``, and what is posted another callback.

Source: Dapr 1.18, AppCallback, AppCallbackHealthCheck, AppCallbackAlpha; the runtime's names of metadata.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from gateway.config import HealthCheck
from gateway.grpc._not_served import NotServedError
from gateway.grpc.callbacks import CALLBACK, CALLBACKS, binding_event
from gateway.grpc.messages import COMMON, RUNTIME, Message, message, status_json
from gateway.grpc.wire import (
    CONTENT_TYPE,
    Reader,
    StatusError,
    framed,
    is_grpc,
    status_fields,
    status_of,
)
from gateway.http.application import HTTPApplication, Permits, Probing
from gateway.http.client import ConnectError
from gateway.http2.client import HTTP2Client
from gateway.metrics.sources import GRPC_CALLED
from gateway.status import CODE_NAMES, HTTP_STATUS, Code
from mesh.application import AppResponse, BindingAnswer, Headers, Kind
from mesh.errors import AppFailedError, AppUnreachableError, HandlerFailedError
from mesh.resources.subscription import Subscription, programmatic_subscriptions
from mesh.telemetry import trace_bin

__all__ = ["GRPCApplication"]

logger = logging.getLogger(__name__)

HEALTH = f"/{RUNTIME}.AppCallbackHealthCheck/HealthCheck"
ANSWER_SLACK_BYTES = 64 * 1024  # What an answer has around its data.
TOO_LARGE = 413
SENT = [("content-type", CONTENT_TYPE), ("te", "trailers"), ("grpc-accept-encoding", "identity,deflate,gzip")]
# Fields of HTTP are metadata with this prefix: gRPC may have a meaning of its own for them.
PREFIX = "dapr-"
# fmt: off
_OF_HTTP = frozenset((
    "accept", "accept-charset", "accept-language", "accept-ranges", "cache-control", "connection", "content-length",
    "content-type", "cookie", "date", "expect", "from", "host", "if-match", "if-modified-since", "if-none-match",
    "if-schedule-tag-match", "if-unmodified-since", "keep-alive", "max-forwards", "origin", "pragma",
    "proxy-connection", "referer", "te", "transfer-encoding", "upgrade", "via", "warning",
))
# fmt: on
_KEY = re.compile(r"[0-9a-z_.-]+\Z")
_NOT_SHOWN = frozenset(("content-type", "content-length"))

_InvokeRequest, _InvokeResponse = message("InvokeRequest", COMMON), message("InvokeResponse", COMMON)
_Subscriptions, _Healthy = message("ListTopicSubscriptionsResponse"), message("HealthCheckResponse")
_InputBindings = message("ListInputBindingsResponse")
_VERBS = dict(message("HTTPExtension", COMMON).Verb.items())


class GRPCApplication(HTTPApplication):
    """A gRPC server at one address."""

    kinds = frozenset(CALLBACKS)
    speaks = "grpc"
    is_grpc = True

    def __init__(
        self,
        base_url: str,
        *,
        limit_bytes: int,
        token: str | None = None,
        permits: Permits | None = None,
        health: HealthCheck | None = None,
        tls: ssl.SSLContext | None = None,
        probing: Probing | None = None,
    ) -> None:
        """Prepare; entering opens the connection and begins to watch.

        Args:
            base_url: ``http://127.0.0.1:3000``, or ``https`` for TLS.
            limit_bytes: Largest body that is put into a message, or taken from one.
            token: Sent as ``dapr-api-token`` with every call but health probes.
            permits: Of calls at once; None for no limit.
            health: Watch it; None takes an open port for healthy.
            tls: Context for TLS.
            probing: As of an application on HTTP.
        """
        settings: dict[str, Any] = {"token": token, "permits": permits, "health": health, "tls": tls}
        super().__init__(base_url, client=self._make_client, probing=probing, **settings)
        self._http2: HTTP2Client
        self._limit_bytes = limit_bytes
        self._told: set[str] = set()
        self.ways: dict[str, tuple[str, str]] = {}
        """Which of two services is asked first, by the method's name; else today's."""

    def _make_client(self, host: str, port: int, tls: ssl.SSLContext | None) -> HTTP2Client:
        self._http2 = HTTP2Client(host, port, tls)
        return self._http2

    @asynccontextmanager
    async def call(
        self, method: str, target: str, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> AsyncIterator[AppResponse]:
        """Pass a call of gRPC on; make any other one of ``OnInvoke``."""
        if is_grpc(headers):
            async with super().call(method, target, headers, body) as response:
                yield response
        elif isinstance(body, bytes):
            yield await self._invoke(method, target, headers, body)
        else:
            await self._reach()
            whole = await _collected(body, self._limit_bytes)
            try:
                answer = await self._invoke(method, target, headers, whole)
            except AppUnreachableError as error:
                raise AppFailedError(f"{error}; the body of the call has been read") from error
            yield answer

    async def _reach(self) -> None:
        """Make sure that it is there, before a body is read that then cannot be given to another instance."""
        self._check_healthy()
        try:
            await self._http2.connect()
        except ConnectError as error:
            raise self._away(error) from error

    async def _invoke(self, method: str, target: str, headers: Headers, body: bytes) -> _Whole:
        if len(body) > self._limit_bytes:
            text = f"a body of more than {self._limit_bytes} bytes does not go into a message (--max-body-size)"
            return _failed(StatusError(Code.RESOURCE_EXHAUSTED, text), TOO_LARGE)
        path, _, query = target.partition("?")
        request = _InvokeRequest(
            method=path.removeprefix("/"),
            content_type=next((value for name, value in headers if name.lower() == "content-type"), ""),
            http_extension={"verb": _VERBS.get(method.upper(), 0), "querystring": query},
        )
        request.data.value = body
        try:
            answer, given = await self.ask(CALLBACK, "OnInvoke", request.SerializeToString(), _InvokeResponse, headers)
        except StatusError as error:
            return _failed(error, HTTP_STATUS[error.code])
        shown = [
            (name, value)
            for name, value in given
            if name not in _NOT_SHOWN and not name.startswith("grpc-") and not name.endswith("-bin")
        ]
        if answer.content_type:
            shown.append(("content-type", answer.content_type))
        return _Whole(200, shown, answer.data.value)

    async def post(self, path: str, headers: Headers, body: bytes, kind: Kind = "event") -> tuple[int, bytes]:
        """Tell by the callback of its kind."""
        callback = CALLBACKS.get(kind)
        if callback is None:
            return HTTP_STATUS[Code.UNIMPLEMENTED], b""
        try:
            return 200, await callback(self, path, headers, body)
        except StatusError as error:
            raise HandlerFailedError(_told(error), int(error.code)) from None

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        """Tell by ``OnBindingEvent``."""
        try:
            return 200, await binding_event(self, name, headers, body)
        except StatusError as error:
            raise HandlerFailedError(_told(error), int(error.code)) from None

    async def wants(self, name: str, path: str) -> bool:
        """Ask for the names of all that it wants."""
        try:
            answer, _ = await self.ask(CALLBACK, "ListInputBindings", b"", _InputBindings)
        except StatusError as error:
            if error.code is Code.UNIMPLEMENTED:
                return False
            raise HandlerFailedError(_told(error), int(error.code)) from None
        return name in answer.bindings

    async def ask(
        self, service: str, name: str, request: bytes, gives: Any, headers: Headers = ()
    ) -> tuple[Message, Headers]:
        """Call a method; give its message and its metadata.

        Raises:
            StatusError: The application answered another status than OK.
            AppUnreachableError: Nothing reached it.
            NotServedError: Its server has no such path, or is not the application.
            AppFailedError: It broke off, or what it says is no gRPC.
        """
        path, started, code = f"/{service}/{name}", time.perf_counter(), Code.UNAVAILABLE
        try:
            async with super().call("POST", path, _metadata(headers), framed(request)) as response:
                answer = await _answer(response, gives, self._limit_bytes + ANSWER_SLACK_BYTES)
            code = Code.OK
        except StatusError as error:
            code = error.code
            raise
        finally:
            if self.recorder is not None:
                seconds = time.perf_counter() - started
                self.recorder(GRPC_CALLED, (path, CODE_NAMES[code]), 1, seconds)
        return answer, response.headers

    def warn_once(self, text: str) -> None:
        """Log what holds until the application is another one."""
        if text not in self._told:
            self._told.add(text)
            logger.warning("%s", text)

    async def _probe_health(self, health: HealthCheck) -> tuple[str, bool]:
        async with self._client.call("POST", HEALTH, SENT, framed(b"")) as response:
            try:
                await _answer(response, _Healthy, ANSWER_SLACK_BYTES)
            except (StatusError, AppFailedError) as error:
                if isinstance(error, NotServedError) or (
                    isinstance(error, StatusError) and error.code is Code.UNIMPLEMENTED
                ):
                    self.warn_once("the application is unhealthy: it does not implement AppCallbackHealthCheck")
                return CODE_NAMES[error.code if isinstance(error, StatusError) else Code.UNKNOWN], False
        return CODE_NAMES[Code.OK], True

    async def _subscriptions(self, app_id: str) -> Sequence[Subscription]:
        try:
            headers = [("dapr-app-id", app_id)]
            answer, _ = await self.ask(CALLBACK, "ListTopicSubscriptions", b"", _Subscriptions, headers)
        except NotServedError as error:
            self.warn_once(f"{error}; it asks for no topics")
            return ()
        except StatusError as error:
            if error.code is Code.UNAVAILABLE:
                raise HandlerFailedError(_told(error), int(error.code)) from None
            if error.code is not Code.UNIMPLEMENTED:
                logger.warning("%s to ListTopicSubscriptions: it asks for no topics", _told(error))
            return ()
        items = MessageToDict(answer).get("subscriptions", [])
        subscriptions, warnings = programmatic_subscriptions(orjson.dumps(items), as_given=True)
        for warning in warnings:
            logger.warning("ListTopicSubscriptions: %s", warning)
        return subscriptions


class _Whole:
    """An answer that is there already."""

    __slots__ = ("_body", "headers", "status", "trailers")

    def __init__(self, status: int, headers: Headers, body: bytes, trailers: Headers = ()) -> None:
        self.status, self.headers, self._body, self.trailers = status, headers, body, trailers

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        return self._body if len(self._body) <= limit_bytes else None

    async def parts(self) -> AsyncIterator[bytes]:
        yield self._body


def _failed(error: StatusError, status: int) -> _Whole:
    body = status_json(int(error.code), error.message, error.details)
    trailers = status_fields(error.code)  # For callers on gRPC: the status of HTTP leaves some of it out.
    return _Whole(status, [("content-type", "application/json")], body, trailers)


def _told(error: StatusError) -> str:
    return f"the application answered {error.code.name}: {error.message[:500]}"


async def _collected(body: AsyncIterator[bytes], limit_bytes: int) -> bytes:
    """Hold a body, since a message is whole; of one that is too large, no more than shows that."""
    parts: list[bytes] = []
    size = 0
    async for part in body:
        parts.append(part)
        size += len(part)
        if size > limit_bytes:
            break
    return b"".join(parts)


def _metadata(headers: Headers) -> Headers:
    """Write header fields as metadata; what those cannot have is left out."""
    made = [*SENT]
    for given, value in headers:
        name = given.lower()
        if name in _OF_HTTP or (name.startswith("grpc-") and name != "grpc-trace-bin"):
            name = PREFIX + name
        if _KEY.match(name):
            made.append((name, value))
        if name == "traceparent" and (encoded := trace_bin(value)):
            made.append(("grpc-trace-bin", encoded))
    return made


async def _answer(response: AppResponse, gives: Any, limit_bytes: int) -> Message:
    """Read the one message of an answer.

    Raises:
        StatusError: It has another status than OK.
        NotServedError: It is a 404 of HTTP.
        AppFailedError: It is no answer of gRPC.
    """
    fields = dict(response.headers)
    if response.status != 200 or not is_grpc(response.headers):
        kind = fields.get("content-type", "of no type")[:100]
        text = f"the application speaks no gRPC: it answered {response.status}, {kind} (--app-protocol)"
        raise (NotServedError if response.status == 404 else AppFailedError)(text)
    found: bytes | None = None
    if "grpc-status" in fields:
        failure = status_of(response.headers)
    else:
        reader = Reader(response.parts(), limit_bytes, fields.get("grpc-encoding", "identity"))
        try:
            found = await reader.read()
            if found is not None and await reader.read() is not None:
                raise AppFailedError("the application's answer has more than one message")
        except StatusError as error:
            raise AppFailedError(f"the application's answer cannot be read: {error.message}") from None
        failure = status_of(response.trailers)
    if failure is not None:
        raise failure
    if found is None:
        raise AppFailedError("the application's answer has no message")
    try:
        return gives.FromString(found)
    except DecodeError:
        raise AppFailedError("the application's answer is not of the method's type") from None
