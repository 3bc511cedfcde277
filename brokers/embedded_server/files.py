"""What joiner and supervisor share: the files under MESH_HOME/backbone, their locks, and who is alive."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from mesh.errors import BrokerUnavailableError, ConfigError
from mesh.home import write_private

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ENVIRONMENT",
    "FIRST_BACKOFF",
    "LAST_BACKOFF",
    "LOCK_WITHIN",
    "LOG_LIMIT_BYTES",
    "LOG_TAIL_BYTES",
    "LOOPBACK",
    "PORTS",
    "READY_WITHIN",
    "RETRY_EVERY",
    "STABLE_AFTER",
    "STOP_WITHIN",
    "SYNC_INTERVAL",
    "Durability",
    "ServerAddress",
    "ServerState",
    "address_of",
    "born",
    "durability_of",
    "greets",
    "log_tail",
    "open_lock",
    "read_state",
    "read_status",
    "root_of",
    "server_name",
    "supervised",
    "try_lock",
    "unavailable",
    "write_private",
]

Durability = Literal["normal", "strict"]

LOOPBACK = "127.0.0.1"
# Below the ephemeral ports, so that no outgoing connection takes the port while the server restarts.
PORTS = range(20_000, 30_000)
SYNC_INTERVAL: Mapping[Durability, str] = {"normal": "10s", "strict": "always"}
LOG_LIMIT_BYTES = 8 * 1024 * 1024
LOG_TAIL_BYTES = 2048

READY_WITHIN = 10.0
STOP_WITHIN = 5.0
# Whoever holds start.lock is starting or stopping the server, which takes no longer than this.
LOCK_WITHIN = READY_WITHIN + STOP_WITHIN
RETRY_EVERY = 0.01
FIRST_BACKOFF, LAST_BACKOFF = 0.05, 5.0
STABLE_AFTER = 10.0

# A long-lived process does not keep the secrets in the environment of the gateway that happened to start it.
ENVIRONMENT = ("GOGC", "GOMAXPROCS", "GOMEMLIMIT", "HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the shared server is, and what it asks for.

    Attributes:
        url: ``nats://127.0.0.1:PORT``; the same for as long as anybody is in.
        token: What a client authenticates with.
        pid: nats-server, when this was read; a restart changes it.
        supervisor_pid: The process that keeps it running.
    """

    url: str
    token: str = field(repr=False)
    pid: int
    supervisor_pid: int


def durability_of(environ: Mapping[str, str]) -> Durability:
    """Return what MESH_DURABILITY asks for: ``normal`` (also if unset) or ``strict``.

    Raises:
        ConfigError: It is neither.
    """
    value = environ.get("MESH_DURABILITY") or "normal"
    if value not in SYNC_INTERVAL:
        problem = f"MESH_DURABILITY is {value!r}; use one of {', '.join(SYNC_INTERVAL)}"
        raise ConfigError(problem)
    return cast("Durability", value)


def read_status(home: Path) -> ServerAddress | None:
    """Return the shared server, or None if none runs; it may be just starting. Blocks for a file read only."""
    state = read_state(root_of(home))
    return address_of(state) if state is not None and supervised(state) else None


@dataclass(frozen=True, slots=True)
class ServerState:
    """What server.json holds; ``*born`` tell a process from a later one with the same pid."""

    supervisor_pid: int
    supervisor_born: str
    server_pid: int
    server_born: str
    port: int
    token: str = field(repr=False)
    durability: str


def root_of(home: Path) -> Path:
    """Give the directory of the backbone."""
    # Resolved, since the name of the server is made of it, and must be the same by every path.
    return home.resolve() / "backbone"


def read_state(root: Path) -> ServerState | None:
    """Return what server.json says; None if there is none, or a power loss left it in pieces."""
    try:
        found = json.loads((root / "server.json").read_bytes())
        state = ServerState(**found)
        return state if all(type(found[each.name]).__name__ == each.type for each in fields(ServerState)) else None
    except (OSError, ValueError, TypeError):
        return None


def open_lock(root: Path, name: str) -> int:
    """Open a lock file, made if it is missing."""
    return os.open(root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(fd: int, mode: int) -> bool:
    """Lock without waiting; tell whether it worked."""
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def born(pid: int) -> str | None:
    """Return what tells this process from all others that ever had or will have its pid; None if it is dead."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        # The second field is a name in parentheses, which may itself hold spaces and parentheses. (proc(5))
        state, *rest = stat.rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else f"{boot}/{rest[18].decode()}"
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return None


def supervised(state: ServerState) -> bool:
    """Tell whether the supervisor that a state names is alive."""
    return born(state.supervisor_pid) == state.supervisor_born


def address_of(state: ServerState) -> ServerAddress:
    """Give the address that a state describes."""
    return ServerAddress(f"nats://{LOOPBACK}:{state.port}", state.token, state.server_pid, state.supervisor_pid)


def server_name(root: Path) -> str:
    """Give the name by which our server is told from another on its port."""
    return f"brokermesh-{zlib.crc32(os.fsencode(root)):08x}"


def greets(port: int, name: str) -> bool:
    """Return whether the server of that name, and no other, sends its INFO line at the port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection, connection.makefile("rb") as lines:
            verb, _, info = lines.readline(65_536).partition(b" ")
        return verb == b"INFO" and json.loads(info)["server_name"] == name
    except (OSError, ValueError, KeyError):
        return False


def log_tail(root: Path) -> str:
    """Give the end of the log, for an error message."""
    try:
        with (root / "server.log").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return log.read().decode(errors="replace").strip()
    except OSError:
        return ""


def unavailable(root: Path, reason: str) -> BrokerUnavailableError:
    """Make an error that says why, and shows the end of the log."""
    tail = "\n".join(f"    {line}" for line in log_tail(root).splitlines()[-10:])
    return BrokerUnavailableError(f"{reason}\n  {root / 'server.log'} ends with:\n{tail or '    (nothing)'}")
