"""Coalescing: results of many activities wait for each other, and share a turn.

Each turn runs the code again from its beginning. If each result of a fan-out of a thousand had one, a worker would do
little else.
"""

from __future__ import annotations

from mesh.workflows.events import ChildCreated, DetachedCreated, EventSent, TaskScheduled, TimerCreated
from mesh.workflows.instance import Instance
from mesh.workflows.state import State, Step

__all__ = ["FEW", "LONGEST", "TURNS", "Coalescing"]

FEW = 8  # Who waits for fewer activities has a turn for each: they may race, and there is little to save.
TURNS = 16  # So many times what the last turn took, results may wait,
LONGEST = 1.0  # and for so many seconds: no longer than they wait for a write.
_ASKED = frozenset({TaskScheduled, TimerCreated, ChildCreated, EventSent, DetachedCreated})


class Coalescing:
    """Until when results of an instance wait for others. All times are the loop's, in seconds.

    Attributes:
        until: That time; 0 = they do not wait.
        alarm: For which ``until`` a timer is set.
    """

    __slots__ = ("_begun", "_many", "_since", "alarm", "until")

    def __init__(self) -> None:
        """Have none wait."""
        self.until = self.alarm = 0.0
        self._begun = 0.0  # The last turn.
        self._since: float | None = None  # When the code went on; None = nobody has seen it.
        self._many = False  # Whether it has waited for many activities since.

    def begin(self, now: float) -> None:
        """Take note that a turn begins."""
        self._begun = now

    def end(self, instance: Instance, before: State | None, step: Step, now: float) -> None:
        """Take note that a turn has ended, by a step before which the state was ``before``; None = there was none."""
        self.until = 0.0
        if self._since is None or before is None or _went_on(before, step):
            self._since, self._many = now, len(instance.tasks) >= FEW
        elif self._many:
            self.until = now + min(now - self._since, TURNS * (now - self._begun), LONGEST)


def _went_on(before: State, step: Step) -> bool:
    """Tell whether the code asked for something, or said something: then it may do so for each result."""
    after = step.state
    return (
        (before.generation, before.sent, before.custom_status) != (after.generation, after.sent, after.custom_status)
    ) or any(type(event) in _ASKED for event in step.append)
