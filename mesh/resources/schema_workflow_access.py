"""The file model of WorkflowAccessPolicy and its conversion into values.

What a rule asks for and is not known here is refused, wherever it stands: without it, more would be allowed than was
meant.

Source: Dapr 1.18, the WorkflowAccessPolicy resource.
"""

# No `from __future__ import annotations`: pydantic reads these annotations at run time.

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mesh.errors import Problem
from mesh.globs import Glob
from mesh.resources.documents import Document, Effect, FileModel, validate
from mesh.resources.fields import Name, Parsed, plain_text
from mesh.resources.schema import IN_ANY, Meta
from mesh.resources.workflow_access import WorkflowAccessPolicy, WorkflowAccessRule

__all__ = ["WorkflowAccessPolicyFile", "workflow_access"]

Pattern = Annotated[str, Parsed(lambda value: Glob(plain_text(value)).text)]
_REQUIRES = Effect("conditions on the history of a workflow are not supported", unsafe=True, harmless=lambda _: False)


class CallerSpec(FileModel):
    """An application that asks."""

    app_id: Name = Field(alias="appID")


@dataclass(frozen=True, slots=True)
class WorkflowSpec:
    """What may be done with workflows."""

    name: Pattern
    operations: tuple[Literal["schedule", "terminate", "raise", "pause", "resume", "purge", "get", "rerun"], ...]


@dataclass(frozen=True, slots=True)
class ActivitySpec:
    """Activities that may be asked for."""

    name: Pattern


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule."""

    callers: tuple[CallerSpec, ...]
    workflows: tuple[WorkflowSpec, ...] = ()
    activities: tuple[ActivitySpec, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """``spec``."""

    rules: tuple[RuleSpec, ...] = ()


class WorkflowAccessPolicyFile(FileModel):
    """A WorkflowAccessPolicy as it stands in a file."""

    effects: ClassVar = {
        **IN_ANY,
        "spec.rules.requires": _REQUIRES,
        "spec.rules.workflows.requires": _REQUIRES,
        "spec.rules.activities.requires": _REQUIRES,
    }
    exact: ClassVar = (("spec",),)

    api_version: Literal["dapr.io/v1alpha1"]
    kind: Literal["WorkflowAccessPolicy"]
    metadata: Meta
    spec: PolicySpec
    scopes: tuple[str, ...] = ()


def workflow_access(
    document: Document, problems: list[Problem], warnings: list[Problem]
) -> WorkflowAccessPolicy | None:
    """Read a WorkflowAccessPolicy."""
    model = validate(document, WorkflowAccessPolicyFile, problems, warnings)
    if model is None:
        return None
    for index, rule in enumerate(model.spec.rules):
        problems += _problems(document, rule, ("spec", "rules", index))
    rules = (
        WorkflowAccessRule(
            tuple(each.app_id for each in rule.callers),
            tuple((each.name, each.operations) for each in rule.workflows),
            tuple(each.name for each in rule.activities),
        )
        for rule in model.spec.rules
    )
    meta = model.metadata
    return WorkflowAccessPolicy(meta.name, tuple(rules), meta.namespace, model.scopes, document.file, document.line)


def _problems(document: Document, rule: RuleSpec, at: tuple[str | int, ...]) -> list[Problem]:
    """Find what allows nothing to nobody, which nobody means."""
    found: list[Problem] = []
    if not rule.callers:
        found.append(document.problem("expected at least one caller", (*at, "callers")))
    if not rule.workflows and not rule.activities:
        found.append(document.problem("expected workflows or activities that the callers may use", at))
    found += [
        document.problem("expected at least one operation", (*at, "workflows", number, "operations"))
        for number, each in enumerate(rule.workflows)
        if not each.operations
    ]
    return found
