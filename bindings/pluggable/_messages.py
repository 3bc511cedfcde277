"""The messages of pluggable components, from ``proto/*.proto``, which stand compiled in ``messages.binpb``.

They are in a pool of their own, so that a package with messages of the same names can be in one process with them.
``make proto`` compiles them; a test finds out whether that is due.

Source: dapr.proto.components.v1 of Dapr 1.18; grpc.reflection.v1; google.rpc for the details of errors.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

__all__ = ["COMPONENTS", "Message", "message", "method", "violated"]

COMPONENTS, REFLECTION, STATUS = "dapr.proto.components.v1", "grpc.reflection.v1", "google.rpc"

# Made at run time, so no type checker knows their fields.
Message = Any


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(files(__package__).joinpath("messages.binpb").read_bytes()).file:
        pool.Add(file)
    return pool


_POOL = _pool()


def message(name: str, package: str = COMPONENTS) -> Any:
    """Give the class of a message."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{package}.{name}"))


def method(service: str, name: str) -> MethodDescriptor:
    """Describe a method of a component's service."""
    return _POOL.FindServiceByName(f"{COMPONENTS}.{service}").methods_by_name[name]


def violated(details: bytes) -> dict[str, str]:
    """Read from a ``google.rpc.Status`` which fields of the request were wrong, and why."""
    found: dict[str, str] = {}
    try:
        for each in message("Status", STATUS).FromString(details).details:
            bad = message("BadRequest", STATUS)()
            if each.type_url.endswith("/google.rpc.BadRequest"):
                bad.ParseFromString(each.value)
            found |= {violation.field: violation.description for violation in bad.field_violations}
    except DecodeError:  # What explains a failure must not become another one.
        return {}
    return found
