"""The jobs of an application, each kept as a timer (`mesh/timers`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import msgspec
from msgspec.structs import replace

from mesh.blocks.job_record import (
    DEFAULT_POLICY,
    Job,
    JobExistsError,
    JobScheduleError,
    JobUnreadableError,
    Policed,
    Put,
    Registered,
    check,
    encoded,
)
from mesh.delivery import Attempt
from mesh.delivery import Outcome as Came
from mesh.errors import AppUnreachableError, BadArgumentError, CircuitOpenError, MeshError
from mesh.ownership.kind import Keeper
from mesh.schedules import Timing, job_timing
from mesh.store import StateStore
from mesh.timers import FailurePolicy, Outcome, Timer, TimerExistsError, Timers, record_key
from mesh.timers.record import check_moment

__all__ = ["JobTimers", "check_times", "job_of", "registered", "timer_of"]

logger = logging.getLogger(__name__)

QUIET_SECONDS = 30.0
_JOB = msgspec.msgpack.Decoder(Job)


class JobTimers:
    """The jobs of one application, of which this node need not own any.

    Attributes:
        timers: Fires those that this node owns.
    """

    def __init__(
        self,
        kind: str,
        records: StateStore,
        hand_over: Callable[[Job], Awaitable[Attempt]],
        sure: Callable[[int], bool],
    ) -> None:
        """Prepare; nothing is read.

        Args:
            kind: Under which they are owned.
            records: Has their records.
            hand_over: Tells the application of one.
            sure: Tells whether this node owns a partition now, for sure.
        """
        self.timers = Timers(kind, records, self._fire, sure)
        self._kind = kind
        self._hand_over = hand_over
        self._quiet_until = 0.0

    @property
    def keeper(self) -> Keeper:
        """What is told which partitions are this node's."""
        return self.timers

    def run(self) -> AbstractAsyncContextManager[None]:
        """Fire what is due while entered."""
        return self.timers.run()

    async def put(self, partition: int, key: str, what: Put) -> None:
        """Keep one, at its owner.

        Raises:
            BadArgumentError: It cannot be a job.
            JobScheduleError: Its times make no sense.
            JobExistsError: There is one of its name.
            MeshError: As of ``Timers.put``.
        """
        check(what.job)
        if what.job.name != key:
            raise BadArgumentError(f"it is asked for as {key[:100]!r}, and names another job")
        try:
            await self.timers.put(partition, timer_of(what), overwrite=what.overwrite)
        except TimerExistsError:
            found = await self.timers.get(partition, what.job.name, "")
            if found is None or job_of(found).id != what.job.id:  # Else it was done before, and the answer was lost.
                raise JobExistsError(f"job already exists: '{what.job.name}'") from None

    async def get(self, partition: int, name: str) -> Registered | None:
        """Tell of one, at any node; raises ``JobUnreadableError``."""
        timer = await self.timers.get(partition, name, "")
        return None if timer is None else registered(timer)

    def place(self, partition: int, name: str) -> str:
        """Give the place of one in the list of all."""
        return record_key(self._kind, partition, name, "")

    async def _fire(self, timer: Timer) -> Outcome:
        """Hand over what is due."""
        try:
            attempt = await self._hand_over(job_of(timer))
        except (AppUnreachableError, CircuitOpenError, JobUnreadableError) as error:  # A newer gateway may read it.
            logger.debug("job %r: %s", timer.key, error)
            return Outcome.AWAY
        except MeshError as error:
            attempt = Attempt(Came.RETRY, str(error))
        if attempt.outcome is Came.SUCCESS:
            return Outcome.DONE
        quiet = time.monotonic() < self._quiet_until
        if not quiet:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
        logger.log(logging.DEBUG if quiet else logging.WARNING, "job %r was not taken: %s", timer.key, attempt.reason)
        return Outcome.FAILED


def check_times(job: Job, now: float) -> Timing:
    """Read when a job is due; raises ``JobScheduleError``."""
    try:
        return job_timing(job.schedule or "", job.due_time or "", job.repeats, job.ttl or "", now)
    except ValueError as error:
        raise JobScheduleError(f"job failed validation: {error}") from None


def timer_of(put: Put) -> Timer:
    """Make what is kept of a job.

    Raises:
        BadArgumentError: What the asker says of times is none.
        JobScheduleError: The job's times make no sense.
    """
    job = put.job
    try:
        at = check_moment("at", put.at)
        policy = FailurePolicy(job.policy.interval, job.policy.retries, job.policy.drop)
    except ValueError as error:
        raise BadArgumentError(f"it cannot be a job: {error}") from None
    kept = encoded(replace(job, name="", policy=DEFAULT_POLICY))
    return Timer(job.name, "", check_times(job, at), policy, kept)


def job_of(timer: Timer) -> Job:
    """Read what is kept with a timer.

    Raises:
        JobUnreadableError: It is no job, or that of a later version.
    """
    policy = Policed(timer.policy.interval, timer.policy.retries, timer.policy.drop)
    try:
        return replace(_JOB.decode(timer.data), name=timer.key, policy=policy)
    except msgspec.DecodeError as error:
        raise JobUnreadableError(f"what is kept of job {timer.key!r} cannot be read: {error}") from None


def registered(timer: Timer) -> Registered:
    """Tell of a job."""
    return Registered(job_of(timer), timer.timing.first, timer.timing.left)
