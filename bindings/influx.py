"""Writes points to InfluxDB and queries them.

Sources: Dapr 1.18, the InfluxDB binding; InfluxDB 2, its HTTP interface and line protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

import orjson

from bindings._service import JSON, Service, is_service
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked
from mesh.resources.settings import setting

__all__ = ["InfluxBinding"]

OPERATIONS = ("create", "query")
_TEXT = {"Content-Type": "text/plain; charset=utf-8"}
_DIALECT = {"annotations": ["datatype", "group", "default"], "delimiter": ",", "header": True}
_IN_MEASUREMENT = re.compile(r"(?<!\\)([, ])")  # What is escaped already stays so.
_IN_TAG = re.compile(r"([,= ])")


@dataclass(frozen=True, slots=True)
class InfluxSettings:
    """What is read of a component."""

    url: str = setting("url", "URL of the server.", required=True, example="http://localhost:8086")
    token: str = setting("token", "Token to log in with.", required=True, secret=True)
    org: str = setting("org", "The organization.", required=True, example="myorg")
    bucket: str = setting("bucket", "The bucket that points are written to.", required=True, example="mybucket")


class InfluxBinding(ComponentAdapter):
    """A bucket of InfluxDB."""

    title = "Writes points to InfluxDB, and queries it."
    tested = "a server with the two requests of its HTTP interface, in tests; it never ran against InfluxDB itself"
    settings: ClassVar[type[InfluxSettings]] = InfluxSettings
    operations = OPERATIONS

    def __init__(self, settings: InfluxSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._service: Service

    async def _enter(self) -> None:
        settings: InfluxSettings = self._settings
        if not is_service(settings.url) or "?" in settings.url or "@" in urlsplit(settings.url).netloc:
            raise self._problem("is the URL of a server, without credentials: http://… or https://…", "url")
        headers = {"Authorization": f"Token {settings.token}"}
        service = Service("InfluxDB", settings.url, headers, secrets=(settings.token,))
        self._service = await self._stack.enter_async_context(service)

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """Write what the data hold, or ask what the metadata ``raw`` say."""
        settings: InfluxSettings = self._settings
        if asked.operation == "create":
            query = {"org": settings.org, "bucket": settings.bucket, "precision": "ns"}
            await self._service.ask("/api/v2/write", _lines(asked.data), _TEXT, query)
            return None
        raw = asked.metadata.get("raw", "")
        if not raw:
            raise BindingError("the metadata raw are missing: the query")
        body = orjson.dumps({"query": raw, "type": "flux", "dialect": _DIALECT})
        answer = await self._service.ask(
            "/api/v2/query", body, {**JSON, "Accept": "application/csv"}, {"org": settings.org}
        )
        return Invoked(answer.raw, {"operation": "query", "raw": raw})


def _lines(data: bytes) -> bytes:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        value = None
    points = value if isinstance(value, list) else [value]
    if not points or not all(isinstance(each, dict) for each in points):
        raise BindingError("the data are a JSON object with measurement, tags and values, or an array of them")
    return "\n".join(_line(each) for each in points).encode()


def _line(point: Mapping[str, object]) -> str:
    """Write a point; tags and values that are texts stand in line protocol already."""
    measurement = point.get("measurement")
    if not isinstance(measurement, str) or not measurement or _broken(measurement):
        raise BindingError("measurement is missing, or no text on one line")
    tags = _tags(point.get("tags"))
    values = point.get("values")
    fields = values if isinstance(values, str) else ",".join(_fields(values))
    if not fields:
        raise BindingError("values are missing: an object, or a text in line protocol")
    moment = point.get("timestamp")
    if moment is not None and (isinstance(moment, bool) or not isinstance(moment, int)):
        raise BindingError("timestamp is a whole number of nanoseconds since 1970")
    head = _IN_MEASUREMENT.sub(r"\\\1", measurement) + (f",{tags}" if tags else "")
    return f"{head} {fields}" + ("" if moment is None else f" {moment}")


def _tags(given: object) -> str:
    if given is None:
        return ""
    if isinstance(given, str):
        if _broken(given):
            raise BindingError("tags hold a line break")
        return given
    if not isinstance(given, dict):
        raise BindingError("tags are an object, or a text in line protocol")
    # InfluxDB advises to sort them; one without a value is none.
    named = [(name, _plain(value)) for name, value in sorted(given.items()) if value is not None and value != ""]
    return ",".join(f"{_escaped(name)}={_escaped(value)}" for name, value in named)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise BindingError("a tag is a text, a number or a truth value")
    return str(value)


def _fields(given: object) -> Iterator[str]:
    """Give the fields; a number is written as one with a fraction, since JSON does not tell them apart."""
    if not isinstance(given, dict):
        raise BindingError("values are missing: an object, or a text in line protocol")
    for name, value in given.items():
        match value:
            case None:
                continue
            case bool():
                text = "true" if value else "false"
            case int() | float():
                text = str(value)
            case str():
                text = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
            case _:
                raise BindingError("a value is a text, a number or a truth value")
        yield f"{_escaped(name)}={text}"


def _escaped(text: str) -> str:
    if not text or _broken(text) or text.endswith("\\"):
        raise BindingError("a name or a tag is empty, ends in a backslash, or holds a line break")
    return _IN_TAG.sub(r"\\\1", text)


def _broken(text: str) -> bool:
    return any(each in text for each in "\r\n\0")
