"""The row of workflows in the table of building blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.blocks.block import Block
from mesh.blocks.workflows import (
    GET,
    HISTORY,
    HOST,
    LIST,
    PURGE,
    PURGE_MANY,
    RAISE_EVENT,
    RERUN,
    RESUME,
    SHOW,
    START,
    SUSPEND,
    TERMINATE,
    WAIT,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.blocks.block import Opened, Parts
    from mesh.blocks.workflow_service import WorkflowService

__all__ = ["BLOCK"]


def _start(block: Block, parts: Parts, components: Mapping[str, Opened]) -> WorkflowService:
    from mesh.blocks.workflow_service import WorkflowService  # With all that owners need, for nodes alone.

    return WorkflowService(block, parts, components)


BLOCK = Block(
    "workflows",
    (
        START,
        RAISE_EVENT,
        SUSPEND,
        RESUME,
        TERMINATE,
        PURGE,
        PURGE_MANY,
        RERUN,
        GET,
        WAIT,
        LIST,
        HISTORY,
        SHOW,
        HOST,
    ),
    _start,
)
