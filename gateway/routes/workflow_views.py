"""``mesh/workflows``: what ``mesh workflow`` lists and shows, and what it asks for beyond the reference's API."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from typing import cast

from gateway.errors import APIError, bad_request, malformed
from gateway.http.response import Answered, json_response
from gateway.routes.request import deadline_of, every, members, query_of, raw_member, read_body, read_json
from gateway.routes.route import Asked, Route
from gateway.routes.workflow_events import shown_event, shown_text
from gateway.routes.workflows import (
    check_new_id,
    of_app,
    properties,
    refused,
    started,
    status_name,
    text_of,
    timestamp,
)
from mesh.blocks.workflows import (
    HISTORY,
    LIST,
    MAX_PAGE,
    PURGE,
    PURGE_MANY,
    RERUN,
    RESUME,
    SHOW,
    SUSPEND,
    TERMINATE,
    WAIT,
    History,
    HistoryPage,
    List,
    Page,
    Purge,
    PurgeMany,
    Rerun,
    Resume,
    Show,
    Shown,
    Start,
    Suspend,
    Terminate,
    Wait,
)
from mesh.errors import DeadlineExceededError
from mesh.operation import Method
from mesh.spelling import did_you_mean
from mesh.values import is_instant, parse_duration, parse_instant, parse_whole
from mesh.workflows.errors import WorkflowExistsError, WorkflowNotEndedError, WorkflowNotFoundError
from mesh.workflows.messages import Told
from mesh.workflows.state import ENDED, Awaited, Status, View
from mesh.workflows.waiting import Child, Task, Timer, Waiting

__all__ = ["MAX_EVENTS", "MAX_WAIT", "ROUTES"]

GET, POST = frozenset({"GET"}), frozenset({"POST"})
MAX_EVENTS = 1000
MAX_WAIT = 3600.0
_VALUES = frozenset({"customStatus", "failure", "input", "output", "properties", "tags"})


async def listed(asked: Asked) -> Answered:
    """List instances, a page of them."""
    query = query_of(asked.query)
    page = cast(
        "Page",
        await asked.run(
            LIST,
            _app(asked, query),
            List(
                _statuses(",".join(every(asked.query, "status"))),
                query.get("name", ""),
                _since(query.get("since")),
                query.get("after", ""),
                _whole(query, "limit", 100, MAX_PAGE),
            ),
        ),
    )
    answer: dict[str, object] = {"workflows": [_told(asked, _row(each)) for each in page.views]}
    if page.after:
        answer["after"] = page.after
    return json_response(answer)


async def start(asked: Asked) -> Answered:
    """Start an instance, perhaps later, or in a version."""
    body = await read_body(asked.request)
    given = await _given(asked, "name", "instanceID", "input", "version", "startTime")
    wanted = Start(
        _text(given, "name") or "",
        _text(given, "instanceID") or "",
        _json(given, body, "input"),
        _text(given, "version"),
        _instant(_text(given, "startTime"), "startTime"),
    )
    made = await started(asked, _app(asked), wanted, deadline_of(asked.request))
    return json_response({"instanceID": made}, 202)


async def shown(asked: Asked) -> Answered:
    """Tell of an instance and of what it waits for; with ``wait`` once it has ended, or that time is over."""
    query, id_ = query_of(asked.query), asked.text(0)
    app_id, wait = _app(asked, query), query.get("wait")
    if wait is not None:
        try:
            seconds = parse_duration(wait)
        except ValueError as error:
            raise bad_request(f"wait: {error}") from None
        try:
            await asked.run(WAIT, app_id, Wait(id_, texts=False), time.time() + min(seconds, MAX_WAIT))
        except APIError as error:
            if not isinstance(error.__cause__, DeadlineExceededError):
                raise
    return json_response(_told(asked, _shown(cast("Shown", await asked.run(SHOW, app_id, Show(id_))))))


async def history(asked: Asked) -> Answered:
    """Give what has happened to an instance, a page of it."""
    query, id_ = query_of(asked.query), asked.text(0)
    after, limit = _whole(query, "after", 0, None, least=0), _whole(query, "limit", MAX_EVENTS, MAX_EVENTS)
    page = cast("HistoryPage", await asked.run(HISTORY, _app(asked, query), History(id_, after, limit)))
    answer: dict[str, object] = {
        **_row(page.view),
        "events": [shown_event(each) for each in page.events],
        "total": page.total,
    }
    if page.events and after + len(page.events) < page.total:
        answer["after"] = after + len(page.events)
    return json_response(answer)


async def rerun(asked: Asked) -> Answered:
    """Run an instance again, from one of its events."""
    body = await read_body(asked.request)
    given = await _given(asked, "event", "newInstanceID", "input", "newChildID")
    event = given.get("event")
    if event is not None and (not isinstance(event, int) or isinstance(event, bool) or event < 0):
        raise malformed("event must be the number of an event")
    wanted = Rerun(
        asked.text(0),
        event,
        _text(given, "newInstanceID") or "",
        _json(given, body, "input"),
        overwrite="input" in given,
        new_child_id=_text(given, "newChildID"),
    )
    check_new_id(asked, wanted.new_id)
    made = await asked.run(RERUN, _app(asked), wanted, deadline_of(asked.request))
    return json_response({"instanceID": made}, 202)


async def terminate(asked: Asked) -> Answered:
    """End an instance, with an output; its children too, unless that is not wanted."""
    body = await read_body(asked.request)
    given = await _given(asked, "output", "recursive")
    recursive = _flag(given, "recursive", default=True)
    return await _tell(asked, TERMINATE, Terminate(asked.text(0), _json(given, body, "output"), recursive))


async def pause(asked: Asked) -> Answered:
    """Have an instance begin no turn."""
    given = await _given(asked, "reason")
    return await _tell(asked, SUSPEND, Suspend(asked.text(0), _text(given, "reason")))


async def resume(asked: Asked) -> Answered:
    """Have an instance go on."""
    given = await _given(asked, "reason")
    return await _tell(asked, RESUME, Resume(asked.text(0), _text(given, "reason")))


async def purge(asked: Asked) -> Answered:
    """Forget an instance, and its children unless that is not wanted."""
    given = await _given(asked, "force", "recursive")
    force, recursive = _flag(given, "force"), _flag(given, "recursive", default=True)
    wanted = Purge(asked.text(0), recursive, force)
    told = cast("Told", await asked.run(PURGE, _app(asked), wanted, deadline_of(asked.request)))
    return json_response({"purged": told.count, "complete": told.complete})


async def purge_many(asked: Asked) -> Answered:
    """Forget instances that have ended: those of some statuses, or that ended long enough ago, up to a number."""
    given = await _given(asked, "statuses", "olderThan", "limit", "recursive", "force")
    statuses, older, limit = given.get("statuses"), _text(given, "olderThan"), given.get("limit", MAX_PAGE)
    if statuses is not None and not (
        isinstance(statuses, list) and statuses and all(isinstance(each, str) for each in statuses)
    ):
        raise malformed("statuses must be a list of statuses, with one at least")
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_PAGE:
        raise malformed(f"limit must be a whole number from 1 to {MAX_PAGE}")
    force, chosen = _flag(given, "force"), _statuses(",".join(statuses or ()))
    if open_ := [Status(each).name for each in chosen if each not in ENDED and not force]:
        raise bad_request(f"statuses: one that is {open_[0]} has not ended; with force it is forgotten all the same")
    wanted = PurgeMany(
        chosen,
        ended_before=_since(older, "olderThan"),
        limit=limit,
        recursive=_flag(given, "recursive"),
        force=force,
    )
    told = cast("Told", await asked.run(PURGE_MANY, _app(asked), wanted, deadline_of(asked.request)))
    return json_response({"purged": told.count, "complete": told.complete})


# What is read


async def _given(asked: Asked, *names: str) -> dict[str, object]:
    """Take the members of the body, of those that there are: a misspelt one would do more than was asked for."""
    body = await read_json(asked.request)
    given = members({} if body is None else body, "the body")
    if unknown := next(iter(given.keys() - {name.lower() for name in names}), None):
        guess = did_you_mean(unknown, names)
        hint = f"did you mean {guess}?" if guess else f"one of {', '.join(names)}"
        raise malformed(f"there is no member {unknown[:50]}; {hint}")
    return given


async def _tell(asked: Asked, method: Method, wanted: Suspend | Resume | Terminate) -> Answered:
    await asked.run(method, _app(asked), wanted, deadline_of(asked.request))
    return json_response({}, 202)


def _plainly(answer: Callable[[Asked], Awaitable[Answered]]) -> Callable[[Asked], Awaitable[Answered]]:
    """Have failures the statuses of HTTP: the routes of Dapr have its own, which are mostly 500."""

    @wraps(answer)
    async def answered(asked: Asked) -> Answered:
        try:
            return await answer(asked)
        except APIError as error:
            if isinstance(error.__cause__, WorkflowNotFoundError):
                raise refused(asked, "WORKFLOW_NOT_FOUND", id=asked.text(0)) from error
            if isinstance(error.__cause__, WorkflowExistsError | WorkflowNotEndedError):
                raise APIError(409, error.code, error.message) from error
            raise

    return answered


def _app(asked: Asked, query: Mapping[str, str] | None = None) -> str:
    app_id = of_app(asked, (query_of(asked.query) if query is None else query).get("appID"))
    if not asked.api.values and app_id != asked.api.caller.app_id:  # Whoever asks is not to see more by asking here.
        raise APIError(403, "ERR_PERMISSION_DENIED", f"ask a node of {app_id[:200]} itself")
    return app_id


def _whole(query: Mapping[str, str], name: str, default: int, most: int | None, *, least: int = 1) -> int:
    try:
        return parse_whole(query.get(name, str(default)), least=least, most=most)
    except ValueError as error:
        raise bad_request(f"{name} is {error}") from None


def _statuses(text: str) -> tuple[int, ...]:
    """Read names of statuses, between commas and in any case."""
    names = [each.strip().upper() for each in text.split(",") if each.strip()]
    for name in names:
        if name not in Status.__members__:
            guess = did_you_mean(name, Status.__members__)
            hint = f"did you mean {guess}?" if guess else f"one of {', '.join(Status.__members__)}"
            raise bad_request(f"there is no status {name[:50]}; {hint}")
    return tuple(dict.fromkeys(int(Status[name]) for name in names))


def _since(text: str | None, name: str = "since") -> float | None:
    """Read a time: an instant, or how long it is ago; gives Unix time."""
    if not text:
        return None
    if is_instant(text):
        return _instant(text, name)
    try:
        return time.time() - parse_duration(text)
    except ValueError as error:
        raise bad_request(f"{name}: {error}, nor a time as 2030-01-01T00:00:00Z") from None


def _instant(text: str | None, name: str) -> float | None:
    try:
        return None if text is None else parse_instant(text)
    except ValueError as error:
        raise bad_request(f"{name}: {error}") from None


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name.lower())
    if value is None or isinstance(value, str):
        return value
    raise malformed(f"{name} must be a string")


def _flag(given: Mapping[str, object], name: str, *, default: bool = False) -> bool:
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise malformed(f"{name} must be true or false")
    return value


def _json(given: Mapping[str, object], body: bytes, name: str) -> str | None:
    """Take a member as JSON, as it is written."""
    return text_of(raw_member(body, name) or b"", name) if name in given else None


# What is shown


def _row(view: View) -> dict[str, object]:
    state = view.state
    told: dict[str, object] = {
        "instanceID": view.id,
        "workflowName": state.name,
        "runtimeStatus": status_name(state.status),
        "createdAt": timestamp(state.created),
        "lastUpdatedAt": timestamp(state.updated),
    }
    more: dict[str, object | None] = {
        "endedAt": None if state.ended is None else timestamp(state.ended),
        "version": state.version,
        "customStatus": shown_text(state.custom_status),
        "parent": None if state.parent is None else {"appID": state.parent.app, "instanceID": state.parent.instance},
        "waitingFor": _waiting(view),
        "waitsForEvents": _awaited(state.awaited) or None,
    }
    return {**told, **_there(more)}


def _waiting(view: View, waiting: Waiting | None = None) -> dict[str, object] | None:
    state = view.state
    if state.ended is not None:
        return None
    found = {
        "activities": state.open_tasks,
        "children": state.open_children,
        "timers": 0 if waiting is None else waiting.all_timers,
        "raised": 0 if waiting is None else waiting.all_raised,
        "nextDue": None if state.due is None or not math.isfinite(state.due) else timestamp(state.due),
    }
    return {name: value for name, value in found.items() if value} or None


def _shown(found: Shown) -> dict[str, object]:
    view, state, waiting = found.view, found.view.state, found.waiting or Waiting()
    failure = view.failure
    told: dict[str, object | None] = {
        "waitingFor": _waiting(view, found.waiting),
        "input": shown_text(view.input),
        "output": shown_text(view.output),
        "failure": None if failure is None else {"type": failure.type, "message": failure.message},
        "stalled": view.stalled,
        "tags": view.tags or None,
        "startTime": None if view.scheduled is None else timestamp(view.scheduled),
        "properties": properties(view) or None,
        "workers": found.workers or None,
        "tasks": [_task(each, found.owner) for each in waiting.tasks] or None,
        "timers": [_timer(each) for each in waiting.timers] or None,
        "waitsForEvents": _awaited(waiting.events) or None,
        "children": [_child(each) for each in waiting.children] or None,
        "raised": [{"name": each.name, "at": timestamp(each.at)} for each in waiting.raised] or None,
    }
    kept: dict[str, object] = {
        "executionID": state.execution,
        "events": state.events,
        "turns": state.turns,
        "partition": found.partition,
        "owner": found.owner,
    }
    return {**_row(view), **_there(told), **kept}


def _task(task: Task, owner: str | None) -> dict[str, object]:
    return {
        "task": task.id,
        "activity": task.name,
        "appID": task.app,
        "since": timestamp(task.since),
        "attempt": task.attempt,
        "running": task.running,
        **_there(
            {
                "node": (task.node or owner) if task.running else None,
                "worker": task.worker or None,
                "due": None if task.due is None else timestamp(task.due),
            }
        ),
    }


def _timer(timer: Timer) -> dict[str, object]:
    told = {"task": timer.id, "since": timestamp(timer.since), "due": timestamp(timer.due)}
    return {**told, **_there({"event": timer.event or None, "retries": timer.retries or None})}


def _child(child: Child) -> dict[str, object]:
    return {
        "task": child.id,
        "workflow": child.name,
        "instanceID": child.instance,
        "appID": child.app,
        "since": timestamp(child.since),
    }


def _awaited(events: Sequence[Awaited]) -> list[dict[str, object]]:
    return [
        {"name": each.name, "since": timestamp(each.since), **({"count": each.count} if each.count > 1 else {})}
        for each in events
        if each.count > 0
    ]


def _told(asked: Asked, members: dict[str, object]) -> dict[str, object]:
    """Leave out applications' values where these are not told."""
    return members if asked.api.values else {name: each for name, each in members.items() if name not in _VALUES}


def _there(members: Mapping[str, object | None]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}


_ONE = "mesh/workflows/{id}"
_ACTIONS = {"rerun": rerun, "terminate": terminate, "suspend": pause, "resume": resume, "purge": purge}

ROUTES: Sequence[Route] = (
    Route("mesh/workflows", listed, GET, api="workflows"),
    Route("mesh/workflows", _plainly(start), POST, api="workflows"),
    Route("mesh/workflows/purge", purge_many, POST, api="workflows"),
    Route(_ONE, _plainly(shown), GET, api="workflows"),
    Route(f"{_ONE}/history", _plainly(history), GET, api="workflows"),
    *(Route(f"{_ONE}/{name}", _plainly(answer), POST, api="workflows") for name, answer in _ACTIONS.items()),
)
