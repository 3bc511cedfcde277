"""Schemas that a component sets for topics of Pulsar: the broker keeps them, and what is published is of them.

A schema is one of an event's data. Registered is that of the envelope around them, as Dapr 1.18 does it, unless the
topic's ``.rawschema`` is true: then messages are the mere data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from _pulsar import SchemaInfo, SchemaType
from pulsar.schema import Schema

from brokers.native._avro import decoded, encoded, parsed

__all__ = ["TopicSchema"]

# By what settings are called after a topic's name. Pulsar's JSON schemas are written in Avro's language as well.
KINDS: Mapping[str, SchemaType] = {"jsonschema": SchemaType.JSON, "avroschema": SchemaType.AVRO}
REQUIRED = ("id", "source", "specversion", "type")
OPTIONAL = (
    *("datacontenttype", "subject", "time", "topic", "pubsubname"),
    *("traceid", "traceparent", "tracestate", "expiration"),
)


class TopicSchema(Schema):  # type: ignore[misc]  # The library has no types.
    """One topic's, as the client library hands it to the broker; to the library, values are bytes.

    Attributes:
        is_avro: Whether values are Avro's binary form, and not JSON.
    """

    def __init__(self, text: str, kind: str, *, raw: bool) -> None:
        """Read it.

        Args:
            text: As it was set.
            kind: What the setting is called after the topic's name.
            raw: Whether messages are the mere data.

        Raises:
            ValueError: It is none.
        """
        definition = json.loads(text)
        self._is_raw = raw
        self._wraps_record = not raw and isinstance(definition, dict) and definition.get("type") == "record"
        if not raw:
            # Dapr sorts the names; other bytes would be another version of the schema.
            definition = _in_envelope(json.loads(json.dumps(definition, sort_keys=True)))
            text = json.dumps(definition, separators=(",", ":"), ensure_ascii=False)
        self._parsed = parsed(definition)
        self.is_avro = KINDS[kind] is SchemaType.AVRO
        self._schema_info = SchemaInfo(KINDS[kind], KINDS[kind].name, text)

    def encode(self, obj: bytes) -> bytes:
        """Leave bytes as they are: the library calls this."""
        return obj

    def written(self, body: bytes) -> bytes:
        """Give what is sent for JSON.

        Raises:
            ValueError: It is not of this schema.
        """
        body = self._with_object(body) if self._wraps_record else body
        value = encoded(body, self._parsed)
        return value if self.is_avro else body

    @staticmethod
    def parse(text: str) -> Any:
        """Read a schema that the broker keeps; raises ``ValueError`` if it is none."""
        return parsed(json.loads(text))

    def read(self, value: bytes, writer: Any) -> bytes:
        """Give JSON for a value.

        Args:
            value: In Avro's binary form.
            writer: The schema that it was written by, which need not be this one.

        Raises:
            ValueError: It was not.
        """
        body = decoded(value, writer)
        if self._is_raw:
            return body
        # An attribute that is null is one that an event does not have.
        members = {name: each for name, each in json.loads(body).items() if each is not None}
        return json.dumps(members, separators=(",", ":"), ensure_ascii=False).encode()

    @staticmethod
    def _with_object(event: bytes) -> bytes:
        """Give an event whose data are JSON in a text, as those of publishers that name no content type, as JSON."""
        members = json.loads(event)
        if isinstance(members, dict) and isinstance(data := members.get("data"), str):
            return json.dumps(members | {"data": json.loads(data)}, separators=(",", ":"), ensure_ascii=False).encode()
        return event


def _in_envelope(data: Any) -> Any:
    return {
        "type": "record",
        "name": "CloudEvent",
        "namespace": "io.cloudevents",
        "fields": [
            *({"name": name, "type": "string"} for name in REQUIRED),
            *_nullable(OPTIONAL, "string"),
            *_nullable(("data",), data),
            *_nullable(("data_base64",), "string"),
        ],
    }


def _nullable(names: Iterable[str], kind: Any) -> list[dict[str, Any]]:
    return [{"name": name, "type": ["null", kind], "default": None} for name in names]
