"""A real OpenTelemetry Collector of a test's own, which writes what it took to a file."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.support.processes import free_port
from tests.support.server import Server

__all__ = ["OTelCollector", "needs_otel_collector", "strings"]

ASK_SECONDS = 10
FILE = "spans.jsonl"
SOURCES = Path(__file__).with_name("otel_collector")


def _found() -> Path | None:
    """Give the program that `tests/provision/collector.sh` has built of these sources."""
    cache = Path(os.environ.get("BROKERMESH_SDKS") or Path.home() / ".cache/brokermesh-tests/sdks")
    sources = [each for pattern in ("go.*", "*.go") for each in sorted(SOURCES.glob(pattern))]
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:16]
    built = cache / f"otelcol-{digest}" / "otelcol"
    return built if built.exists() else None


def needs_otel_collector() -> None:
    """Skip the test where it is not built; in CI that is a failure."""
    if _found() is None:
        assert "CI" not in os.environ, "the OpenTelemetry Collector is missing: tests/provision/collector.sh"
        pytest.skip("the OpenTelemetry Collector is not built: make provision")


class OTelCollector(Server):
    """One server; a restart keeps what it has written.

    Attributes:
        port: Of OTLP over gRPC.
        http_port: Of OTLP over HTTP.
    """

    title = "OpenTelemetry Collector"

    def __init__(
        self,
        directory: Path,
        *,
        token: str = "",
        tls: Mapping[str, str] | None = None,
        http_encodings: Sequence[str] | None = None,
    ) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty one, for its configuration and what it writes.
            token: A bearer token that it asks for; empty = none.
            tls: `cert_file` and `key_file` of its certificate; None = no TLS.
            http_encodings: What bodies over HTTP may be encoded with, "" for none; None = whatever it knows.
        """
        super().__init__(directory)
        self.http_port = free_port()
        self._token, self._tls, self._http_encodings = token, tls, http_encodings

    def place(self, protocol: str) -> str:
        """Give ``host:port`` of a protocol, ``grpc`` or ``http``."""
        return f"127.0.0.1:{self.port if protocol == 'grpc' else self.http_port}"

    def command(self) -> Sequence[str]:
        """Write its configuration, and give its command line."""
        common: dict[str, object] = {"auth": {"authenticator": "bearertokenauth"}} if self._token else {}
        common |= {"tls": dict(self._tls)} if self._tls else {}
        protocols = {each: {"endpoint": self.place(each), **common} for each in ("grpc", "http")}
        if self._http_encodings is not None:
            protocols["http"]["compression_algorithms"] = list(self._http_encodings)
        config = {
            "receivers": {"otlp": {"protocols": protocols}},
            "exporters": {"file": {"path": str(self.directory / FILE), "append": True, "flush_interval": "100ms"}},
            "extensions": {"bearertokenauth": {"token": self._token}} if self._token else {},
            "service": {
                "extensions": ["bearertokenauth"] if self._token else [],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["file"]}},
                "telemetry": {"metrics": {"level": "none"}},
            },
        }
        file = self.directory / "collector.yaml"
        file.write_text(yaml.safe_dump(config))
        program = _found()
        if program is None:
            raise FileNotFoundError("otelcol")
        return [str(program), f"--config=file:{file}"]

    def answers(self) -> bool:
        """Tell whether it listens on both ports."""
        for each in (self.port, self.http_port):
            with closing(socket.create_connection(("127.0.0.1", each), ASK_SECONDS)):
                pass
        return True

    def batches(self) -> list[dict[str, Any]]:
        """Give what it wrote for each resource of each request; the line that it is writing is left out."""
        file = self.directory / FILE
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [each for line in lines for each in orjson.loads(line)["resourceSpans"]]

    def spans(self) -> list[dict[str, Any]]:
        """Give the spans that it wrote, each with the name of its service as ``app``."""
        return [
            {**span, "app": strings(batch["resource"]["attributes"])["service.name"]}
            for batch in self.batches()
            for scope in batch["scopeSpans"]
            for span in scope["spans"]
        ]


def strings(attributes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Give the attributes that are text."""
    return {each["key"]: each["value"]["stringValue"] for each in attributes if "stringValue" in each["value"]}
