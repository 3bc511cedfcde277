"""Lines of the log as entries of systemd's journal: level, application, trace and more in fields of their own.

What a service writes to its standard output becomes an entry as well, but of one text alone.

Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/, systemd.journal-fields(7).
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import TextIO

__all__ = ["Journal", "is_journal"]

SOCKET = "/run/systemd/journal/socket"

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7
_NO_LETTER = re.compile(r"[^A-Z0-9]+")
_LONGEST_NAME = 64


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether the journal reads a stream: systemd says which file it is."""
    told = environ.get("JOURNAL_STREAM", "")
    if not told:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return told == f"{found.st_dev}:{found.st_ino}"


class Journal(logging.Handler):
    """Writes lines into the journal; whatever that does not take goes to the standard output."""

    def __init__(
        self,
        other: logging.Handler,
        facts: Callable[[logging.LogRecord], Mapping[str, object]],
        message: Callable[[logging.LogRecord], str],
        address: str = SOCKET,
    ) -> None:
        """Open the socket.

        Args:
            other: Writes what the journal does not take.
            facts: Gives the fields of a line, by names as in other formats.
            message: Gives its text.
            address: Where the journal listens.
        """
        super().__init__()
        self._other, self._facts, self._message, self._address = other, facts, message, address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            entry = b"".join(_field(name, value) for name, value in self._entry(record).items())
            self._socket.sendto(entry, self._address)
        except OSError:
            self._other.handle(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _entry(self, record: logging.LogRecord) -> dict[str, object]:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)
        own = {f"MESH_{_NO_LETTER.sub('_', name.upper())}": value for name, value in self._facts(record).items()}
        return {
            **own,
            "MESSAGE": self._message(record),
            "PRIORITY": priority,
            "SYSLOG_IDENTIFIER": "mesh",
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
        }


def _field(name: str, value: object) -> bytes:
    data = str(value).encode("utf-8", "replace")
    name = name[:_LONGEST_NAME]
    # A text of several lines has its length in front.
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"
