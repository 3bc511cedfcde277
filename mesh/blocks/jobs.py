"""Jobs: what an application is to be told at a time; the mesh keeps it until it has been.

A job belongs to the application that has scheduled it. Its record is a durable timer (``mesh/timers``) of the kind
``jobs.<app id>``; the gateways of the application share these out among themselves (``mesh/ownership``), and the owner
of one hands it over. The fields of one that are told again, as they were written, are the timer's data.

A node that uses no jobs hosts no kind (``on_demand.py``): it begins when its application schedules one, or asks for one
to be deleted or run, and when it finds that one is left.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import msgspec

from mesh import address
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.blocks.job_record import (
    DATA_TYPE_HEADER,
    MAX_PAGE,
    Delete,
    Job,
    JobNotFoundError,
    JobUnreadableError,
    Named,
    Page,
    Put,
    Registered,
    RunNow,
    Schedule,
    Wanted,
    asked_of,
    check,
    check_name,
    encoded,
)
from mesh.blocks.on_demand import OnDemand
from mesh.broker import Message
from mesh.deadlines import Deadlines
from mesh.delivery import SUCCESS, Attempt
from mesh.delivery import Outcome as Came
from mesh.errors import (
    AppFailedError,
    AppUnreachableError,
    BadArgumentError,
    PermissionDeniedError,
)
from mesh.operation import Arrival, Method, Operation
from mesh.ownership.repeating import repeated
from mesh.pipeline import InboundHandler
from mesh.policies import Policy
from mesh.spans import SpanKind
from mesh.tasks import task_group
from mesh.telemetry import UNTOLD, who_answered

if TYPE_CHECKING:
    from mesh.application import Application
    from mesh.blocks.job_timers import JobTimers
    from mesh.ownership.asking import Asked
    from mesh.timers import Timer

__all__ = ["BLOCK", "DELETE", "DELETE_BY_PREFIX", "GET", "LIST", "RUN", "SCHEDULE", "Jobs"]

logger = logging.getLogger(__name__)

RECORDS = "mesh:timers"
DELETES_AT_ONCE = 100
ID_BYTES = 6
MANY_SECONDS = 60.0
NOT_FOUND = 404
DONE = Message({}, b"")

# The target of each is the application: names of jobs are no bounded set of labels.
SCHEDULE = Method("jobs", "schedule", Schedule)
GET = Method("jobs", "get", Named, Registered)
DELETE = Method("jobs", "delete", Named)
DELETE_BY_PREFIX = Method("jobs", "delete_by_prefix", Named, seconds=MANY_SECONDS)
LIST = Method("jobs", "list", Wanted, Page, seconds=MANY_SECONDS)
RUN = Method("jobs", "run", Named, seconds=MANY_SECONDS)


@dataclass(slots=True)
class _Way:
    """The way to the application, as long as it is there.

    Attributes:
        deliver: Hands a job over.
        running: How many are being handed over.
        idle: Set while none is.
    """

    deliver: InboundHandler
    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Jobs:
    """The building block."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Host nothing yet."""
        self._parts = parts
        self._app_id, self._namespace = parts.caller.app_id, parts.caller.namespace
        self._kind = f"jobs.{self._app_id}"
        self._kept: JobTimers | None = None
        news = address.jobs(self._namespace, self._app_id)
        self._owning = OnDemand(parts, self._kind, news, self._opened, self._answer, self._is_any_left)
        self._way: _Way | None = None
        self._deadlines = Deadlines()
        self._asked: Mapping[str, Callable[[Operation], Awaitable[object]]] = {
            SCHEDULE.name: self._schedule,
            GET.name: self._get,
            DELETE.name: self._delete,
            DELETE_BY_PREFIX.name: self._delete_by_prefix,
            LIST.name: self._list,
            RUN.name: self._run,
        }

    async def run(self, operation: Operation) -> object:
        """Do what is asked of the application's jobs."""
        return await self._asked[operation.method.name](operation)

    def described(self) -> Mapping[str, object]:
        """Add nothing to the node's description."""
        return {}

    # What is asked

    async def _schedule(self, operation: Operation) -> None:
        """Keep a job, once the store has confirmed it.

        Raises:
            BadArgumentError: A name, or the data, are not within the limits.
            JobScheduleError: The times make no sense.
            JobExistsError: There is one of this name.
            RecordsMissingError: The mesh has no place to keep it in.
        """
        from mesh.blocks.job_timers import check_times

        asked = cast("Schedule", operation.arguments)
        check(asked.job)
        now = time.time()
        check_times(asked.job, now)
        await self._owning.host()
        job = msgspec.structs.replace(asked.job, id=secrets.token_hex(ID_BYTES))
        await self._ask(job.name, Put(job, now, asked.overwrite), operation.deadline)

    async def _get(self, operation: Operation) -> Registered:
        """Give a job; raises ``JobNotFoundError``."""
        name = cast("Named", operation.arguments).name
        check_name(name)
        found = await (await self._opened()).get(await self._partition(name), name)
        if found is None:
            raise _not_found(name)
        return found

    async def _delete(self, operation: Operation) -> None:
        """Delete a job, if it is there."""
        name = cast("Named", operation.arguments).name
        check_name(name)
        await self._owning.host()
        await self._ask(name, Delete(), operation.deadline)

    async def _delete_by_prefix(self, operation: Operation) -> None:
        """Delete all that are there now and whose name begins so."""
        await self._owning.host()
        waiting = [each.key async for each, _ in self._listed(cast("Named", operation.arguments).name, "", MAX_PAGE)]
        names = iter(waiting)

        async def delete() -> None:
            for name in names:
                await self._ask(name, Delete(), operation.deadline)

        async with task_group() as tasks:
            for _ in range(min(DELETES_AT_ONCE, len(waiting))):
                tasks.create_task(delete(), name="jobs-delete")

    async def _list(self, operation: Operation) -> Page:
        """Give a page of the jobs; raises ``BadArgumentError`` for what is the end of no page."""
        from mesh.timers.record import prefix

        asked = cast("Wanted", operation.arguments)
        if asked.after and not asked.after.startswith(prefix(self._kind)):
            raise BadArgumentError("after is what the page before has given")
        return await self._page(asked.prefix, asked.after, min(asked.limit, MAX_PAGE))

    async def _run(self, operation: Operation) -> None:
        """Hand a job over now, once; its times stay as they are.

        Raises:
            JobNotFoundError: There is none.
            AppUnreachableError: The application is not there.
            AppFailedError: It has not taken it.
        """
        name = cast("Named", operation.arguments).name
        check_name(name)
        await self._owning.host()
        await self._ask(name, RunNow(), operation.deadline)

    async def _ask(self, name: str, what: Put | Delete | RunNow, deadline: float) -> None:
        ask = partial(self._parts.owners.ask, self._kind, name, {}, encoded(what), deadline)
        await (ask() if isinstance(what, RunNow) else repeated(ask, deadline))
        await self._owning.announce()

    async def _partition(self, name: str) -> int:
        from mesh.ownership.table import partition_of

        return partition_of(name, len((await self._parts.owners.table(self._kind)).owners))

    # Owning

    async def _opened(self) -> JobTimers:
        """Give the jobs, which this node need not own any of."""
        if self._kept is None:
            from mesh.blocks.job_timers import JobTimers

            store = await self._parts.records(RECORDS, dotted=True)
            if self._kept is None:  # Another one may have been faster.
                self._kept = JobTimers(self._kind, store, self._hand_over, self._sure)
        return self._kept

    def _sure(self, partition: int) -> bool:
        return self._parts.owners.epoch(self._kind, partition) is not None

    async def _is_any_left(self) -> bool:
        return await (await self._opened()).timers.any()

    async def _answer(self, asked: Asked) -> Message:
        """Do at the owner what another gateway of the application asks for."""
        if (asked.caller.namespace, asked.caller.app_id) != (self._namespace, self._app_id):
            raise PermissionDeniedError(f"jobs of {self._app_id} are its own")
        return await self._deadlines.within(asked.deadline - time.time(), self._do, asked, asked_of(asked.body))

    async def _do(self, asked: Asked, what: Put | Delete | RunNow) -> Message:
        kept, name = await self._opened(), asked.key
        if isinstance(what, Put):
            await kept.put(asked.partition, name, what)
        elif isinstance(what, Delete):
            await kept.timers.delete(asked.partition, name, "")
        else:
            found = await kept.get(asked.partition, name)
            if found is None:
                raise _not_found(name)
            attempt = await self._hand_over(found.job)
            if attempt.outcome is not Came.SUCCESS:
                raise AppFailedError(attempt.reason)
        return DONE

    # What is handed over

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Hand the application's jobs over."""
        policy = self._parts.policies.for_app(self._app_id)
        made_of = policy, self._parts.marked() if self._owning.refused else None
        return [Held("jobs", made_of, self._served(inbound.application, policy), overlaps=True)]

    @asynccontextmanager
    async def _served(self, application: Application, policy: Policy) -> AsyncIterator[None]:
        """Be there for jobs; leaving waits for those that are being handed over."""
        self._way = way = _Way(self._towards(application, policy))
        self._owning.ready(ready=True)
        try:
            async with task_group() as tasks:
                looking = tasks.create_task(self._owning.look(), name="jobs-look")
                try:
                    yield
                finally:
                    looking.cancel()
        finally:
            if self._way is way:  # Else it has a follower, as under another policy.
                self._way = None
                self._owning.ready(ready=False)
        if way.running:
            await way.idle.wait()

    def _towards(self, application: Application, policy: Policy) -> InboundHandler:
        async def call(arrival: Arrival) -> Attempt:
            job, span = arrival.what
            headers = [("Content-Type", "application/json"), *([("traceparent", span)] if span else [])]
            if job.data_type is not None:
                headers.append((DATA_TYPE_HEADER, job.data_type))
            path = f"/job/{quote(job.name, safe='')}"
            try:
                status, answer = await application.post(path, headers, job.data or b"", "job")
            except AppFailedError as error:
                return Attempt(Came.RETRY, str(error), broken=True)
            finally:
                if arrival.passing is not None:
                    arrival.passing.details["job"] = job.name
                    arrival.passing.asked("POST", path, headers, job.data or b"")
            if arrival.passing is not None:
                arrival.passing.answered(status, body=answer)
            if status == NOT_FOUND:
                logger.warning("job %r: %s, which counts as taken", job.name, who_answered(status))
            elif not 200 <= status < 300:
                return Attempt(Came.RETRY, who_answered(status), status)
            return SUCCESS

        # Its retries are those of the job's own failure policy.
        return self._parts.inbound.towards(call, "job", self._app_id, policy=replace(policy, retry=None))

    async def _hand_over(self, job: Job) -> Attempt:
        """Hand a job to the application, once.

        Raises:
            AppUnreachableError: It is not there.
            CircuitOpenError: A policy says that it is not to be called now.
            DeadlineExceededError: It took too long.
        """
        way = self._way
        if way is None:
            raise AppUnreachableError(f"the application {self._app_id} is not there")
        span = self._parts.tracing.span(None)
        way.running += 1
        way.idle.clear()
        try:
            with self._begun(job, span):
                return cast("Attempt", await way.deliver(Arrival({}, None, (job, span))))
        finally:
            way.running -= 1
            if not way.running:
                way.idle.set()

    def _begun(self, job: Job, span: str) -> AbstractContextManager[object]:
        tracing = self._parts.tracing
        if not tracing.records(span):
            return UNTOLD
        return tracing.begin(span, None, f"job/{job.name}", SpanKind.CLIENT, {"dapr.job.name": job.name})

    # Lists

    async def _page(self, prefix: str, after: str, limit: int) -> Page:
        from mesh.blocks.job_timers import registered

        found = list[Registered]()
        async with aclosing(self._listed(prefix, after, MAX_PAGE if prefix else limit)) as kept:
            async for timer, place in kept:
                try:
                    found.append(registered(timer))
                except JobUnreadableError as error:
                    logger.warning("a list leaves it out: %s", error)
                if len(found) >= limit:
                    return Page(tuple(found), place)
        return Page(tuple(found))

    async def _listed(self, prefix: str, after: str, at_once: int) -> AsyncGenerator[tuple[Timer, str], None]:
        """Iterate over what is kept, with the place behind each."""
        kept = await self._opened()
        while True:
            page = await kept.timers.listed(None, None, after, at_once)
            for each in page:
                after = kept.place(await self._partition(each.key), each.key)
                if each.key.startswith(prefix):
                    yield each, after
            if len(page) < at_once:
                return


def _not_found(name: str) -> JobNotFoundError:
    return JobNotFoundError(f"job not found: {name}")


BLOCK = Block("jobs", (SCHEDULE, GET, DELETE, DELETE_BY_PREFIX, LIST, RUN), Jobs)
