"""Tasks that run until they are told to end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from mesh.tasks import task_group

__all__ = ["Start", "background"]

Start: TypeAlias = Callable[[Coroutine[Any, Any, None], str], None]


@asynccontextmanager
async def background() -> AsyncIterator[Start]:
    """Give a function that starts a task by a name; all are ended when this is left."""
    tasks: list[asyncio.Task[None]] = []
    async with task_group() as group:
        try:
            yield lambda work, name: tasks.append(group.create_task(work, name=name))
        finally:
            for task in tasks:
                task.cancel()
