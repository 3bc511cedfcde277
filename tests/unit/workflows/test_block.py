"""Workflows from end to end on nodes in this process: the block, the engine, the store in memory, and a worker."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from mesh.blocks.workflows import (
    HISTORY,
    START,
    WAIT,
    History,
    Start,
    Wait,
)
from mesh.node.runtime import Runtime
from mesh.workflows.state import Status, View
from tests.support.nodes import MemoryMesh, ask, node, unique
from tests.support.workflow_worker import Call, Worker, working

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
    async with node("memory:", unique("n"), app_id=APP, registry=MemoryMesh()) as runtime:
        async with working(runtime, Worker({"chain": _chain}, {"double": _double})):
            view = await _run(runtime, "chain", 1, id_="one")
            assert (view.state.status, view.output) == (Status.COMPLETED, "8")
            history = await ask(runtime, HISTORY, APP, History("one"))
            assert [type(each).__name__ for each in history.events if "Turn" not in type(each).__name__] == [
                "Started",
                *["TaskScheduled", "TaskCompleted"] * 3,
                "Completed",
            ]
