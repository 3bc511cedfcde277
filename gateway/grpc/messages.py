"""The messages of Dapr's gRPC API, from ``proto/*.proto``, which stand compiled in ``messages.binpb``.

They are in a pool of their own, so that an official package with messages of the same names can be in one process with
them. ``make proto`` compiles them; a test finds out whether that is due.

Source: dapr.proto.runtime.v1 and dapr.proto.common.v1 of Dapr 1.18, and the service without a package that its workers
of workflows speak; google.rpc for the details of errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

import orjson
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

__all__ = ["COMMON", "RUNTIME", "STATUS", "Message", "message", "service", "status", "status_json"]

RUNTIME, COMMON, STATUS = "dapr.proto.runtime.v1", "dapr.proto.common.v1", "google.rpc"

# Made at run time, so no type checker knows their fields.
Message = Any


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(files(__package__).joinpath("messages.binpb").read_bytes()).file:
        pool.Add(file)
    return pool


_POOL = _pool()


def message(name: str, package: str = RUNTIME) -> Any:
    """Give the class of a message."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{package}.{name}".lstrip(".")))


def service(name: str, package: str = RUNTIME) -> ServiceDescriptor:
    """Describe a service."""
    return _POOL.FindServiceByName(f"{package}.{name}".lstrip("."))


def status(code: int, text: str, details: Sequence[Mapping[str, object]]) -> bytes:
    """Write a ``google.rpc.Status``.

    Args:
        code: Its code.
        text: Its message.
        details: Each in proto-JSON, with its ``@type``; those that are none known here are left out, as they may be of
            an application.
    """
    made = message("Status", STATUS)(code=code, message=text)
    for each in details:
        try:
            ParseDict(dict(each), made.details.add(), descriptor_pool=_POOL)
        except ParseError:
            del made.details[-1]
    written: bytes = made.SerializeToString()
    return written


def status_json(code: int, text: str, details: bytes) -> bytes:
    """Write a ``google.rpc.Status`` as JSON.

    Args:
        code: Its code.
        text: Its message.
        details: A serialized one, whose details are taken, but for those of a type that is not known here.
    """
    given = message("Status", STATUS)()
    with suppress(DecodeError):
        given.ParseFromString(details)
    shown: list[object] = []
    for each in given.details:
        with suppress(TypeError, ValueError, DecodeError):  # Those of an unknown type, or of another one than they say.
            shown.append(MessageToDict(each, descriptor_pool=_POOL))
    return orjson.dumps({"code": code, "message": text, **({"details": shown} if shown else {})})
