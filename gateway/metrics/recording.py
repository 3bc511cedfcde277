"""Counts and measures what is observed, at the price of a look into a dictionary; everything else waits until asked.

What a label is to be is decided when it is seen first. Labels come from outside, so each name has at most
``MAX_SERIES`` of them; what comes beyond is counted under ``OTHER`` in those labels that are open.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from gateway.metrics.sources import DETAILS, OPEN, SIZES, SOURCES
from mesh.telemetry import OTHER, Counters

__all__ = ["BUCKETS", "MAX_KEYS", "MAX_LABEL", "MAX_SERIES", "SIZE_BUCKETS", "Recorder", "Series"]

MAX_SERIES = 1000
MAX_KEYS = 10_000
MAX_LABEL = 200
"""Characters of a label: it is written for each bucket."""

# fmt: off
BUCKETS: tuple[float, ...] = (
    1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 250, 300, 400, 500, 650, 800,
    1000, 2000, 5000, 10000, 20000, 50000, 100000,
)
"""Milliseconds; the reference's."""
# fmt: on
SIZE_BUCKETS: tuple[float, ...] = (1024, 2048, 4096, *(4**power * 4096 for power in range(1, 11)))
"""Bytes."""

_Key = tuple[str, tuple[str, ...], tuple[str, ...]]


class Series:
    """What was measured under one set of labels.

    Attributes:
        times: How often it happened.
        total: Sum of what was measured, in milliseconds or bytes.
        bounds: Upper bounds of the buckets.
        buckets: How many measurements fell into each; the last is above all bounds.
    """

    __slots__ = ("bounds", "buckets", "times", "total")

    def __init__(self, bounds: Sequence[float] = (), times: float = 0) -> None:
        """Begin."""
        self.times: float = times
        self.total = 0.0
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)

    def measure(self, value: float) -> None:
        """Add a measurement."""
        self.times += 1
        self.total += value
        self.buckets[bisect_left(self.bounds, value)] += 1

    def add(self, other: Series) -> None:
        """Add what was measured under other labels, with the same bounds."""
        self.times += other.times
        self.total += other.total
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]


class Recorder(Counters):
    """The node's metrics; an `Observer`, in place of the counters that a node has without."""

    def __init__(
        self,
        buckets: Sequence[float] = BUCKETS,
        relabel: Mapping[str, Callable[[Sequence[str]], tuple[str, ...]]] | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            buckets: Upper bounds of latencies in milliseconds.
            relabel: By name, gives the labels to count under instead.
        """
        super().__init__()
        self._buckets = tuple(map(float, buckets))  # A measurement is compared with its like in half the time.
        self._relabel = relabel or {}
        self._found: dict[_Key, Series] = {}
        self._kept: dict[str, dict[tuple[str, ...], Series]] = {}
        self._open = {name: [label in OPEN for label in labels] for name, labels in SOURCES.items()}

    def __call__(
        self,
        name: str,
        labels: tuple[str, ...],
        times: int = 1,
        seconds: float = 0.0,
        details: tuple[str, ...] = (),
    ) -> None:
        """Count what happened, and how long it took."""
        key = (name, labels, details)
        try:
            series = self._found[key]
        except KeyError:
            series = self._find(key)
        series.times += times
        if seconds:  # Else it is a count alone.
            value = seconds * 1000
            series.total += value
            series.buckets[bisect_left(series.bounds, value)] += 1

    def series(self, name: str, labels: tuple[str, ...] = ()) -> Series:
        """Give what is measured under a name and labels; it stays the same, to be measured without another look."""
        key = (name, labels, ())
        return self._found.get(key) or self._find(key)

    def _find(self, key: _Key) -> Series:
        name, labels, details = key
        values = labels + details
        relabel = self._relabel.get(name)
        if relabel is not None:
            values = relabel(values)
        values = tuple(each[:MAX_LABEL] for each in values)
        kept = self._kept.setdefault(name, {})
        series = kept.get(values)
        if series is None:
            if len(kept) >= MAX_SERIES:
                is_open = self._open[name]
                values = tuple(OTHER if is_open[place] else value for place, value in enumerate(values))
                series = kept.get(values)
            if series is None:
                series = kept[values] = Series(SIZE_BUCKETS if name in SIZES else self._buckets)
        if len(self._found) >= MAX_KEYS:
            self._found.clear()  # Else those that come often would be looked for again and again.
        if sum(map(len, labels)) <= MAX_LABEL * len(labels):
            self._found[key] = series
        return series

    def add(self, name: str, *labels: str, by: int = 1) -> None:
        """Count."""
        self(name, labels, by)

    def snapshot(self) -> Mapping[tuple[str, ...], int]:
        """Give all counts as of now, as counters do."""
        counts: dict[tuple[str, ...], int] = {}
        for name, kept in self._kept.items():
            without_details = len(SOURCES[name]) - DETAILS.get(name, 0)
            for values, series in kept.items():
                key = (name, *values[:without_details])
                counts[key] = counts.get(key, 0) + int(series.times)
        return counts

    def measured(self) -> dict[str, list[tuple[tuple[str, ...], Series]]]:
        """Give what was measured until now, by name."""
        taken: dict[str, list[tuple[tuple[str, ...], Series]]] = {}
        for name, kept in self._kept.items():
            taken[name] = []
            for values, series in kept.items():
                copy = Series(series.bounds)
                copy.add(series)
                taken[name].append((values, copy))
        return taken
