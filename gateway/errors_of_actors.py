"""What clients are told of failures of actors: rows of the table in ``gateway/errors.py``.

Source: Dapr 1.18, its error tables, and what its sidecar answered.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.error_row import Row

__all__ = ["ROWS"]

_INVOKE = Row(500, "INTERNAL", "ERR_ACTOR_INVOKE_METHOD", "error invoke actor method: {error}")
_GET = Row(500, "INTERNAL", "ERR_ACTOR_STATE_GET", "error getting actor state: {error}")
_SAVE = Row(500, "INTERNAL", "ERR_ACTOR_STATE_TRANSACTION_SAVE", "error executing state transaction: {error}")
_TIMER = Row(500, "INTERNAL", "ERR_ACTOR_TIMER_CREATE", "error creating actor timer: {error}")
_REMINDER = Row(500, "INTERNAL", "ERR_ACTOR_REMINDER_CREATE", "error creating actor reminder: {error}")
_GET_REMINDER = Row(500, "INTERNAL", "ERR_ACTOR_REMINDER_GET", "error getting actor reminder: {error}")
_DELETE_REMINDER = Row(500, "INTERNAL", "ERR_ACTOR_REMINDER_DELETE", "error deleting actor reminder: {error}")
_STORE_MISSING = Row(500, "INTERNAL", "ERR_ACTOR_RUNTIME_NOT_FOUND")

ROWS: Mapping[str, Row] = {
    "actors/BAD_ARGUMENT": Row(400, "INVALID_ARGUMENT", "ERR_BAD_REQUEST", "invalid request: {error}"),
    "actors/ACTOR_TYPE_RESERVED": Row(403, "PERMISSION_DENIED", "ERR_ACTOR_TYPE_RESERVED"),
    "actors/ACTOR_STATE_MISSING": _STORE_MISSING,
    "actors/RECORDS_MISSING": _STORE_MISSING._replace(grpc="FAILED_PRECONDITION"),
    "actors/ACTOR_TYPE_NOT_HOSTED": Row(403, "PERMISSION_DENIED", "ERR_ACTOR_REMINDER_NON_HOSTED"),
    "actors/ACTOR_REMINDER_EXISTS": Row(409, "ALREADY_EXISTS", "ERR_ACTOR_REMINDER_ALREADY_EXISTS"),
    "actors/ACTOR_REMINDER_MISSING": Row(404, "NOT_FOUND", "ERR_ACTOR_REMINDER_NOT_FOUND"),
    "actors.invoke/ACTOR_STACK_DEPTH": Row(500, "RESOURCE_EXHAUSTED", "ERR_ACTOR_STACK_DEPTH"),
    "actors.invoke/ACTOR_BUSY": _INVOKE._replace(grpc="RESOURCE_EXHAUSTED"),
    "actors.invoke/ACTOR_NO_HOST": _INVOKE,
    "actors.invoke/ACTOR_MOVED": _INVOKE._replace(grpc="UNAVAILABLE"),
    "actors.invoke/DEADLINE_EXCEEDED": _INVOKE._replace(grpc="DEADLINE_EXCEEDED"),
    "actors.invoke/BROKER_ERROR": _INVOKE._replace(grpc="UNAVAILABLE"),
    "actors.invoke": _INVOKE,
    "actors.deactivate/ACTOR_NO_HOST": Row(
        404, "NOT_FOUND", "ERR_ACTOR_TYPE_NOT_HOSTED", "no application hosts the actor type {target}"
    ),
    "actors.deactivate": _INVOKE,
    "actors.show/ACTOR_TYPE_NOT_HOSTED": Row(
        404, "NOT_FOUND", "ERR_ACTOR_TYPE_NOT_HOSTED", "the application of this gateway does not host the type {target}"
    ),
    "actors.show": _GET,
    "actors.list_types": Row(500, "INTERNAL", "ERR_ACTOR_LIST", "error listing actors: {error}"),
    "actors.host/ACTOR_TYPE_TAKEN": Row(409, "ALREADY_EXISTS", "ERR_ACTOR_TYPE_HOSTED"),
    "actors.get_state/ACTOR_MOVED": _GET._replace(grpc="UNAVAILABLE"),
    "actors.get_state": _GET,
    "actors.transact/ACTOR_NOT_ACTIVE": Row(400, "INTERNAL", "ERR_ACTOR_INSTANCE_MISSING"),
    "actors.transact/ACTOR_TYPE_NOT_HOSTED": Row(
        400, "INTERNAL", "ERR_ACTOR_INSTANCE_MISSING", "actor instance is missing"
    ),
    "actors.transact/ACTOR_MOVED": _SAVE._replace(grpc="UNAVAILABLE"),
    "actors.transact": _SAVE,
    "actors.set_timer/ACTOR_TYPE_NOT_HOSTED": _TIMER._replace(
        text="error creating actor timer: actor instance is missing"
    ),
    "actors.set_timer": _TIMER,
    "actors.delete_timer": _TIMER._replace(code="ERR_ACTOR_TIMER_DELETE", text="error deleting actor timer: {error}"),
    "actors.set_reminder": _REMINDER,
    "actors.get_reminder": _GET_REMINDER,
    "actors.list_reminders": _GET_REMINDER,
    "actors.delete_reminder": _DELETE_REMINDER,
    "actors.delete_reminders": _DELETE_REMINDER,
}
