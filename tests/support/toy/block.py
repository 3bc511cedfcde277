"""``toy``: components that count, each under a name of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import msgspec

from mesh.blocks.block import Block, Parts
from mesh.blocks.components import ComponentService
from mesh.errors import BadArgumentError
from mesh.operation import Method, Operation
from mesh.resources.component import Component


class Count(msgspec.Struct, frozen=True):
    """Count on."""

    by: int = 1


COUNT = Method("toy", "count", Count, int)


class Toy:
    """A component: a count for each caller."""

    capabilities: Sequence[str] = ("COUNTING",)

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    async def count(self, operation: Operation) -> int:
        """Count for the caller."""
        by = cast("Count", operation.arguments).by
        if by < 1:
            raise BadArgumentError(f"cannot count by {by}")
        self._counts[operation.context.caller.app_id] += by
        return self._counts[operation.context.caller.app_id]


async def open_toy(component: Component, parts: Parts) -> Toy:
    """Open a toy; the type says nothing more."""
    return Toy()


BLOCK = Block("toy", (COUNT,), ComponentService, kind="toys", open=open_toy, hosted=True)
