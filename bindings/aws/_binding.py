"""What the bindings of AWS have in common."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import orjson

from brokers.clients.aws import AWSAdapter
from mesh.blocks.binding_contract import BindingError
from mesh.errors import MeshError

__all__ = ["AWSBinding", "object_of", "ordered"]

logger = logging.getLogger(__name__)

TESTED = "moto's server; never ran against the real service"


class AWSBinding(AWSAdapter):
    """A binding to one service: its one operation is ``create``."""

    tested = TESTED
    failed = away = BindingError
    operations = ("create",)

    def _away(self, reason: str) -> MeshError:
        return BindingError(reason, retryable=True)


def object_of(data: bytes, service: str) -> dict[str, Any]:
    """Read data that must be a JSON object; raises ``BindingError``."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BindingError(f"the data for {service} must be a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise BindingError(f"the data for {service} must be a JSON object")
    return found


def ordered(name: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """Give what a queue or a topic whose name ends with ``.fifo`` is told besides.

    Without a group all of it is in one order. An id of its own makes of a request that the library repeats one message.
    """
    if not name.endswith(".fifo"):
        return {}
    group = metadata.get("messageGroupId") or metadata.get("partitionKey") or "default"
    return {
        "MessageGroupId": group,
        "MessageDeduplicationId": metadata.get("messageDeduplicationId") or str(uuid4()),
    }
