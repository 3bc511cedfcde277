"""What a tap is told of an operation besides its target and outcome: of each block what it is, and with what."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.operation import Operation
    from mesh.passing import Passing

__all__ = ["describe"]


def describe(passing: Passing, operation: Operation, result: object) -> None:
    """Note it, with request and reply."""
