"""Ticks of a clock: each comes to an application once, however many hosts and instances read the schedule.

Each tick is a durable timer (``mesh/timers``), of a kind that whoever reads the schedule for the application hosts
(``mesh/ownership``): the owner hands it over. Before that it puts the next one, after that the record of this one is
deleted. So ticks do not wait for each other, and what is not done yet is there whoever dies: the last tick of all
that are there, the *head*, is the one whose next one was not put yet. A tick comes a second time only when its owner is
gone between the application's answer and the store's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, ClassVar

import orjson

from mesh.adapter import ComponentAdapter
from mesh.address import encode_token
from mesh.blocks.binding_contract import BindingEvent, Invoke, Invoked, Reading
from mesh.errors import (
    AppUnreachableError,
    BrokerUnavailableError,
    MeshError,
    NoResponderError,
    RecordsMissingError,
    StreamBrokenError,
)
from mesh.key_value import MemoryKeyValue
from mesh.resources.settings import Kind, setting
from mesh.schedules import Schedule, Timing, parse_schedule, zone_of
from mesh.store import Item, KeyValueStateStore, StateStore
from mesh.tasks import task_group, until_any
from mesh.timers import FailurePolicy, Outcome, Timer, TimerExistsError, Timers

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners

__all__ = ["CronBinding", "Schedule", "parse_schedule"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5
LATE_SECONDS = 60.0
DRAIN_SECONDS = 30.0  # Half of that: what comes meanwhile is not too late for the next owner.
MAX_TICKS = 100
MAX_KEPT = 1000  # Those, those of the last minute that wait for the application, and the next one.
STOPPED = "stopped"
ONLY = 0  # The partition.
# Nothing reached the application, or whoever carried it there was killed.
_NOT_THERE = (AppUnreachableError, NoResponderError, StreamBrokenError, BrokerUnavailableError)


@dataclass(frozen=True, slots=True)
class CronSettings:
    """What is read of a component."""

    schedule: Schedule = setting(  # noqa: RUF009 - a frozen value
        "schedule",
        "When: five fields, six with seconds first, `@every 15m`, or `@hourly`, `@daily`…; in front may stand "
        "`CRON_TZ=Europe/Berlin`.",
        Kind("schedule", parse_schedule),
        required=True,
        example="@every 15m",
    )
    zone: tzinfo | None = setting(  # noqa: RUF009 - a frozen value
        "timeZone",
        "Whose clock the fields are of, as `Europe/Berlin`; UTC, if not set.",
        Kind("time zone", zone_of),
        example="Europe/Berlin",
    )


class CronBinding(ComponentAdapter):
    """Ticks of a clock."""

    title = "Triggers applications by a schedule, once for all hosts and instances."
    tested = "the clock"
    settings: ClassVar[type[CronSettings]] = CronSettings
    operations = ("delete",)

    def __init__(self, settings: CronSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        given = settings.schedule
        self.schedule = given if settings.zone is None else Schedule(given.fields, settings.zone, given.period)
        self._began = time.time()
        self._stopped_at = 0.0
        self._records: StateStore | None = None
        self._name = ""
        self.owners: Owners | None = None
        self.timers: StateStore | None = None

    def remember_in(self, name: str, records: StateStore) -> None:
        """Keep there that the schedule was ended."""
        self._name, self._records = name, records

    def share_by(self, owners: Owners, timers: StateStore) -> None:
        """Have ticks fired by their owner."""
        self.owners, self.timers = owners, timers

    async def _enter(self) -> None:
        if self._records is None or self.owners is None or self.timers is None:
            return
        try:
            await self._records.get(STOPPED, strong=True)
            await self.timers.get(STOPPED, strong=True)
            await self.owners.table("cron")
        except RecordsMissingError as error:
            logger.warning("binding %s: every host and instance fires each tick: %s", self._name, error)
            self._records = self.owners = self.timers = None
        except MeshError as error:
            logger.warning("binding %s: %s", self._name, error)

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """End the schedule on every host that reads it now, for all applications."""
        self._stopped_at = time.time()
        if self._records is not None:
            await self._records.write([Item(STOPPED, orjson.dumps(self._stopped_at))])
        return None

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Hand over ticks while it is entered."""
        async with _Ticks(self, reading).run():
            yield

    async def look(self) -> None:
        """Look whether the schedule was ended meanwhile; raises ``MeshError``."""
        if self._records is not None and not self.ended:
            found = await self._records.get(STOPPED, strong=True)
            self._stopped_at = 0.0 if found is None else float(orjson.loads(found.value))

    @property
    def ended(self) -> bool:
        """Whether it was ended since it was opened here."""
        return self._stopped_at >= self._began

    def comes(self, tick: float) -> bool:
        """Tell whether a tick is not too late, nor of the time between the schedule's end and its new beginning."""
        between = tick < self._began and tick < self._stopped_at + LATE_SECONDS
        return tick > time.time() - LATE_SECONDS and not between


class _Ticks:
    """The ticks for one application; a keeper (``mesh/ownership``)."""

    def __init__(self, binding: CronBinding, reading: Reading) -> None:
        self._binding, self._reading, self._owners = binding, reading, binding.owners
        schedule = binding.schedule
        self._key = f"{schedule.period or schedule.fields} {schedule.zone}"
        self._kind = f"cron.{encode_token(reading.component)}.{encode_token(reading.app_id)}"
        records = binding.timers or KeyValueStateStore(MemoryKeyValue(dotted=True))
        self._timers = Timers(self._kind, records, self._fire, self._sure, drain=DRAIN_SECONDS)
        self._since = time.time()
        self._head = 0.0
        self._beginning: asyncio.Task[None] | None = None
        self._handing = 0
        self._idle, self._ending = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._tasks: asyncio.TaskGroup

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Take part; leaving waits for what is being handed over, unless it is cancelled."""
        async with self._timers.run(), task_group() as self._tasks:
            part = self._tasks.create_task(self._take_part(), name="cron")
            try:
                yield
            except BaseException:
                self.drop(ONLY)
                raise
            finally:
                self._ending.set()
            await asyncio.wait([part])

    async def _take_part(self) -> None:
        if self._owners is None:
            self.take(ONLY, 1)
            await self._ending.wait()
            await self.leave(ONLY)
            return
        async with self._owners.single(self._kind, self, self._ending, lasts=True):
            await self._ending.wait()

    def _sure(self, partition: int) -> bool:
        return self._owners is None or self._owners.epoch(self._kind, partition) is not None

    # A keeper

    def take(self, partition: int, epoch: int) -> None:
        """Begin."""
        self.drop(partition)
        if self._ending.is_set():
            return
        self._timers.take(partition, epoch)
        self._beginning = self._tasks.create_task(self._begin(), name="cron-begin")

    async def leave(self, partition: int) -> None:
        """Hand over between ticks, since what is on its way may come again; at the end, wait for it."""
        await until_any(self._idle, self._ending)
        await self._timers.leave(partition)

    def drop(self, partition: int) -> None:
        """End at once."""
        self._timers.drop(partition)
        if self._beginning is not None:
            self._beginning.cancel()

    # Ticks

    async def _begin(self) -> None:
        """Find the head, or put it."""
        while not self._ending.is_set():
            try:
                found = await self._timers.listed(ONLY, self._key, "", MAX_KEPT)
                self._head = max((each.timing.first for each in found), default=0.0)
                if not found:
                    await self._put_next(time.time())
            except MeshError as error:
                logger.debug("binding %s: %s", self._reading.component, error)
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return

    async def _put_next(self, moment: float) -> None:
        """Put the first tick after a moment."""
        try:
            tick = self._binding.schedule.after(moment)
        except StopIteration:
            return
        timer = Timer(self._key, str(int(tick)), Timing(tick), FailurePolicy(drop=True), b"")
        with suppress(TimerExistsError):
            await self._timers.put(ONLY, timer, overwrite=False)
        self._head = max(self._head, tick)

    async def _fire(self, timer: Timer) -> Outcome:
        """Put the next tick, and hand this one over."""
        if timer.key != self._key:
            return Outcome.CANCEL  # Of the schedule as it was.
        try:
            return await self._advance(timer.timing.first)
        except MeshError as error:
            logger.debug("binding %s: %s", self._reading.component, error)
            return Outcome.AWAY

    async def _advance(self, tick: float) -> Outcome:
        binding, name = self._binding, self._reading.component
        if self._beginning is not None:
            await asyncio.wait([self._beginning])
        if self._ending.is_set():
            return Outcome.AWAY
        if tick >= self._head:
            # Where it is older, nobody may have been there, but for this reader.
            late = time.time() - LATE_SECONDS
            await self._put_next(tick if tick > late else max(late, self._since))
        await binding.look()
        if binding.ended:  # Whoever has opened it since then goes on with it.
            self._ending.set()
            return Outcome.AWAY
        if not binding.comes(tick):
            return Outcome.DONE
        if self._handing >= MAX_TICKS:
            logger.warning("binding %s: a tick is left out, %d are not done yet", name, MAX_TICKS)
            return Outcome.DONE
        self._handing += 1
        self._idle.clear()
        try:
            return await self._hand_over(tick)
        finally:
            self._handing -= 1
            if not self._handing:
                self._idle.set()

    async def _hand_over(self, tick: float) -> Outcome:
        moment = datetime.fromtimestamp(tick, UTC)
        zone = str(self._binding.schedule.zone)
        told = {"timeZone": zone, "readTimeUTC": f"{moment:%Y-%m-%d %H:%M:%S} +0000 UTC"}
        try:
            await self._reading.handle(BindingEvent(b"", told))
        except MeshError as error:  # A clock does not repeat itself: that is for a policy.
            if isinstance(error, _NOT_THERE) and time.time() < tick + LATE_SECONDS:
                return Outcome.BUSY  # The ticks behind it are not to be late for that.
            text = "binding %s: %s has not taken the tick of %s: %s"
            logger.warning(text, self._reading.component, self._reading.app_id, moment.isoformat(), error)
        return Outcome.DONE
