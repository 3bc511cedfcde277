"""Answers of workers over HTTP, read from JSON into values (docs/workflow-http.md).

An answer to a turn holds all that the workflow's code has asked for since it began, in order: so a worker needs no
memory, and the engine compares it with the history. Texts of the application stay as they were written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from operator import attrgetter
from typing import Annotated, TypeVar

import msgspec
import orjson

from mesh.address import app_id_problem
from mesh.values import is_instant, parse_duration, parse_instant
from mesh.workflows.actions import (
    MAX_ACTIONS,
    Action,
    Answer,
    Complete,
    CreateChild,
    CreateDetached,
    CreateTimer,
    ScheduleTask,
    SendEvent,
    Wait,
)
from mesh.workflows.events import EventRaised, Failure, Moment, Retry
from mesh.workflows.operations import MEMBERS, PREFIX
from mesh.workflows.propagation import SCOPES
from mesh.workflows.state import Status
from mesh.workflows.worker import TurnWork

__all__ = ["AnswerInvalidError", "failed", "failure_of", "read_answer"]

ANSWERED = "json actions"
MAX_CAUSES = 10
MAX_MESSAGE = 4096
MAX_STACK = 65536
MAX_RETRY_ATTEMPTS = 1_000_000
MAX_TASK = 2**31 - 2  # The end of an execution has the next one, and numbers have 32 bits for workers of gRPC.
_ABSENT = msgspec.Raw()
_SCOPES: Mapping[str, int] = {name: scope for scope, name in SCOPES.items()}
_PLACE = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>[^`]*)`\Z", re.DOTALL)
_T = TypeVar("_T")
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class AnswerInvalidError(Exception):
    """An answer of a worker cannot be understood; the text names the field."""


class _Retry(msgspec.Struct, forbid_unknown_fields=True):
    attempts: Annotated[int, msgspec.Meta(ge=1, le=MAX_RETRY_ATTEMPTS)]
    first: str = "1s"
    factor: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 1.0
    max: str | None = None
    within: str | None = None
    never: tuple[str, ...] = msgspec.field(default=(), name="except")


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""
    stack: str | None = None
    final: bool = False
    cause: _Error | None = None


class _Action(msgspec.Struct, forbid_unknown_fields=True):
    """What an action may have; which of it one of a kind has is in ``_KINDS``."""

    task: Annotated[int, msgspec.Meta(ge=1, le=MAX_TASK)] | None = None
    activity: _Text | None = None
    timer: _Text | None = None
    wait: _Text | None = None
    workflow: _Text | None = None
    start: _Text | None = None
    send: _Text | None = None
    operation: _Text | None = None
    input: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    retry: _Retry | None = None
    version: str | None = None
    app: str | None = None
    propagate: str | None = None
    id: str | None = None
    to: _Text | None = None
    # Of operations, whose worker reads them.
    method: msgspec.Raw = _ABSENT
    path: msgspec.Raw = _ABSENT
    headers: msgspec.Raw = _ABSENT
    pubsub: msgspec.Raw = _ABSENT
    topic: msgspec.Raw = _ABSENT
    contentType: msgspec.Raw = _ABSENT
    metadata: msgspec.Raw = _ABSENT
    binding: msgspec.Raw = _ABSENT
    command: msgspec.Raw = _ABSENT
    store: msgspec.Raw = _ABSENT
    key: msgspec.Raw = _ABSENT
    value: msgspec.Raw = _ABSENT
    type: msgspec.Raw = _ABSENT


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    actions: list[msgspec.Raw] = []
    status: msgspec.Raw = _ABSENT
    version: str | None = None
    patches: tuple[str, ...] = ()
    complete: msgspec.Raw = _ABSENT
    fail: _Error | None = None
    continueAsNew: msgspec.Raw = _ABSENT
    keepEvents: bool = True


_decode = msgspec.json.Decoder(_Answer).decode
_decode_action = msgspec.json.Decoder(_Action).decode
_decode_error = msgspec.json.Decoder(_Error).decode
_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_answer(body: bytes, work: TurnWork) -> Answer:
    """Read the answer to a turn.

    What it begins with is mostly what the answer before began with, byte by byte: that is in the history already, and
    is not read again. Else all of it is compared with the history.

    Raises:
        AnswerInvalidError: It is none.
    """
    given = _read(_decode, body, "")
    if len(given.actions) > MAX_ACTIONS:
        raise AnswerInvalidError(f"actions: {len(given.actions)} are more than {MAX_ACTIONS}; continue as new in time")
    written = list(map(bytes, given.actions))
    known, waits = _known(work, written) if given.continueAsNew is _ABSENT else (0, [])
    now = work.new[0].at
    actions: list[Action] = []
    taken: dict[int, int] = {}
    for index in range(known, len(written)):
        at = f"actions[{index}]"
        each = _read(_decode_action, written[index], at)
        number = each.task or index + 1
        if (first := taken.setdefault(number, index)) != index:
            raise AnswerInvalidError(f"{at}.task: {number} is that of actions[{first}] already")
        actions.append(_action(each, number, at, now))
        if each.wait is not None:
            waits.append(each.wait)
    end = _end(given, max(max(taken, default=0), len(written)) + 1, actions, work)
    if end is not None:
        actions.append(end)
    status = _text(given.status, "status")
    answer = Answer(tuple(actions), status, given.version, given.patches, whole=not known, waits=tuple(waits))
    work.rendered[ANSWERED] = [b"%d" % work.number, b"%d" % len(written), _digest(written), *map(str.encode, waits)]
    return answer


def _known(work: TurnWork, written: Sequence[bytes]) -> tuple[int, list[str]]:
    """Tell how many actions are those of the answer to the turn before, which was committed, and their waits."""
    number, count, digest, *waits = work.rendered.get(ANSWERED, (b"0", b"0", b""))
    known = int(count) if int(number) == work.number - 1 else 0
    if known and known <= len(written) and _digest(written[:known]) == digest:
        return known, list(map(bytes.decode, waits))
    return 0, []


def _digest(written: Sequence[bytes]) -> bytes:
    return blake2b(b",".join(written), digest_size=16).digest()


def _read(decode: Callable[[bytes], _T], data: bytes, at: str) -> _T:
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        found = _PLACE.fullmatch(str(error))
        what, where = (str(error), "") if found is None else (found["what"], found["where"])
        place = ".".join(filter(None, (at, where))).replace(".[", "[") or "the answer"
        raise AnswerInvalidError(f"{place}: {what[:1].lower()}{what[1:]}") from None
    except _NO_JSON as error:
        raise AnswerInvalidError(f"{at or 'the answer'}: no JSON: {error}") from None


def failed(failure: Failure) -> Answer:
    """Give the answer in the place of one that there is not: the instance fails."""
    return Answer((Complete(-1, Status.FAILED, failure=failure),))


def failure_of(body: bytes, kind: str, otherwise: str, *, final: bool) -> Failure:
    """Read why something failed: an object with ``type``, ``message`` and ``stack``, or a text.

    Args:
        body: What the application answered.
        kind: The type of a failure that says none.
        otherwise: Its text likewise.
        final: Whether no retry can mend it; the application may say so itself.
    """
    try:
        given = _decode_error(body)
    except _NO_JSON:
        text = body[:MAX_MESSAGE].decode(errors="replace").strip()
        return Failure(kind, text or otherwise, final=final)
    return _failure(given, kind, otherwise, final=final)


def _failure(given: _Error, kind: str, otherwise: str, *, final: bool = False, depth: int = 0) -> Failure:
    inner = None if given.cause is None or depth >= MAX_CAUSES else _failure(given.cause, kind, "", depth=depth + 1)
    stack = given.stack[:MAX_STACK] if given.stack else None
    message = given.message[:MAX_MESSAGE] or otherwise
    return Failure(given.type[:MAX_MESSAGE] or kind, message, stack, inner, final or given.final)


def _text(raw: msgspec.Raw, at: str) -> str | None:
    """Give a value as it was written; None where there is none."""
    if raw is _ABSENT:
        return None
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise AnswerInvalidError(f"{at}: no UTF-8: {error.reason}") from None


# Actions


def _action(given: _Action, number: int, at: str, now: float) -> Action:
    kinds = [kind for kind in _KINDS if getattr(given, kind) is not None]
    if len(kinds) != 1:
        there = " and ".join(kinds) or "none"
        raise AnswerInvalidError(f"{at}: needs one of {', '.join(_KINDS)}, and has {there}")
    make, members = _KINDS[kinds[0]]
    what = kinds[0]
    foreign = _FOREIGN[what](given) != _NOTHING[what]
    if given.operation is not None:
        members, what = _of_operation(given.operation, f"{at}.operation") | {"retry"}, given.operation
    for name in _OTHERS if foreign else ():
        value = getattr(given, name)
        if value is not None and value is not _ABSENT and name not in members:
            raise AnswerInvalidError(f"{at}.{name}: {what} has no such member")
    # What an operation calls may also be an endpoint, or in another namespace.
    if given.app is not None and given.operation is None and (problem := app_id_problem(given.app)):
        raise AnswerInvalidError(f"{at}.app: {problem}")
    return make(given, number, at, now)


def _task(given: _Action, number: int, at: str, _: float) -> Action:
    text = _text(given.input, f"{at}.input")
    retry = _retry(given.retry, f"{at}.retry")
    scope = _scope(given.propagate, f"{at}.propagate")
    return ScheduleTask(
        number, given.activity or "", text, given.version, app=given.app, retry=retry, propagation=scope
    )


def _operation(given: _Action, number: int, at: str, _: float) -> Action:
    name = given.operation or ""
    members = {
        member: orjson.Fragment(_text(value, f"{at}.{member}") or "") if isinstance(value, msgspec.Raw) else value
        for member in _OTHERS
        if member in MEMBERS[PREFIX + name] and (value := getattr(given, member)) not in (None, _ABSENT)
    }
    return ScheduleTask(number, PREFIX + name, orjson.dumps(members).decode(), retry=_retry(given.retry, f"{at}.retry"))


def _timer(given: _Action, number: int, at: str, now: float) -> Action:
    return CreateTimer(number, _moment(given.timer or "", f"{at}.timer", now))


def _wait(given: _Action, number: int, at: str, _: float) -> Action:
    return Wait(number, given.wait or "")


def _child(given: _Action, number: int, at: str, _: float) -> Action:
    text = _text(given.input, f"{at}.input")
    scope = _scope(given.propagate, f"{at}.propagate")
    return CreateChild(number, given.id or "", given.workflow or "", text, given.version, given.app, propagation=scope)


def _start(given: _Action, number: int, at: str, _: float) -> Action:
    if not given.id:
        raise AnswerInvalidError(f"{at}.id: is needed for start: the instance's")
    text = _text(given.input, f"{at}.input")
    return CreateDetached(number, given.id, given.start or "", text, given.version, app=given.app)


def _send(given: _Action, number: int, at: str, _: float) -> Action:
    if given.to is None:
        raise AnswerInvalidError(f"{at}.to: is needed for send: the id of an instance")
    return SendEvent(number, given.to, given.send or "", _text(given.data, f"{at}.data"), given.app)


_KINDS: dict[str, tuple[Callable[[_Action, int, str, float], Action], frozenset[str]]] = {
    "activity": (_task, frozenset({"input", "retry", "version", "app", "propagate"})),
    "timer": (_timer, frozenset()),
    "wait": (_wait, frozenset()),
    "workflow": (_child, frozenset({"input", "id", "version", "app", "propagate"})),
    "operation": (_operation, frozenset()),
    "send": (_send, frozenset({"to", "data", "app"})),
    "start": (_start, frozenset({"input", "id", "version", "app"})),
}
_OTHERS = tuple(name for name in _Action.__struct_fields__ if name not in _KINDS and name != "task")
# All that a kind has not, got at once, as most actions have none of it; and what that is for one that has none.
_FOREIGN = {kind: attrgetter(*(name for name in _OTHERS if name not in _KINDS[kind][1])) for kind in _KINDS}
_NOTHING = {kind: foreign(_Action()) for kind, foreign in _FOREIGN.items()}


def _of_operation(name: str, at: str) -> frozenset[str]:
    members = MEMBERS.get(PREFIX + name)
    if members is None:
        there = ", ".join(each.removeprefix(PREFIX) for each in MEMBERS)
        raise AnswerInvalidError(f"{at}: there is no '{name[:100]}'; there are {there}")
    return members


def _scope(name: str | None, at: str) -> int | None:
    if name is None or name in _SCOPES:
        return None if name is None else _SCOPES[name]
    raise AnswerInvalidError(f"{at}: there is no '{name[:100]}'; there are {', '.join(_SCOPES)}")


def _retry(given: _Retry | None, at: str) -> Retry | None:
    if given is None:
        return None
    longest = None if given.max is None else _duration(given.max, f"{at}.max")
    within = None if given.within is None else _duration(given.within, f"{at}.within")
    return Retry(given.attempts, _duration(given.first, f"{at}.first"), given.factor, longest, within, given.never)


def _duration(text: str, at: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise AnswerInvalidError(f"{at}: {error}") from None


def _moment(text: str, at: str, now: float) -> Moment:
    """Give the time that a text names: a duration from now on, or an instant."""
    try:
        at_seconds = parse_instant(text) if is_instant(text) else now + parse_duration(text)
    except ValueError as error:
        raise AnswerInvalidError(f"{at}: {error}") from None
    whole, micros = divmod(round(at_seconds * 1e6), 10**6)
    return whole, micros * 1000


# How it ends


def _end(given: _Answer, number: int, actions: Sequence[Action], work: TurnWork) -> Complete | None:
    ends = [
        name
        for name, there in (
            ("complete", given.complete is not _ABSENT),
            ("fail", given.fail is not None),
            ("continueAsNew", given.continueAsNew is not _ABSENT),
        )
        if there
    ]
    if len(ends) > 1:
        raise AnswerInvalidError(f"the answer: {' and '.join(ends)} are two ends")
    if given.fail is not None:
        failure = _failure(given.fail, "WorkflowFailed", "the workflow has failed")
        return Complete(number, Status.FAILED, failure=failure)
    if given.complete is not _ABSENT:
        return Complete(number, Status.COMPLETED, _text(given.complete, "complete"))
    if given.continueAsNew is _ABSENT:
        return None
    carryover = _unused(actions, work) if given.keepEvents else ()
    result = _text(given.continueAsNew, "continueAsNew")
    return Complete(number, Status.CONTINUED_AS_NEW, result, carryover=carryover, version=given.version)


def _unused(actions: Sequence[Action], work: TurnWork) -> tuple[EventRaised, ...]:
    """Give the events that no wait took: each takes the first one of its name that is left."""
    waits = Counter(each.name for each in actions if isinstance(each, Wait))
    left: list[EventRaised] = []
    for event in (*work.past, *work.new):
        if isinstance(event, EventRaised):
            if waits[event.name] > 0:
                waits[event.name] -= 1
            else:
                left.append(event)
    return tuple(left)
