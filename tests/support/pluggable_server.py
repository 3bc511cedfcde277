"""The process of a pluggable component, and the folder of its socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bindings.pluggable._adapter import Plugged
from bindings.pluggable.pubsub import PluggableBroker
from mesh.sockets import FOLDER
from tests.support.processes import ROOT
from tests.support.server import Server

__all__ = ["ALL", "PluggableServer", "contract_broker", "folder", "pluggable"]

STATE = ("StateStore", "TransactionalStateStore", "TransactionalStoreMultiMaxSize", "QueriableStateStore")
ALL = (*STATE, "SecretStore", "PubSub", "InputBinding", "OutputBinding")


class PluggableServer(Server):
    """A component of a third party.

    Attributes:
        path: Its socket.
    """

    title = "the pluggable component"

    def __init__(self, directory: Path, path: Path, services: Sequence[str] = ALL, reflection: str = "v1alpha") -> None:
        super().__init__(directory)
        self.path = path
        self._arguments = (",".join(services), reflection)

    def command(self) -> Sequence[str]:
        """It is a module of the tests."""
        # The socket of an earlier process is there until this one listens.
        module = "tests.support.pluggable_component"
        return (sys.executable, "-m", module, str(self.path), str(self.directory), *self._arguments)

    def environ(self) -> Mapping[str, str]:
        """It finds its module."""
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def answers(self) -> bool:
        """See whether it listens."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))
        return True

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Have it do nothing for a while, as a process that is stuck."""
        assert self.process is not None
        process = self.process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)  # Nothing happens if it has ended.

    def inits(self) -> list[tuple[str, Mapping[str, str]]]:
        """Give for each time that it was told settings the instance, and the settings."""
        file = self.directory / "inits"
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []  # type: ignore[misc]

    async def put(self, name: str, values: Mapping[str, str]) -> str:
        """Write a secret."""

        def write() -> None:
            file = self.directory / "secrets.json"
            secrets: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps({**secrets, name: dict(values)}))

        await asyncio.to_thread(write)
        return "1"


@contextmanager
def folder() -> Iterator[Path]:
    """Have gateways of this process look for sockets in a new folder; its path is short, as those of sockets are."""
    before = os.environ.get(FOLDER)
    with tempfile.TemporaryDirectory(prefix="sockets") as made:
        os.environ[FOLDER] = made
        try:
            yield Path(made)
        finally:
            if before is None:
                del os.environ[FOLDER]
            else:
                os.environ[FOLDER] = before


@asynccontextmanager
async def pluggable(directory: Path, name: str = "plugged", **options: Any) -> AsyncIterator[PluggableServer]:
    """Run one, in a folder of its own."""
    with folder() as sockets:
        async with PluggableServer(directory, sockets / f"{name}.sock", **options) as server:
            yield server


def contract_broker(path: Path) -> PluggableBroker:
    """Make an adapter whose topics are apart by their spaces, as those of other brokers are."""
    return PluggableBroker(Plugged(path, "contract", {}, prefix="{space}/"))
