"""Tasks that run until they are told to end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

__all__ = ["Background"]


class Background:
    """Tasks of a group that end together."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._tasks: list[asyncio.Task[None]] = []

    def create_task(self, work: Coroutine[object, object, None], *, name: str) -> None:
        """Start a task."""
        self._tasks.append(self._group.create_task(work, name=name))

    def cancel(self) -> None:
        """End all."""
        for task in self._tasks:
            task.cancel()
