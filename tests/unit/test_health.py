"""How components say that they are."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from mesh.blocks.state import GET, Get
from mesh.errors import ConflictError, MeshError, StateError
from mesh.node import components, health
from mesh.node.health import ComponentStatus
from mesh.store import Stored
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, component, node, unique


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


class Reading:
    """A store without a check whose reads fail as the test says."""

    settings = ()
    capabilities: Sequence[str] = ()

    def __init__(self) -> None:
        self.error: MeshError | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        return

    async def get(self, key: str, *, strong: bool, metadata: object = None) -> Stored | None:
        if self.error is not None:
            raise self.error
        return None


async def test_a_store_that_fails_and_works_again(caplog: pytest.LogCaptureFixture) -> None:
    """Each change is one line; an error that is the caller's is none."""
    caplog.set_level("INFO", "mesh.conditions")
    store = Reading()
    async with node(
        "memory:", unique("health"), component("s", "state.own"), registry=MemoryMesh(own=lambda: store)
    ) as runtime:

        async def read(error: MeshError | None) -> tuple[str, str]:
            store.error = error
            try:
                await ask(runtime, GET, "s", Get("k"))
            except StateError:
                assert error is not None
            [told] = await runtime.health()
            return told.health, told.reason

        assert await read(ConflictError("not this etag")) == ("unknown", "")
        for _ in range(3):
            assert await read(StateError("db:5432 refuses")) == ("failing", "db:5432 refuses")
        assert await read(None) == ("unknown", "")
    said = [each.getMessage() for each in caplog.records if each.name == "mesh.conditions"]
    assert said[0] == "state s: fails: db:5432 refuses"
    assert said[1].startswith("state s: works again after ")
    assert said[1].endswith("3 operations given up")
    assert len(said) == 2


async def test_what_is_opened_is_said_and_what_takes_long_as_well(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is away is waited for in silence otherwise."""
    caplog.set_level("INFO", "mesh.node.components")
    monkeypatch.setattr(components, "TELL_SECONDS", 0.0)

    class Late(Reading):
        async def __aenter__(self) -> Self:
            await eventually(lambda: "component s waits for its adapter state.own, 5 s at most" in caplog.text)
            return self

    async with node("memory:", unique("health"), component("s", "state.own"), registry=MemoryMesh(own=Late)):
        assert "Component loaded: s (state.own/v1), other nodes are answered as well" in caplog.text
