"""The engine, with stores and owners that fail: every instance ends as its program says, and nothing is left of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import MeshError, StateError
from mesh.workflows.actions import Answer
from mesh.workflows.engine import Engine
from mesh.workflows.errors import WorkflowEndedError, WorkflowNotFoundError
from mesh.workflows.events import Completed, Failure, Inherited, TimerCreated, TimerFired
from mesh.workflows.instance import outcome
from mesh.workflows.messages import AnyMessage, Purge, Raise, Resume, Start, Suspend, Terminate, Told
from mesh.workflows.state import State, Status
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork
from tests.support import virtual_time
from tests.support.workflow_programs import answer, events_of, expected, program, scope_of
from tests.support.workflows import Disk, Fault, MemoryCommits, PullDispatch

PARTITIONS = 3
APP = "shop"
EPOCH = 1_700_000_000.0
LONG = 3600.0


class _Dispatch(PullDispatch):
    """Loses turns and activities, and gives answers late and twice."""

    chance: random.Random
    faulty: Callable[[], bool]

    async def _run_turn(self, ref: Ref, wanted: int) -> None:
        await asyncio.sleep(self.chance.choice([0.0, 0.001, 0.02]))
        if self.dead or self._wanted[ref] != wanted or (work := await self.engine.open_turn(ref)) is None:
            return
        made = answer(work)
        await asyncio.sleep(self.chance.choice([0.0, 0.001, 0.3]))
        if self.dead:
            return
        fault = self.chance.random() if self.faulty() else 1.0
        if fault < 0.1:
            self.engine.turn_lost(work)
            await asyncio.sleep(self.chance.random())  # Its answer comes all the same, when another turn is out.
        if not self.dead:
            self.engine.turned(work, made)
        if fault < 0.2 and not self.dead:
            self.engine.turned(work, Answer())

    async def _run_task(self, ref: Ref, task: int, wanted: int) -> None:
        await asyncio.sleep(self.chance.choice([0.0, 0.001, 0.02]))
        if self.dead or self._wanted[ref] != wanted or (work := await self.engine.open_task(ref, task)) is None:
            return
        await asyncio.sleep(self.chance.choice([0.0, 0.01, 2.0]))
        if self.dead:
            return
        result = await self._task(work)
        assert result is not None
        fault = self.chance.random() if self.faulty() else 1.0
        if fault < 0.1:
            self.engine.task_lost(ref, work, begun=self.chance.random() < 0.5)
            await asyncio.sleep(self.chance.random())
        if not self.dead:
            self.engine.resolved(ref, work, result)
        if fault < 0.2 and not self.dead:
            self.engine.resolved(ref, work, result if result.failure else TaskResult('"second"'))


@dataclass(eq=False)
class _Node:
    """A process: what it believes to own may be another's by now."""

    engine: Engine
    commits: MemoryCommits
    dispatch: _Dispatch
    owned: set[int] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


class _World:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.faulty = True
        self.disk = Disk(self._fault, self._pause)
        self.nodes: list[_Node] = []
        self.owner: dict[int, _Node] = {}
        self.epochs = itertools.count(1)
        self.tasks: asyncio.TaskGroup
        self.ran: Counter[str] = Counter()
        self.terminated: set[str] = set()
        self.handed: dict[str, Inherited | None] = {}

    def clock(self) -> float:
        return EPOCH + asyncio.get_running_loop().time()

    def _fault(self) -> Fault:
        if not self.faulty or self.chance.random() > 0.08:
            return Fault.NONE
        return self.chance.choice([Fault.BEFORE, Fault.AFTER, Fault.LATE])

    async def _pause(self) -> None:
        await asyncio.sleep(self.chance.choice([0.0, 0.001, 0.01, 0.2 if self.faulty else 0.0]))

    async def _activity(self, work: TaskWork) -> TaskResult:
        self.ran[work.execution_id] += 1
        assert (None if work.inherited is None else work.inherited.scope) == scope_of(work.task)
        assert self.handed.setdefault(work.execution_id, work.inherited) == work.inherited, "attempts differ"
        if work.name == "flaky" and work.attempt == 1:
            return TaskResult(failure=Failure("Once", "the first time"))
        return TaskResult(json.dumps(json.loads(work.input or "") + "!"))

    async def _turn(self, work: TurnWork) -> Answer:
        return answer(work)

    async def start(self) -> _Node:
        commits = MemoryCommits(self.disk)
        dispatch = _Dispatch(self.tasks, self._turn, self._activity)
        dispatch.chance, dispatch.faulty = self.chance, lambda: self.faulty
        node = _Node(
            Engine(
                APP,
                commits,
                dispatch,
                self.deliver,
                lambda partition: partition in node.owned,
                look=self.look,
                clock=self.clock,
                memory_bytes=20_000,  # A few instances: the others are read again each time.
                drain=1.0,
            ),
            commits,
            dispatch,
        )
        dispatch.engine = node.engine
        running = asyncio.Event()

        async def run() -> None:
            async with node.engine.run():
                running.set()
                await asyncio.Event().wait()

        node.task = self.tasks.create_task(run())
        await running.wait()
        self.nodes.append(node)
        return node

    def kill(self, node: _Node) -> None:
        """End it as a signal does: nothing that it has begun goes on."""
        self.nodes.remove(node)
        node.commits.dead = node.dispatch.dead = True
        node.owned.clear()
        assert node.task is not None
        node.task.cancel()

    def move(self, partition: int, node: _Node, *, told: bool) -> None:
        """Give a partition another owner; the one before may not hear of it for a while."""
        before, self.owner[partition] = self.owner.get(partition), node
        if before is not None and before is not node and told:
            before.owned.discard(partition)
            before.engine.drop(partition)
        elif before is not None and before is not node:

            def lost(before: _Node = before) -> None:
                if self.owner[partition] is not before:
                    before.owned.discard(partition)
                    before.engine.drop(partition)

            asyncio.get_running_loop().call_later(3.0, lost)
        node.owned.add(partition)
        node.engine.take(partition, next(self.epochs))

    async def hand_over(self, partition: int, node: _Node) -> None:
        before = self.owner[partition]
        if before is not node:
            await before.engine.leave(partition)
            if self.owner[partition] is before:
                self.move(partition, node, told=True)

    async def deliver(self, app: str, instance: str, message: AnyMessage, until: float) -> Told:
        """Ask the owner, or one that was it; the answer may be lost."""
        assert app == APP
        ref = ref_of(instance)
        node = self.owner[ref.partition]
        if self.faulty and self.chance.random() < 0.1:
            node = self.chance.choice(self.nodes)
        if node not in self.nodes:
            raise StateError("the node is dead")
        told = await node.engine.tell(ref, message, min(until, self.clock() + 5.0))
        if self.faulty and self.chance.random() < 0.1:
            raise StateError("the answer was lost")
        return told

    async def look(self, app: str, instance: str, until: float) -> State | None:
        ref = ref_of(instance)
        found = self.disk.live.get(ref) or self.disk.ended.get(ref)
        return None if found is None else found.state

    async def insist(self, instance: str, message: AnyMessage) -> Told:
        """Ask until there is an answer."""
        while True:
            with suppress(MeshError):
                try:
                    return await self.deliver(APP, instance, message, self.clock() + 5.0)
                except (WorkflowEndedError, WorkflowNotFoundError):
                    return Told(0)
            await asyncio.sleep(0.3)

    async def trouble(self, seconds: float) -> None:
        """Have nodes fail and partitions move, for so long."""
        end = self.clock() + seconds
        while self.clock() < end:
            await asyncio.sleep(self.chance.random() * 2)
            what = self.chance.random()
            partition = self.chance.randrange(PARTITIONS)
            if what < 0.3:
                node = self.chance.choice(self.nodes)
                self.kill(node)
                fresh = await self.start()
                for each, owner in self.owner.items():
                    if owner is node:
                        self.move(each, fresh, told=False)
            elif what < 0.7:
                self.move(partition, self.chance.choice(self.nodes), told=self.chance.random() < 0.5)
            else:
                await self.hand_over(partition, self.chance.choice(self.nodes))

    async def client(self, instance: str, steps: list[object]) -> None:
        await asyncio.sleep(self.chance.random() * 3)
        await self.insist(instance, Start("program", f"first-{instance}", input=json.dumps(steps)))
        if self.chance.random() < 0.15:
            await asyncio.sleep(self.chance.random() * 8)
            await self.insist(instance, Terminate("terminated", recursive=True))
            self.terminated.add(instance)
        if self.chance.random() < 0.3:
            await self.insist(instance, Suspend())
            await asyncio.sleep(self.chance.random() * 5)
            await self.insist(instance, Resume())
        for number in range(events_of(steps)):
            await asyncio.sleep(self.chance.random() * 2)
            await self.insist(instance, Raise("e", None, f"token-{number}"))

    async def wait(self, instance: str) -> None:
        """Wait until an instance has ended, as askers do: again where the owner has changed."""
        while True:
            ref = ref_of(instance)
            with suppress(MeshError):
                node = self.owner[ref.partition]
                await node.engine.wait(
                    ref, lambda state: state is not None and state.ended is not None, self.clock() + LONG
                )
                state = await self.look(APP, instance, 0.0)
                assert state is not None and state.ended is not None, "it has ended for some, and runs for others"
                return
            await asyncio.sleep(0.1)


def ref_of(instance: str) -> Ref:
    return Ref(sum(instance.encode()) % PARTITIONS, instance)


async def _live(seed: int) -> None:
    world = _World(seed)
    chance = world.chance
    programs = {f"o{number}": program(chance) for number in range(chance.randint(1, 6))}
    programs["wide"] = [["all", [["task", "a"]] * 30]]  # Not each result has a turn.
    async with asyncio.TaskGroup() as world.tasks:
        for _ in range(2):
            await world.start()
        for partition in range(PARTITIONS):
            world.move(partition, chance.choice(world.nodes), told=True)
        waiting = [world.tasks.create_task(world.wait(instance)) for instance in programs]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.trouble(15.0))
            for instance, steps in programs.items():
                tasks.create_task(world.client(instance, steps))
        world.faulty = False
        async with asyncio.timeout(LONG):
            for instance in programs:
                await world.wait(instance)
        await asyncio.sleep(100.0)  # What is tried again with pauses arrives, children that lost a race end.
        assert not world.disk.live, "what has ended is not put away"
        assert all(each.done() for each in waiting), "nobody was told"
        for instance, steps in programs.items():
            record = world.disk.ended[ref_of(instance)]
            completed = record.history[-1]
            assert isinstance(completed, Completed)
            if instance in world.terminated and record.state.status == Status.TERMINATED:
                assert completed.result == "terminated"
                continue
            assert record.state.status == Status.COMPLETED
            assert json.loads(completed.result or "null") == expected(steps), completed
        for record in world.disk.ended.values():
            outcomes = Counter(key for event in record.history if (key := outcome(event)) is not None)
            assert all(count == 1 for count in outcomes.values())
            due = {event.id: event.fire_at for event in record.history if isinstance(event, TimerCreated)}
            for event in record.history:
                if isinstance(event, TimerFired):
                    seconds, nanos = due[event.timer]
                    assert event.at >= seconds + nanos / 1e9 - 1e-6, "a timer fired early"
        for instance in programs:
            await world.insist(instance, Purge(recursive=True))
        assert not world.disk.keys()
        assert not world.disk.broken, world.disk.broken[0]
        for node in world.nodes:
            assert node.engine.loaded == (0, 0)
            held = node.engine._processor.owned.values()
            assert not [entry.ref for each in held for entry in each.entries.values()], "it is known of what is gone"
        for node in list(world.nodes):
            assert node.task is not None
            node.task.cancel()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_every_instance_ends_as_its_program_says(seed: int) -> None:
    virtual_time.run(_live(seed))
