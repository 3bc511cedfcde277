"""How components say that they are."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from mesh.errors import StateError
from mesh.node import health
from mesh.node.health import ComponentStatus
from tests.support.nodes import MemoryMesh, component, node, unique


class Store:
    """A store that is as the test says."""

    settings = ()
    capabilities: Sequence[str] = ()

    def __init__(self, error: Exception | None = None, *, hangs: bool = False) -> None:
        self.error, self.hangs = error, hangs
        self.asked = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return

    async def check(self) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


async def status(store: object) -> ComponentStatus:
    async with node(
        "memory:", unique("health"), component("s", "state.own"), registry=MemoryMesh(own=lambda: store)
    ) as runtime:
        [told] = await runtime.health()
        return told


@pytest.mark.parametrize(
    ("store", "how", "why"),
    [
        (Store(), "ok", ""),
        (Store(StateError("db:5432 refuses connections")), "failing", "db:5432 refuses connections"),
        (Store(hangs=True), "failing", "it did not answer within 2 s"),
        (Store(ValueError("password s3cret")), "failing", "its check failed: ValueError"),
    ],
)
async def test_a_component_is_as_its_adapter_says(store: Store, how: str, why: str) -> None:
    assert await status(store) == ComponentStatus("s", "state.own", how, "nearest", why)  # type: ignore[arg-type]


async def test_one_that_cannot_tell_is_not_known() -> None:
    class Silent(Store):
        check = None  # type: ignore[assignment]

    assert (await status(Silent())).health == "unknown"


async def test_who_looks_often_does_not_ask_often() -> None:
    """All at once, or one after the other."""
    store = Store()
    async with node(
        "memory:", unique("health"), component("s", "state.own"), registry=MemoryMesh(own=lambda: store)
    ) as runtime:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(runtime.health())
        await runtime.health()
    assert store.asked == 1
    assert health.KEPT_SECONDS == 5.0


async def test_one_that_was_left_out_is_told(tmp_path: Path) -> None:
    """With ``ignoreErrors``, and why."""
    left_out = dataclasses.replace(
        component("s", "state.sqlite", connectionString="/dev/null/x.db"), ignore_errors=True
    )
    good = component("good", "state.sqlite", connectionString=str(tmp_path / "x.db"))
    async with node("memory:", unique("health"), left_out, good) as runtime:
        one, two = await runtime.health()
    assert one == ComponentStatus("good", "state.sqlite", "ok", "local")
    assert (two.name, two.health, two.placement) == ("s", "absent", "")
    assert "x.db" in two.reason
