"""The supervisor: the one process that starts, restarts and stops nats-server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

from brokers.embedded_server.files import (
    FIRST_BACKOFF,
    LAST_BACKOFF,
    LOG_LIMIT_BYTES,
    LOOPBACK,
    PORTS,
    READY_WITHIN,
    RETRY_EVERY,
    STABLE_AFTER,
    STOP_WITHIN,
    SYNC_INTERVAL,
    Durability,
    ServerState,
    born,
    greets,
    open_lock,
    read_state,
    server_name,
    try_lock,
    write_private,
)

__all__ = ["supervise"]

logger = logging.getLogger(__name__)

# A body of 4 MiB, which gateways take, with all that goes with it; nats-server advises against more than this.
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024
# Several subscriptions of one gateway may have large events under way at once.
MAX_PENDING_BYTES = 256 * 1024 * 1024

# Argument 1 is the parent; it may have died before prctl. PR_SET_PDEATHSIG is 1, and survives exec.
DIE_WITH_PARENT = (
    "import ctypes, os, signal, sys\n"
    "if ctypes.CDLL(None).prctl(1, signal.SIGTERM) or os.getppid() != int(sys.argv[1]): sys.exit('no parent')\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class StartError(Exception):
    """The server could not be started; the text goes to the joiner that asked for it."""


class Supervisor:
    """The one process that starts, restarts and stops nats-server. Runs with start.lock held until it is up."""

    def __init__(self, root: Path, binary: str, durability: Durability) -> None:
        self._root = root
        self._binary = binary
        # SimpleQueue.put is safe in a signal handler. Signals and the last leaver arrive here; nothing is polled.
        self._events: queue.SimpleQueue[Literal["child", "stop", "unused"]] = queue.SimpleQueue()
        signal.signal(signal.SIGCHLD, lambda *_: self._events.put("child"))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put("stop"))
        stale = read_state(root)
        self._store = take_store(root, stale)
        me = os.getpid()
        self._state = ServerState(
            supervisor_pid=me,
            supervisor_born=born(me) or "",
            server_pid=0,
            server_born="",
            # Gateways that outlived the last supervisor reconnect to what they know.
            port=stale.port if stale is not None and port_is_free(stale.port) else free_port(root),
            token=stale.token if stale is not None else os.urandom(24).hex(),
            durability=durability,
        )

    def start(self) -> None:
        """Return when the server answers.

        Raises:
            StartError: It ended, or does not answer in time.
        """
        deadline = time.monotonic() + READY_WITHIN
        name = server_name(self._root)
        self._launch()
        while not greets(self._state.port, name):
            if (status := self._server.poll()) is not None:
                if port_is_free(self._state.port) or time.monotonic() > deadline:
                    message = f"it exited with status {status}"
                    raise StartError(message)
                # Somebody was faster at the port; nobody knows of it yet, so take another.
                self._state = replace(self._state, port=free_port(self._root))
                self._launch()
            if time.monotonic() > deadline:
                self._server.kill()
                self._server.wait()
                message = f"it did not answer within {READY_WITHIN:.0f} s"
                raise StartError(message)
            time.sleep(RETRY_EVERY / 2)  # nats-server has no way to say that it is ready

    def run(self) -> None:
        """Keep the server running; return when it is stopped."""
        threading.Thread(target=self._watch_users, name="users", daemon=True).start()
        restart_at: float | None = None
        backoff = 0.0
        while True:
            try:
                due = None if restart_at is None else max(0.0, restart_at - time.monotonic())
                event = self._events.get(timeout=due)
            except queue.Empty:
                restart_at = None
                try:
                    self._launch()
                except OSError as error:
                    logger.error("could not start nats-server: %s", error)  # noqa: TRY400 - tried again; the log is for people
                    event = "child"
                else:
                    continue
            if event != "child":
                self._stop()
                if event == "unused":
                    (self._root / "server.json").unlink(missing_ok=True)
                return
            if restart_at is None and self._server.poll() is not None:
                stable = time.monotonic() - self._launched_at > STABLE_AFTER
                backoff = 0.0 if stable else min(max(2 * backoff, FIRST_BACKOFF), LAST_BACKOFF)
                restart_at = time.monotonic() + backoff
                logger.warning("nats-server ended by %d; starting it again in %.2f s", self._server.returncode, backoff)

    def _launch(self) -> None:
        self._launched_at = time.monotonic()
        write_private(self._root / "nats.conf", configuration(self._root, self._state))
        command = [self._binary, "-c", str(self._root / "nats.conf")]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command]
        # In the main thread, for the kernel takes the end of the thread that forked as the parent's death.
        self._server = subprocess.Popen(  # noqa: S603 - a binary that we looked up, no shell
            command, stdin=subprocess.DEVNULL, pass_fds=(self._store,)
        )
        self._state = replace(self._state, server_pid=self._server.pid, server_born=born(self._server.pid) or "")
        write_private(self._root / "server.json", json.dumps(asdict(self._state)))

    def _stop(self) -> None:
        self._server.terminate()
        try:
            self._server.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _watch_users(self) -> None:
        """Wait until nobody is in, then keep everybody out: both locks stay held until this process ends."""
        users = open_lock(self._root, "users.lock")
        while True:
            fcntl.flock(users, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_UN)
            start = open_lock(self._root, "start.lock")
            fcntl.flock(start, fcntl.LOCK_EX)
            if try_lock(users, fcntl.LOCK_EX):
                self._events.put("unused")
                return
            os.close(start)


def take_store(root: Path, stale: ServerState | None) -> int:
    """Return store.lock, held; an orphaned server of the last supervisor is ended first."""
    fd = open_lock(root, "store.lock")
    for number in (signal.SIGTERM, signal.SIGKILL):
        if stale is not None and stale.server_born and born(stale.server_pid) == stale.server_born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stale.server_pid, number)
        deadline = time.monotonic() + STOP_WITHIN / 2
        while time.monotonic() < deadline:
            if try_lock(fd, fcntl.LOCK_EX):
                return fd
            time.sleep(RETRY_EVERY)
    message = f"a server that is unknown here, perhaps in another container or on another host, uses {root / 'data'}"
    raise StartError(message)


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As nats-server itself does: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port(root: Path) -> int:
    """Return a free port, the same for the same directory whenever possible."""
    first = zlib.crc32(os.fsencode(root))
    for port in (PORTS[(first + offset) % len(PORTS)] for offset in range(len(PORTS))):
        if port_is_free(port):
            return port
    message = f"no port from {PORTS.start} to {PORTS.stop - 1} is free on {LOOPBACK}"
    raise StartError(message)


def configuration(root: Path, state: ServerState) -> str:
    """Return nats.conf. No other listener is named, so there is none."""
    data = root / "data"
    disk = os.statvfs(data)
    settings = {
        "server_name": server_name(root),
        "listen": f"{LOOPBACK}:{state.port}",
        "authorization": {"token": state.token},
        "max_payload": MAX_PAYLOAD_BYTES,
        "max_pending": MAX_PENDING_BYTES,
        "jetstream": {
            "store_dir": str(data),
            "sync_interval": SYNC_INTERVAL[cast("Durability", state.durability)],
            # By default it is three quarters of what is free, less what is stored with every restart.
            "max_file_store": sum(_file_sizes(data)) + disk.f_bavail * disk.f_frsize * 3 // 4,
        },
        "log_file": str(root / "server.log"),
        "logfile_size_limit": LOG_LIMIT_BYTES,
        "logfile_max_num": 3,
    }
    # JSON is valid nats configuration, except for \u escapes.
    return json.dumps(settings, ensure_ascii=False, indent=2)


def _file_sizes(directory: Path) -> Iterator[int]:
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.stat(os.path.join(parent, name)).st_blocks * 512


def supervise(root: Path, binary: str, durability: Durability, report: int, start: int) -> None:
    """Run a supervisor to its end, and tell the joiner that started it how the start went."""
    os.umask(0o077)
    logging.basicConfig(format="[%(process)d] %(asctime)s [%(levelname)s] supervisor: %(message)s")
    try:
        supervisor = Supervisor(root, binary, durability)
        supervisor.start()
    except (StartError, OSError) as error:
        answer = str(error)
        supervisor = None
    else:
        answer = "ready"
    with contextlib.suppress(BrokenPipeError):  # The joiner has gone; the others need the server no less.
        os.write(report, answer.encode()[:4096])
    os.close(report)
    os.close(start)
    if supervisor is not None:
        supervisor.run()
