"""Log lines of a gateway."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from gateway.logs import BURST, LINES_A_MINUTE, OURS, TIMES, TOLD_SECONDS, Bounded, quoted

_LOG = """
import logging
from pathlib import Path
from gateway.config import GatewayConfig
from gateway.logs import configure_logging
configure_logging(GatewayConfig("app", Path()))
logging.getLogger("x").info("topic %s", "b\\u00fccher\\u2028\\ud800")
try:
    raise ValueError("b\\u00fc\\x1b\\ntime=now level=info msg=forged")
except ValueError:
    logging.getLogger("x").exception("y" * 1_000_000)
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", '"plain"'),
        ("bücher 日本 😀", '"bücher 日本 😀"'),
        ('a "b"\n\\', '"a \\"b\\"\\n\\\\"'),
        ("\x1b[2J", '"\\u001b[2J"'),
        ("\x7f\x9b31m", '"\\u007f\\u009b31m"'),
        ("\u202eabc\u2028", '"\\u202eabc\\u2028"'),
        ("ü\udc80", '"ü\\udc80"'),
    ],
)
def test_text_is_readable_and_moves_no_cursor(text: str, shown: str) -> None:
    """What prints is left alone; everything else is escaped, so that a line stays one line."""
    assert quoted(text) == shown


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "bücher"), ("latin-1", "b\\u00fccher"), ("ascii", "b\\u00fccher")]
)
def test_every_output_takes_the_lines(encoding: str, shown: str) -> None:
    """An output that is not UTF-8 gets ASCII."""
    found = subprocess.run(
        [sys.executable, "-c", _LOG],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert f'level=info msg="topic {shown}\\u2028\\ud800"' in found.stdout.decode(encoding)
    assert found.stderr == b""
    lines = found.stdout.decode(encoding).splitlines()
    assert [len(line) < 20_000 for line in lines] == [True] * len(lines)
    assert [line for line in lines if line.startswith("time=")] == lines[:2]  # What others say begins no line.
    said = "bü" if encoding == "utf-8" else "b\\xfc"
    assert lines[-2:] == [f"\tValueError: {said}\\u001b", "\ttime=now level=info msg=forged"]


_LEVELS = """
import logging, sys
from pathlib import Path
from gateway.config import GatewayConfig
from gateway.logs import configure_logging, switch_level
asked, switches = sys.argv[1], int(sys.argv[2])
configure_logging(GatewayConfig("app", Path(), log_level=asked))
for _ in range(switches):
    switch_level(asked)
print("---")
for name in ("mesh.node.runtime", "gateway.app", "brokers.nats", "bindings.aws._session", "botocore.parsers", "hpack"):
    logging.getLogger(name).debug("low")
    logging.getLogger(name).info("usual")
    logging.getLogger(name).warning("high")
"""
_ALL, _USUAL, _HIGH = ["low", "usual", "high"], ["usual", "high"], ["high"]


@pytest.mark.parametrize(
    ("asked", "switches", "ours", "others"),
    [
        ("debug", 0, _ALL, _USUAL),
        ("debug", 1, _USUAL, _USUAL),
        ("info", 0, _USUAL, _USUAL),
        ("info", 1, _ALL, _USUAL),
        ("info", 2, _USUAL, _USUAL),
        ("warning", 0, _HIGH, _HIGH),
        ("warning", 1, _ALL, _USUAL),
        ("warning", 2, _HIGH, _HIGH),
    ],
)
def test_lines_at_debug_are_our_own(asked: str, switches: int, ours: list[str], others: list[str]) -> None:
    """Libraries write there what they send and get: secrets, and what callers said."""
    found = subprocess.run(
        [sys.executable, "-c", _LEVELS, asked, str(switches)], capture_output=True, timeout=60, check=True, text=True
    )
    written = re.findall(r'msg="(\w+)" .*scope=([\w.]+)', found.stdout.partition("---")[2])
    of_ours = [[text for text, scope in written if scope.partition(".")[0] == name] for name in OURS]
    assert of_ours == [ours] * len(OURS)
    for name in ("botocore.parsers", "hpack"):
        assert [text for text, scope in written if scope == name] == others, name


class Log:
    """A log with a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[str] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.bounded = Bounded(self.put, lambda: self.now, lambda s, what: self.due.append((self.now + s, what)))

    def put(self, record: logging.LogRecord) -> None:
        if self.bounded.filter(record):
            self.lines.append(f"{record.levelname} {record.name} {record.getMessage()}")

    def write(self, count: int, name: str = "a", line: int = 1, level: int = logging.WARNING) -> None:
        for number in range(count):
            self.put(logging.LogRecord(name, level, "file.py", line, "event %d", (number,), None))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        due, self.due = self.due, [each for each in self.due if each[0] > self.now]
        for when, what in due:
            if when <= self.now:
                what()

    def taken(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


def test_lines_that_repeat_are_bounded_and_told_of() -> None:
    log = Log()
    log.write(BURST + 7)
    assert log.taken() == [f"WARNING a event {number}" for number in range(BURST)]
    log.wait(TOLD_SECONDS - 1)
    log.write(1)
    assert log.taken() == []
    log.wait(1)
    assert log.taken() == ["WARNING a left out 8 more lines of: event %d"]
    log.wait(TOLD_SECONDS)
    assert log.taken() == []


def test_a_flood_that_lasts_is_a_few_lines_a_minute() -> None:
    """Those that are due, and those that tell of the others: nothing is lost without being counted."""
    log = Log()
    log.write(BURST)
    log.taken()
    for _ in range(600):
        log.write(50)
        log.wait(1)
    log.bounded.tell()  # As at the end.
    lines = log.taken()
    told = [int(each.split()[4]) for each in lines if "left out" in each]
    assert len(told) <= 600 / TOLD_SECONDS + 1
    assert len(lines) - len(told) <= 10 * LINES_A_MINUTE + 1
    assert sum(told) + len(lines) - len(told) == 600 * 50


def test_after_a_quiet_time_a_burst_is_written_again() -> None:
    log = Log()
    log.write(BURST + 1)
    log.wait(60 * BURST / LINES_A_MINUTE)
    log.taken()
    log.write(BURST + 1)
    assert len(log.taken()) == BURST


@pytest.mark.parametrize(
    ("name", "line", "level"),
    [("a", 2, logging.WARNING), ("b", 1, logging.ERROR), ("a", 2, logging.INFO)],
)
def test_other_places_are_not_concerned(name: str, line: int, level: int) -> None:
    log = Log()
    log.write(BURST + 1)
    log.taken()
    log.write(1, name, line, level)
    assert len(log.taken()) == 1


def test_changes_of_state_are_bounded_later() -> None:
    """Each matters, and whoever calls chooses targets and paths."""
    log, times = Log(), TIMES["mesh.conditions"]
    log.write(times * BURST + 7, "mesh.conditions", level=logging.INFO)
    assert len(log.taken()) == times * BURST
    log.wait(60)
    assert log.taken() == ["INFO mesh.conditions left out 7 more lines of: event %d"]
    log.write(times * BURST, "mesh.conditions", level=logging.INFO)
    assert len(log.taken()) == times * LINES_A_MINUTE


@pytest.mark.parametrize(
    ("name", "level"),
    [("a", logging.DEBUG), ("gateway.api", logging.INFO), ("gateway.spans", logging.INFO)],
)
def test_what_was_asked_for_is_not_bounded(name: str, level: int) -> None:
    log = Log()
    log.write(3 * BURST, name, 1, level)
    assert len(log.taken()) == 3 * BURST
    assert log.due == []


def test_a_process_tells_at_its_end_what_it_left_out() -> None:
    """And its handler bounds what every logger writes, those of libraries as well."""
    flood = f"\nfor each in range({BURST + 5}):\n    logging.getLogger('library').error(f'broken {{each}}')\n"
    done = subprocess.run([sys.executable, "-c", _LOG + flood], capture_output=True, timeout=60, check=True, text=True)
    assert done.stdout.count('msg="broken') == BURST
    assert 'msg="left out 5 more lines of: broken 0"' in done.stdout
    assert done.stderr == ""
