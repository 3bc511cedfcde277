"""``mesh logs``: what applications and gateways of this user write, together."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlencode

from gateway.cli.client import request
from gateway.cli.output import Console, LineSplitter
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import note
from gateway.runs import Run, list_runs
from mesh.errors import ConfigError, MeshError
from mesh.home import mesh_home

__all__ = ["LEVELS", "Line", "Logs", "file_log", "level_of", "parser", "run", "time_of"]

LINES, MOST_LINES = 100, 1000
LEVELS = ("debug", "info", "warning", "error")
POLL_SECONDS, RUNS_SECONDS, ASK_SECONDS = 0.2, 1.0, 2.0
BLOCK_BYTES, TAIL_BYTES = 64 * 1024, 8 * 1024 * 1024
MOST_AT_ONCE = 4 * 1024 * 1024
_INSTANT = r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?)"
# At its beginning, perhaps behind a level; or as a field named so: elsewhere it may be any time.
_TIME = re.compile(rf"(?:^\W{{0,3}}(?:[A-Z]{{2,8}}\W{{1,6}})?|\b(?:time|timestamp|ts)\"?\s*[:=]\s*\"?){_INSTANT}")
_LEVEL = re.compile(r'(?:\blevel=|"level":\s*")([A-Za-z]+)')
_NAMED = {"warn": "warning", "critical": "error", "fatal": "error", "panic": "error", "trace": "debug"}
_LOOKED_AT = 300  # Characters in which a line says its time and its level.


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log.

    Attributes:
        time: Unix time in seconds at which it was written, as far as it is known.
        source: ``APP`` or ``GATEWAY``.
        app_id: The application.
        text: It.
    """

    time: float
    source: str
    app_id: str
    text: bytes


class Source(Protocol):
    """Where lines come from."""

    def last(self, count: int) -> list[Line]:
        """Give the last ones, and go on behind them."""

    def more(self) -> list[Line]:
        """Give those that were written since."""

    def end(self) -> list[Line]:
        """Give what is left, once nobody writes any more."""

    def close(self) -> None:
        """Read it no longer."""


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh logs",
        description="Show what applications and gateways write, together and in the order of time.",
        epilog="mesh logs                        the last 100 lines of each\n"
        "mesh logs -f --app orders        what is written from here on, too\n"
        "mesh logs --level warning -n 20",
    )
    made.add_argument("-f", "--follow", action="store_true", help="go on with what is written, until all have ended")
    made.add_argument(
        *("-a", "--app", "--app-id"),
        dest="app",
        action="append",
        default=[],
        metavar="APP-ID",
        help="of this application alone; repeatable",
    )
    made.add_argument(
        "-n",
        "--lines",
        default=LINES,
        metavar="N",
        help=f"the last ones of each log ({LINES}); with -k also a namespace",
    )
    made.add_argument(
        "--level", choices=LEVELS, default="debug", help="lines of this level and above, where they say it"
    )
    made.add_kubernetes("with -k: of the pods (default)", "--namespace")
    made.add_argument("-p", "--pod-name", metavar="POD", help="with -k: of this pod alone")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if found.kubernetes:
        from gateway.cli import cluster

        return cluster.logs(found)
    if not str(found.lines).isdigit() or int(found.lines) > MOST_LINES:
        raise UsageError(f"--lines is from 0 to {MOST_LINES}", "mesh logs")
    found.lines = int(found.lines)
    wanted = frozenset(found.app)
    runs = _runs(wanted)
    if missing := sorted(wanted - {each.app_id for each in runs}):
        raise ConfigError(f"no gateway runs here of {', '.join(missing)}; see: mesh list")
    if not runs:
        note("nothing runs here; start an application with: mesh run --app-id NAME -- COMMAND")
        note("  what runs in containers is shown by: docker compose logs -f")
        return 0
    console = Console.of_process()
    console.when_broken = _gone
    with closing(Logs(found.lines, found.level)) as logs:
        _show(console, logs.of(runs))
        if found.follow:
            _follow(console, logs, wanted)
    return 0


def _runs(wanted: frozenset[str]) -> list[Run]:
    return [each for each in list_runs(mesh_home(os.environ)) if not wanted or each.app_id in wanted]


def _follow(console: Console, logs: Logs, wanted: frozenset[str]) -> None:
    looked = time.monotonic()
    while True:
        time.sleep(POLL_SECONDS)
        runs = None
        if time.monotonic() - looked >= RUNS_SECONDS:
            looked, runs = time.monotonic(), _runs(wanted)
        _show(console, logs.more(runs))
        if runs == []:
            note("all of them have ended")
            return


def _show(console: Console, lines: Iterable[Line]) -> None:
    for each in lines:
        console.line(each.source, each.app_id, each.text)


def _gone() -> None:
    raise BrokenPipeError


class Logs:
    """The logs of all that runs."""

    def __init__(self, lines: int, level: str) -> None:
        self._lines, self._least = lines, LEVELS.index(level)
        self._open: dict[tuple[int, float, str], Source] = {}

    def of(self, runs: Sequence[Run]) -> list[Line]:
        """Give the last lines of logs that are not known yet."""
        found: list[Line] = []
        for each in runs:
            for source, log in _logs_of(each, self._least):
                key = each.pid, each.created, source
                if key not in self._open:
                    self._open[key] = log
                    found += log.last(self._lines)
        return sorted(found, key=_by_time)

    def more(self, runs: Sequence[Run] | None) -> list[Line]:
        """Give what was written since: whole lines.

        Args:
            runs: What runs now, so that what has begun is shown from its beginning, and what has ended to its end;
                None = as before.
        """
        found = [line for log in self._open.values() for line in log.more()]
        if runs is not None:
            live = {(each.pid, each.created) for each in runs}
            for key in [each for each in self._open if each[:2] not in live]:
                ended = self._open.pop(key)
                found += ended.end()
                ended.close()
            self._lines = MOST_LINES
            found += self.of(runs)
        return sorted(found, key=_by_time)

    def close(self) -> None:
        """Read none of them any longer."""
        for each in self._open.values():
            each.close()


def _by_time(line: Line) -> float:
    return line.time


def _logs_of(run: Run, least: int) -> Iterator[tuple[str, Source]]:
    if path := run.labels.get("daprdLogPath"):
        yield "GATEWAY", _File(Path(path), "GATEWAY", run.app_id, least)
    else:
        yield "GATEWAY", _Ring(run, least)
    if path := run.labels.get("appLogPath"):
        yield "APP", _File(Path(path), "APP", run.app_id, least)


class _File:
    """A file that lines are added to; it may be cut, or moved away and begun anew."""

    def __init__(self, path: Path, source: str, app_id: str, least: int) -> None:
        self._path, self._source, self._app_id, self._least = path, source, app_id, least
        self._splitter = LineSplitter()
        self._file: BinaryIO | None = None
        self._time: float | None = None
        self._shown = True

    def _opened(self) -> BinaryIO | None:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except OSError:  # It is not there yet, or no longer.
                return None
        return self._file

    def last(self, count: int) -> list[Line]:
        file = self._opened()
        if file is None:
            return []
        end = file.seek(0, os.SEEK_END)
        start, data = end, b""
        while start > 0 and data.count(b"\n") <= count and len(data) < TAIL_BYTES:
            size = min(BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            data = file.read(size) + data
        file.seek(start + len(data))
        lines = list(self._splitter.feed(data if start == 0 else data.partition(b"\n")[2]))
        written = os.fstat(file.fileno()).st_mtime
        return self._told(lines, written)[-count:] if count else []

    def more(self) -> list[Line]:
        file = self._opened()
        if file is None:
            return []
        lines = self._read(file)
        if self._is_another(file):  # What was added before it was moved away has been read.
            lines += [*self._read(file), *self._splitter.end()]
            self.close()
            self._splitter = LineSplitter()
            if (file := self._opened()) is not None:
                lines += self._read(file)
        return self._told(lines, time.time())

    def end(self) -> list[Line]:
        return self.more() + self._told(list(self._splitter.end()), time.time())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, file: BinaryIO) -> list[bytes]:
        if os.fstat(file.fileno()).st_size < file.tell():  # It was cut.
            file.seek(0)
            self._splitter = LineSplitter()
        # Who writes where he was before it was cut leaves a hole in front of that.
        return [each.lstrip(b"\0") for each in self._splitter.feed(file.read(MOST_AT_ONCE))]

    def _is_another(self, file: BinaryIO) -> bool:
        try:
            there, here = self._path.stat(), os.fstat(file.fileno())
        except OSError:
            return False
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def _told(self, lines: Sequence[bytes], otherwise: float) -> list[Line]:
        """Say when they were written: a line that does not say it, with the one before; else ``otherwise``."""
        told: list[Line] = []
        for each in lines:
            head = each[:_LOOKED_AT].decode(errors="replace")
            when = time_of(head)
            self._time = when if when is not None else self._time
            if not each.startswith((b"\t", b" ")):  # What goes on is shown with what it belongs to.
                level = level_of(head)
                self._shown = level is None or LEVELS.index(level) >= self._least
            if self._shown:
                told.append(Line(otherwise if self._time is None else self._time, self._source, self._app_id, each))
        return told


def file_log(path: Path, source: str = "APP", app_id: str = "app", least: int = 0) -> Source:
    """Give the log in a file; ``least`` is the index of the lowest of ``LEVELS`` that is shown."""
    return _File(path, source, app_id, least)


class _Ring:
    """The log of a gateway that writes it to no file: what it keeps of it, over its API."""

    def __init__(self, run: Run, least: int) -> None:
        self._run, self._least = run, least
        self._next: int | None = None
        self._asked = 0.0

    def last(self, count: int) -> list[Line]:
        lines = self._ask(max(count, 1))
        return lines[-count:] if count else []

    def more(self) -> list[Line]:
        if time.monotonic() - self._asked < RUNS_SECONDS:
            return []
        return self._ask(MOST_LINES)

    def end(self) -> list[Line]:
        return []  # It went with its gateway.

    def close(self) -> None:
        return

    def _ask(self, limit: int) -> list[Line]:
        self._asked = time.monotonic()
        query = {"limit": limit, "level": LEVELS[self._least], **({} if self._next is None else {"after": self._next})}
        try:
            status, body = request(self._run, "GET", f"/v1.0/mesh/logs?{urlencode(query)}", timeout=ASK_SECONDS)
        except (MeshError, TimeoutError):
            return []  # It ends, or is busy; the next time it is asked for the same.
        if status != 200:
            if self._next is None:
                note(f"{self._run.app_id}: its gateway answers {status}; is DAPR_API_TOKEN set right?")
                self._next = 0
            return []
        told: dict[str, Any] = json.loads(body)
        self._next = told["next"]
        if told["missed"] and "after" in query:
            note(f"{self._run.app_id}: {told['missed']} lines were not kept by its gateway")
        return [self._line(each) for each in told["lines"]]

    def _line(self, told: dict[str, Any]) -> Line:
        text = f'time="{told["time"]}" level={told["level"]} msg={json.dumps(told["message"])} scope={told["scope"]}'
        when = datetime.fromisoformat(told["time"]).timestamp()
        return Line(when, "GATEWAY", self._run.app_id, text.encode())


def level_of(head: str) -> str | None:
    """Give the level that a line says, as one of ``LEVELS``; None = none of these."""
    found = _LEVEL.search(head)
    name = "" if found is None else found[1].lower()
    name = _NAMED.get(name, name)
    return name if name in LEVELS else None


def time_of(head: str) -> float | None:
    """Give when a line says that it was written; without a zone it is that of here."""
    found = _TIME.search(head)
    try:
        return None if found is None else datetime.fromisoformat(found[1].replace(",", ".")).timestamp()
    except ValueError:
        return None
