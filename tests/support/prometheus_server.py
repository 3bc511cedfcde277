"""A real Prometheus of a test's own."""

from __future__ import annotations

import shutil
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tests.support.server import Server

__all__ = ["PrometheusServer", "find_prometheus"]

ASK_SECONDS = 10


def find_prometheus() -> bool:
    """Tell whether it and promtool are there; `tests/provision/prometheus.sh` installs them."""
    return all(shutil.which(name) for name in ("prometheus", "promtool"))


class PrometheusServer(Server):
    """One server."""

    title = "Prometheus"

    def __init__(self, directory: Path, config: Path) -> None:
        """Prepare.

        Args:
            directory: An empty one, for its data.
            config: Its configuration.
        """
        super().__init__(directory)
        self._config = config

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://127.0.0.1:{self.port}/api/v1"

    def command(self) -> Sequence[str]:
        """Give its command line."""
        return [
            *("prometheus", f"--config.file={self._config}", f"--storage.tsdb.path={self.directory / 'data'}"),
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def answers(self) -> bool:
        """Ask whether it is ready."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=ASK_SECONDS):
            return True

    def asked(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Ask its API for something; an error of it, as of a query that can not be read, is one of the test."""
        url = f"{self.url}{path}?{urllib.parse.urlencode(query or {})}"
        with urllib.request.urlopen(url, timeout=ASK_SECONDS) as answer:
            return orjson.loads(answer.read())["data"]

    def found(self, expression: str) -> list[dict[str, Any]]:
        """Give what a query finds now."""
        result: list[dict[str, Any]] = self.asked("/query", {"query": expression})["result"]
        return result
