"""The block of workflows at work: what asks owners, what reads the store, what an owner answers, and workers.

A node that uses no workflows hosts no kind (``on_demand.py``): it begins when its application starts an instance, or
asks for anything else of one, when a worker comes, and when it finds that some are left.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec

from mesh import address
from mesh.blocks import workflow_questions as questions
from mesh.blocks import workflows as asked_for
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.blocks.on_demand import OnDemand
from mesh.blocks.workflows import MAX_PAGE, HistoryPage, Page, Shown
from mesh.broker import Message
from mesh.deadlines import Deadlines
from mesh.errors import BadArgumentError, MeshError, RecordsMissingError, StreamEndedError
from mesh.operation import Operation
from mesh.ownership.repeating import repeated
from mesh.ownership.table import partition_of
from mesh.streams import DRAINS
from mesh.tasks import task_group, until_any
from mesh.workflows.access import Operation as Asks
from mesh.workflows.access import denied
from mesh.workflows.application import ApplicationWorker
from mesh.workflows.declared import Declared, declared_of
from mesh.workflows.errors import WorkflowError, WorkflowForbiddenError, WorkflowNotFoundError
from mesh.workflows.events import Event, Trace
from mesh.workflows.messages import (
    AnyMessage,
    ChildDone,
    Purge,
    Raise,
    Resume,
    Start,
    Suspend,
    Terminate,
    Told,
)
from mesh.workflows.reading import Reader
from mesh.workflows.record import Keys
from mesh.workflows.room import Level
from mesh.workflows.state import ENDED, State, Status, View
from mesh.workflows.worker import Ref, Worker

if TYPE_CHECKING:
    from mesh.blocks.workflow_kept import WorkflowsKept
    from mesh.ownership.asking import Asked
    from mesh.store import StateStore

__all__ = ["WorkflowService"]

logger = logging.getLogger(__name__)

KIND = "workflows."
LIVE, PUT_AWAY = "mesh:workflows", "mesh:workflows-ended"
LONG_SECONDS = 365 * 86400.0  # Who waits without a deadline asks again after that.
AGAIN_SECONDS = 1.0
PURGES_AT_ONCE = 32
MARGIN_SECONDS = 1.0  # In which a purge of many tells how far it came.
OPERATIONS: Mapping[type, Asks] = {
    Start: "schedule",
    Raise: "raise",
    Suspend: "pause",
    Resume: "resume",
    Terminate: "terminate",
    Purge: "purge",
    questions.Wait: "get",
    questions.Read: "get",
}
_OF_A_PARENT = (Terminate, Purge)  # What whoever has started a child may always do with it.


class WorkflowService:
    """The building block."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Host nothing yet."""
        self._parts = parts
        self._app_id = parts.caller.app_id
        self._kind = KIND + self._app_id
        self._read: tuple[Reader, StateStore, StateStore] | None = None
        self._kept: WorkflowsKept | None = None
        self._declared: tuple[Inbound, Declared] | None = None
        news = address.workflows(parts.caller.namespace, self._app_id)
        self._owning = OnDemand(parts, self._kind, news, self._opened, self._answer, self._is_any_left)
        self._deadlines = Deadlines()
        self._answers: Mapping[type, Callable[..., Awaitable[object]]] = {
            questions.Tell: self._answer_tell,
            questions.Wait: self._answer_wait,
            questions.Read: self._answer_read,
            questions.Look: self._answer_look,
        }

    async def run(self, operation: Operation) -> object:
        """Do what is asked of an instance, or of many.

        Raises:
            WorkflowError: What it came to.
            RecordsMissingError: The mesh has no place to keep workflows in.
            MeshError: Nobody owns the instance now, or the store failed.
        """
        return await getattr(self, operation.method.name)(operation)

    # What an instance is told, of this application or another one

    async def start(self, operation: Operation) -> str:
        """Start an instance, once that is stored; gives its id."""
        asked = cast("asked_for.Start", operation.arguments)
        context = operation.context
        trace = asked.trace
        if trace is None and context.traceparent:
            trace = Trace(context.traceparent, context.tracestate)
        instance = asked.id or str(uuid.uuid4())
        message = Start(
            asked.name,
            asked.execution or secrets.token_hex(16),
            version=asked.version or None,
            input=asked.input,
            scheduled=asked.scheduled,
            trace=trace,
            tags=asked.tags,
        )
        await self._tell(operation.target, instance, message, operation.deadline)
        return instance

    async def raise_event(self, operation: Operation) -> None:
        """Raise an event of an instance, once that is stored."""
        asked = cast("asked_for.RaiseEvent", operation.arguments)
        message = Raise(asked.name, asked.input, secrets.token_hex(8))
        await self._tell(operation.target, asked.id, message, operation.deadline)

    async def suspend(self, operation: Operation) -> None:
        """Have an instance begin no turn."""
        asked = cast("asked_for.Suspend", operation.arguments)
        await self._tell(operation.target, asked.id, Suspend(asked.reason), operation.deadline)

    async def resume(self, operation: Operation) -> None:
        """Have an instance go on."""
        asked = cast("asked_for.Resume", operation.arguments)
        await self._tell(operation.target, asked.id, Resume(asked.reason), operation.deadline)

    async def terminate(self, operation: Operation) -> None:
        """End an instance."""
        asked = cast("asked_for.Terminate", operation.arguments)
        await self._tell(operation.target, asked.id, Terminate(asked.output, asked.recursive), operation.deadline)

    async def purge(self, operation: Operation) -> Told:
        """Forget an instance."""
        asked = cast("asked_for.Purge", operation.arguments)
        message = Purge(asked.recursive, asked.force)
        return await self._tell(operation.target, asked.id, message, operation.deadline)

    async def _tell(self, app: str, instance: str, message: AnyMessage, deadline: float) -> Told:
        answer = await self._ask(app, instance, questions.Tell(message), deadline)
        return questions.told_of(answer.body)

    async def _ask(self, app: str, instance: str, question: questions.Question, deadline: float) -> Message:
        """Ask the owner of an instance."""
        own = app == self._app_id
        if own:
            await self._owning.host()
        until = min(deadline, time.time() + LONG_SECONDS)
        body = questions.encoded(question)
        answer = await repeated(partial(self._parts.owners.ask, KIND + app, instance, {}, body, until), until)
        if own:
            await self._owning.announce()
        return answer

    # Many of this application

    async def purge_many(self, operation: Operation) -> Told:
        """Forget instances, as many as there is time for."""
        self._check_own(operation)
        asked = cast("asked_for.PurgeMany", operation.arguments)
        until = operation.deadline - MARGIN_SECONDS
        reader, _, _ = await self._reader()
        statuses, after, count, complete = asked.statuses or tuple(ENDED), "", 0, True
        message = Purge(asked.recursive, asked.force)

        async def purge(ids: Iterator[str]) -> None:
            nonlocal count, complete
            for each in ids:
                try:
                    count += (await self._tell(self._app_id, each, message, operation.deadline)).count
                except WorkflowNotFoundError:
                    continue
                except WorkflowError as error:
                    logger.debug("workflow %s is not purged: %s", each, error)
                    complete = False

        while True:
            views, after = await reader.page(
                statuses=statuses, created_from=asked.created_from, after=after, limit=MAX_PAGE
            )
            wanted = [each.id for each in views if _is_meant(each.state, asked)]
            if len(wanted) > asked.limit - count:
                wanted, complete = wanted[: asked.limit - count], False
            waiting = iter(wanted)
            async with task_group() as tasks:
                for _ in range(min(PURGES_AT_ONCE, len(wanted))):
                    tasks.create_task(purge(waiting), name="workflows-purge")
            if not after:
                return Told(count, complete)
            if count >= asked.limit or time.time() >= until:
                return Told(count, complete=False)

    async def rerun(self, operation: Operation) -> str:
        """Run an instance again from one of its events; gives the new one's id."""
        from mesh.workflows.rerun import make

        self._check_own(operation)
        asked = cast("asked_for.Rerun", operation.arguments)
        view, history = await self._history_of(asked.id)
        new = asked.new_id or str(uuid.uuid4())
        if new == asked.id:
            raise BadArgumentError("an instance is run again under another id than its own")
        message = make(
            asked.id,
            view.state,
            history,
            asked.event,
            new,
            secrets.token_hex(16),
            time.time(),
            input=asked.input,
            overwrite=asked.overwrite,
            new_child_id=asked.new_child_id,
        )
        await self._tell(self._app_id, new, message, operation.deadline)
        return new

    # What is read

    async def get(self, operation: Operation) -> View | None:
        """Look at an instance; None = there is none."""
        asked = cast("asked_for.Get", operation.arguments)
        if operation.target == self._app_id:
            return await (await self._reader())[0].view(asked.id, texts=asked.texts)
        answer = await self._ask(operation.target, asked.id, questions.Read(asked.texts), operation.deadline)
        return questions.view_of(answer.body)

    async def wait(self, operation: Operation) -> View:
        """Look at an instance once it has begun, or ended."""
        asked = cast("asked_for.Wait", operation.arguments)
        question = questions.Wait(asked.ended, asked.texts)
        answer = await self._ask(operation.target, asked.id, question, operation.deadline)
        view = questions.view_of(answer.body)
        if view is None:
            raise WorkflowNotFoundError(asked.id)
        return view

    async def list(self, operation: Operation) -> Page:
        """Look at many."""
        self._check_own(operation)
        asked = cast("asked_for.List", operation.arguments)
        views, after = await (await self._reader())[0].page(
            statuses=asked.statuses,
            name=asked.name,
            created_from=asked.created_from,
            after=asked.after,
            limit=min(asked.limit, MAX_PAGE),
        )
        return Page(views, after)

    async def history(self, operation: Operation) -> HistoryPage:
        """Give the history of an instance; raises ``WorkflowNotFoundError``."""
        self._check_own(operation)
        asked = cast("asked_for.History", operation.arguments)
        view, events = await self._history_of(asked.id)
        until = None if asked.limit is None else asked.after + asked.limit
        return HistoryPage(view, events[asked.after : until], len(events))

    async def show(self, operation: Operation) -> Shown:
        """Look at an instance, and at what its owner knows of it; raises ``WorkflowNotFoundError``."""
        self._check_own(operation)
        asked = cast("asked_for.Show", operation.arguments)
        view = await (await self._reader())[0].view(asked.id, texts=True)
        if view is None:
            raise WorkflowNotFoundError(asked.id)
        table = await self._parts.owners.table(self._kind, fresh=True)
        partition = partition_of(asked.id, len(table.owners))
        member = table.members.get(table.owners[partition])
        if member is None:
            return Shown(view, partition, None)
        try:
            answer = await self._ask(self._app_id, asked.id, questions.Look(), operation.deadline)
        except WorkflowError:
            raise
        except MeshError as error:
            logger.debug("the owner of workflow %s does not say what it waits for: %s", asked.id, error)
            return Shown(view, partition, member.node)
        looked = questions.looked_of(answer.body)
        return Shown(view, partition, member.node, looked.tasks, looked.workers)

    async def _history_of(self, instance: str) -> tuple[View, Sequence[Event]]:
        found = await (await self._reader())[0].history(instance)
        if found is None:
            raise WorkflowNotFoundError(instance)
        return found

    def _check_own(self, operation: Operation) -> None:
        if operation.target != self._app_id:
            raise WorkflowForbiddenError(f"{operation.method} is for an application's own workflows")

    async def _reader(self) -> tuple[Reader, StateStore, StateStore]:
        if self._read is None:
            live = await self._parts.records(LIVE, dotted=True)
            ended = await self._parts.records(PUT_AWAY, dotted=True)
            if self._read is None:  # Another one may have been faster.
                self._read = Reader(self._kind, live, ended, self._partition), live, ended
        return self._read

    async def _partition(self, instance: str) -> int:
        return partition_of(instance, len((await self._parts.owners.table(self._kind)).owners))

    # Owning

    async def _opened(self) -> WorkflowsKept:
        """Give the engine, which need not own anything."""
        _, live, ended = await self._reader()
        if self._kept is None:
            from mesh.blocks.workflow_kept import WorkflowsKept

            self._kept = WorkflowsKept(self._parts, live, ended, self._tell, self._owning.ready)
        return self._kept

    async def _is_any_left(self) -> bool:
        _, live, _ = await self._reader()
        return bool(await live.scan(Keys(self._kind).live, "", 1))

    async def _answer(self, asked: Asked) -> Message:
        """Do at the owner what is asked of an instance, where that is allowed."""
        question = questions.question_of(asked.body)
        question = await self._allowed(asked, question)
        seconds = asked.deadline - time.time()
        answer = await self._deadlines.within(seconds, self._answers[type(question)], asked, question)
        return Message({}, questions.encoded(answer))

    async def _answer_tell(self, asked: Asked, question: questions.Tell) -> Told:
        engine = (await self._opened()).keeper
        return await engine.tell(Ref(asked.partition, asked.key), question.message, asked.deadline)

    async def _answer_wait(self, asked: Asked, question: questions.Wait) -> View | None:
        engine = (await self._opened()).keeper
        await engine.wait(Ref(asked.partition, asked.key), _has_ended if question.ended else _has_begun, asked.deadline)
        return await (await self._reader())[0].view(asked.key, texts=question.texts)

    async def _answer_read(self, asked: Asked, question: questions.Read) -> View | None:
        return await (await self._reader())[0].view(asked.key, texts=question.texts)

    async def _answer_look(self, asked: Asked, _: questions.Look) -> questions.Looked:
        kept = await self._opened()
        tasks = kept.keeper.open_tasks(Ref(asked.partition, asked.key))
        found = [
            asked_for.Task(work.task, work.name, work.app, work.since, work.attempt, running)
            for work, running in tasks[:MAX_PAGE]
        ]
        return questions.Looked(tuple(found), dict(kept.dispatch.workers))

    async def _allowed(self, asked: Asked, question: questions.Question) -> questions.Question:
        """Give a question as it is to be answered: an application speaks for itself alone.

        Raises:
            WorkflowForbiddenError: The caller may not ask that.
        """
        app, own = asked.caller.app_id, asked.caller.app_id == self._app_id
        what: object = question
        if isinstance(question, questions.Tell):
            what = message = question.message
            if isinstance(message, ChildDone):
                if message.app != app:
                    raise WorkflowForbiddenError(f"{app} tells how a child of {message.app[:100]} has ended")
                return question
            if isinstance(message, Start):
                if message.parent is not None and message.parent.app != app:
                    raise WorkflowForbiddenError(f"{app} starts a child for {message.parent.app[:100]}")
                question = questions.Tell(msgspec.structs.replace(message, caller="" if own else app))
        if own:
            return question
        operation = OPERATIONS.get(type(what))
        if operation is None:
            raise WorkflowForbiddenError(f"that is asked of workflows of {self._app_id} by itself alone")
        if isinstance(what, Start):
            name = what.name
        else:
            view = await (await self._reader())[0].view(asked.key, texts=False)
            if view is None:
                return question  # It is told that there is none.
            parent = view.state.parent
            if isinstance(what, _OF_A_PARENT) and parent is not None and parent.app == app:
                return question
            name = view.state.name
        namespace = self._parts.caller.namespace
        rules = self._parts.workflow_access
        if not rules.allows(app, namespace, self._app_id, namespace, "workflow", operation, name):
            raise WorkflowForbiddenError(denied(app, "workflow", operation, name))
        return question

    # Workers

    async def host(self, operation: Operation) -> None:
        """Give work to a worker that holds a stream open, for as long as that lasts.

        Raises:
            RecordsMissingError: The mesh has no place to keep workflows in.
            StreamEndedError: The node drains, or has too many streams.
        """
        worker = cast("Worker", operation.arguments)
        streams = self._parts.streams
        with streams.one():
            kept = await self._hosting(worker.ended, streams.ending)
            if kept is not None:
                async with kept.dispatch.attach(worker):
                    await until_any(worker.ended, streams.ending)
        if not worker.ended.is_set():
            raise StreamEndedError(DRAINS)

    async def _hosting(self, *ends: asyncio.Event) -> WorkflowsKept | None:
        """Host, however long the store is away; None = it has ended before."""
        while not any(each.is_set() for each in ends):
            try:
                await self._owning.host()
                return await self._opened()
            except (RecordsMissingError, StreamEndedError):
                raise
            except MeshError as error:
                logger.warning("workflows cannot be hosted yet: %s", error)
                await asyncio.sleep(AGAIN_SECONDS)
        return None

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Give work to the application, by what it says that it runs."""
        if self._declared is None or self._declared[0] is not inbound:
            self._declared = inbound, declared_of(await self._parts.config.of(inbound))
        declared = self._declared[1]
        marked = self._parts.marked() if self._owning.refused else None
        held = [Held("workflows", marked, self._served(self._owning.look), overlaps=True)]
        if declared:
            work = partial(self._work, ApplicationWorker(inbound.application, declared))
            held.append(Held("workflows over HTTP", (declared, marked), self._served(work)))
        return held

    @asynccontextmanager
    async def _served(self, do: Callable[[], Coroutine[None, None, None]]) -> AsyncIterator[None]:
        """Do something while the application is there."""
        async with task_group() as tasks:
            doing = tasks.create_task(do(), name="workflows")
            try:
                yield
            finally:
                doing.cancel()

    async def _work(self, worker: ApplicationWorker) -> None:
        """Give work to the application over HTTP; cancelled, what it has been given may end."""
        try:
            kept = await self._hosting(worker.ended)
            if kept is not None:
                async with kept.dispatch.attach(worker, Level.DECLARED):
                    try:
                        await worker.ended.wait()
                    finally:
                        worker.ended.set()
        except RecordsMissingError as error:
            logger.warning("workflows are not run: %s", error)
            self._owning.refused = True  # Until another store is marked.
        except StreamEndedError:
            return  # The node ends.

    def described(self) -> Mapping[str, object]:
        """Add nothing to the node's description."""
        return {}


def _has_begun(state: State | None) -> bool:
    return state is None or state.status != Status.PENDING


def _has_ended(state: State | None) -> bool:
    return state is None or state.ended is not None


def _is_meant(state: State, asked: asked_for.PurgeMany) -> bool:
    if asked.created_to is not None and state.created >= asked.created_to:
        return False
    return asked.ended_before is None or (state.ended is not None and state.ended < asked.ended_before)
