"""Giving turns and activities to workers, in virtual time: who gets what, limits, failures, other nodes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from mesh.errors import AppFailedError, AppUnreachableError, StateError
from mesh.ownership.errors import NotOwnerError
from mesh.workflows.actions import Answer
from mesh.workflows.capacity import Priority
from mesh.workflows.contracts import WorkSource
from mesh.workflows.dispatch import Dispatch
from mesh.workflows.events import Ancestor, Inherited
from mesh.workflows.fair_queue import FairQueue
from mesh.workflows.peers import Peer
from mesh.workflows.settings import Limits
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork, Worker, WorkTooLargeError
from tests.support.virtual_time import run

APP = "shop"


def _ref(name: str) -> Ref:
    return Ref(0, name)


class _Engine:
    """Notes what it is told, and asks again for what is lost, as an engine does."""

    def __init__(self) -> None:
        self.dispatch: Dispatch
        self.told: list[tuple[str, str]] = []
        self.opened: list[str] = []
        self.failing: list[Exception] = []
        self.gone = set[str]()
        self.attached = 0

    def worker_attached(self) -> None:
        self.attached += 1

    async def open_turn(self, ref: Ref) -> TurnWork | None:
        if self.failing:
            raise self.failing.pop()
        self.opened.append(ref.id)
        return None if ref.id in self.gone else TurnWork(ref, APP, ref.id[0], "e", 1, 1, [], [])

    async def open_task(self, ref: Ref, task: int) -> TaskWork | None:
        self.opened.append(f"{ref.id}{task}")
        if ref.id in self.gone:
            return None
        app, name = ("other", "o") if ref.id == "o" else (APP, ref.id[0])
        return TaskWork(APP, ref.id, "w", 1, task, 1, name, "x", app, 0.0)

    def turned(self, work: TurnWork, answer: Answer) -> None:
        self.told.append((work.ref.id, "turned"))

    def turn_lost(self, work: TurnWork, *, begun: bool) -> None:
        self.told.append((work.ref.id, "lost"))
        self.dispatch.turn(work.ref, work.name)

    def turn_impossible(self, work: TurnWork, reason: str) -> None:
        self.told.append((work.ref.id, reason))

    def resolved(self, ref: Ref, work: TaskWork, result: TaskResult) -> None:
        self.told.append((f"{ref.id}{work.task}", result.result or ""))

    def task_lost(self, ref: Ref, work: TaskWork, *, begun: bool) -> None:
        self.told.append((f"{ref.id}{work.task}", "begun" if begun else "not begun"))
        self.dispatch.task(ref, work.task, work.name, work.app)


class _Worker:
    """Takes a second for whatever it is given, unless it is told what to do."""

    def __init__(self, names: str = "abc", *, most: int = 100) -> None:
        self.title, self.max_turns, self.max_tasks = "test", most, most
        self.ended = asyncio.Event()
        self.names, self.known = names, ""
        self.given: list[str] = []
        self.failing: list[Exception] = []
        self.out = self.peak = 0

    def runs_workflow(self, name: str) -> bool:
        return name in self.names

    def runs_activity(self, name: str) -> bool:
        return name in self.names

    def knows(self, instance: str) -> bool:
        return instance == self.known

    async def turn(self, work: TurnWork) -> Answer:
        await self._work(work.ref.id)
        return Answer()

    async def task(self, work: TaskWork) -> TaskResult:
        await self._work(f"{work.instance}{work.task}")
        return TaskResult("done")

    async def _work(self, what: str) -> None:
        self.given.append(what)
        self.out += 1
        self.peak = max(self.peak, self.out)
        try:
            if self.failing:
                raise self.failing.pop()
            await asyncio.sleep(1)
        finally:
            self.out -= 1


class _Peers:
    """Other nodes: so many, each with room for one."""

    def __init__(self, count: int = 0) -> None:
        self.count, self.looks = count, 0
        self.takes = 0.0
        self.asked: list[str] = []
        self.failing: list[Exception] = []

    async def peer(self, app: str) -> Peer | None:
        self.looks += 1
        return Peer(app, "session", "node") if self.count else None

    async def task(self, peer: Peer, work: TaskWork) -> TaskResult:
        self.asked.append(f"{work.instance}{work.task}")
        if self.failing:
            raise self.failing.pop()
        if self.takes:
            await asyncio.sleep(self.takes)
        return TaskResult(f"by {peer.app}")


class _Node:
    def __init__(self, peers: int = 0) -> None:
        self.engine, self.peers, self.stack = _Engine(), _Peers(peers), AsyncExitStack()
        self.dispatch = self.engine.dispatch = Dispatch(APP, self.peers)

    async def __aenter__(self) -> _Node:
        await self.stack.enter_async_context(self.dispatch.run(cast("WorkSource", self.engine)))
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self.stack.aclose()

    async def attach(self, worker: _Worker, priority: Priority = Priority.ANY) -> _Worker:
        await self.stack.enter_async_context(self.dispatch.attach(cast("Worker", worker), priority))
        return worker


def _on_a_node(check: Callable[[_Node], Coroutine[Any, Any, None]], peers: int = 0) -> None:
    async def whole() -> None:
        async with _Node(peers) as node:
            await check(node)

    run(whole())


def test_what_waits_has_its_turn_by_name_and_by_instance() -> None:
    queue = FairQueue()
    for name, ref, number in (("a", "x", 1), ("a", "x", 2), ("a", "x", 2), ("a", "y", 1), ("b", "z", 1)):
        queue.add(name, _ref(ref), number)
    assert list(queue) == ["a", "b"]
    assert [queue.take("a") for _ in range(2)] == [(_ref("x"), 1), (_ref("y"), 1)]
    assert list(queue) == ["b", "a"]
    queue.forget(_ref("z"))
    assert (list(queue), queue.first("a"), queue.first("b")) == (["a"], _ref("x"), None)
    queue.take("a")
    assert not queue


def test_work_waits_for_a_worker_that_runs_it_and_has_room() -> None:
    async def check(node: _Node) -> None:
        for each in ("a1", "a2", "z1"):
            node.dispatch.turn(_ref(each), each[0])
        for task in range(3):
            node.dispatch.task(_ref("b"), task, "b", None)
        assert not node.dispatch.has_worker
        worker = await node.attach(_Worker(most=1))
        assert (node.dispatch.has_worker, node.dispatch.workers) == (True, {"test": 1})
        await asyncio.sleep(10)
        assert sorted(node.engine.told) == sorted(
            [("a1", "turned"), ("a2", "turned"), *((f"b{task}", "done") for task in range(3))]
        )
        assert worker.peak == 2  # A turn and an activity.
        assert node.engine.attached == 1

    _on_a_node(check)


def test_names_that_are_declared_go_there_and_an_instance_to_who_knows_it() -> None:
    async def check(node: _Node) -> None:
        first, second, declared = _Worker(), _Worker(), _Worker("a")
        for each in (first, second):
            await node.attach(each)
        await node.attach(declared, Priority.DECLARED)
        second.known = "b1"
        for each in ("a1", "a2", "b1", "b2", "b3"):
            node.dispatch.turn(_ref(each), each[0])
        await asyncio.sleep(10)
        assert declared.given == ["a1", "a2"]
        assert (first.given, second.given) == (["b2", "b3"], ["b1"]) or "b1" in second.given
        assert len(first.given) + len(second.given) == 3
        assert first.given

    _on_a_node(check)


def test_limits_hold() -> None:
    async def check(node: _Node) -> None:
        node.dispatch.limit(Limits(own=3, shared=8, names={"b": 1}), Limits(), gateways=2)
        worker = await node.attach(_Worker())
        for each in range(6):
            node.dispatch.turn(_ref(f"b{each}"), "b")
        await asyncio.sleep(0.5)
        assert worker.out == 1
        for each in range(6):
            node.dispatch.turn(_ref(f"a{each}"), "a")
        await asyncio.sleep(30)
        assert (worker.peak, len(worker.given)) == (3, 12)

    _on_a_node(check)


def test_what_is_not_taken_is_given_again_later_and_other_names_meanwhile() -> None:
    async def check(node: _Node) -> None:
        loop = asyncio.get_running_loop()
        worker = await node.attach(_Worker(most=1))
        worker.failing = [AppUnreachableError("away") for _ in range(3)]
        began = loop.time()
        node.dispatch.task(_ref("a"), 1, "a", None)
        await asyncio.sleep(0.01)
        node.dispatch.task(_ref("b"), 1, "b", None)
        await asyncio.sleep(60)
        assert worker.given.count("b1") >= 1
        assert node.engine.told.count(("a1", "not begun")) + node.engine.told.count(("b1", "not begun")) == 3
        assert {("a1", "done"), ("b1", "done")} <= set(node.engine.told)
        assert loop.time() - began < 61

    _on_a_node(check)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AppUnreachableError("away"), "lost"),
        (AppFailedError("broke off"), "lost"),
        (RuntimeError("a mistake"), "lost"),
        (WorkTooLargeError("5 MiB"), "5 MiB"),
    ],
)
def test_what_becomes_of_a_turn_that_failed(error: Exception, told: str) -> None:
    async def check(node: _Node) -> None:
        worker = await node.attach(_Worker())
        worker.failing = [error]
        node.dispatch.turn(_ref("a"), "a")
        await asyncio.sleep(10)
        assert node.engine.told == [("a", told)] + ([("a", "turned")] if told == "lost" else [])

    _on_a_node(check)


def test_an_instance_whose_turns_fail_does_not_keep_others_of_its_name_waiting() -> None:
    class Failing(_Worker):
        async def turn(self, work: TurnWork) -> Answer:
            if work.ref.id == "poison":
                self.given.append("poison")
                raise AppFailedError("500")
            return await super().turn(work)

    async def check(node: _Node) -> None:
        worker = await node.attach(Failing("p"))
        node.dispatch.turn(_ref("poison"), "p")
        await asyncio.sleep(60)
        assert 100 < worker.given.count("poison") < 400
        node.dispatch.turn(_ref("p"), "p")
        await asyncio.sleep(1.5)
        assert ("p", "turned") in node.engine.told

    _on_a_node(check)


def test_an_activity_that_broke_off_had_begun() -> None:
    async def check(node: _Node) -> None:
        worker = await node.attach(_Worker())
        worker.failing = [AppFailedError("broke off")]
        node.dispatch.task(_ref("a"), 1, "a", None)
        await asyncio.sleep(10)
        assert node.engine.told == [("a1", "begun"), ("a1", "done")]

    _on_a_node(check)


def test_what_cannot_be_opened_is_tried_again_unless_it_is_another_s() -> None:
    async def check(node: _Node) -> None:
        await node.attach(_Worker(most=1))
        node.engine.failing = [StateError("away")]
        node.dispatch.turn(_ref("a"), "a")
        await asyncio.sleep(5)
        assert node.engine.told == [("a", "turned")]
        node.engine.failing, node.engine.told = [NotOwnerError("moved")], []
        node.dispatch.turn(_ref("a"), "a")
        node.engine.gone.add("b")
        node.dispatch.turn(_ref("b"), "b")
        await asyncio.sleep(5)
        assert node.engine.told == []
        node.dispatch.turn(_ref("c"), "c")  # Their places are free.
        await asyncio.sleep(5)
        assert node.engine.told == [("c", "turned")]

    _on_a_node(check)


def test_what_is_forgotten_is_not_opened() -> None:
    async def check(node: _Node) -> None:
        node.dispatch.turn(_ref("a"), "a")
        node.dispatch.task(_ref("a"), 1, "b", None)
        node.dispatch.task(_ref("a"), 2, "b", "other")
        node.dispatch.forget(_ref("a"))
        await node.attach(_Worker())
        await asyncio.sleep(100)
        assert node.engine.opened == []

    _on_a_node(check)


def test_a_worker_that_leaves_finishes_what_it_has_and_its_followers_get_the_rest() -> None:
    async def check(node: _Node) -> None:
        async with node.dispatch.attach(cast("Worker", leaving := _Worker(most=1))):
            node.dispatch.turn(_ref("a1"), "a")
            node.dispatch.turn(_ref("a2"), "a")
            await asyncio.sleep(0.5)
        assert (leaving.given, node.engine.told) == (["a1"], [("a1", "turned")])
        follower = await node.attach(_Worker())
        await asyncio.sleep(2)
        assert follower.given == ["a2"]

    _on_a_node(check)


def test_a_worker_that_hangs_holds_nobody_for_ever() -> None:
    async def check(node: _Node) -> None:
        worker = _Worker()
        worker.turn = lambda _: asyncio.sleep(1e6)  # type: ignore[assignment, return-value, misc]
        async with node.dispatch.attach(cast("Worker", worker)):
            node.dispatch.turn(_ref("a"), "a")
            await asyncio.sleep(1)
        await asyncio.sleep(0)
        assert node.engine.told == [("a", "lost")]

    _on_a_node(check)


def test_other_nodes_get_what_there_is_no_room_for() -> None:
    async def check(node: _Node) -> None:
        worker = await node.attach(_Worker(most=2))
        for task in range(10):
            node.dispatch.task(_ref("a"), task, "a", None)
        await asyncio.sleep(0.5)
        assert (len(worker.given), len(node.peers.asked)) == (2, 8)
        assert [node.dispatch.place(_ref("a"), task) for task in range(3)] == [("", "test"), ("", "test"), None]
        node.peers.takes = 1.0
        node.dispatch.task(_ref("z"), 1, "z", None)  # That none of this node's runs.
        await asyncio.sleep(0.5)
        assert node.dispatch.place(_ref("z"), 1) == ("node", "")
        await asyncio.sleep(5)
        assert not node.dispatch._handout.places
        assert ("z1", "by shop") in node.engine.told
        assert len(node.engine.told) == 11

    _on_a_node(check, peers=1)


def test_other_nodes_may_come_later() -> None:
    async def check(node: _Node) -> None:
        await node.attach(_Worker(most=1))
        for task in range(100):
            node.dispatch.task(_ref("a"), task, "a", None)
        await asyncio.sleep(20)
        node.peers.count = 1
        await asyncio.sleep(20)
        assert len(node.engine.told) == 100

    _on_a_node(check)


def test_operations_of_the_mesh_stay_here() -> None:
    async def check(node: _Node) -> None:
        node.dispatch.task(_ref("m"), 1, "mesh.publish", None)
        await asyncio.sleep(100)
        assert (node.peers.looks, node.engine.opened) == (0, [])

    _on_a_node(check, peers=1)


def test_an_application_that_is_not_there_is_looked_for_ever_more_rarely() -> None:
    async def check(node: _Node) -> None:
        for task in range(5):
            node.dispatch.task(_ref("o"), task, "o", "other")
        await asyncio.sleep(3600)
        assert 60 < node.peers.looks < 75  # Each minute, in the end.
        assert node.engine.opened == []  # What waits is a reference.
        node.peers.count, node.peers.failing = 1, [AppUnreachableError("busy"), AppFailedError("broke off")]
        await asyncio.sleep(300)
        came = [told for _, told in node.engine.told]
        assert (came.count("by other"), came.count("begun"), came.count("not begun")) == (5, 1, 1)

    _on_a_node(check)


def test_what_other_nodes_ask_for() -> None:
    async def check(node: _Node) -> None:
        def work(owner: str, task: int, name: str = "a") -> TaskWork:
            return TaskWork(owner, "i", "w", 1, task, 1, name, "x", APP, 0.0)

        worker = await node.attach(_Worker(most=1))
        tasks = await node.stack.enter_async_context(asyncio.TaskGroup())
        ran = [tasks.create_task(node.dispatch.run_for(work("other", task))) for task in range(2)]
        await asyncio.sleep(0.5)
        with pytest.raises(AppUnreachableError):  # Its own node can have it wait.
            await node.dispatch.run_for(work(APP, 3))
        with pytest.raises(AppUnreachableError):
            await node.dispatch.run_for(work("other", 4, "z"))
        with pytest.raises(AppUnreachableError):
            await node.dispatch.run_for(work("other", 5, "mesh.publish"))
        assert [await each for each in ran] == [TaskResult("done")] * 2
        worker.failing = [AppFailedError("broke off")]
        with pytest.raises(AppFailedError):
            await node.dispatch.run_for(work("other", 6))
        assert node.engine.opened == []

    _on_a_node(check)


def test_what_other_nodes_ask_for_waits_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond them it waits where it is from: how many there are, and the bytes of those that no worker has yet."""
    monkeypatch.setattr("mesh.workflows.dispatch.MAX_FOREIGN", 4)
    monkeypatch.setattr("mesh.workflows.dispatch.MAX_FOREIGN_BYTES", 1000)

    async def check(node: _Node) -> None:
        def work(task: int, size: int) -> TaskWork:
            history = Inherited(0.0, 1, (Ancestor("other", "i", "w", (b"x" * (size - 10),)),))
            return TaskWork("other", "i", "w", 1, task, 1, "a", "x", APP, 0.0, "x" * 10, inherited=history)

        async def ask(*sizes: int) -> list[asyncio.Task[TaskResult]]:
            asked = [tasks.create_task(node.dispatch.run_for(work(next(numbers), each))) for each in sizes]
            await asyncio.sleep(0)
            return asked

        numbers = itertools.count()
        await node.attach(_Worker(most=1))
        tasks = await node.stack.enter_async_context(asyncio.TaskGroup())
        ran = [*await ask(900), *await ask(600, 400)]
        with pytest.raises(AppUnreachableError, match="have no room for the activity 'a'"):
            await node.dispatch.run_for(work(9, 11))
        await asyncio.sleep(1.5)  # The second has begun.
        ran += await ask(600)
        assert [await each for each in ran] == [TaskResult("done")] * 4
        ran = await ask(20, 20, 20, 20)
        with pytest.raises(AppUnreachableError):
            await node.dispatch.run_for(work(9, 20))
        assert [await each for each in ran] == [TaskResult("done")] * 4

    _on_a_node(check)


def test_what_other_nodes_ask_for_is_refused_when_the_last_worker_goes() -> None:
    async def check(node: _Node) -> None:
        async def refused_or(work: TaskWork) -> TaskResult | None:
            try:
                return await node.dispatch.run_for(work)
            except AppUnreachableError:
                return None

        work = TaskWork("other", "i", "w", 1, 1, 1, "a", "x", APP, 0.0)
        async with node.dispatch.attach(cast("Worker", worker := _Worker(most=1))):
            tasks = await node.stack.enter_async_context(asyncio.TaskGroup())
            first, waiting = (tasks.create_task(refused_or(work)) for _ in range(2))
            await asyncio.sleep(0.5)
        assert (await first, await waiting, worker.given) == (TaskResult("done"), None, ["i1"])

    _on_a_node(check)
