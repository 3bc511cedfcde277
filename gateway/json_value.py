"""A JSON value as a message: what data are that somebody has given, or gets, as JSON. For who uses gRPC."""

from __future__ import annotations

import orjson
from google.protobuf.json_format import Error, MessageToDict, ParseDict
from google.protobuf.message import DecodeError, EncodeError
from google.protobuf.struct_pb2 import Value

__all__ = ["JSON_TYPE", "json_value", "value_json"]

JSON_TYPE = "type.googleapis.com/google.protobuf.Value"
_UNREADABLE = (ValueError, TypeError, RecursionError, DecodeError, EncodeError, Error)


def json_value(data: bytes) -> bytes:
    """Write JSON as the bytes of a message; raises ValueError for what is nested too deeply for one."""
    try:
        made: bytes = ParseDict(orjson.loads(data), Value()).SerializeToString()
        Value.FromString(made)  # How deep it may be nested counts when it is read.
    except _UNREADABLE as error:
        raise ValueError(f"the data do not go into a message of gRPC: {error}") from None
    return made


def value_json(data: bytes) -> bytes:
    """Write the bytes of a message as JSON; raises ValueError for what is none."""
    try:
        return orjson.dumps(MessageToDict(Value.FromString(data)))
    except _UNREADABLE as error:
        raise ValueError(f"the data are no JSON value: {error}") from None
