"""What several workers tell, as what one gateway tells: pure functions over what each of them gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gateway.metrics.recording import Series
from gateway.metrics.sources import (
    ACTOR_CALLS,
    ACTOR_TIMERS,
    ACTORS,
    BREAKERS,
    COMPONENTS,
    GATEWAY,
    OLDEST,
    TAKEN,
    WAITING,
)

__all__ = ["Sent", "as_sent", "measured", "metadata", "node", "presence", "process", "totals"]

Told = dict[str, Any]
Sent = dict[str, list[list[Any]]]
"""Metrics on their way: by name, labels, times, total and buckets of each series."""

# What is so now, and not counted: it is added, or it is the same in all of them, or any of them makes it so.
ADDED = frozenset({ACTORS, ACTOR_TIMERS, ACTOR_CALLS})
ALIKE = frozenset({COMPONENTS, GATEWAY, WAITING, TAKEN, OLDEST})
NOW = ADDED | ALIKE | {BREAKERS}
_WORST = ("ok", "unknown", "failing", "absent")
_BREAKERS = ("closed", "half-open", "open")


def _counted(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Add up the counts of what is named alike."""
    counts: Counter[str] = Counter()
    for name, count in rows:
        counts[name] += count
    return [[name, counts[name]] for name in sorted(counts)]


def _each(rows: Iterable[Any], key: Callable[[Any], object] = repr) -> list[Any]:
    """Give each row once, in the order in which they come."""
    return list({key(row): row for row in reversed(list(rows))}.values())[::-1]


def _worst(rows: Iterable[Told], key: Callable[[Told], object], badness: Callable[[Told], int]) -> list[Told]:
    found: dict[object, Told] = {}
    for row in rows:
        known = found.get(key(row))
        if known is None or badness(row) > badness(known):
            found[key(row)] = row
    return list(found.values())


def presence(told: Sequence[Told]) -> Told:
    """Merge what is told to whoever asks all nodes."""
    about: Told = dict(told[0]["about"])
    rest = [each["about"] for each in told]
    for name in ("subscriptions", "published", "components", "problems"):
        about[name] = _each(row for each in rest for row in each.get(name, ()))
    about["actors"] = _counted(row for each in rest for row in each.get("actors", ()))
    about["serves"] = any(each.get("serves", True) for each in rest)
    about["methods"] = next((each["methods"] for each in rest if each.get("methods") is not None), None)
    return {**told[0], "ready": sorted({app for each in told for app in each["ready"]}), "about": about}


def metadata(told: Sequence[Told]) -> Told:
    """Merge what ``GET metadata`` answers."""
    merged = dict(told[0])
    actors = _counted((row["type"], row["count"]) for each in told for row in each.get("actors", ()))
    hosted = [{"type": name, "count": count} for name, count in actors]
    runtimes = [each["actorRuntime"] for each in told]
    ready = next((each for each in runtimes if each.get("hostReady")), runtimes[0])
    active = {"activeActors": hosted} if hosted or "activeActors" in ready else {}
    merged["actorRuntime"] = {**ready, **active}
    merged["workflows"] = {"connectedWorkers": sum(each["workflows"]["connectedWorkers"] for each in told)}
    lists: Told = {
        "actors": hosted,
        "subscriptions": _each(row for each in told for row in each.get("subscriptions", ())),
        "conditions": _worst(_rows(told, "conditions"), _target, _state),
        "circuitBreakers": _worst(_rows(told, "circuitBreakers"), _target, _state),
        "componentStatus": _worst(
            _rows(told, "componentStatus"), lambda row: row["name"], lambda row: _place(_WORST, row.get("health"))
        ),
        "backlogs": _backlogs(_rows(told, "backlogs")),
    }
    serves = any(not _away(each) for each in told)
    if serves:  # It is there for the gateway as soon as one of the workers serves it.
        lists["conditions"] = [row for row in lists["conditions"] if row.get("target") != "application"]
    for name, rows in lists.items():
        if rows:
            merged[name] = rows
        else:
            merged.pop(name, None)
    return merged


def _rows(told: Sequence[Told], name: str) -> list[Told]:
    return [row for each in told for row in each.get(name, ())]


def _away(told: Told) -> bool:
    return any(row.get("target") == "application" for row in told.get("conditions", ()))


def _target(row: Told) -> object:
    return tuple(repr(row.get(name)) for name in ("target", "circuitBreaker", "endpoint", "name"))


def _state(row: Told) -> int:
    return _place(_BREAKERS, row.get("breaker", row.get("state")))


def _place(order: Sequence[str], value: object) -> int:
    return order.index(value) if value in order else len(order)


def _backlogs(rows: Sequence[Told]) -> list[Told]:
    """Merge what subscriptions have before them: the broker says it to each alike, and each counts what it got."""
    found: dict[object, Told] = {}
    for row in rows:
        key = row["pubsubname"], row["topic"]
        known = found.get(key)
        if known is None:
            found[key] = dict(row)
            continue
        known["attempts"] = {name: count + row["attempts"][name] for name, count in known["attempts"].items()}
        known["deadLetters"] += row["deadLetters"]
    return list(found.values())


def node(told: Sequence[Told], parent: Told) -> Told:
    """Merge what is told of a node and its process; ``parent`` is of the process that was started."""
    workers = [{name: each[name] for name in ("pid", "since", "cpuSeconds", "rssBytes")} for each in told]
    return {
        **told[0],
        "pid": parent["pid"],
        "since": parent["since"],
        "uptimeSeconds": parent["uptimeSeconds"],
        "cpuSeconds": round(parent["cpuSeconds"] + sum(each["cpuSeconds"] for each in told), 3),
        "rssBytes": parent["rssBytes"] + sum(each["rssBytes"] for each in told),
        "workers": sorted(workers, key=lambda each: each["pid"]),
    }


def process(measured: Sequence[Mapping[str, float]], ended_cpu_seconds: float) -> dict[str, float]:
    """Merge what is measured of processes; the first is the one that was started."""
    added = {name: sum(each[name] for each in measured) for name in measured[0]}
    began = measured[0]["process_start_time_seconds"]
    return {
        **added,
        "process_cpu_seconds_total": added["process_cpu_seconds_total"] + ended_cpu_seconds,
        "process_start_time_seconds": began,
    }


# Metrics


def as_sent(found: Mapping[str, Sequence[tuple[tuple[str, ...], Series]]]) -> Sent:
    """Write metrics as they are sent."""
    return {
        name: [[list(labels), each.times, each.total, each.buckets, list(each.bounds)] for labels, each in rows]
        for name, rows in found.items()
    }


def totals(*sent: Sent) -> Sent:
    """Add up counts of workers that have gone; what was so only then is nothing any more."""
    added = measured(*({name: rows for name, rows in each.items() if name not in NOW} for each in sent))
    return as_sent(added)


def measured(*sent: Sent) -> dict[str, list[tuple[tuple[str, ...], Series]]]:
    """Add up what workers have counted."""
    found: dict[str, dict[tuple[str, ...], Series]] = {}
    for each in sent:
        for name, rows in each.items():
            known = found.setdefault(name, {})
            for labels, times, total, buckets, bounds in rows:
                key = tuple(labels)
                series = Series(tuple(bounds), times)
                series.total, series.buckets = total, list(buckets)
                if key not in known:
                    known[key] = series
                elif name == BREAKERS:
                    known[key].times = max(known[key].times, times)
                elif name not in ALIKE and len(known[key].buckets) == len(buckets):
                    known[key].add(series)
    return {name: list(rows.items()) for name, rows in found.items()}
