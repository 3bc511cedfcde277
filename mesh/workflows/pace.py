"""How soon the next turn of an instance begins whose code waits for more results than have come.

Each turn runs the code again from its beginning, in most workers. Of a fan-out of a thousand that would be a thousand
times, if each result had a turn, and the worker would do little else.
"""

from __future__ import annotations

from mesh.workflows.events import (
    ChildCreated,
    DetachedCreated,
    Event,
    EventSent,
    TaskCompleted,
    TaskScheduled,
    TimerCreated,
)
from mesh.workflows.instance import Instance
from mesh.workflows.state import State, Step

__all__ = ["FEW", "LONGEST", "TURNS", "Pace"]

FEW = 8  # Who has asked for fewer activities has a turn for each result: they may be a race, and turns are few.
TURNS = 16  # So many times what the last turn took, the next one may be held back,
LONGEST = 1.0  # and for so many seconds: no longer than results wait for a write.
_ASKED = frozenset({TaskScheduled, TimerCreated, ChildCreated, EventSent, DetachedCreated})


class Pace:
    """Until when turns are held back, by what the last one has asked for. All times are the loop's, in seconds.

    Attributes:
        begun: When the last turn began.
        until: When the next one may begin; 0 = at any time.
        alarm: The ``until`` at which it is looked again.
    """

    __slots__ = ("_many", "_since", "alarm", "begun", "until")

    def __init__(self) -> None:
        """Hold nothing back."""
        self._since: float | None = None  # When the code went on; None = nobody has seen it.
        self._many = False  # Whether it has waited for many activities since.
        self.begun = self.until = self.alarm = 0.0

    def turned(self, instance: Instance, before: State | None, step: Step, waiting: list[Event], now: float) -> None:
        """Take note of a turn that was committed.

        Args:
            instance: What it is now.
            before: What it was.
            step: What was written.
            waiting: What is for the next turn, and was not written.
            now: The time.
        """
        self.until = 0.0
        if self._since is None or before is None or _went_on(before, step):
            self._since, self._many = now, len(instance.tasks) >= FEW
        elif self._many and all(type(event) is TaskCompleted for event in waiting):
            self.until = now + min(now - self._since, TURNS * (now - self.begun), LONGEST)


def _went_on(before: State, step: Step) -> bool:
    """Tell whether the code has gone on, as far as somebody else can see."""
    state = step.state
    return (before.generation, before.sent, before.custom_status) != (
        state.generation,
        state.sent,
        state.custom_status,
    ) or any(type(event) in _ASKED for event in step.append)
