"""Access rules: which other application may do what with this one's workflows, asked where the target is.

What no rule allows is denied, as soon as there is a policy; without one, applications of the namespace may do all. An
application itself may do everything with its own, and nobody of another namespace anything.

Source: Dapr 1.18, the WorkflowAccessPolicy resource.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from mesh.globs import Glob
from mesh.scopes import in_scope

if TYPE_CHECKING:
    from mesh.resources.workflow_access import WorkflowAccessPolicy

__all__ = ["Kind", "Operation", "Rules", "denied"]

Kind = Literal["workflow", "activity"]
Operation = Literal["schedule", "terminate", "raise", "pause", "resume", "purge", "get", "rerun"]

_SCHEDULE = frozenset({"schedule"})


class Rules:
    """The rules of all policies of an application together."""

    def __init__(self, app_id: str, policies: Iterable[WorkflowAccessPolicy] = ()) -> None:
        """Put policies together; those whose scopes lack the application are none of its."""
        self._app_id = app_id
        self.apply(policies)

    def apply(self, policies: Iterable[WorkflowAccessPolicy]) -> None:
        """Go by other policies from here on; each only adds to what is allowed."""
        own = [each for each in policies if in_scope(each.scopes, self._app_id)]
        allowed: dict[tuple[str, str], list[tuple[Glob, frozenset[str]]]] = {}
        for rule in (rule for policy in own for rule in policy.rules):
            workflows = [(Glob(name), frozenset(operations)) for name, operations in rule.workflows]
            activities = [(Glob(name), _SCHEDULE) for name in rule.activities]
            for caller in rule.callers:
                allowed.setdefault((caller, "workflow"), []).extend(workflows)
                allowed.setdefault((caller, "activity"), []).extend(activities)
        self._any, self._allowed = bool(own), allowed

    def allows(
        self,
        caller_app: str,
        caller_namespace: str,
        own_app: str,
        own_namespace: str,
        kind: Kind,
        operation: Operation,
        name: str,
    ) -> bool:
        """Tell whether an application may do something.

        Args:
            caller_app: Who asks.
            caller_namespace: Where that one is.
            own_app: Whose workflow or activity it is.
            own_namespace: Where that one is.
            kind: What it is about.
            operation: Of an activity, ``schedule``.
            name: The workflow's or the activity's.
        """
        if caller_namespace != own_namespace:
            return False
        if caller_app == own_app or not self._any:
            return True
        patterns = self._allowed.get((caller_app, kind), ())
        return any(operation in operations and glob.fits(name) for glob, operations in patterns)


def denied(caller: str, kind: Kind, operation: Operation, name: str) -> str:
    """Say what no policy allows, for an error's message."""
    return f"access denied by workflow access policy: {caller} may not {operation} the {kind} '{name[:200]}'"
