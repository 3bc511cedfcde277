"""Queries and mutations of one GraphQL service.

Sources: Dapr 1.18, the GraphQL binding; "GraphQL over HTTP".
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Self
from urllib.parse import unquote, urlsplit

import orjson

from bindings._service import JSON, Service, is_service
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked
from mesh.resources.component import Component
from mesh.resources.settings import located, setting
from mesh.values import show_duration

__all__ = ["GraphQLBinding"]

OPERATIONS = ("query", "mutation")
_ACCEPT = {"Accept": "application/graphql-response+json, application/json;q=0.9"}
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_CONNECTION = frozenset(("host", "content-length", "content-type", "transfer-encoding", "connection", "accept"))


@dataclass(frozen=True, slots=True)
class GraphQLSettings:
    """What is read of a component."""

    endpoint: str = setting("endpoint", "URL of the service.", required=True, example="https://api.example.com/graphql")
    anyhow: str = setting(
        "header:", "A header field of each request, its name after the colon.", default="", secret=True
    )
    usual: str = setting("variable:", "A variable of each query, its name after the colon.", default="")
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


class GraphQLBinding(ComponentAdapter):
    """A GraphQL service."""

    title = "Queries and changes by a GraphQL service."
    tested = "a server of graphql-core over HTTP"
    settings: ClassVar[type[GraphQLSettings]] = GraphQLSettings
    operations = OPERATIONS

    def __init__(self, settings: GraphQLSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._service: Service

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings, those of one kind of name, too."""
        made = super().from_component(component)
        given = [(each.name.partition(":"), component.setting(each.name) or "") for each in component.metadata]
        families = {
            kind: {name: value for (before, _, name), value in given if before.casefold() == kind}
            for kind in ("header", "variable")
        }
        settings: GraphQLSettings = made._settings
        for name, value in families["header"].items():
            with located(component, f"header:{name}"):
                _check(name, value)
        made._settings = GraphQLSettings(settings.endpoint, headers=families["header"], variables=families["variable"])
        return made

    async def _enter(self) -> None:
        settings: GraphQLSettings = self._settings
        if not is_service(settings.endpoint):
            raise self._problem("is the URL of a service: http://… or https://…", "endpoint")
        parts = urlsplit(settings.endpoint)
        whole = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._path = settings.endpoint.partition(parts.netloc)[2]
        secrets, headers = [*settings.headers.values()], dict(_ACCEPT)
        if parts.username is not None:
            user, password = unquote(parts.username), unquote(parts.password or "")
            login = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {login}"
            secrets += [password, login]
        service = Service("the GraphQL service", whole, headers, secrets=secrets)
        self._service = await self._stack.enter_async_context(service)

    async def invoke(self, asked: Invoke) -> Invoked:
        """Send the document that the metadata ``query``, or ``mutation``, hold."""
        settings: GraphQLSettings = self._settings
        document = asked.metadata.get(asked.operation, "")
        if not document:
            raise BindingError(f"the metadata {asked.operation} are missing: the document")
        body = {"query": document, "variables": {**settings.variables, **_variables(asked)}}
        headers = {**settings.headers, **_headers(asked.metadata)}
        began, watch = datetime.now(UTC), time.monotonic()
        answer = await self._service.send(self._path, orjson.dumps(body), {**headers, **JSON})
        value = answer.body if isinstance(answer.body, dict) else {}
        if value.get("errors"):
            reason = "; ".join(_messages(value["errors"]))
            raise self._service.refused(answer.status, f"answered with errors: {reason}")
        if not 200 <= answer.status < 300:
            raise self._service.refused(answer.status, f"answered {answer.reason()}")
        if "data" not in value:
            raise self._service.refused(answer.status, "answered with neither data nor errors")
        return Invoked(
            orjson.dumps(value["data"]),
            {
                "operation": asked.operation,
                "start-time": began.isoformat(),
                "end-time": datetime.now(UTC).isoformat(),
                "duration": show_duration(round(time.monotonic() - watch, 6)),
            },
        )


def _variables(asked: Invoke) -> dict[str, object]:
    """Give the variables of a call: texts by metadata, and those of any type by its data."""
    found: dict[str, object] = {}
    if asked.data not in (b"", b"null"):
        try:
            value = orjson.loads(asked.data)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise BindingError("the data are a JSON object of variables, or nothing")
        found |= value
    return found | {name[9:]: value for name, value in asked.metadata.items() if name.startswith("variable:")}


def _headers(metadata: Mapping[str, str]) -> dict[str, str]:
    found = {name[7:]: value for name, value in metadata.items() if name.startswith("header:")}
    for name, value in found.items():
        try:
            _check(name, value)
        except ValueError as error:
            raise BindingError(f"the metadata header:{name!r} {error}") from None
    trace = {name: metadata[name] for name in ("traceparent", "tracestate", "baggage") if name in metadata}
    return trace | found


def _check(name: str, value: str) -> None:
    """Refuse what would be more than one header field, or lead the request elsewhere."""
    if not _NAME.fullmatch(name) or name.casefold() in _OF_CONNECTION:
        raise ValueError("names no header field that can be set")
    if any(each in value for each in "\r\n\0"):
        raise ValueError("has a line break in its value")


def _messages(errors: object) -> list[str]:
    several = errors if isinstance(errors, list) else [errors]
    return [str(each.get("message", "")) if isinstance(each, dict) else str(each) for each in several]
