"""The embedded broker: a NATS server of this user's own, started when the first gateway needs it.

Everything a `NatsBroker` does, on the server that `brokers.embedded_server.join` finds or starts
under MESH_HOME. All gateways of one MESH_HOME share it; it ends after the last of them, and what it
stores stays. The mapping of our words to NATS stands in `brokers.nats`.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from brokers.embedded_server import join, mesh_home
from brokers.nats import NatsBroker, NatsConfig
from mesh.errors import ConfigError

__all__ = ["EmbeddedBroker"]


class EmbeddedBroker(NatsBroker):
    """A connection to the user's own NATS server."""

    def __init__(self, home: Path) -> None:
        """Prepare; entering finds or starts the server.

        Args:
            home: Where brokermesh keeps its files.
        """
        super().__init__(NatsConfig(()))
        self.features = replace(self.features, name="embedded")
        self._home = home
        self._server = AsyncExitStack()

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Build from ``embedded:``; MESH_HOME says where."""
        if url.rstrip("/") != "embedded:":
            raise ConfigError(f"backbone {url!r}: use 'embedded:', and MESH_HOME for its directory")
        return cls(mesh_home(os.environ))

    async def __aenter__(self) -> Self:
        """Find or start the server, and connect."""
        address = await self._server.enter_async_context(join(self._home))
        try:
            self._prepare(NatsConfig((address.url,), token=address.token))
            return await super().__aenter__()
        except BaseException:
            await self._server.aclose()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        """Close, then let go of the server."""
        try:
            await super().__aexit__(*exc_info)
        finally:
            await self._server.aclose()
