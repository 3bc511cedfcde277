"""Operations of the mesh as activities: names that begin with ``mesh.``, whichever worker runs the workflow.

They are run by the node that owns the instance, as its application: policies, scopes and access rules apply. Their
input is an object; what it may have is in ``MEMBERS``. An operation may be repeated, as any activity. What it asks
carries the activity's execution id, which is the same each time: ``mesh-idempotency-key`` for applications and actors,
the event's id of what is published.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec
import orjson

from mesh.errors import AppFailedError, BadArgumentError, MeshError
from mesh.event import is_json, media_type
from mesh.fields import TOKEN
from mesh.operation import UNTRACED, Caller, Context, Method, Operation, Trace
from mesh.workflows.events import Failure
from mesh.workflows.operations import IDEMPOTENCY_KEY, MEMBERS, PREFIX
from mesh.workflows.worker import TaskResult

if TYPE_CHECKING:
    from mesh.application import Headers
    from mesh.blocks.invocation import Answer
    from mesh.pipeline import Handler
    from mesh.store import Stored
    from mesh.workflows import actions
    from mesh.workflows.worker import TaskWork, TurnWork

__all__ = ["OperationsWorker"]

JSON = "application/json"
MAX_AT_ONCE = 1000
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_MESSAGE = 4096
AGAIN = frozenset({408, 425, 429})

_Members = Mapping[str, Any]
_written = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_PATH = re.compile(r"/[!-~]*")


class _StatusError(Exception):
    """An application answered an error; ``final`` where another call would not mend it."""

    def __init__(self, kind: str, text: str, *, final: bool) -> None:
        self.kind, self.final = kind, final
        super().__init__(text)


class OperationsWorker:
    """Runs operations; see ``mesh.workflows.worker.Worker``."""

    title = "mesh"
    max_turns = 0
    max_tasks = MAX_AT_ONCE

    def __init__(self, run: Handler, caller: Caller) -> None:
        """Use the node's pipeline.

        Args:
            run: Passes an operation through it.
            caller: The application that asks.
        """
        self.ended = asyncio.Event()
        self._run = run
        self._caller = caller
        self._operations: Mapping[str, Callable[[_Asked], Awaitable[object]]] = {
            "mesh.invoke": _invoke,
            "mesh.publish": _publish,
            "mesh.binding": _binding,
            "mesh.state.get": _get,
            "mesh.state.set": _set,
            "mesh.state.delete": _delete,
            "mesh.actor": _actor,
        }

    def runs_workflow(self, name: str) -> bool:
        """Run none."""
        return False

    def runs_activity(self, name: str) -> bool:
        """Run what begins with ``mesh.``, also to say that there is no such operation."""
        return name.startswith(PREFIX)

    def knows(self, instance: str) -> bool:
        """Know none."""
        return False

    async def turn(self, work: TurnWork) -> actions.Answer:
        """Run none."""
        raise NotImplementedError(work.name)

    async def task(self, work: TaskWork) -> TaskResult:
        """Run an operation; whatever fails is what came of it."""
        operation = self._operations.get(work.name)
        try:
            if operation is None:
                raise BadArgumentError(f"there is no operation {work.name[:100]}; there are {', '.join(MEMBERS)}")
            asked = _Asked(self._run, self._context(work), work)
            result = await operation(asked)
        except _StatusError as error:
            return TaskResult(failure=Failure(error.kind, str(error), final=error.final))
        except MeshError as error:
            return TaskResult(failure=Failure(error.code, str(error)[:MAX_MESSAGE], final=not error.retryable))
        return TaskResult(None if result is None else orjson.dumps(result).decode())

    def _context(self, work: TaskWork) -> Context:
        trace = UNTRACED if work.trace is None else Trace(work.trace.parent or None, work.trace.state)
        return Context(self._caller, None, *trace)


class _Asked:
    """An operation that is asked for."""

    __slots__ = ("_context", "_members", "_run", "_written", "key")

    def __init__(self, run: Handler, context: Context, work: TaskWork) -> None:
        self._run, self._context, self.key = run, context, work.execution_id
        self._members, self._written = _read(work)

    async def run(self, method: Method, target: str, arguments: object) -> object:
        return await self._run(Operation(method, target, arguments, self._context))

    def text(self, name: str, default: str | None = None) -> str:
        value = self._members.get(name, default)
        if not isinstance(value, str) or not value:
            raise BadArgumentError(f"{name} must be a string that is not empty")
        return value

    def texts(self, name: str) -> dict[str, str]:
        value = self._members.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise BadArgumentError(f"{name} must be an object of strings")
        return dict(value)

    def data(self, name: str, content_type: str = JSON) -> bytes:
        """Give a value as it was written: no number of it loses a digit; a text of another content type as it is."""
        value = self._members.get(name)
        if isinstance(value, str) and not is_json(media_type(content_type)):
            return value.encode()
        return bytes(self._written.get(name, b""))

    def trace(self) -> dict[str, str]:
        """Give the headers that say what a call belongs to."""
        found = {"traceparent": self._context.traceparent, "tracestate": self._context.tracestate}
        return {name: value for name, value in found.items() if value}


def _read(work: TaskWork) -> tuple[_Members, Mapping[str, msgspec.Raw]]:
    text = work.input or "{}"
    try:
        members = orjson.loads(text)
        if not isinstance(members, dict):
            raise BadArgumentError(f"the input of {work.name} must be an object")
        written = _written(text)
    except (orjson.JSONDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise BadArgumentError(f"the input of {work.name} is no JSON: {error}") from None
    if unknown := sorted(members.keys() - MEMBERS[work.name]):
        raise BadArgumentError(
            f"the input of {work.name} has {unknown[0][:100]!r}, and may have {', '.join(sorted(MEMBERS[work.name]))}"
        )
    return members, written


async def _invoke(asked: _Asked) -> object:
    from mesh.blocks.invocation import INVOKE, Call

    app, path, method = asked.text("app"), asked.text("path"), asked.text("method", "POST")
    given = {name.lower(): value for name, value in asked.texts("headers").items()}
    headers = {"content-type": JSON, IDEMPOTENCY_KEY: asked.key, **asked.trace(), **given}
    data = asked.data("data", headers["content-type"])
    target = path if path[:1] == "/" else f"/{path}"
    if not _PATH.fullmatch(target):
        raise BadArgumentError("path must be percent-encoded where it has spaces, or other than printable ASCII")
    if not TOKEN.fullmatch(method):
        raise BadArgumentError(f"method must be a verb of HTTP, and is {method[:20]!r}")
    async with cast(
        "Answer", await asked.run(INVOKE, app, Call(method, target, list(headers.items()), data))
    ) as answer:
        body = await _whole(answer)
    if answer.status >= 400:
        final = answer.status < 500 and answer.status not in AGAIN
        text = body[:MAX_MESSAGE].decode(errors="replace")
        raise _StatusError(f"HTTP{answer.status}", f"{app} answered {answer.status}: {text}", final=final)
    return {"status": answer.status, "headers": _told(answer.headers), "data": _value(body)}


async def _whole(answer: Answer) -> bytes:
    if answer.body is not None:
        return answer.body
    parts = bytearray()
    async for part in answer.parts():
        parts += part
        if len(parts) > MAX_ANSWER_BYTES:
            raise AppFailedError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(parts)


def _told(headers: Headers) -> dict[str, str]:
    told: dict[str, str] = {}
    for name, value in headers:
        lowered = name.lower()
        told[lowered] = f"{told[lowered]}, {value}" if lowered in told else value
    return told


def _value(body: bytes) -> object:
    """Give bytes as a value of JSON: what is none is a string, and what is no text that of base64."""
    if not body:
        return None
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            return body.decode()
        except UnicodeDecodeError:
            return base64.b64encode(body).decode()
    return orjson.Fragment(body)


async def _publish(asked: _Asked) -> object:
    from mesh.blocks.topics import PUBLISH, Publish

    metadata = {"cloudevent.id": asked.key, **asked.texts("metadata")}
    content_type = asked.text("contentType", JSON)
    event = Publish(asked.text("topic"), asked.data("data", content_type), content_type, metadata)
    await asked.run(PUBLISH, asked.text("pubsub"), event)
    return None


async def _binding(asked: _Asked) -> object:
    from mesh.blocks.binding_contract import Invoke, Invoked
    from mesh.blocks.bindings import INVOKE

    call = Invoke(asked.text("command"), asked.data("data") or b"null", asked.texts("metadata"))
    found = cast("Invoked | None", await asked.run(INVOKE, asked.text("binding"), call))
    return None if found is None else _value(found.data or b"")


async def _get(asked: _Asked) -> object:
    from mesh.blocks.state import GET, Get

    wanted = Get(asked.text("key"), metadata=asked.texts("metadata"))
    stored = cast("Stored | None", await asked.run(GET, asked.text("store"), wanted))
    if stored is None:
        return None
    return stored.value.decode(errors="replace") if stored.bare else _value(stored.value)


async def _set(asked: _Asked) -> object:
    await _save(asked, asked.data("value") or b"null")
    return None


async def _delete(asked: _Asked) -> object:
    await _save(asked, None)
    return None


async def _save(asked: _Asked, value: bytes | None) -> None:
    from mesh.blocks.items import completed
    from mesh.blocks.state import DELETE, SAVE, Save
    from mesh.store import Item

    item = completed(Item(asked.text("key"), value, metadata=asked.texts("metadata")), {})
    await asked.run(DELETE if value is None else SAVE, asked.text("store"), Save([item]))


async def _actor(asked: _Asked) -> object:
    from mesh.actors.host import TurnAnswer
    from mesh.blocks.actors import INVOKE, Invoke

    headers = [(IDEMPOTENCY_KEY, asked.key), ("Content-Type", JSON)]
    call = Invoke(asked.text("id"), asked.text("method"), headers, asked.data("data"))
    answer = cast("TurnAnswer", await asked.run(INVOKE, asked.text("type"), call))
    return _value(answer.body)
