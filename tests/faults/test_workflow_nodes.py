"""Workflows over several nodes: owners change, activities run elsewhere, children belong to other applications."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from mesh.blocks.workflows import (
    GET,
    RAISE_EVENT,
    SHOW,
    START,
    TERMINATE,
    WAIT,
    Get,
    RaiseEvent,
    Show,
    Start,
    Terminate,
    Wait,
)
from mesh.errors import AppFailedError
from mesh.node.runtime import Runtime
from mesh.resources.workflow_access import WorkflowAccessPolicy, WorkflowAccessRule
from mesh.trust.folder import Folder
from mesh.trust.identity import TrustSettings
from mesh.workflows.errors import WorkflowForbiddenError
from mesh.workflows.state import Status, View
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.nodes import MemoryMesh, ask, node, unique
from tests.support.workflow_replay import Call, Child, Failed
from tests.support.workflow_replay import Wait as Event
from tests.support.workflow_worker import Worker, working


class Mesh:
    """Nodes of one namespace, on one backbone."""

    def __init__(self, url: str, trust: TrustSettings | None = None) -> None:
        self.url, self.namespace, self.registry = url, unique("n"), MemoryMesh()
        self._trust = trust

    def node(self, app_id: str, **settings: Any) -> Runtime:
        return node(self.url, self.namespace, app_id=app_id, registry=self.registry, trust=self._trust, **settings)


@pytest.fixture(params=["memory", "sealed", "nats"])
async def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mesh]:
    if request.param != "nats":
        trust = None
        if request.param == "sealed":
            Folder(tmp_path / "trust").init("public")
            trust = TrustSettings("strict", folder=tmp_path / "trust", seal=True)
        yield Mesh("memory:", trust)
        return
    async with NatsServer(tmp_path / "nats") as server:
        yield Mesh(server.url)


async def _double(given: int) -> int:
    return 2 * given


def _waits(given: int) -> Any:
    given = yield Call("double", given)
    return given + (yield Event("go"))


def _only_waits(given: int) -> Any:
    return given + (yield Event("go"))


def _chain(given: int) -> Any:
    for _ in range(3):
        given = yield Call("double", given)
    return given


WORKFLOWS = {"waits": _waits, "chain": _chain}
MANY = 40
LARGE = 600_000  # Of bytes: more than a frame holds.


async def _start(runtime: Runtime, name: str, id_: str, given: object) -> None:
    await ask(runtime, START, runtime.settings.app_id, Start(name, id_, json.dumps(given)))


async def _end(runtime: Runtime, id_: str, app_id: str = "") -> View:
    async with asyncio.timeout(60):
        view: View = await ask(runtime, WAIT, app_id or runtime.settings.app_id, Wait(id_))
    return view


def _policy() -> WorkflowAccessPolicy:
    rule = WorkflowAccessRule(("shop",), activities=("bill",))
    return WorkflowAccessPolicy("billing", (rule,))


async def _owners(runtime: Runtime, ids: list[str]) -> Counter[str | None]:
    shown = [await ask(runtime, SHOW, runtime.settings.app_id, Show(each)) for each in ids]
    return Counter(each.owner for each in shown)


async def _divided(runtime: Runtime) -> None:
    """Wait until two nodes share what there is: whoever takes over hands its activities out once more."""
    ids = [f"divided-{each}" for each in range(MANY)]
    for each in ids:
        await _start(runtime, "waits", each, 1)

    async def about_halves() -> None:
        owners = await _owners(runtime, ids)
        assert len(owners) == 2
        assert min(owners.values()) > MANY / 5, owners

    await eventually(about_halves)


async def test_owners_come_and_go(mesh: Mesh) -> None:
    """One instance goes on at whoever owns it, as nodes come, and hand over when they end."""
    ids = [f"i-{each}" for each in range(MANY)]
    async with AsyncExitStack() as stays:
        async with AsyncExitStack() as goes:
            first = await goes.enter_async_context(mesh.node("shop"))
            before = await goes.enter_async_context(working(first, Worker(WORKFLOWS, {"double": _double})))
            for each in ids:
                await _start(first, "waits", each, 1)
            second = await stays.enter_async_context(mesh.node("shop"))
            after = await stays.enter_async_context(working(second, Worker(WORKFLOWS, {"double": _double})))

            async def both_have_some() -> None:
                assert len(await _owners(second, ids)) == 2

            await eventually(both_have_some)
            for each in ids[: MANY // 2]:
                await ask(first, RAISE_EVENT, "shop", RaiseEvent(each, "go", "5"))
                assert (await _end(second, each)).output == "7"
        for each in ids[MANY // 2 :]:
            await ask(second, RAISE_EVENT, "shop", RaiseEvent(each, "go", "6"))
            assert (await _end(second, each)).output == "8"
        assert len(await _owners(second, ids)) == 1
        assert len(before.tasks) + len(after.tasks) >= MANY


async def test_activities_that_there_is_no_room_for_run_at_other_nodes(mesh: Mesh) -> None:
    held = asyncio.Event()

    def all_of(given: int) -> Any:
        return sum((yield [Call("hold", each) for each in range(given)]))

    async def hold(given: int) -> int:
        await held.wait()
        return given

    async with AsyncExitStack() as stack:
        runtimes = [await stack.enter_async_context(mesh.node("shop")) for _ in range(2)]
        doing = {"all": all_of, "waits": _only_waits}, {"hold": hold}
        workers = [await stack.enter_async_context(working(each, Worker(*doing, max_tasks=8))) for each in runtimes]
        await _divided(runtimes[0])
        await _start(runtimes[0], "all", "wide", 16)

        def all_begun() -> None:
            assert sum(len(each.tasks) for each in workers) == 16

        await eventually(all_begun)  # Though none has room for more than half of them.

        async def all_shown() -> None:
            shown = await ask(runtimes[0], SHOW, "shop", Show("wide"))
            places = Counter((each.node or shown.owner, each.worker) for each in shown.waiting.tasks)
            assert (len({node for node, _ in places}), places[shown.owner, "test"], places.total()) == (2, 8, 16)

        await eventually(all_shown)
        held.set()
        assert (await _end(runtimes[0], "wide")).output == str(sum(range(16)))


async def test_what_belongs_to_another_application(mesh: Mesh) -> None:
    """Its workers run activities and children, which may be asked for before it is there."""

    def order(given: int) -> Any:
        bill = yield Call("bill", given, app="billing")
        bill += len((yield Call("copy", "x" * LARGE, app="billing")))
        return bill + (yield Child("chain", given, "kid", app="billing"))

    failures = [AppFailedError("it broke off")]

    async def copy(given: str) -> str:
        if failures:
            raise failures.pop()  # Nobody knows what it did: it is run again.
        return given

    def long(_: None) -> Any:
        yield Child("waits", 1, "stays", app="billing")

    async with AsyncExitStack() as stack:
        shop = await stack.enter_async_context(mesh.node("shop"))
        await stack.enter_async_context(working(shop, Worker({"order": order, "long": long}, {})))
        await _start(shop, "order", "one", 3)
        billing = await stack.enter_async_context(mesh.node("billing"))
        worker = Worker(WORKFLOWS, {"double": _double, "bill": _double, "copy": copy})
        await stack.enter_async_context(working(billing, worker))
        assert (await _end(shop, "one")).output == str(2 * 3 + LARGE + 8 * 3)
        kid = await _end(billing, "kid")
        assert kid.state.parent is not None
        assert (kid.state.parent.app, kid.state.parent.instance) == ("shop", "one")
        assert (await _end(shop, "kid", "billing")).output == "24"  # Asked from the other application.
        await _start(shop, "long", "two", None)

        async def child_is_there() -> None:
            view = await ask(billing, GET, "billing", Get("stays"))
            assert view is not None and view.state.status == Status.RUNNING

        await eventually(child_is_there)
        await ask(shop, TERMINATE, "shop", Terminate("two", recursive=True))
        assert (await _end(billing, "stays")).state.status == Status.TERMINATED


async def test_another_application_may_do_what_policies_allow(mesh: Mesh) -> None:
    policy = _policy()

    def order(app: str) -> Any:
        failures = []
        for wanted in (Call("bill", 1, app=app), Call("double", 1, app=app), Child("waits", 1, app=app)):
            try:
                yield wanted
            except Failed as error:
                failures.append(error.failure.type)
        return failures

    async with AsyncExitStack() as stack:
        shop = await stack.enter_async_context(mesh.node("shop"))
        await stack.enter_async_context(working(shop, Worker({"order": order}, {})))
        billing = await stack.enter_async_context(mesh.node("billing", workflow_access=(policy,)))
        activities = {"double": _double, "bill": _double}
        await stack.enter_async_context(working(billing, Worker(WORKFLOWS, activities)))
        await _start(shop, "order", "one", "billing")
        assert (await _end(shop, "one")).output == '["PermissionDenied", "WorkflowForbidden"]'
        await _start(billing, "waits", "own", 1)
        with pytest.raises(WorkflowForbiddenError):
            await ask(shop, RAISE_EVENT, "billing", RaiseEvent("own", "go", "1"))
        await ask(billing, RAISE_EVENT, "billing", RaiseEvent("own", "go", "1"))
        assert (await _end(billing, "own")).output == "3"
