"""Descriptors from one process to another, over a socket between them.

Source: unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import array
import socket
from contextlib import suppress

__all__ = ["MAX_SLOTS", "receive", "send"]

MAX_SLOTS = 64
"""Workers of one gateway."""
MAX_NAME = 512


def send(end: socket.socket, name: str, descriptor: int) -> bool:
    """Send a descriptor; False = it could not be, and is still the sender's alone."""
    try:
        socket.send_fds(end, [name.encode()], [descriptor], socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def receive(end: socket.socket) -> list[tuple[str, int]]:
    """Take what has come: names and descriptors."""
    found: list[tuple[str, int]] = []
    with suppress(BlockingIOError, ConnectionError):
        while True:
            name, descriptors, _, _ = socket.recv_fds(end, MAX_NAME, 1, socket.MSG_DONTWAIT)
            if not name:
                break
            found += [(name.decode(), each) for each in array.array("i", descriptors)]
    return found
