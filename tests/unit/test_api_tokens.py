"""Which tokens a client may send, as their file changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.api_tokens import Admitted
from gateway.config import Tokens

NAMES = ("one", "two", "six")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a file that is looked at whenever a client comes."""
    monkeypatch.setattr("gateway.api_tokens.LOOK_EVERY", 0.0)
    made = tmp_path / "tokens"
    made.write_text("one\n")
    return made


def good(admitted: Admitted) -> tuple[str, ...]:
    return tuple(each for each in NAMES if admitted.admits(each.encode()))


def in_place(file: Path, text: str) -> None:
    """Write other content of the same size and time of writing into the same file."""
    before = file.stat()
    assert len(text) == before.st_size
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # The clock of a file system goes in steps.
        file.write_text(text)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_that_could_not_be_read_is_tried_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was wrong is told once, and that it is mended need not show in the file's size and time."""
    admitted = Admitted(Tokens(api_file=file))
    for bad, mended in (("\n\n\n\n", "two\n"), ("    ", "six\n")):
        before = good(admitted)
        caplog.clear()
        in_place(file, bad)
        assert [good(admitted) for _ in range(3)] == [before] * 3
        assert caplog.text.count("API tokens are kept as they were") == 1
        in_place(file, mended)
        assert good(admitted) == (mended.strip(),)


def test_a_file_that_comes_back_as_it_was_may_be_missed_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    admitted = Admitted(Tokens(api_file=file))
    for number in (1, 2):
        away = file.rename(file.with_name("away"))
        assert [good(admitted) for _ in range(3)] == [("one",)] * 3
        assert caplog.text.count("cannot be read: No such file") == number
        away.rename(file)
        assert good(admitted) == ("one",)


def test_content_that_changes_in_place_counts(file: Path) -> None:
    admitted = Admitted(Tokens(api_file=file))
    for each in ("two", "six", "one"):
        in_place(file, f"{each}\n")
        assert good(admitted) == (each,)
