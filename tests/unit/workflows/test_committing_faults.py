"""A store that fails while instances are written: what is read is always an instance as one of its steps left it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

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
from mesh.workflows.state import State, Status, Step

KIND, PARTITION = "workflows.shop", 3
INSTANCES = ("a", "b", "c")


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


def begun() -> Step:
    return Step(State(1, "x", "order", Status.RUNNING, 1.0, 1.0))


def next_step(step: Step, events: Sequence[Event]) -> Step:
    return Step(replace(step.state, events=step.state.events + len(events), turns=step.state.turns + 1), tuple(events))


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
            step = begun() if state is None else next_step(Step(state), events)
            try:
                async with asyncio.timeout(self.store.chance.choice([0.01, 0.2])):  # It is cut off in the middle.
                    saved = await owner.commit(PARTITION, self.id, saved, step)
            except (OutcomeUnknownError, StateError, TimeoutError):
                fresh = False
                self.maybe = step
                continue
            self.state = state = step.state
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
            self.done += self.maybe.append
            self.state = found.state
        assert list(found.history) == self.done
        return found.saved, found.state


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_nor_done_twice_by_a_store_that_fails(seed: int) -> None:
    chance = random.Random(seed)
    store, ended = FaultyStore(chance, alone=seed % 2 == 1), KeyValueStateStore(MemoryKeyValue(dotted=True))
    owner, lives = Committer(KIND, store, ended, seconds=0.05), [Life(each, store) for each in INSTANCES]

    async def late() -> None:
        while True:
            await asyncio.sleep(0.002)
            await store.write_late()

    async with owner.run():
        await owner.take(PARTITION, 1, lambda: True)
        store.faults = 0.15
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(late())
            async with asyncio.TaskGroup() as running:
                for life in lives:
                    running.create_task(life.run(owner, 30))
            writing.cancel()
        store.faults = 0.0
        # The owner is replaced; what it has on its way arrives when the next one has read all.
        await owner.take(PARTITION, 2, lambda: True)
        states = {instance: state async for instance, state in owner.scan(PARTITION)}
        while store.late:
            await store.write_late()
        for life in lives:
            await life.run(owner, 3)
        assert {life.id for life in lives} >= states.keys()
        assert store.refused
        for life in lives:
            await owner.purge(PARTITION, life.id)
        assert [key for key in await store.keys("", "", 1000) if not key.startswith("fence.")] == []
    store.still.set()


@pytest.mark.parametrize("alone", [False, True])
async def test_what_a_replaced_owner_has_on_its_way_is_refused(*, alone: bool) -> None:
    chance = random.Random(1)
    store, ended = FaultyStore(chance, alone=alone), KeyValueStateStore(MemoryKeyValue(dotted=True))
    former, later = (Committer(KIND, store, ended, seconds=0.05) for _ in range(2))
    async with former.run(), later.run():
        await former.take(PARTITION, 1, lambda: True)
        saved = await former.commit(PARTITION, "a", None, begun())
        store.faults = 1.0
        step = next_step(begun(), [TurnStarted(1.0)])
        with pytest.raises((OutcomeUnknownError, TimeoutError)):
            while not store.late:  # Until a write of it is on its way.
                async with asyncio.timeout(0.05):
                    await former.commit(PARTITION, "a", saved, step)
        store.faults = 0.0
        await later.take(PARTITION, 2, lambda: True)
        found = await later.load(PARTITION, "a")
        while store.late:
            await store.write_late()
        assert await later.load(PARTITION, "a") == found
        with pytest.raises(NotOwnerError):
            await former.commit(PARTITION, "a", saved, step)


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
