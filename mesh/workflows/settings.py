"""``spec.workflow`` of a Configuration, ready to be used: how much runs at once, and how long what has ended is kept.

A limit of one gateway holds exactly. One that is for all gateways of the application is shared out among those that are
ready, each of which holds to its part; so less may run than is allowed, and while gateways come and go, more. Of fewer
than there are gateways each has one.

Source: Dapr 1.18, the Configuration resource.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.workflows.state import Status

if TYPE_CHECKING:
    from mesh.resources.configuration import ConcurrencyLimit, RetentionPolicy, WorkflowSpec

__all__ = ["Limits", "WorkflowSettings", "settings_of"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How many turns, or how many activities, a gateway hands out at once.

    Attributes:
        own: Of each gateway; None = no limit.
        shared: Of all gateways of the application together; None = no limit.
        names: The same for those of one name.
    """

    own: int | None = None
    shared: int | None = None
    names: Mapping[str, int] = field(default_factory=dict)

    def total(self, gateways: int) -> int | None:
        """Give the most of this gateway, where so many are ready; None = no limit."""
        found = [each for each in (self.own, _part(self.shared, gateways)) if each is not None]
        return min(found, default=None)

    def of_name(self, name: str, gateways: int) -> int | None:
        """Give the most of one name; None = no limit but that of all."""
        return _part(self.names.get(name), gateways)


def _part(limit: int | None, gateways: int) -> int | None:
    return None if limit is None else max(1, limit // max(1, gateways))


@dataclass(frozen=True, slots=True)
class WorkflowSettings:
    """The settings of workflows in a Configuration.

    Attributes:
        turns: How many turns of workflows there are at once.
        tasks: How many activities likewise.
        kept: Seconds that an instance is kept once it has ended, by its `Status`; one that is not there, for good.
    """

    turns: Limits = Limits()
    tasks: Limits = Limits()
    kept: Mapping[int, float] = field(default_factory=dict)


def settings_of(spec: WorkflowSpec | None) -> WorkflowSettings:
    """Read it."""
    if spec is None:
        return WorkflowSettings()
    own, shared = spec.max_concurrent_workflow_invocations, spec.global_max_concurrent_workflow_invocations
    turns = Limits(own, shared, _names(spec.workflow_concurrency_limits))
    own, shared = spec.max_concurrent_activity_invocations, spec.global_max_concurrent_activity_invocations
    tasks = Limits(own, shared, _names(spec.activity_concurrency_limits))
    return WorkflowSettings(turns, tasks, _kept(spec.state_retention_policy))


def _names(limits: Sequence[ConcurrencyLimit]) -> Mapping[str, int]:
    return {each.name: each.max_concurrent for each in limits}


def _kept(policy: RetentionPolicy) -> Mapping[int, float]:
    """Give the times; one of a status goes before that of any."""
    given = {
        Status.COMPLETED: policy.completed,
        Status.FAILED: policy.failed,
        Status.TERMINATED: policy.terminated,
        Status.CANCELED: None,
    }
    times = {status: policy.any_terminal if own is None else own for status, own in given.items()}
    return {int(status): seconds for status, seconds in times.items() if seconds is not None}
