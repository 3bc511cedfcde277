"""Errors of workflows.

::

    WorkflowError                     an instance could not do what it was asked
    ├── WorkflowNotFoundError         there is no such instance
    ├── WorkflowExistsError           the id is that of an active one
    ├── WorkflowEndedError            it has ended, and takes nothing more
    ├── WorkflowNotEndedError         it has not ended, which purge and rerun need
    ├── WorkflowStalledError          no worker can go on with it, and it takes no events
    ├── WorkflowEventNotFoundError    it cannot be run again from that event
    ├── WorkflowTooLargeError         what is to be kept of it is more than the store takes
    ├── WorkflowUnreadableError       what is kept of it was written by a newer version, or is damaged
    └── WorkflowForbiddenError        no workflow access policy allows it
"""

from __future__ import annotations

from mesh.errors import MeshError

__all__ = [
    "WorkflowEndedError",
    "WorkflowError",
    "WorkflowEventNotFoundError",
    "WorkflowExistsError",
    "WorkflowForbiddenError",
    "WorkflowNotEndedError",
    "WorkflowNotFoundError",
    "WorkflowStalledError",
    "WorkflowTooLargeError",
    "WorkflowUnreadableError",
]


class WorkflowError(MeshError):
    """An instance could not do what it was asked."""

    code = "WORKFLOW_ERROR"


class WorkflowNotFoundError(WorkflowError):
    """There is no such instance."""

    code = "WORKFLOW_NOT_FOUND"

    def __init__(self, instance: str = "") -> None:
        super().__init__("no such instance exists" if not instance else f"no such instance exists: '{instance[:200]}'")


class WorkflowExistsError(WorkflowError):
    """The id is that of an active one, or its children are active."""

    code = "WORKFLOW_EXISTS"


class WorkflowEndedError(WorkflowError):
    """It has ended, and takes nothing more."""

    code = "WORKFLOW_ENDED"


class WorkflowNotEndedError(WorkflowError):
    """It has not ended."""

    code = "WORKFLOW_NOT_ENDED"


class WorkflowStalledError(WorkflowError):
    """No worker can go on with it."""

    code = "WORKFLOW_STALLED"


class WorkflowEventNotFoundError(WorkflowError):
    """It cannot be run again from that event."""

    code = "WORKFLOW_EVENT_NOT_FOUND"


class WorkflowTooLargeError(WorkflowError):
    """What is to be kept of it at once is more than the store takes."""

    code = "WORKFLOW_TOO_LARGE"


class WorkflowUnreadableError(WorkflowError):
    """What is kept of it cannot be read; a newer version can, perhaps."""

    code = "WORKFLOW_UNREADABLE"


class WorkflowForbiddenError(WorkflowError):
    """No workflow access policy allows it."""

    code = "WORKFLOW_FORBIDDEN"
