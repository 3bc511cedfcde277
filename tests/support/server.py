"""A real server of a test's own: what all of them have in common."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.support.eventually import pause
from tests.support.processes import free_port

__all__ = ["NotInstalledError", "Server", "Servers", "missing"]

STOPS_WITHIN = 30.0


class NotInstalledError(FileNotFoundError):
    """A server is not on this machine: the test is skipped, or fails in CI (``tests/conftest.py``)."""


def missing(what: str) -> None:
    """Skip where something is not installed; in CI, fail."""
    pytest.fail(what) if os.environ.get("CI") else pytest.skip(what)


class Server:
    """One server; a restart keeps its port and its data.

    Usable from several event loops, one after the other.

    Attributes:
        directory: Its data, its configuration and what it wrote.
        process: While it runs.
        port: Where it listens on 127.0.0.1.
    """

    title: str
    ready_within = 90.0

    def __init__(self, directory: Path) -> None:
        """Prepare; entering starts it.

        Args:
            directory: An empty directory, or one of an earlier server.
        """
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        """Where it listens."""
        raise NotImplementedError

    def command(self) -> Sequence[str]:
        """Write its configuration, and give its command line."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Ask whether it is ready: this process, and no other that took the port.

        Raises:
            OSError: Nobody listens yet.
        """
        raise NotImplementedError

    def environ(self) -> Mapping[str, str]:
        """Give its environment."""
        return os.environ

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End it for good; nobody needs its data any more, and a kill takes no time."""
        await self.kill()

    def end(self) -> None:
        """Do the same where no event loop runs any more."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    async def start(self) -> None:
        """Start it, and return when it is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        self.process = self.run(self.command())
        begin = time.monotonic()
        while time.monotonic() < begin + self.ready_within and self.process.poll() is None:
            with suppress(OSError):
                if self.answers():
                    return
            time.sleep(pause(begin))
        raise RuntimeError(f"{self.title} did not start: {self.output()}")

    def run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run a program in its directory; what it writes is kept."""
        with (self.directory / "output.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self.environ(),
                start_new_session=True,  # Whatever it starts ends with it.
            )

    def output(self) -> str:
        """Give the end of what it wrote."""
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.directory.glob("**/*.log")))

    async def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        await self._end(force=True)

    async def stop(self) -> None:
        """End it in good order."""
        await self._end(force=False)

    async def restart(self, *, kill: bool = False) -> None:
        """End it and start it again, on the same port and data."""
        await self._end(force=kill)
        await self.start()

    async def _end(self, *, force: bool) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill() if force else process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOPS_WITHIN)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)


class Servers(Server):
    """Several that are started, ended and restarted together.

    Attributes:
        servers: Each of them, which may be ended and started again by itself.
    """

    servers: Sequence[Server]

    async def start(self) -> None:
        """Start all at once: there are those that wait for each other."""
        async with asyncio.TaskGroup() as tasks:
            for server in self.servers:
                tasks.create_task(server.start())

    async def _end(self, *, force: bool) -> None:
        async with asyncio.TaskGroup() as tasks:
            for server in self.servers:
                tasks.create_task(server._end(force=force))

    def end(self) -> None:
        """Do the same where no event loop runs any more."""
        for server in self.servers:
            server.end()
        super().end()
