"""Asking the owner of a key."""

from __future__ import annotations

from mesh.errors import MeshError

__all__ = ["NotOwnerError"]


class NotOwnerError(MeshError):
    """This node does not own the partition, or is not sure of it; nothing was done."""

    code = "ERR_NOT_OWNER"
    retryable = True
