"""Durations, sizes, whole numbers, booleans and instants from text."""

from __future__ import annotations

import contextlib
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.values import is_instant, parse_bool, parse_duration, parse_instant, parse_size, parse_whole, show_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("+5s", 5.0),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("5.s", 5.0),
        ("500ms", 0.5),
        ("1h30m", 5400.0),
        ("1h15m30.918s", 4530.918),
        ("0h0m3s0ms0\u00b5s", 3.0),
        ("0h0m3s0ms0\u03bcs", 3.0),
        ("10us", 1e-5),
        ("1ns", 1e-9),
        (" 2m ", 120.0),
        ("2m3m", 300.0),
        ("PT1H", 3600.0),
        ("P1DT2H3M4S", 93784.0),
        ("P2W", 1209600.0),
        ("PT0S", 0.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Go and ISO 8601 durations give seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a duration: ''"),
        ("s", "not a duration: 's'"),
        (".s", "not a duration: '.s'"),
        ("5 s", "not a duration: '5 s'"),
        ("5d", "not a duration: '5d'"),
        ("1s2", "not a duration: '1s2'"),
        ("1\u0663s", "not a duration"),
        ("9" * 100 + "s", r"not a duration: '9+\.\.\.'"),
        ("-1s", "a duration cannot be negative: '-1s'"),
        ("5", "a duration needs a unit: '5s' or '5ms', not '5'"),
        (5, "a duration needs a unit"),
        (True, "not a duration: 'True'"),
        ("9999999h", "a duration cannot be longer than about 292 years"),
        ("P", "not an ISO 8601 duration: 'P'"),
        ("PT", "not an ISO 8601 duration: 'PT'"),
        ("P1DT", "not an ISO 8601 duration: 'P1DT'"),
        ("PT1.5S", "no fractions"),
        ("P1Y", "years and months have no fixed length: 'P1Y'"),
        ("P1M", "years and months have no fixed length: 'P1M'"),
    ],
)
def test_refused_durations(text: str | int, message: str) -> None:
    """What is no duration is refused with the text in the message."""
    with pytest.raises(ValueError, match=message):
        parse_duration(text)


@pytest.mark.parametrize(("given_", "seconds"), [(250, 0.25), ("250", 0.25), (0, 0.0), ("1s", 1.0)])
def test_bare_milliseconds(given_: str | int, seconds: float) -> None:
    """Where Dapr allows it, a whole number is milliseconds."""
    assert parse_duration(given_, bare="ms") == seconds


@pytest.mark.parametrize(("text", "seconds"), [("10", 10.0), ("1.5", 1.5), (".5", 0.5), ("0", 0.0), ("250ms", 0.25)])
def test_bare_seconds(text: str, seconds: float) -> None:
    """Where a field allows it, a number is seconds."""
    assert parse_duration(text, bare="s") == seconds


@pytest.mark.parametrize(("text", "bare"), [("1.5", "ms"), ("1.5", None), ("٣", "s"), ("1e3", "s"), ("x", "s")])
def test_refused_bare_numbers(text: str, bare: Literal["s", "ms"] | None) -> None:
    """Milliseconds are whole; what is no number is none."""
    with pytest.raises(ValueError, match=f"not a duration: '{text}'"):
        parse_duration(text, bare=bare)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_go_text_round_trip(hours: int, minutes: int, seconds: int, milliseconds: int) -> None:
    """The sum of the parts is exact."""
    text = f"{hours}h{minutes}m{seconds}.{milliseconds:03d}s"
    expected = (((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds) / 1000
    assert parse_duration(text) == expected


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_only_value_errors(text: str) -> None:
    """Any text gives seconds or ValueError."""
    for parse in (parse_duration, parse_size, parse_whole, parse_bool, parse_instant):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4Mi", 4 * 1024**2),
        ("16Ki", 16384),
        ("1G", 10**9),
        ("1k", 1000),
        ("1K", 1000),
        ("1.5Gi", 3 * 2**29),
        ("1MiB", 1024**2),
        ("1MB", 10**6),
        ("7B", 7),
        ("1024", 1024),
        (1024, 1024),
        ("0", 0),
        ("0.1", 1),
        ("2Ei", 2**61),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    """Kubernetes quantities give whole bytes, rounded up."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "Mi", "-1", "4mi", "1e3", "4 Mi", "1KiBB", "i", "1i", True, "1" * 200])
def test_refused_sizes(text: str | int) -> None:
    """What is no size is refused with an example."""
    with pytest.raises(ValueError, match=r"not a size: .* \(for example '4Mi'"):
        parse_size(text)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true(text: str) -> None:
    """Go's spellings."""
    assert parse_bool(text)


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false(text: str) -> None:
    """Go's spellings."""
    assert not parse_bool(text)


@pytest.mark.parametrize("text", ["", "yes", "tRUE", "2", " true"])
def test_no_boolean(text: str) -> None:
    """Nothing else."""
    with pytest.raises(ValueError, match=f"not a boolean: '{text}'"):
        parse_bool(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Yes", True),
        ("y", True),
        ("ON", True),
        ("tRUE", True),
        (" 1 ", True),
        ("no", False),
        ("Off", False),
        ("n", False),
    ],
)
def test_words_for_booleans(text: str, value: bool) -> None:
    """Where words are allowed, case does not count."""
    assert parse_bool(text, words=True) is value


@pytest.mark.parametrize(
    ("text", "bounds", "number"),
    [("0", {}, 0), ("+7", {}, 7), (" 12 ", {}, 12), ("-1", {"least": -1}, -1), ("10", {"least": 1, "most": 10}, 10)],
)
def test_whole_numbers(text: str, bounds: dict[str, int], number: int) -> None:
    """Digits with a sign."""
    assert parse_whole(text, **bounds) == number


@pytest.mark.parametrize(
    ("text", "bounds", "wanted"),
    [
        ("", {}, "of at least 0"),
        ("-1", {}, "of at least 0"),
        ("1.0", {}, "of at least 0"),
        ("1_000", {}, "of at least 0"),
        ("\u0663", {}, "of at least 0"),
        ("0", {"least": 1}, "of at least 1"),
        ("11", {"least": 1, "most": 10}, "from 1 to 10"),
        ("9" * 5000, {}, "of at least 0"),
    ],
)
def test_refused_whole_numbers(text: str, bounds: dict[str, int], wanted: str) -> None:
    """The message says what is allowed, and quotes no more than a line."""
    with pytest.raises(ValueError, match=f"not a whole number {wanted}: '") as caught:
        parse_whole(text, **bounds)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01t01:00:00.5+01:00", 0.5),
        ("2000-02-29T12:00:00z", 951825600.0),
    ],
)
def test_instants(text: str, seconds: float) -> None:
    """RFC 3339, whose letters may be lower-case."""
    assert parse_instant(text) == seconds
    assert is_instant(text)


@pytest.mark.parametrize("text", ["", "2030-01-01", "2030-01-01T00:00:00", "2030-02-30T00:00:00Z", "tomorrow"])
def test_refused_instants(text: str) -> None:
    """A day that does not exist, and a time without a zone, are none."""
    with pytest.raises(ValueError, match=f"not a time: '{text}'"):
        parse_instant(text)
    assert not is_instant(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.000_000_007, "7ns"),
        (0.000_25, "250us"),
        (0.008, "8ms"),
        (0.512, "512ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (90.0, "90s"),
        (300.0, "5m"),
        (5400.0, "90m"),
        (3600.0, "1h"),
    ],
)
def test_durations_are_shown_as_they_are_read(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text
    assert parse_duration(text) == seconds
