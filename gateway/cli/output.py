"""What people see: prefixed lines of every application and gateway, and our own words between them."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO

from gateway.cli.terminal import colours_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from gateway.cli.reference import Sign

__all__ = ["Console", "LineSplitter", "LogTarget", "Stream", "printable"]

MAX_LINE_BYTES = 64 * 1024
TAIL_LINES = 20

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
# Colours of the application pass; whatever else would act on the terminal does not.
_CONTROL = re.compile(r"(\x1b\[[0-9;]*m)|[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def printable(line: bytes) -> str:
    """Give a line of any bytes as text that does nothing to a terminal but colour it."""
    text = line.decode(errors="replace")
    return _CONTROL.sub(lambda match: match[1] or "\N{REPLACEMENT CHARACTER}", text)


class LineSplitter:
    """Cuts a stream into lines; one that is too long comes in pieces."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._rest = b""

    @property
    def holds(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._rest)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Give the lines that are complete now, without their ends."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            yield from self._pieces(line.removesuffix(b"\r"))
        while len(self._rest) > self._max:
            yield self._rest[: self._max]
            self._rest = self._rest[self._max :]

    def end(self) -> Iterator[bytes]:
        """Give what came after the last line's end."""
        rest, self._rest = self._rest, b""
        if rest:
            yield rest.removesuffix(b"\r")

    def _pieces(self, line: bytes) -> Iterator[bytes]:
        for at in range(0, max(len(line), 1), self._max):
            yield line[at : at + self._max]


class Console:
    """Standard output for the lines of applications and gateways, standard error for our own.

    Attributes:
        when_broken: Called once when the terminal has gone, or the pipe is closed, as ``| head`` does.
        short: There is one application: its lines do not name it, and the gateway's have no prefix.
        as_json: Our own lines are JSON objects, as those of dapr with ``--log-as-json``, and so are the gateway's.
    """

    def __init__(self, out: BinaryIO, err: BinaryIO, *, colours: bool) -> None:
        self.when_broken: Callable[[], None] = lambda: None
        self.short = False
        self.as_json = False
        self._broken = False
        self._out = out
        self._err = err
        self._colours = colours
        self._given: dict[str, int] = {}
        self._open: tuple[str, str] | None = None

    @classmethod
    def of_process(cls, environ: Mapping[str, str] = os.environ) -> Console:
        """Use the standard streams of this process."""
        return cls(sys.stdout.buffer, sys.stderr.buffer, colours=colours_wanted(environ, terminal=sys.stdout.isatty()))

    def line(self, source: str, app_id: str, line: bytes, *, closed: bool = True) -> None:
        """Write a line of an application or gateway and flush it.

        Args:
            source: ``APP`` or ``GATEWAY``.
            app_id: The application.
            line: What it wrote.
            closed: Whether the line has ended; what follows of the same source goes on in it.
        """
        prefix = f"== {source} - {app_id} =="
        if source == "GATEWAY" and (self.short or self.as_json):
            prefix = ""
        elif self.short:
            prefix = f"== {source} =="
        if self._colours and prefix:
            colour = self._given.setdefault(app_id, _COLOURS[len(self._given) % len(_COLOURS)])
            prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
        # An application that leaves a colour open does not dye the lines of others.
        text = printable(line)
        closing = "\x1b[0m" if "\x1b[" in text else ""
        if self._open == (source, app_id):
            self._open, prefix = None, ""
        elif prefix:
            prefix += " "
        self._write(self._out, f"{prefix}{text}{closing}" + ("\n" if closed else ""))
        self._open = None if closed else (source, app_id)

    def typed(self) -> None:
        """Take note that what was typed has ended the line: the terminal echoes it."""
        self._open = None

    def out(self, status: Sign, text: str, shown: str) -> None:
        """Write a line that scripts may wait for.

        Args:
            status: What it tells.
            text: It, as JSON has it.
            shown: It, as people see it.
        """
        self._own(self._out, status, text, shown)

    def err(self, status: Sign, text: str, shown: str) -> None:
        """Write a line beside; see `out`."""
        self._own(self._err, status, text, shown)

    def say(self, text: str) -> None:
        """Write a line of our own."""
        self._own(self._err, "info", text, f"mesh: {text}")

    def complain(self, text: str) -> None:
        """Write an error."""
        label = "\x1b[31merror:\x1b[0m" if self._colours else "error:"
        self._own(self._err, "failure", text, f"{label} {text}")

    def _own(self, to: BinaryIO, status: Sign, text: str, shown: str) -> None:
        if self.as_json:
            when = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            shown = json.dumps({"time": when, "status": status, "msg": text.strip()})
        self._write(to, f"{shown}\n")

    def _write(self, to: BinaryIO, text: str) -> None:
        if self._broken:
            return
        if self._open is not None:
            text, self._open = f"\n{text}", None
        try:
            to.write(text.encode(errors="replace"))
            to.flush()
        except (OSError, ValueError):
            self._broken = True
            self.when_broken()


@dataclass(frozen=True, slots=True)
class LogTarget:
    """Where the output of one process goes.

    Attributes:
        console: Whether it is shown.
        file: Gets it byte by byte as it comes; None = there is no file.
    """

    console: bool = True
    file: Path | None = None


@dataclass(slots=True)
class Stream:
    """The output of one process: to the console, to a file, and its last lines kept.

    Attributes:
        source: ``APP`` or ``GATEWAY``.
        app_id: The application.
        tail: The last lines.
        asks: A line that is not ended may be a question to the keyboard.
    """

    source: str
    app_id: str
    target: LogTarget
    console: Console
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    asks: bool = False
    _splitter: LineSplitter = field(default_factory=LineSplitter)
    _file: BinaryIO | None = None

    def open(self) -> None:
        """Create the log file, if there is one.

        Raises:
            OSError: It can not be created.
        """
        if self.target.file is not None:
            self.target.file.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.target.file.open("ab", buffering=0)  # So it goes on at its end when others cut it.
            self._file.truncate(0)

    def feed(self, chunk: bytes) -> None:
        """Take what came."""
        if self._file is not None:
            try:
                self._file.write(chunk)
            except OSError as error:
                self.console.complain(f"{self.target.file} is not written any more: {error.strerror}")
                self.close()
        for line in self._splitter.feed(chunk):
            self._line(line)

    @property
    def unfinished(self) -> bool:
        """Whether the last line is not ended and was not shown yet."""
        return self._splitter.holds

    def ask(self) -> None:
        """Show the line that is not ended."""
        for line in self._splitter.end():
            self._line(line, closed=False)

    def end(self) -> None:
        """Take the end."""
        for line in self._splitter.end():
            self._line(line)

    def close(self) -> None:
        """Close the log file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def last_lines(self) -> str:
        """Give the last lines to be quoted, unless they were shown already."""
        if self.target.console:
            return ""
        return "".join(f"\n    {line}" for line in self.tail)

    def _line(self, line: bytes, *, closed: bool = True) -> None:
        self.tail.append(printable(line)[:500])
        if self.target.console:
            self.console.line(self.source, self.app_id, line, closed=closed)
