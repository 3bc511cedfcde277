"""Durations and sizes as text: Go durations, ISO 8601 periods, Kubernetes quantities.

Every parser raises ``ValueError`` with a message that quotes the text and shows a valid one;
durations become float seconds, sizes whole bytes.

Source: Go ``time.ParseDuration``; ISO 8601-1 5.5.2; Kubernetes ``resource.Quantity``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Repetition", "parse_duration", "parse_repetition", "parse_size"]

_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # U+00B5, the micro sign
    "\u03bcs": 10**3,  # U+03BC, the Greek letter
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_LONGEST_NS = 2**63 - 1  # Go keeps a duration in a signed 64-bit count of nanoseconds.
_LONGEST_TEXT = 64  # Longer numbers mean nothing and are slow to convert.
_NUMBER = r"[0-9]+\.?[0-9]*|\.[0-9]+"
_TERM = re.compile(rf"({_NUMBER})(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_ISO = re.compile(
    r"P(?:(?P<y>\d+)Y)?(?:(?P<mo>\d+)M)?(?:(?P<w>\d+)W)?(?:(?P<d>\d+)D)?"
    r"(?P<time>T(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+)S)?)?",
    re.ASCII,
)
_ISO_SECONDS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}
_REPEATED = re.compile(r"R(\d*)/(.+)", re.ASCII | re.DOTALL)
_SIZE = re.compile(rf"({_NUMBER})(?:([kKMGTPE])(i?))?(B?)", re.ASCII)
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


@dataclass(frozen=True, slots=True)
class Repetition:
    """A period and how often it repeats.

    Attributes:
        seconds: The period.
        count: How many times; None = for ever.
    """

    seconds: float
    count: int | None = None


def parse_duration(text: str | int, *, bare_milliseconds: bool = False) -> float:
    """Read a duration such as ``1h30m``, ``1.5s``, ``500ms`` or ``PT1H``.

    Args:
        text: The duration. Only ``0`` may stand without a unit.
        bare_milliseconds: Whether a whole number without a unit is milliseconds, as in the
            timeouts of a Resiliency resource.

    Returns:
        Seconds, zero or more.

    Raises:
        ValueError: The text is no duration, is negative, or is longer than Go allows (about 292 years).
    """
    given, text = text, str(text).strip()
    if isinstance(given, bool) or len(text) > _LONGEST_TEXT:
        raise ValueError(_not_a_duration(text))
    if text.startswith("-"):
        raise ValueError(f"a duration cannot be negative: '{text}'")
    if text.startswith("P"):
        return _parse_iso(text)
    text = text.removeprefix("+")
    if text == "0":
        return 0.0
    if text.isascii() and text.isdigit():
        if bare_milliseconds:
            return _seconds(Fraction(int(text) * 10**6), text)
        raise ValueError(f"a duration needs a unit: '{text}s' or '{text}ms', not '{text}'")
    total, position = Fraction(0), 0
    while match := _TERM.match(text, position):
        total += _fraction(match[1]) * _UNITS_NS[match[2]]
        position = match.end()
    if position == 0 or position != len(text):
        raise ValueError(_not_a_duration(text))
    return _seconds(total, text)


def parse_repetition(text: str) -> Repetition:
    """Read a period that may say how often it repeats: ``R3/PT30M``, ``PT30M``, ``1h``.

    Raises:
        ValueError: The text is no duration, or the count is missing or zero.
    """
    match = _REPEATED.fullmatch(text.strip())
    if match is None:
        return Repetition(parse_duration(text))
    if len(match[1]) > _LONGEST_TEXT or not match[1] or int(match[1]) == 0:
        raise ValueError(f"a repetition needs a count of at least 1: 'R3/PT30M', not '{text}'")
    return Repetition(parse_duration(match[2]), int(match[1]))


def parse_size(text: str | int) -> int:
    """Read a size such as ``4Mi``, ``16Ki``, ``1G``, ``1.5Gi``, ``1MiB`` or ``1024``.

    ``k M G T P E`` are powers of 1000, with an ``i`` powers of 1024. A part of a byte is rounded up,
    as Kubernetes does.

    Raises:
        ValueError: The text is no size.
    """
    given, text = text, str(text).strip()
    match = _SIZE.fullmatch(text) if len(text) <= _LONGEST_TEXT and not isinstance(given, bool) else None
    if match is None:
        raise ValueError(f"not a size: '{_short(text)}' (for example '4Mi', '16Ki', '1G' or '1024')")
    number, letter, binary = match[1], match[2], match[3]
    unit = (1024 if binary else 1000) ** _POWERS[letter] if letter else 1
    return math.ceil(_fraction(number) * unit)


def _parse_iso(text: str) -> float:
    match = _ISO.fullmatch(text)
    if match is None or text == "P" or match["time"] == "T":
        raise ValueError(f"not an ISO 8601 duration: '{text}' (for example 'PT1H30M' or 'P1D'; no fractions)")
    if match["y"] or match["mo"]:
        raise ValueError(f"years and months have no fixed length: '{text}' (use days, 'P30D')")
    total = sum(int(match[name] or 0) * seconds for name, seconds in _ISO_SECONDS.items())
    return _seconds(Fraction(total * 10**9), text)


def _fraction(number: str) -> Fraction:
    whole, _, decimals = number.partition(".")
    return Fraction(int(whole + decimals), 10 ** len(decimals))


def _seconds(nanoseconds: Fraction, text: str) -> float:
    if nanoseconds > _LONGEST_NS:
        raise ValueError(f"a duration cannot be longer than about 292 years: '{text}'")
    return float(nanoseconds / 10**9)


def _not_a_duration(text: str) -> str:
    return f"not a duration: '{_short(text)}' (for example '500ms', '1.5s', '1h30m' or 'PT1H')"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
