"""Nodes that run activities for others, as those see them who give out work; ``remote.py`` reaches them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mesh.workflows.worker import TaskResult, TaskWork

__all__ = ["Peer", "Peers"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that runs activities: its application, the session under which it is known, and its id."""

    app: str
    session: str
    node: str


class Peers(Protocol):
    """Nodes that run activities."""

    async def peer(self, app: str) -> Peer | None:
        """Give one of an application, which is not this node; None = there is none.

        Raises:
            AppUnreachableError: None of them has room now.
            MeshError: It cannot be told.
        """

    async def task(self, peer: Peer, work: TaskWork) -> TaskResult:
        """Have an activity run; raises as ``Worker.task`` does."""
