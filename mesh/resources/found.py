"""What was found in files: a document that is wrong hides no other one from whoever tells what is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mesh.errors import Problem
from mesh.resources.component import Component, HTTPEndpoint
from mesh.resources.configuration import Configuration
from mesh.resources.documents import Document
from mesh.resources.resiliency import Resiliency
from mesh.resources.subscription import Subscription
from mesh.resources.workflow_access import WorkflowAccessPolicy

__all__ = ["Found", "Looked", "Resource", "of_kind"]

Resource = Component | Subscription | Configuration | Resiliency | HTTPEndpoint | WorkflowAccessPolicy
_R = TypeVar("_R", Component, Subscription, Configuration, Resiliency, HTTPEndpoint, WorkflowAccessPolicy)
_SECTIONS = frozenset({"apiVersion", "kind", "metadata", "spec", "auth", "scopes"})


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a document that is a resource, or was meant to be one.

    Attributes:
        document: As it was read.
        resource: Without what is wrong with it; None = nothing is left.
        problems: What is wrong with it.
    """

    document: Document
    resource: Resource | None
    problems: tuple[Problem, ...] = ()

    def is_right(self, *sections: str) -> bool:
        """Tell whether nothing is wrong in these fields of its top; an unknown field may stand for any of them."""
        wrong = {re.split(r"[.\[]", each.path)[0] for each in self.problems}
        return wrong.isdisjoint(sections) and wrong <= _SECTIONS


@dataclass(frozen=True, slots=True)
class Looked:
    """Everything that was found, for whoever tells what is wrong with it.

    Attributes:
        problems: Of all files, in their order.
        complete: Whether each document gave a resource, so that what is not there is not in any of them.
        unsound: Files with a problem of their own.
    """

    found: tuple[Found, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    complete: bool
    unsound: tuple[str, ...]

    def of(self, kind: type[_R], *sections: str) -> tuple[_R, ...]:
        """Give the resources of a kind in which these sections are right; without any, all of them."""
        return of_kind(kind, [each.resource for each in self.found if not sections or each.is_right(*sections)])

    def whole(self, kind: type[_R]) -> tuple[_R, ...]:
        """Give the resources of a kind with which nothing is wrong."""
        return of_kind(kind, [each.resource for each in self.found if not each.problems])


def of_kind(kind: type[_R], resources: Sequence[Resource | None]) -> tuple[_R, ...]:
    """Give those of a kind."""
    return tuple(resource for resource in resources if isinstance(resource, kind))
