"""Describes the messages and services of Dapr's API; as a program those of the official package."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto

__all__ = ["described"]


def described(files: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Tell of each message, enumeration and service of some files all that clients depend on, by full name."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for message in file.message_types_by_name.values():
            _message(message, found)
        for enum in file.enum_types_by_name.values():
            found[enum.full_name] = {value.name: value.number for value in enum.values}
        told = FileDescriptorProto()
        file.CopyToProto(told)
        for service in told.service:
            found[f"{told.package}.{service.name}"] = {
                each.name: [each.input_type, each.output_type, each.client_streaming, each.server_streaming]
                for each in service.method
            }
    return found


def _message(message: Any, found: dict[str, dict[str, Any]]) -> None:
    found[message.full_name] = {field.name: _field(field) for field in message.fields}
    for nested in message.nested_types:
        _message(nested, found)
    for enum in message.enum_types:
        found[enum.full_name] = {value.name: value.number for value in enum.values}


def _field(field: Any) -> list[object]:
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return [
        field.number,
        field.type,
        field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED,
        field.json_name,
        kind and kind.full_name,
        oneof and oneof.name,
    ]


def _of_workers() -> list[Any]:
    from dapr.ext.workflow._durabletask.internal import protos  # type: ignore[import-not-found]

    found = [protos.WorkItem.DESCRIPTOR.file]
    for file in found:  # It grows: all that it needs, but for Google's.
        found += [each for each in file.dependencies if not each.package and each not in found]
    return found


if __name__ == "__main__":
    from dapr.proto.common.v1 import common_pb2  # type: ignore[import-not-found]
    from dapr.proto.runtime.v1 import appcallback_pb2, dapr_pb2  # type: ignore[import-not-found]

    files = {file.name: file for file in (common_pb2.DESCRIPTOR, appcallback_pb2.DESCRIPTOR, dapr_pb2.DESCRIPTOR)}
    for file in list(files.values()):
        files |= {each.name: each for each in file.dependencies if each.package.startswith("dapr.")}
    json.dump(described([*files.values(), *_of_workers()]), sys.stdout)
