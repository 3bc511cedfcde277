"""Writes metrics as Prometheus reads them.

The text is written here, since ``prometheus_client`` renames counters to end in ``_total``, and the reference's do not.

Source: Prometheus, exposition formats, text format 0.0.4; process metrics as of its client libraries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from gateway.metrics.recording import Series
from gateway.metrics.sources import SOURCES
from gateway.metrics.table import METRICS, NAMESPACE, Metric

if TYPE_CHECKING:
    from gateway.metrics.settings import Rules

__all__ = ["CONTENT_TYPE", "Measured", "Told", "exposed", "process_lines"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Measured = Mapping[str, Sequence[tuple[tuple[str, ...], Series]]]
_Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of one application.

    Attributes:
        measured: By name: the labels and what was measured.
        app_id: A label of all.
        namespace: That the user gave; else empty.
        rules: Change labels.
        raw: Whether paths are as they are.
        rows: The table.
    """

    measured: Measured
    app_id: str
    namespace: str
    rules: Rules
    raw: bool = True
    rows: Sequence[Metric] = METRICS


def exposed(*told: Told, process: Iterable[str] = ()) -> bytes:
    """Write everything.

    Args:
        told: Of each application of the process.
        process: Lines about the process.
    """
    lines: list[str] = []
    by_name: dict[str, list[tuple[Metric, Told]]] = {}
    for each in told:
        for row in each.rows:
            by_name.setdefault(row.name, []).append((row, each))
    for name, rows_of_it in by_name.items():
        found: dict[_Labels, Series] = {}
        for row, each in rows_of_it:
            if each.raw or not row.raw:
                _collect(row, each.measured.get(row.source, ()), each.app_id, each.namespace, each.rules, found)
        if found:
            first = rows_of_it[0][0]
            lines += [f"# HELP {name} {first.text}", f"# TYPE {name} {first.kind}"]
            write = _histogram if first.kind == "histogram" else _plain
            lines += (line for labels, series in found.items() for line in write(name, labels, series))
    lines += process
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _collect(
    row: Metric,
    measured: Iterable[tuple[tuple[str, ...], Series]],
    app_id: str,
    namespace: str,
    rules: Rules,
    found: dict[_Labels, Series],
) -> None:
    names = SOURCES[row.source]
    changing = rules.of(row.name)
    for values, series in measured:
        told = dict.fromkeys(names, "") | dict(zip(names, values, strict=False)) | {NAMESPACE: namespace}
        if any(told[name] not in wanted for name, wanted in row.where.items()):
            continue
        made = {"app_id": app_id}
        made |= {name: told[of] if isinstance(of, str) else of(told) for name, of in row.labels.items()}
        labels = tuple((name, changing[name](value) if name in changing else value) for name, value in made.items())
        if labels not in found:
            found[labels] = Series(series.bounds)
        found[labels].add(series)
        if row.calls:
            found[labels].times = sum(found[labels].buckets)


def _plain(name: str, labels: _Labels, series: Series) -> Iterator[str]:
    yield f"{name}{_written(labels)} {_number(series.times)}"


def _histogram(name: str, labels: _Labels, series: Series) -> Iterator[str]:
    count = 0
    for bound, count in zip((*map(_number, series.bounds), "+Inf"), accumulate(series.buckets), strict=True):
        yield f"{name}_bucket{_written((*labels, ('le', bound)))} {count}"
    yield f"{name}_sum{_written(labels)} {_number(series.total)}"
    yield f"{name}_count{_written(labels)} {count}"


def _written(labels: _Labels) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{','.join(pairs)}}}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


_PROCESS = {
    "process_cpu_seconds_total": ("counter", "CPU time in seconds."),
    "process_resident_memory_bytes": ("gauge", "Resident memory in bytes."),
    "process_virtual_memory_bytes": ("gauge", "Virtual memory in bytes."),
    "process_start_time_seconds": ("gauge", "Start in seconds since the epoch."),
    "process_open_fds": ("gauge", "Open file descriptors."),
}


def process_lines(measured: Mapping[str, float]) -> Iterator[str]:
    """Write what was measured of a process, or of those that are one gateway."""
    for name, (kind, text) in _PROCESS.items():
        yield from (f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {_number(measured[name])}")
