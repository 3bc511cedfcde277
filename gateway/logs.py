"""Logs of a gateway: one line an event, as text or JSON, to standard output."""

from __future__ import annotations

import atexit
import codecs
import json
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from gateway.config import GatewayConfig
from mesh import __version__
from mesh.telemetry import CURRENT

__all__ = [
    "APPLICATION",
    "LEVELS",
    "OURS",
    "Bounded",
    "Line",
    "Lines",
    "LogRing",
    "Logged",
    "configure_logging",
    "line_of",
    "quoted",
    "switch_level",
]

logger = logging.getLogger(__name__)

BURST = 100
LINES_A_MINUTE = 6
MAX_MESSAGE = 16_384
LEVELS = ("debug", "info", "warning", "error")
RING_LINES, RING_BYTES = 1000, 1024 * 1024
TOLD_SECONDS = 10.0
OURS = ("mesh", "gateway", "brokers", "bindings")
# The lines of calls that somebody asked for.
UNBOUNDED = frozenset({"gateway.api", "gateway.spans"})
# Changes of state come with counts, and each matters; but callers choose targets and paths, and could fill a disk.
TIMES = MappingProxyType({"mesh.conditions": 10})


def quoted(value: object, *, ascii_only: bool = False) -> str:
    """Write a value for people to read: as JSON, with what does not print, or would move the cursor, escaped."""
    text = json.dumps(value, ensure_ascii=ascii_only).replace("\x7f", "\\u007f")
    return text if text.isprintable() else _escaped(text)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    """Give what a line has besides its message: also the span in which it was written, if there is one."""
    fields: Mapping[str, object] = getattr(record, "fields", {})
    span = CURRENT.get()
    return fields if not span or "trace_id" in fields else {**fields, "trace_id": span[3:35], "id": span[36:52]}


def _message(record: logging.LogRecord) -> str:
    """Give what happened; others may have had a say in it, so it is bounded."""
    text = record.getMessage()
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}…"


def _whole(record: logging.LogRecord) -> str:
    """Give what happened with its fields, and what was raised on lines of its own."""
    text = _message(record) + "".join(f" {name}={quoted(value)}" for name, value in _fields(record).items())
    if record.exc_info:
        text += f"\n{logging.Formatter().formatException(record.exc_info)}"[:MAX_MESSAGE]
    return text


def _for_journal(record: logging.LogRecord) -> str:
    """Give the same with what would move a cursor escaped; they are one entry, so none can be forged."""
    return "\n".join(_escaped(line) for line in _whole(record).split("\n"))


def _escaped(text: str) -> str:
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


def _logged(app_id: str) -> str:
    """Give the application that a line is of: the process's own, unless it has several."""
    logged = APPLICATION.get()
    return app_id if logged is None else logged.app_id


class _Text(logging.Formatter):
    """``time="…" level=info msg="…" app_id=… scope=…``."""

    def __init__(self, app_id: str) -> None:
        super().__init__()
        self._app_id, self._tail = app_id, f"instance={socket.gethostname()}"
        self._ascii_only = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        fields = "".join(f" {name}={self._quoted(value)}" for name, value in _fields(record).items())
        text = (
            f'time="{when}" level={record.levelname.lower()} msg={self._quoted(_message(record))}'
            f"{fields} app_id={_logged(self._app_id)} {self._tail} scope={record.name} type=log ver={__version__}"
        )
        if record.exc_info:
            # Behind a tab, what others have said in it looks like no line of the log.
            text += "".join(f"\n\t{self._shown(line)}" for line in self.formatException(record.exc_info).splitlines())
        return text

    def _shown(self, line: str) -> str:
        text = _escaped(line[:MAX_MESSAGE])
        return text.encode("ascii", "backslashreplace").decode() if self._ascii_only else text

    def _quoted(self, value: object) -> str:
        return quoted(value, ascii_only=self._ascii_only)


class _JSON(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, app_id: str) -> None:
        super().__init__()
        self._app_id = app_id
        self._common = {"instance": socket.gethostname(), "type": "log", "ver": __version__}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created).astimezone().isoformat(),
            "level": record.levelname.lower(),
            "msg": _message(record),
            "scope": record.name,
            "app_id": _logged(self._app_id),
            **self._common,
            **_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@dataclass(slots=True)
class _Bucket:
    """How many lines one place in the code may still write, and how many it could not since that was told."""

    name: str
    level: int
    template: str
    at: float
    times: int
    tokens: float
    left_out: int = 0


class Bounded(logging.Filter):
    """Lets so many lines of one place in the code through, and tells how many it left out.

    A place is a logger, a file and a line, so there are no more of them than the code has. Lines at ``debug`` are those
    of whoever asked for all.
    """

    def __init__(
        self,
        put: Callable[[logging.LogRecord], object],
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        """Let ``BURST`` lines through, of some loggers as many ``TIMES``, and more as time passes.

        Args:
            put: Writes a line; those of ``tell`` pass the filter.
            clock: Gives seconds.
            later: Calls a function after so many seconds.
        """
        super().__init__()
        self._put, self._clock, self._later = put, clock, later or _later
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str, int], _Bucket] = {}
        self._telling = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is to be written."""
        if record.levelno < logging.INFO or record.name in UNBOUNDED or record.pathname == __file__:
            return True
        place = record.name, record.pathname, record.lineno
        with self._lock:
            now = self._clock()
            bucket = self._buckets.get(place)
            if bucket is None:
                times = TIMES.get(record.name, 1)
                bucket = _Bucket(record.name, record.levelno, str(record.msg), now, times, BURST * times)
                self._buckets[place] = bucket
            grown = bucket.tokens + (now - bucket.at) * bucket.times * LINES_A_MINUTE / 60
            bucket.tokens = min(BURST * bucket.times, grown)
            bucket.at = now
            if bucket.tokens >= 1:
                bucket.tokens -= 1
                return True
            bucket.left_out += 1
            begin, self._telling = not self._telling, True
        if begin:
            self._later(TOLD_SECONDS, self.tell)
        return False

    def tell(self) -> None:
        """Write one line for each place whose lines were left out since the last time."""
        with self._lock:
            self._telling = False
            told = [(each, each.left_out) for each in self._buckets.values() if each.left_out]
            for bucket, _ in told:
                bucket.left_out = 0
        for bucket, count in told:
            text = "left out %d more lines of: %.200s"
            self._put(logging.LogRecord(bucket.name, bucket.level, __file__, 0, text, (count, bucket.template), None))


def _later(seconds: float, what: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, what)
    timer.daemon = True
    timer.start()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log.

    Attributes:
        n: Its number since the start, from 1.
        time: When it was written, as RFC 3339.
        level: One of ``LEVELS``.
        scope: The logger.
        message: What happened, with its fields, and what was raised on lines of its own.
    """

    n: int
    time: str
    level: str
    scope: str
    message: str


@dataclass(frozen=True, slots=True)
class Lines:
    """Some lines, the oldest first.

    Attributes:
        next: The number to ask for what comes behind them.
        missed: How many lines between those that were asked for and these are no longer kept.
    """

    lines: Sequence[Line]
    next: int
    missed: int


def line_of(record: logging.LogRecord) -> tuple[str, str, str, str]:
    """Give what is kept of a line: its time, level, logger and text."""
    fields = "".join(f" {name}={quoted(value)}" for name, value in _fields(record).items())
    text = _message(record) + fields
    if record.exc_info:
        text += f"\n{logging.Formatter().formatException(record.exc_info)}"[:MAX_MESSAGE]
    text = text.encode("utf-8", "backslashreplace").decode()
    when = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
    level = {"critical": "error"}.get(record.levelname.lower(), record.levelname.lower())
    return when, level, record.name, text


class LogRing:
    """Keeps the last lines of the log, at most a thousand and a mebibyte of them."""

    def __init__(self) -> None:
        """Keep none yet."""
        self._lines: deque[Line] = deque()
        self._bytes = self._last = 0
        self._lock = threading.Lock()

    def add(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.keep(*line_of(record))

    def keep(self, when: str, level: str, scope: str, text: str) -> None:
        """Keep what `line_of` gives."""
        with self._lock:
            self._last += 1
            self._lines.append(Line(self._last, when, level, scope, text))
            self._bytes += len(text)
            while len(self._lines) > RING_LINES or (self._bytes > RING_BYTES and len(self._lines) > 1):
                self._bytes -= len(self._lines.popleft().message)

    def lines(self, after: int | None, limit: int, level: str = "debug") -> Lines:
        """Give lines of a level and above.

        Args:
            after: Those behind this number, the first ones of them; None = the last ones.
            limit: How many at most.
            level: One of ``LEVELS``.
        """
        wanted = LEVELS[LEVELS.index(level) :]
        with self._lock:
            kept, last = list(self._lines), self._last
        behind = last - len(kept) if after is None or after > last else after  # Beyond: of a process before this one.
        found = [each for each in kept if each.n > behind and each.level in wanted]
        chosen = found[-limit:] if after is None else found[:limit]
        whole = after is None or len(chosen) == len(found)
        first = kept[0].n if kept else last + 1
        return Lines(chosen, last if whole else chosen[-1].n, max(0, first - 1 - behind))


@dataclass(frozen=True, slots=True)
class Logged:
    """One of several applications of a process: whose the lines are that are written in its context."""

    app_id: str
    ring: LogRing | None


APPLICATION: ContextVar[Logged | None] = ContextVar("logged application", default=None)


class _Kept(logging.Handler):
    """Keeps lines, and has them written."""

    def __init__(self, written: logging.Handler, ring: LogRing) -> None:
        super().__init__()
        self._written, self._ring = written, ring

    def emit(self, record: logging.LogRecord) -> None:
        try:
            logged = APPLICATION.get()
            ring = self._ring if logged is None or logged.ring is None else logged.ring
            ring.add(record)
        except Exception:  # noqa: BLE001 - as of any handler: who writes a wrong line must not fail for it
            self.handleError(record)
            return
        self._written.handle(record)


def _written(config: GatewayConfig) -> logging.Handler:
    """Give what writes lines: to the standard output, or into the journal that reads it."""
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(_JSON(config.app_id) if config.log_json else _Text(config.app_id))
    if "JOURNAL_STREAM" not in os.environ:
        return lines
    from gateway.journal import Journal, is_journal  # For services of systemd alone.

    def facts(record: logging.LogRecord) -> Mapping[str, object]:
        return {**_fields(record), "app_id": _logged(config.app_id), "scope": record.name, "version": __version__}

    if not is_journal(sys.stdout, os.environ):
        return lines
    return Journal(lines, facts, lines.format if config.log_json else _for_journal)


def configure_logging(config: GatewayConfig) -> LogRing:
    """Send the logs of this process to standard output; gives what keeps the last lines."""
    ring = LogRing()
    handler = _Kept(_written(config), ring)
    bounded = Bounded(handler.handle)
    handler.addFilter(bounded)
    atexit.register(bounded.tell)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    _set_level(logging.getLevelNamesMapping()[config.log_level.upper()])
    # Per-request chatter of libraries is not ours to show.
    for name in ("asyncio", "aiohttp.access", "nats"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return ring


def _set_level(level: int) -> None:
    """Set the level of our own lines. Below ``info``, libraries write requests and answers: passwords and payloads."""
    logging.getLogger().setLevel(max(level, logging.INFO))
    for name in OURS:
        logging.getLogger(name).setLevel(level)


def switch_level(asked: str) -> None:
    """Write lines at ``debug``, too; or, where that is so, those from the level on that was asked for.

    Args:
        asked: As in the configuration. If it is ``debug``, the other one is ``info``.
    """
    usual = logging.INFO if asked == "debug" else logging.getLevelNamesMapping()[asked.upper()]
    level = usual if logger.isEnabledFor(logging.DEBUG) else logging.DEBUG
    _set_level(min(level, logging.INFO))  # Whatever the levels are, this is told.
    logger.info("the log has lines from %s on", logging.getLevelName(level).lower())
    _set_level(level)
