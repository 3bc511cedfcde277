"""Gateways and applications as real processes: started, ended in every way, and started again in place."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import aiohttp
import psutil

from brokers.embedded_server import read_status
from tests.support.eventually import eventually, pause
from tests.support.forked import Forked, forks, launch
from tests.support.processes import NO_AUTHORITIES, ROOT, free_port, nothing_forgotten

__all__ = ["AppProcess", "GatewayProcess", "ManagedProcess", "kill_embedded_server", "running_below", "until_answers"]

READY_WITHIN = 90.0
END_WITHIN = 60.0
SHOWN_LOG_BYTES = 6000
_numbers = itertools.count()


class ManagedProcess:
    """A process that is started and ended by a test, any number of times; its output goes to one file.

    Attributes:
        port: Where it listens on 127.0.0.1, the same after a restart.
        url: The same as a URL.
        log: What it wrote, of all its lives; shown when the test fails inside of ``async with``.
        alarming: What fails a test when it stands there, besides errors that nobody took.
    """

    alarming: tuple[str, ...] = ()

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str], directory: Path) -> None:
        self.name = name
        self.port = 0
        self.log = directory / f"{name}-{next(_numbers)}.log"
        self._command = list(command)
        self._environ = dict(environ)
        self._process: asyncio.subprocess.Process | Forked | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.returncode is not None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            self.show_log()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            if kind is None:
                await self.terminate()
            else:
                self.show_log()
        finally:
            await self.kill()
        if kind is None:
            nothing_forgotten(self._written(), *self.alarming)

    def _written(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def show_log(self) -> None:
        print(f"---- {self.name} ({self.log}) ----\n{self._written()[-SHOWN_LOG_BYTES:]}")

    async def start(self, *, ready: bool = True) -> None:
        """Start it; with ``ready``, return when it is."""
        assert self.ended, f"{self.name} runs already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            environ = {**os.environ, **NO_AUTHORITIES, **self._environ}
            self._process = await launch(self._command, environ, log.fileno())
        if ready:
            await self.until_ready()

    async def until_ready(self) -> None:
        """Wait until it answers."""
        raise NotImplementedError

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self, within: float = END_WITHIN) -> int:
        """Wait for its end; give the exit code, negative for a signal."""
        assert self._process is not None
        try:
            async with asyncio.timeout(within):
                return await self._process.wait()
        except TimeoutError:
            raise AssertionError(f"{self.name} still runs after {within:g} s") from None

    async def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    async def terminate(self) -> int:
        """Ask it to end, and wait for that; give the exit code."""
        if self._process is None:
            return 0
        self.signal(signal.SIGTERM)
        return await self.wait()


class AppProcess(ManagedProcess):
    """An application of ``tests/support/apps``; what it records is read from a file, so it outlives the process.

    Each record is a line ``<kind> <id> <pid>``, written before the application answers.
    """

    def __init__(
        self,
        directory: Path,
        name: str = "recorder",
        *,
        subscriptions: Sequence[Mapping[str, object]] = (),
        gateway_port: int | None = None,
        app_port: int | None = None,
        records: Path | None = None,
        environ: Mapping[str, str] | None = None,
        ready_path: str = "/ready",
    ) -> None:
        """Prepare; entering starts it.

        Args:
            directory: For its log and its records.
            name: Of the module, or with ``.js`` of the script for Node.
            subscriptions: What it answers to ``GET /dapr/subscribe``.
            gateway_port: Of the gateway beside it, for those that call out.
            app_port: Where it listens; None picks a free one.
            records: Where it records; several may share a file.
            environ: Further environment.
            ready_path: Asked until it answers 2xx; empty = its port has to be open.
        """
        number = app_port or free_port()
        self.records = records or directory / f"records-{next(_numbers)}.txt"
        script = ROOT / "tests" / "support" / "apps" / name
        command = ["node", str(script)] if name.endswith(".js") else [sys.executable, str(script.with_suffix(".py"))]
        environment = {
            "PYTHONPATH": str(ROOT),
            "APP_PORT": str(number),
            "APP_RECORDS": str(self.records),
            "APP_SUBSCRIPTIONS": json.dumps(list(subscriptions)),
            **({} if gateway_port is None else {"DAPR_HTTP_PORT": str(gateway_port)}),
            **(environ or {}),
        }
        super().__init__(f"app-{name}", command, environment, directory)
        self.port = number
        self._ready_path = ready_path
        self._read_bytes = 0
        self._recorded: dict[str, list[tuple[str, int]]] = {}

    async def until_ready(self) -> None:
        if self._ready_path:
            await until_answers(self, self._ready_path)
        else:
            await eventually(self._connect, READY_WITHIN)

    async def _connect(self) -> None:
        if self.ended:
            raise RuntimeError(f"{self.name} ended with {await self.wait()}")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            raise AssertionError(str(error)) from None
        writer.close()

    def recorded(self, kind: str) -> list[str]:
        """Give the ids of one kind, in the order in which they were recorded, repeated ones included."""
        return [each for each, _ in self.recorded_by(kind)]

    def recorded_by(self, kind: str) -> list[tuple[str, int]]:
        """Give ids and the processes that recorded them."""
        if self.records.exists():
            with self.records.open("rb") as records:  # Only what is new: tests ask often, and there are many.
                records.seek(self._read_bytes)
                text = records.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            for line in whole.decode().splitlines():
                found, identity, pid = line.split(" ")
                self._recorded.setdefault(found, []).append((identity, int(pid)))
        return list(self._recorded.get(kind, ()))

    async def release(self) -> None:
        """Let everything that it holds go on."""
        async with aiohttp.ClientSession() as session, session.post(f"{self.url}/release") as response:
            assert response.status == 200


class GatewayProcess(ManagedProcess):
    """``python -m gateway``."""

    alarming = ("Traceback (most recent call last)",)

    def __init__(
        self,
        app_id: str,
        home: Path,
        *,
        app: AppProcess | int | None = None,
        http_port: int | None = None,
        backbone: str | None = None,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; entering starts it and waits until ``healthz`` says that it is ready.

        Args:
            app_id: The application's name.
            home: ``MESH_HOME``; its log is written there as well.
            app: The application or its port; it must be there for the gateway to be ready.
            http_port: Of the API; None picks a free one.
            backbone: ``MESH_BACKBONE``; None is the embedded server.
            arguments: Further flags.
            environ: Further environment.
        """
        number = http_port or free_port()
        command = [sys.executable, "-m", "gateway", "--app-id", app_id, "--dapr-http-port", str(number)]
        command += ["--backbone-timeout", "30s", *arguments]  # A busy machine's broker answers late.
        if app is not None:
            command += ["--app-port", str(app if isinstance(app, int) else app.port)]
        environment = {
            "MESH_HOME": str(home),
            **({} if backbone is None else {"MESH_BACKBONE": backbone}),
            **(environ or {}),
        }
        super().__init__(f"gateway-{app_id}", command, environment, home)
        self.app_id = app_id
        self.port = number

    @property
    def api(self) -> str:
        return f"{self.url}/v1.0"

    async def until_ready(self) -> None:
        await until_answers(self, "/v1.0/healthz")

    async def until_outbound_ready(self) -> None:
        await until_answers(self, "/v1.0/healthz/outbound")

    async def until_draining(self) -> None:
        """Wait until it says that it is about to end, or accepts no connections any more."""
        async with aiohttp.ClientSession() as session:

            async def check() -> None:
                try:
                    async with session.get(f"{self.api}/healthz") as response:
                        assert response.status == 500
                        assert "shutting-down" in await response.text()
                except aiohttp.ClientConnectionError:
                    return

            await eventually(check, 40.0)


async def until_answers(process: ManagedProcess, path: str) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
        begin = time.monotonic()

        async def check() -> None:
            if process.ended:
                raise RuntimeError(f"{process.name} ended with {await process.wait()}")
            try:
                async with session.get(process.url + path) as response:
                    assert 200 <= response.status < 300, f"{process.name}: {response.status} {await response.text()}"
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                await asyncio.sleep(pause(begin))  # Each question takes a processor from what it waits for.
                raise AssertionError(f"{process.name} does not answer: {error!r}") from None

        try:
            await eventually(check, READY_WITHIN)
        except BaseException:
            process.show_log()
            raise


async def kill_embedded_server(home: Path) -> None:
    """Kill the nats-server of a MESH_HOME with SIGKILL, and return when its supervisor has started another."""
    before = await asyncio.to_thread(read_status, home)
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)

    async def is_another() -> None:
        now = await asyncio.to_thread(read_status, home)
        assert now is not None
        assert now.pid != before.pid

    await eventually(is_another, 40.0)


def running_below(home: Path) -> list[str]:
    """Give the command lines of all processes that name a MESH_HOME, in arguments or environment."""
    mine = str(home.resolve())
    found, ours = [], forks()
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            own = ours.get(process.pid, None)
            command, environ = (process.cmdline(), process.environ()) if own is None else (own.command, own.environ)
            if any(mine in part for part in command) or environ.get("MESH_HOME") == mine:
                found.append(f"{process.pid}: {' '.join(command)[:200]}")
        except (psutil.Error, OSError):
            continue
    return found
