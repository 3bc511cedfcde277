"""The application beside this node as a worker, over HTTP (docs/workflow-http.md).

::

    POST /workflow/run/{workflow}         a turn: the history, and what is new in it
    POST /workflow/activity/{activity}    its input

What an application answers is read in ``json_answer``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from urllib.parse import quote

import orjson

from mesh.application import Application, Headers, read_within
from mesh.deadlines import Deadlines
from mesh.errors import AppFailedError, AppUnreachableError
from mesh.middleware import MiddlewareError
from mesh.places import WAITS
from mesh.telemetry import is_traceparent, is_tracestate
from mesh.workflows.actions import Answer
from mesh.workflows.declared import ANY, Declared
from mesh.workflows.events import Failure, Started, Trace
from mesh.workflows.json_answer import AnswerInvalidError, failed, failure_of, read_answer
from mesh.workflows.json_turn import task_json, turn_json
from mesh.workflows.operations import IDEMPOTENCY_KEY, PREFIX
from mesh.workflows.propagation import SCOPES
from mesh.workflows.worker import TaskResult, TaskWork, TurnWork

__all__ = ["ApplicationWorker"]

MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_KNOWN = 10_000
MAX_PAUSE = 30.0
DOTS = (".", "..")  # No part of a path can be called so.
KEPT, INHERITED = "mesh-workflow-kept", "mesh-workflow-inherited"
JSON = ("Content-Type", "application/json")
NOT_FOUND, LOST = 404, 412
NOT_TAKEN = frozenset({408, 425, 429, 503})
_PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


class ApplicationWorker:
    """See ``mesh.workflows.worker.Worker``."""

    title = "http"

    def __init__(self, application: Application, declared: Declared) -> None:
        """Use an application that is there.

        Args:
            application: It.
            declared: What it says of its workflows.
        """
        self.max_turns, self.max_tasks = declared.max_turns, declared.max_tasks
        self.ended = asyncio.Event()
        self._application = application
        self._deadlines = Deadlines()
        self._declared = declared
        # Of instances whose history the application says it keeps: the execution, and how many of its events.
        self._kept: OrderedDict[str, tuple[str, int]] = OrderedDict()

    def runs_workflow(self, name: str) -> bool:
        """Tell by the names that the application has declared."""
        names = self._declared.workflows
        return name in names or (ANY in names and name not in DOTS)

    def runs_activity(self, name: str) -> bool:
        """Tell by the names that the application has declared; operations of the mesh are no one's."""
        names = self._declared.activities
        return name in names or (ANY in names and name not in DOTS and not name.startswith(PREFIX))

    def knows(self, instance: str) -> bool:
        """Tell whether the application says that it keeps the history of an instance."""
        return instance in self._kept

    # Turns

    async def turn(self, work: TurnWork) -> Answer:
        """Run a turn; an answer that cannot be understood fails the instance, with what is wrong.

        Raises:
            AppUnreachableError: It has not taken it now.
            AppFailedError: It failed, or broke off.
        """
        kept = self._kept_of(work)
        try:
            status, body, told = await self._run(work, kept)
            if status == LOST and kept:
                del self._kept[work.ref.id]
                status, body, told = await self._run(work, 0)
            if 200 <= status < 300:
                self._note_kept(work, told)
                return read_answer(body, work)
        except AnswerInvalidError as error:
            return failed(Failure("InvalidAnswer", f"workflow '{work.name}': {error}", final=True))
        answered = f"workflow '{work.name}': the application answered {status}"
        if status == NOT_FOUND:
            return failed(Failure("WorkflowNotFound", answered, final=True))
        if status in (400, 422):
            return failed(failure_of(body, "WorkflowFailed", answered, final=True))
        raise AppFailedError(answered)

    async def _run(self, work: TurnWork, kept: int) -> tuple[int, bytes, str]:
        """Ask for a turn; gives status, body, and how much of the history the application says it keeps."""
        what, seconds = f"workflow '{work.name}'", self._declared.turn_seconds
        path, headers = _run_path(work.name), _traced(_trace_of(work))
        try:
            status, told, body = await self._ask(what, path, headers, turn_json(work, kept), seconds)
        except TimeoutError:
            raise AppFailedError(f"{what}: no answer to a turn within {seconds:g} s") from None
        return status, body, _header(told, KEPT)

    def _kept_of(self, work: TurnWork) -> int:
        execution, count = self._kept.get(work.ref.id, ("", 0))
        if execution != work.execution or count > len(work.past):
            return 0
        return count

    def _note_kept(self, work: TurnWork, told: str) -> None:
        kept = int(told) if told.isascii() and told.isdigit() and len(told) < 10 else 0
        if not 0 < kept <= len(work.past) + len(work.new):
            self._kept.pop(work.ref.id, None)
            return
        self._kept[work.ref.id] = work.execution, kept
        self._kept.move_to_end(work.ref.id)
        if len(self._kept) > MAX_KNOWN:
            self._kept.popitem(last=False)

    # Activities

    async def task(self, work: TaskWork) -> TaskResult:
        """Run an activity.

        Raises:
            AppUnreachableError: It has not taken it now.
            AppFailedError: It broke off.
        """
        what, seconds = f"activity '{work.name}'", self._declared.task_seconds
        body, headers = task_json(work), _task_headers(work)
        work.inherited = None
        try:
            status, _, answer = await self._ask(what, _activity_path(work.name), headers, body, seconds)
        except TimeoutError:
            return TaskResult(failure=Failure("ActivityTimeout", f"{what}: no answer within {seconds:g} s"))
        except AnswerInvalidError as error:
            return TaskResult(failure=Failure("InvalidResult", f"{what}: {error}", final=True))
        if 200 <= status < 300:
            return _result(answer, what)
        answered = f"{what}: the application answered {status}"
        if status == NOT_FOUND:
            return TaskResult(failure=Failure("ActivityNotFound", answered, final=True))
        return TaskResult(failure=failure_of(answer, "ActivityFailed", answered, final=status < 500))

    async def _ask(
        self, what: str, path: str, headers: Headers, body: bytes, seconds: float | None
    ) -> tuple[int, Headers, bytes]:
        """Give status, headers and body of the answer to a request that was taken.

        Raises:
            TimeoutError: There was none in time; that it waits for its place among calls of the application is none.
            AnswerInvalidError: It is too large.
            AppUnreachableError, AppFailedError: As ``turn`` and ``task`` say.
        """
        limit = self._deadlines.limit(seconds)
        token = WAITS.set(limit.put_off)
        try:
            with limit:
                async with self._application.call("POST", path, headers, body) as response:
                    status, told = response.status, response.headers
                    answer = await read_within(response, MAX_ANSWER_BYTES)
        except MiddlewareError as error:  # It was not passed on.
            raise AppUnreachableError(f"{what}: {error}") from error
        finally:
            WAITS.reset(token)
        if status in NOT_TAKEN:
            await self._pause(told)
            raise AppUnreachableError(f"{what}: the application answered {status}")
        if answer is None:
            raise AnswerInvalidError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
        return status, told, answer

    async def _pause(self, headers: Headers) -> None:
        """Keep the place among those that run at once for as long as the application asks to be left alone."""
        told = _header(headers, "retry-after").strip()
        if told.isascii() and told.isdigit() and (seconds := int(told[:9])):
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, MAX_PAUSE)):
                    await self.ended.wait()


def _header(headers: Headers, wanted: str) -> str:
    return next((value for name, value in headers if name.lower() == wanted), "")


def _result(body: bytes, what: str) -> TaskResult:
    if not body.strip():
        return TaskResult()
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return TaskResult(failure=Failure("InvalidResult", f"{what}: its result is no JSON: {error}", final=True))
    return TaskResult(body.decode())


@lru_cache(1024)
def _run_path(name: str) -> str:
    return f"/workflow/run/{quote(name, safe='')}"


@lru_cache(1024)
def _activity_path(name: str) -> str:
    return f"/workflow/activity/{quote(name, safe='')}"


def _trace_of(work: TurnWork) -> Trace | None:
    for events in (work.past[:2], work.new[:2]):
        for event in events:
            if isinstance(event, Started):
                return event.trace
    return None


def _traced(trace: Trace | None) -> list[tuple[str, str]]:
    if trace is None or not is_traceparent(trace.parent):
        return [JSON]
    state = [("tracestate", trace.state)] if trace.state and is_tracestate(trace.state) else []
    return [JSON, ("traceparent", trace.parent), *state]


def _task_headers(work: TaskWork) -> Headers:
    inherited = [] if work.inherited is None else [(INHERITED, SCOPES[work.inherited.scope])]
    return [
        *_traced(work.trace),
        *inherited,
        ("mesh-workflow-instance", _field(work.instance)),
        ("mesh-workflow-name", _field(work.workflow)),
        ("mesh-workflow-task", str(work.task)),
        ("mesh-workflow-attempt", str(work.attempt)),
        (IDEMPOTENCY_KEY, _field(work.execution_id)),
    ]


def _field(text: str) -> str:
    """Give a text as the value of a field: percent-encoded where it has other than printable ASCII, or a ``%``."""
    if text.isascii() and text.isprintable() and "%" not in text and " " not in text:
        return text
    return quote(text, safe=_PLAIN)
