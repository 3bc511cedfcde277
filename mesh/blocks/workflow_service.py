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
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

from mesh import address
from mesh.blocks import workflow_questions as questions
from mesh.blocks import workflows as asked_for
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.blocks.on_demand import OnDemand
from mesh.blocks.workflow_answers import Answers
from mesh.blocks.workflows import MAX_PAGE, HistoryPage, Page, Shown
from mesh.broker import Message
from mesh.errors import BadArgumentError, MeshError, RecordsMissingError, StreamEndedError
from mesh.operation import Operation
from mesh.ownership.repeating import repeated
from mesh.ownership.table import partition_of
from mesh.streams import DRAINS
from mesh.tasks import task_group, until_any
from mesh.workflows import observed
from mesh.workflows.capacity import Priority
from mesh.workflows.errors import WorkflowError, WorkflowForbiddenError, WorkflowNotFoundError, WorkflowTooLargeError
from mesh.workflows.events import Event
from mesh.workflows.messages import (
    AnyMessage,
    Purge,
    Raise,
    Restore,
    Resume,
    Start,
    Suspend,
    Terminate,
    Told,
)
from mesh.workflows.reading import Reader
from mesh.workflows.record import Keys
from mesh.workflows.state import ENDED, State, View
from mesh.workflows.worker import Worker

if TYPE_CHECKING:
    from mesh.blocks.workflow_host import WorkflowHost
    from mesh.store import StateStore
    from mesh.workflows.declared import Declared

__all__ = ["KIND", "PUT_AWAY", "WorkflowService"]

logger = logging.getLogger(__name__)

KIND = "workflows."
MAX_ID_BYTES = 1000  # Three times as many, encoded, fit into a path of a store.
LIVE, PUT_AWAY = "mesh:workflows", "mesh:workflows-ended"
LONG_SECONDS = 365 * 86400.0  # Who waits without a deadline asks again after that.
AGAIN_SECONDS = 1.0
PURGES_AT_ONCE = 32
MARGIN_SECONDS = 1.0  # In which a purge of many tells how far it came.


class WorkflowService:
    """The building block."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Host nothing yet."""
        self._parts = parts
        self._app_id = parts.caller.app_id
        self._kind = KIND + self._app_id
        self._stores: tuple[StateStore, StateStore] | None = None
        self._read: Reader | None = None
        self._host: WorkflowHost | None = None
        self._declared: tuple[Inbound, Declared | None] | None = None
        news = address.workflows(parts.caller.namespace, self._app_id)
        answers = Answers(parts, self._opened, self._reader)
        self._owning = OnDemand(parts, self._kind, news, self._opened, answers.answer, self._is_any_left)

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
        instance = asked.id or str(uuid.uuid4())
        given = context.traceparent if asked.trace is None else asked.trace.parent
        telling, trace = observed.creating(self._parts.tracing, given, asked.name, instance)
        message = Start(
            asked.name,
            asked.execution or secrets.token_hex(16),
            version=asked.version or None,
            input=asked.input,
            scheduled=asked.scheduled,
            trace=trace if trace is not None else asked.trace,
            tags=asked.tags,
        )
        with telling:
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
        size = len(instance.encode(errors="surrogatepass"))
        if size > MAX_ID_BYTES:  # No store has a key for it, now or later: who sends a message must not try for ever.
            if not isinstance(message, Start | Restore):
                raise WorkflowNotFoundError(instance)
            raise WorkflowTooLargeError(f"the id of a workflow has at most {MAX_ID_BYTES} bytes, this one {size}")
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
        reader = await self._reader()
        statuses, after, count, complete = asked.statuses or tuple(ENDED), "", 0, True
        message = Purge(asked.recursive, asked.force)

        async def purge(ids: Iterator[str]) -> None:
            nonlocal count, complete
            for each in ids:
                try:
                    told = await self._tell(self._app_id, each, message, operation.deadline)
                except WorkflowNotFoundError:
                    continue
                except WorkflowError as error:
                    logger.debug("workflow %s is not purged: %s", each, error)
                    complete = False
                else:
                    count += told.count
                    complete = complete and told.complete

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
        return await self._view(operation.target, asked.id, operation.deadline, texts=asked.texts)

    async def _view(self, app: str, instance: str, deadline: float, *, texts: bool) -> View | None:
        if app == self._app_id:
            return await (await self._reader()).view(instance, texts=texts)
        answer = await self._ask(app, instance, questions.Read(texts), deadline)
        return questions.view_of(answer.body)

    async def _look(self, app: str, instance: str, deadline: float) -> State | None:
        view = await self._view(app, instance, deadline, texts=False)
        return None if view is None else view.state

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
        views, after = await (await self._reader()).page(
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
        view = await (await self._reader()).view(asked.id, texts=True)
        if view is None:
            raise WorkflowNotFoundError(asked.id)
        table = await self._parts.owners.table(self._kind, fresh=True)
        partition = partition_of(asked.id, len(table.owners))
        member = table.members.get(table.owners[partition])
        if member is None:
            return Shown(view, partition, None)
        question = questions.Look(view.state.ended is not None)
        try:
            answer = await self._ask(self._app_id, asked.id, question, operation.deadline)
            looked = questions.looked_of(answer.body)  # Of an owner of another version it may be another one.
        except WorkflowError:
            raise
        except MeshError as error:
            logger.debug("the owner of workflow %s does not say what it waits for: %s", asked.id, error)
            return Shown(view, partition, member.node)
        return Shown(view, partition, member.node, looked.waiting, looked.workers)

    async def _history_of(self, instance: str) -> tuple[View, Sequence[Event]]:
        found = await (await self._reader()).history(instance)
        if found is None:
            raise WorkflowNotFoundError(instance)
        return found

    def _check_own(self, operation: Operation) -> None:
        if operation.target != self._app_id:
            raise WorkflowForbiddenError(f"{operation.method} is for an application's own workflows")

    async def _reader(self) -> Reader:
        """Give what reads instances, which opens their stores; raises ``RecordsMissingError``."""
        if self._read is None:
            live = await self._parts.records(LIVE, dotted=True)
            ended = await self._parts.records(PUT_AWAY, dotted=True)
            if self._read is None:  # Another one may have been faster.
                self._stores, self._read = (live, ended), Reader(self._kind, live, ended, self._partition)
        return self._read

    async def _partition(self, instance: str) -> int:
        return partition_of(instance, len((await self._parts.owners.table(self._kind)).owners))

    # Owning

    async def _opened(self) -> WorkflowHost:
        """Give the engine, which need not own anything."""
        if self._host is None:
            from mesh.blocks.workflow_host import WorkflowHost

            await self._reader()
            assert self._stores is not None
            if self._host is None:
                self._host = WorkflowHost(self._parts, *self._stores, self._tell, self._look, self._owning.ready)
        return self._host

    async def _is_any_left(self) -> bool:
        await self._reader()
        assert self._stores is not None
        return bool(await self._stores[0].scan(Keys(self._kind).live, "", 1))

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
            host = await self._hosting(worker.ended, streams.ending)
            if host is not None:
                async with host.attached(worker, Priority.ANY):
                    await until_any(worker.ended, streams.ending)
        if not worker.ended.is_set():
            raise StreamEndedError(DRAINS)

    async def _hosting(self, *ends: asyncio.Event) -> WorkflowHost | None:
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
        if self._host is not None:
            self._host.configure()
        if self._declared is None or self._declared[0] is not inbound:  # What is wrong with it is told once.
            self._declared = inbound, await self._ask_declared(inbound)
        declared = self._declared[1]
        worker: Worker | None = None
        if declared:
            from mesh.workflows.application import ApplicationWorker

            worker = ApplicationWorker(inbound.application, declared)
        made_of = declared, self._parts.marked() if self._owning.refused else None
        return [Held("workflows", made_of, self._served(worker), overlaps=True)]

    async def _ask_declared(self, inbound: Inbound) -> Declared | None:
        answer = await self._parts.config.of(inbound)
        if not answer:
            return None
        from mesh.workflows.declared import declared_of  # What is for workers over HTTP, where there may be one.

        return declared_of(answer)

    @asynccontextmanager
    async def _served(self, worker: Worker | None) -> AsyncIterator[None]:
        """Give work to the application; where it runs none over HTTP, look whether instances are left."""
        async with task_group() as tasks:
            serving = tasks.create_task(self._serve(worker), name="workflows-serve")
            try:
                yield
            finally:
                if worker is None:
                    serving.cancel()
                else:
                    worker.ended.set()

    async def _serve(self, worker: Worker | None) -> None:
        if worker is None:
            await self._owning.look()
            return
        try:
            host = await self._hosting(worker.ended)
        except RecordsMissingError as error:
            logger.warning("the application's workflows are not run: %s", error)
            return
        except StreamEndedError:
            return
        if host is not None:
            async with host.attached(worker, Priority.DECLARED):
                await worker.ended.wait()

    def described(self) -> Mapping[str, object]:
        """Tell how many workers there are."""
        return {"workers": 0 if self._host is None else sum(self._host.dispatch.workers.values())}


def _is_meant(state: State, asked: asked_for.PurgeMany) -> bool:
    if asked.created_to is not None and state.created >= asked.created_to:
        return False
    return asked.ended_before is None or (state.ended is not None and state.ended < asked.ended_before)
