"""WorkflowAccessPolicy resources: who else may do what with an application's workflows and activities.

Source: Dapr 1.18, the WorkflowAccessPolicy resource.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["WorkflowAccessPolicy", "WorkflowAccessRule"]


@dataclass(frozen=True, slots=True)
class WorkflowAccessRule:
    """What some applications may do.

    Attributes:
        callers: Their app ids.
        workflows: Patterns of names, each with the operations that it is for.
        activities: Patterns of the names of activities that they may have run.
    """

    callers: tuple[str, ...]
    workflows: tuple[tuple[str, tuple[str, ...]], ...] = ()
    activities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkflowAccessPolicy:
    """A WorkflowAccessPolicy."""

    name: str
    rules: tuple[WorkflowAccessRule, ...] = ()
    namespace: str | None = None
    scopes: tuple[str, ...] = ()
    file: str | None = field(default=None, compare=False)
    line: int | None = field(default=None, compare=False)
