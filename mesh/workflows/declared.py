"""Declarations: what an application says in ``GET /dapr/config`` of its workflows, and how they are run over HTTP.

What is wrong with it is told, and the default stands in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from mesh.application_config import Reading, lowered, shown
from mesh.workflows.operations import PREFIX

__all__ = ["ANY", "MAX_NAMES", "Declared", "declared_of", "read_declared"]

logger = logging.getLogger(__name__)

ANY = "*"
MAX_NAMES = 10_000
MAX_AT_ONCE = 10_000
SETTINGS = "workflowSettings"
KNOWN = ("maxConcurrentWorkflows", "maxConcurrentActivities", "turnTimeout", "activityTimeout")


@dataclass(frozen=True, slots=True)
class Declared:
    """The workflows and activities of an application; false where it names none.

    Attributes:
        workflows: Their names; ``*`` among them stands for all.
        activities: Likewise.
        max_turns: The most turns that it is asked to run at once.
        max_tasks: The most activities likewise.
        turn_seconds: How long it may take to answer to a turn.
        task_seconds: Likewise to an activity; None = no limit.
    """

    workflows: frozenset[str] = frozenset()
    activities: frozenset[str] = frozenset()
    max_turns: int = 100
    max_tasks: int = 100
    turn_seconds: float = 60.0
    task_seconds: float | None = None

    def __bool__(self) -> bool:
        """Tell whether it names any."""
        return bool(self.workflows or self.activities)


def declared_of(answer: bytes) -> Declared:
    """Read an application's answer; what is wrong is logged."""
    declared, problems = read_declared(answer)
    for problem in problems:
        logger.warning("GET /dapr/config: %s", problem)
    return declared


def read_declared(answer: bytes) -> tuple[Declared, list[str]]:
    """Read an application's answer.

    Returns:
        What it says of workflows, and what is wrong: each text names the field. That an answer is no JSON is told by
        who reads the actors.
    """
    try:
        document = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return Declared(), []
    if not isinstance(document, dict):
        return Declared(), []
    members, reading = lowered(document), _Reading()
    workflows, activities = reading.names(members, "workflows"), reading.names(members, "activities")
    given = members.get(SETTINGS.lower())
    if given is not None and not isinstance(given, dict):
        reading.wrong(SETTINGS, given, "an object")
    settings, at, default = lowered(given) if isinstance(given, dict) else {}, f"{SETTINGS}.", Declared()
    for name in settings.keys() - {each.lower() for each in KNOWN}:
        reading.note(f"{SETTINGS} has no {shown(name)}; there are {', '.join(KNOWN)}")
    declared = Declared(
        workflows,
        activities,
        reading.at_once(settings, "maxConcurrentWorkflows", default.max_turns),
        reading.at_once(settings, "maxConcurrentActivities", default.max_tasks),
        reading.seconds(settings, "turnTimeout", at, default.turn_seconds),
        reading.seconds(settings, "activityTimeout", at, 0.0) or None,
    )
    return declared, reading.problems


class _Reading(Reading):
    """Reads what is of workflows."""

    def names(self, members: Mapping[str, object], at: str) -> frozenset[str]:
        """Read names of workflows or activities."""
        given = members.get(at)
        if given is None:
            return frozenset()
        if not isinstance(given, list):
            self.wrong(at, given, "an array of names")
            return frozenset()
        found: set[str] = set()
        for index, name in enumerate(given):
            if not isinstance(name, str) or not name:
                self.note(f"{at}[{index}]: a name must be a string that is not empty, not {shown(name)}")
            elif name in (".", ".."):
                self.note(f"{at}[{index}]: {shown(name)} can be no part of a path")
            elif at == "activities" and name.startswith(PREFIX):
                self.note(f"{at}[{index}]: {shown(name)}: names that begin with '{PREFIX}' are operations of the mesh")
            elif len(found) >= MAX_NAMES:
                self.note(f"{at}: more than {MAX_NAMES} names; the others do not count")
                break
            else:
                found.add(name)
        return frozenset(found)

    def at_once(self, members: Mapping[str, object], name: str, default: int) -> int:
        """Read how many may run at once."""
        value = members.get(name.lower())
        if value is None:
            return default
        if type(value) is not int or not 1 <= value <= MAX_AT_ONCE:
            self.wrong(f"{SETTINGS}.{name}", value, f"a whole number from 1 to {MAX_AT_ONCE}")
            return default
        return value
