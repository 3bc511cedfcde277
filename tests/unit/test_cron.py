"""When ticks are, by the schedule alone."""

from __future__ import annotations

from datetime import datetime

import pytest

from bindings.cron import parse_schedule


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("schedule", "after", "ticks"),
    [
        ("*/15 * * * *", "2024-01-01T00:00:00+00:00", ["2024-01-01T00:15:00+00:00", "2024-01-01T00:30:00+00:00"]),
        ("*/15 * * * *", "2024-01-01T00:14:59.9+00:00", ["2024-01-01T00:15:00+00:00"]),
        ("*/10 * * * * *", "2024-01-01T00:00:00+00:00", ["2024-01-01T00:00:10+00:00", "2024-01-01T00:00:20+00:00"]),
        ("0 30 2 * * ?", "2024-01-01T00:00:00+00:00", ["2024-01-01T02:30:00+00:00", "2024-01-02T02:30:00+00:00"]),
        ("0 0 * * MON-FRI", "2024-01-05T12:00:00+00:00", ["2024-01-08T00:00:00+00:00"]),
        ("@hourly", "2024-01-01T00:00:01+00:00", ["2024-01-01T01:00:00+00:00"]),
        ("@daily", "2024-01-01T00:00:00+00:00", ["2024-01-02T00:00:00+00:00"]),
        ("@midnight", "2024-01-01T00:00:00+00:00", ["2024-01-02T00:00:00+00:00"]),
        ("@weekly", "2024-01-01T00:00:00+00:00", ["2024-01-07T00:00:00+00:00"]),
        ("@monthly", "2024-01-01T00:00:00+00:00", ["2024-02-01T00:00:00+00:00"]),
        ("@yearly", "2024-01-01T00:00:00+00:00", ["2025-01-01T00:00:00+00:00"]),
        ("@annually", "2024-01-01T00:00:00+00:00", ["2025-01-01T00:00:00+00:00"]),
        ("@every 1h", "2024-01-01T00:10:00+00:00", ["2024-01-01T01:00:00+00:00", "2024-01-01T02:00:00+00:00"]),
        ("@every 90s", "1970-01-01T00:00:00+00:00", ["1970-01-01T00:01:30+00:00", "1970-01-01T00:03:00+00:00"]),
        ("@every 10ms", "2024-01-01T00:00:00.5+00:00", ["2024-01-01T00:00:01+00:00"]),
        ("CRON_TZ=Europe/Berlin 0 12 * * *", "2024-07-01T00:00:00+00:00", ["2024-07-01T10:00:00+00:00"]),
        ("TZ=Europe/Berlin 0 0 12 * * *", "2024-01-01T00:00:00+00:00", ["2024-01-01T11:00:00+00:00"]),
        # The hour that there is twice, and a day that is 25 hours long.
        (
            "CRON_TZ=Europe/Berlin 0 12 * * *",
            "2024-10-26T09:00:00+00:00",
            ["2024-10-26T10:00:00+00:00", "2024-10-27T11:00:00+00:00"],
        ),
        ("CRON_TZ=Europe/Berlin 30 2 * * *", "2024-10-27T01:15:00+00:00", ["2024-10-28T01:30:00+00:00"]),
    ],
)
def test_ticks(schedule: str, after: str, ticks: list[str]) -> None:
    """Each is behind the one before."""
    parsed, last = parse_schedule(schedule), moment(after)
    for tick in ticks:
        last = parsed.after(last)
        assert last == moment(tick)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ("", "five fields"),
        ("* * *", "five fields"),
        ("* * * * * * *", "five fields"),
        ("61 * * * *", "Bad minute"),
        ("* * * * * 9", "Bad day-of-week"),
        ("@often", "is no schedule"),
        ("@every", "duration"),
        ("@every soon", "duration"),
        ("CRON_TZ=Mars/Base 0 0 * * *", "is no time zone"),
        ("0 0 31 2 *", "is no schedule"),
    ],
)
def test_what_is_none(schedule: str, told: str) -> None:
    """It is said at start, with what would be one."""
    with pytest.raises(ValueError, match=told):
        parse_schedule(schedule)
