"""What ``mesh check`` has found, and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.config import GatewayConfig
    from mesh.errors import Problem
    from mesh.resources.component import Component, HTTPEndpoint
    from mesh.resources.configuration import Configuration
    from mesh.resources.workflow_access import WorkflowAccessPolicy

__all__ = ["Findings"]


@dataclass(slots=True)
class Findings:
    """What a check found.

    Attributes:
        resources: How many there are.
        templates: How many there are.
        bridges: How many files of bridges there are.
        problems: What is wrong, once each.
        warnings: What is not wrong, but perhaps not meant.
        components: What was read, and nothing is wrong with its form.
        endpoints: Likewise.
        configurations: Likewise.
        policies: Likewise, those about workflows.
        apps: The gateways of templates, each with its template's file.
        unseen: Files and folders of which not all is in the above, for something is wrong with their form.
        environments: Of applications of templates, each with its template's file and its app id.
        middleware: Components that a pipeline may name, also those with which something is wrong.
        pipelines: Configurations, likewise.
        complete: Whether all that a pipeline may name is known.
        files: Those that were looked at, in order.
    """

    resources: int = 0
    templates: int = 0
    bridges: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    components: list[Component] = field(default_factory=list)
    endpoints: list[HTTPEndpoint] = field(default_factory=list)
    configurations: list[Configuration] = field(default_factory=list)
    policies: list[WorkflowAccessPolicy] = field(default_factory=list)
    apps: list[tuple[str, GatewayConfig]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    environments: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    middleware: list[Component] = field(default_factory=list)
    pipelines: list[Configuration] = field(default_factory=list)
    complete: bool = True
    files: dict[str, None] = field(default_factory=dict)

    def unread(self, problems: Sequence[Problem]) -> None:
        """Add problems for which files are left out."""
        self.add(problems)
        self.unseen += [problem.file for problem in problems if problem.file]

    def add(self, problems: Sequence[Problem]) -> None:
        """Add problems that are not known yet."""
        self.problems += [problem for problem in dict.fromkeys(problems) if problem not in self.problems]

    def warn(self, warnings: Sequence[Problem]) -> None:
        """Add warnings that are not known yet."""
        self.warnings += [warning for warning in dict.fromkeys(warnings) if warning not in self.warnings]
