"""The messages of Dapr's gRPC API, from ``proto/*.proto``, which stand compiled in ``messages.binpb``.

They are in a pool of their own, so that an official package with messages of the same names can be in one process with
them. ``make proto`` compiles them; a test finds out whether that is due.

Source: dapr.proto.runtime.v1 and dapr.proto.common.v1 of Dapr 1.18; google.rpc for the details of errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass

__all__ = ["COMMON", "RUNTIME", "STATUS", "Message", "message", "service", "status"]

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
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{package}.{name}"))


def service(name: str) -> ServiceDescriptor:
    """Describe a service of the runtime's package."""
    return _POOL.FindServiceByName(f"{RUNTIME}.{name}")


def status(code: int, text: str, details: Sequence[Mapping[str, object]]) -> bytes:
    """Write a ``google.rpc.Status``; each of the details is in proto-JSON, with its ``@type``."""
    made = message("Status", STATUS)()
    ParseDict({"code": code, "message": text, "details": list(details)}, made, descriptor_pool=_POOL)
    written: bytes = made.SerializeToString()
    return written
