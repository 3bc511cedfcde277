"""A node's guard, loaded only by nodes that want one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mesh.conditions import Conditions
from mesh.registry import Registry, needs
from mesh.telemetry import Observer

if TYPE_CHECKING:
    from mesh.trust.guard import Guard
    from mesh.trust.identity import TrustSettings

__all__ = ["proving"]


@asynccontextmanager
async def proving(
    settings: TrustSettings | None,
    namespace: str,
    app_id: str,
    registry: Registry,
    observer: Observer,
    conditions: Conditions,
) -> AsyncIterator[Guard | None]:
    """Give the guard of a node while it is entered; None without settings.

    Raises:
        ConfigError: There is no certificate of this node, or it is of no use.
        MissingDependencyError: What it needs is not installed.
    """
    if settings is None:
        yield None
        return
    try:
        from mesh.trust.files import guarding
    except ImportError as error:
        raise needs("a proven identity", error.name or "") from error
    async with guarding(settings, namespace, app_id, registry, observer, conditions) as guard:
        yield guard
