"""A fair queue of work: names take turns, and so do the instances of one name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from mesh.workflows.worker import Ref

__all__ = ["FairQueue"]


class FairQueue:
    """Numbers of instances that wait, each under a name; adding what is there already changes nothing."""

    __slots__ = ("_named", "_names")

    def __init__(self) -> None:
        """Have nothing yet."""
        self._named: OrderedDict[str, OrderedDict[Ref, dict[int, None]]] = OrderedDict()
        self._names: dict[Ref, set[str]] = {}

    def __bool__(self) -> bool:
        """Tell whether anything waits."""
        return bool(self._named)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of now, the one that has waited longest first."""
        return iter(tuple(self._named))

    def add(self, name: str, ref: Ref, number: int) -> None:
        """Have one wait, behind those of its instance."""
        refs = self._named.get(name)
        if refs is None:  # An ordered one finds its first without passing by all that were there before.
            refs = self._named[name] = OrderedDict()
        refs.setdefault(ref, {})[number] = None
        self._names.setdefault(ref, set()).add(name)

    def first(self, name: str) -> Ref | None:
        """Give the instance whose turn it is."""
        return next(iter(self._named.get(name, ())), None)

    def take(self, name: str) -> tuple[Ref, int]:
        """Take the next one; then it is the turn of other instances, and other names."""
        refs = self._named.pop(name)
        ref = next(iter(refs))
        numbers = refs.pop(ref)
        number = next(iter(numbers))
        del numbers[number]
        if numbers:
            refs[ref] = numbers
        else:
            self._forget_name(ref, name)
        if refs:
            self._named[name] = refs
        return ref, number

    def forget(self, ref: Ref) -> None:
        """Have nothing of an instance wait."""
        for name in self._names.pop(ref, ()):
            refs = self._named[name]
            del refs[ref]
            if not refs:
                del self._named[name]

    def _forget_name(self, ref: Ref, name: str) -> None:
        names = self._names[ref]
        names.discard(name)
        if not names:
            del self._names[ref]
