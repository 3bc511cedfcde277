"""What clients are told of failures of jobs: rows of the table in ``gateway/errors.py``.

Source: Dapr 1.18, its jobs API; the words in front of a reason are those of the client of its scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.error_row import Row

__all__ = ["ROWS"]


def _row(code: str, text: str, status: int = 500, grpc: str = "INTERNAL") -> Row:
    return Row(status, grpc, code, text, code, metadata=(("appID", "{app_id}"), ("namespace", "{namespace}")))


def _refused(code: str, text: str) -> Row:
    return _row(code, text, 400, "INVALID_ARGUMENT")


def _of(method: str, code: str, what: str, **known: tuple[int, str, str]) -> Mapping[str, Row]:
    """Make the rows of a method: those of all of them, and those of what it alone fails with."""
    failures = {
        "DEADLINE_EXCEEDED": (500, "DEADLINE_EXCEEDED", "{error}"),
        "RECORDS_MISSING": (500, "FAILED_PRECONDITION", "{error}"),
        **known,
    }
    said = f"failed to {what} due to: "
    rows = {
        f"jobs.{method}/{name}": _row(code, said + text, status, grpc)
        for name, (status, grpc, text) in failures.items()
    }
    return {**rows, f"jobs.{method}": _row(code, said + "{error}")}


_NAMED = {"BAD_ARGUMENT": (400, "INVALID_ARGUMENT", "{error}")}  # Who names one may name what cannot be.
_AS = "rpc error: code = {} desc = {{error}}"

ROWS: Mapping[str, Row] = {
    "jobs/JOB_EMPTY": _refused("DAPR_SCHEDULER_EMPTY", "Job is empty"),
    "jobs/JOB_NAME_EMPTY": _refused("DAPR_SCHEDULER_JOB_NAME_EMPTY", "Name is empty"),
    "jobs/JOB_SCHEDULE_EMPTY": _refused("DAPR_SCHEDULER_SCHEDULE_EMPTY", "Schedule is empty"),
    "jobs/JOB_NAME_IN_BODY": _refused("DAPR_SCHEDULER_JOB_NAME", "Set the job name in the url only"),
    **_of(
        "schedule",
        "DAPR_SCHEDULER_SCHEDULE_JOB",
        "schedule job",
        JOB_EXISTS=(409, "ALREADY_EXISTS", _AS.format("AlreadyExists")),
        JOB_SCHEDULE_INVALID=(500, "INTERNAL", _AS.format("Unknown")),
        **_NAMED,
    ),
    **_of(
        "get", "DAPR_SCHEDULER_GET_JOB", "get job", JOB_NOT_FOUND=(500, "INTERNAL", _AS.format("NotFound")), **_NAMED
    ),
    "jobs/JOB_NOT_FOUND": Row(404, "NOT_FOUND", "ERR_JOB_NOT_FOUND"),  # Where the reference has no such call.
    **_of("delete", "DAPR_SCHEDULER_DELETE_JOB", "delete job", **_NAMED),
    **_of("delete_by_prefix", "DAPR_SCHEDULER_DELETE_JOB", "delete jobs"),
    **_of(
        "list", "DAPR_SCHEDULER_LIST_JOBS", "list jobs", JOBS_TOO_MANY=(500, "RESOURCE_EXHAUSTED", "{error}"), **_NAMED
    ),
    **_of(
        "run",
        "ERR_JOB_RUN",
        "run job",
        JOB_NOT_FOUND=(404, "NOT_FOUND", "{error}"),
        APP_UNREACHABLE=(503, "UNAVAILABLE", "{error}"),
        **_NAMED,
    ),
}
