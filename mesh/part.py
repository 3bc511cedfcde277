"""A node that is several processes: each of them is a part, and one node to everybody else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

__all__ = ["Part", "whole"]


class Part(Protocol):
    """One of the processes that are one node to others.

    Attributes:
        node_id: Of all of them.
        slot: The place of this one among them; the one that comes after it has the same.
        answers: What the others may ask this one, by name: coroutine functions, of plain values.
    """

    node_id: str
    slot: int
    answers: dict[str, Callable[..., Awaitable[object]]]

    async def others(self, name: str, *arguments: object) -> list[Any]:
        """Ask the others; gives what those answer that do so in time."""

    def serves(self, whether: bool) -> None:
        """Take whether this one serves the application now."""

    def speaks(self) -> bool:
        """Tell whether this one answers the mesh for all of them."""

    async def together(self, told: Mapping[str, object]) -> Mapping[str, object]:
        """Give what all of them tell, when this one would tell so much."""


def whole(node_id: str) -> str:
    """Give the node that a process is of, by the id of either."""
    return node_id.partition("-")[0]
