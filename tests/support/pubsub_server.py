"""Google's emulator of Pub/Sub, where it is installed: no package registry has it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.support.server import Server

__all__ = ["PubSubServer"]


class PubSubServer(Server):
    """What it had is gone when it ends."""

    title = "Google's emulator of Pub/Sub"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        gcloud, java = shutil.which("gcloud"), shutil.which("java")
        found = sorted(Path(gcloud).resolve().parents[1].glob("platform/pubsub-emulator/lib/*.jar")) if gcloud else []
        if java is None or not found:
            raise FileNotFoundError(f"{self.title} is not installed: gcloud components install pubsub-emulator")
        self._command = (java, "-Xmx256m", "-jar", str(found[0]), "--host=127.0.0.1", f"--port={self.port}")

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Give its command line."""
        return self._command

    def answers(self) -> bool:
        """Ask whether it listens."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True
