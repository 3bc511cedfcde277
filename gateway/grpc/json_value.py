"""A JSON value as a message: what data are that an application has given or gets as JSON."""

from __future__ import annotations

import orjson
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value

from gateway.grpc.events import readable

__all__ = ["JSON_TYPE", "json_value", "value_json"]

JSON_TYPE = "type.googleapis.com/google.protobuf.Value"


def json_value(data: bytes) -> bytes:
    """Write JSON as the bytes of a message; raises one of ``UNREADABLE`` for what is nested too deeply for one."""
    return readable(ParseDict(orjson.loads(data), Value()))


def value_json(data: bytes) -> bytes:
    """Write the bytes of a message as JSON; raises one of ``UNREADABLE`` for what is none."""
    return orjson.dumps(MessageToDict(Value.FromString(data)))
