"""Workflows from end to end on nodes in this process: the block, the engine, the store in memory, and a worker."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest

from mesh.blocks.workflow_answers import Answers
from mesh.blocks.workflows import (
    GET,
    HISTORY,
    LIST,
    PURGE,
    PURGE_MANY,
    RAISE_EVENT,
    RERUN,
    SHOW,
    START,
    TERMINATE,
    WAIT,
    Get,
    History,
    List,
    Purge,
    PurgeMany,
    RaiseEvent,
    Rerun,
    Show,
    Start,
    Terminate,
    Wait,
)
from mesh.node.runtime import Runtime
from mesh.workflows.errors import WorkflowExistsError, WorkflowNotEndedError, WorkflowNotFoundError
from mesh.workflows.state import Status, View
from mesh.workflows.waiting import Waiting
from tests.support.nodes import MemoryMesh, ask, node, unique
from tests.support.workflow_replay import Again, Call, Child, Failed, Timer
from tests.support.workflow_replay import Wait as Event
from tests.support.workflow_worker import Worker, working

APP = "shop"


async def _double(given: int) -> int:
    return 2 * given


def _chain(given: int) -> Any:
    for _ in range(3):
        given = yield Call("double", given)
    return given


async def _run(runtime: Runtime, name: str, given: object = None, *, id_: str = "") -> View:
    started = await ask(runtime, START, runtime.settings.app_id, Start(name, id_, json.dumps(given)))
    return await _end(runtime, started)


async def _end(runtime: Runtime, id_: str) -> View:
    async with asyncio.timeout(60):
        view: View = await ask(runtime, WAIT, runtime.settings.app_id, Wait(id_))
    return view


async def test_activities_one_after_the_other() -> None:
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(node("memory:", unique("n"), app_id=APP, registry=MemoryMesh()))
        await stack.enter_async_context(working(runtime, Worker({"chain": _chain}, {"double": _double})))
        view = await _run(runtime, "chain", 1, id_="one")
        assert (view.state.status, view.output) == (Status.COMPLETED, "8")
        history = await ask(runtime, HISTORY, APP, History("one"))
        assert [type(each).__name__ for each in history.events if "Turn" not in type(each).__name__] == [
            "Started",
            *["TaskScheduled", "TaskCompleted"] * 3,
            "Completed",
        ]


def _all(given: int) -> Any:
    return sum((yield [Call("double", each) for each in range(given)]))


def _parent(given: int) -> Any:
    both = yield [Child("chain", given, "kid"), Child("all", 3)]
    try:
        yield Child("fails")
    except Failed as error:
        both.append(error.failure.type)
    return both


def _fails(_: None) -> Any:
    yield Call("refuse")


def _waits(_: None) -> Any:
    first = yield Event("go")
    yield Timer(0.05)
    return first


def _counts(given: int) -> Any:
    yield Call("double", given)
    return Again(given + 1) if given < 4 else given


async def _refuse(_: None) -> None:
    raise ValueError("no")


def _worker(**limits: int) -> Worker:
    workflows = {"chain": _chain, "all": _all, "parent": _parent, "fails": _fails, "waits": _waits, "counts": _counts}
    return Worker(workflows, {"double": _double, "refuse": _refuse}, **limits)


def _cannot_have(asked: Child | Call) -> Any:
    try:
        yield asked
    except Failed as error:
        return error.failure.type


async def test_a_child_that_no_store_can_hold_has_failed() -> None:
    """Its parent does not wait for ever."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(node("memory:", unique("n"), app_id=APP, registry=MemoryMesh()))
        worker = Worker({"long": lambda _: _cannot_have(Child("all", 1, "x" * 5000))}, {})
        await stack.enter_async_context(working(runtime, worker))
        view = await _run(runtime, "long")
        assert (view.state.status, view.output) == (Status.COMPLETED, '"WorkflowTooLarge"')


async def test_an_operation_of_the_mesh_is_none_of_another_application() -> None:
    """Its node would do it in the name of its own."""
    mesh, namespace = MemoryMesh(), unique("n")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        runtime = await enter(node("memory:", namespace, app_id=APP, registry=mesh))
        other = await enter(node("memory:", namespace, app_id="till", registry=mesh))
        worker = Worker({"asks": lambda _: _cannot_have(Call("mesh.publish", {"topic": "t"}, app="till"))}, {})
        await enter(working(runtime, worker))
        await enter(working(other, Worker({}, {})))
        assert (await _run(runtime, "asks")).output == '"PermissionDenied"'


async def test_what_a_workflow_can_do() -> None:
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(node("memory:", unique("n"), app_id=APP, registry=MemoryMesh()))
        worker = await stack.enter_async_context(working(runtime, _worker(max_tasks=7)))
        assert (await _run(runtime, "all", 200)).output == str(2 * sum(range(200)))
        assert (await _run(runtime, "counts", 0)).output == "4"
        failed = await _run(runtime, "fails")
        assert (failed.state.status, failed.failure and failed.failure.type) == (Status.FAILED, "ValueError")
        assert (await _run(runtime, "parent", 1, id_="p")).output == '[8, 6, "ValueError"]'
        assert len(worker.tasks) == 200 + 5 + 1 + 3 + 3 + 1  # None ran twice.
        waits = await ask(runtime, START, APP, Start("waits", "w"))
        await ask(runtime, RAISE_EVENT, APP, RaiseEvent(waits, "go", "7"))
        assert (await _end(runtime, waits)).output == "7"


async def test_what_is_done_to_instances() -> None:
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(node("memory:", unique("n"), app_id=APP, registry=MemoryMesh()))
        with pytest.raises(WorkflowNotFoundError):
            await ask(runtime, WAIT, APP, Wait("none"))
        assert await ask(runtime, GET, APP, Get("none")) is None
        # Without a worker an instance is kept, and ended; nobody has to be there.
        await ask(runtime, START, APP, Start("waits", "w"))
        with pytest.raises(WorkflowExistsError):
            await ask(runtime, START, APP, Start("waits", "w"))
        with pytest.raises(WorkflowNotEndedError):
            await ask(runtime, PURGE, APP, Purge("w"))
        await ask(runtime, TERMINATE, APP, Terminate("w", '"over"'))
        ended = await _end(runtime, "w")
        assert (ended.state.status, ended.output) == (Status.TERMINATED, '"over"')
        await ask(runtime, START, APP, Start("chain", "c", "1"))
        assert (await ask(runtime, GET, APP, Get("c"))).state.status == Status.PENDING
        worker = await stack.enter_async_context(working(runtime, _worker()))
        assert (await _end(runtime, "c")).output == "8"
        again = await ask(runtime, RERUN, APP, Rerun("c", 2, input="10", overwrite=True))
        assert (await _end(runtime, again)).output == "40"
        assert worker.tasks == [("double", each) for each in (1, 2, 4, 10, 20)]
        shown = await ask(runtime, SHOW, APP, Show("c"))
        assert (shown.owner is None, shown.workers, shown.waiting) == (False, {"test": 1}, Waiting())
        listed = [each.id for each in (await ask(runtime, LIST, APP, List(name="chain"))).views]
        assert sorted(set(listed)) == sorted(["c", again])
        told = await ask(runtime, PURGE_MANY, APP, PurgeMany())
        assert (told.count, told.complete) == (3, True)
        assert (await ask(runtime, LIST, APP, List())).views == []


async def test_an_instance_is_shown_though_its_owner_is_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(*_: object) -> object:
        return [{"id": 1, "name": "charge", "app": APP, "since": 1.0, "attempt": 1, "running": True}], {"test": 1}

    monkeypatch.setattr(Answers, "_answer_look", look)
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(node("memory:", unique("n"), app_id=APP, registry=MemoryMesh()))
        await stack.enter_async_context(working(runtime, _worker()))
        await ask(runtime, START, APP, Start("waits", "w"))
        shown = await ask(runtime, SHOW, APP, Show("w"))
    assert (shown.view.id, shown.waiting) == ("w", None)


async def test_an_id_is_not_used_again_while_a_child_in_another_application_is_active() -> None:
    def parent(_: None) -> Any:
        yield [Child("waits", None, "kid", "depot"), Child("waits", None, "own")]

    async with AsyncExitStack() as stack:
        mesh, namespace = MemoryMesh(), unique("n")
        shop = await stack.enter_async_context(node("memory:", namespace, app_id=APP, registry=mesh))
        depot = await stack.enter_async_context(node("memory:", namespace, app_id="depot", registry=mesh))
        await stack.enter_async_context(working(shop, Worker({"parent": parent, "waits": _waits}, {})))
        await stack.enter_async_context(working(depot, _worker()))
        await ask(shop, START, APP, Start("parent", "p", "null"))
        async with asyncio.timeout(60):
            while await ask(depot, GET, "depot", Get("kid")) is None or await ask(shop, GET, APP, Get("own")) is None:
                await asyncio.sleep(0.02)
        await ask(shop, TERMINATE, APP, Terminate("p"))
        for app, runtime, child in (("shop", shop, "own"), ("depot", depot, "kid")):
            with pytest.raises(WorkflowExistsError, match=r"its child '(own|kid)' of (shop|depot) is active"):
                await ask(shop, START, APP, Start("waits", "p", "null"))
            await ask(runtime, TERMINATE, app, Terminate(child))
        await ask(shop, START, APP, Start("waits", "p", "null"))
