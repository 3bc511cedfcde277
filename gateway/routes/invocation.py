"""Service invocation: ``invoke/{app id}/method/{method}``, and every path that is no other route's."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, unquote

import orjson
from aiohttp import web

from gateway.errors import TYPES, APIError, bad_request, too_large
from gateway.errors import answer as failure
from gateway.http.response import Answered, Response, StreamedResponse, passed_on, split_target, stated_length
from gateway.routes.durable import DELIVERY_HEADER, accept
from gateway.routes.request import check_escapes, deadline_of, go_ahead, read_body, text_of, unescape
from gateway.routes.route import Asked, Route
from gateway.routes.rpc import RPC, Called
from gateway.routes.unanswered import hint
from gateway.status import BY_HTTP_STATUS, Code
from mesh.blocks.invocation import INVOKE, OUTSIDE, Answer, Call, forwardable
from mesh.errors import MeshError
from mesh.packing import readable
from mesh.telemetry import unusable

if TYPE_CHECKING:
    from gateway.http.server import Router
    from mesh.middleware import Request as Passing

__all__ = ["ROUTES", "RPCS", "by_header", "by_nothing", "by_url", "comparable", "header_target", "named_by"]

WHOLE_BODY_BYTES = 128 * 1024
READ_BYTES = 64 * 1024
_BY_URL = re.compile(r"/+v1\.0/+invoke/+(?:((?i:https?:/.*?))|(?!\.{1,2}/)([^/]+)/*)/method(?=/|\Z)")
_INVOKES = re.compile(r"/v1\.0/invoke(?=/|\Z)")
_AUTHORITY_ENDS = re.compile(r"[/?#\\]")
# By the numbers of HTTPExtension.Verb; that of none comes from clients of gRPC, where each call is a POST.
_VERBS = ("POST", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_TOLD = 256  # Of a body, in an error.
_LEGAL = "%!$&'()*+,/:;=?@[]~"
_METADATA = re.compile(r"[0-9a-z_.-]+:[ -~]*")
_SET_HERE = frozenset({"dapr-caller-app-id", "dapr-caller-namespace", "dapr-callee-app-id"})


async def by_url(asked: Asked) -> Answered:
    """Call ``invoke/{app id}/method/{method}``; a header makes the whole path the method instead."""
    if header_target(asked.request.headers.get) is None:
        target, method = _split(asked.segments)
        if target:
            return await _call(asked, target, "/" + "/".join(method))
    return await _by_header(asked, split_target(asked.request)[0])


async def by_header(asked: Asked) -> Answered:
    """Call the application that ``dapr-app-id`` or the user name names, with the whole path as it was written."""
    return await _by_header(asked, asked.segments[0])


async def by_nothing(asked: Asked) -> Answered:
    """Say what is missing, whatever the header names: ``spec.api`` of a Configuration allows no invocation."""
    raise _nobody(asked, asked.segments[0])


async def _by_header(asked: Asked, path: str) -> Answered:
    target = header_target(asked.request.headers.get)
    if target:
        return await _call(asked, target, path)
    raise _nobody(asked, path)


def _nobody(asked: Asked, path: str) -> APIError:
    message = "failed getting app id either from the URL path or the header dapr-app-id"
    meant = hint(path, asked.api.names)
    return APIError(404, "ERR_DIRECT_INVOKE", f"{message}; {meant}" if meant else message)


async def _call(asked: Asked, target: str, path: str) -> Answered:
    request = asked.request
    check_escapes(path)
    if asked.api.remote and target.startswith(OUTSIDE):  # As from here, it would reach this gateway itself.
        raise APIError(403, "ERR_PERMISSION_DENIED", "a URL is not called for another node; name an app id")
    if target.startswith(OUTSIDE) and "@" in _AUTHORITY_ENDS.split(target.partition("://")[2], 1)[0]:
        # It would stand in logs and in what the other side is told of its caller.
        raise bad_request("a login in the URL of a service is not sent; it belongs into the header Authorization")
    if _opens_websocket(request):
        message = "WebSocket connections are not carried by an invocation; connect to the application itself"
        raise APIError(501, "ERR_DIRECT_INVOKE", message)
    whole_target = f"{path}?{asked.query}" if "?" in request.raw_path else path
    if DELIVERY_HEADER in request.headers:
        return await accept(asked, target, whole_target, _headers(asked, target))
    call = Call(request.method, whole_target, _headers(asked, target), await _body(request))
    async with cast("Answer", await asked.run(INVOKE, target, call, deadline_of(request))) as answer:
        return await _respond(request, answer)


def _opens_websocket(request: web.BaseRequest) -> bool:
    """Tell whether a client could go on with nothing but a WebSocket; any other upgrade is an offer, and ignored.

    Source: RFC 6455 section 4.1; RFC 9110 section 7.8.
    """
    offered = request.headers.getall("Upgrade", ())
    return any(each.strip().lower() == "websocket" for value in offered for each in value.split(",")) and any(
        each.strip().lower() == "upgrade"
        for value in request.headers.getall("Connection", ())
        for each in value.split(",")
    )


def _headers(asked: Asked, target: str) -> list[tuple[str, str]]:
    request, caller = asked.request, asked.api.caller
    peer = request.remote or "127.0.0.1"
    incoming = request.headers
    host = incoming.get("Host", "")
    headers = forwardable(incoming.items())
    if asked.api.config.tokens.guarded:  # This gateway's own token is kept from the called application.
        headers = [(name, value) for name, value in headers if name.lower() != "dapr-api-token"]
    if "dapr-caller-app-id" in incoming or "dapr-callee-app-id" in incoming or "dapr-caller-namespace" in incoming:
        headers = [(name, value) for name, value in headers if name.lower() not in _SET_HERE]
    if refused := unusable(incoming):
        headers = [(name, value) for name, value in headers if name.lower() not in refused]
    traceparent = asked.context().traceparent  # The call's own span, unless tracing is off.
    if traceparent:
        headers = [(name, value) for name, value in headers if name.lower() != "traceparent"]
        headers.append(("traceparent", traceparent))
    headers += [
        ("X-Forwarded-For", peer),
        ("X-Forwarded-Host", host),
        ("Forwarded", f"for={peer};by={peer};host={host}"),
        ("dapr-caller-app-id", caller.app_id),
        ("dapr-caller-namespace", caller.namespace),
        ("dapr-callee-app-id", target if target.startswith(OUTSIDE) else target.partition(".")[0]),
    ]
    return headers


def named_by(router: Router, request: Passing) -> str | None:
    """Give the app id that is called because a header names it: where `by_url` or `by_header` answers."""
    route = router.route(request.method, request.path)
    return header_target(request.header) if route is None or _INVOKES.match(comparable(request.path)) else None


def header_target(first: Callable[[str], str | None]) -> str | None:
    """Give the app id that a header names, by ``dapr-app-id`` or as a basic login of that name.

    Args:
        first: Gives the first header of a name.
    """
    target = text_of("dapr-app-id", first("dapr-app-id"))
    if target:
        return target
    authorization = first("Authorization") or ""
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
        # One slash of the URL's two may have got lost on the way here.
        host = [unescape(segment) for segment in segments[1:at] if segment]
        return f"{segments[0].lower()}//{'/'.join(host)}", segments[at + 1 :]
    if len(segments) < 2 or segments[1] != "method":
        return "", ()
    return unescape(segments[0]), segments[2:]


def comparable(path: str) -> str:
    """Give the copy of a raw path that is compared with routes. What a method is called is the application's matter."""
    found = _BY_URL.match(path)
    return f"/v1.0/invoke/{found[1] or found[2]}/method{path[found.end() :]}" if found is not None else clean_path(path)


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
    fields = passed_on(answer.headers)
    length = stated_length(answer.headers) if answer.status != 204 else None  # It has none: RFC 9110 section 8.6.
    if answer.body is not None:
        if (request.method == "HEAD" or answer.status == 304) and length is not None:
            fields.append(("Content-Length", str(length)))
        return Response(answer.status, answer.body, fields)
    stream = StreamedResponse(answer.status, fields, length)
    await stream.prepare(request)
    try:
        async for part in answer.parts():
            await stream.write(part)
        await stream.write_eof()
    except (MeshError, APIError):
        stream.break_off()
    return stream


async def by_message(called: Called) -> object:
    """Call an application as over HTTP; what it says besides its answer is metadata."""
    target, asked = called.message.id, called.message.message
    if not target:
        raise APIError(400, "ERR_DIRECT_INVOKE", "invalid request: the id of the application is missing")
    verb = _VERBS[asked.http_extension.verb] if asked.http_extension.verb < len(_VERBS) else "CONNECT"
    if verb == "CONNECT":
        raise bad_request("the verb of http_extension is none that applications are called with")
    path, mark, query = asked.method.partition("?")
    query = "&".join(filter(None, (query, asked.http_extension.querystring)))
    path = quote(path if path.startswith("/") else f"/{path}", safe=_LEGAL)
    check_escapes(path)
    whole_target = f"{path}?{quote(query, safe=_LEGAL)}" if mark or query else path
    call = Call(verb, whole_target, _headers_of(called, target, asked), asked.data.value)
    async with cast("Answer", await called.run(INVOKE, target, call, called.deadline)) as answer:
        try:
            body = await _whole(answer, called.api.config.max_body_bytes)
        except MeshError as error:
            raise failure(error, INVOKE, target, call, called.api.caller.app_id) from error
    _tell(called, answer)
    code = BY_HTTP_STATUS.get(answer.status, Code.UNKNOWN).name if not 200 <= answer.status < 300 else "OK"
    if code == "OK":
        content_type = next((value for name, value in answer.headers if name.lower() == "content-type"), "")
        return called.reply(data={"value": body}, content_type=readable(content_type))
    if any(name == "grpc-status" for name, _ in answer.trailers):
        raise _of_grpc(answer.status, body)
    text = _PHRASES.get(answer.status, "")
    metadata = {"http.code": str(answer.status), "http.error_message": body.decode("utf-8", "replace")[:_TOLD]}
    reason: dict[str, object] = {"reason": text, "domain": "dapr.io", "metadata": metadata}
    details: list[Mapping[str, object]] = [{"@type": TYPES + "ErrorInfo", **reason}]
    raise APIError(answer.status, "ERR_DIRECT_INVOKE", text, details, code)


def _of_grpc(status: int, body: bytes) -> APIError:
    """Tell of a failure as an application on gRPC did, whose body is a ``google.rpc.Status``."""
    try:
        said = orjson.loads(body)
        code, text = said["code"], said["message"]
        known = (each for each in said.get("details", ()) if isinstance(each, dict))
        details: list[Mapping[str, object]] = [each for each in known if isinstance(each.get("@type"), str)]
        if code != Code.OK and isinstance(text, str):
            return APIError(status, "ERR_DIRECT_INVOKE", text, details or None, Code(code).name)
    except (ValueError, TypeError, LookupError):
        pass
    return APIError(status, "ERR_DIRECT_INVOKE", "the application's status cannot be read", grpc="UNKNOWN")


def _headers_of(called: Called, target: str, asked: Any) -> list[tuple[str, str]]:
    given, caller = called.metadata, called.api.caller
    dropped = _SET_HERE | {"content-type", "grpc-trace-bin", *unusable(given)}
    if traceparent := called.trace.traceparent:
        dropped |= {"traceparent"}
    headers = [
        (name, value)
        for name, value in forwardable(called.fields())
        if name not in dropped and not name.startswith("grpc-")
    ]
    headers += [
        ("dapr-caller-app-id", caller.app_id),
        ("dapr-caller-namespace", caller.namespace),
        ("dapr-callee-app-id", target if target.startswith(OUTSIDE) else target.partition(".")[0]),
    ]
    content_type = asked.content_type or ("application/json" if asked.data.value and not asked.data.type_url else "")
    if content_type:
        headers.append(("content-type", content_type))
    if traceparent:
        headers.append(("traceparent", traceparent))
    return headers


async def _whole(answer: Answer, limit_bytes: int) -> bytes:
    if answer.body is not None:
        return answer.body
    parts: list[bytes] = []
    size = 0
    async for part in answer.parts():
        parts.append(part)
        size += len(part)
        if size > limit_bytes:
            raise too_large(limit_bytes)
    return b"".join(parts)


def _tell(called: Called, answer: Answer) -> None:
    """Tell headers as metadata, as far as they can be that."""
    called.headers.append(("dapr-http-status", str(answer.status)))
    for name, value in passed_on(answer.headers):
        lowered = name.lower()
        if lowered != "content-type" and not lowered.startswith("grpc-") and _METADATA.fullmatch(f"{lowered}:{value}"):
            called.headers.append((lowered, value))


RPCS = (RPC("InvokeService", by_message, "invoke"),)

ROUTES = (Route("invoke/{rest*}", by_url),)
