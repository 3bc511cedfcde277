"""What is checked of ``spec.workflow``.

Source: Dapr 1.18, the Configuration resource.
"""

from __future__ import annotations

from mesh.errors import Problem
from mesh.resources.configuration import WorkflowSpec
from mesh.resources.documents import Document
from mesh.resources.shapes import wire_name

__all__ = ["check_workflow"]

_LISTS = ("workflow_concurrency_limits", "activity_concurrency_limits")


def check_workflow(document: Document, section: WorkflowSpec, problems: list[Problem]) -> None:
    """Find names that are limited twice."""
    at = ("spec", "workflow")
    for list_name in _LISTS:
        seen: set[str] = set()
        for index, limit in enumerate(getattr(section, list_name)):
            if limit.name in seen:
                told = f"there is a limit of {limit.name} before, which would not count"
                problems.append(document.problem(told, (*at, wire_name(list_name), index)))
            seen.add(limit.name)
