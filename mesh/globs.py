r"""Patterns of names: ``*`` any text, ``?`` any sign, ``[a-z]`` and ``[^a-z]`` one of some, ``\\`` before a plain sign.

None of them stands for a ``/``. A name is compared in one pass, so that none takes long.

Source: the patterns of Go's ``path.Match``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

__all__ = ["Glob"]

_One = Callable[[str], bool]
_Run = tuple[_One, ...]


class Glob:
    """A pattern that was read.

    Attributes:
        text: As it was written.
    """

    __slots__ = ("_runs", "text")

    def __init__(self, text: str) -> None:
        """Read it.

        Raises:
            ValueError: It is no pattern: says why.
        """
        self.text = text
        self._runs = _read(text)

    def fits(self, name: str) -> bool:
        """Tell whether a name is meant.

        Between two ``*`` the first place that fits is taken. No later one could do better: since no ``*`` passes over
        a ``/``, whatever the next one could reach from there it reaches from here as well.
        """
        first, *others = self._runs
        if not _all(first, name, 0):
            return False
        at = len(first)
        if not others:
            return at == len(name)
        *middle, last = others
        for run in middle:
            found = _find(run, name, at)
            if found < 0:
                return False
            at = found + len(run)
        end = len(name) - len(last)
        return at <= end and "/" not in name[at:end] and _all(last, name, end)


def _all(run: _Run, name: str, at: int) -> bool:
    return at + len(run) <= len(name) and all(fits(name[at + index]) for index, fits in enumerate(run))


def _find(run: _Run, name: str, at: int) -> int:
    while not _all(run, name, at):
        if at >= len(name) or name[at] == "/":
            return -1
        at += 1
    return at


def _read(text: str) -> list[_Run]:
    runs: list[list[_One]] = [[]]
    at = 0
    while at < len(text):
        sign, at = text[at], at + 1
        if sign == "*":
            runs.append([])
        elif sign == "?":
            runs[-1].append(lambda given: given != "/")
        elif sign == "[":
            one, at = _one_of(text, at)
            runs[-1].append(one)
        else:
            plain, at = _plain(text, at - 1)
            runs[-1].append(partial(str.__eq__, plain))
    return [tuple(run) for run in runs]


def _one_of(text: str, at: int) -> tuple[_One, int]:
    """Read what follows a ``[``."""
    negated = text[at : at + 1] == "^"
    at += negated
    ranges: list[tuple[str, str]] = []
    while not ranges or text[at : at + 1] != "]":
        low, at = _plain(text, at, inside=True)
        high = low
        if text[at : at + 1] == "-":
            high, at = _plain(text, at + 1, inside=True)
        ranges.append((low, high))
    return partial(_in, tuple(ranges), negated), at + 1


def _in(ranges: Sequence[tuple[str, str]], negated: bool, given: str) -> bool:
    return given != "/" and any(low <= given <= high for low, high in ranges) != negated


def _plain(text: str, at: int, *, inside: bool = False) -> tuple[str, int]:
    """Read one sign that stands for itself; gives where it ends."""
    sign = text[at : at + 1]
    if sign == "\\":
        at += 1
        sign = text[at : at + 1]
    elif inside and sign in ("-", "]"):
        raise ValueError(f"'{text}' is no pattern: a range in [ ] begins or ends with '{sign}', which \\ makes plain")
    if not sign:
        what = "a [ has no ]" if inside else "it ends with a \\"
        raise ValueError(f"'{text}' is no pattern: {what}")
    return sign, at + 1
