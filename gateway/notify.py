"""What a gateway tells systemd of itself: that it is ready, that it still works, that it ends.

A unit of ``Type=notify`` counts as started once it is told so, and one with a watchdog is started anew when it has told
nothing for as long. Both are asked for by variables of the environment; without them nothing is told.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping

__all__ = ["VARIABLES", "Notify"]

VARIABLES = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})
"""What systemd asks by, which is not for the application that ``mesh run`` starts."""

_PARTS = 3  # Of the time that systemd waits: two may be late.


class Notify:
    """Where systemd is told how this process is."""

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        """Prepare.

        Args:
            address: A socket's path, or ``@`` and an abstract name; empty = nobody is told anything.
            watchdog: The process counts as hung after so many seconds of silence; None = nobody looks.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = watchdog if address else None

    @classmethod
    def by(cls, environ: Mapping[str, str]) -> Notify:
        """Read what systemd has asked for."""
        micros, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
        # Of a unit that runs `mesh run`, the main process is our parent: what it stands and falls with is us.
        ours = pid in (None, str(os.getpid()), str(os.getppid()))
        watchdog = int(micros) / 1e6 if ours and micros.isdecimal() and int(micros) else None
        return cls(environ.get("NOTIFY_SOCKET", ""), watchdog)

    def tell(self, *states: str) -> None:
        """Tell something, such as ``READY=1``; whoever does not listen any more is told nothing."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.setblocking(False)
            out.sendto("\n".join(states).encode("utf-8", "replace"), self._address)

    async def alive(self) -> None:
        """Tell again and again that the event loop turns, until cancelled; returns at once if nobody looks."""
        while self._watchdog is not None:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / _PARTS)
