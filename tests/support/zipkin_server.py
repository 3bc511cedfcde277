"""A real Zipkin of a test's own, which keeps spans in memory."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tests.support.server import NotInstalledError, Server

__all__ = ["ZipkinServer", "find_zipkin"]

ASK_SECONDS = 10


def find_zipkin() -> Path | None:
    """Give the server's jar; `tests/provision/zipkin.sh` puts it there."""
    where = Path(os.environ.get("BROKERMESH_ZIPKIN") or Path.home() / ".cache/brokermesh-tests/zipkin")
    return next(iter(where.glob("zipkin-server-*-exec.jar")), None) if shutil.which("java") else None


class ZipkinServer(Server):
    """One server."""

    title = "Zipkin"

    @property
    def url(self) -> str:
        """Where it takes spans."""
        return f"http://127.0.0.1:{self.port}/api/v2/spans"

    def environ(self) -> Mapping[str, str]:
        """Tell it its port."""
        return {**os.environ, "QUERY_PORT": str(self.port), "STORAGE_TYPE": "mem"}

    def command(self) -> Sequence[str]:
        """Give its command line; a JVM that lives for a test needs no optimizing compiler."""
        jar = find_zipkin()
        if jar is None:
            raise NotInstalledError("Zipkin is not installed")
        return ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar", str(jar)]

    def answers(self) -> bool:
        """Ask for its health."""
        self.asked("/health", at="")
        return True

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Give the spans of a trace that it has so far."""
        try:
            spans: list[dict[str, Any]] = self.asked(f"/trace/{trace_id}")
        except urllib.error.HTTPError as error:
            assert error.code == 404, error
            return []
        return spans

    def asked(self, path: str, *, at: str = "/api/v2") -> Any:
        """Ask its API for something."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{at}{path}", timeout=ASK_SECONDS) as answer:
            return orjson.loads(answer.read())
