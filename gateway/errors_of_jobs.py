"""What clients are told of failures of jobs: rows of the table in ``gateway/errors.py``.

Source: Dapr 1.18, its jobs API; the words in front of a reason are those of the client of its scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.error_row import Row

__all__ = ["ROWS"]

_OF = (("appID", "{app_id}"), ("namespace", "{namespace}"))


def _row(code: str, text: str, status: int = 500, grpc: str = "INTERNAL") -> Row:
    return Row(status, grpc, code, text, code, metadata=_OF)


def _refused(code: str, text: str) -> Row:
    return _row(f"DAPR_SCHEDULER_{code}", text, 400, "INVALID_ARGUMENT")


def _failed(code: str, what: str) -> Mapping[str, Row]:
    """Make the rows of a method, by the end of their keys."""
    code, said = f"DAPR_SCHEDULER_{code}", f"failed to {what} due to: "
    return {
        "/BAD_ARGUMENT": _row(code, said + "{error}", 400, "INVALID_ARGUMENT"),
        "/PERMISSION_DENIED": _row(code, said + "{error}", 403, "PERMISSION_DENIED"),
        "/DEADLINE_EXCEEDED": _row(code, said + "{error}", grpc="DEADLINE_EXCEEDED"),
        "/RECORDS_MISSING": _row(code, said + "{error}", grpc="FAILED_PRECONDITION"),
        "": _row(code, said + "{error}"),
    }


_SCHEDULE = _failed("SCHEDULE_JOB", "schedule job")
_SCHEDULING = "failed to schedule job due to: rpc error: code = "
_GETTING = "failed to {} job due to: rpc error: code = NotFound desc = {{error}}"

ROWS: Mapping[str, Row] = {
    "jobs/JOB_EMPTY": _refused("EMPTY", "Job is empty"),
    "jobs/JOB_NAME_EMPTY": _refused("JOB_NAME_EMPTY", "Name is empty"),
    "jobs/JOB_SCHEDULE_EMPTY": _refused("SCHEDULE_EMPTY", "Schedule is empty"),
    "jobs/JOB_NAME_IN_BODY": _refused("JOB_NAME", "Set the job name in the url only"),
    "jobs.schedule/JOB_EXISTS": _SCHEDULE[""]._replace(
        status=409, grpc="ALREADY_EXISTS", text=_SCHEDULING + "AlreadyExists desc = {error}"
    ),
    "jobs.schedule/JOB_SCHEDULE_INVALID": _SCHEDULE[""]._replace(text=_SCHEDULING + "Unknown desc = {error}"),
    "jobs.get/JOB_NOT_FOUND": _row("DAPR_SCHEDULER_GET_JOB", _GETTING.format("get")),
    "jobs.list/JOBS_TOO_MANY": _row("DAPR_SCHEDULER_LIST_JOBS", "{error}", grpc="RESOURCE_EXHAUSTED"),
    "jobs.run/JOB_NOT_FOUND": _row("DAPR_SCHEDULER_RUN_JOB", _GETTING.format("run"), 404, "NOT_FOUND"),
    "jobs.run/APP_UNREACHABLE": _row("DAPR_SCHEDULER_RUN_JOB", "failed to run job due to: {error}", 503, "UNAVAILABLE"),
    **{
        f"jobs.{method}{end}": row
        for method, rows in (
            ("schedule", _SCHEDULE),
            ("get", _failed("GET_JOB", "get job")),
            ("delete", _failed("DELETE_JOB", "delete job")),
            ("delete_by_prefix", _failed("DELETE_JOB", "delete job")),
            ("list", _failed("LIST_JOBS", "list jobs")),
            ("run", _failed("RUN_JOB", "run job")),
        )
        for end, row in rows.items()
    },
}
