"""The components that the suites of ``tests/stores`` run against; a new one is a row of a table here.

A row says how to make the component, and which server it needs. What the store can do, its adapter declares.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.extension import install
from tests.support.nats import NatsServer
from tests.support.nodes import component
from tests.support.redis_server import RedisServer
from tests.support.server import Server

__all__ = ["STATE", "Served", "StoreKind"]


@dataclass(frozen=True, slots=True)
class Served:
    """A store that can be used.

    Attributes:
        settings: Of the component, by name.
        backbone: URL of the node's.
        server: What can be restarted; None = nothing.
        version: Of the component.
    """

    settings: Mapping[str, str]
    backbone: str = "memory:"
    server: Server | None = None
    version: str = "v1"

    def component(self, name: str, kind: str, **more: str) -> Any:
        """Make the component."""
        return component(name, kind, version=self.version, **{**self.settings, **more})


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A row.

    Attributes:
        type: Of the component.
        serve: Given an empty directory, starts what it needs; raises FileNotFoundError where that is not installed.
        restarts: Whether its server may be killed and started again without the loss of what it confirmed.
    """

    type: str
    serve: Callable[[Path], AbstractAsyncContextManager[Served]]
    restarts: bool = False


@asynccontextmanager
async def _in_process(directory: Path) -> AsyncIterator[Served]:
    yield Served({})


@asynccontextmanager
async def _sqlite(directory: Path) -> AsyncIterator[Served]:
    yield Served({"connectionString": str(directory / "state.db")})


@asynccontextmanager
async def _extension(directory: Path) -> AsyncIterator[Served]:
    installed = str(await asyncio.to_thread(install, directory))
    sys.path.append(installed)
    try:
        yield Served({"folder": str(directory / "state"), "sync": "false"})
    finally:
        sys.path.remove(installed)


def _nats(directory: Path) -> NatsServer:
    return NatsServer(directory, config="max_payload: 8MB")


def _on_backbone(make: Callable[[Path], Server]) -> Callable[[Path], AbstractAsyncContextManager[Served]]:
    @asynccontextmanager
    async def serve(directory: Path) -> AsyncIterator[Served]:
        async with make(directory) as server:
            yield Served({}, server.url, server)

    return serve


# By the name that the tests have.
STATE: Mapping[str, StoreKind] = {
    "in-memory": StoreKind("state.in-memory", _in_process),
    "sqlite": StoreKind("state.sqlite", _sqlite),
    "extension": StoreKind("state.folder", _extension),
    "mesh-nats": StoreKind("state.mesh", _on_backbone(_nats), restarts=True),
    "mesh-redis": StoreKind("state.mesh", _on_backbone(RedisServer), restarts=True),
}
