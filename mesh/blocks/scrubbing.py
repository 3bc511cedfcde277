"""Takes out of a text what a person could be known by, and puts the kind of it in its place.

It finds what has a form: it knows no names, and no numbers that look like any other. Each pattern begins where a word
does and has bounded repetitions, so that a text takes time in proportion to its length, whatever is in it.

Source: Dapr's documentation of the conversation API, which names the kinds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import AddressValueError, IPv6Address

__all__ = ["scrub"]

AT_ONCE = 16 * 1024

Check = Callable[[str], bool]
_STREETS = (
    "alley|ally|avenue|ave|boulevard|blvd|circle|cir|court|ct|drive|dr|highway|hwy|lane|ln|parkway|pkwy|place|pl|"
    "plaza|road|rd|square|sq|street|st|terrace|ter|way"
)


def _digits(text: str) -> list[int]:
    return [int(each) for each in text if each.isdigit()]


def _luhn(text: str) -> bool:
    """Check the sum of a payment card's number (ISO/IEC 7812-1)."""
    digits = _digits(text)
    doubled = [sum(divmod(each * 2, 10)) if index % 2 else each for index, each in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0 and any(digits)


def _isbn(text: str) -> bool:
    """Check the sum of a book's number (ISO 2108)."""
    digits = [10 if each in "xX" else int(each) for each in text if each.isdigit() or each in "xX"]
    if len(digits) == 10:
        return sum((10 - index) * each for index, each in enumerate(digits)) % 11 == 0
    if len(digits) != 13 or digits[:3] not in ([9, 7, 8], [9, 7, 9]) or 10 in digits:
        return False
    return sum(each * (3 if index % 2 else 1) for index, each in enumerate(digits)) % 10 == 0


def _ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def _pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(text, re.ASCII | flags)


_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
# In this order: what is a part of another one comes later.
_KINDS: tuple[tuple[str, re.Pattern[str], *tuple[Check, ...]], ...] = (
    ("SHA_256_HEX", _pattern(r"(?<!\w)[0-9A-Fa-f]{64}(?!\w)")),
    ("SHA1_HEX", _pattern(r"(?<!\w)[0-9A-Fa-f]{40}(?!\w)")),
    ("MD5_HEX", _pattern(r"(?<!\w)[0-9A-Fa-f]{32}(?!\w)")),
    (
        "MAC_ADDRESS",
        _pattern(r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])"),
    ),
    ("IP", _pattern(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:.]{1,44}[0-9A-Fa-f](?![\w:])"), _ipv6),
    ("IP", _pattern(rf"(?<![\w.]){_OCTET}(?:\.{_OCTET}){{3}}(?!\w|\.\d)")),
    (
        "CREDIT_CARD",
        _pattern(r"(?<![\w+])(?:\d{13,19}|(?:\d{4}([ -])){3}\d{4}|\d{4}[ -]\d{6}[ -]\d{4,5})(?!\w)"),
        _luhn,
    ),
    ("US_SSN", _pattern(r"(?<![\w-])(?!000|666|9)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}(?![\w-])")),
    ("ISBN", _pattern(r"(?<![\w+-])\d(?:[ -]?\d){8,11}[ -]?[\dXx](?![\w-])"), _isbn),
    ("PHONE_NUMBER", _pattern(r"(?<![\w+])\+\d(?:[ .()/-]{0,2}\d){6,14}(?!\w)")),
    ("PHONE_NUMBER", _pattern(r"(?<![\w.+-])(?:1[ .-]?)?\(?\d{3}\)?[ .-]?\d{3}[ .-]?\d{4}(?![\w-])")),
    (
        "STREET_ADDRESS",
        _pattern(rf"(?<![\w.,])\d{{1,5}}[A-Za-z]?(?: [A-Z0-9][\w'.-]{{0,23}}){{1,4}} (?i:{_STREETS})\b\.?"),
    ),
)
# A run of what may stand before the sign is looked at once, however long it is.
_ADDRESS = re.compile(r"[^\s@<>()\[\],;:\"\\]++(?:@(?:[^\W_](?:[\w-]{0,62})\.){1,8}[^\W\d_]{2,63})?+")


async def scrub(texts: Sequence[str]) -> Sequence[str]:
    """Give texts without what a person could be known by; others go on while much is looked at."""
    long = sum(map(len, texts)) > AT_ONCE
    return await asyncio.to_thread(_all, texts) if long else _all(texts)


def _all(texts: Sequence[str]) -> Sequence[str]:
    return [_scrub(text) for text in texts]


def _scrub(text: str) -> str:
    """Nothing that is looked for goes on in another line."""
    return "".join(map(_scrub_lines, _pieces(text)))


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + AT_ONCE) + 1 or len(text)
        yield text[begin:end]
        begin = end


def _scrub_lines(text: str) -> str:
    if "@" in text:
        text = _ADDRESS.sub(_address, text)
    for kind, pattern, *checks in _KINDS:
        text = pattern.sub(partial(_put, f"<{kind}>", checks), text)
    return text


def _address(found: re.Match[str]) -> str:
    return "<EMAIL_ADDRESS>" if "@" in found[0] else found[0]


def _put(told: str, checks: Sequence[Check], found: re.Match[str]) -> str:
    return told if all(check(found[0]) for check in checks) else found[0]
