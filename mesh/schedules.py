"""When something fires: what people write of jobs, reminders and timers, and the schedules of the cron binding.

=========== ============================================ ====================== ======================
What        Jobs                                         Reminders              Timers
=========== ============================================ ====================== ======================
repetition  ``schedule``: six cron fields, ``@daily``…,  ``period``: ``10s``,   ``period``: also years,
            ``@every 10s``                               ``R5/PT30S``           months, weeks and days
no dueTime  the schedule's first tick                    after one period; at   at once
                                                         once, if there is none
ttl needs   a schedule                                   a period               nothing
=========== ============================================ ====================== ======================

- ``dueTime`` is when it fires first, and where periods are counted from; one in the past is at once. ``dueTime`` and
  ``ttl`` are durations (``1.5s``, ``P1M``) or instants (``2030-01-01T00:00:00Z``).
- ``ttl`` is counted from ``dueTime``, or from now where there is none. The first firing is one in any case.
- ``Rn/`` and ``repeats`` count all firings, the first included. A period of zero is none.
- Times are whole milliseconds: the first one is rounded up, and periods down. The shortest period is 100 ms for jobs
  and reminders, since each firing of one is kept, and 10 ms for timers; one that is shorter is taken as that.
- Six fields of cron come twice where clocks are set back over them, and not at all where they are set forward over
  them; ``@daily`` and its like come once. Months are those of UTC, counted from the last time; where one has no such
  day, its last one: after January 31 come February 28 and March 28.

Source: Dapr's scheduler (go-etcd-cron ``builder.go`` and ``repeats.go``, kit ``cron``) for jobs and reminders;
``setReminderTimes`` and ``ReminderPeriod`` of its actors for timers. Other than there, ``R0`` is refused for
reminders too (there: without end), a reminder with a period of zero fires once (there: every millisecond), periods have
the least above (there: a millisecond), and months end as above (there: January 31 and a month are March 3).
"""

from __future__ import annotations

import math
import os
import re
from calendar import monthrange
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import lru_cache, partial
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError
from msgspec.structs import replace

from mesh.values import is_instant, parse_duration, parse_instant, parse_period, parse_whole, shortened

__all__ = [
    "LATEST",
    "Schedule",
    "Timing",
    "job_timing",
    "parse_schedule",
    "reminder_timing",
    "shown_every",
    "timer_timing",
    "zone_of",
]

MOST_REPEATS = 2**32 - 1
LONGEST_SCHEDULE = 256  # Characters, without the time zone.
LATEST = 253402300799.0  # Unix time: the end of the year 9999, behind which no time can be shown.
SHORTEST_KEPT, SHORTEST = 100, 10  # Milliseconds: periods of jobs and reminders, of timers.
_EVERY = "@every "
_NEVER = (StopIteration, ValueError, OverflowError, OSError)  # What is behind the last year that Python knows.
_ZONE = re.compile(r"(?:CRON_)?TZ=(\S*)\s+(.*)\Z", re.DOTALL)
_CLOCK = Path("/etc/localtime")
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """When ticks are, alike on every host.

    Attributes:
        fields: Five fields, or six with seconds first; empty = it has a period.
        zone: Whose clock the fields are of.
        period: Seconds from tick to tick.
    """

    fields: str
    zone: tzinfo = UTC
    period: float = 0.0

    def after(self, moment: float) -> float:
        """Give the first tick after a moment, in Unix time; raises StopIteration where none comes.

        Ticks of a period are whole seconds counted from the beginning of 1970, one at least.
        """
        if self.period:
            period = max(1, int(self.period))
            return float((math.floor(moment) // period + 1) * period)
        ticks = CronSim(self.fields, datetime.fromtimestamp(math.floor(moment), self.zone))
        # In the hour that there is twice, five fields give the time of the first one also in the second one.
        return next(tick for tick in (found.timestamp() for found in ticks) if tick > moment)


def zone_of(name: str) -> tzinfo:
    """Find a time zone, of which ``Local`` is that of this machine; raises ValueError."""
    if name == "Local":
        name = _local()
    try:
        return UTC if name.upper() == "UTC" else ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{shortened(name)!r} is no time zone; one is written as Europe/Berlin") from error


def _local() -> str:
    """Name the zone of this machine: what is kept by that name means the same on every other one."""
    if (told := os.environ.get("TZ")) is not None:
        told = told.removeprefix(":") or "UTC"
        if not told.startswith("/"):
            return told
    clock = Path(told or _CLOCK)
    if told is None and not clock.exists():
        return "UTC"
    _, named, name = str(clock.resolve()).partition("/zoneinfo/")
    if not named:
        raise ValueError(f"'Local' has no name here, since {clock} is no link: set TZ, or write it as Europe/Berlin")
    return name


def parse_schedule(text: str, *, seconds: bool = False) -> Schedule:
    """Read a schedule: ``@every 90s``, ``@hourly``…, or fields; in front may stand ``CRON_TZ=Europe/Berlin``.

    Source: robfig/cron 3, which Dapr reads schedules with, and Go's ``LoadLocation``: no name is UTC.

    Args:
        text: The schedule.
        seconds: There must be six fields, and no time zone with ``@every``, as Dapr's scheduler has it.

    Raises:
        ValueError: It is none.
    """
    given = shortened(text)
    found = _ZONE.match(text.strip())
    zone = UTC if found is None or not found[1] else zone_of(found[1])
    text = (text if found is None else found[2]).strip()
    if len(text) > LONGEST_SCHEDULE:
        raise ValueError(f"a schedule has at most {LONGEST_SCHEDULE} characters: {given!r}")
    word, _, rest = text.partition(" ")
    if word == "@every":
        if seconds and found is not None:
            raise ValueError(f"{given!r} is no schedule: @every takes no time zone")
        try:
            return Schedule("", zone, max(0.001, parse_duration(rest)))
        except ValueError as error:
            raise ValueError(f"{given!r} is no schedule: {error}") from None
    if text.startswith("@") and text not in _NAMED:
        raise ValueError(f"{given!r} is no schedule: it is @every with a duration, or one of {', '.join(_NAMED)}")
    count = len(text.split())
    if seconds and text not in _NAMED and count != 6:
        raise ValueError(f"expected exactly 6 fields, found {count}: [{' '.join(shortened(text).split())}]")
    fields = " ".join(_NAMED.get(text, text).replace("?", "*").split())
    wanted = "six fields, seconds first" if seconds else "five fields, or six with seconds first"
    try:
        next(CronSim(fields, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(f"{given!r} is no schedule: {error}; it has {wanted}") from None
    except StopIteration:
        raise ValueError(f"{given!r} never comes") from None
    return Schedule(fields, zone)


class Timing(msgspec.Struct, frozen=True):
    """When something fires, from its registration on.

    Attributes:
        first: Unix time of the first firing.
        every: How it repeats: empty = it does not, ``@every 1m30s``, ``P1M``, or cron as
            ``CRON_TZ=Europe/Berlin 0 0 12 * * *``.
        left: How often it fires in all, the first time included; None = without end.
        until: Unix time after which it does not fire, except for the first time; None = never.
    """

    first: float
    every: str = ""
    left: int | None = None
    until: float | None = None

    def after(self, due: float, now: float) -> Timing | None:
        """Tell what is left once the firing of `due` is done: the next is after both `due` and `now`; None = over.

        All that were missed until now are one: only `due` counts for `left`.

        Raises:
            ValueError: This host does not know the time zone.
        """
        if not self.every or self.left == 1:
            return None
        step = _stepping(self.every)
        try:
            following = step(due, max(due, now))
        except _NEVER:
            return None
        if self.until is not None and following > self.until:
            return None
        return replace(self, first=following, left=None if self.left is None else self.left - 1)

    def encode(self) -> dict[str, object]:
        """Give it as a JSON object; what is empty is left out."""
        found: dict[str, object] = {"first": self.first}
        if self.every:
            found["every"] = self.every
        if self.left is not None:
            found["left"] = self.left
        if self.until is not None:
            found["until"] = self.until
        return found

    @classmethod
    def decode(cls, found: Mapping[str, object]) -> Timing:
        """Read what `encode` gave; raises ValueError."""
        made = msgspec.convert(found, cls)
        if not all(0 <= moment <= LATEST for moment in (made.first, made.until or 0.0)):
            raise ValueError(f"'first' and 'until' are from 0 to {LATEST:.0f}: {made.first}, {made.until}")
        if made.left is not None and not 1 <= made.left <= MOST_REPEATS:
            raise ValueError(f"'left' is from 1 to {MOST_REPEATS}")
        if made.every:
            _stepping(made.every)
        return made


def reminder_timing(due_time: str, period: str, ttl: str, now: float) -> Timing:
    """Read when a reminder fires; `now` is Unix time.

    Raises:
        ValueError: A text is none, or has what reminders have not.
    """
    every, left, fixed = _parse_period(period, SHORTEST_KEPT)
    if not fixed:
        raise ValueError(
            f"period {shortened(period)!r} has years, months, weeks or days; of a reminder it has none (use 'PT24H')"
        )
    if ttl and not every:
        raise ValueError(f"ttl {shortened(ttl)!r} needs a period")
    return _timing(due_time, every, left, ttl, now, at_once=False)


def timer_timing(due_time: str, period: str, ttl: str, now: float) -> Timing:
    """Read when a timer of an actor fires; `now` is Unix time.

    Raises:
        ValueError: A text is none.
    """
    every, left, _ = _parse_period(period, SHORTEST)
    return _timing(due_time, every, left, ttl, now, at_once=True)


def job_timing(schedule: str, due_time: str, repeats: int | None, ttl: str, now: float) -> Timing:
    """Read when a job fires; `now` is Unix time.

    Raises:
        ValueError: A text is none, or neither `schedule` nor `due_time` is given (`Schedule is empty`).
    """
    if not schedule and not due_time:
        raise ValueError("Schedule is empty")
    if repeats is not None and not 1 <= repeats <= MOST_REPEATS:
        raise ValueError(f"repeats is from 1 to {MOST_REPEATS}, not {shortened(str(repeats))}")
    if not schedule:
        if repeats is not None and repeats > 1:
            raise ValueError(f"repeats {repeats} needs a schedule")
        if ttl:
            raise ValueError(f"ttl {shortened(ttl)!r} needs a schedule")
        return _timing(due_time, "", None, "", now, at_once=True)
    found = parse_schedule(schedule, seconds=True)
    if found.period:
        every = _every(found.period, SHORTEST_KEPT)
    else:
        every = found.fields if found.zone is UTC else f"CRON_TZ={found.zone} {found.fields}"
    return _timing(due_time, every, repeats, ttl, now, at_once=False)


def shown_every(period: str) -> str:
    """Write the period of a reminder as it is shown: ``@every 10s`` for ``R2/PT10S`` and for ``10s``.

    Raises:
        ValueError: It is none.
    """
    return _parse_period(period, SHORTEST_KEPT)[0]


def _timing(due_time: str, every: str, left: int | None, ttl: str, now: float, *, at_once: bool) -> Timing:
    start = _moment("dueTime", due_time, now) if due_time else now
    until = _moment("ttl", ttl, start) if ttl else None
    if until is not None and until < max(start, now):
        raise ValueError(f"ttl {shortened(ttl)!r} is over before it fires for the first time")
    if max(start, until or 0.0) > LATEST:
        raise ValueError("it is behind the year 9999")
    # Never earlier than asked for, but for what a float leaves out.
    first = max(0, math.ceil(start * 1000 - 0.001)) / 1000
    if every and not due_time and not at_once:
        try:
            first = _stepping(every)(first, now)
        except _NEVER:
            raise ValueError(f"{every!r} never comes") from None
    return Timing(first, every, left, until)


def _moment(name: str, text: str, start: float) -> float:
    """Read a duration from a start on, or an instant."""
    text = text.strip()
    if text.startswith("R"):
        raise ValueError(f"{name} {shortened(text)!r} repeats; only a period does")
    try:
        if is_instant(text):
            return parse_instant(text)
        if text.startswith("P"):
            months, days, seconds = parse_period(text)
            return _months_after(start, months) + days * 86400 + seconds
        return start + parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error} (an instant is written as '2030-01-01T00:00:00Z')") from None


def _parse_period(period: str, shortest: int) -> tuple[str, int | None, bool]:
    """Read a period; give how it repeats, how often, and whether it is of fixed length.

    One that is shorter than so many milliseconds is taken as that.
    """
    text, left = period.strip().removeprefix(_EVERY), None  # As a reminder that was read shows it.
    if not text:
        return "", None, True
    try:
        if text.startswith("R"):
            count, _, text = text[1:].partition("/")
            if not text.startswith("P"):
                raise ValueError("repetitions need an ISO 8601 duration, as in 'R5/PT30S'")
            left = parse_whole(count, least=1, most=MOST_REPEATS)
        months, days, seconds = parse_period(text) if text.startswith("P") else (0, 0, parse_duration(text))
    except ValueError as error:
        raise ValueError(f"period {shortened(period)!r}: {error}") from None
    if months:
        return text, left, False
    seconds += days * 86400
    if not seconds and left is not None:
        raise ValueError(f"period {shortened(period)!r} repeats, and has no length")
    return _every(seconds, shortest) if seconds else "", left, not days


def _every(seconds: float, shortest: int) -> str:
    """Write a period as Go does: ``1h0m0s``, ``1.5s``, ``20ms``; it has so many milliseconds at least."""
    milliseconds = max(shortest, math.floor(seconds * 1000 + 0.001))
    if milliseconds < 1000:
        return f"{_EVERY}{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    front = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{_EVERY}{front}{rest / 1000:g}s"


@lru_cache(maxsize=1024)
def _stepping(every: str) -> Callable[[float, float], float]:
    """Read a repetition; give what finds the next time, from the last one, that is after another time."""
    if every.startswith(_EVERY):
        return partial(_next_fixed, max(SHORTEST, round(parse_duration(every.removeprefix(_EVERY)) * 1000)))
    if every.startswith("P"):
        months, days, seconds = parse_period(every)
        if not months:
            raise ValueError(f"{every!r} has no months")
        return partial(_next_month, months, days * 86400 + seconds)
    schedule = parse_schedule(every)
    return lambda _, moment: schedule.after(moment)


def _next_fixed(period: int, due: float, moment: float) -> float:
    """Take a period in milliseconds."""
    last = round(due * 1000)
    last += max(0, (math.floor(moment * 1000) - last) // period) * period
    following = (last + period) / 1000
    return following if following > moment else (last + 2 * period) / 1000


def _next_month(months: int, seconds: float, due: float, moment: float) -> float:
    """Go step by step: at most 96,000 are between 1970 and the last year."""
    following = due
    while following == due or following <= moment:
        following = _months_after(following, months) + seconds
    return following


def _months_after(moment: float, months: int) -> float:
    """Count months of UTC; where one has no such day, it is its last."""
    try:
        begin = datetime.fromtimestamp(moment, UTC)
        year, month = divmod(begin.year * 12 + begin.month - 1 + months, 12)
        day = min(begin.day, monthrange(year, month + 1)[1])
        return begin.replace(year, month + 1, day).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError("it is behind the year 9999") from None
