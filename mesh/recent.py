"""A map of bounded size for what is kept by callers' words: it forgets what has been quiet longest."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, overload

__all__ = ["Recent"]

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")
_T = TypeVar("_T")


class Recent(dict[_K, _V]):
    """What was asked for last, in two halves: the dict itself, and what nobody has asked for since that was full.

    So `known[key]` of what is asked for often is a plain look-up. What is in use is forgotten after what is not.
    """

    __slots__ = ("_half", "_in_use", "_older")

    def __init__(self, limit: int, in_use: Callable[[_V], bool]) -> None:
        """Begin empty.

        Args:
            limit: How many are kept.
            in_use: Tells what is to be kept longest.
        """
        self._half = limit // 2
        self._in_use = in_use
        self._older: dict[_K, _V] = {}

    def __missing__(self, key: _K) -> _V:
        """Give one of the older half, which is new again; KeyError if there is none."""
        return self.keep(key, self._older.pop(key))

    @overload
    def get(self, key: _K, default: None = None, /) -> _V | None: ...
    @overload
    def get(self, key: _K, default: _V | _T, /) -> _V | _T: ...
    def get(self, key: _K, default: object = None, /) -> object:
        """Give a value, of the older half as well, as `known[key]` does; or else the default."""
        try:
            return self[key]
        except KeyError:
            return default

    def keep(self, key: _K, value: _V) -> _V:
        """Add a value, and give it."""
        if len(self) >= self._half:
            self._age()
        self[key] = value
        return value

    def everything(self) -> list[tuple[_K, _V]]:
        """List all that is kept, the longest quiet first."""
        return [*self._older.items(), *self.items()]

    def _age(self) -> None:
        used: dict[_K, _V] = {}
        quiet: dict[_K, _V] = {}
        for half in (self._older, self):
            for key, value in half.items():
                (used if self._in_use(value) else quiet)[key] = value
        newest = [*quiet.items(), *used.items()][-self._half :]
        self._older = dict(newest)
        self.clear()
