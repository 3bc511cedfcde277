"""Jobs: what an application is to be told at a time; the mesh keeps it until it has been.

A job belongs to the application that has scheduled it. Its record is a durable timer (``mesh/timers``) of the kind
``jobs.<app id>``; the gateways of the application share these out among themselves (``mesh/ownership``), and the owner
of one hands it over. The fields of one that are told again, as they were written, are the timer's data.

A node that uses no jobs hosts no kind: it begins when its application schedules one, or asks for one to be deleted or
run. Those of last week it finds when its application comes: from the record of owners it knows whether anybody has ever
hosted the kind, which is one read; only then it looks whether a job is left. A gateway that begins tells those that do
not host yet (``mesh.<namespace>.jobs.<app id>``), and they look again; they do so now and then as well, since that news
may get lost. So when one is killed, another one is there to take over.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import msgspec

from mesh import address
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.broker import Frame, Message
from mesh.calls.context import counts, tell
from mesh.delivery import SUCCESS, Attempt
from mesh.delivery import Outcome as Came
from mesh.errors import (
    AppFailedError,
    AppUnreachableError,
    BadArgumentError,
    CircuitOpenError,
    MeshError,
    PermissionDeniedError,
    RecordsMissingError,
)
from mesh.operation import Arrival, Method, Operation
from mesh.ownership.table import partition_of
from mesh.pipeline import InboundHandler
from mesh.policies import Policy
from mesh.spans import SpanKind
from mesh.tasks import task_group
from mesh.telemetry import UNTOLD, who_answered

if TYPE_CHECKING:
    from mesh.application import Application
    from mesh.ownership.asking import Asked
    from mesh.schedules import Timing
    from mesh.timers import FailurePolicy, Outcome, Timer, Timers

__all__ = [
    "BLOCK",
    "DATA_TYPE_HEADER",
    "DELETE",
    "DELETE_BY_PREFIX",
    "GET",
    "LIST",
    "MAX_DATA_BYTES",
    "MAX_NAME_BYTES",
    "MAX_PAGE",
    "RUN",
    "SCHEDULE",
    "Job",
    "JobExistsError",
    "JobNotFoundError",
    "JobScheduleError",
    "Jobs",
    "Named",
    "Page",
    "Registered",
    "Schedule",
    "Wanted",
    "check_name",
]

logger = logging.getLogger(__name__)

MAX_NAME_BYTES = 256
MAX_DATA_BYTES = 128 * 1024
MAX_TEXT = 256
MAX_PAGE = 1000
DELETES_AT_ONCE = 100
LOOK_SECONDS = 60.0
AGAIN_SECONDS = 1.0
NOT_FOUND = 404
QUIET_SECONDS = 30.0
DATA_TYPE_HEADER = "mesh-data-type"
"""Of a job whose data are a protobuf message: the URL of its type."""
_TYPE = re.compile(r"[!-~]*\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f|]")


class JobExistsError(MeshError):
    """There is a job of this name already, and it was not to be overwritten."""

    code = "JOB_EXISTS"


class JobNotFoundError(MeshError):
    """There is no job of this name."""

    code = "JOB_NOT_FOUND"


class JobScheduleError(MeshError):
    """The times of a job make no sense; nothing was done."""

    code = "JOB_SCHEDULE_INVALID"


class JobUnreadableError(MeshError):
    """What is kept of a job is of another version, or is none."""

    code = "JOB_UNREADABLE"


class Policed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What follows when the application fails.

    Attributes:
        interval: Seconds between attempts.
        retries: How many; None = no end.
        drop: Whether there are none.
    """

    interval: float = 1.0
    retries: int | None = 3
    drop: bool = False


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job as it was scheduled.

    Attributes:
        name: Of those of its application.
        schedule: When it repeats; None = once.
        repeats: How often in all; None = no end.
        due_time: When it is due first.
        ttl: When it ends.
        data: What the application is told: JSON, or the bytes of a message; None = nothing.
        data_type: The URL of the message's type; None = it is JSON.
        policy: What follows when the application fails.
    """

    name: str
    schedule: str | None = None
    repeats: int | None = None
    due_time: str | None = None
    ttl: str | None = None
    data: bytes | None = None
    data_type: str | None = None
    policy: Policed = Policed()


@dataclass(frozen=True, slots=True)
class Registered:
    """A job as it is now.

    Attributes:
        job: As it was scheduled.
        due: When it is due next, in Unix time.
        left: How often it will be told, that time included; None = no end.
    """

    job: Job
    due: float
    left: int | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A job, and whether it takes the place of one of its name."""

    job: Job
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """Which job, or which jobs: those whose name begins so."""

    name: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page of a list.

    Attributes:
        prefix: Of the names.
        after: Where the page before ended; empty = the first one.
        limit: Of jobs, at most ``MAX_PAGE``.
    """

    prefix: str = ""
    after: str = ""
    limit: int = MAX_PAGE


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and where the next page begins; empty = this is the last one."""

    jobs: tuple[Registered, ...]
    after: str = ""


MANY_SECONDS = 60.0
# The target of each is the application: names of jobs are no bounded set of labels.
SCHEDULE = Method("jobs", "schedule", Schedule)
GET = Method("jobs", "get", Named, Registered)
DELETE = Method("jobs", "delete", Named)
DELETE_BY_PREFIX = Method("jobs", "delete_by_prefix", Named, seconds=MANY_SECONDS)
LIST = Method("jobs", "list", Wanted, Page, seconds=MANY_SECONDS)
RUN = Method("jobs", "run", Named, seconds=MANY_SECONDS)


class _Put(msgspec.Struct, frozen=True, tag="put"):
    job: Job
    at: float  # When it was scheduled: times count from there, however long the owner was looked for.
    overwrite: bool


class _Delete(msgspec.Struct, frozen=True, tag="delete"):
    pass


class _Run(msgspec.Struct, frozen=True, tag="run"):
    pass


_ASKED = msgspec.msgpack.Decoder(_Put | _Delete | _Run)
_JOB = msgspec.msgpack.Decoder(Job)
_encoded = msgspec.msgpack.Encoder().encode


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


def check_name(name: str) -> None:
    """Check a job's name.

    Raises:
        BadArgumentError: It is too long, or cannot be the last segment of a path.
    """
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise BadArgumentError(f"the name of a job has at most {MAX_NAME_BYTES} bytes")
    if _CONTROL.search(name) or name in (".", "..") or not name.isprintable():
        raise BadArgumentError("the name of a job has no '|' and no control characters, and is not '.' or '..'")


def _check(job: Job) -> None:
    check_name(job.name)
    if job.data is not None and len(job.data) > MAX_DATA_BYTES:
        raise BadArgumentError(f"the data of a job have {len(job.data)} bytes; {MAX_DATA_BYTES} are the most")
    if job.data_type is not None and (len(job.data_type) > MAX_TEXT or not _TYPE.match(job.data_type)):
        raise BadArgumentError(f"the type of a job's data is no URL of at most {MAX_TEXT} characters")
    for name, text in (("schedule", job.schedule), ("dueTime", job.due_time), ("ttl", job.ttl)):
        if text is not None and len(text) > MAX_TEXT:
            raise BadArgumentError(f"{name} has more than {MAX_TEXT} characters")
    policy = job.policy
    if not 0 <= policy.interval < math.inf or (policy.retries is not None and policy.retries < 0):
        raise BadArgumentError("the interval and the retries of a failure policy are not negative")


class Jobs:
    """The building block."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Host nothing yet."""
        self._parts = parts
        self._app_id, self._namespace = parts.caller.app_id, parts.caller.namespace
        self._kind = f"jobs.{self._app_id}"
        self._timers: Timers | None = None
        self._life: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._ending = asyncio.Event()
        self._way: _Way | None = None
        self._quiet_until = 0.0

    @property
    def hosts(self) -> bool:
        """Whether this node takes part in handing the jobs over."""
        return self._life is not None

    async def run(self, operation: Operation) -> object:
        """Do what is asked of the application's jobs."""
        asked: dict[Method, Callable[[Operation], Awaitable[object]]] = {
            SCHEDULE: self._schedule,
            GET: self._get,
            DELETE: self._delete,
            DELETE_BY_PREFIX: self._delete_by_prefix,
            LIST: self._list,
            RUN: self._run,
        }
        return await asked[operation.method](operation)

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
        asked = cast("Schedule", operation.arguments)
        _check(asked.job)
        now = time.time()
        _timing(asked.job, now)
        await self._host()
        await self._ask(asked.job.name, _Put(asked.job, now, asked.overwrite), operation.deadline)

    async def _get(self, operation: Operation) -> Registered:
        """Give a job; raises ``JobNotFoundError``."""
        name = cast("Named", operation.arguments).name
        check_name(name)
        timers = await self._opened()
        timer = await timers.get(await self._partition(name), name, "")
        if timer is None:
            raise _not_found(name)
        return _registered(timer)

    async def _delete(self, operation: Operation) -> None:
        """Delete a job, if it is there."""
        name = cast("Named", operation.arguments).name
        check_name(name)
        await self._host()
        await self._ask(name, _Delete(), operation.deadline)

    async def _delete_by_prefix(self, operation: Operation) -> None:
        """Delete all that are there now and whose name begins so."""
        await self._host()
        waiting = [each.job.name async for each in self._all(cast("Named", operation.arguments).name)]
        names = iter(waiting)

        async def delete() -> None:
            for name in names:
                await self._ask(name, _Delete(), operation.deadline)

        async with task_group() as tasks:
            for _ in range(min(DELETES_AT_ONCE, len(waiting))):
                tasks.create_task(delete(), name="jobs-delete")

    async def _list(self, operation: Operation) -> Page:
        """Give a page of the jobs."""
        asked = cast("Wanted", operation.arguments)
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
        await self._host()
        await self._ask(name, _Run(), operation.deadline)

    async def _ask(self, name: str, what: _Put | _Delete | _Run, deadline: float) -> None:
        await self._parts.owners.ask(self._kind, name, {}, _encoded(what), deadline)

    async def _partition(self, name: str) -> int:
        return partition_of(name, len((await self._parts.owners.table(self._kind)).owners))

    # Owning

    async def _opened(self) -> Timers:
        """Give the timers, which this node need not own any of."""
        if self._timers is None:
            from mesh.timers import Timers

            store = await self._parts.records("mesh:timers")
            self._timers = self._timers or Timers(self._kind, store, self._fire, self._sure)
        return self._timers

    def _sure(self, partition: int) -> bool:
        return self._parts.owners.owns(self._kind, partition)

    async def _host(self) -> None:
        """Take part from now on.

        Raises:
            RecordsMissingError: There is no place for jobs.
        """
        async with self._opening:
            if self.hosts:
                return
            timers = await self._opened()
            begun = asyncio.Event()
            self._life = asyncio.create_task(self._live(timers, begun), name="jobs")
            self._parts.stack.push_async_callback(self._end)
            await begun.wait()
            self._parts.owners.host(self._kind, timers, self._answer, ready=self._way is not None)
        with suppress(MeshError):  # Whoever has not heard it looks again before long.
            await tell(self._parts.exchange, self._news)

    async def _live(self, timers: Timers, begun: asyncio.Event) -> None:
        async with timers.run():
            begun.set()
            await self._ending.wait()

    async def _end(self) -> None:
        self._ending.set()
        if self._life is not None:
            await self._life

    async def _answer(self, asked: Asked) -> Message:
        """Do at the owner what another gateway of the application asks for."""
        if (asked.caller.namespace, asked.caller.app_id) != (self._namespace, self._app_id):
            raise PermissionDeniedError(f"jobs of {self._app_id} are its own")
        try:
            what = _ASKED.decode(asked.body)
        except msgspec.DecodeError as error:
            raise BadArgumentError(f"it is nothing that is asked of jobs: {error}") from None
        timers, name = await self._opened(), asked.key
        if isinstance(what, _Put):
            await self._put(timers, asked.partition, msgspec.structs.replace(what.job, name=name), what)
        elif isinstance(what, _Delete):
            await timers.delete(asked.partition, name, "")
        else:
            timer = await timers.get(asked.partition, name, "")
            if timer is None:
                raise _not_found(name)
            attempt = await self._hand_over(_job(timer))
            if attempt.outcome is not Came.SUCCESS:
                raise AppFailedError(attempt.reason)
        return Message({}, b"")

    async def _put(self, timers: Timers, partition: int, job: Job, what: _Put) -> None:
        from mesh.timers import Timer, TimerExistsError

        _check(job)
        kept = _encoded(msgspec.structs.replace(job, name="", policy=Policed()))
        timer = Timer(job.name, "", _timing(job, what.at), _policy(job), kept)
        try:
            await timers.put(partition, timer, overwrite=what.overwrite)
        except TimerExistsError:
            raise JobExistsError(f"job already exists: '{job.name}'") from None

    # What is handed over

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Hand the application's jobs over."""
        policy = self._parts.policies.for_app(self._app_id)
        return [Held("jobs", policy, self._served(inbound.application, policy), overlaps=True)]

    @asynccontextmanager
    async def _served(self, application: Application, policy: Policy) -> AsyncIterator[None]:
        """Be there for jobs; leaving waits for those that are being handed over."""
        self._way = way = _Way(self._towards(application, policy))
        self._tell_ready()
        try:
            async with task_group() as tasks:
                looking = tasks.create_task(self._look(), name="jobs-look")
                try:
                    yield
                finally:
                    looking.cancel()
        finally:
            if self._way is way:  # Else it has a follower, as under another policy.
                self._way = None
                self._tell_ready()
        if way.running:
            await way.idle.wait()

    def _tell_ready(self) -> None:
        if self.hosts and self._timers is not None:
            self._parts.owners.host(self._kind, self._timers, self._answer, ready=self._way is not None)

    @property
    def _news(self) -> address.Address:
        return address.jobs(self._namespace, self._app_id)

    async def _look(self) -> None:
        """Begin to host once there may be jobs."""
        heard = asyncio.Event()

        def hear(frame: Frame) -> None:
            if counts(self._parts.exchange, self._news, frame, self._namespace, self._app_id):
                heard.set()

        while not self.hosts:
            try:
                async with self._parts.broker.listen(self._news, hear):
                    while not self.hosts:
                        if await self._may_be_wanted():
                            await self._host()
                            return
                        heard.clear()
                        with suppress(TimeoutError):
                            async with asyncio.timeout(LOOK_SECONDS):
                                await heard.wait()
            except RecordsMissingError:
                return  # So nobody has any.
            except MeshError as error:
                logger.debug("jobs: %s", error)
                await asyncio.sleep(AGAIN_SECONDS)

    async def _may_be_wanted(self) -> bool:
        """Tell whether another gateway hosts the kind, or one did and has left jobs behind."""
        table = await self._parts.owners.table(self._kind)
        if table.members or not any(table.epochs):
            return bool(table.members)
        return bool(await (await self._opened()).listed(None, None, "", 1))

    def _towards(self, application: Application, policy: Policy) -> InboundHandler:
        async def call(arrival: Arrival) -> Attempt:
            job, span = arrival.what
            headers = [("Content-Type", "application/json"), *([("traceparent", span)] if span else [])]
            if job.data_type is not None:
                headers.append((DATA_TYPE_HEADER, job.data_type))
            path = f"/job/{quote(job.name, safe='')}"
            try:
                status, _ = await application.post(path, headers, job.data or b"", "job")
            except AppFailedError as error:
                return Attempt(Came.RETRY, str(error), broken=True)
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

    async def _fire(self, timer: Timer) -> Outcome:
        """Hand over what is due."""
        from mesh.timers import Outcome

        try:
            attempt = await self._hand_over(_job(timer))
        except (AppUnreachableError, CircuitOpenError) as error:
            logger.debug("job %r: %s", timer.key, error)
            return Outcome.AWAY
        except MeshError as error:
            attempt = Attempt(Came.RETRY, str(error))
        if attempt.outcome is Came.SUCCESS:
            return Outcome.DONE
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            logger.warning("job %r was not taken: %s", timer.key, attempt.reason)
        return Outcome.FAILED

    # Lists

    async def _page(self, prefix: str, after: str, limit: int) -> Page:
        timers, found = await self._opened(), list[Registered]()
        while len(found) < limit:
            page = await timers.listed(None, None, after, MAX_PAGE)
            for each in page:
                after = await self._place(each)
                if each.key.startswith(prefix):
                    found.append(_registered(each))
                    if len(found) >= limit:
                        return Page(tuple(found), after)
            if len(page) < MAX_PAGE:
                break
        return Page(tuple(found))

    async def _place(self, timer: Timer) -> str:
        from mesh.timers import record_key

        return record_key(self._kind, await self._partition(timer.key), timer.key, "")

    async def _all(self, prefix: str) -> AsyncIterator[Registered]:
        after = ""
        while True:
            page = await self._page(prefix, after, MAX_PAGE)
            for each in page.jobs:
                yield each
            if not (after := page.after):
                return


def _timing(job: Job, now: float) -> Timing:
    """Read when a job is due; raises ``JobScheduleError``."""
    from mesh.schedules import job_timing

    try:
        return job_timing(job.schedule or "", job.due_time or "", job.repeats, job.ttl or "", now)
    except ValueError as error:
        raise JobScheduleError(f"job failed validation: {error}") from None


def _policy(job: Job) -> FailurePolicy:
    from mesh.timers import FailurePolicy

    return FailurePolicy(job.policy.interval, job.policy.retries, job.policy.drop)


def _job(timer: Timer) -> Job:
    """Read what is kept with a timer.

    Raises:
        JobUnreadableError: It is no job, or that of a later version.
    """
    policy = Policed(timer.policy.interval, timer.policy.retries, timer.policy.drop)
    try:
        return msgspec.structs.replace(_JOB.decode(timer.data), name=timer.key, policy=policy)
    except msgspec.DecodeError as error:
        raise JobUnreadableError(f"what is kept of job {timer.key!r} cannot be read: {error}") from None


def _registered(timer: Timer) -> Registered:
    return Registered(_job(timer), timer.timing.first, timer.timing.left)


def _not_found(name: str) -> JobNotFoundError:
    return JobNotFoundError(f"job not found: {name}")


BLOCK = Block("jobs", (SCHEDULE, GET, DELETE, DELETE_BY_PREFIX, LIST, RUN), Jobs)
