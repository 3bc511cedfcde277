"""A store that fails while instances are written: what is read is always an instance as one of its steps left it."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import pytest
from msgspec.structs import replace

from mesh.errors import ConflictError, MeshError, OutcomeUnknownError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.ownership.errors import NotOwnerError
from mesh.store import Item, KeyValueStateStore
from mesh.workflows.committing import Committer
from mesh.workflows.contracts import Saved
from mesh.workflows.errors import WorkflowTooLargeError
from mesh.workflows.events import Event, TurnStarted
from mesh.workflows.reading import Beside, Reader
from mesh.workflows.record import Keys, decode
from mesh.workflows.state import State, Status, Step

KIND, PARTITION = "workflows.shop", 3
INSTANCES = ("a", "b", "c")
STILL_SECONDS = 0.5


class FaultyStore(KeyValueStateStore):
    """Loses answers, writes late, stands still, or writes nothing; ``late`` is what is yet to be written."""

    def __init__(self, chance: random.Random, *, alone: bool = False) -> None:
        super().__init__(MemoryKeyValue(dotted=True))
        self.alone = alone
        self.chance = chance
        self.faults = 0.0
        self.late: list[Sequence[Item]] = []
        self.still = asyncio.Event()
        self.refused = 0

    async def write(self, items: Sequence[Item]) -> None:
        await asyncio.sleep(0)
        if self.chance.random() >= self.faults:
            return await super().write(items)
        match self.chance.choice(["lost", "late", "nothing", "still"]):
            case "lost":
                await super().write(items)
            case "late":
                self.late.append(items)
            case "still":
                self.late.append(items)
                with suppress(TimeoutError):  # Every store has an end to what it takes.
                    async with asyncio.timeout(STILL_SECONDS):
                        await self.still.wait()
            case _:
                pass
        raise OutcomeUnknownError("nobody knows")

    async def write_guarded(self, items: Sequence[tuple[Item, Item]]) -> Sequence[MeshError | None]:
        results: list[MeshError | None] = []
        for pair in items:
            try:
                await self.write(pair)
                results.append(None)
            except MeshError as error:
                results.append(error)
        return results

    async def write_late(self) -> None:
        """Write some of what is late."""
        self.chance.shuffle(self.late)
        for _ in range(self.chance.randint(0, len(self.late))):
            try:
                await super().write(self.late.pop())
            except ConflictError:
                self.refused += 1


def begun(generation: int = 1) -> Step:
    return Step(State(generation, "x", "order", Status.RUNNING, 1.0, 1.0, open_tasks=1))


def next_step(step: Step, events: Sequence[Event]) -> Step:
    return Step(replace(step.state, events=step.state.events + len(events), turns=step.state.turns + 1), tuple(events))


def over(step: Step) -> Step:
    return Step(replace(step.state, status=Status.COMPLETED, ended=2.0), step.append)


class Life:
    """One instance, as its owner steps through it; every event says which step it is of."""

    def __init__(self, id_: str, store: FaultyStore) -> None:
        self.id = id_
        self.store = store
        self.steps = 0
        self.done: list[Event] = []
        self.maybe = begun()
        self.state: State | None = None

    async def run(self, owner: Committer, steps: int) -> None:
        saved: Saved | None = None
        state: State | None = None
        fresh = False
        for _ in range(steps):
            if not fresh:
                saved, state = await self._loaded(owner)
                fresh = True
            self.steps += 1
            # Some are large enough for chunks and blobs.
            count = self.store.chance.choice([1, 1, 1, 500])
            patches = ("x" * self.store.chance.choice([1, 40_000]),) if count == 1 else ()
            events = [TurnStarted(float(self.steps), patches=patches) for _ in range(count)]
            if state is None:
                step = begun()
            elif state.ended is not None:  # The id is used again.
                step = begun(state.generation + 1)
            else:
                step = next_step(Step(state), events)
            last = state is not None and state.ended is None and self.store.chance.random() < 0.3
            step = over(step) if last else step
            until = self.store.chance.choice([None, time.time() + 1000])
            write = partial(owner.end, until=until) if last else owner.commit
            try:
                async with asyncio.timeout(self.store.chance.choice([0.01, 0.2])):  # It is cut off in the middle.
                    saved = await write(PARTITION, self.id, saved, step)
            except (OutcomeUnknownError, StateError, TimeoutError):
                fresh = False
                self.maybe = step
                continue
            state = step.state
            self._was_done(step)

    def _was_done(self, step: Step) -> None:
        if self.state is not None and self.state.generation != step.state.generation:
            self.done = []
        self.state = step.state
        self.done += step.append

    async def _loaded(self, owner: Committer) -> tuple[Saved | None, State | None]:
        """Read it, and check that it is as the last step left it, or as the one did whose outcome was not known."""
        while True:
            try:
                async with asyncio.timeout(0.2):
                    found = await owner.load(PARTITION, self.id)
                break
            except (StateError, TimeoutError):
                continue
        if found is None:
            assert self.state is None
            return None, None
        if found.state != self.state:
            assert found.state == self.maybe.state
            self._was_done(self.maybe)
        assert list(found.history) == self.done
        return found.saved, found.state


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_nor_done_twice_by_a_store_that_fails(seed: int) -> None:
    chance = random.Random(seed)
    store, ended = (FaultyStore(chance, alone=seed % 2 == 1) for _ in range(2))
    owner, lives = Committer(KIND, store, ended, seconds=0.2), [Life(each, store) for each in INSTANCES]

    async def late() -> None:
        while True:
            await asyncio.sleep(0.002)
            await store.write_late()
            await ended.write_late()

    async with owner.run():
        await owner.take(PARTITION, 1, lambda: True)
        if seed % 4 > 1:
            assert [each async for each in owner.scan(PARTITION)] == []  # From now on it knows what is there.
        store.faults = ended.faults = 0.15
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(late())
            async with asyncio.TaskGroup() as running:
                for life in lives:
                    running.create_task(life.run(owner, 30))
            writing.cancel()
        store.faults = ended.faults = 0.0
        # The owner is replaced; what it has on its way arrives when the next one has read all.
        await owner.take(PARTITION, 2, lambda: True)
        states = {instance: state async for instance, state in owner.scan(PARTITION)}
        while store.late or ended.late:
            await store.write_late()
            await ended.write_late()
        for life in lives:
            await life.run(owner, 3)
        assert {life.id for life in lives} >= states.keys()
        assert store.refused
        for life in lives:
            await owner.purge(PARTITION, life.id)
        for each in (store, ended):
            assert [key for key in await each.keys("", "", 1000) if not key.startswith("fence.")] == []
    store.still.set()
    ended.still.set()


class Mortal(KeyValueStateStore):
    """Fails from a write on, by its number among those of all that share the numbers; that one is done all the same."""

    def __init__(self, numbers: Iterator[int]) -> None:
        super().__init__(MemoryKeyValue(dotted=True))
        self.numbers = numbers
        self.last = sys.maxsize

    async def write(self, items: Sequence[Item]) -> None:
        if (number := next(self.numbers)) <= self.last:
            await super().write(items)
        if number >= self.last:
            raise OutcomeUnknownError("nobody knows")


@pytest.mark.parametrize("fat", [False, True])
@pytest.mark.parametrize("kept", [None, 1000.0])
@pytest.mark.parametrize("again", [False, True])
async def test_whoever_is_cut_off_while_it_ends_leaves_it_as_it_was_or_ended(
    *, fat: bool, kept: float | None, again: bool
) -> None:
    """For each number of writes: what the next owner reads, and what anybody reads then, in one place only."""
    until = None if kept is None else time.time() + kept
    found: list[int] = []
    for writes in itertools.count():
        numbers = itertools.count()
        live, ended = stores = Mortal(numbers), Mortal(numbers)
        first, second = (Committer(KIND, *stores) for _ in range(2))
        async with first.run(), second.run():
            await first.take(PARTITION, 1, lambda: True)
            step = begun()
            if again:  # Of an id that was used before, and whose former record could not be deleted.
                saved = await first.commit(PARTITION, "a", None, step)
                await first.end(PARTITION, "a", saved, over(next_step(step, [TurnStarted(1.0)])), None)
                step = begun(2)
            saved = await first.commit(PARTITION, "a", None, step)
            history = [TurnStarted(float(number)) for number in range(500 if fat else 1)]
            step = next_step(step, history)
            saved = await first.commit(PARTITION, "a", saved, step)
            last = over(next_step(step, [TurnStarted(1000.0)]))
            live.last = ended.last = next(numbers) + writes
            try:
                await first.end(PARTITION, "a", saved, last, until)
                done = True
            except OutcomeUnknownError:
                done = False
            live.last = ended.last = sys.maxsize
            await second.take(PARTITION, 2, lambda: True)
            scanned = {id: state async for id, state in second.scan(PARTITION)}
            assert all(state is not None and state.wants_owner for state in scanned.values()), "nobody would read it"
            loaded = await second.load(PARTITION, "a")
            assert loaded is not None and loaded.state in (step.state, last.state)
            over_now = loaded.state == last.state
            assert over_now or (scanned and not done)
            assert list(loaded.history) == (history + list(last.append) if over_now else history)
            view = await Reader(KIND, live, ended, _partition).view("a", texts=True)
            assert view is not None and view.state == loaded.state
            assert [id async for id, _ in second.scan(PARTITION)] == ([] if over_now else ["a"])
            expiring = [id async for _, id in second.expiring(PARTITION)]
            assert expiring == (["a"] if over_now and fat and until is not None else [])
            with pytest.raises(NotOwnerError):
                await first.end(PARTITION, "a", saved, last, until)
            found.append(over_now)
        if done:
            break
    assert found == sorted(found) and len(set(found)) == 2, "it was cut off on both sides"


@pytest.mark.parametrize("kept", [None, 1000.0])
@pytest.mark.parametrize("ends", [False, True])
async def test_whoever_is_cut_off_while_it_purges_leaves_what_can_be_purged(*, ends: bool, kept: float | None) -> None:
    """For each number of writes: the next owner finds nothing at all, or an instance, of which then nothing is left."""
    until = None if kept is None else time.time() + kept
    for writes in itertools.count():
        numbers = itertools.count()
        live, ended = stores = Mortal(numbers), Mortal(numbers)
        first, second = (Committer(KIND, *stores) for _ in range(2))
        async with first.run(), second.run():
            await first.take(PARTITION, 1, lambda: True)
            saved = await first.commit(PARTITION, "a", None, begun())
            large = [TurnStarted(float(number), patches=("x" * 40_000,)) for number in range(3)]
            step = next_step(begun(), [*large, *[TurnStarted(float(number)) for number in range(500)]])
            saved = await first.commit(PARTITION, "a", saved, step)
            if ends:
                await first.end(PARTITION, "a", saved, over(next_step(step, [TurnStarted(1000.0)])), until)
            live.last = ended.last = next(numbers) + writes
            try:
                await first.purge(PARTITION, "a")
                done = True
            except OutcomeUnknownError:
                done = False
            live.last = ended.last = sys.maxsize
            await second.take(PARTITION, 2, lambda: True)
            loaded = await second.load(PARTITION, "a")
            view = await Reader(KIND, live, ended, _partition).view("a", texts=True)
            assert (view is None) == (loaded is None)
            if loaded is not None:
                assert not done
                assert view is not None and view.state == loaded.state
                assert loaded.state.ended is not None or list(loaded.history) == list(step.append)
                assert await second.purge(PARTITION, "a")
        left = [key for store in stores for key in await store.keys("", "", 1000) if not key.startswith("fence.")]
        assert not left
        if done:
            break


async def test_what_an_owner_of_an_older_version_has_done_since_somebody_was_cut_off_is_not_taken_back() -> None:
    """It reads what is live alone, and goes on with that; so the end that it has not seen is none."""
    numbers = itertools.count()
    live, ended = stores = Mortal(numbers), Mortal(numbers)
    first, older, newer = (Committer(KIND, *stores) for _ in range(3))
    async with first.run(), older.run(), newer.run():
        await first.take(PARTITION, 1, lambda: True)
        step = next_step(begun(), [TurnStarted(1.0)])
        saved = await first.commit(PARTITION, "a", None, begun())
        saved = await first.commit(PARTITION, "a", saved, step)
        live.last = ended.last = next(numbers) + 2  # The ended one's fence, and the record.
        with pytest.raises(OutcomeUnknownError):
            await first.end(PARTITION, "a", saved, over(next_step(step, [TurnStarted(2.0)])), None)
        live.last = ended.last = sys.maxsize
        keys = Keys(KIND)
        assert await ended.get(keys.ended_of(PARTITION, "a"), strong=True) is not None
        found = await live.get(keys.live_of(PARTITION, "a"), strong=True)
        assert found is not None
        seen = await Beside(live, keys, PARTITION, "a", decode("a", found.value)).loaded()
        await older.take(PARTITION, 2, lambda: True)
        step = next_step(Step(replace(seen.state, updated=seen.state.updated + 1)), [TurnStarted(3.0)])
        await older.commit(PARTITION, "a", seen.saved, step)

        await newer.take(PARTITION, 3, lambda: True)
        loaded = await newer.load(PARTITION, "a")
        assert loaded is not None and loaded.state == step.state
        assert list(loaded.history) == [TurnStarted(1.0), TurnStarted(3.0)]
        last = over(next_step(Step(replace(step.state, updated=4.0)), [TurnStarted(4.0)]))
        await newer.end(PARTITION, "a", loaded.saved, last, None)
        loaded = await newer.load(PARTITION, "a")
        assert loaded is not None and loaded.state == last.state


async def _partition(instance: str) -> int:
    return PARTITION


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("ends", [False, True])
async def test_what_a_replaced_owner_has_on_its_way_is_refused(*, ends: bool, alone: bool) -> None:
    chance = random.Random(1)
    live, ended = (FaultyStore(chance, alone=alone) for _ in range(2))
    store = ended if ends else live
    former, later = (Committer(KIND, live, ended, seconds=0.2) for _ in range(2))
    async with former.run(), later.run():
        await former.take(PARTITION, 1, lambda: True)
        saved = await former.commit(PARTITION, "b", None, begun())
        await former.end(PARTITION, "b", saved, over(begun()), None)  # So it has taken both fences.
        saved = await former.commit(PARTITION, "a", None, begun())
        store.faults = 1.0
        step = next_step(begun(), [TurnStarted(1.0)])
        step, write = (over(step), partial(former.end, until=None)) if ends else (step, former.commit)
        with pytest.raises((OutcomeUnknownError, TimeoutError)):
            while not store.late:  # Until a write of it is on its way.
                async with asyncio.timeout(0.05):
                    await write(PARTITION, "a", saved, step)
        store.faults = 0.0
        await later.take(PARTITION, 2, lambda: True)
        found = await later.load(PARTITION, "a")
        while store.late:
            await store.write_late()
        assert await later.load(PARTITION, "a") == found
        with pytest.raises(NotOwnerError):
            await write(PARTITION, "a", saved, step)


async def test_who_waits_when_it_ends_is_told() -> None:
    store, ended = FaultyStore(random.Random(1)), KeyValueStateStore(MemoryKeyValue(dotted=True))
    owner = Committer(KIND, store, ended)
    waiting: list[asyncio.Task[bool]] = []
    async with asyncio.TaskGroup() as tasks, owner.run():
        await owner.take(PARTITION, 1, lambda: True)
        store.faults, store.chance = 1.0, random.Random()
        store.chance.choice = lambda kinds: kinds[-1]  # type: ignore[method-assign,assignment]
        for number in range(600):
            waiting.append(tasks.create_task(_refused(owner, f"{number}")))
        await asyncio.sleep(0.01)
    assert all(task.result() for task in waiting)


async def _refused(owner: Committer, instance: str) -> bool:
    with pytest.raises(StateError):
        await owner.commit(PARTITION, instance, None, begun())
    return True


async def test_what_is_put_away_late_is_not_back_after_a_purge() -> None:
    live, ended = FaultyStore(random.Random(1)), FaultyStore(random.Random(1))
    first, second = Committer(KIND, live, ended), Committer(KIND, live, ended)
    async with first.run(), second.run():
        await first.take(PARTITION, 1, lambda: True)
        saved = await first.commit(PARTITION, "a", None, begun())
        over = Step(replace(begun().state, status=Status.COMPLETED, ended=2.0))
        saved = await first.commit(PARTITION, "a", saved, over)
        late = asyncio.Event()
        write, ended.write = ended.write, _behind(late, ended.write)  # type: ignore[method-assign]
        putting = asyncio.ensure_future(first.put_away(PARTITION, "a", saved, over.state, None))
        await asyncio.sleep(0.01)
        ended.write = write  # type: ignore[method-assign]
        await second.take(PARTITION, 2, lambda: True)
        assert await second.purge(PARTITION, "a")
        late.set()
        with pytest.raises(NotOwnerError):
            await putting
        assert await second.load(PARTITION, "a") is None


async def test_an_id_that_is_too_long_for_the_store_is_refused_for_good() -> None:
    store = FaultyStore(random.Random(1))
    committer = Committer(KIND, store, store)
    async with committer.run():
        await committer.take(PARTITION, 1, lambda: True)
        with pytest.raises(WorkflowTooLargeError):
            await committer.commit(PARTITION, "a" * 5000, None, begun())
        with pytest.raises(WorkflowTooLargeError):
            await committer.load(PARTITION, "a" * 5000)


def _behind(
    event: asyncio.Event, write: Callable[[Sequence[Item]], Awaitable[None]]
) -> Callable[[Sequence[Item]], Awaitable[None]]:
    async def late(items: Sequence[Item]) -> None:
        await event.wait()
        await write(items)

    return late
