"""What is made of the bytes that applications write."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from gateway.cli.output import Console, LineSplitter, LogTarget, Stream, printable
from gateway.cli.terminal import colours_wanted, table


class _Gone(io.BytesIO):
    def write(self, _: object) -> int:
        raise BrokenPipeError


def _console(*, colours: bool = False) -> tuple[Console, io.BytesIO, io.BytesIO]:
    out, err = io.BytesIO(), io.BytesIO()
    return Console(out, err, colours=colours), out, err


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"one\ntwo\n"], [b"one", b"two"]),
        ([b"on", b"e\nt", b"wo"], [b"one", b"two"]),
        ([b"one\r\n\n"], [b"one", b""]),
        ([b"\xff\x00\n"], [b"\xff\x00"]),
        ([b"123456789\n"], [b"1234", b"5678", b"9"]),
        ([b"1234", b"5678", b"9"], [b"1234", b"5678", b"9"]),
        ([b"1234\n"], [b"1234"]),
        ([], []),
    ],
)
def test_streams_are_cut_into_lines_of_bounded_length(chunks: list[bytes], lines: list[bytes]) -> None:
    splitter = LineSplitter(max_line_bytes=4)
    found = [line for chunk in chunks for line in splitter.feed(chunk)]
    assert found + list(splitter.end()) == lines
    assert list(splitter.end()) == []


def test_line_that_has_not_ended_is_gone_on_with_or_ended_by_others() -> None:
    console, out, _ = _console()
    stream = Stream("APP", "a", LogTarget(), console, asks=True)
    stream.feed(b"Name? ")
    assert stream.unfinished
    stream.ask()
    assert out.getvalue() == b"== APP - a == Name? "
    assert not stream.unfinished
    stream.feed(b"none\nAge? ")
    stream.ask()
    console.out("info", "other", "other")
    stream.feed(b"yes\nSure? ")
    stream.ask()
    console.typed()
    stream.feed(b"ok\n")
    assert out.getvalue().splitlines() == [
        b"== APP - a == Name? none",
        b"== APP - a == Age? ",
        b"other",
        b"== APP - a == yes",
        b"== APP - a == Sure? == APP - a == ok",  # Between them stands what was typed.
    ]


def test_one_application_of_dapr_is_not_named() -> None:
    console, out, _ = _console(colours=True)
    console.short = True
    console.line("APP", "a", b"one")
    console.line("GATEWAY", "a", b"two")
    assert out.getvalue() == b"\x1b[36m== APP ==\x1b[0m one\ntwo\n"


def test_memory_for_a_line_without_end_is_bounded() -> None:
    splitter = LineSplitter(max_line_bytes=1000)
    pieces = [piece for _ in range(1000) for piece in splitter.feed(b"x" * 777)]
    assert max(map(len, pieces)) <= 1000
    assert sum(map(len, pieces)) >= 1000 * 777 - 1000


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Größe 5\t€".encode(), "Größe 5\t€"),
        (b"\xff\xfe", "��"),
        (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        (b"\x1b[2Jgone\x07", "�[2Jgone�"),
        (b"50%\r100%", "50%�100%"),
        (b"\x9b31m\x00", "�31m�"),
    ],
)
def test_only_colours_reach_the_terminal(line: bytes, text: str) -> None:
    assert printable(line) == text


def test_lines_have_a_prefix() -> None:
    console, out, err = _console()
    console.line("APP", "nodeapp", b"hello")
    console.say("ready")
    console.complain("broken")
    assert out.getvalue() == b"== APP - nodeapp == hello\n"
    assert err.getvalue() == b"mesh: ready\nerror: broken\n"


def test_each_application_has_its_colour() -> None:
    console, out, _ = _console(colours=True)
    console.line("APP", "a", b"1")
    console.line("APP", "b", b"\x1b[1mopen")
    console.line("GATEWAY", "a", b"3")
    lines = out.getvalue().decode().splitlines()
    assert lines[0] == "\x1b[36m== APP - a ==\x1b[0m 1"
    assert lines[1] == "\x1b[33m== APP - b ==\x1b[0m \x1b[1mopen\x1b[0m"
    assert lines[2] == "\x1b[36m== GATEWAY - a ==\x1b[0m 3"


def test_terminal_that_has_gone_is_noticed_once() -> None:
    console = Console(_Gone(), _Gone(), colours=False)
    noticed: list[str] = []
    console.when_broken = lambda: noticed.append("gone")
    console.line("APP", "a", b"1")
    console.say("still here")
    assert noticed == ["gone"]


@pytest.mark.parametrize(
    ("environ", "terminal", "wanted"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_follow_the_environment(environ: dict[str, str], terminal: bool, wanted: bool) -> None:
    assert colours_wanted(environ, terminal=terminal) is wanted


def test_file_gets_every_byte_and_the_console_lines(tmp_path: Path) -> None:
    console, out, _ = _console()
    file = tmp_path / "deep" / "app.log"
    stream = Stream("APP", "a", LogTarget(console=True, file=file), console)
    stream.open()
    stream.feed(b"one\r\ntw\xff")
    stream.feed(b"o\n\x00")
    stream.end()
    stream.close()
    assert file.read_bytes() == b"one\r\ntw\xffo\n\x00"
    assert out.getvalue().decode() == "== APP - a == one\n== APP - a == tw�o\n== APP - a == �\n"
    assert stream.last_lines() == ""


def test_last_lines_are_quoted_when_nobody_saw_them() -> None:
    console, out, _ = _console()
    stream = Stream("GATEWAY", "a", LogTarget(console=False), console)
    stream.open()
    stream.feed(b"".join(b"line %d\n" % number for number in range(100)))
    assert out.getvalue() == b""
    assert stream.last_lines().splitlines()[1] == "    line 80"
    assert stream.last_lines().splitlines()[-1] == "    line 99"


def test_table_aligns_its_columns() -> None:
    assert table([["A", "LONG"], ["xyz", "1"], ["", ""]]) == "A    LONG\nxyz  1\n"
