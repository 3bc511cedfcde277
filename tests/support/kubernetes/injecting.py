"""An injector of the test's own, which a cluster asks; and what its pods tell the test."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bindings.kubernetes.injector import Injection
from tests.support.kubernetes.node import LocalCluster
from tests.support.processes import ROOT

__all__ = ["Told", "injecting", "listening", "machine"]

ENDS_WITHIN = 30.0


def machine(cluster: LocalCluster) -> str:
    """Give the address of this machine, as the cluster's programs and pods see it."""
    return cluster.address.rpartition(".")[0] + ".1"


@contextmanager
def injecting(cluster: LocalCluster, name: str, injection: Injection, root: Path, port: int) -> Iterator[None]:
    """Serve in a process of its own.

    Args:
        cluster: Which asks.
        name: Of the MutatingWebhookConfiguration, in which it is written whom the cluster trusts.
        injection: What counts for all pods.
        root: Folder of the mesh's root.
        port: Where.
    """
    injector = {"namespace": "inject", "configuration": name, "host": machine(cluster), "port": port}
    told = {
        "kubeconfig": str(cluster.kubeconfig),
        "root": str(root),
        "injector": {**injector, "names": [machine(cluster)]},
        "injection": asdict(injection),
    }
    command = [sys.executable, "-m", "tests.support.kubernetes.injector_process", json.dumps(told)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{port}\n"
        yield
    finally:
        process.terminate()
        process.communicate(timeout=ENDS_WITHIN)


class Told:
    """What pods have told this machine, one text a line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Take one."""
        with self._lock:
            self._lines.append(line)

    @property
    def lines(self) -> list[str]:
        """All of them, in the order in which they came."""
        with self._lock:
            return list(self._lines)


@contextmanager
def listening(cluster: LocalCluster) -> Iterator[tuple[str, Told]]:
    """Take what pods post; gives the URL for them."""
    told = Told()

    class Taker(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            told.add(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((machine(cluster), 0), Taker)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="told")
    thread.start()
    try:
        yield f"http://{machine(cluster)}:{server.server_address[1]}", told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
