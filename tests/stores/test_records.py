"""The mesh's own records on stores, where the backbone has no key/value: owners, their sessions, and timers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import pytest_asyncio

from mesh.blocks.records import NEEDED, LazyRecords, Prefixed
from mesh.errors import ConflictError, RecordsMissingError
from mesh.node.runtime import Runtime
from mesh.ownership.asking import OWNERS
from mesh.ownership.kind import read_table
from mesh.ownership.owning import Owning
from mesh.ownership.session import Session, SessionEndedError, has_ended
from mesh.ownership.table import NOBODY, PARTITIONS, partition_of
from mesh.schedules import Timing
from mesh.store import Concurrency, Item, StateStore
from mesh.timers import FailurePolicy, Outcome, Timer, TimerExistsError, Timers
from tests.support.eventually import eventually
from tests.support.nodes import node, unique
from tests.support.stores import STATE, Served, StoreKind
from tests.unit.test_records import Installed

TIMERS = "mesh:timers"
# Not those that are on a backbone with key/value themselves.
TABLE = {name: kind for name, kind in STATE.items() if kind.type != "state.mesh"}
WITHIN = 30.0
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(served: Served, kind: StoreKind) -> AsyncIterator[Runtime]:
    """A node on a backbone without key/value, whose records are in the store; all nodes are on this machine."""
    store = served.component("store", kind.type, actorStateStore="true")
    async with node("plain:", unique("records"), store, registry=Installed(), single_host=True) as runtime:
        yield runtime


def _records(runtime: Runtime, name: str) -> Awaitable[StateStore]:
    """Open records; what is of one process is no place for them, and yet holds what it is given."""
    store: StateStore = runtime.services["state"].components["store"].store  # type: ignore[attr-defined]
    if store.volatile:
        return asyncio.sleep(0, Prefixed(store, f"mesh||{name}||"))
    return runtime.parts.records(name, dotted=name == TIMERS)


async def _opened(runtime: Runtime, name: str) -> LazyRecords:
    """Open records; skips where they are refused, as ``test_a_store_that_lacks_an_ability`` has it."""
    records = LazyRecords(name, partial(_records, runtime))
    try:
        await records.opened()
    except RecordsMissingError:
        pytest.skip("is refused")
    return records


@pytest_asyncio.fixture(loop_scope="module")
async def owners(runtime: Runtime) -> StateStore:
    """The records of owners."""
    return await _opened(runtime, OWNERS)


@pytest_asyncio.fixture(loop_scope="module")
async def timers(runtime: Runtime) -> StateStore:
    """The records of timers."""
    return await _opened(runtime, TIMERS)


class Keeper:
    """A node that hosts a kind, and keeps its timers."""

    def __init__(
        self, owners: StateStore, timers: StateStore, kind: str, name: str, fired: list[tuple[str, str]]
    ) -> None:
        self.owning = Owning(owners, "app", name, self._tell)
        self.kind, self.name = kind, name
        self.others: list[Keeper] = []
        self._fired = fired
        self.timers = Timers(kind, timers, self._fire, lambda each: self.owning.epoch(kind, each) is not None)

    async def _tell(self, kind: str, sessions: Collection[str]) -> None:
        for each in self.others:
            each.owning.heard(kind, sessions)

    async def _fire(self, timer: Timer) -> Outcome:
        self._fired.append((self.name, timer.key))
        return Outcome.DONE

    def owned(self) -> list[int]:
        return [each for each in range(PARTITIONS) if self.owning.epoch(self.kind, each) is not None]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.timers.run(), self.owning.run():
            self.owning.host(self.kind, self.timers)
            yield


@pytest.mark.parametrize("name", [OWNERS, TIMERS])
async def test_a_store_that_lacks_an_ability(runtime: Runtime, name: str) -> None:
    """It is refused, by its name and that of the ability; else it is used."""
    can = runtime.services["state"].components["store"].capabilities  # type: ignore[attr-defined]
    missing = [each for each in NEEDED[name] if each not in can]
    if not missing:
        assert isinstance(await _records(runtime, name), Prefixed)
        return
    with pytest.raises(RecordsMissingError, match=f"and store, which is .* cannot keep it: it has no {missing[0]}"):
        await _records(runtime, name)


async def test_compare_and_set(owners: StateStore) -> None:
    """One of those who write at once has done it, and the others know that they have not."""
    key = unique("table.")
    for round_ in range(3):
        stored = await owners.get(key, strong=True)
        assert (stored is None) is (round_ == 0)
        etag, first = (None, Concurrency.FIRST_WRITE) if stored is None else (stored.etag, None)
        values = [b"%d-%d" % (round_, each) for each in range(4)]
        done: list[bytes] = []

        async def write(item: Item, done: list[bytes] = done) -> None:
            with suppress(ConflictError):
                await owners.write([item])
                done.append(item.value or b"")

        async with asyncio.TaskGroup() as tasks:
            for value in values:
                tasks.create_task(write(Item(key, value, etag, first)))
        stored = await owners.get(key, strong=True)
        assert stored is not None
        assert done == [stored.value]


async def test_a_lease_ends(owners: StateStore) -> None:
    """By the store's clock; what was given for it cannot be renewed, and its place is free."""
    key = unique("session.")
    first = Item(key, b"node", None, Concurrency.FIRST_WRITE, 2.0, lease=True)
    await owners.write([first])
    found = await owners.get(key, strong=True)
    assert found is not None
    await owners.write([Item(key, b"node", found.etag, None, 2.0, lease=True)])
    renewed = await owners.get(key, strong=True)
    assert renewed is not None
    assert renewed.etag != found.etag

    async def over() -> None:
        assert await owners.get(key, strong=True) is None

    await eventually(over, within=WITHIN)
    with pytest.raises(ConflictError):
        await owners.write([Item(key, b"node", renewed.etag, None, 2.0, lease=True)])
    await owners.write([first])


async def test_a_session(owners: StateStore) -> None:
    """It begins, is renewed, and is over once it was ended."""
    session = Session(owners, "node")
    assert await has_ended(owners, session.id)
    for _ in range(2):
        await session.renew()
        assert session.sure
        assert not await has_ended(owners, session.id)
    await session.end()
    assert await has_ended(owners, session.id)
    with pytest.raises(SessionEndedError):
        await session.renew()


async def test_scan(timers: StateStore) -> None:
    """Live keys below a path, in order, page by page; none is left out, and none of another path is in it."""
    path = unique("timer.")
    names = [f"{path}.{partition:03}.k=2E{number:02}.n" for partition in (1, 10, 2) for number in range(12)]
    results = await timers.save_each([Item(name, name.encode()) for name in names])
    assert results == [None] * len(names)
    await timers.write([Item(names[3], None)])
    wanted = sorted(name for name in names if f"{path}.001." in name and name != names[3])
    found: list[str] = []
    while page := await timers.scan(f"{path}.001.", found[-1] if found else "", 5):
        assert all(stored.value == name.encode() for name, stored in page)
        found += [name for name, _ in page]
    assert found == wanted


async def test_owners_and_their_timers(owners: StateStore, timers: StateStore) -> None:
    """Two nodes share partitions; one leaves, and the other fires what it had kept."""
    kind, fired = unique("jobs."), list[tuple[str, str]]()
    one, two = (Keeper(owners, timers, kind, name, fired) for name in ("one", "two"))
    one.others, two.others = [two], [one]

    def shared() -> None:
        assert one.owned()
        assert two.owned()
        assert sorted(one.owned() + two.owned()) == list(range(PARTITIONS))

    def alone() -> None:
        assert len(two.owned()) == PARTITIONS

    async with two.running():
        async with one.running():
            await eventually(shared, within=WITHIN)
            keys = [f"key-{number}" for number in range(40)]
            mine = [key for key in keys if partition_of(key, PARTITIONS) in one.owned()][:3]
            due = time.time() + 3600.0
            for key in mine:
                timer = Timer(key, "n", Timing(due, "", None, None), FailurePolicy(), b"data")
                await one.timers.put(partition_of(key, PARTITIONS), timer, overwrite=False)
                with pytest.raises(TimerExistsError):
                    await one.timers.put(partition_of(key, PARTITIONS), timer, overwrite=False)
                soon = Timer(key, "soon", Timing(time.time(), "", None, None), FailurePolicy(), b"data")
                await one.timers.put(partition_of(key, PARTITIONS), soon, overwrite=False)

            def each_fired() -> None:
                assert sorted(fired) == [("one", key) for key in sorted(mine)]

            await eventually(each_fired, within=WITHIN)
        await eventually(alone, within=WITHIN)
        found = await two.timers.listed(None, None, "", 100)
        assert sorted(each.key for each in found) == sorted(mine)
        fired.clear()
        for key in mine:
            soon = Timer(key, "n", Timing(time.time(), "", None, None), FailurePolicy(), b"data")
            await two.timers.put(partition_of(key, PARTITIONS), soon, overwrite=True)

        def each_fired_there() -> None:
            assert sorted(fired) == [("two", key) for key in sorted(mine)]

        await eventually(each_fired_there, within=WITHIN)
    table, _ = await read_table(owners, kind)
    assert set(table.owners) == {NOBODY}
    assert min(table.epochs) >= 1
