"""What came already, for as long as it could come again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["MAX_HELD", "Place", "Replays", "place_of"]

MAX_HELD = 131_072
MAX_SENDERS = 4096
MAX_TOKEN = 64
DIGITS = 2

Place = tuple[bytes, int]
"""A row, and the bit in it."""


def place_of(credential: bytes, token: str, digest: bytes) -> Place:
    """Give where a request is noted: a node counts the tokens of its requests, so a row has room for 256 of them."""
    if len(token) <= MAX_TOKEN:
        try:
            return credential + token[:-DIGITS].encode(), 1 << int(token[-DIGITS:], 16)
        except ValueError:
            pass
    return digest, 1


@dataclass(slots=True)
class _Sender:
    """What is noted of one identity in one generation.

    Attributes:
        rows: Its rows.
        latest: When the latest request that is noted was made.
        floor: Until when those were made of which it is forgotten whether they came.
    """

    rows: list[bytes] = field(default_factory=list)
    latest: float = -math.inf
    floor: float = -math.inf


class Replays:
    """Requests by their tokens, in two generations: one is forgotten when nothing in it can come again.

    When there are too many, those of the identity that has most are forgotten. What it had made by then may have come,
    so it is not taken; what it makes afterwards is. So nobody is kept out, and nobody keeps others out.
    """

    def __init__(self, seconds: float, most: int = MAX_HELD, most_senders: int = MAX_SENDERS) -> None:
        """Remember each for so many seconds, in so many rows, of so many identities."""
        self._seconds, self._most, self._most_senders = seconds, most, most_senders
        self._rows: dict[bytes, int] = {}
        self._earlier: dict[bytes, int] = {}
        self._senders: dict[str, _Sender] = {}
        self._earlier_senders: dict[str, _Sender] = {}
        self._began_at = self._floor = -math.inf

    def seen(self, place: Place) -> bool:
        """Tell whether it came already; what is forgotten did not."""
        row, bit = place
        return bool((self._rows.get(row, 0) | self._earlier.get(row, 0)) & bit)

    def add(self, place: Place, sender: str, made: float, now: float) -> bool:
        """Note one that was not seen; False = whether it came is forgotten.

        Args:
            place: Its place.
            sender: Whose it is, proven.
            made: When it was made, as it says.
            now: On the monotonic clock.
        """
        if now - self._began_at >= self._seconds:
            self._began_at = now
            self._earlier, self._rows = self._rows, {}
            self._earlier_senders, self._senders = self._senders, {}
        row, bit = place
        of = self._senders.get(sender)
        earlier = self._earlier_senders.get(sender)
        if made <= self._floor or (of and made <= of.floor) or (earlier and made <= earlier.floor):
            return False
        if row not in self._rows:
            if len(self._rows) + len(self._earlier) >= self._most:
                self._forget_most()
                of = self._senders.get(sender)
            if of is None:
                of = self._begin(sender)
            of.rows.append(row)
        assert of is not None  # Its row is there.
        self._rows[row] = self._rows.get(row, 0) | bit
        of.latest = max(of.latest, made)
        return True

    def _begin(self, sender: str) -> _Sender:
        if len(self._senders) >= self._most_senders:
            all_of_them = *self._senders.values(), *self._earlier_senders.values()
            self._floor = max(self._floor, *(max(each.latest, each.floor) for each in all_of_them))
            for each in (self._rows, self._earlier, self._senders, self._earlier_senders):
                each.clear()
        of = self._senders[sender] = _Sender()
        return of

    def _forget_most(self) -> None:
        """Forget what there is of the identity that has most rows."""
        both = self._senders, self._earlier_senders
        sizes = {name: sum(len(each[name].rows) for each in both if name in each) for name in {**both[0], **both[1]}}
        sender = max(sizes, key=sizes.__getitem__)
        floor = -math.inf
        for senders, rows in zip(both, (self._rows, self._earlier), strict=True):
            if (gone := senders.pop(sender, None)) is not None:
                floor = max(floor, gone.latest, gone.floor)
                for row in gone.rows:
                    del rows[row]
        self._begin(sender).floor = floor
