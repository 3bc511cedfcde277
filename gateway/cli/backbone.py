"""The embedded backbone as the command line sees it, through the registry like any adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from mesh.registry import Registry

__all__ = ["ServerStatus", "embedded_status"]


class ServerStatus(Protocol):
    """A running server."""

    url: str
    pid: int


def embedded_status(home: Path) -> ServerStatus | None:
    """Give the embedded server that runs under a MESH_HOME; None when none does."""
    adapter = Registry().load("backbone.embedded")
    return cast("ServerStatus | None", adapter.read_status(home))  # type: ignore[attr-defined]  # EmbeddedBroker's own
