"""What a write comes to: for each key one condition and one change, in an order that is the same for everybody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from mesh.errors import ConflictError
from mesh.store import Concurrency, Item

__all__ = ["ABSENT", "ANY", "Step", "has_condition", "plan"]

ANY = ""  # Not an etag that anybody can give: an empty one counts as none.
ABSENT = "\0"


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to a key.

    Attributes:
        item: The last one of the key that changes it; else one that is only checked.
        expected: ``ANY``, ``ABSENT``, or the etag that it must have.
    """

    item: Item
    expected: str

    @property
    def kind(self) -> str:
        """Which statement does it; one does several that only check, or that have no condition."""
        if self.item.check:
            return "absent" if self.expected is ABSENT else "check"
        if self.item.value is None:
            return "delete" if self.expected is ANY else "absent" if self.expected is ABSENT else "delete_if"
        return "upsert" if self.expected is ANY else "insert" if self.expected is ABSENT else "update"


def _expected(item: Item) -> str:
    if item.etag:
        return item.etag
    first = item.concurrency is Concurrency.FIRST_WRITE and item.value is not None
    return ABSENT if item.check or first else ANY


def has_condition(item: Item) -> bool:
    """Tell whether an item may be refused because of what is stored."""
    return _expected(item) is not ANY


def plan(items: Sequence[Item], most: int) -> Sequence[tuple[str, Sequence[Step]]]:
    """Order the steps of a transaction by key, so that two of them never wait for each other, and gather equal ones.

    Conditions are of what was there before; of equal keys the last change counts.

    Args:
        items: Of the transaction.
        most: Steps that are gathered.

    Raises:
        ConflictError: No key can meet its conditions.
    """
    if len(items) == 1:
        alone = Step(items[0], _expected(items[0]))
        return [(alone.kind, [alone])]
    steps: dict[str, Step] = {}
    for item in items:
        expected, before = _expected(item), steps.get(item.key)
        if before is not None:
            if ANY not in (expected, before.expected) and expected != before.expected:
                raise ConflictError(f"key {item.key!r} cannot have two etags")
            expected = before.expected if expected is ANY else expected
            item = before.item if item.check else item
        steps[item.key] = Step(item, expected)
    ordered = sorted(steps.values(), key=lambda step: step.item.key)
    return [
        (kind, chunk)
        for kind, group in groupby(ordered, key=lambda step: step.kind)
        for chunk in _chunks(list(group), most if kind in ("check", "upsert", "delete") else 1)
    ]


def _chunks(steps: Sequence[Step], size: int) -> Iterator[Sequence[Step]]:
    for start in range(0, len(steps), size):
        yield steps[start : start + size]
