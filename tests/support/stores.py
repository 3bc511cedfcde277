"""The components that the suites of ``tests/stores`` run against; a new one is a row of a table here.

A row says how to make the component, and which server it needs. What the store can do, its adapter declares.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.mariadb_server import MariaDBServer
from tests.support.nats import NatsServer
from tests.support.nodes import component
from tests.support.postgresql_server import PostgreSQLServer
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
        longest_key: The most characters that a key can have with its prefix; None = it takes those of the suite.
    """

    type: str
    serve: Callable[[Path], AbstractAsyncContextManager[Served]]
    restarts: bool = False
    longest_key: int | None = None


@asynccontextmanager
async def _in_process(directory: Path) -> AsyncIterator[Served]:
    yield Served({})


@asynccontextmanager
async def _sqlite(directory: Path) -> AsyncIterator[Served]:
    yield Served({"connectionString": str(directory / "state.db")})


@asynccontextmanager
async def _postgresql(directory: Path, version: str = "v1") -> AsyncIterator[Served]:
    async with PostgreSQLServer(directory) as server:
        yield Served({"connectionString": server.connection_string}, server=server, version=version)


@asynccontextmanager
async def _mysql(directory: Path) -> AsyncIterator[Served]:
    async with MariaDBServer(directory) as server:
        yield Served({"connectionString": server.connection_string}, server=server)


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
    "postgresql": StoreKind("state.postgresql", _postgresql, restarts=True),
    "postgresql-v2": StoreKind("state.postgresql", lambda directory: _postgresql(directory, "v2"), restarts=True),
    "mysql": StoreKind("state.mysql", _mysql, restarts=True, longest_key=255),
    "mesh-nats": StoreKind("state.mesh", _on_backbone(_nats), restarts=True),
    "mesh-redis": StoreKind("state.mesh", _on_backbone(RedisServer), restarts=True),
}
