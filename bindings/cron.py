"""Ticks of a clock: each comes to an application once, however many hosts and instances read the schedule.

Whoever reads it claims each tick in the mesh's own store before it hands it over, and notes there when that is done.
Others wait for that; where the claim is not renewed, since its holder was killed, one of them takes it over. So a tick
comes once, and a second time only when its holder is killed between the application's answer and the note.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import ClassVar

import orjson

from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingEvent, Invoke, Invoked, Reading
from mesh.errors import (
    AppUnreachableError,
    BrokerUnavailableError,
    ConflictError,
    MeshError,
    NoResponderError,
    RecordsMissingError,
    StreamBrokenError,
)
from mesh.resources.settings import Kind, setting
from mesh.schedules import Schedule, parse_schedule, zone_of
from mesh.store import Concurrency, Item, StateStore, Stored
from mesh.tasks import task_group

__all__ = ["CronBinding", "Schedule", "parse_schedule"]

logger = logging.getLogger(__name__)

CLAIM_SECONDS = 5.0
AGAIN_SECONDS = 0.5
LATE_SECONDS = 60.0
KEPT_SECONDS = 300.0
MAX_TICKS = 100
LONGEST_SLEEP = 3600.0
STOPPED = "stopped"
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
        self._schedule = given if settings.zone is None else Schedule(given.fields, settings.zone, given.period)
        self._began = time.time()
        self.stopped = False
        self.records: StateStore | None = None
        self._name = ""

    def remember_in(self, name: str, records: StateStore) -> None:
        """Claim ticks there."""
        self._name, self.records = name, records

    async def _enter(self) -> None:
        if self.records is None:
            return
        try:
            await self.records.get(STOPPED, strong=True)
        except RecordsMissingError as error:
            logger.warning("binding %s: every host and instance fires each tick: %s", self._name, error)
            self.records = None
        except MeshError as error:
            logger.warning("binding %s: %s", self._name, error)

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """End the schedule on every host that reads it now, for all applications."""
        self.stopped = True
        if self.records is not None:
            await self.records.write([Item(STOPPED, orjson.dumps(time.time()))])
        return None

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Hand over ticks while it is entered."""
        firing: dict[_Tick, asyncio.Task[None]] = {}
        async with task_group() as tasks:

            def fire(tick: float, *, new: bool = True) -> None:
                if len(firing) >= MAX_TICKS:
                    logger.warning("binding %s: a tick is left out, %d are not done yet", self._name, MAX_TICKS)
                    return
                made = _Tick(self, reading, tick, new=new)
                firing[made] = task = tasks.create_task(made.run(), name="cron-fire")
                task.add_done_callback(lambda _: firing.pop(made))

            ticking = tasks.create_task(self._tick(reading, fire), name="cron-tick")
            try:
                yield
            finally:
                ticking.cancel()
                for made, task in firing.items():
                    if not made.handling:
                        task.cancel()

    async def _tick(self, reading: Reading, fire: Callable[..., None]) -> None:
        last = time.time()
        for tick in await self._unfinished(reading.app_id, last):
            fire(tick, new=False)
        while not self.stopped:
            try:
                tick = self._schedule.after(last)
            except StopIteration:
                return
            while (left := tick - time.time()) > 0:  # noqa: ASYNC110 - it waits for the clock
                await asyncio.sleep(min(left, LONGEST_SLEEP))
            fire(tick)
            last = max(tick, time.time() - LATE_SECONDS)  # After a pause of the machine not all are made up for.

    async def _unfinished(self, app_id: str, now: float) -> list[float]:
        """Find what a host that was killed may have left."""
        if self.records is None:
            return []
        begin = f"{app_id}||"
        try:
            keys = await self.records.keys(begin, f"{begin}{int(now - LATE_SECONDS)}", MAX_TICKS)
        except MeshError as error:
            logger.warning("binding %s: %s", self._name, error)
            return []
        return [float(key.removeprefix(begin)) for key in keys if key.removeprefix(begin).isdigit()]

    @property
    def zone(self) -> str:
        """The name of the time zone."""
        return str(self._schedule.zone)

    async def ended(self) -> bool:
        """Tell whether the schedule was ended since it was opened here."""
        if self.records is not None and not self.stopped:
            found = await self.records.get(STOPPED, strong=True)
            self.stopped = found is not None and float(orjson.loads(found.value)) >= self._began
        return self.stopped


class _Tick:
    """One tick for one application, on its way."""

    def __init__(self, binding: CronBinding, reading: Reading, tick: float, *, new: bool) -> None:
        """Prepare; one that is not new is that of a host which may have been killed."""
        self._binding, self._reading, self._tick, self._new = binding, reading, tick, new
        self._key = f"{reading.app_id}||{int(tick)}"
        self._by = secrets.token_hex(8)
        self.handling = False

    async def run(self) -> None:
        """See to it that the tick is handed over, here or by another host."""
        wait: float | None = 0.0
        while wait is not None:
            await asyncio.sleep(wait)
            try:
                wait = await self._advance()
            except ConflictError:
                wait = 0.0  # Another one was faster.
            except MeshError as error:
                wait = self._again(error)

    def _again(self, error: MeshError) -> float | None:
        if time.time() < self._tick + LATE_SECONDS:
            return AGAIN_SECONDS
        self._warn(error)
        return None

    def _warn(self, error: MeshError) -> None:
        moment = datetime.fromtimestamp(self._tick, UTC).isoformat()
        text = "binding %s: %s has not taken the tick of %s: %s"
        logger.warning(text, self._reading.component, self._reading.app_id, moment, error)

    async def _advance(self) -> float | None:
        """Do what can be done now; give the seconds after which to look again, None = it is over."""
        if await self._binding.ended():
            return None
        records = self._binding.records
        if records is None:
            return await self._fire()
        found = await records.get(self._key, strong=True)
        if found is None and not self._new:
            return None
        if found is not None:
            said = orjson.loads(found.value)
            if said["done"]:
                return None
            left: float = said["until"] - time.time()
            if left > 0:
                return left
        await records.write([self._claim(found)])
        self.handling = True
        try:
            async with task_group() as tasks:
                renewing = tasks.create_task(self._renew(records), name="cron-renew")
                wait = await self._fire()
                renewing.cancel()
            await self._note(records, done=wait is None)
        finally:
            self.handling = False
        return wait

    def _claim(self, found: Stored | None) -> Item:
        etag = None if found is None else found.etag
        first = Concurrency.FIRST_WRITE if found is None else None
        return Item(self._key, self._said(CLAIM_SECONDS), etag, first, KEPT_SECONDS)

    def _said(self, seconds: float, *, done: bool = False) -> bytes:
        return orjson.dumps({"by": self._by, "until": time.time() + seconds, "done": done})

    async def _renew(self, records: StateStore) -> None:
        while True:
            await asyncio.sleep(CLAIM_SECONDS / 3)
            with suppress(MeshError):
                await records.write([Item(self._key, self._said(CLAIM_SECONDS), ttl=KEPT_SECONDS)])

    async def _note(self, records: StateStore, *, done: bool) -> None:
        """Say that it is over, or that whoever can may try."""
        while True:
            try:
                await records.write([Item(self._key, self._said(0.0, done=done), ttl=KEPT_SECONDS)])
            except MeshError as error:
                if self._again(error) is None:
                    return
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return

    async def _fire(self) -> float | None:
        """Hand it over; give the seconds after which to try again, None = it is over."""
        moment = datetime.fromtimestamp(self._tick, UTC)
        told = {"timeZone": self._binding.zone, "readTimeUTC": f"{moment:%Y-%m-%d %H:%M:%S} +0000 UTC"}
        try:
            await self._reading.handle(BindingEvent(b"", told))
        except _NOT_THERE as error:
            return self._again(error)
        except MeshError as error:  # A clock does not repeat itself: that is for a policy.
            self._warn(error)
        return None
