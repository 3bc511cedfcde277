"""A small process that ends gateways and applications when ``mesh run`` is killed without a chance to.

It is forked before anything else starts, and reads a pipe of which only ``mesh run`` holds the other end: the
kernel closes it however ``mesh run`` ends. What still runs then gets SIGTERM, the gateways first, so that calls
in flight are finished while the applications are there; what does not end in time gets SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Guard", "Role", "alive", "group_alive", "signal_group", "start_guard"]

Role = Literal["gateway", "app"]

_POLL = 0.05
_APP_GRACE = 5.0


def signal_group(pid: int, number: int) -> bool:
    """Send a signal to a process group; False if it has gone."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        # macOS answers so for a group of zombies; a process that changed its user is beyond us as well.
        return False
    return True


def group_alive(pid: int) -> bool:
    """Tell whether a process group has a member that is more than a zombie, which init may leave for seconds."""
    if not signal_group(pid, 0):
        return False
    if sys.platform != "linux":
        return True
    with os.scandir("/proc") as processes:
        return any(_is_member(Path(process.path), pid) for process in processes if process.name.isdecimal())


def alive(pid: int) -> bool:
    """Tell whether a process is there, and more than a zombie, which its parent may leave for long."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return sys.platform != "linux" or _group(Path("/proc", str(pid))) is not None


def _is_member(process: Path, group: int) -> bool:
    return _group(process) == group


def _group(process: Path) -> int | None:
    """Give the group of a process; None if it has gone, or is a zombie."""
    try:
        stat = (process / "stat").read_bytes()
    except OSError:
        return None
    # The second field is a name in parentheses, which may itself hold any of these. (proc(5))
    state, _, its_group, *_ = stat.rpartition(b")")[2].split()
    return None if state in (b"Z", b"X") else int(its_group)


class Guard:
    """The end of the pipe that ``mesh run`` holds."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def watch(self, role: Role, pid: int) -> None:
        """Take care of a process group from now on."""
        self._tell(f"+ {role} {pid}\n")

    def forget(self, role: Role, pid: int) -> None:
        """Leave a process group alone: it has ended, and its number may be given to another."""
        self._tell(f"- {role} {pid}\n")

    def _tell(self, line: str) -> None:
        # Without its guard, mesh run does its work all the same.
        with contextlib.suppress(OSError):
            os.write(self._pipe, line.encode())


def start_guard(gateway_grace: float) -> Guard:
    """Fork the guard; to be called while the process has one thread and no event loop.

    Args:
        gateway_grace: Seconds that gateways may take to end.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        _guard(reading, gateway_grace)
    os.close(reading)
    return Guard(writing)


def _guard(pipe: int, gateway_grace: float) -> NoReturn:
    # Nothing may leave this process but by _exit: it is a copy of one that has other things to do.
    try:
        os.setsid()
        # It holds nothing that others wait to see closed, and nobody's Ctrl-C reaches it.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, 1024)
        watched = _read(pipe)
        _end((pid for role, pid in watched if role == "gateway"), gateway_grace)
        _end((pid for role, pid in watched if role == "app"), _APP_GRACE)
    finally:
        os._exit(0)


def _read(pipe: int) -> set[tuple[str, int]]:
    watched: set[tuple[str, int]] = set()
    with os.fdopen(pipe, encoding="ascii") as lines:
        for line in lines:
            sign, role, pid = line.split()
            (watched.add if sign == "+" else watched.discard)((role, int(pid)))
    return watched


def _end(groups: Iterable[int], grace: float) -> None:
    rest = [pid for pid in groups if signal_group(pid, signal.SIGTERM)]
    deadline = time.monotonic() + grace
    while rest and time.monotonic() < deadline:
        time.sleep(_POLL)
        rest = [pid for pid in rest if group_alive(pid)]
    for pid in rest:
        signal_group(pid, signal.SIGKILL)
