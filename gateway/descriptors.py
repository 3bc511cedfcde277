"""What the processes of a gateway pass each other beside words: descriptors over a socket, and memory with counts.

Source: unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
from contextlib import suppress

__all__ = ["ABSENT", "MAX_SLOTS", "counts_of", "receive", "send", "shared_counts"]

MAX_SLOTS = 64
"""Workers of one gateway."""
MAX_NAME = 512
ABSENT = 2**30
"""Counted for a worker that is not there."""


def shared_counts() -> tuple[int, memoryview]:
    """Make memory with a number for each worker; gives its descriptor as well."""
    made = os.memfd_create("workers")
    os.ftruncate(made, 4 * MAX_SLOTS)
    counts = counts_of(made)
    counts[:] = memoryview(array.array("i", [ABSENT] * MAX_SLOTS))
    return made, counts


def counts_of(descriptor: int) -> memoryview:
    """Give the numbers that are in the memory of a descriptor."""
    return memoryview(mmap.mmap(descriptor, 4 * MAX_SLOTS)).cast("i")


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
