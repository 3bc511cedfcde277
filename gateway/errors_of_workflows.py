"""What clients are told of failures of workflows: rows of the table in ``gateway/errors.py``.

Source: Dapr 1.18, its workflow API.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.error_row import Row

__all__ = ["ROWS"]

# What any of them fails with, and how that is said besides the method's own code and text.
_ANY: Mapping[str, tuple[int, str]] = {
    "BAD_ARGUMENT": (400, "INVALID_ARGUMENT"),
    "WORKFLOW_FORBIDDEN": (403, "PERMISSION_DENIED"),
    "PERMISSION_DENIED": (403, "PERMISSION_DENIED"),
    "RECORDS_MISSING": (500, "FAILED_PRECONDITION"),
    "DEADLINE_EXCEEDED": (500, "DEADLINE_EXCEEDED"),
    "BROKER_ERROR": (500, "UNAVAILABLE"),
}


def _of(method: str, code: str, text: str, **known: tuple[int, str]) -> Mapping[str, Row]:
    """Make the rows of a method: those of what all of them fail with, and of what it alone does."""
    rows = {
        f"workflows.{method}/{name}": Row(status, grpc, code, text)
        for name, (status, grpc) in {**_ANY, **known}.items()
    }
    return {**rows, f"workflows.{method}": Row(500, "INTERNAL", code, text)}


def _refused(code: str, text: str) -> Row:
    return Row(400, "INVALID_ARGUMENT", code, text)


_GET = "error while getting workflow info on instance '{arguments.id}': {error}"
# The reference tells of an instance that is not there in two ways; so do these.
_NOT_THERE = (500, "NOT_FOUND")
_CONFLICT = {"WORKFLOW_EXISTS": (409, "ALREADY_EXISTS"), "WORKFLOW_NOT_ENDED": (409, "FAILED_PRECONDITION")}

ROWS: Mapping[str, Row] = {
    "workflows/WORKFLOW_NOT_FOUND": Row(
        404,
        "NOT_FOUND",
        "ERR_INSTANCE_ID_NOT_FOUND",
        "unable to find workflow with the provided instance ID: {arguments.id}",
    ),
    "workflows/ID_MISSING": _refused("ERR_INSTANCE_ID_PROVIDED_MISSING", "no instance ID was provided"),
    "workflows/ID_TOO_LONG": _refused(
        "ERR_INSTANCE_ID_TOO_LONG", "workflow instance ID exceeds the max length of {error} characters"
    ),
    "workflows/ID_INVALID": _refused(
        "ERR_INSTANCE_ID_INVALID",
        "workflow instance ID '{arguments.id}' is invalid: only alphanumeric and underscore characters are allowed",
    ),
    "workflows/NAME_MISSING": _refused("ERR_WORKFLOW_NAME_MISSING", "workflow name is not configured"),
    "workflows/EVENT_NAME_MISSING": _refused("ERR_WORKFLOW_EVENT_NAME_MISSING", "missing workflow event name"),
    "workflows/APP_ID_INVALID": _refused("ERR_WORKFLOW_APP_ID_INVALID", "the app ID '{target}' is invalid"),
    **_of("start", "ERR_START_WORKFLOW", "error starting workflow '{arguments.name}': {error}"),
    **_of(
        "raise_event",
        "ERR_RAISE_EVENT_WORKFLOW",
        "error raising event on workflow '{arguments.id}': {error}",
        WORKFLOW_NOT_FOUND=_NOT_THERE,
    ),
    **_of(
        "suspend",
        "ERR_PAUSE_WORKFLOW",
        "error pausing workflow {arguments.id}: {error}",
        WORKFLOW_NOT_FOUND=_NOT_THERE,
    ),
    **_of(
        "resume",
        "ERR_RESUME_WORKFLOW",
        "error resuming workflow {arguments.id}: {error}",
        WORKFLOW_NOT_FOUND=_NOT_THERE,
    ),
    **_of("terminate", "ERR_TERMINATE_WORKFLOW", "error terminating workflow '{arguments.id}': {error}"),
    **_of("purge", "ERR_PURGE_WORKFLOW", "error purging workflow {arguments.id}: {error}"),
    **_of("purge_many", "ERR_PURGE_WORKFLOW", "error purging workflows: {error}"),
    **_of("get", "ERR_GET_WORKFLOW", _GET),
    **_of("wait", "ERR_GET_WORKFLOW", _GET),
    **_of("show", "ERR_GET_WORKFLOW", _GET),
    **_of("history", "ERR_GET_WORKFLOW", _GET),
    **_of("list", "ERR_LIST_WORKFLOWS", "error listing workflows: {error}"),
    **_of(
        "rerun",
        "ERR_RERUN_WORKFLOW",
        "error rerunning workflow '{arguments.id}': {error}",
        WORKFLOW_EVENT_NOT_FOUND=(404, "NOT_FOUND"),
        **_CONFLICT,
    ),
    **_of("host", "ERR_WORKFLOW_WORKER", "error attaching a worker of workflows: {error}"),
}
