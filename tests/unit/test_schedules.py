"""When jobs, reminders and timers fire, by what was written alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.schedules import LATEST, Timing, job_timing, reminder_timing, shown_every, timer_timing

NOW = datetime(2024, 1, 31, 12, tzinfo=UTC).timestamp()
LAST_WEEK = "2024-01-24T12:00:00Z"

Made = Callable[[str, str, str, float], Timing]


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def fired(timing: Timing | None, late: float = 0.0) -> Iterator[float]:
    """Give when each firing is due that is done some seconds later."""
    while timing is not None:
        yield timing.first
        timing = timing.after(timing.first, timing.first + late)


@pytest.mark.parametrize("made", [reminder_timing, timer_timing])
@pytest.mark.parametrize(
    ("due_time", "period", "ttl", "seconds"),
    [
        ("", "", "", [0]),
        ("0s", "", "", [0]),
        ("2s", "", "", [2]),
        ("1.5s", "", "", [1.5]),
        ("0h0m3s0ms0\u00b5s", "", "", [3]),
        ("0h0m3s0ms0\u03bcs", "", "", [3]),
        ("PT1H", "", "", [3600]),
        ("P1M", "", "", [29 * 86400]),  # To the end of February.
        ("2024-01-31T13:00:00+01:00", "", "", [0]),
        ("2024-01-31T12:00:05.5Z", "", "", [5.5]),
        (LAST_WEEK, "", "", [-7 * 86400]),
        ("2s", "0h0m0s0ms", "", [2]),
        ("2s", "R3/PT5S", "", [2, 7, 12]),
        ("2s", "R1/PT5S", "", [2]),
        ("2s", "2s", "3s", [2, 4]),  # The ttl counts from the first time.
        ("2s", "2s", "4s", [2, 4, 6]),
        ("2s", "5s", "1s", [2]),
        ("2s", "2s", "2024-01-31T12:00:05Z", [2, 4]),
        ("0s", "0.5s", "PT1S", [0, 0.5, 1]),
        ("2s", "R2/PT2S", "1h", [2, 4]),
    ],
)
def test_durations(made: Made, due_time: str, period: str, ttl: str, seconds: list[float]) -> None:
    """Reminders and timers fire alike where there is a due time or no period."""
    assert [due - NOW for due in islice(fired(made(due_time, period, ttl, NOW)), 9)] == seconds


def test_a_period_alone() -> None:
    """A reminder is first due after one period, a timer at once."""
    assert reminder_timing("", "R2/PT10S", "", NOW) == Timing(NOW + 10, "@every 10s", 2)
    assert timer_timing("", "R2/PT10S", "", NOW) == Timing(NOW, "@every 10s", 2)
    assert reminder_timing("", "10s", "15s", NOW) == Timing(NOW + 10, "@every 10s", None, NOW + 15)


def test_days_and_months() -> None:
    """A timer has them, by the calendar of UTC; a month that has no such day gives its last one."""
    days = fired(timer_timing("", "P1W2D", "", NOW))
    assert [due - NOW for due in islice(days, 3)] == [0, 9 * 86400, 18 * 86400]
    months = fired(timer_timing("", "R5/P1M", "", NOW))
    assert [f"{datetime.fromtimestamp(due, UTC):%m-%dT%H}" for due in months] == [
        "01-31T12",
        "02-29T12",
        "03-29T12",
        "04-29T12",
        "05-29T12",
    ]
    years = fired(timer_timing("2024-02-29T00:00:00Z", "P1YT1H", "", NOW))
    assert list(islice(years, 1, 3)) == [moment("2025-02-28T01:00:00+00:00"), moment("2026-02-28T02:00:00+00:00")]
    assert timer_timing("", "P9999Y", "", NOW).after(NOW, NOW) is None


@pytest.mark.parametrize(
    ("made", "due_time", "period", "ttl", "told"),
    [
        (reminder_timing, "", "P1D", "", r"period 'P1D' has years, months, weeks or days.*'PT24H'"),
        (reminder_timing, "", "P1W", "", "period 'P1W' has"),
        (reminder_timing, "", "R2/P1Y", "", "period 'R2/P1Y' has"),
        (reminder_timing, "1s", "", "5s", "ttl '5s' needs a period"),
        (reminder_timing, "", "R0/PT1S", "", "period 'R0/PT1S': not a whole number from 1"),
        (timer_timing, "", "R0/PT1S", "", "period 'R0/PT1S': not a whole number from 1"),
        (timer_timing, "", "R4294967296/PT1S", "", "period 'R4294967296/PT1S': not a whole number"),
        (timer_timing, "", "R5", "", "period 'R5': repetitions need an ISO 8601 duration"),
        (timer_timing, "", "R5/10s", "", "repetitions need an ISO 8601 duration"),
        (timer_timing, "", "R5/PT0S", "", "period 'R5/PT0S' repeats, and has no length"),
        (timer_timing, "", "PT1.5S", "", "no fractions"),
        (timer_timing, "", "5", "", "a duration needs a unit"),
        (timer_timing, "", "9" * 99, "", r"period '9{64}\.\.\.': not a duration"),
        (timer_timing, "R2/PT1S", "", "", "dueTime 'R2/PT1S' repeats; only a period does"),
        (timer_timing, "soon", "", "", "dueTime: not a duration: 'soon'.*an instant is written as"),
        (timer_timing, "-1s", "", "", "dueTime: a duration cannot be negative"),
        (timer_timing, "P9999Y", "", "", "dueTime: it is behind the year 9999"),
        (timer_timing, "2024-02-30T00:00:00Z", "", "", "dueTime: not a duration"),
        (timer_timing, "", "1s", "later", "ttl: not a duration: 'later'"),
        (timer_timing, "", "1s", LAST_WEEK, f"ttl '{LAST_WEEK}' is over"),
        (timer_timing, "1h", "1s", "2024-01-31T12:30:00Z", "ttl '2024-01-31T12:30:00Z' is over before"),
        (timer_timing, LAST_WEEK, "1s", "1h", "ttl '1h' is over before"),
    ],
)
def test_what_is_no_timing(made: Made, due_time: str, period: str, ttl: str, told: str) -> None:
    """The error names the field and what it has."""
    with pytest.raises(ValueError, match=told):
        made(due_time, period, ttl, NOW)


@pytest.mark.parametrize(
    ("schedule", "due_time", "repeats", "ttl", "timing", "following"),
    [
        ("", "1s", None, "", Timing(NOW + 1), None),
        ("", "1s", 1, "", Timing(NOW + 1), None),
        ("@every 10s", "", None, "", Timing(NOW + 10, "@every 10s"), NOW + 20),
        ("@every 90m", "", 3, "", Timing(NOW + 5400, "@every 1h30m0s", 3), NOW + 10800),
        ("@every 10s", "1s", None, "", Timing(NOW + 1, "@every 10s"), NOW + 11),
        ("@every 10s", "1s", None, "9s", Timing(NOW + 1, "@every 10s", None, NOW + 10), None),
        ("@every 0s", "", None, "", Timing(NOW + 0.1, "@every 100ms"), NOW + 0.2),
        ("@every 1ns", "1s", None, "", Timing(NOW + 1, "@every 100ms"), NOW + 1.1),
        ("@daily", "", None, "", Timing(NOW + 43200, "0 0 * * *"), NOW + 129600),
        ("@hourly", "5s", 2, "", Timing(NOW + 5, "0 * * * *", 2), NOW + 3600),
        ("*/5 * * * * ?", "", None, "7s", Timing(NOW + 5, "*/5 * * * * *", None, NOW + 7), None),
        (
            "TZ=Europe/Berlin 0 30 13 * * MON-FRI",
            "",
            None,
            "",
            Timing(NOW + 1800, "CRON_TZ=Europe/Berlin 0 30 13 * * MON-FRI"),
            NOW + 88200,
        ),
        (
            "CRON_TZ=utc  0 30 12 31 JAN ?",
            "",
            None,
            "",
            Timing(NOW + 1800, "0 30 12 31 JAN *"),
            NOW + 1800 + 366 * 86400,
        ),
    ],
)
def test_jobs(
    schedule: str, due_time: str, repeats: int | None, ttl: str, timing: Timing, following: float | None
) -> None:
    """The due time is the first firing; without one the schedule gives it."""
    made = job_timing(schedule, due_time, repeats, ttl, NOW)
    assert made == timing
    then = made.after(made.first, made.first)
    assert (None if then is None else then.first) == following


@pytest.mark.parametrize(
    ("zone", "told", "kept"),
    [
        ("CRON_TZ=", "Europe/Berlin", "0 30 13 * * *"),
        ("TZ=Local", "Europe/Berlin", "CRON_TZ=Europe/Berlin 0 30 13 * * *"),
        ("CRON_TZ=Local", ":Asia/Tokyo", "CRON_TZ=Asia/Tokyo 0 30 13 * * *"),
        ("CRON_TZ=Local", "", "0 30 13 * * *"),
    ],
)
def test_the_zone_of_the_machine(zone: str, told: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept has its name, so that it means the same wherever it is read."""
    monkeypatch.setenv("TZ", told)
    assert job_timing(f"{zone} 0 30 13 * * *", "", None, "", NOW).every == kept


def test_a_machine_without_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST")
    with pytest.raises(ValueError, match="'CET-1CEST' is no time zone"):
        job_timing("TZ=Local 0 30 13 * * *", "", None, "", NOW)


@pytest.mark.skipif(not Path("/etc/localtime").is_symlink(), reason="the zone of this machine has no name")
def test_the_zone_that_a_link_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TZ", raising=False)
    ZoneInfo(job_timing("TZ=Local 0 30 13 * * *", "", None, "", NOW).every.removeprefix("CRON_TZ=").split()[0])


@pytest.mark.parametrize(
    ("schedule", "due_time", "repeats", "ttl", "told"),
    [
        ("", "", None, "", r"Schedule is empty\Z"),
        ("bogus", "", None, "", r"expected exactly 6 fields, found 1: \[bogus\]\Z"),
        ("0 * * * *", "", None, "", r"expected exactly 6 fields, found 5: \[0 \* \* \* \*\]\Z"),
        ("CRON_TZ=Europe/Berlin", "", None, "", "expected exactly 6 fields, found 1"),
        ("TZ=UTC @every 1s", "", None, "", "@every takes no time zone"),
        ("CRON_TZ=Mars/Base * * * * * *", "", None, "", "'Mars/Base' is no time zone"),
        ("CRON_TZ=../../etc/passwd * * * * * *", "", None, "", "is no time zone"),
        ("@often", "", None, "", "'@often' is no schedule"),
        ("@every soon", "", None, "", "'@every soon' is no schedule: not a duration: 'soon'"),
        ("61 * * * * *", "", None, "", "'61 .*' is no schedule: Bad second; it has six fields"),
        ("9" * 200 + " * * * * *", "", None, "", r"'9{64}\.\.\.' is no schedule"),
        ("*" * 9999, "", None, "", "at most 256 characters"),
        ("0 0 0 31 2 *", "", None, "", "is no schedule"),
        ("CRON_TZ=Europe/Berlin 0 30 2 * 3 0L", "", None, "", "never comes"),  # Clocks skip it each year.
        ("@daily", "", 0, "", "repeats is from 1 to 4294967295, not 0"),
        ("@daily", "", 2**32, "", "repeats is from 1"),
        ("", "1s", 2, "", "repeats 2 needs a schedule"),
        ("", "1s", None, "1h", "ttl '1h' needs a schedule"),
        ("@daily", "R2/PT1S", None, "", "dueTime 'R2/PT1S' repeats"),
        ("@daily", "", None, LAST_WEEK, "is over before"),
    ],
)
def test_what_is_no_job(schedule: str, due_time: str, repeats: int | None, ttl: str, told: str) -> None:
    """The error names what was given, and is short."""
    with pytest.raises(ValueError, match=told) as caught:
        job_timing(schedule, due_time, repeats, ttl, NOW)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("schedule", "begin", "ticks"),
    [
        # Clocks go forward at 02:00 on March 31, and back at 03:00 on October 27.
        ("0 30 2 * * *", "2024-03-30T12:00:00+01:00", ["2024-04-01T02:30:00+02:00", "2024-04-02T02:30:00+02:00"]),
        ("0 0 * * * *", "2024-03-31T01:30:00+01:00", ["2024-03-31T03:00:00+02:00", "2024-03-31T04:00:00+02:00"]),
        (
            "0 30 2 * * *",
            "2024-10-26T12:00:00+02:00",
            ["2024-10-27T02:30:00+02:00", "2024-10-27T02:30:00+01:00", "2024-10-28T02:30:00+01:00"],
        ),
        ("0 0 12 * * *", "2024-10-26T12:00:00+02:00", ["2024-10-27T12:00:00+01:00", "2024-10-28T12:00:00+01:00"]),
    ],
)
def test_clocks_that_change(schedule: str, begin: str, ticks: list[str]) -> None:
    """Six fields are of the clock on the wall."""
    timing = job_timing(f"CRON_TZ=Europe/Berlin {schedule}", "", None, "", moment(begin))
    assert list(islice(fired(timing), len(ticks))) == [moment(tick) for tick in ticks]


def test_the_longest_schedule() -> None:
    """What is taken can be read again."""
    fields = f"{'0,' * 122}0 * * * * *"
    timing = job_timing(f"TZ=America/Argentina/Buenos_Aires {fields}", "", None, "", NOW)
    assert (len(fields), timing.after(NOW, NOW)) == (255, Timing(NOW + 60, timing.every))
    with pytest.raises(ValueError, match="at most 256 characters"):
        job_timing(f"00{fields}", "", None, "", NOW)


def test_a_name_comes_once_a_day() -> None:
    """Also where midnight is there twice, and where it is left out."""
    back = job_timing("CRON_TZ=America/Havana @daily", "", None, "", moment("2024-11-02T12:00:00-04:00"))
    assert list(islice(fired(back), 2)) == [moment("2024-11-03T00:00:00-04:00"), moment("2024-11-04T00:00:00-05:00")]
    forth = job_timing("CRON_TZ=America/Havana @daily", "", None, "", moment("2024-03-09T12:00:00-05:00"))
    assert list(islice(fired(forth), 2)) == [moment("2024-03-10T01:00:00-04:00"), moment("2024-03-11T00:00:00-04:00")]


@pytest.mark.parametrize(
    "timing",
    [
        job_timing("@every 100ms", "2000-01-01T00:00:00Z", 5, "", NOW),
        job_timing("* * * * * *", "2000-01-01T00:00:00Z", 5, "", NOW),
        timer_timing("2000-01-01T00:00:00Z", "R5/P1MT1S", "", NOW),
    ],
    ids=lambda timing: timing.every,
)
def test_a_large_gap(timing: Timing) -> None:
    """What was missed in decades is one firing, and is not gone through."""
    began = time.process_time()
    then = timing.after(timing.first, NOW)
    assert time.process_time() - began < 0.5
    assert then is not None
    assert (then.left, NOW < then.first < NOW + 32 * 86400) == (4, True)


def test_the_shortest_period_of_a_timer() -> None:
    assert timer_timing("", "1ns", "", NOW).every == "@every 10ms"


def test_behind_the_last_year() -> None:
    """No time could be written of it."""
    assert job_timing("", "9999-12-31T23:59:59Z", None, "", NOW).first == LATEST
    with pytest.raises(ValueError, match="9999"):
        job_timing("", "9999-12-31T23:59:59-12:00", None, "", NOW)


@pytest.mark.parametrize(
    ("period", "shown"),
    [
        ("", ""),
        ("10s", "@every 10s"),
        ("R2/PT10S", "@every 10s"),
        ("PT1H", "@every 1h0m0s"),
        ("1m30.25s", "@every 1m30.25s"),
        ("120ms", "@every 120ms"),
        ("20ms", "@every 100ms"),
        ("1.0019s", "@every 1.001s"),
        ("1ns", "@every 100ms"),
        ("0s", ""),
    ],
)
def test_how_a_period_is_shown(period: str, shown: str) -> None:
    """As Go writes a duration; what is shown may be written back."""
    assert shown_every(period) == shown
    made = reminder_timing("1s", shown, "", NOW)
    assert made.every == shown
    assert made.left is None


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"first": "soon"},
        {"first": math.inf},
        {"first": -1.0},
        {"first": 1e300},
        {"first": 1.0, "until": math.nan},
        {"first": 1.0, "left": 0},
        {"first": 1.0, "every": "bogus"},
        {"first": 1.0, "every": "P0M"},
        {"first": 1.0, "every": "@every -1s"},
        {"first": 1.0, "every": 5},
    ],
)
def test_what_does_not_decode(found: dict[str, object]) -> None:
    """What is in a record is not trusted."""
    with pytest.raises(ValueError, match=r"."):
        Timing.decode(found)


SECONDS = st.integers(0, 4_000_000_000).map(lambda milliseconds: milliseconds / 1000)
MOMENTS = st.floats(1e9, 4e9)
EVERY = st.one_of(
    st.integers(1, 10**9).map(lambda milliseconds: f"@every {milliseconds}ms"),
    st.tuples(st.integers(1, 30), st.integers(0, 40)).map(lambda parts: f"P{parts[0]}M{parts[1]}D"),
    st.sampled_from(
        ["*/7 * * * * *", "CRON_TZ=Europe/Berlin 0 30 2 * * *", "0 0 0 29 2 *", "CRON_TZ=Asia/Tokyo 0 9 * * 1"]
    ),
)
TIMINGS = st.builds(Timing, MOMENTS, EVERY, st.none() | st.integers(1, 9), st.none() | MOMENTS)


@given(st.text("RP0159/-*,?#LW.YMDTHSms@TZ=: +\u00b2"), st.text("RP059/YMWDTHS.sm-+:Z"))
def test_only_value_errors(schedule: str, text: str) -> None:
    """No text does anything else."""
    ways: tuple[Callable[[], Timing], ...] = (
        lambda: job_timing(schedule, "", None, "", NOW),
        lambda: job_timing(f"0 {schedule} {text} * * 1", "", None, "", NOW),
        lambda: job_timing("@daily", text, None, text, NOW),
        lambda: reminder_timing(text, text, "", NOW),
        lambda: timer_timing("", text, text, NOW),
        lambda: Timing.decode({"first": NOW, "every": text}),
    )
    for made in ways:
        try:
            timing = made()
        except ValueError:
            continue
        assert Timing.decode(timing.encode()) == timing


@given(TIMINGS, SECONDS, SECONDS)
def test_never_early(timing: Timing, late: float, more: float) -> None:
    """The next is after the last and after now, and no earlier when it is asked for later."""
    due = timing.first
    for now in (due - late, due, due + late):
        then = timing.after(due, now)
        if then is None:
            assert timing.left == 1 or timing.until is not None
            continue
        assert then.first > max(due, now)
        assert timing.until is None or then.first <= timing.until
        assert then.left == (None if timing.left is None else timing.left - 1)
        later = timing.after(due, now + more)
        assert later is None or later.first >= then.first


@given(TIMINGS, st.integers(0, 20), st.floats(0, 1))
def test_on_the_grid(timing: Timing, missed: int, part: float) -> None:
    """Whoever missed some goes on with one that would have been due anyway."""
    timing = Timing(timing.first, timing.every)
    steps = list(islice(fired(timing), missed + 3))
    now = steps[missed] + part * (steps[missed + 1] - steps[missed])
    then = timing.after(timing.first, now)
    assert then is not None
    assert then.first == next(step for step in steps[1:] if step > now)


@given(TIMINGS)
def test_round_trip(timing: Timing) -> None:
    """Through JSON nothing is lost."""
    assert Timing.decode(orjson.loads(orjson.dumps(timing.encode()))) == timing


@given(st.integers(1, 30), EVERY, st.floats(0, 1e6))
def test_how_often(times: int, every: str, late: float) -> None:
    """It fires as often as it says, in the order of time, and is over then."""
    found = list(fired(Timing(NOW, every, times), late))
    assert (len(found), found) == (times, sorted(set(found)))


@given(MOMENTS, SECONDS.map(lambda seconds: seconds + 0.001))
def test_the_first(now: float, seconds: float) -> None:
    """It is due by a millisecond of what was asked for, and not before that."""
    asked = now + seconds
    for timing in (
        reminder_timing(f"{seconds:.3f}s", "", "", now),
        reminder_timing("", f"{seconds:.3f}s", "", now) if seconds >= 0.1 else None,  # No period is shorter.
        job_timing("", f"{seconds:.3f}s", None, "", now),
    ):
        assert timing is None or asked - 1e-5 <= timing.first < asked + 0.00101 + 1e-5


@given(
    st.sampled_from(["Europe/Berlin", "America/New_York", "America/Havana", "Asia/Kolkata"]),
    st.sampled_from(["2024-03-10", "2024-03-31", "2024-07-01", "2024-10-27", "2024-11-03"]),
    st.integers(0, 86400),
    st.sets(st.integers(0, 59), min_size=1, max_size=4),
    st.sets(st.integers(0, 23), min_size=1, max_size=6),
)
def test_cron_is_the_clock(zone: str, day: str, second: int, minutes: set[int], hours: set[int]) -> None:
    """A tick is the first minute whose time on the wall has the fields."""
    begin = moment(f"{day}T00:00:00+00:00") + second
    fields = f"0 {','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
    wall = ((tick, datetime.fromtimestamp(tick, ZoneInfo(zone))) for tick in minutes_after(begin))
    first = next(tick for tick, shown in wall if shown.minute in minutes and shown.hour in hours)
    assert job_timing(f"CRON_TZ={zone} {fields}", "", None, "", begin).first == first


def minutes_after(begin: float) -> Iterator[float]:
    minute = math.floor(begin / 60) * 60.0
    while True:
        minute += 60
        yield minute
