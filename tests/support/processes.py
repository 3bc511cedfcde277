"""Real processes in tests: free ports, and ends that are certain."""

from __future__ import annotations

import itertools
import os
import random
import re
import socket
from pathlib import Path

__all__ = ["NO_AUTHORITIES", "ROOT", "free_port", "nothing_forgotten"]

ROOT = Path(__file__).parents[2]
# Below the ephemeral ports: a client that retries there would in time connect to itself, and keep the port.
# Each process that runs tests has some of its own, and none is given twice: servers take a while to listen.
PORTS = range(10_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]), 20_000, 16)
# For the environment of our processes: none speaks to the internet, and to read whom the system trusts takes a tenth of
# the time in which one starts.
NO_AUTHORITIES = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
FORGOTTEN = ("never retrieved", "was never awaited", "Task was destroyed", "Unclosed ")
# aiormq wraps a call's task, ends the wrapper with the connection, and never looks at the task itself. When its reader
# ends it makes a task for the rest, for which nobody waits: where that is the end of the loop, it never runs.
LIBRARY = re.compile(
    r"Task exception was never retrieved\nfuture: <Task finished \S+ coro=<Channel\.rpc\(\)"
    r"|Task was destroyed but it is pending!\ntask: <Task pending \S+ coro=<Connection\._on_reader_done\."
)
_ports = itertools.cycle(random.sample(PORTS, len(PORTS)))


def free_port() -> int:
    """Give a TCP port of this host that nobody uses, and that no outgoing connection takes."""
    while True:
        number = next(_ports)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
        return number


def nothing_forgotten(text: str, *more: str) -> None:
    """Fail if a program wrote that a task's error or a coroutine was lost on the way.

    Args:
        text: What it wrote.
        more: Further signs of what must not happen.
    """
    text = LIBRARY.sub("", text)
    signs = "|".join(map(re.escape, (*FORGOTTEN, *more)))
    if found := re.search(signs, text):
        raise AssertionError(f"it wrote {found[0]!r}:\n{text[max(0, found.start() - 500) : found.end() + 3000]}")
