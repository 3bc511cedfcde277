"""Owners: never two who are sure at one time, and one for everything once all is quiet."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import StateError
from mesh.key_value import MemoryKeyValue
from mesh.ownership.kind import read_table, table_key
from mesh.ownership.owning import Owning
from mesh.ownership.session import Session
from mesh.ownership.table import NOBODY, Member, Standing, Table, partition_of
from mesh.store import Item, KeyValueStateStore, Stored
from tests.support import virtual_time

KIND = "actor.thing"
PARTITIONS = 16  # "Kept with the first record": whoever comes later takes what the table has.

# Tables

names = st.text("abcdef", min_size=1, max_size=4)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    members = {
        name: Member("app", f"node-{name}", draw(st.sampled_from(Standing)))
        for name in draw(st.sets(names, max_size=5))
    }
    owners = draw(st.lists(st.sampled_from([NOBODY, *members]), min_size=1, max_size=20))
    epochs = draw(st.lists(st.integers(0, 9), min_size=len(owners), max_size=len(owners)))
    return Table(members, tuple(owners), tuple(epochs))


@given(tables())
def test_a_table_is_read_as_it_was_written(table: Table) -> None:
    assert Table.decode(table.encode()) == table


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"members":{},"owners":[],"epochs":[]}',
        b'{"members":{},"owners":[0],"epochs":[]}',
        b'{"members":{"a":["app","n",2]},"owners":[2],"epochs":[0]}',
        b'{"members":{"a":["app","n"]},"owners":[1],"epochs":[0]}',
        b'{"members":{"a":["app","n",3]},"owners":[1],"epochs":[0]}',
        b'{"members":{"a":1},"owners":[0],"epochs":[0]}',
        b'{"members":{},"owners":["x"],"epochs":[0]}',
        b'{"members":{},"owners":[0],"epochs":[null]}',
    ],
)
def test_what_is_no_table(data: bytes) -> None:
    with pytest.raises(ValueError, match="no table"):
        Table.decode(data)


@given(tables())
def test_what_everybody_does_comes_to_what_is_wanted(table: Table) -> None:
    """One step of each, in any order, and each partition is where it should be, or nobody is ready."""
    for member in table.members:
        table = table.given({**table.moves(member), **dict.fromkeys(table.claims(member), member)})
    staying = [name for name, each in table.members.items() if each.standing is not Standing.LEAVING]
    assert all(owner == want for owner, want in zip(table.owners, table.wanted, strict=True) if staying)
    assert not any(table.moves(member) or table.claims(member) for member in table.members)


@given(tables(), names)
def test_only_what_a_new_member_gets_moves(table: Table, name: str) -> None:
    before, after = table.wanted, table.joined(f"{name}-new", Member("app", "n")).wanted
    assert all(new in (old, f"{name}-new") for old, new in zip(before, after, strict=True))


def test_partitions_are_spread() -> None:
    table = Table.new()
    for number in range(4):
        table = table.joined(f"session-{number}", Member("app", "n"))
    assert all(45 <= table.wanted.count(each) <= 85 for each in table.members)
    assert len({partition_of(f"actor-{number}", 256) for number in range(5000)}) == 256
    assert partition_of("a", 256) == partition_of("a", 256) < 256


@given(tables(), tables())
def test_who_is_concerned_has_something_to_do(before: Table, after: Table) -> None:
    """And whoever has something to do is concerned, if that was not so before."""
    if len(before.owners) != len(after.owners):
        return
    concerned = after.concerned(before)
    for session in after.members:
        gained = {each for each, owner in enumerate(after.owners) if owner == session} - {
            each for each, owner in enumerate(before.owners) if owner == session
        }
        watches = session in before.members and after.neighbour(session) != before.neighbour(session)
        if gained or watches or after.moves(session) or after.claims(session):
            assert session in concerned
    assert before.members.keys() - after.members.keys() <= concerned


@given(tables())
def test_each_member_is_watched_by_one(table: Table) -> None:
    if len(table.members) > 1:
        assert sorted(str(table.neighbour(each)) for each in table.members) == sorted(table.members)
    assert table.neighbour("a newcomer") in (table.members or {None})


# Nodes


class Link(KeyValueStateStore):
    """A node's way to the store, which may be slow, cut, or lose answers."""

    def __init__(self, store: MemoryKeyValue, chance: random.Random) -> None:
        super().__init__(store)
        self.slow = 0.0
        self.cut = False
        self.loses_answers = False
        self.reads = self.table_reads = self.table_writes = 0
        self._chance = chance

    async def _on_the_way(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.0, 0.002) + self._chance.uniform(0.0, self.slow))
        if self.cut:
            await asyncio.sleep(self._chance.choice([0.0, 5.0, 30.0]))
            raise StateError("cut")

    async def get(self, key: str, *, strong: bool, metadata: object = None) -> Stored | None:
        self.reads += 1
        self.table_reads += key.startswith("table.")
        await self._on_the_way()
        found = await super().get(key, strong=strong)
        await self._on_the_way()
        return found

    async def write(self, items: Sequence[Item]) -> None:
        self.table_writes += items[0].key.startswith("table.")
        await self._on_the_way()
        await super().write(items)
        if self.loses_answers and self._chance.random() < 0.5:
            raise StateError("the answer was lost")
        await self._on_the_way()


class Node:
    """A node that hosts a kind."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.link = Link(world.store, world.chance)
        self.speed = world.chance.uniform(0.85, 1.15)  # Of its clock.
        self.owning = Owning(self.link, "app", name, world.tell, self.clock)
        self.has: dict[int, int] = {}
        self.defective = False
        self.hangs = 0.0  # Seconds.
        self.owning.host(KIND, self)

    def clock(self) -> float:
        return asyncio.get_running_loop().time() * self.speed

    def take(self, partition: int, epoch: int) -> None:
        assert partition not in self.has
        assert epoch > self.world.highest.get(partition, 0), "an epoch is given once, and they rise"
        self.world.highest[partition] = epoch
        self.has[partition] = epoch

    async def leave(self, partition: int) -> None:
        await asyncio.sleep(self.hangs or self.world.chance.uniform(0.0, 0.2))
        self.has.pop(partition, None)
        if self.defective:
            raise RuntimeError("a defect")

    def drop(self, partition: int) -> None:
        self.has.pop(partition, None)

    @property
    def sure(self) -> set[int]:
        return {each for each in range(self.world.partitions) if self.owning.epoch(KIND, each) is not None}

    async def live(self, ending: asyncio.Event) -> None:
        async with self.owning.run():
            await ending.wait()


class World:
    """Nodes around one store."""

    def __init__(self, seed: int, partitions: int = PARTITIONS) -> None:
        self.partitions = partitions
        self.chance = random.Random(seed)
        self.store = MemoryKeyValue(asyncio.get_running_loop().time)
        self.nodes: dict[str, Node] = {}
        self.highest: dict[int, int] = {}
        self.always = False
        self._living: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> World:
        await self._tasks.__aenter__()
        first = Item(table_key(KIND), Table.new(self.partitions).encode())
        await KeyValueStateStore(self.store).write([first])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for name in list(self.nodes):
            self.kill(name)
        await self._tasks.__aexit__(*exc_info)  # type: ignore[arg-type]

    async def tell(self, kind: str, sessions: Collection[str]) -> None:
        for node in self.nodes.values() if sessions else ():
            if self.always or self.chance.random() < 0.7:  # None has to hear it.
                node.owning.heard(kind, sessions)

    def start(self, name: str) -> None:
        if name not in self.nodes:
            ending = asyncio.Event()
            node = self.nodes[name] = Node(self, name)
            self._living[name] = self._tasks.create_task(node.live(ending)), ending

    def kill(self, name: str) -> None:
        """End it at once; nobody is told, and what is on its way to the store may arrive."""
        if self.nodes.pop(name, None) is not None:
            self._living.pop(name)[0].cancel()

    async def stop(self, name: str) -> None:
        if name in self.nodes:
            task, ending = self._living.pop(name)
            ending.set()
            await asyncio.wait([task])
            del self.nodes[name]

    def leave(self, node: Node, *, hosts_again: bool) -> None:
        """Have it host the kind no more; it may host it again while it leaves."""
        self._tasks.create_task(node.owning.leave(KIND))
        if hosts_again:
            self._tasks.create_task(self._again(node))

    async def _again(self, node: Node) -> None:
        await asyncio.sleep(self.chance.uniform(0.0, 1.0))
        node.owning.host(KIND, node)

    async def passes(self, seconds: float) -> None:
        """Let time pass, and look all the time that nobody owns what another does."""
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(self.chance.uniform(0.0, 0.1))
            sure = [each for node in self.nodes.values() for each in node.sure]
            assert len(sure) == len(set(sure)), "two are sure to own one partition"

    async def until_settled(self, within: float) -> None:
        """Wait until each partition has the owner that is wanted, and it knows."""
        for _ in range(int(within)):
            await self.passes(1.0)
            table, _ = await read_table(KeyValueStateStore(self.store), KIND)
            everybody = {each.node for each in table.members.values()} == self.nodes.keys()
            known = sum(len(node.sure) for node in self.nodes.values()) == self.partitions
            if everybody and known and table.owners == tuple(table.wanted):
                assert all(node.has.keys() == node.sure for node in self.nodes.values())
                return
        raise AssertionError(f"not settled: {[(name, len(node.sure)) for name, node in self.nodes.items()]}")


ACTIONS = ("start", "kill", "stop", "cut", "mend", "slow", "lose answers", "ready", "not ready", "leave")
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from("abcd"), st.floats(0.0, 12.0)), min_size=1, max_size=12
)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), steps)
def test_never_two_and_at_last_one(seed: int, script: list[tuple[str, str, float]]) -> None:
    async def play() -> None:
        async with World(seed) as world:
            world.start("a")
            world.start("b")
            for action, name, seconds in script:
                node = world.nodes.get(name)
                if action == "start":
                    world.start(name)
                elif action == "kill":
                    world.kill(name)
                elif action == "stop" and node is not None and not node.link.cut:
                    await world.stop(name)
                elif node is not None and action == "leave":
                    world.leave(node, hosts_again=seconds < 6.0)
                elif node is not None and action in ("ready", "not ready"):
                    node.owning.host(KIND, node, ready=action == "ready")
                elif node is not None:
                    node.link.cut = action == "cut"
                    node.link.slow = 2.0 if action == "slow" else 0.0
                    node.link.loses_answers = action == "lose answers"
                await world.passes(seconds)
            world.start("e")
            for node in world.nodes.values():
                node.link.cut, node.link.slow, node.link.loses_answers = False, 0.0, False
                node.owning.host(KIND, node, ready=True)
            await world.until_settled(60.0)

    virtual_time.run(play())


def test_a_killed_owner_is_replaced_within_twelve_seconds() -> None:
    async def play() -> None:
        async with World(1) as world:
            for name in "abc":
                world.start(name)
            await world.until_settled(10.0)
            world.kill("b")
            await world.until_settled(12.0)

    virtual_time.run(play())


class Away(KeyValueStateStore):
    """A store that takes a moment for each write, and answers nobody for a while."""

    def __init__(self, since: float, until: float, *, hangs: bool) -> None:
        super().__init__(MemoryKeyValue(asyncio.get_running_loop().time))
        now = asyncio.get_running_loop().time()
        self._since, self._until, self._hangs = now + since, now + until, hangs

    async def write(self, items: Sequence[Item]) -> None:
        await asyncio.sleep(0.01)
        now = asyncio.get_running_loop().time()
        if self._since <= now < self._until:
            if not self._hangs:
                raise StateError("away")
            await asyncio.sleep(self._until - now)
        await super().write(items)


async def _stays_sure(records: KeyValueStateStore) -> None:
    session = Session(records, "a node", asyncio.get_running_loop().time)
    await session.renew()
    async with asyncio.TaskGroup() as tasks:
        keeping = tasks.create_task(session.keep())
        await asyncio.sleep(30.0)
        assert session.sure
        keeping.cancel()


@pytest.mark.parametrize(("since", "until", "hangs"), [(0.0, 6.0, True), (2.5, 6.3, False)], ids=["late", "failed"])
def test_a_session_is_renewed_while_it_is_sure(since: float, until: float, *, hangs: bool) -> None:
    """However late it was renewed before, and as often as there is time for where that failed."""

    async def play() -> None:
        await _stays_sure(Away(since, until, hangs=hangs))

    virtual_time.run(play())


class Late(KeyValueStateStore):
    """A store that does not answer one write, which arrives between the next one's reading and writing."""

    def __init__(self) -> None:
        super().__init__(MemoryKeyValue(asyncio.get_running_loop().time))
        self._late: list[Sequence[Item]] = []
        self._writes = 0

    async def get(self, key: str, *, strong: bool = False, metadata: Mapping[str, str] | None = None) -> Stored | None:
        found = await super().get(key, strong=strong, metadata=metadata)
        while self._late:
            await super().write(self._late.pop())
        return found

    async def write(self, items: Sequence[Item]) -> None:
        self._writes += 1
        if self._writes == 2:
            self._late.append(items)
            raise StateError("no answer")
        await super().write(items)


def test_a_renewal_that_comes_late_ends_nothing() -> None:
    """It is in the way of the next one, and no sign that the session has ended."""

    async def play() -> None:
        await _stays_sure(Late())

    virtual_time.run(play())


def test_who_leaves_hands_over_at_once() -> None:
    async def play() -> None:
        async with World(2) as world, AsyncExitStack():
            for name in "ab":
                world.start(name)
            await world.until_settled(10.0)
            began = asyncio.get_running_loop().time()
            await world.stop("a")
            assert asyncio.get_running_loop().time() - began < 5.0
            await world.until_settled(2.0)
            await world.stop("b")
            table, _ = await read_table(KeyValueStateStore(world.store), KIND)
            assert not table.members
            assert set(table.owners) == {NOBODY}

    virtual_time.run(play())


def test_turns_that_hang_end_together() -> None:
    """Leaving takes as long as one of them, and a little more, whatever the number of partitions."""

    async def play() -> None:
        async with World(7, partitions=256) as world:
            world.start("a")
            await world.until_settled(10.0)
            world.nodes["a"].hangs = 60.0
            began = asyncio.get_running_loop().time()
            await world.stop("a")
            assert asyncio.get_running_loop().time() - began < 70.0

    virtual_time.run(play())


def test_news_have_a_table_read_no_more_often_than_is_bounded() -> None:
    """Whoever tells news all the time costs little, and what changes meanwhile is seen."""

    async def tell(node: Node) -> None:
        while True:
            node.owning.heard(KIND)
            await asyncio.sleep(0.002)

    async def play() -> None:
        async with World(8) as world, asyncio.TaskGroup() as tasks:
            world.start("a")
            await world.until_settled(10.0)
            node = world.nodes["a"]
            before = node.link.reads
            telling = tasks.create_task(tell(node))
            await asyncio.sleep(2.0)
            assert node.link.reads - before <= 100 + 2 * 100 + 10  # Those of the session, too.
            world.start("b")
            await world.until_settled(15.0)  # News may be lost: then each looks every three seconds.
            telling.cancel()

    virtual_time.run(play())


def test_those_who_have_nothing_to_do_read_no_table() -> None:
    """Who joins many has few of them read what is as long as they are many, and soon."""

    async def play() -> None:
        async with World(9, 256) as world:
            world.always = True
            for number in range(40):
                world.start(f"n{number}")
            await world.until_settled(60.0)
            await asyncio.sleep(15.0)  # All have looked since.
            before = {name: node.link.table_reads for name, node in world.nodes.items()}
            world.start("one more")
            await world.until_settled(6.0)
            reading = [name for name, reads in before.items() if world.nodes[name].link.table_reads > reads]
            looks = 6.0 / (3.0 * 40 / 10)
            assert len(reading) < 18 + 40 * looks, "some of 256 partitions move, and one has a new neighbour"
            assert world.nodes["one more"].sure

    virtual_time.run(play())


@pytest.mark.parametrize("count", [20, 80])
def test_what_it_takes_to_join_does_not_grow_with_those_who_join_at_once(count: int) -> None:
    async def play() -> None:
        async with World(10, 256) as world:
            world.always = True
            for number in range(count):
                world.start(f"n{number}")
            await world.until_settled(60.0)
            links = [node.link for node in world.nodes.values()]
            assert sum(each.table_writes for each in links) < 14 * count
            assert sum(each.table_reads for each in links) < 60 * count

    virtual_time.run(play())


def test_a_node_looks_at_once_where_it_may_have_missed_news() -> None:
    async def play() -> None:
        async with World(11, 256) as world:
            for number in range(40):
                world.start(f"n{number}")
            await world.until_settled(60.0)
            before = {name: node.link.table_reads for name, node in world.nodes.items()}
            for node in world.nodes.values():
                node.owning.look()
            await asyncio.sleep(1.5)
            assert all(node.link.table_reads > before[name] for name, node in world.nodes.items())

    virtual_time.run(play())


def test_what_fails_counts_as_left(caplog: pytest.LogCaptureFixture) -> None:
    """A defect in one kind ends the owning of none."""

    async def play() -> None:
        async with World(5) as world:
            world.start("a")
            await world.until_settled(10.0)
            world.nodes["a"].defective = True
            world.start("b")
            await world.until_settled(10.0)
            await world.stop("a")
            await world.until_settled(10.0)

    virtual_time.run(play())
    assert "a defect" in caplog.text


def test_a_kind_is_left_and_hosted_again() -> None:
    async def play() -> None:
        async with World(4) as world:
            for name in "ab":
                world.start(name)
            await world.until_settled(10.0)
            node = world.nodes["a"]
            leaving = asyncio.ensure_future(node.owning.leave(KIND))
            await asyncio.sleep(0.01)
            assert not leaving.done()
            node.owning.host(KIND, node)
            async with asyncio.timeout(2.0):
                await leaving
            await world.until_settled(15.0)  # News may be lost: then each looks every three seconds.
            node.link.cut = True
            async with asyncio.timeout(8.0):
                await node.owning.leave(KIND)  # What is not handed over may be another's soon.
            assert not node.has

    virtual_time.run(play())


def test_who_is_not_ready_owns_what_nobody_is_ready_for() -> None:
    async def play() -> None:
        async with World(5) as world:
            for name in "ab":
                world.start(name)
            await world.until_settled(10.0)
            world.nodes["a"].owning.host(KIND, world.nodes["a"], ready=False)
            await world.until_settled(15.0)  # News may be lost: then each looks every three seconds.
            assert not world.nodes["a"].sure
            world.nodes["b"].owning.host(KIND, world.nodes["b"], ready=False)
            await world.until_settled(15.0)  # News may be lost: then each looks every three seconds.
            assert world.nodes["a"].sure
            assert world.nodes["b"].sure

    virtual_time.run(play())


def test_who_idles_writes_one_record_at_a_time() -> None:
    async def play() -> None:
        async with World(3) as world:
            for name in "ab":
                world.start(name)
            await world.until_settled(10.0)
            before = world.store._revision
            await world.passes(30.0)
            assert world.store._revision - before <= 2 * 12  # Sessions alone, with jitter and clocks of two speeds.

    virtual_time.run(play())
