"""Calls of one HTTP service: its URL stands in the component, the verb is the operation.

Source: Dapr 1.18, the HTTP binding.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import aiohttp
from yarl import URL

from bindings._data import text_of
from bindings._service import is_service
from bindings.remote import tls_context
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked
from mesh.resources.component import header_refusal
from mesh.resources.settings import BOOLEAN, LIMIT, SIZE, VERBATIM, choice, setting
from mesh.urls import without_credentials
from mesh.values import parse_bool

__all__ = ["HTTPBinding"]

OPERATIONS = ("create", "get", "head", "post", "put", "patch", "delete", "options", "trace")
MAX_CONNECTIONS = 100
SIZE_OF_ANSWER = 100 * 1024 * 1024
_WITH_BODY = frozenset(("POST", "PUT", "PATCH", "DELETE"))
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_CONNECTION = frozenset(("Host", "Content-Length", "Transfer-Encoding", "Connection"))


@dataclass(frozen=True, slots=True)
class HTTPSettings:
    """What is read of a component."""

    url: str = setting("url", "What every `path` is added to.", required=True, example="https://api.example.com/v1")
    timeout: float | None = setting(
        "responseTimeout", "How long an answer may take; the operation's limit, if not set.", LIMIT, example="10s"
    )
    most: int = setting("maxResponseBodySize", "The largest answer; `0` is no limit.", SIZE, default=SIZE_OF_ANSWER)
    strict: bool = setting(
        "errorIfNot2XX", "Whether an answer other than 200 to 299 is an error.", BOOLEAN, default=True
    )
    ca: str = setting("MTLSRootCA", "Certificates to trust: PEM, or the path of a file.", VERBATIM, default="")
    certificate: str = setting(
        "MTLSClientCert", "Certificate to show: PEM, or the path of a file.", VERBATIM, default=""
    )
    key: str = setting(
        "MTLSClientKey", "Its private key: PEM, or the path of a file.", VERBATIM, default="", secret=True
    )
    renegotiation: str = setting(
        "MTLSRenegotiation",
        "Read for compatibility: a server's wish to renegotiate is refused, as TLS 1.3 does.",
        choice("RenegotiateNever", "RenegotiateOnceAsClient", "RenegotiateFreelyAsClient"),
        default="RenegotiateNever",
    )
    token: str = setting("securityToken", "Sent with every call.", default="", secret=True)
    token_header: str = setting(
        "securityTokenHeader",
        "The header field that the token is sent in, and what stands before it: `X-Token`, or `Authorization: Bearer`.",
        default="",
        example="Authorization: Bearer",
    )


class HTTPBinding(ComponentAdapter):
    """An HTTP service."""

    title = "Calls an HTTP service by any verb."
    tested = "an HTTP server, with and without mutual TLS"
    settings: ClassVar[type[HTTPSettings]] = HTTPSettings
    operations = OPERATIONS

    def __init__(self, settings: HTTPSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._url = settings.url
        self._shown = without_credentials(settings.url)
        self._token: dict[str, str] = {}
        self._session: aiohttp.ClientSession

    async def _enter(self) -> None:
        settings: HTTPSettings = self._settings
        if not is_service(settings.url):
            raise self._problem("is the URL of a service: http://… or https://…", "url")
        if bool(settings.certificate) != bool(settings.key):
            raise self._problem("MTLSClientCert and MTLSClientKey go together", "MTLSClientCert")
        if bool(settings.token) != bool(settings.token_header):
            raise self._problem("securityToken and securityTokenHeader go together", "securityTokenHeader")
        self._token = self._token_field()
        tls = await asyncio.to_thread(self._context)
        connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=tls)
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._session = await self._stack.enter_async_context(session)

    def _token_field(self) -> dict[str, str]:
        settings: HTTPSettings = self._settings
        if not settings.token:
            return {}
        name, _, before = (each.strip() for each in settings.token_header.partition(":"))
        value = f"{before} {settings.token}".strip()
        if not _FIELD.fullmatch(name) or name.title() in _OF_CONNECTION or header_refusal(value):
            raise self._problem("names no header field that can hold the token", "securityTokenHeader")
        return {name: value}

    def _context(self) -> ssl.SSLContext:
        settings: HTTPSettings = self._settings
        named = {"MTLSRootCA": settings.ca, "MTLSClientCert": settings.certificate, "MTLSClientKey": settings.key}
        given: dict[str, str | None] = {}
        for name, text in named.items():
            try:
                given[name] = _pem(text) if text else None
            except (OSError, ValueError) as error:  # Its text may be the key itself, which is not told.
                why = error.strerror if isinstance(error, OSError) else "it is no text"
                raise self._problem(f"is neither PEM nor the path of a file that can be read: {why}", name) from None
        try:
            return tls_context(*given.values())
        except (OSError, ValueError) as error:  # An ssl.SSLError is an OSError.
            raise self._problem(f"the certificates cannot be used: {error}", "MTLSRootCA") from None

    async def invoke(self, asked: Invoke) -> Invoked:
        """Call the service."""
        settings: HTTPSettings = self._settings
        verb = "POST" if asked.operation == "create" else asked.operation.upper()
        try:
            strict = parse_bool(asked.metadata.get("errorIfNot2XX") or str(settings.strict).lower(), words=True)
        except ValueError as error:
            raise BindingError(f"errorIfNot2XX {error}") from None
        try:
            async with self._session.request(
                verb,
                self._target(asked.metadata.get("path", "")),
                data=text_of(asked.data) if verb in _WITH_BODY else None,
                headers=self._headers(asked.metadata),
                allow_redirects=False,
            ) as response:
                body = await _read(response, settings.most)
        except TimeoutError:
            raise BindingError(f"{self._shown} does not answer in time", retryable=True) from None
        except aiohttp.InvalidURL:  # It would be told whole, with what is secret in it.
            raise BindingError(f"{self._shown} and the path are no URL") from None
        except ValueError as error:
            raise BindingError(f"{self._shown} cannot be called: {error}") from None
        except (aiohttp.ClientError, OSError) as error:
            why = error.message if isinstance(error, aiohttp.ClientResponseError) else error
            raise BindingError(f"{self._shown} cannot be called: {why}", retryable=True) from None
        told = {name: ", ".join(response.headers.getall(name)) for name in dict.fromkeys(response.headers)}
        told |= {"statusCode": str(response.status), "status": f"{response.status} {response.reason or ''}".strip()}
        if strict and not 200 <= response.status < 300:
            raise BindingError(f"received status code {response.status}", told)
        return Invoked(body, told)

    def _target(self, path: str) -> URL:
        if not path:
            return URL(self._url, encoded=True)
        names = unquote(path.partition("?")[0]).replace("\\", "/").split("/")
        if ".." in names:
            raise BindingError("the path leaves the binding's url by '..'")
        return URL(f"{self._url.rstrip('/')}/{path.lstrip('/')}")

    def _headers(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Give what begins with an upper-case letter, and the trace."""
        headers = {"Accept": "application/json; charset=utf-8", "Content-Type": "application/json; charset=utf-8"}
        for name, value in metadata.items():
            if not name[:1].isupper() and name not in ("traceparent", "tracestate", "baggage"):
                continue
            if not _FIELD.fullmatch(name):  # Such as "Host: elsewhere".
                raise BindingError(f"the metadata {name!r} are the name of no header field")
            if refusal := header_refusal(value):
                raise BindingError(f"the metadata {name}: {refusal}")
            if name.title() not in _OF_CONNECTION:
                headers[name] = value
        return headers | self._token


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if most and len(body) > most:
            raise ValueError(f"it answers more than {most} bytes (maxResponseBodySize)")
    return bytes(body)


def _pem(given: str) -> str:
    """Give PEM as it is, or what a file holds."""
    return given if "-----BEGIN" in given else Path(given.strip()).read_text(encoding="utf-8")
