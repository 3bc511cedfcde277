"""What secret stores of several vendors have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import orjson

from mesh.tasks import task_group

__all__ = ["json_values", "read_all"]

AT_ONCE = 8


def json_values(text: str) -> Mapping[str, str] | None:
    """Read a secret that is a JSON object of texts; None for any other."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()) else None


async def read_all(
    names: Sequence[str], read: Callable[[str], Awaitable[Mapping[str, str] | None]]
) -> Mapping[str, Mapping[str, str]]:
    """Read secrets by name, a few at a time; what is None is left out, and the first failure ends it.

    Raises:
        MeshError: The failure.
    """
    found: dict[str, Mapping[str, str] | None] = {}
    left: Iterator[str] = iter(names)

    async def work() -> None:
        for name in left:
            found[name] = await read(name)

    async with task_group() as tasks:
        for _ in range(min(AT_ONCE, len(names))):
            tasks.create_task(work())
    return {name: found[name] or {} for name in names if found.get(name) is not None}
