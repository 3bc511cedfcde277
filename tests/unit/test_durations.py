"""Durations, repetitions and sizes from text."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.durations import Repetition, parse_duration, parse_repetition, parse_size


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
    assert parse_duration(given_, bare_milliseconds=True) == seconds


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
    for parse in (parse_duration, parse_size, parse_repetition):
        with contextlib.suppress(ValueError):
            parse(text)


@pytest.mark.parametrize(
    ("text", "repetition"),
    [
        ("R3/PT30M", Repetition(1800.0, 3)),
        ("R1/5s", Repetition(5.0, 1)),
        ("PT1H", Repetition(3600.0)),
        ("1.5s", Repetition(1.5)),
    ],
)
def test_repetitions(text: str, repetition: Repetition) -> None:
    """A count may stand before the period."""
    assert parse_repetition(text) == repetition


@pytest.mark.parametrize("text", ["R/PT1H", "R0/PT1H", "R3/", "R3/x", "3/PT1H", "R-1/PT1H"])
def test_refused_repetitions(text: str) -> None:
    """A count is a whole number of at least 1."""
    with pytest.raises(ValueError, match=r"repetition|duration"):
        parse_repetition(text)


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
