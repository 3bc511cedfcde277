"""The embedded broker: a NATS server of this user's own, started when the first gateway needs it.

Everything a `NatsBroker` does, on the server that `brokers.embedded_server.join` finds or starts
under MESH_HOME. All gateways of one MESH_HOME share it; it ends after the last of them, and what it
stores stays. The mapping of our words to NATS stands in `brokers.nats`.

A full disk needs care: nats-server 2.15 then leaves every publish without an answer, and goes on to do so
when there is space again, until it is started anew. So where an answer is overdue, the disk is looked at:
while it is full the calls fail and say so, and afterwards the server is restarted; the calls that wait for
it are then repeated under their ids.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from brokers.embedded_server import join, read_status
from brokers.nats import NatsBroker, NatsConfig
from mesh.errors import BrokerUnavailableError, ConfigError
from mesh.home import mesh_home

__all__ = ["EmbeddedBroker"]

logger = logging.getLogger(__name__)

OVERDUE = 2.0
LITTLE_SPACE_BYTES = 4 * 1024 * 1024
LOG_END_BYTES = 64 * 1024


class EmbeddedBroker(NatsBroker):
    """A connection to the user's own NATS server."""

    read_status = staticmethod(read_status)

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
            await super().__aenter__()
            tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
            watching = tasks.create_task(self._watch_disk(), name="embedded-watch-disk")
            self._stack.callback(watching.cancel)
            return self
        except BaseException:
            await self._server.aclose()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        """Close, then let go of the server."""
        try:
            await super().__aexit__(*exc_info)
        finally:
            await self._server.aclose()

    async def _watch_disk(self) -> None:
        """Look at the disk whenever an answer is overdue."""
        connection = self._connection
        before: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(OVERDUE)
            overdue, before = before & connection.waiting, connection.waiting
            if not overdue or not connection.connected.is_set():
                continue
            problem = await asyncio.to_thread(_heal, self._home)
            if problem is not None:
                logger.warning("%s", problem)
                connection.give_up(overdue, BrokerUnavailableError(problem))


def _heal(home: Path) -> str | None:
    """Tell what is wrong with the disk, if anything is; restart a server that has not noticed its recovery."""
    backbone = home / "backbone"
    with suppress(OSError):
        disk = os.statvfs(backbone)
        if disk.f_bavail * disk.f_frsize < LITTLE_SPACE_BYTES:
            return f"the disk of {backbone} is full, and nothing can be stored: free some space there"
        status = read_status(home)
        if status is not None and _has_failed_to_write(backbone / "server.log", status.pid):
            logger.warning("nats-server (pid %d) does not store any more after a full disk: restarting it", status.pid)
            os.kill(status.pid, signal.SIGTERM)  # Its supervisor starts another.
    return None


def _has_failed_to_write(path: Path, pid: int) -> bool:
    with path.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_END_BYTES))
        return re.search(rb"^\[%d\] .*(failed to store a msg|write error)" % pid, log.read(), re.MULTILINE) is not None
