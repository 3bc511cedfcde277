"""An injector of the test's own process, which a cluster asks; and what its pods tell the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bindings.kubernetes.api import Cluster
from bindings.kubernetes.injector import Injection, Injector, serving
from mesh.trust.folder import Folder, Root
from tests.support.kubernetes.node import LocalCluster

__all__ = ["Told", "injecting", "listening", "machine"]

STARTS_WITHIN = 30.0


def machine(cluster: LocalCluster) -> str:
    """Give the address of this machine, as the cluster's programs and pods see it."""
    return cluster.address.rpartition(".")[0] + ".1"


@contextmanager
def injecting(
    cluster: LocalCluster, name: str, injection: Injection, root: Callable[[], Root | None], port: int = 0
) -> Iterator[int]:
    """Serve in a thread of its own; gives the port.

    Args:
        cluster: Which asks.
        name: Of the MutatingWebhookConfiguration, in which it is written whom the cluster trusts.
        injection: What counts for all pods.
        root: As of ``serving``.
        port: 0 picks one.
    """
    loop = asyncio.new_event_loop()
    started, ended = threading.Event(), asyncio.Event()
    found: list[int | BaseException] = []

    async def serve() -> None:
        injector = Injector(
            namespace="inject", configuration=name, host=machine(cluster), port=port, names=[machine(cluster)]
        )
        try:
            async with Cluster(str(cluster.kubeconfig)) as api, serving(api, injector, injection, root) as at:
                found.append(at)
                started.set()
                await ended.wait()
        except BaseException as error:
            found.append(error)
            raise
        finally:
            started.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="injector")
    thread.start()
    try:
        assert started.wait(STARTS_WITHIN), "the injector does not start"
        if isinstance(found[0], BaseException):
            raise found[0]
        yield found[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(STARTS_WITHIN)
        loop.close()


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


def new_root(directory: Path) -> Folder:
    """Make a root."""
    folder = Folder(directory)
    folder.init("cluster.local")
    return folder
