"""A policy service of a test's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from tests.support.server import Server

__all__ = ["PolicyService"]


class PolicyService(Server):
    """Open Policy Agent, which takes policies as they were written before its version 1, too."""

    title = "Open Policy Agent"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        cache = Path(os.environ.get("BROKERMESH_SDKS", Path.home() / ".cache/brokermesh-tests/sdks"))
        found = sorted(cache.glob("opa-*/opa"))
        if not found:
            raise FileNotFoundError("Open Policy Agent is not installed: tests/provision/opa.sh")
        self._binary = found[-1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        options = ("--addr", f"127.0.0.1:{self.port}", "--v0-compatible", "--disable-telemetry")
        return (str(self._binary), "run", "--server", *options)

    def answers(self) -> bool:
        with urlopen(f"{self.url}/health", timeout=1.0) as response:
            return bool(response.status == 200)
