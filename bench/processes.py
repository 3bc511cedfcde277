"""The processes of a run: a broker, gateways, applications, bare peers; all gone when it ends."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import psutil

from bench.load import BenchError

__all__ = ["Gateway", "Peer", "Process", "Stage"]

ROOT = Path(__file__).parents[1]
START_SECONDS = 15.0
STOP_SECONDS = 8.0
ASK_SECONDS = 60.0
POLL_SECONDS = 0.005
MAX_LINE_BYTES = 2**24
PR_SET_PDEATHSIG = 1
CPUCLOCK_SCHED = 2  # As clock_getcpuclockid(3) makes the clock of a process.

P = TypeVar("P", bound="Process")


def free_port() -> int:
    """Give a TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A running process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._stats = psutil.Process(process.pid)
        self.pid = process.pid

    def cpu(self) -> float:
        """Seconds of CPU so far, user and system."""
        self.check()
        if sys.platform == "linux":  # All threads of the process, in nanoseconds; psutil's are hundredths of a second.
            return time.clock_gettime(~self.pid << 3 | CPUCLOCK_SCHED)
        times = self._stats.cpu_times()
        return times.user + times.system

    def rss(self) -> float:
        """Resident memory in MB (2**20 bytes)."""
        self.check()
        return self._stats.memory_info().rss / 2**20

    def check(self) -> None:
        """Fail if it has ended."""
        if self._process.returncode is not None:
            raise self.failed("ended")

    def failed(self, what: str) -> BenchError:
        """Say what happened, with the end of its log."""
        return BenchError(f"{self.name} {what}; its log ends with:\n{self._log.read_text()[-2000:]}")

    async def stop(self) -> None:
        """End it, in order if it can."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


class Gateway(Process):
    """A gateway, as ``mesh run`` starts it."""

    http_port: int
    grpc_port: int


class Peer(Process):
    """A process of ``bench.bare``, ``clients``, ``stores``, ``rpc`` or ``app``, or a worker; told by lines of JSON."""

    http_port: int

    async def ask(self, **question: object) -> dict[str, object]:
        """Send a line and give the answer."""
        assert self._process.stdin is not None
        self.check()
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        return await self.told()

    async def told(self) -> dict[str, object]:
        """Read a line."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(ASK_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise self.failed("does not answer") from None
        if not line:
            await self._process.wait()
            raise self.failed("ended")
        return json.loads(line)


class Stage:
    """Where a run takes place: a broker with a store of its own, and what is started beside it."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._directory = Path(tempfile.mkdtemp(prefix="brokermesh-bench-"))
        self._processes: list[Process] = []
        self._numbers: dict[str, int] = {}
        self.nats_port = 0
        self.broker: Process

    @asynccontextmanager
    async def server(self, name: str) -> AsyncIterator[str]:
        """Start a server of some broker; give its URL."""
        if name == "nats":
            yield self.nats_url
            return
        from tests.support.backends import BACKENDS  # With the clients of all brokers.
        from tests.support.server import NotInstalledError

        try:
            # The same server, set up for topics of either layout.
            async with BACKENDS.get(f"{name}-native", BACKENDS[name])(self._directory) as backend:
                yield backend.url
        except NotInstalledError as error:
            raise BenchError(str(error)) from None

    @property
    def directory(self) -> Path:
        """A folder that is gone when the run ends."""
        return self._directory

    @property
    def nats_url(self) -> str:
        """Where the broker listens."""
        return f"nats://127.0.0.1:{self.nats_port}"

    async def __aenter__(self) -> Self:
        try:
            await self._start_broker()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            for process in reversed(self._processes):
                await process.stop()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _start_broker(self) -> None:
        own = Path(sys.executable).parent / "nats-server"
        binary = str(own) if own.exists() else shutil.which("nats-server")
        if binary is None:
            raise BenchError("nats-server is not installed")
        self.nats_port = free_port()
        store = str(self._directory / "store")
        self.broker = await self._start(
            Process,
            "nats-server",
            [binary, "-js", "-sd", store, "-a", "127.0.0.1", "-p", str(self.nats_port), *self._options],
        )
        await self._until_open(self.broker, self.nats_port)

    async def _until_open(self, process: Process, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            process.check()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise process.failed("does not listen") from None
            await asyncio.sleep(POLL_SECONDS)

    async def _start(self, kind: type[P], name: str, command: list[str], backbone: str | None = None) -> P:
        number = self._numbers[name] = self._numbers.get(name, 0) + 1
        log = self._directory / f"{name}-{number}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "DAPR_", "APP_"))}
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE if kind is Peer else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if kind is Peer else stderr,
                stderr=stderr,
                cwd=ROOT,
                env={**clean, "MESH_HOME": str(self._directory / "home"), "MESH_BACKBONE": backbone or self.nats_url},
                limit=MAX_LINE_BYTES,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        started = kind(name, process, log)
        self._processes.append(started)
        return started

    async def gateway(
        self,
        app_id: str,
        app_port: int | None = None,
        path: str = "healthz",
        backbone: str | None = None,
        resources: Path | None = None,
        protocol: str = "http",
        further: Sequence[str] = (),
    ) -> Gateway:
        """Start a gateway and wait until it is ready.

        Args:
            app_id: Whom it serves.
            app_port: Where the application listens.
            path: What has to answer 204.
            backbone: Its URL; None for this stage's own broker.
            resources: A folder of them; None for the built-in ones.
            protocol: What the application speaks.
            further: More of the command line.
        """
        port, grpc_port = free_port(), free_port()
        command = [sys.executable, "-m", "gateway", "--app-id", app_id]
        command += ["--dapr-http-port", str(port), "--dapr-grpc-port", str(grpc_port)]
        if app_port is not None:
            command += ["--app-port", str(app_port), "--app-protocol", protocol]
        if resources is not None:
            command += ["--resources-path", str(resources)]
        command += further
        gateway = await self._start(Gateway, f"gateway-{app_id}", command, backbone)
        gateway.http_port, gateway.grpc_port = port, grpc_port
        deadline = time.monotonic() + START_SECONDS
        while await _status(port, f"/v1.0/{path}") != 204:
            gateway.check()
            if time.monotonic() > deadline:
                raise gateway.failed("is not ready")
            await asyncio.sleep(POLL_SECONDS)
        return gateway

    async def several(self, words: Sequence[str], port: int) -> Gateway:
        """Start a gateway of several applications, and wait until all of them are ready.

        Args:
            words: Its command line.
            port: Of the first one's API.
        """
        gateway = await self._start(Gateway, "gateway-several", [sys.executable, "-m", "gateway", *words])
        gateway.http_port = port
        deadline = time.monotonic() + START_SECONDS
        ports = [int(number) for word in words for _, _, number in [word.partition("http-port=")] if number]
        for each in ports:
            while await _status(each, "/v1.0/healthz") != 204:
                gateway.check()
                if time.monotonic() > deadline:
                    raise gateway.failed("is not ready")
                await asyncio.sleep(POLL_SECONDS)
        return gateway

    async def peer(self, role: str, **options: object) -> Peer:
        """Start a peer and wait until it is ready."""
        module = "bench.app" if role == "app" else "bench.clients" if "client" in options else "bench.bare"
        module = "bench.stores" if "store" in options else "bench.rpc" if "rpc" in options else module
        given = json.dumps({"nats": self.nats_url, **options})
        peer = await self._start(Peer, role, [sys.executable, "-m", module, role, given])
        peer.http_port = int(str((await peer.told())["port"]))
        return peer

    async def program(self, name: str, command: Sequence[str]) -> Peer:
        """Start a program that answers as a peer does, and wait until it is ready."""
        peer = await self._start(Peer, name.replace(" ", "-"), list(command))
        peer.http_port = int(str((await peer.told())["port"]))
        return peer

    async def stop(self, *processes: Process) -> None:
        """End some before the others."""
        for process in processes:
            await process.stop()
            self._processes.remove(process)


async def _status(port: int, path: str) -> int:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
        return int(line[9:12] or 0)
    except (OSError, ValueError):
        return 0
    finally:
        writer.close()
