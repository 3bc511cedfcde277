"""A server of a test's own that answers as Google Cloud Storage does; what it holds is gone when it ends."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from tests.support.server import NotInstalledError, Server

__all__ = ["GCSServer"]


class GCSServer(Server):
    """gcp-storage-emulator, with buckets."""

    title = "gcp-storage-emulator"

    def __init__(self, directory: Path, bucket: str) -> None:
        """Prepare; entering starts it.

        Args:
            directory: Its own.
            bucket: Is there from the beginning.
        """
        super().__init__(directory)
        self.bucket = bucket
        if importlib.util.find_spec("gcp_storage_emulator") is None:
            raise NotInstalledError("gcp-storage-emulator is not installed")

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """Give its command line."""
        start = ("start", "--host", "127.0.0.1", "--port", str(self.port), "--in-memory", "--quiet")
        return (sys.executable, "-m", "gcp_storage_emulator", *start, "--default-bucket", self.bucket)

    def answers(self) -> bool:
        """Ask whether it is ready."""
        with urlopen(self.url, timeout=1.0) as response:
            return bool(response.status == 200)
