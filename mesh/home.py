"""Where brokermesh keeps its files on this machine, and how one process keeps one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mesh.errors import ConfigError, Problem
from mesh.values import parse_bool

__all__ = ["lock_file", "mesh_home", "single_host", "write_private"]


def mesh_home(environ: Mapping[str, str]) -> Path:
    """Return where brokermesh keeps its files: MESH_HOME, or a directory among the user's data."""
    if home := environ.get("MESH_HOME"):
        return Path(home).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "brokermesh"
    data = Path(environ.get("XDG_DATA_HOME", ""))
    # A relative XDG_DATA_HOME is to be ignored (XDG Base Directory Specification).
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "brokermesh"


def single_host(environ: Mapping[str, str]) -> bool:
    """Tell whether all nodes of the mesh are on this machine: MESH_SINGLE_HOST.

    Raises:
        ConfigError: It is no boolean.
    """
    try:
        return parse_bool(environ.get("MESH_SINGLE_HOST") or "false", words=True)
    except ValueError as error:
        raise ConfigError(Problem(str(error), "MESH_SINGLE_HOST")) from None


def write_private(path: Path, text: str | bytes) -> None:
    """Replace a file by one that only this user can read; readers see the old or the new one."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
        out.write(text.encode() if isinstance(text, str) else text)
    draft.replace(path)


def lock_file(path: Path) -> int:
    """Open and lock a file, made if it is missing, which another process may be just removing.

    Returns:
        What holds the lock until it is closed, or the process ends, however it does.

    Raises:
        BlockingIOError: Another process has it, or another place in this one. It is not waited for: whoever has it may
            need this thread to let go.
    """
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == path.stat().st_ino:
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
