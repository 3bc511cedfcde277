"""Service invocation: ``invoke/{app id}/method/{method}``, and every path that is no other route's."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import AsyncIterator, Sequence
from urllib.parse import unquote

from aiohttp import web

from gateway.errors import APIError, invocation_failed
from gateway.http.response import Answered, Response, StreamedResponse
from gateway.routes.durable import DELIVERY_HEADER, DurableRoutes
from gateway.routes.request import go_ahead, header, read_body, unescape
from mesh.blocks.invocation import OUTSIDE, Answer, Call, Invocation, forwardable
from mesh.durations import parse_duration
from mesh.errors import InvocationError, MeshError
from mesh.telemetry import Tracing

__all__ = ["InvocationRoutes", "clean_path"]

WHOLE_BODY_BYTES = 128 * 1024
READ_BYTES = 64 * 1024
TIMEOUT_HEADER = "mesh-timeout"
MAX_APP_ID_BYTES = 256
_FORBIDDEN = re.compile(r"[#?\x00-\x1f\x7f]")
_SET_HERE = frozenset({"dapr-caller-app-id", "dapr-caller-namespace", "dapr-callee-app-id"})


class InvocationRoutes:
    """Calls to other applications."""

    def __init__(
        self,
        block: Invocation,
        tracing: Tracing,
        *,
        app_id: str,
        namespace: str,
        timeout: float,
        strip_token: bool,
        durable: DurableRoutes,
    ) -> None:
        """Bind the block.

        Args:
            block: The building block.
            tracing: Makes spans.
            app_id: The caller.
            namespace: The caller's namespace.
            timeout: Seconds until an answer must have begun.
            strip_token: Keep this gateway's own token from the called application.
            durable: Takes the calls that the broker is to keep.
        """
        self._block = block
        self._tracing = tracing
        self._app_id = app_id
        self._namespace = namespace
        self._timeout = timeout
        self._strip_token = strip_token
        self._durable = durable

    async def by_url(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Call ``invoke/{app id}/method/{method}``; a header makes the whole path the method instead."""
        if _header_target(request) is None:
            target, method = _split(segments)
            if target:
                return await self._call(request, target, "/" + "/".join(method), query)
        return await self.by_header(request, "/v1.0/invoke/" + "/".join(segments), query)

    async def by_header(self, request: web.BaseRequest, path: str, query: str) -> Answered:
        """Call the application that ``dapr-app-id`` or the user name names, with the whole path."""
        target = _header_target(request)
        if not target:
            message = "failed getting app id either from the URL path or the header dapr-app-id"
            raise APIError(404, "ERR_DIRECT_INVOKE", message)
        return await self._call(request, target, path, query)

    async def _call(self, request: web.BaseRequest, target: str, path: str, query: str) -> Answered:
        path = clean_path(path)
        decoded = unescape(path) if "%" in path else path
        if _FORBIDDEN.search(decoded):
            raise APIError(500, "ERR_DIRECT_INVOKE", f"invalid method: {decoded!r}")
        is_url = target.startswith(OUTSIDE)
        if not is_url and (target.count(".") > 1 or len(target.encode("utf-8", "replace")) > MAX_APP_ID_BYTES):
            raise APIError(500, "ERR_DIRECT_INVOKE", f"failed to invoke, id: {target[:80]}, err: invalid app id")
        whole_target = f"{path}?{query}" if query else path
        if DELIVERY_HEADER in request.headers:
            return await self._durable.accept(request, target, whole_target, self._headers(request, target))
        call = Call(
            request.method,
            whole_target,
            self._headers(request, target),
            await _body(request),
            time.time() + self._deadline_seconds(request),
        )
        try:
            async with self._block.invoke(target, call) as answer:
                return await _respond(request, answer)
        except InvocationError as error:
            raise invocation_failed(error) from error

    def _deadline_seconds(self, request: web.BaseRequest) -> float:
        text = request.headers.get(TIMEOUT_HEADER)
        if text is None:
            return self._timeout
        try:
            return parse_duration(text)
        except ValueError as error:
            raise APIError(400, "ERR_BAD_REQUEST", f"invalid request: header {TIMEOUT_HEADER}: {error}") from None

    def _headers(self, request: web.BaseRequest, target: str) -> list[tuple[str, str]]:
        peer = request.remote or "127.0.0.1"
        incoming = request.headers
        host = incoming.get("Host", "")
        headers = forwardable(incoming.items())
        if self._strip_token:
            headers = [(name, value) for name, value in headers if name.lower() != "dapr-api-token"]
        if "dapr-caller-app-id" in incoming or "dapr-callee-app-id" in incoming or "dapr-caller-namespace" in incoming:
            headers = [(name, value) for name, value in headers if name.lower() not in _SET_HERE]
        traceparent = self._tracing.span(incoming.get("traceparent"))
        if traceparent:
            headers = [(name, value) for name, value in headers if name.lower() != "traceparent"]
            headers.append(("traceparent", traceparent))
        headers += [
            ("X-Forwarded-For", peer),
            ("X-Forwarded-Host", host),
            ("Forwarded", f"for={peer};by={peer};host={host}"),
            ("dapr-caller-app-id", self._app_id),
            ("dapr-caller-namespace", self._namespace),
            ("dapr-callee-app-id", target if target.startswith(OUTSIDE) else target.partition(".")[0]),
        ]
        return headers


def _header_target(request: web.BaseRequest) -> str | None:
    target = header(request, "dapr-app-id")
    if target:
        return target
    authorization = request.headers.get("Authorization", "")
    if authorization[:6].lower() != "basic ":
        return None
    try:
        user, _, password = base64.b64decode(authorization[6:]).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return password if user == "dapr-app-id" else None


def _split(segments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Split ``{app id}/method/{method…}``; an absolute URL as app id may hold slashes of its own."""
    if segments and segments[0].lower() in ("http:", "https:") and "method" in segments:
        at = segments.index("method")
        # Cleaning the path has made one slash of two.
        host = [unescape(segment) for segment in segments[1:at] if segment]
        return f"{segments[0].lower()}//{'/'.join(host)}", segments[at + 1 :]
    if len(segments) < 2 or segments[1] != "method":
        return "", ()
    return unescape(segments[0]), segments[2:]


def clean_path(path: str) -> str:
    """Collapse ``//``, ``.`` and ``..`` in a raw path; a final slash stays."""
    if "//" not in path and "/." not in path and "/%2" not in path:
        return path
    kept: list[str] = []
    for segment in path.split("/"):
        decoded = unquote(segment)
        if decoded == "..":
            if kept:
                kept.pop()
        elif decoded not in ("", "."):
            kept.append(segment)
    return "/" + "/".join(kept) + ("/" if path.endswith("/") and kept else "")


async def _body(request: web.BaseRequest) -> bytes | AsyncIterator[bytes]:
    """Take a small body whole, any other as a stream that is read as the callee takes it."""
    if not request.body_exists:
        return b""
    length = request.content_length
    if length is not None and length <= WHOLE_BODY_BYTES:
        return await read_body(request)
    return _streamed(request)


async def _streamed(request: web.BaseRequest) -> AsyncIterator[bytes]:
    go_ahead(request)
    async for part in request.content.iter_chunked(READ_BYTES):
        yield part


async def _respond(request: web.BaseRequest, answer: Answer) -> Answered:
    length = next((value for name, value in answer.headers if name.lower() == "content-length"), None)
    fields = forwardable(answer.headers)
    if answer.body is not None:
        if request.method == "HEAD" and length is not None:
            fields.append(("Content-Length", length))
        return Response(answer.status, answer.body, fields)
    stream = StreamedResponse(answer.status, fields, length)
    await stream.prepare(request)
    try:
        async for part in answer.parts():
            await stream.write(part)
    except MeshError:
        # Headers are out, so the only honest answer left is a body that visibly breaks off.
        if request.transport is not None:
            request.transport.abort()
        return stream
    await stream.write_eof()
    return stream
