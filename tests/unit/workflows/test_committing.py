"""Instances in the store, as the owner of their partitions writes them and as anybody reads them."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from mesh.errors import BadArgumentError
from mesh.key_value import MemoryKeyValue
from mesh.ownership.errors import NotOwnerError
from mesh.store import KeyValueStateStore, Stored
from mesh.workflows.committing import Committer
from mesh.workflows.contracts import Loaded, Saved
from mesh.workflows.errors import WorkflowUnreadableError
from mesh.workflows.events import (
    Completed,
    Event,
    EventRaised,
    Resumed,
    Stalled,
    Started,
    TaskCompleted,
    TaskScheduled,
    TurnStarted,
)
from mesh.workflows.messages import Raise
from mesh.workflows.reading import Reader
from mesh.workflows.record import decode, plan
from mesh.workflows.state import Sent, State, Status, Step, View

KIND = "workflows.shop"
PARTITION = 7
START = (
    "9b01dc0014cd03e8a27831a56f7264657206cb3ff0000000000000cb3ff0000000000000c0c0c0000000c0c0c09090000090919d03cb3f"
    "f0000000000000a56f72646572a27831a473686f70c0a422696e22a0c0cb4008000000000000c081a161a162c090c0000000c090c0"
)
TURN = (
    "9b01dc0014cd03e8a27831a56f7264657206cb3ff0000000000000cb3ff0000000000000c0c0c0030000c0c0c090900000909093940ecb"
    "4000000000000000c0909d03cb3ff0000000000000a56f72646572a27831a473686f70c0a422696e22a0c0cb4008000000000000c081a1"
    "61a162c09c06cb400000000000000000a6636861726765a478312d30a131c0c0c0c0c0c0c0000000c090c0"
)


class World:
    """Two stores, and who writes and reads them."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.live = KeyValueStateStore(MemoryKeyValue(dotted=True))
        self.ended = KeyValueStateStore(MemoryKeyValue(dotted=True))
        self.reader = Reader(KIND, self.live, self.ended, self._partition)

    async def owner(self, epoch: int) -> Committer:
        made = Committer(KIND, self.live, self.ended)
        await self._stack.enter_async_context(made.run())
        await made.take(PARTITION, epoch, lambda: True)
        return made

    async def left(self) -> list[str]:
        """Give all keys but the fences'."""
        every = [*await self.live.keys("", "", 10_000), *await self.ended.keys("", "", 10_000)]
        return [key for key in every if not key.startswith("fence.")]

    async def _partition(self, instance: str) -> int:
        return PARTITION


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(stack)


def begun(input: str | None = '"in"', generation: int = 1000) -> Step:
    started = Started(1.0, "order", "x1", "shop", input=input, tags={"a": "b"}, scheduled=3.0)
    return Step(State(generation, "x1", "order", Status.PENDING, 1.0, 1.0, inbox=(started,)))


def next_step(step: Step, *events: Event, **changes: object) -> Step:
    state = replace(step.state, events=step.state.events + len(events), **{"inbox": (), **changes})
    return Step(state, events)


async def written(owner: Committer, instance: str, steps: Sequence[Step], saved: Saved | None = None) -> Saved:
    for step in steps:
        saved = await owner.commit(PARTITION, instance, saved, step)
    assert saved is not None
    return saved


async def loaded(owner: Committer, instance: str) -> Loaded:
    found = await owner.load(PARTITION, instance)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(20))
async def test_what_is_loaded_is_what_the_steps_made(seed: int) -> None:
    async with a_world() as world:
        chance = random.Random(seed)
        owner = await world.owner(1)

        def text() -> str:
            return chance.choice(["", "\0", "é", "x" * chance.choice([10, 1000, 20_000, 100_000, 700_000])])

        step = begun(text())
        saved = await owner.commit(PARTITION, "a:1", None, step)
        history: list[Event] = []
        for number in range(40):
            inbox = step.state.inbox
            events: list[Event] = [TurnStarted(float(number)), *inbox]
            events += [TaskScheduled(1.0, number, "t", "e", text()) for _ in range(chance.choice([0, 1, 1, 300]) and 1)]
            if chance.random() < 0.1:
                events += [TaskCompleted(1.0, each, "e", '"r"') for each in range(400)]
            raised = tuple(EventRaised(2.0, "n", text()) for _ in range(chance.choice([0, 0, 1, 3])))
            outbox = tuple(Sent(each, "shop", "b", Raise("n", text())) for each in range(chance.choice([0, 0, 2])))
            changes: dict[str, object] = {
                "inbox": raised,
                "outbox": outbox,
                "custom_status": chance.choice([None, "s"]),
            }
            anew = chance.random() < 0.05
            step = next_step(step, *events, **changes)
            if anew:
                step = Step(replace(step.state, generation=step.state.generation + 1, events=0))
                history = []
            history += step.append
            saved = await owner.commit(PARTITION, "a:1", saved, step)
            if chance.random() < 0.2:
                found = await loaded(owner, "a:1")
                assert (found.state, list(found.history)) == (step.state, history)
                saved, step = found.saved, Step(found.state)
        found = await loaded(owner, "a:1")
        assert (found.state, list(found.history)) == (step.state, history)
        assert found.saved.size == pytest.approx(saved.size, rel=0.01)
        assert [each async for each in owner.scan(PARTITION)] == [("a:1", step.state)]
        told = await world.reader.history("a:1")
        assert told is not None and list(told[1]) == history and told[0].state == replace(step.state, inbox=())
        assert await owner.purge(PARTITION, "a:1")
        assert await world.left() == []
        assert not await owner.purge(PARTITION, "a:1")


async def test_a_view_tells_of_texts_and_of_none() -> None:
    async with a_world() as world:
        owner = await world.owner(1)
        step = begun()
        started = step.state.inbox[0]
        saved = await owner.commit(PARTITION, "a", None, step)
        view = await world.reader.view("a", texts=True)
        assert view is not None
        assert (view.input, view.output, view.tags, view.scheduled) == ('"in"', None, {"a": "b"}, 3.0)
        step = next_step(step, TurnStarted(1.0), started, *(TaskScheduled(1.0, each, "t", "e") for each in range(600)))
        saved = await owner.commit(PARTITION, "a", saved, step)
        stalled = next_step(step, Stalled(1.5, 2, "too large"), status=Status.STALLED)
        saved = await owner.commit(PARTITION, "a", saved, stalled)
        view = await world.reader.view("a", texts=True)
        assert view is not None
        assert view.stalled == "too large"
        step = next_step(stalled, Resumed(1.6), status=Status.RUNNING)
        saved = await owner.commit(PARTITION, "a", saved, step)
        large = '"' + "x" * 600_000 + '"'
        step = next_step(step, Completed(2.0, 9, Status.COMPLETED, large), status=Status.COMPLETED, ended=2.0)
        saved = await owner.commit(PARTITION, "a", saved, step)
        for _ in range(2):
            view = await world.reader.view("a", texts=True)
            assert view == View("a", step.state, '"in"', large, None, {"a": "b"}, 3.0)
            assert await world.reader.view("a", texts=False) == View("a", step.state, None, None, None, {"a": "b"}, 3.0)
            await owner.put_away(PARTITION, "a", saved, step.state, None)  # Doing so twice leaves the same behind.
        assert [each async for each in owner.scan(PARTITION)] == []
        assert await world.reader.view("b", texts=True) is None


async def test_a_former_owner_writes_nothing_more() -> None:
    async with a_world() as world:
        first = await world.owner(1)
        step = begun()
        saved = await first.commit(PARTITION, "a", None, step)
        second = await world.owner(2)
        for write in (
            first.commit(PARTITION, "a", saved, next_step(step, TurnStarted(1.0))),
            first.put_away(PARTITION, "a", saved, step.state, None),
            first.purge(PARTITION, "a"),
        ):
            with pytest.raises(NotOwnerError):
                await write
        assert (await loaded(second, "a")).state == step.state
        second.forget(PARTITION)
        with pytest.raises(NotOwnerError):
            await second.commit(PARTITION, "a", saved, step)


def test_format_1_stays_what_it_is() -> None:
    """Records that were written are read by every later version: these bytes never change, and fields come behind."""
    step = begun()
    made = plan(None, step)
    later = next_step(step, TurnStarted(2.0), step.state.inbox[0], TaskScheduled(2.0, 0, "charge", "x1-0", "1"))
    for stored, written, wanted in ((START, made, step), (TURN, plan(made.kept, later), later)):
        assert begins(msgspec.msgpack.decode(written.record), msgspec.msgpack.decode(bytes.fromhex(stored)))
        for record in (decode("a", bytes.fromhex(stored)), decode("a", written.record)):
            assert (replace(record.state, inbox=record.inbox), record.tail) == (wanted.state, wanted.append)


def begins(found: object, first: object) -> bool:
    """Tell whether arrays have all that others had, in its place."""
    if isinstance(found, list) and isinstance(first, list):
        return len(found) >= len(first) and all(map(begins, found, first))
    return found == first


def test_a_record_of_another_format_is_named() -> None:
    newer = bytes.fromhex(START.replace("9b01", "9b02", 1))
    with pytest.raises(WorkflowUnreadableError, match="'a' cannot be read: it has format 2, and this version reads 1"):
        decode("a", newer)
    with pytest.raises(WorkflowUnreadableError, match="'a' cannot be read"):
        decode("a", b"\x9b\x01\xff")


async def test_an_owner_that_has_read_all_looks_for_no_record_that_nobody_wrote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.workflows.committing.MARKED", 2)
    async with a_world() as world:
        looked: list[str] = []
        get = world.live.get

        async def noted(key: str, **options: Any) -> Stored | None:
            looked.append(key.rpartition(".")[2])
            return await get(key, **options)

        monkeypatch.setattr(world.live, "get", noted)
        first = await world.owner(1)
        saved = await first.commit(PARTITION, "a", None, begun())
        owner = await world.owner(2)

        async def looks_for(instance: str) -> bool:
            looked.clear()
            await owner.load(PARTITION, instance)
            return instance in looked

        assert await looks_for("b"), "it may have been there before"
        assert [id async for id, _ in owner.scan(PARTITION)] == ["a"]
        assert not await looks_for("b")
        assert await looks_for("a")
        saved = await owner.commit(PARTITION, "b", None, begun())
        assert await looks_for("b")
        await owner.put_away(PARTITION, "b", saved, begun().state, None)
        assert not await looks_for("b")
        assert (await loaded(owner, "b")).state == begun().state
        await owner.purge(PARTITION, "a")
        assert not await looks_for("a")
        for number in range(3):  # More than are remembered.
            await owner.commit(PARTITION, f"c{number}", None, begun())
        assert await looks_for("a")


async def test_what_is_put_away_for_a_time() -> None:
    async with a_world() as world:
        owner = await world.owner(1)
        slim, fat = begun(), begun("x" * 100_000)
        now = time.time()
        for instance, step in (("slim", slim), ("fat", fat)):
            saved = await owner.commit(PARTITION, instance, None, step)
            await owner.put_away(PARTITION, instance, saved, step.state, now + 1000)
        (expiring,) = [each async for each in owner.expiring(PARTITION)]
        assert expiring[1] == "fat" and expiring[0] == pytest.approx(now + 1000, abs=0.01)
        kept = [await world.ended.get(key, strong=True) for key in await world.ended.keys("wfd.", "", 10)]
        assert sorted(each.expires_at is None for each in kept if each is not None) == [False, True]
        found = await loaded(owner, "fat")  # The id is used again: it must not be deleted when that time has come.
        again = begun(generation=2000)
        await owner.commit(PARTITION, "fat", found.saved, again)
        assert [each async for each in owner.expiring(PARTITION)] == []
        assert (await loaded(owner, "fat")).state == again.state
        assert (await world.reader.page())[0] == [
            View("fat", replace(again.state, inbox=()), tags={"a": "b"}, scheduled=3.0),
            View("slim", replace(slim.state, inbox=()), tags={"a": "b"}, scheduled=3.0),
        ]


async def test_pages_of_all_there_are() -> None:
    async with a_world() as world:
        owner = await world.owner(1)
        for number in range(7):
            step = begun()
            saved = await owner.commit(PARTITION, f"i{number}", None, step)
            if number % 2:
                await owner.put_away(PARTITION, f"i{number}", saved, step.state, None)
        found: list[str] = []
        after = ""
        while True:
            views, after = await world.reader.page(after=after, limit=2)
            found += [view.id for view in views]
            if not after:
                break
        assert found == ["i0", "i2", "i4", "i6", "i1", "i3", "i5"]
        assert await world.reader.page(statuses=[Status.COMPLETED]) == ([], "")
        views, after = await world.reader.page(statuses=[Status.PENDING], limit=3)
        rest, end = await world.reader.page(statuses=[Status.PENDING], limit=3, after=after)
        assert [view.id for view in (*views, *rest)] == ["i0", "i2", "i4", "i6"], "what is put away has ended"
        assert end == ""
        with pytest.raises(BadArgumentError):
            await world.reader.page(after="fence.x")
