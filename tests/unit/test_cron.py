"""When ticks are, and who hands them over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from types import SimpleNamespace

import pytest

from bindings.cron import CronBinding, CronSettings, parse_schedule
from mesh.blocks.binding_contract import BindingEvent, Invoke, Reading
from mesh.errors import StateError
from mesh.key_value import MemoryKeyValue
from mesh.ownership import kind, session
from mesh.store import Item, KeyValueStateStore, Stored
from tests.support.eventually import eventually
from tests.support.sharing import entered


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


class Link(KeyValueStateStore):
    """A node's way to the store."""

    cut = False

    async def get(self, key: str, *, strong: bool, metadata: object = None) -> Stored | None:
        if self.cut:
            raise StateError("cut")
        return await super().get(key, strong=strong)

    async def write(self, items: Sequence[Item]) -> None:
        if self.cut:
            raise StateError("cut")
        await super().write(items)


class App:
    """An application of which the first tick gets no answer."""

    def __init__(self) -> None:
        self.ticks: list[int] = []

    async def handle(self, event: BindingEvent) -> bytes:
        tick = datetime.strptime(event.metadata["readTimeUTC"], "%Y-%m-%d %H:%M:%S %z UTC")
        self.ticks.append(int(tick.timestamp()))
        if self.ticks[-1] == self.ticks[0]:
            await asyncio.Event().wait()
        return b""


async def test_the_next_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with what the former one had in hand, and makes up for what it missed; what was done stays done."""
    for name, seconds in (("RENEW_SECONDS", 0.1), ("SURE_SECONDS", 0.5), ("HOLD_SECONDS", 1.5)):
        monkeypatch.setattr(session, name, seconds)
    app, shared, timers = App(), MemoryKeyValue(), MemoryKeyValue(dotted=True)
    first = Link(shared)

    async def read(records: Link) -> None:
        binding = CronBinding(CronSettings(parse_schedule("@every 1s")))
        async with entered(binding, records, Link(timers)), binding.reading(Reading("tick", "app", app.handle)):
            await asyncio.Event().wait()

    def have_come(count: int) -> None:
        assert len(set(app.ticks)) >= count

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read(first))
        await eventually(lambda: have_come(3))
        first.cut = True
        reading.cancel()
        await asyncio.wait([reading])
        reading = tasks.create_task(read(Link(shared)))
        await eventually(lambda: have_come(6))
        reading.cancel()
    counts = Counter(app.ticks)
    assert sorted(counts) == list(range(min(counts), max(counts) + 1))
    assert {tick for tick, count in counts.items() if count > 1} == {app.ticks[0]}


async def test_it_is_ended_and_begun_again() -> None:
    """Whoever opens it later goes on with the ticks from then on, though what is left of the others is there."""
    ticks: list[float] = []

    async def handle(event: BindingEvent) -> bytes:
        ticks.append(datetime.strptime(event.metadata["readTimeUTC"], "%Y-%m-%d %H:%M:%S %z UTC").timestamp())
        return b""

    def has_come() -> None:
        assert ticks

    records, timers = Link(MemoryKeyValue()), Link(MemoryKeyValue(dotted=True))
    reading, every = Reading("tick", "app", handle), CronSettings(parse_schedule("@every 1s"))
    async with entered(CronBinding(every), records, timers) as ended, ended.reading(reading):
        await eventually(has_come)
        await ended.invoke(Invoke("delete"))
        ticks.clear()
        began = time.time()
        async with entered(CronBinding(every), records, timers) as later, later.reading(reading):
            await eventually(has_come)
    assert all(tick >= began for tick in ticks)


async def test_the_clock_of_a_former_host_was_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes once that one has left has ticks as well, though by its clock it came earlier."""
    ticks: list[str] = []

    async def handle(event: BindingEvent) -> bytes:
        ticks.append(event.metadata["readTimeUTC"])
        return b""

    def has_come() -> None:
        assert ticks

    records, timers = Link(MemoryKeyValue()), Link(MemoryKeyValue(dotted=True))
    reading, every = Reading("tick", "app", handle), CronSettings(parse_schedule("@every 1s"))
    for ahead in (3600.0, 0.0):
        ticks.clear()
        clock = SimpleNamespace(**vars(time) | {"time": lambda ahead=ahead: time.time() + ahead})
        monkeypatch.setattr(kind, "time", clock)
        async with entered(CronBinding(every), records, timers) as binding, binding.reading(reading):
            await eventually(has_come)
