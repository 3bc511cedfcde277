"""Asks a policy service what may pass.

Sources: Dapr 1.18, the OPA middleware; Open Policy Agent, its REST API (data and policies).
"""

from __future__ import annotations

import base64
import http
from dataclasses import dataclass
from typing import Any, ClassVar, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from bindings.middleware._service import SERVICE, Asked, header_name
from bindings.middleware.routerchecker import plain
from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, MiddlewareError, Onward, Request
from mesh.resources.component import Component
from mesh.resources.settings import BOOLEAN, VERBATIM, setting, whole

__all__ = ["OPAMiddleware"]

FAILED = ("x-dapr-opa-error", "true")
OF_BODY = ("content-length", "transfer-encoding")
ALLOW = "/v1/data/http/allow"


@dataclass(frozen=True, slots=True)
class OPASettings:
    """What is read of a component."""

    url: str = setting(
        "mesh.url",
        f"Address of the policy service, whose document `{ALLOW}` is asked, or of another document of it.",
        SERVICE,
        default="",
        example="http://127.0.0.1:8181",
        suggested=True,
    )
    rego: str = setting(
        "rego",
        "A policy, package `http`, that is given to the service at start; else the service has it already.",
        VERBATIM,
        default="",
    )
    status: int = setting(
        "defaultStatus", "What refused requests are answered, unless the policy says it.", whole(200, 599), default=403
    )
    included: str = setting(
        "includedHeaders", "Header fields that the policy is told, separated by commas.", default=""
    )
    body: bool = setting("readBody", "Whether the policy is told the body.", BOOLEAN, default=False)


class OPAMiddleware(ComponentAdapter):
    """Lets through what a policy of Open Policy Agent allows; a service of it is asked over HTTP."""

    tested = "Open Policy Agent 1.4"
    settings: ClassVar[type[OPASettings]] = OPASettings

    def __init__(self, settings: OPASettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._included = {each.strip().lower() for each in settings.included.split(",") if each.strip()}
        self._service: Asked

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; Dapr's own say nothing of a service."""
        made = super().from_component(component)
        if not made._settings.url:
            raise made._problem(
                "no policy runs in the gateway itself: run Open Policy Agent (opa run --server) beside it, and say "
                "where it is by the setting mesh.url; it is given the policy",
                "rego" if made._settings.rego else "mesh.url",
            )
        return made

    async def _enter(self) -> None:
        settings: OPASettings = self._settings
        path = urlsplit(settings.url).path.rstrip("/")
        url = settings.url.rstrip("/") + (ALLOW if not path else "")
        self._service = await self._stack.enter_async_context(Asked("the policy service", url))
        if settings.rego:
            await self._give(settings.rego)

    async def _give(self, rego: str) -> None:
        """Give the service its policy, under this component's name."""
        name = "brokermesh" if self._component is None else self._component.name
        answer = await self._service.put(f"/v1/policies/{quote(name, safe='')}", rego.encode())
        if answer.status != 200:
            told = answer.body if isinstance(answer.body, dict) else {}
            errors = "; ".join(_told(each) for each in told.get("errors", ()) if isinstance(each, dict))
            raise self._problem(f"the policy service refuses the policy: {errors or answer.reason()}", "rego")

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Pass on what is allowed; raises ``MiddlewareError`` where that is not decided."""
        given = await self._input(request)
        try:
            told = (await self._service.value({"input": {"request": given}})).body
        except MiddlewareError as error:
            raise self._failed(str(error)) from error
        result = told.get("result") if isinstance(told, dict) else None
        if isinstance(result, bool):
            result = {"allow": result}
        if not isinstance(result, dict):
            raise self._failed("it has no such document, or its value is neither true, false nor an object")
        status, allow = result.get("status_code", self._settings.status), result.get("allow", False)
        more = result.get("additional_headers", {})
        fine = isinstance(status, int) and 200 <= status <= 599 and isinstance(allow, bool) and isinstance(more, dict)
        if not fine or not all(_field(*pair) for pair in more.items()):
            raise self._failed("its value has an allow, a status_code or additional_headers that cannot be")
        if not allow:
            return _refused(status, *more.items())
        for name, value in more.items():
            request = request.with_header(name, value)
        return await onward(request)

    async def _input(self, request: Request) -> dict[str, Any]:
        headers: dict[str, str] = {}
        for name, value in request.headers:
            if name.lower() in self._included:  # Whoever repeats a field must not choose which one is decided on.
                before = headers.get(name.title())
                headers[name.title()] = value if before is None else f"{before}, {value}"
        given: dict[str, Any] = {
            "method": request.method,
            "path": unquote(request.place),
            "path_parts": unquote(request.place).strip("/").split("/"),
            "raw_query": request.query,
            "query": parse_qs(request.query, keep_blank_values=True),
            "headers": headers,
            "scheme": request.scheme,
        }
        if self._settings.body:
            data = await request.body.read()
            try:
                given["body"] = data.decode()
            except UnicodeDecodeError:
                given["body"] = base64.b64encode(data).decode()
        return given

    def _failed(self, reason: str) -> MiddlewareError:
        error = MiddlewareError(f"the policy service does not decide: {reason}")
        error.answer = _refused(self._settings.status, FAILED)
        return error


def _refused(status: int, *fields: tuple[str, str]) -> Answer:
    try:
        text = http.HTTPStatus(status).phrase
    except ValueError:
        text = str(status)
    return plain(status, text, *fields)


def _field(name: object, value: object) -> bool:
    """Tell whether a header field can be that; where a body ends is nothing that a policy decides."""
    if not isinstance(name, str) or name.lower() in OF_BODY:
        return False
    try:
        return bool(header_name(name)) and isinstance(value, str) and value.isprintable()
    except ValueError:
        return False


def _told(error: dict[str, Any]) -> str:
    at = error.get("location")
    row = f"line {at.get('row')}: " if isinstance(at, dict) else ""
    return f"{row}{error.get('message')}"
