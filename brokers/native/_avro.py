"""Values that are Avro on a broker; applications see JSON. Kafka's are by schemas that a registry keeps.

Source: Confluent's wire format (a zero, the schema's number in 4 bytes, the value), its Schema Registry's REST API, and
Avro 1.12, "JSON Encoding".
"""

from __future__ import annotations

import io
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import fastavro
from fastavro.validation import validate

from brokers.native._http import ask, shown
from mesh.errors import BadArgumentError, BrokerUnavailableError, PublishRejectedError

__all__ = ["Avro", "NoSchemaError", "decoded", "encoded", "parsed"]

MAX_KEPT = 1000
MAGIC = b"\x00"
_PARTS = ("type", "items", "values", "fields")  # Of a schema, where there are schemas within.


class NoSchemaError(PublishRejectedError):
    """The registry has no such schema, or none that can be used."""


class Avro:
    """Values of a cluster's records, and their schemas."""

    def __init__(self, url: str, auth: tuple[str, str] | None, *, keeps: bool, latest_for: float, typed: bool) -> None:
        """Prepare.

        Args:
            url: Of the registry.
            auth: A user of it and its password.
            keeps: Whether schemas are kept.
            latest_for: Seconds that a topic's latest schema is taken to be that.
            typed: Whether JSON names the type of a union's value, as Avro's JSON encoding does.
        """
        self._url, self._auth = url, auth
        self._keeps, self._latest_for, self._typed = keeps, latest_for, typed
        self._schemas: OrderedDict[int, Any] = OrderedDict()
        self._latest: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def encode(self, topic: str, body: bytes) -> bytes:
        """Write JSON by the latest schema of a topic's values.

        Raises:
            BadArgumentError: The JSON is not of that schema.
            NoSchemaError: The topic has none.
            BrokerUnavailableError: The registry does not answer.
        """
        number, schema = await self._of_topic(topic)
        try:
            return MAGIC + number.to_bytes(4, "big") + encoded(body, schema, typed=self._typed)
        except ValueError as error:
            raise BadArgumentError(f"the event is not of the schema {number} of {topic}-value: {error}") from error

    async def decode(self, value: bytes) -> bytes:
        """Give JSON for a value, and what is no Avro as it is.

        Raises:
            BrokerUnavailableError: The registry does not answer.
        """
        if len(value) < 5 or value[:1] != MAGIC:
            return value
        try:
            schema = await self._by_number(int.from_bytes(value[1:5], "big"))
            return decoded(value[5:], schema, typed=self._typed)
        except (NoSchemaError, ValueError):  # It goes the way of all events that cannot be read.
            return value

    # The registry

    async def _of_topic(self, topic: str) -> tuple[int, Any]:
        kept = self._latest.get(topic)
        if kept is not None and self._keeps and time.monotonic() < kept[0]:
            return kept[1], await self._by_number(kept[1])
        told = await self._ask(f"/subjects/{quote(f'{topic}-value', safe='')}/versions/latest", f"{topic}-value")
        number = told.get("id")
        if not isinstance(number, int) or not 0 <= number < 1 << 32:
            raise NoSchemaError(f"{shown(self._url)} does not say the number of {topic}-value")
        schema = self._keep(number, told)
        self._latest[topic] = time.monotonic() + self._latest_for, number
        if len(self._latest) > MAX_KEPT:
            self._latest.popitem(last=False)
        return number, schema

    async def _by_number(self, number: int) -> Any:
        if self._keeps and number in self._schemas:
            self._schemas.move_to_end(number)
            return self._schemas[number]
        return self._keep(number, await self._ask(f"/schemas/ids/{number}", f"the schema {number}"))

    def _keep(self, number: int, told: Mapping[str, Any]) -> Any:
        if told.get("schemaType", "AVRO") != "AVRO" or told.get("references"):
            raise NoSchemaError(f"the schema {number} is not Avro, or refers to others, which is not supported")
        try:
            schema = parsed(json.loads(told["schema"]))
        except (KeyError, TypeError, ValueError) as error:
            raise NoSchemaError(f"the schema {number} cannot be read: {error}") from error
        self._schemas[number] = schema
        if len(self._schemas) > MAX_KEPT:
            self._schemas.popitem(last=False)
        return schema

    async def _ask(self, path: str, what: str) -> Mapping[str, Any]:
        try:
            status, answer = await ask(self._url + path, auth=self._auth)
        except ConnectionError as error:
            raise BrokerUnavailableError(f"the schema registry does not answer: {error}") from error
        if status == 404:
            raise NoSchemaError(f"{shown(self._url)} has no {what}")
        try:
            told = json.loads(answer)
        except ValueError:
            told = None
        if status != 200 or not isinstance(told, dict):
            raise BrokerUnavailableError(f"{shown(self._url)} answers with status {status} for {what}")
        return told


# The library raises what its parts raise, whatever that is: every failure is about the text or the bytes.


def parsed(definition: Any) -> Any:
    """Read a schema, as JSON has it.

    Raises:
        ValueError: It is none.
    """
    try:
        # Values are what is stored, not what they stand for: a time is a number, also in JSON.
        return fastavro.parse_schema(_plain(definition))
    except Exception as error:
        raise ValueError(_told(error)) from error


def encoded(body: bytes, schema: Any, *, typed: bool = False) -> bytes:
    """Write JSON by a schema; ``typed`` as for `Avro`.

    Raises:
        ValueError: The JSON is not of that schema.
    """
    written = io.BytesIO()
    try:
        if typed:
            [value] = fastavro.json_reader(io.StringIO(body.decode()), schema)
        else:
            value = _taken(json.loads(body), schema, _named(schema))
            validate(value, schema)  # What writes it would cut 1.5 to 1, and take numbers that are too large.
        fastavro.schemaless_writer(written, schema, value, strict_allow_default=True)
    except Exception as error:
        raise ValueError(_told(error)) from error
    return written.getvalue()


def decoded(value: bytes, schema: Any, *, typed: bool = False) -> bytes:
    """Give JSON for a value that was written by a schema.

    Raises:
        ValueError: It was not.
    """
    try:
        read = fastavro.schemaless_reader(io.BytesIO(value), schema, schema)
        if not typed:
            return json.dumps(read, separators=(",", ":"), ensure_ascii=False, default=_latin).encode()
        written = io.StringIO()
        fastavro.json_writer(written, schema, [read])
        return written.getvalue().encode()
    except Exception as error:
        raise ValueError(_told(error)) from error


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _latin(value: object) -> str:
    if isinstance(value, bytes | bytearray):  # As Avro's JSON encoding writes bytes.
        return bytes(value).decode("latin-1")
    return str(value)


def _plain(schema: Any) -> Any:
    """Leave out what values stand for."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if isinstance(schema, dict):
        kept = {name: each for name, each in schema.items() if name != "logicalType"}
        return {name: _plain(each) if name in _PARTS else each for name, each in kept.items()}
    return schema


def _named(schema: Any) -> Mapping[str, Any]:
    found: dict[str, Any] = {}

    def look(each: Any) -> None:
        if isinstance(each, list):
            for part in each:
                look(part)
        elif isinstance(each, dict):
            if each.get("type") in ("record", "error", "enum", "fixed") and "name" in each:
                found[each["name"]] = each
            for name in ("type", "items", "values"):
                look(each.get(name))
            for field in each.get("fields", ()):
                look(field.get("type"))

    look(schema)
    return found


def _taken(value: Any, schema: Any, named: Mapping[str, Any]) -> Any:
    """Give a value of JSON as the library has it: bytes are texts of as many characters there."""
    if isinstance(schema, list):
        for branch in schema:
            try:
                found = _taken(value, branch, named)
            except (TypeError, ValueError, KeyError, AttributeError):
                continue
            if validate(found, branch if isinstance(branch, dict) else named.get(branch, branch), raise_errors=False):
                return found
        raise ValueError(f"{str(value)[:80]!r} is of no type of {[_shown(each) for each in schema]}")
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind in named and kind not in ("record", "enum", "fixed"):
        return _taken(value, named[kind], named)
    match kind:
        case "bytes" | "fixed":
            return value.encode("latin-1")
        case "array":
            return [_taken(each, schema["items"], named) for each in value]
        case "map":
            return {name: _taken(each, schema["values"], named) for name, each in value.items()}
        case "record" | "error":
            fields = {field["name"]: field["type"] for field in schema["fields"]}
            return {name: _taken(each, fields[name], named) for name, each in value.items()}
        case dict() | list():
            return _taken(value, kind, named)
        case _:
            return value


def _shown(schema: Any) -> str:
    return str(schema.get("name", schema.get("type"))) if isinstance(schema, dict) else str(schema)
