"""``mesh logs``: files that grow, are cut and moved away; times and levels of lines; the order of several logs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.cli import logs as command
from gateway.cli.logs import LEVELS, Line, Logs, Source, level_of, time_of
from gateway.runs import Run

OLD = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


Open = Callable[..., Source]


@pytest.fixture
def file_log() -> Iterator[Open]:
    """Opens a log; all of them are closed at the end."""
    with ExitStack() as stack:

        def opened(path: Path, least: int = 0) -> Source:
            return stack.enter_context(closing(command.file_log(path, least=least)))

        yield opened


def texts(lines: list[Line]) -> list[bytes]:
    return [each.text for each in lines]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2026-01-02T03:04:05Z begins so", OLD),
        ("2026-01-02 03:04:05.250+00:00 begins so", OLD + 0.25),
        ("2026-01-02 03:04:05,250+0000 with a comma", OLD + 0.25),
        ("[2026-01-02T04:04:05+01:00] in brackets", OLD),
        ("INFO: 2026-01-02T03:04:05Z behind a level", OLD),
        ('time="2026-01-02T03:04:05.000+00:00" level=info msg="x"', OLD),
        ('{"level":"info","ts":"2026-01-02T03:04:05Z"}', OLD),
        ('{"timestamp": "2026-01-02T03:04:05Z"}', OLD),
        ("order 17 is due at 2030-01-01T00:00:00Z", None),
        ("nothing", None),
        ("", None),
        ("2026-13-41T03:04:05Z is none", None),
    ],
)
def test_time_of_a_line(line: str, expected: float | None) -> None:
    assert time_of(line) == expected


def test_a_time_without_a_zone_is_that_of_here() -> None:
    here = datetime.fromtimestamp(OLD).isoformat()
    assert time_of(here) == OLD


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('time="…" level=warning msg="level=debug"', "warning"),
        ('{"level": "WARN"}', "warning"),
        ('{"level":"fatal"}', "error"),
        ("level=trace", "debug"),
        ("level=notice", None),
        ("ERROR: in words of its own", None),
    ],
)
def test_level_of_a_line(line: str, expected: str | None) -> None:
    assert level_of(line) == expected


def test_the_last_lines_of_a_file(tmp_path: Path, file_log: Open) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"%06d %s\n" % (number, b"x" * 100) for number in range(5000)) + b"begun")
    found = texts(file_log(path).last(3))
    assert [each[:6] for each in found] == [b"004997", b"004998", b"004999"]
    assert len(texts(file_log(path).last(1000))) == 1000
    assert file_log(path).last(0) == []


def test_a_line_is_whole_before_it_is_told(tmp_path: Path, file_log: Open) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    log = file_log(path)
    assert texts(log.last(10)) == [b"one"]
    assert log.more() == []
    with path.open("ab") as out:
        out.write(b"o\nthr")
    assert texts(log.more()) == [b"two"]
    with path.open("ab") as out:
        out.write(b"ee")
    assert log.more() == []
    assert texts(log.end()) == [b"three"]


def test_what_is_not_told_first_is_not_told_later(tmp_path: Path, file_log: Open) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    log = file_log(path)
    assert log.last(0) == []
    with path.open("ab") as out:
        out.write(b"two\n")
    assert texts(log.more()) == [b"two"]


def test_a_file_that_is_cut(tmp_path: Path, file_log: Open) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a long first line\nand half of a sec")
    log = file_log(path)
    log.last(10)
    path.write_bytes(b"anew\n")
    assert texts(log.more()) == [b"anew"]


def test_a_file_that_is_moved_away(tmp_path: Path, file_log: Open) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    log = file_log(path)
    log.last(10)
    with path.open("ab") as out:
        path.rename(tmp_path / "log.1")
        assert log.more() == []  # There is no other one yet.
        out.write(b"two\nthe end")
        path.write_bytes(b"three\n")
    assert texts(log.more()) == [b"two", b"the end", b"three"]
    with path.open("ab") as out:
        out.write(b"four\n")
    assert texts(log.more()) == [b"four"]


def test_a_file_that_comes_later(tmp_path: Path, file_log: Open) -> None:
    path = tmp_path / "log"
    log = file_log(path)
    assert log.last(10) == log.more() == []
    path.write_bytes(b"one\n")
    assert texts(log.more()) == [b"one"]


def test_a_line_without_a_time_has_that_of_the_one_before(tmp_path: Path, file_log: Open) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n2026-01-02T03:04:05Z timed\n  and more of it\n")
    os.utime(path, (OLD + 9, OLD + 9))
    assert [each.time for each in file_log(path).last(10)] == [OLD + 9, OLD, OLD]


def test_lines_below_the_level_go_with_what_belongs_to_them(tmp_path: Path, file_log: Open) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"level=info a\n\tmore of a\nlevel=error b\n\tmore of b\nplain\n")
    log = file_log(path, least=LEVELS.index("warning"))
    assert texts(log.last(10)) == [b"level=error b", b"\tmore of b", b"plain"]


def test_logs_are_merged_by_time_and_those_that_come_and_go_are_noticed(tmp_path: Path) -> None:
    def line(second: int, text: str) -> bytes:
        return f"2026-01-02T03:04:{second:02}Z {text}\n".encode()

    def run(name: str, pid: int) -> Run:
        for kind in ("app", "gateway"):
            (tmp_path / f"{name}-{kind}").touch()
        labels = {"appLogPath": str(tmp_path / f"{name}-app"), "daprdLogPath": str(tmp_path / f"{name}-gateway")}
        return Run(name, 0, pid=pid, created=time.time(), labels=labels)

    def add(file: str, *lines: bytes) -> None:
        with (tmp_path / file).open("ab") as out:
            out.write(b"".join(lines))

    def told(lines: list[Line]) -> list[str]:
        return [f"{each.source} {each.app_id} {each.text[21:].decode()}" for each in lines]

    shop, cart = run("shop", 1), run("cart", 2)
    add("shop-app", line(1, "a"), line(4, "d"))
    add("shop-gateway", line(2, "b"))
    add("cart-gateway", line(3, "c"))
    with closing(Logs(10, "debug")) as logs:
        assert told(logs.of([shop, cart])) == ["APP shop a", "GATEWAY shop b", "GATEWAY cart c", "APP shop d"]
        add("cart-app", line(7, "g"), line(9, "i"))
        add("shop-gateway", line(8, "h"))
        assert told(logs.more(None)) == ["APP cart g", "GATEWAY shop h", "APP cart i"]
        mail = run("mail", 3)
        add("mail-app", line(11, "k"))
        add("shop-app", b"2026-01-02T03:04:10Z j")  # Its last words, without an end.
        assert told(logs.more([cart, mail])) == ["APP shop j", "APP mail k"]
        add("shop-app", line(12, "of another one"))
        assert logs.more([cart, mail]) == []
