"""``workflows``: instances are started, looked at and told things; those of another application by ``appID``.

What a request is about is answered by the application's block, wherever its gateways are. The component's name in a
path counts for nothing, as for the reference.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import orjson

from gateway.errors import ERRORS, APIError, bad_request, malformed, told
from gateway.http.response import Answered, json_response
from gateway.routes.request import deadline_of, members, query_of, read_body
from gateway.routes.route import Asked, Asking, Route
from gateway.routes.rpc import RPC, Called
from mesh.address import app_id_problem
from mesh.blocks.workflows import (
    GET,
    PURGE,
    RAISE_EVENT,
    RESUME,
    START,
    SUSPEND,
    TERMINATE,
    Get,
    Purge,
    RaiseEvent,
    Resume,
    Start,
    Suspend,
    Terminate,
)
from mesh.operation import Method
from mesh.values import parse_instant
from mesh.workflows.state import Status, View

__all__ = [
    "check_new_id",
    "MAX_ID_BYTES",
    "RPCS",
    "ROUTES",
    "of_app",
    "properties",
    "refused",
    "started",
    "status_name",
    "text_of",
    "timestamp",
]

VERSIONS = ("v1.0", "v1.0-beta1", "v1.0-alpha1")
READ, POST = frozenset({"GET"}), frozenset({"POST"})
MAX_ID_BYTES = 64
FIRST, LAST = -62135596800.0, 253402300799.0  # The years 1 to 9999.
START_TIME = "dapr.workflow.start_time"
_OF_MESSAGE = ("instanceid", "workflowcomponent", "appid")


# HTTP


async def start(asked: Asked) -> Answered:
    """Start an instance; the body is its input, as it is."""
    query = query_of(asked.query)
    body = await read_body(asked.request)
    wanted = Start(asked.text(1), query.get("instanceID", ""), text_of(body, "input"))
    made = await started(asked, of_app(asked, query.get("appID")), wanted, deadline_of(asked.request))
    return json_response({"instanceID": made}, 202)


async def get(asked: Asked) -> Answered:
    """Tell of an instance."""
    view = await _get(asked, of_app(asked, query_of(asked.query).get("appID")), asked.text(1))
    state = view.state
    shown = {
        "instanceID": view.id,
        "workflowName": state.name,
        "createdAt": timestamp(state.created),
        "lastUpdatedAt": timestamp(state.updated),
        "runtimeStatus": status_name(state.status),
        "properties": properties(view),
    }
    return json_response(shown)


async def raise_event(asked: Asked) -> Answered:
    """Raise an event of an instance; the body is what it brings, as it is."""
    if not asked.text(2):
        raise refused(asked, "EVENT_NAME_MISSING")
    event = RaiseEvent(asked.text(1), asked.text(2), text_of(await read_body(asked.request), "data"))
    app_id = of_app(asked, query_of(asked.query).get("appID"))
    await asked.run(RAISE_EVENT, app_id, event, deadline_of(asked.request))
    return json_response({}, 202)


async def terminate(asked: Asked) -> Answered:
    """End an instance, and its children."""
    return await _told(asked, TERMINATE, Terminate(asked.text(1), recursive=True))


async def pause(asked: Asked) -> Answered:
    """Have an instance begin no turn."""
    return await _told(asked, SUSPEND, Suspend(asked.text(1)))


async def resume(asked: Asked) -> Answered:
    """Have an instance go on."""
    return await _told(asked, RESUME, Resume(asked.text(1)))


async def purge(asked: Asked) -> Answered:
    """Forget an instance that has ended, and its children."""
    return await _told(asked, PURGE, Purge(asked.text(1), recursive=True))


async def _told(asked: Asked, method: Method, wanted: object) -> Answered:
    """Do what needs no other word; a body is a message in JSON, of which all that counts stands in the path."""
    _check_message(await read_body(asked.request))
    await asked.run(method, of_app(asked, query_of(asked.query).get("appID")), wanted, deadline_of(asked.request))
    return json_response({}, 202)


def _check_message(body: bytes) -> None:
    if not body.strip():
        return
    try:
        given = members(orjson.loads(body), "the body")
    except orjson.JSONDecodeError as error:
        raise malformed(error) from None
    for name in _OF_MESSAGE:
        if not isinstance(given.get(name), str | None):
            raise malformed(f"{name} must be a string")


# gRPC


async def start_rpc(called: Called) -> object:
    """Start an instance."""
    message = called.message
    scheduled = None
    if START_TIME in message.options:
        try:
            scheduled = parse_instant(message.options[START_TIME])
        except ValueError as error:
            raise bad_request(f"the option {START_TIME}: {error}") from None
    input_ = text_of(message.input, "input")
    wanted = Start(message.workflow_name, message.instance_id, input_, scheduled=scheduled)
    return called.reply(instance_id=await started(called, of_app(called, message.app_id), wanted))


async def get_rpc(called: Called) -> object:
    """Tell of an instance."""
    view = await _get(called, of_app(called, called.message.app_id), called.message.instance_id)
    state = view.state
    shown = called.reply(
        instance_id=view.id,
        workflow_name=state.name,
        runtime_status=status_name(state.status),
        properties=properties(view),
    )
    for field, at in ((shown.created_at, state.created), (shown.last_updated_at, state.updated)):
        field.seconds, microseconds = _parts(at)
        field.nanos = microseconds * 1000
    return shown


async def raise_event_rpc(called: Called) -> object:
    """Raise an event of an instance."""
    message = called.message
    _check_given(called, message.instance_id)
    if not message.event_name:
        raise refused(called, "EVENT_NAME_MISSING")
    event = RaiseEvent(message.instance_id, message.event_name, text_of(message.event_data, "data"))
    await called.run(RAISE_EVENT, of_app(called, message.app_id), event)
    return called.reply()


async def terminate_rpc(called: Called) -> object:
    """End an instance, and its children."""
    return await _told_rpc(called, TERMINATE, Terminate(called.message.instance_id, recursive=True))


async def pause_rpc(called: Called) -> object:
    """Have an instance begin no turn."""
    return await _told_rpc(called, SUSPEND, Suspend(called.message.instance_id))


async def resume_rpc(called: Called) -> object:
    """Have an instance go on."""
    return await _told_rpc(called, RESUME, Resume(called.message.instance_id))


async def purge_rpc(called: Called) -> object:
    """Forget an instance that has ended, and its children."""
    return await _told_rpc(called, PURGE, Purge(called.message.instance_id, recursive=True))


async def _told_rpc(called: Called, method: Method, wanted: object) -> object:
    _check_given(called, called.message.instance_id)
    await called.run(method, of_app(called, called.message.app_id), wanted)
    return called.reply()


# Both


async def started(asking: Asking, app_id: str, wanted: Start, deadline: float | None = None) -> str:
    """Start an instance; gives its id. What its name and id may be is asked for here alone, as by the reference."""
    if not wanted.name:
        raise refused(asking, "NAME_MISSING")
    check_new_id(asking, wanted.id)
    return cast("str", await asking.run(START, app_id, wanted, deadline))


def check_new_id(asking: Asking, id_: str) -> None:
    """Raise ``APIError`` for an id that a caller may not give to an instance."""
    if len(id_.encode(errors="replace")) > MAX_ID_BYTES:
        raise refused(asking, "ID_TOO_LONG", MAX_ID_BYTES)
    if not all(each in "_-" or unicodedata.category(each)[0] == "L" or each.isdecimal() for each in id_):
        raise refused(asking, "ID_INVALID", id=id_)


async def _get(asking: Asking, app_id: str, id_: str) -> View:
    _check_given(asking, id_)
    view = cast("View | None", await asking.run(GET, app_id, Get(id_)))
    if view is None:
        raise refused(asking, "WORKFLOW_NOT_FOUND", id=id_)
    return view


def of_app(asking: Asking, app_id: str | None) -> str:
    """Give the application that is meant: the gateway's own where none is named; raises ``APIError`` for no app id."""
    own = asking.api.caller.app_id
    if not app_id or app_id == own:
        return own
    if app_id_problem(app_id):
        raise told(ERRORS["workflows/APP_ID_INVALID"], target=app_id)
    return app_id


def _check_given(asking: Asking, id_: str) -> None:
    if not id_:
        raise refused(asking, "ID_MISSING")


def refused(asking: Asking, what: str, error: object = None, id: str = "") -> APIError:
    """Make the failure of a request that is not passed on, or found nothing."""
    return told(ERRORS[f"workflows/{what}"], error, asking.api.caller.app_id, SimpleNamespace(id=id))


def text_of(body: bytes, what: str) -> str | None:
    """Take a text of the application; an empty one is none.

    Raises:
        APIError: It is no UTF-8, and so no text.
    """
    try:
        return body.decode() or None
    except UnicodeDecodeError:
        raise bad_request(f"the {what} is not UTF-8") from None


def status_name(status: int) -> str:
    """Give the name of a status; one of a newer version has none."""
    try:
        return Status(status).name
    except ValueError:
        return "UNKNOWN"


def properties(view: View) -> dict[str, str]:
    """Tell more of an instance, as far as there is more."""
    failure = view.failure
    found = {
        "custom_status": view.state.custom_status,
        "input": view.input,
        "output": view.output,
        "failure.error_type": None if failure is None else failure.type,
        "failure.error_message": None if failure is None else failure.message,
        "failure.stack_trace": None if failure is None else failure.stack,
    }
    return {f"dapr.workflow.{name}": value for name, value in found.items() if value is not None}


def _parts(seconds: float) -> tuple[int, int]:
    """Give whole seconds and microseconds of what can be told; what others chose may lie beyond all years."""
    whole, microseconds = divmod(round(min(max(seconds, FIRST), LAST) * 1_000_000), 1_000_000)
    return whole, microseconds


def timestamp(seconds: float) -> str:
    """Write Unix time as JSON of messages does: with no fraction, or one of three or six digits."""
    whole, microseconds = _parts(seconds)
    text = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{microseconds:06}".removesuffix("000") if microseconds else ""
    return f"{text}{fraction}Z"


def _rpc(name: str, answer: Callable[[Called], Awaitable[object]]) -> RPC:
    return RPC(f"{name}WorkflowBeta1", answer, "workflows", (f"{name}WorkflowAlpha1",))


RPCS = (
    _rpc("Start", start_rpc),
    _rpc("Get", get_rpc),
    _rpc("RaiseEvent", raise_event_rpc),
    _rpc("Terminate", terminate_rpc),
    _rpc("Pause", pause_rpc),
    _rpc("Resume", resume_rpc),
    _rpc("Purge", purge_rpc),
)

_INSTANCE = "workflows/{component}/{id}"

ROUTES = (
    Route("workflows/{component}/{name}/start", start, POST, VERSIONS),
    Route(_INSTANCE, get, READ, VERSIONS),
    Route(_INSTANCE + "/raiseEvent/{event}", raise_event, POST, VERSIONS),
    *(Route(f"{_INSTANCE}/{each.__name__}", each, POST, VERSIONS) for each in (terminate, pause, resume, purge)),
)
