"""A real schema registry of a test's own: Apicurio's, by the interface of Confluent's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

from tests.support.server import NotInstalledError, Server

__all__ = ["SchemaRegistry", "find_apicurio"]


def find_apicurio() -> Path | None:
    """Give the registry's jar; `tests/provision/apicurio.sh` puts it there."""
    home = Path(os.environ.get("BROKERMESH_APICURIO") or Path.home() / ".cache/brokermesh-tests/apicurio")
    return next(iter(home.glob("apicurio-registry-app-*-runner.jar")), None) if shutil.which("java") else None


class SchemaRegistry(Server):
    """One server; what it had is gone when it ends."""

    title = "Apicurio Registry"

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it."""
        super().__init__(directory)
        found = find_apicurio()
        if found is None:
            raise NotInstalledError(f"{self.title} is not installed: tests/provision/apicurio.sh")
        self._jar = found

    @property
    def url(self) -> str:
        """Where it answers as Confluent's does."""
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def environ(self) -> Mapping[str, str]:
        """Tell it where to listen."""
        return {**os.environ, "QUARKUS_HTTP_HOST": "127.0.0.1", "QUARKUS_HTTP_PORT": str(self.port)}

    def command(self) -> Sequence[str]:
        """Give its command line."""
        return ("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar", str(self._jar))

    def answers(self) -> bool:
        """Ask which subjects it has."""
        with urlopen(f"{self.url}/subjects", timeout=5.0) as response:
            return bool(response.status == 200)
