"""Activities that the engine itself tries again, for workers that cannot: operations, and workers over HTTP."""

from __future__ import annotations

from collections.abc import Container, Sequence

from mesh.workflows.events import FOREVER, Failure, Retrying, TaskScheduled
from mesh.workflows.instance import TASK, Instance

__all__ = ["due", "next_attempt", "waiting"]


def next_attempt(task: TaskScheduled, attempt: int, failure: Failure, now: float) -> Retrying | None:
    """Decide what follows from an attempt that failed: another one, or None = it has failed for good.

    Args:
        task: What was asked for.
        attempt: The number of the one that failed, from 1 on.
        failure: Why.
        now: Unix time in seconds.
    """
    retry = task.retry
    if retry is None or failure.final or attempt >= retry.attempts or failure.type in retry.never:
        return None
    try:
        pause = retry.first * float(retry.factor) ** (attempt - 1)
    except OverflowError:
        pause = FOREVER
    if retry.longest is not None:
        pause = min(pause, retry.longest)
    at = min(now + max(pause, 0.0), FOREVER)
    if retry.within is not None and at > task.at + retry.within:
        return None
    return Retrying(now, task.id, attempt + 1, at, failure)


def due(instance: Instance, now: float, held: Container[int] = ()) -> Sequence[int]:
    """Give the tasks whose next attempt is to begin, except ``held`` ones: those that have been handed out for it."""
    return [id for _, kind, id in instance.dues(now) if kind == TASK and id not in held]


def waiting(instance: Instance, now: float) -> set[int]:
    """Give the tasks whose next attempt is not to begin yet."""
    return {id for id, retry in instance.retries.items() if retry.due > now}
