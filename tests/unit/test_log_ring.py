"""The last lines of a gateway's log, as they are kept and given."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from gateway.logs import LogRing, _Kept


def record(message: str, level: int = logging.INFO, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("mesh.test", level, __file__, 1, message, (), None)
    made.__dict__.update(more)
    return made


def filled(count: int) -> LogRing:
    ring = LogRing()
    for number in range(1, count + 1):
        ring.add(record(f"line {number}", logging.ERROR if number % 10 == 0 else logging.INFO))
    return ring


@pytest.mark.parametrize(
    ("after", "limit", "level", "numbers", "behind", "missed"),
    [
        (None, 3, "debug", [23, 24, 25], 25, 0),
        (None, 100, "error", [10, 20], 25, 0),
        (None, 1, "error", [20], 25, 0),
        (0, 2, "debug", [1, 2], 2, 0),
        (2, 2, "debug", [3, 4], 4, 0),
        (24, 2, "debug", [25], 25, 0),
        (25, 2, "debug", [], 25, 0),
        (0, 1, "error", [10], 10, 0),
        (20, 5, "error", [], 25, 0),
        (900, 2, "debug", [1, 2], 2, 0),
    ],
)
def test_lines(after: int | None, limit: int, level: str, numbers: list[int], behind: int, missed: int) -> None:
    """The last row: a number of a process before this one."""
    told = filled(25).lines(after, limit, level)
    assert ([each.n for each in told.lines], told.next, told.missed) == (numbers, behind, missed)


def test_none() -> None:
    told = LogRing().lines(None, 10)
    assert (told.lines, told.next, told.missed) == ([], 0, 0)


def test_a_thousand_lines_are_kept() -> None:
    ring = filled(1500)
    told = ring.lines(400, 3)
    assert ([each.n for each in told.lines], told.next, told.missed) == ([501, 502, 503], 503, 100)
    assert ring.lines(503, 1).missed == 0
    assert len(ring.lines(None, 10_000).lines) == 1000


def test_a_mebibyte_is_kept() -> None:
    ring = LogRing()
    for _ in range(300):
        ring.add(record("x" * 10_000))
    kept = ring.lines(None, 1000).lines
    assert 100 < len(kept) < 106
    assert kept[-1].n == 300


def test_a_wrong_line_fails_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    out, ring = io.StringIO(), LogRing()
    log = logging.Logger("mesh.test")
    log.addHandler(_Kept(logging.StreamHandler(out), ring))
    log.warning("%d of them", "many")
    log.warning("and on")
    assert out.getvalue() == "and on\n"
    assert [each.message for each in ring.lines(None, 10).lines] == ["and on"]
    assert "Logging error" in capsys.readouterr().err


def test_a_line_has_its_fields_and_what_was_raised() -> None:
    ring = LogRing()
    try:
        raise ValueError("wrong")
    except ValueError:
        ring.add(record("failed", logging.CRITICAL, fields={"code": 5}, exc_info=sys.exc_info()))
    ring.add(record("no \ud800 character"))
    ring.add(record("y" * 100_000))
    failed, odd, long = ring.lines(None, 3).lines
    assert (failed.level, failed.scope) == ("error", "mesh.test")
    assert failed.message.startswith("failed code=5\nTraceback")
    assert failed.message.endswith("ValueError: wrong")
    assert odd.message == "no \\ud800 character"
    assert len(long.message) < 20_000
