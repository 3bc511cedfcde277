"""Durable timers: never early, none lost, none left behind, whoever owns them, and whatever the store answers."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.broker import Write
from mesh.errors import MeshError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.ownership.errors import NotOwnerError, OwnerLostError
from mesh.ownership.kind import table_key
from mesh.ownership.owning import Owning
from mesh.ownership.table import Table, partition_of
from mesh.schedules import Timing
from mesh.store import Item, KeyValueStateStore, StateStore, Stored
from mesh.timers import FailurePolicy, Outcome, Timer, TimerExistsError, Timers, record_key
from mesh.timers.hints import STALE, Hints, due_hints, hint
from mesh.timers.record import Record, prefix
from tests.support import virtual_time
from tests.unit.test_ownership import Link

KIND = "jobs.shop"
PARTITIONS = 8
EPOCH = 1_700_000_000.0  # Of the wall clocks.
_T = TypeVar("_T")

# Values

texts = st.text(max_size=12)
policies = st.builds(FailurePolicy, st.floats(0.0, 1e6), st.none() | st.integers(0, 100), st.booleans())
timings = st.builds(
    Timing,
    st.floats(0.0, 1e11),
    st.sampled_from(["", "@every 10s", "P1M", "CRON_TZ=Europe/Berlin 0 0 12 * * *"]),
    st.none() | st.integers(1, 9),
    st.none() | st.floats(0.0, 1e11),
)
timers = st.builds(Timer, texts, texts, timings, policies, st.binary(max_size=40))


@given(timers, st.floats(0.0, 1e11), st.integers(0, 9))
def test_a_record_is_read_as_it_was_written(timer: Timer, due: float, failures: int) -> None:
    key = record_key(KIND, 7, timer.key, timer.name)
    assert key.startswith(prefix(KIND, 7, timer.key))
    assert key.count(".") == 4
    record = Record(timer, due, 3, failures)
    assert Record.decode(key.removeprefix(prefix(KIND, 7)), record.encode()) == record


@pytest.mark.parametrize("data", [b"", b"{}", b"\x90", b"\x96\x00\x00\x00\x80\x93\x00\x00\xc2\xa0"])
@pytest.mark.parametrize("rest", ["key.=", "key", "a.b.c"])
def test_what_is_no_timer(rest: str, data: bytes) -> None:
    with pytest.raises(ValueError, match="no timer"):
        Record.decode(rest, data)


def _left(
    outcome: Outcome, failures: int, policy: FailurePolicy, timing: Mapping[str, object], now: float = 107.0
) -> tuple[float, int] | None:
    """Give when a record that was due at 100 is due again, and its failures, after an outcome."""
    timer = Timer("k", "n", Timing(100.0, **timing), policy, b"")  # type: ignore[arg-type]  # Timing's own fields
    left = Record(timer, 100.0, 3, failures).after(outcome, now, 4)
    assert left is None or left.epoch == 4
    return None if left is None else (left.due, left.failures)


def test_what_is_left() -> None:
    policy = FailurePolicy(2.0, 3)
    once: dict[str, object] = {}
    every = {"every": "@every 5s"}
    assert _left(Outcome.DONE, 0, policy, once) is None
    assert _left(Outcome.DONE, 0, policy, every) == (110.0, 0), "the next one of the grid, and what was missed is one"
    assert _left(Outcome.DONE, 0, policy, {**every, "left": 1}) is None
    assert _left(Outcome.DONE, 0, policy, {**every, "until": 109.0}) is None
    assert _left(Outcome.CANCEL, 0, policy, every) is None
    assert _left(Outcome.FAILED, 0, policy, once) == (109.0, 1)
    assert _left(Outcome.FAILED, 2, policy, once) == (109.0, 3)
    assert _left(Outcome.FAILED, 2, policy, once, 10.0) == (102.0, 3), "the clock was set back"
    assert _left(Outcome.DONE, 0, policy, every, 10.0) == (105.0, 0)
    assert _left(Outcome.FAILED, 3, policy, once) is None, "given up"
    assert _left(Outcome.FAILED, 3, policy, every) == (110.0, 0), "given up, and the next time is another firing"
    assert _left(Outcome.FAILED, 0, FailurePolicy(drop=True), once) is None
    assert _left(Outcome.FAILED, 0, FailurePolicy(drop=True), every) == (110.0, 0)
    assert _left(Outcome.FAILED, 99, FailurePolicy(0.0, None), once) == (107.1, 100)


@pytest.mark.parametrize("retries", [-1, 2**63, 10**400])
def test_a_number_of_retries_that_is_none(retries: int) -> None:
    with pytest.raises(ValueError, match="retries of a failure policy"):
        FailurePolicy(retries=retries)


@pytest.mark.parametrize("due", [-1.0, 1e13, 1e300, float("inf"), float("nan")])
def test_a_record_whose_time_is_none_is_left_alone(due: float) -> None:
    """Whoever may write to the store may write it; it stops no others."""

    async def script(one: Alone) -> None:
        timer = Timer("bad", "n", Timing(1.0), FailurePolicy(), b"bad")
        partition = partition_of("bad", PARTITIONS)
        await one.store.write([Item(record_key(KIND, partition, "bad", "n"), Record(timer, due, 1).encode())])
        one.take()
        await one.put(1.0)
        await asyncio.sleep(2.0)
        assert [data for data, _ in one.fired] == [b"x"]

    play(script)


def test_whether_there_is_any_needs_none_that_can_be_read() -> None:
    async def script(one: Alone) -> None:
        assert not await one.timers.any()
        await one.store.write([Item(record_key(KIND, 0, "bad", "n"), b"no timer")])
        assert await one.timers.any()

    play(script)


def test_the_longest_retry_there_is() -> None:
    async def script(one: Alone) -> None:
        async def fails(_: Timer) -> Outcome:
            return Outcome.FAILED

        one.on_fire = fails
        await one.put(0.0, policy=FailurePolicy(2.0**63))
        await asyncio.sleep(1.0)
        one.on_fire = None
        await one.put(1.0, key="other")
        await asyncio.sleep(2.0)
        assert len(one.fired) == 2
        assert one.kept == one.hints == 1

    play(script)


# Hints


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50), st.binary(max_size=3))), st.integers(0, 60))
def test_hints_come_in_order_and_none_before_its_time(pushed: list[tuple[int, int, bytes]], now: int) -> None:
    of: dict[int, Hints] = defaultdict(Hints)
    for partition, due, rest in pushed:
        of[partition].push(due, rest)
    taken: list[tuple[int, bytes]] = []
    while some := list(due_hints(of, now, 3)):
        assert len(some) <= 3
        taken += some
    dues = defaultdict[tuple[int, bytes], list[int]](list)
    for partition, due, rest in sorted(pushed, key=lambda each: each[1], reverse=True):
        dues[partition, rest].append(due)
    order = [dues[each].pop() for each in taken]
    assert order == sorted(order)
    assert sorted(order) == sorted(due for _, due, _ in pushed if due <= now)
    assert sum(map(len, of.values())) == len(pushed) - len(taken)


def test_too_many_hints_are_read_anew() -> None:
    hints = Hints()
    hints.reading()
    hints.read([])
    assert hints.complete
    for number in range(STALE + 1):
        hints.push(number, b"k.n")
    assert not hints.complete


def test_names_are_known_until_they_are_read_anew() -> None:
    hints = Hints()
    assert hints.may_know(b"k.n"), "nothing was read"
    hints.reading()
    hints.push(1, b"fresh.n")
    hints.read([hint(2, b"k.n")])
    hints.push(3, b"later.n")
    assert [hints.may_know(each) for each in (b"k.n", b"fresh.n", b"later.n", b"other.n")] == [True, True, True, False]
    for number in range(2 * STALE):
        hints.push(number, b"%d.n" % number)
        hints.pop()
    assert not hints.complete, "those that have come and gone are not kept for ever"


# One owner


class Store(KeyValueStateStore):
    """A store that counts, and can be told to fail.

    Attributes:
        before: Awaited before each use, with what is used; what it raises is the answer.
        after: The same, after it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(MemoryKeyValue(clock, dotted=True))
        self.used: list[str] = []
        self.before: Callable[[str], Awaitable[None]] | None = None
        self.after: Callable[[str], Awaitable[None]] | None = None

    async def _use(self, what: str, use: Awaitable[_T]) -> _T:
        self.used.append(what)
        await asyncio.sleep(0.001)
        try:
            if self.before is not None:
                await self.before(what)
        except BaseException:
            use.close()  # type: ignore[attr-defined]  # a coroutine, which is not to run
            raise
        found = await use
        if self.after is not None:
            await self.after(what)
        return found

    async def get(self, key: str, *, strong: bool, metadata: object = None) -> Stored | None:
        assert strong, "what a follower has may be old"
        return await self._use(_used("get", key), super().get(key, strong=strong))

    async def write(self, items: Sequence[Item]) -> None:
        await self._use(_used("write", items[0].key), super().write(items))

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Stored]]:
        return await self._use("scan", super().scan(prefix, after, limit))


def _used(what: str, key: str) -> str:
    return "fence" if key.startswith("fence.") else what


class Alone:
    """One owner of all partitions, and what it fired: data, and its own time."""

    def __init__(self, **options: object) -> None:
        self.jump = 0.0
        self.store = Store(self.wall)
        self.fired: list[tuple[bytes, float]] = []
        self.on_fire: Callable[[Timer], Awaitable[Outcome]] | None = None
        self.sure = True
        self.most = self.in_flight = 0
        self.early: list[Timer] = []
        self._options = options
        self.timers = self.other()

    def other(self) -> Timers:
        """Make another owner on the same store."""
        return Timers(KIND, self.store, self.fire, lambda _: self.sure, clock=self.wall, **self._options)  # type: ignore[arg-type]  # given by the test

    def wall(self) -> float:
        return asyncio.get_running_loop().time() + EPOCH + self.jump

    async def fire(self, timer: Timer) -> Outcome:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            self.fired.append((timer.data, self.wall()))
            if timer.timing.first > self.wall():
                self.early.append(timer)
            return Outcome.DONE if self.on_fire is None else await self.on_fire(timer)
        finally:
            self.in_flight -= 1

    async def put(
        self, seconds: float, data: bytes = b"x", key: str = "k", *, overwrite: bool = True, **rest: object
    ) -> None:
        """Put a timer that is due in some seconds."""
        policy = rest.pop("policy", FailurePolicy())
        timing = Timing(self.wall() + seconds, **rest)  # type: ignore[arg-type]  # Timing's own fields
        timer = Timer(key, "n", timing, policy, data)  # type: ignore[arg-type]  # given by the test
        await self.timers.put(partition_of(key, PARTITIONS), timer, overwrite=overwrite)

    @property
    def times(self) -> list[float]:
        """When it fired, from the beginning on, in tenths of a second."""
        return [round(time - EPOCH - 1000.0, 1) for _, time in self.fired]

    @property
    def kept(self) -> int:
        return sum(key.startswith("timer.") for key in self.store._key_value._entries)  # type: ignore[attr-defined]  # the memory's

    @property
    def hints(self) -> int:
        return sum(len(held.hints) for held in self.timers._firing.held.values())

    def take(self) -> None:
        for partition in range(PARTITIONS):
            self.timers.take(partition, 1)


@asynccontextmanager
async def alone(**options: object) -> AsyncIterator[Alone]:
    made = Alone(**options)
    async with made.timers.run():
        made.take()
        yield made


def play(script: Callable[[Alone], Awaitable[None]], **options: object) -> Alone:
    async def main() -> Alone:
        async with alone(**options) as one:
            await script(one)
            assert not one.early
            return one

    return virtual_time.run(main())


def test_it_fires_once_and_is_gone() -> None:
    async def script(one: Alone) -> None:
        for number in range(20):
            await one.put(number / 2, b"%d" % number, f"k{number}")
        await asyncio.sleep(30.0)
        assert [data for data, _ in one.fired] == sorted((b"%d" % number for number in range(20)), key=int)
        assert one.kept == one.hints == 0

    play(script)


def test_repeats_ttl_and_ends() -> None:
    async def script(one: Alone) -> None:
        await one.put(2.0, every="@every 2s", left=3)
        await asyncio.sleep(20.0)
        assert one.times == [2.0, 4.0, 6.0]
        one.fired.clear()
        await one.put(2.0, every="@every 2s", until=one.wall() + 5.0)
        await asyncio.sleep(20.0)
        assert one.times == [22.0, 24.0]
        assert one.kept == one.hints == 0

    play(script)


def test_what_fails_is_not_tried_again_once_its_time_is_over() -> None:
    endless = FailurePolicy(1.0, None)
    timer = Timer("k", "n", Timing(100.0, "@every 10s", None, 130.0), endless, b"")
    last = Record(timer, 129.5, 3, failures=29)
    assert last.after(Outcome.FAILED, 128.0, 3) == Record(timer, 129.0, 3, failures=30)
    assert (at_last := last.after(Outcome.FAILED, 129.5, 3)) is not None
    assert (at_last.due, at_last.failures) == (130.0, 0)
    assert last.after(Outcome.FAILED, 130.5, 3) is None


def test_failing_and_cancelling() -> None:
    async def script(one: Alone) -> None:
        async def fails(_: Timer) -> Outcome:
            return Outcome.FAILED

        async def raises(_: Timer) -> Outcome:
            raise StateError("no")

        async def cancels(_: Timer) -> Outcome:
            return Outcome.CANCEL

        one.on_fire = fails
        await one.put(1.0, policy=FailurePolicy(2.0, 2), every="@every 60s", left=2)
        await asyncio.sleep(100.0)
        assert one.times == [1.0, 3.0, 5.0, 61.0, 63.0, 65.0]
        one.fired.clear()
        one.on_fire = raises
        await one.put(0.0, policy=FailurePolicy(1.0, None))
        await asyncio.sleep(10.5)
        assert len(one.fired) == 11
        one.on_fire = cancels
        await asyncio.sleep(1.0)
        one.fired.clear()
        await one.put(1.0, every="@every 1s")
        await asyncio.sleep(10.0)
        assert len(one.fired) == 1
        assert one.kept == one.hints == 0

    play(script)


@pytest.mark.parametrize("interval", [9e18, 1e308])
def test_an_interval_out_of_all_reason_stops_nothing_else(interval: float) -> None:
    """Neither where it fires, nor where its partition is read again."""

    async def script(one: Alone) -> None:
        async def first_fails(timer: Timer) -> Outcome:
            return Outcome.FAILED if timer.data == b"unreasonable" and len(one.fired) == 1 else Outcome.DONE

        one.on_fire = first_fails
        await one.put(0.0, b"unreasonable", policy=FailurePolicy(interval, 1))
        await asyncio.sleep(0.05)
        one.take()
        await one.put(1.0, b"other", key="other")
        await asyncio.sleep(5.0)
        assert one.fired[0][0] == b"unreasonable"
        assert one.fired[-1][0] == b"other"

    play(script)


def test_away_is_tried_again_less_often_and_then_all_at_once() -> None:
    async def script(one: Alone) -> None:
        async def away(_: Timer) -> Outcome:
            return Outcome.AWAY

        one.on_fire = away
        for number in range(50):
            await one.put(1.0, b"%d" % number, f"k{number}", policy=FailurePolicy(drop=True))
        await asyncio.sleep(60.0)
        one.fired.clear()
        one.store.used.clear()
        await asyncio.sleep(60.0)
        assert 20 <= len(one.fired) <= 40, "one of them, every two seconds"
        assert len({data for data, _ in one.fired}) > 10, "each gets its turn"
        one.fired.clear()
        one.on_fire = None
        await asyncio.sleep(5.0)
        assert len(one.fired) == 50
        assert one.kept == one.hints == 0

    play(script)


def test_one_that_takes_long_does_not_hold_up_others_once_some_were_away() -> None:
    async def script(one: Alone) -> None:
        away = True

        async def fire(timer: Timer) -> Outcome:
            if timer.data == b"long":
                await asyncio.sleep(3600.0)
            return Outcome.AWAY if away and timer.data == b"x" else Outcome.DONE

        one.on_fire = fire
        await one.put(0.0, b"long", "long")
        for number in range(4):
            await one.put(1.0, key=f"k{number}")
        await asyncio.sleep(10.0)
        await one.put(0.0, b"long", "long too")
        away = False
        await asyncio.sleep(10.0)
        assert one.kept == 2, "those that take long"

    play(script)


def test_a_delete_that_arrives_late_deletes_what_it_was_about() -> None:
    """Meanwhile it has got another owner, and was put there."""

    async def script(one: Alone) -> None:
        await one.put(60.0, b"old")
        key, other = record_key(KIND, partition_of("k", PARTITIONS), "k", "n"), []
        write = one.store.write

        async def late(items: Sequence[Item]) -> None:
            if not other:
                timer = Timer("k", "n", Timing(one.wall() + 90.0), FailurePolicy(), b"new")
                other.append(Record(timer, timer.timing.first, 2).encode())
                await write([Item(key, other[0])])
                one.sure = False
            await write(items)

        one.store.write = late  # type: ignore[method-assign]  # slow for once
        with pytest.raises(OwnerLostError):
            await one.timers.delete(partition_of("k", PARTITIONS), "k", "n")
        found = await one.store.get(key, strong=True)
        assert found is not None
        assert found.value == other[0]

    play(script)


def test_one_whose_firing_was_cancelled_is_tried_again() -> None:
    async def script(one: Alone) -> None:
        async def fire(_: Timer) -> Outcome:
            if len(one.fired) == 1:
                raise asyncio.CancelledError
            return Outcome.DONE

        one.on_fire = fire
        await one.put(1.0)
        await asyncio.sleep(5.0)
        assert one.times == [1.0, 1.5]
        assert one.kept == one.hints == 0

    play(script)


def test_one_that_is_away_does_not_hold_up_others() -> None:
    async def script(one: Alone) -> None:
        async def only_one(timer: Timer) -> Outcome:
            return Outcome.AWAY if timer.data == b"away" else Outcome.DONE

        one.on_fire = only_one
        await one.put(0.0, b"away", "away")
        for number in range(100):
            await one.put(number / 10, b"%d" % number, f"k{number}")
        await asyncio.sleep(14.0)
        late = [time - EPOCH - 1000.0 - int(data) / 10 for data, time in one.fired if data != b"away"]
        assert len(late) == 100
        assert max(late) < 3.0
        assert one.kept == 1

    play(script)


def test_one_whose_key_is_busy_does_not_hold_up_others() -> None:
    """However many there are of them, and while they wait as well."""

    async def script(one: Alone) -> None:
        async def waits(timer: Timer) -> Outcome:
            if timer.data == b"busy":
                await asyncio.sleep(20.0)
                return Outcome.BUSY
            return Outcome.DONE

        one.on_fire = waits
        for number in range(10):
            await one.put(number / 2, b"busy", f"busy{number}")
        await one.put(24.0, b"other")
        await asyncio.sleep(27.0)
        late = [time - EPOCH - 1024.0 for data, time in one.fired if data == b"other"]
        assert len(late) == 1
        assert late[0] < 2.0
        assert one.kept == 10

    play(script)


def test_overwriting() -> None:
    async def script(one: Alone) -> None:
        await one.put(5.0, b"1")
        with pytest.raises(TimerExistsError, match="already"):
            await one.put(5.0, b"2", overwrite=False)
        await one.put(10.0, b"3")
        await asyncio.sleep(30.0)
        assert one.fired == [(b"3", one.fired[0][1])]
        await one.put(1.0, b"4", overwrite=False)
        assert await one.timers.delete(partition_of("k", PARTITIONS), "k", "n")
        assert not await one.timers.delete(partition_of("k", PARTITIONS), "k", "n")
        await asyncio.sleep(30.0)
        assert len(one.fired) == 1
        assert one.kept == one.hints == 0

    play(script)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.5, 3.0])
@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.FAILED, Outcome.CANCEL, Outcome.AWAY])
def test_overwritten_by_its_own_handler(outcome: Outcome, seconds: float) -> None:
    async def script(one: Alone) -> None:
        async def overwrites(timer: Timer) -> Outcome:
            if timer.data == b"1":
                await one.put(seconds, b"2")
                await asyncio.sleep(1.0)
                return outcome
            return Outcome.DONE

        one.on_fire = overwrites
        await one.put(0.0, b"1")
        await asyncio.sleep(30.0)
        assert [data for data, _ in one.fired] == [b"1", b"2"]
        assert one.kept == one.hints == 0

    play(script)


class InOrder(Store):
    """Stops at the first that fails, as SQL stores do."""

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        return await StateStore.save_each(self, items)


def test_many_that_are_overwritten_by_their_handlers_do_not_hold_up_each_other() -> None:
    async def script(one: Alone) -> None:
        one.store.__class__ = InOrder

        async def overwrites(timer: Timer) -> Outcome:
            if timer.data == b"1":
                await one.put(1.0, b"2", timer.key)
                await asyncio.sleep(1.0 - one.wall() % 1.0)
            return Outcome.DONE

        one.on_fire = overwrites
        for number in range(100):
            await one.put(2.0, b"1", str(number))
        await asyncio.sleep(7.0)
        assert len(one.fired) == 200
        assert one.kept == one.hints == 0

    play(script)


def test_deleted_by_its_own_handler() -> None:
    async def script(one: Alone) -> None:
        async def deletes(timer: Timer) -> Outcome:
            assert await one.timers.delete(partition_of("k", PARTITIONS), timer.key, timer.name)
            return Outcome.FAILED

        one.on_fire = deletes
        await one.put(0.0, every="@every 1s")
        await asyncio.sleep(30.0)
        assert len(one.fired) == 1
        assert one.kept == one.hints == 0

    play(script)


def test_many_at_one_instant_come_in_bounded_bursts() -> None:
    async def script(one: Alone) -> None:
        async def slow(_: Timer) -> Outcome:
            await asyncio.sleep(0.1)
            return Outcome.DONE

        one.on_fire = slow
        due = one.wall() + 60.0
        for number in range(500):
            await one.put(due - one.wall(), b"%d" % number, f"k{number}")
        await asyncio.sleep(80.0)
        assert len(one.fired) == 500
        assert one.most == 50
        assert one.kept == one.hints == 0

    play(script, at_once=50)


@pytest.mark.parametrize("hanging", [91, 99])
def test_what_hangs_keeps_nobody_waiting_while_there_is_room(hanging: int) -> None:
    async def script(one: Alone) -> None:
        late: list[float] = []

        async def fire(timer: Timer) -> Outcome:
            if timer.key.startswith("hangs"):
                await asyncio.sleep(3600.0)
            late.append(one.wall() - timer.timing.first)
            return Outcome.DONE

        one.on_fire = fire
        for number in range(hanging):
            await one.put(1.0, b"h", f"hangs{number}")
        for number in range(50):
            await one.put(2.0 + number, b"%d" % number, f"k{number}")
        await asyncio.sleep(60.0)
        assert len(late) == 50
        assert max(late) < 0.2
        assert one.in_flight == hanging

    play(script, at_once=100)


def test_who_idles_does_nothing() -> None:
    async def script(one: Alone) -> None:
        for number in range(100):
            await one.put(86400.0, b"", f"k{number}")
        await asyncio.sleep(10.0)
        one.store.used.clear()
        await asyncio.sleep(3600.0)
        assert not one.store.used

    play(script)


def test_the_clock_is_set() -> None:
    async def script(one: Alone) -> None:
        await one.put(100.0, b"1", "a")
        await asyncio.sleep(1.0)
        one.jump = 98.0
        await asyncio.sleep(7.0)
        assert len(one.fired) == 1, "it was set forward, and that is noticed soon"
        await one.put(10.0, b"2", "b")
        one.jump = -100.0
        await asyncio.sleep(190.0)
        assert len(one.fired) == 1
        await asyncio.sleep(40.0)
        assert len(one.fired) == 2
        assert one.kept == one.hints == 0

    play(script)


def test_the_clock_is_set_back_in_the_middle_of_a_look() -> None:
    async def script(one: Alone) -> None:
        async def sets_back(what: str) -> None:
            if what == "get":
                one.jump, one.store.before = -50.0, None

        await one.put(10.0)
        one.store.before = sets_back
        await asyncio.sleep(50.0)
        assert not one.fired
        await asyncio.sleep(20.0)
        assert len(one.fired) == 1
        assert one.kept == one.hints == 0

    play(script)


@pytest.mark.parametrize("outcome", [Outcome.AWAY, Outcome.FAILED])
def test_the_clock_is_set_back_before_it_is_looked_at_again(outcome: Outcome) -> None:
    async def script(one: Alone) -> None:
        async def sets_back(timer: Timer) -> Outcome:
            one.on_fire = None
            if outcome is Outcome.FAILED:  # Its time comes in the middle of its firing.
                await one.put(1.0)
                await asyncio.sleep(2.0)
            one.jump = -50.0
            return outcome

        one.on_fire = sets_back
        await one.put(10.0)
        await asyncio.sleep(120.0)
        assert len(one.fired) == 2
        assert one.kept == one.hints == 0

    play(script)


def test_lost_answers_while_it_is_moved_on() -> None:
    async def script(one: Alone) -> None:
        lost = iter([True, True, False, True, False, False])

        async def loses(what: str) -> None:
            if what == "write" and next(lost, False):
                raise StateError("lost")

        await one.put(1.0, every="@every 1s", left=3)
        one.store.after = loses
        await asyncio.sleep(10.0)
        assert one.times == [1.0, 2.0, 3.0], "what has fired does not fire again"
        assert one.kept == one.hints == 0

    play(script)


def test_a_put_whose_answer_is_lost_fires() -> None:
    async def script(one: Alone) -> None:
        async def loses(what: str) -> None:
            if what == "write":
                one.store.after = None
                raise StateError("lost")

        one.store.after = loses
        with pytest.raises(StateError, match="lost"):
            await one.put(1.0)
        await asyncio.sleep(10.0)
        assert one.times == [1.0]
        await asyncio.sleep(60.0)
        assert one.kept == one.hints == 0

    play(script)


def test_who_is_not_sure_does_nothing() -> None:
    async def script(one: Alone) -> None:
        await one.put(1.0)
        one.sure = False
        with pytest.raises(NotOwnerError):
            await one.put(1.0, b"2")
        with pytest.raises(NotOwnerError):
            await one.timers.delete(partition_of("k", PARTITIONS), "k", "n")
        await asyncio.sleep(10.0)
        assert not one.fired

        async def unsure(what: str) -> None:
            if what == "write":
                one.sure, one.store.after = False, None

        one.sure, one.store.after = True, unsure
        with pytest.raises(OwnerLostError):
            await one.put(5.0, b"3")
        one.sure = True
        await asyncio.sleep(10.0)
        assert [data for data, _ in one.fired] == [b"3"]

    play(script)


def test_leaving_waits_within_a_bound_and_dropping_does_not() -> None:
    async def script(one: Alone) -> None:
        ended: list[bytes] = []

        async def slow(timer: Timer) -> Outcome:
            await asyncio.sleep(float(timer.data))
            ended.append(timer.data)
            return Outcome.DONE

        one.on_fire = slow
        partition = partition_of("k", PARTITIONS)
        await one.put(0.0, b"3")
        await asyncio.sleep(1.0)
        began = one.wall()
        await one.timers.leave(partition)
        assert 1.5 < one.wall() - began < 2.5
        assert ended == [b"3"]
        assert one.kept == 0
        for end in (one.timers.leave, one.timers.drop):
            one.timers.take(partition, 2)
            await one.put(0.0, b"100")
            await asyncio.sleep(1.0)
            assert one.in_flight == 1
            began = one.wall()
            if (leaving := end(partition)) is not None:
                await leaving
            assert one.wall() - began == pytest.approx(5.0 if leaving is not None else 0.0, abs=0.1)
            await asyncio.sleep(0)
            assert one.in_flight == 0
            assert one.kept == 1, "the next owner fires it"
        assert ended == [b"3"]

    play(script, drain=5.0)


def test_it_is_read_until_that_works_and_overwrites_do_not_pile_up() -> None:
    async def script(one: Alone) -> None:
        fails = 5

        async def failing(what: str) -> None:
            nonlocal fails
            if what == "scan" and fails:
                fails -= 1
                raise StateError("no")

        for number in range(600):
            await one.put(50.0, b"%d" % number, f"k{number}")
        for partition in range(PARTITIONS):
            one.timers.drop(partition)
        one.store.before = failing
        one.take()
        await asyncio.sleep(30.0)
        assert not fails
        assert one.hints == 600
        for _ in range(5 * STALE):
            await one.put(1000.0, b"last", "k0")
        assert one.hints < 600 + 2 * STALE
        await asyncio.sleep(2000.0)
        assert len(one.fired) == 600
        assert one.fired[-1][0] == b"last"
        assert one.kept == one.hints == 0

    play(script)


async def _arrives(one: Alone, seconds: float, data: bytes = b"late") -> None:
    """Have the record of another owner arrive, due in some seconds."""
    timer = Timer("k", "n", Timing(one.wall() + seconds), FailurePolicy(), data)
    key = record_key(KIND, partition_of("k", PARTITIONS), "k", "n")
    await one.store.write([Item(key, Record(timer, timer.timing.first, 0).encode())])


def test_what_another_owner_wrote_too_late_replaces_nothing_for_good() -> None:
    async def script(one: Alone) -> None:
        await one.put(10.0)
        await _arrives(one, 30.0)
        await asyncio.sleep(60.0)
        assert [data for data, _ in one.fired] == [b"late"]
        await _arrives(one, 10.0)
        with pytest.raises(TimerExistsError):
            await one.put(20.0, overwrite=False)
        await asyncio.sleep(60.0)
        assert len(one.fired) == 2, "what is said to exist fires"
        assert one.kept == one.hints == 0

    play(script)


def test_a_put_that_is_written_long_after_its_caller_gave_up_fires() -> None:
    async def script(one: Alone) -> None:
        async def hangs(what: str) -> None:
            if what == "write":
                one.store.before = None
                await asyncio.sleep(100.0)

        one.store.before = hangs
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await one.put(2.0)
        await asyncio.sleep(15.0)
        await _arrives(one, -10.0)
        await asyncio.sleep(30.0)
        assert len(one.fired) == 1
        assert one.kept == one.hints == 0

    play(script)


def test_a_store_that_stalls_is_asked_again() -> None:
    async def script(one: Alone) -> None:
        stalls = ["get", "write", "scan"]

        async def stalling(what: str) -> None:
            if what in stalls:
                stalls.remove(what)
                await asyncio.sleep(1000.0)

        await one.put(1.0, b"1")
        for partition in range(PARTITIONS):
            one.timers.drop(partition)
        one.store.before = stalling
        one.take()
        await asyncio.sleep(60.0)
        assert not stalls
        assert [data for data, _ in one.fired] == [b"1"]
        assert one.kept == one.hints == 0

    play(script)


def test_who_leaves_waits_for_what_is_being_put() -> None:
    async def script(one: Alone) -> None:
        async def slow(what: str) -> None:
            if what == "write":
                await asyncio.sleep(2.0)

        one.store.before = slow
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one.put(0.0))
            await asyncio.sleep(0.5)
            await one.timers.leave(partition_of("k", PARTITIONS))
            assert one.kept == 1, "the next owner finds it"
            with pytest.raises(NotOwnerError):
                await one.put(0.0)
            one.timers.take(partition_of("k", PARTITIONS), 3)
        await asyncio.sleep(10.0)
        assert len(one.fired) == 1

    play(script)


def test_what_is_put_while_a_partition_is_read_is_not_forgotten() -> None:
    async def script(one: Alone) -> None:
        async def slow(what: str) -> None:
            if what == "scan":
                await asyncio.sleep(5.0)

        one.store.after = slow
        one.take()
        await asyncio.sleep(1.0)
        await one.put(60.0)
        await asyncio.sleep(10.0)
        assert all(held.hints.complete for held in one.timers._firing.held.values())
        await asyncio.sleep(60.0)
        assert len(one.fired) == 1
        assert one.kept == one.hints == 0

    play(script)


def test_listing() -> None:
    async def script(one: Alone) -> None:
        for number in range(30):
            await one.put(100.0, b"%d" % number, f"k {number}")
        mine = partition_of("k 7", PARTITIONS)
        found = await one.timers.get(mine, "k 7", "n")
        assert found is not None
        assert found.data == b"7"
        assert await one.timers.get(mine, "k 7", "other") is None
        assert [each.key for each in await one.timers.listed(mine, "k 7", "", 10)] == ["k 7"]
        everything: list[Timer] = []
        after = ""
        while page := await one.timers.listed(None, None, after, 7):
            everything += page
            last = page[-1]
            after = record_key(KIND, partition_of(last.key, PARTITIONS), last.key, last.name)
        assert sorted(each.key for each in everything) == sorted(f"k {number}" for number in range(30))
        await one.store.write([Item(record_key(KIND, mine, "bad", ""), b"bad")])
        with pytest.raises(StateError, match="no timer"):
            await one.timers.get(mine, "bad", "")

    play(script)


def test_what_cannot_be_read_is_left_out_of_a_list_and_stays(caplog: pytest.LogCaptureFixture) -> None:
    async def script(one: Alone) -> None:
        for number in range(6):
            await one.put(100.0, b"%d" % number, f"k{number}")
        everywhere = [record_key(KIND, partition, f"bad{number}", "") for partition in (0, 7) for number in range(4)]
        await one.store.write([Item(key, b"bad") for key in everywhere])
        assert sorted(each.key for each in await one.timers.listed(None, None, "", 7)) == [f"k{n}" for n in range(6)]
        assert (
            "8 records of jobs.shop are left out of a list: timer.jobs=2Eshop.000.bad0.=: it is no timer" in caplog.text
        )
        assert one.kept == 6 + len(everywhere)

    play(script)


# Former owners


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("then", ["put", "delete", "put and delete", "nothing"])
def test_what_a_former_owner_puts_late_takes_no_place(then: str, overwrite: bool) -> None:
    """It had looked at the clock, and stood still before it wrote."""

    async def script(one: Alone) -> None:
        late, stands_still = asyncio.Event(), asyncio.Event()
        partition, former, one.timers = partition_of("k", PARTITIONS), one.timers, one.other()

        async def stand_still(what: str) -> None:
            if what == "write":
                one.store.before = None
                stands_still.set()
                await late.wait()

        one.store.before = stand_still
        timer = Timer("k", "n", Timing(one.wall() + 50.0), FailurePolicy(), b"late")
        async with asyncio.TaskGroup() as tasks, one.timers.run():
            putting = tasks.create_task(_outcome(former.put(partition, timer, overwrite=overwrite)))
            await stands_still.wait()
            one.timers.take(partition, 2)
            if "put" in then:
                await one.put(20.0, b"next", overwrite=overwrite)
            if "delete" in then:
                assert await one.timers.delete(partition, "k", "n") is ("put" in then)
            late.set()
            refused = isinstance(await putting, NotOwnerError)
            assert refused is (then != "nothing"), "until somebody else is told that it is done, nothing is lost"
            await asyncio.sleep(100.0)
        wanted = {"put": {b"next"}, "nothing": {b"late"}}.get(then, set())
        assert {data for data, _ in one.fired} == wanted

    play(script)


def test_what_was_given_up_and_is_written_late_takes_no_place() -> None:
    """Also at the same owner: the caller has put something else meanwhile, and was told that it is there."""

    async def script(one: Alone) -> None:
        late = asyncio.Event()
        write = one.store.write

        async def write_late(items: Sequence[Item]) -> None:
            if items[0].key.startswith("timer."):
                one.store.write = write  # type: ignore[method-assign]  # until now
                tasks.create_task(_outcome(_after(late, write(items))))
                raise StateError("the connection was lost")
            await write(items)

        await one.put(1000.0, key="fences this partition")
        one.store.write = write_late  # type: ignore[method-assign]  # once
        async with asyncio.TaskGroup() as tasks:
            with pytest.raises(StateError, match="lost"):
                await one.put(10.0, b"late")
            await one.put(20.0, b"next")
            late.set()
        await asyncio.sleep(100.0)
        assert [data for data, _ in one.fired] == [b"next"]

    play(script)


async def _outcome(of: Awaitable[None]) -> MeshError | None:
    try:
        await of
    except MeshError as error:
        return error
    return None


async def _after(event: asyncio.Event, what: Awaitable[None]) -> None:
    await event.wait()
    await what


def test_a_put_that_overwrites_nothing_reads_what_may_be_there_alone() -> None:
    async def script(one: Alone) -> None:
        for overwrite in (False, True):
            await asyncio.sleep(1.0)
            one.store.used.clear()
            await one.put(1.0, overwrite=overwrite)
            assert one.store.used.count("write") == 1
            assert "get" not in one.store.used
        one.store.used.clear()
        with pytest.raises(TimerExistsError):
            await one.put(1.0, overwrite=False)
        assert one.store.used == ["get"]

    play(script)


def test_two_who_put_at_once_and_overwrite_nothing() -> None:
    async def script(one: Alone) -> None:
        async with asyncio.TaskGroup() as tasks:
            puts = [tasks.create_task(_outcome(one.put(1.0, b"%d" % n, overwrite=False))) for n in range(5)]
        came = [each.result() for each in puts]
        assert [type(each) for each in came].count(TimerExistsError) == 4
        await asyncio.sleep(5.0)
        assert [data for data, _ in one.fired] == [b"%d" % came.index(None)]

    play(script)


# Several owners


class Way(Link):
    """A node's way to the timers.

    Attributes:
        stalls: Whether it may stand still before it writes, and write whatever became of the node meanwhile.
    """

    def __init__(self, store: MemoryKeyValue, chance: random.Random, tasks: asyncio.TaskGroup) -> None:
        super().__init__(store, chance)
        self.stalls = False
        self._tasks = tasks

    async def write(self, items: Sequence[Item]) -> None:
        if self.stalls and self._chance.random() < 0.7:
            late = self._tasks.create_task(self._write_late(items))
            if (error := await asyncio.shield(late)) is not None:
                raise error
        else:
            await super().write(items)

    async def _write_late(self, items: Sequence[Item]) -> MeshError | None:
        await asyncio.sleep(self._chance.uniform(0.0, 25.0))
        try:
            await KeyValueStateStore.write(self, items)
        except MeshError as error:
            return error
        return None

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Stored]]:
        await self._on_the_way()
        found = await super().scan(prefix, after, min(limit, 7))
        await self._on_the_way()
        return found


@dataclass
class Put:
    """What was asked for of a key; data None = to delete it."""

    data: bytes | None
    due: float = 0.0
    overwrite: bool = True
    known: bool = False
    fired: int = field(default=0)


class Node:
    """A node that owns partitions, and fires."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.jump = 0.0
        self.links = Link(world.owners, world.chance), Way(world.timers, world.chance, world.tasks)
        self.owning = Owning(self.links[0], "app", name, world.tell, asyncio.get_running_loop().time)
        self.timers = Timers(KIND, self.links[1], self.fire, self.sure, clock=self.wall, at_once=20, drain=3.0)
        self.owning.host(KIND, self.timers)

    def wall(self) -> float:
        return asyncio.get_running_loop().time() + EPOCH + self.jump

    def sure(self, partition: int) -> bool:
        return self.owning.epoch(KIND, partition) is not None

    async def fire(self, timer: Timer) -> Outcome:
        put = self.world.puts[timer.data]
        if self.wall() < put.due:
            self.world.early.append(put)
        await asyncio.sleep(self.world.chance.choice([0.0, 0.0, 0.1, 5.0]))
        outcome = self.world.chance.choice([Outcome.DONE, Outcome.DONE, Outcome.DONE, Outcome.FAILED, Outcome.AWAY])
        put.fired += outcome is Outcome.DONE
        return outcome

    async def live(self, ending: asyncio.Event) -> None:
        async with self.timers.run(), self.owning.run():
            await ending.wait()


class Watched(MemoryKeyValue):
    """The store, which looks at each write that it accepts."""

    def __init__(self, world: World) -> None:
        super().__init__(asyncio.get_running_loop().time, dotted=True)
        self.wrong: list[str] = []
        self._world = world

    async def apply(self, operations: Sequence[Write]) -> None:
        before = {each.key: self._entries.get(each.key) for each in operations}
        await super().apply(operations)
        for each in operations:
            if each.value is None or not each.key.startswith("timer."):
                continue
            timer = _record_in(each.key, each.value).timer
            put, of_key = self._world.puts[timer.data], self._world.of_key[timer.key]
            if any(later.known for later in of_key[of_key.index(put) + 1 :]):
                self.wrong.append(f"{put} came back: {of_key}")
            old = before[each.key]
            former = put if old is None else self._world.puts[_record_in(each.key, old.value).timer.data]
            if not put.overwrite and former is not put and former.known:
                self.wrong.append(f"{put} has overwritten: {of_key}")


def _record_in(key: str, value: bytes) -> Record:
    return Record.decode(".".join(key.split(".")[-2:]), value)


class World:
    """Nodes around one store, and clients that put timers."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.owners, self.timers = MemoryKeyValue(asyncio.get_running_loop().time), Watched(self)
        self.nodes: dict[str, Node] = {}
        self.puts: dict[bytes, Put] = {}
        self.early: list[Put] = []
        self.of_key: dict[str, list[Put]] = defaultdict(list)
        self._asking: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._living: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self.tasks = asyncio.TaskGroup()

    async def tell(self, kind: str, sessions: Collection[str]) -> None:
        for node in self.nodes.values() if sessions else ():
            node.owning.heard(kind, sessions)

    def start(self, name: str) -> None:
        if name not in self.nodes:
            ending = asyncio.Event()
            node = self.nodes[name] = Node(self, name)
            self._living[name] = self.tasks.create_task(node.live(ending)), ending

    async def stop(self, name: str, *, kill: bool) -> None:
        if (node := self.nodes.get(name)) is None or (not kill and node.links[0].cut):
            return
        task, ending = self._living.pop(name)
        if kill:
            task.cancel()
        ending.set()
        await asyncio.wait([task])
        del self.nodes[name]

    async def ask(self, key: str, seconds: float | None) -> None:
        """Put a timer that is due in some seconds, or delete it, where its owner is; each key is one client's."""
        partition = partition_of(key, PARTITIONS)
        async with self._asking[key]:
            node = next((each for each in self.nodes.values() if each.sure(partition)), None)
            if node is None:
                return
            overwrite = self.chance.random() < 0.6
            put = Put(None) if seconds is None else Put(b"%d" % len(self.puts), node.wall() + seconds, overwrite)
            self.of_key[key].append(put)
            with suppress(MeshError, TimeoutError):
                async with asyncio.timeout(self.chance.choice([0.01, 5.0, 5.0])):
                    if put.data is None:
                        await node.timers.delete(partition, key, "n")
                    else:
                        self.puts[put.data] = put
                        timer = Timer(key, "n", Timing(put.due), FailurePolicy(1.0, None), put.data)
                        await node.timers.put(partition, timer, overwrite=overwrite)
                    put.known = True

    def check(self) -> None:
        """Look that what was acknowledged last has won: it, or what may have come after it, has fired."""
        assert not self.early
        assert not self.timers.wrong
        for key, puts in self.of_key.items():
            last = max((index for index, put in enumerate(puts) if put.known), default=len(puts))
            perhaps = puts[last:]
            if perhaps and all(put.data is not None for put in perhaps):
                assert any(put.fired for put in perhaps), f"lost: {key} {puts}"
        assert not [key for key in self.timers._entries if key.startswith("timer.")], "some are left in the store"
        assert not any(len(held.hints) for node in self.nodes.values() for held in node.timers._firing.held.values())


ACTIONS = (
    "put",
    "put",
    "put",
    "delete",
    "start",
    "kill",
    "stop",
    "cut",
    "stall",
    "mend",
    "slow",
    "lose answers",
    "set clock",
)
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from("abc"), st.floats(0.0, 12.0)), min_size=1, max_size=20
)


@pytest.mark.costly
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), steps)
def test_none_is_early_and_none_is_lost(seed: int, script: list[tuple[str, str, float]]) -> None:
    async def main() -> None:
        world = World(seed)
        first = Item(table_key(KIND), Table.new(PARTITIONS).encode())
        await KeyValueStateStore(world.owners).write([first])
        async with world.tasks:
            world.start("a")
            world.start("b")
            await asyncio.sleep(2.0)
            for action, name, seconds in script:
                node = world.nodes.get(name)
                if action in ("put", "delete"):
                    for _ in range(10):
                        due = None if action == "delete" else world.chance.choice([-1.0, 0.0, seconds, 3 * seconds])
                        world.tasks.create_task(world.ask(f"k{world.chance.randrange(40)}", due))
                elif action == "start":
                    world.start(name)
                elif action in ("kill", "stop"):
                    await world.stop(name, kill=action == "kill")
                elif node is not None and action == "set clock":
                    node.jump = world.chance.uniform(-20.0, 20.0)
                elif node is not None:
                    for link in node.links:
                        link.cut = action == "cut"
                        link.slow = 2.0 if action == "slow" else 0.0
                        link.loses_answers = action == "lose answers"
                    node.links[1].stalls = action == "stall"
                await asyncio.sleep(world.chance.choice([0.0, 0.05, seconds]))
            world.start("c")
            for node in world.nodes.values():
                for link in node.links:
                    link.cut, link.slow, link.loses_answers = False, 0.0, False
                node.links[1].stalls = False
            await asyncio.sleep(300.0)
            world.start("d")  # It reads what nobody knows of: what was written when others had read.
            for name in sorted(world.nodes.keys() - {"d"}):
                await world.stop(name, kill=False)
            await asyncio.sleep(120.0)
            world.check()
            for name in list(world.nodes):
                await world.stop(name, kill=False)

    virtual_time.run(main())
