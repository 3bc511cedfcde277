"""The registry of what runs: one entry for each gateway, below ``MESH_HOME/run``.

===================  ===============================================================================
``PID-RANDOM.json``  the entry; replaced as a whole, so that readers see the old or the new one
``PID-RANDOM.lock``  locked by the gateway for as long as it lives; the kernel lets go however it ends
===================  ===============================================================================

An entry whose lock is free is stale, whatever process has its pid now; readers remove it. No name is used twice, so
that no gateway waits for a lock: not for that of another one in its process, nor of one in a container whose pids are
the same.
Nothing large is imported, since every gateway does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.home import lock_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["KEY_HEADER", "Run", "find_run", "list_runs", "registered", "set_app_pid"]

KEY_HEADER = "mesh-key"
"""Of the HTTP API; see ``Run.key``."""


@dataclass(frozen=True, slots=True)
class Run:
    """One gateway that runs.

    Attributes:
        app_id: The application it serves.
        pid: The gateway process.
        http_port: Of its API; 0 when it listens on a socket file.
        grpc_port: Port of the gRPC API; 0 when that is a socket file.
        metrics_port: Port of the metrics; 0 when there are none.
        host: Where a local client reaches the API.
        socket: The API's socket file; None when it listens on a port.
        app_port: Where the application listens; None for one that only calls out.
        app_pid: The application, when ``mesh run`` started it.
        created: Seconds since the epoch.
        namespace: Of the mesh.
        max_body_bytes: Largest body that is held in memory.
        max_header_bytes: Largest header section.
        labels: What ``mesh run`` said about it: cliPID, appCommand, appLogPath, daprdLogPath,
            runTemplatePath, runTemplateName.
        token_file: Of the tokens that its clients send; "" = there is none, or it is of the environment.
        key: Whoever can read this entry, the gateway's user, sends it as ``KEY_HEADER`` to be told past
            ``spec.httpPipeline``.
    """

    app_id: str
    http_port: int
    pid: int = field(default_factory=os.getpid)
    grpc_port: int = 0
    metrics_port: int = 0
    host: str = "127.0.0.1"
    socket: str | None = None
    app_port: int | None = None
    app_pid: int | None = None
    created: float = field(default_factory=time.time)
    namespace: str = "default"
    max_body_bytes: int = 4 * 1024 * 1024
    max_header_bytes: int = 16 * 1024
    labels: Mapping[str, str] = field(default_factory=dict)
    token_file: str = ""
    key: str = field(default="", repr=False)

    @property
    def cli_pid(self) -> int | None:
        """The ``mesh run`` that started it."""
        text = self.labels.get("cliPID", "")
        return int(text) if text.isdecimal() else None


@contextlib.contextmanager
def registered(home: Path, run: Run) -> Iterator[None]:
    """Keep an entry for as long as it is entered; enter it once the API listens.

    Args:
        home: ``MESH_HOME``.
        run: Of this process.
    """
    directory = home / "run"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{run.pid}-{os.urandom(8).hex()}.json"
    lock_path = path.with_suffix(".lock")
    lock = lock_file(lock_path)
    try:
        _write(path, run)
        yield
    finally:
        path.unlink(missing_ok=True)
        lock_path.unlink(missing_ok=True)
        os.close(lock)


def list_runs(home: Path) -> list[Run]:
    """Give every gateway that runs, the oldest first; stale entries are removed."""
    found = (_read(path) for path in (home / "run").glob("*.json"))
    return sorted((run for run in found if run is not None), key=lambda run: (run.created, run.pid))


def find_run(home: Path, pid: int) -> Run | None:
    """Give the entry of one gateway process; None while it does not listen."""
    return next((run for _, run in _of_process(home, pid)), None)


def set_app_pid(home: Path, pid: int, app_pid: int) -> None:
    """Note which application was started for a gateway; nothing happens if the gateway has gone."""
    for path, run in _of_process(home, pid):
        _write(path, replace(run, app_pid=app_pid))


def _of_process(home: Path, pid: int) -> Iterator[tuple[Path, Run]]:
    for path in (home / "run").glob(f"{pid}*.json"):  # Those of earlier versions are named by the pid alone.
        if path.stem.partition("-")[0] == str(pid) and (run := _read(path)) is not None:
            yield path, run


def _read(path: Path) -> Run | None:
    try:
        if not path.exists() or _removed_as_stale(path):
            return None
        return Run(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        # It has just gone, or another version of brokermesh wrote it.
        return None


def _removed_as_stale(path: Path) -> bool:
    """Remove an entry whose lock is free, or gone.

    Whoever removes it holds its lock, made anew if it is gone.
    """
    lock_path = path.with_suffix(".lock")
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Shared, so that two readers do not take each other for the gateway.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == lock_path.stat().st_ino:
            path.unlink(missing_ok=True)
            lock_path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(lock)


def _write(path: Path, run: Run) -> None:
    draft = path.with_suffix(f".{os.getpid()}.new")
    with open(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w", encoding="utf-8"
    ) as out:
        json.dump(asdict(run), out)
    draft.replace(path)
