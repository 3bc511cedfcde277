"""What people write, read into values: durations, sizes, whole numbers, booleans, instants.

Every parser raises ``ValueError`` with a message that quotes the text and shows a valid one;
durations become float seconds, sizes whole bytes, instants Unix time in seconds.

Source: Go ``time.ParseDuration`` and ``strconv.ParseBool``; ISO 8601-1 5.5.2; RFC 3339 section 5.6;
Kubernetes ``resource.Quantity``; SPIFFE-ID section 2.1.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal

__all__ = [
    "is_host",
    "is_instant",
    "parse_bool",
    "parse_duration",
    "parse_instant",
    "parse_period",
    "parse_size",
    "parse_trust_domain",
    "parse_whole",
    "shortened",
    "show_duration",
]

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
_SCALE: int = 10**_LONGEST_TEXT  # Numbers with decimals are integers of so small a unit that each is exact.
_NUMBER = r"[0-9]+\.?[0-9]*|\.[0-9]+"
_BARE = re.compile(_NUMBER)
_WHOLE = re.compile(r"[-+]?[0-9]+")
_TERM = re.compile(rf"({_NUMBER})(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_ISO = re.compile(
    r"P(?:(?P<y>\d+)Y)?(?:(?P<mo>\d+)M)?(?:(?P<w>\d+)W)?(?:(?P<d>\d+)D)?"
    r"(?P<time>T(?:(?P<h>\d+)H)?(?:(?P<m>\d+)M)?(?:(?P<s>\d+)S)?)?",
    re.ASCII,
)
_SIZE = re.compile(rf"({_NUMBER})(?:([kKMGTPE])(i?))?(B?)", re.ASCII)
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}

_TRUE, _FALSE = (
    frozenset({"1", "t", "T", "TRUE", "true", "True"}),
    frozenset({"0", "f", "F", "FALSE", "false", "False"}),
)
_TRUE_WORDS, _FALSE_WORDS = frozenset({"y", "yes", "on"}), frozenset({"n", "no", "off"})
_TRUST_DOMAIN = re.compile(r"[A-Za-z0-9._-]{1,255}")
_INSTANT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)\Z", re.ASCII
)


def parse_duration(text: str | int, *, bare: Literal["s", "ms"] | None = None) -> float:
    """Read a duration such as ``1h30m``, ``1.5s``, ``500ms`` or ``PT1H``.

    Args:
        text: The duration. Only ``0`` may stand without a unit.
        bare: The unit of a number without one, where a field allows that; milliseconds are whole.

    Returns:
        Seconds, zero or more.

    Raises:
        ValueError: The text is no duration, is negative, or is longer than Go allows (about 292 years).
    """
    given, text = text, str(text).strip()
    if isinstance(given, bool) or len(text) > _LONGEST_TEXT:
        raise ValueError(_not_a_duration(text, bare))
    if text.startswith("-"):
        raise ValueError(f"a duration cannot be negative: '{text}'")
    if text.startswith("P"):
        return _parse_iso(text)
    text = text.removeprefix("+")
    if text == "0":
        return 0.0
    whole = text.isascii() and text.isdigit()
    if bare is not None and (whole or (bare == "s" and _BARE.fullmatch(text))):
        return _seconds(_scaled(text) * _UNITS_NS[bare], text)
    if whole:
        raise ValueError(f"a duration needs a unit: '{text}s' or '{text}ms', not '{text}'")
    total = position = 0
    while match := _TERM.match(text, position):
        total += _scaled(match[1]) * _UNITS_NS[match[2]]
        position = match.end()
    if position == 0 or position != len(text):
        raise ValueError(_not_a_duration(text, bare))
    return _seconds(total, text)


def parse_trust_domain(text: str) -> str:
    """Give the name of a trust domain in lower case, as SPIFFE has it."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise ValueError(f"trust domain {text!r} has other than a-z, 0-9, '.', '_' and '-', or more than 255 of them")
    return text.lower()


def show_duration(seconds: float) -> str:
    """Write a duration as people do, in its largest unit that needs no fraction: ``5m``, ``1.5s``, ``8ms``."""
    nanoseconds = round(seconds * _UNITS_NS["s"])
    if nanoseconds % _UNITS_NS["s"] and seconds > 1:
        return f"{seconds}s"
    unit = next((unit for unit in ("h", "m", "s", "ms", "us") if nanoseconds % _UNITS_NS[unit] == 0), "ns")
    return f"{nanoseconds // _UNITS_NS[unit]}{unit}" if nanoseconds else "0s"


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
        raise ValueError(f"not a size: '{shortened(text)}' (for example '4Mi', '16Ki', '1G' or '1024')")
    number, letter, binary = match[1], match[2], match[3]
    unit = (1024 if binary else 1000) ** _POWERS[letter] if letter else 1
    return -(-_scaled(number) * unit // _SCALE)


def parse_whole(text: str, *, least: int = 0, most: int | None = None) -> int:
    """Read a whole number.

    Raises:
        ValueError: The text is none, or the number is out of bounds.
    """
    digits = text.strip()
    if len(digits) <= _LONGEST_TEXT and _WHOLE.fullmatch(digits):
        number = int(digits)
        if least <= number and (most is None or number <= most):
            return number
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"not a whole number {bounds}: '{shortened(text)}'")


def parse_bool(text: str, *, words: bool = False) -> bool:
    """Read a boolean as Go does: ``true`` or ``false``, also ``t``, ``1``, ``f`` and ``0``.

    Args:
        text: The boolean.
        words: Take any case, and ``yes``, ``y``, ``on``, ``no``, ``n`` and ``off`` too, as Dapr's components do.

    Raises:
        ValueError: It is none.
    """
    folded = text.strip().lower() if words else text
    if folded in _TRUE or (words and folded in _TRUE_WORDS):
        return True
    if folded in _FALSE or (words and folded in _FALSE_WORDS):
        return False
    raise ValueError(f"not a boolean: '{shortened(text)}' ('true' or 'false')")


def is_host(text: str) -> bool:
    """Tell whether a text can be looked up as the name or the address of a host; another one breaks the look-up."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return bool(text) and "\0" not in text


def is_instant(text: str) -> bool:
    """Tell whether a text is a day that exists and a time with its zone; Python's own parser takes much more."""
    if not _INSTANT.match(text):
        return False
    try:
        datetime.fromisoformat(text[:10])
    except ValueError:
        return False
    return True


def parse_instant(text: str) -> float:
    """Read an instant such as ``2030-01-01T00:00:00Z``; give Unix time in seconds.

    Raises:
        ValueError: It is none, or has no time zone.
    """
    try:
        return datetime.fromisoformat(text.upper() if is_instant(text) else "").timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"not a time: '{shortened(text)}' (for example '2030-01-01T00:00:00Z')") from None


def parse_period(text: str) -> tuple[int, int, float]:
    """Read an ISO 8601 duration such as ``P1Y2M10DT2H30M``; give its months, days and seconds.

    Raises:
        ValueError: It is none, or its days and seconds are more than about 292 years.
    """
    match = _ISO.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None or text == "P" or match["time"] == "T":
        example = "for example 'PT1H30M' or 'P1D'; no fractions"
        raise ValueError(f"not an ISO 8601 duration: '{shortened(text)}' ({example})")
    of = {name: int(found or 0) for name, found in match.groupdict().items() if name != "time"}
    days = of["w"] * 7 + of["d"]
    seconds = of["h"] * 3600 + of["m"] * 60 + of["s"]
    _seconds((days * 86400 + seconds) * 10**9 * _SCALE, text)
    return of["y"] * 12 + of["mo"], days, float(seconds)


def _parse_iso(text: str) -> float:
    months, days, seconds = parse_period(text)
    if months:
        raise ValueError(f"years and months have no fixed length: '{text}' (use days, 'P30D')")
    return days * 86400 + seconds


def _scaled(number: str) -> int:
    whole, _, decimals = number.partition(".")
    return int(whole + decimals.ljust(_LONGEST_TEXT, "0"))


def _seconds(nanoseconds: int, text: str) -> float:
    """Take scaled nanoseconds."""
    if nanoseconds > _LONGEST_NS * _SCALE:
        raise ValueError(f"a duration cannot be longer than about 292 years: '{text}'")
    return nanoseconds / (10**9 * _SCALE)


def _not_a_duration(text: str, bare: str | None) -> str:
    plain = {"s": ", or a number of seconds", "ms": ", or whole milliseconds"}.get(bare or "", "")
    return f"not a duration: '{shortened(text)}' (for example '500ms', '1.5s', '1h30m' or 'PT1H'{plain})"


def shortened(text: str) -> str:
    """Give as much of a text as an error message shows."""
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
