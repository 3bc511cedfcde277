"""What every input binding promises (``mesh/blocks/binding_contract.py``): see the table in ``tests/support``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.blocks.binding_contract import BindingError, BindingEvent, Handle, InputBinding, Reading
from mesh.registry import Registry
from tests.support.bindings import INPUTS, InputKind, ServedInput
from tests.support.eventually import eventually
from tests.support.nodes import component
from tests.support.sharing import entered

pytestmark = pytest.mark.parametrize("kind", INPUTS.values(), ids=INPUTS)


@asynccontextmanager
async def opened(kind: InputKind, served: ServedInput) -> AsyncIterator[InputBinding]:
    """Open an adapter, with a store of its own for what it remembers."""
    adapter = Registry().load(kind.type).from_component(component("in", kind.type, **served.settings))  # type: ignore[attr-defined]
    async with entered(adapter):
        assert isinstance(adapter, InputBinding)
        yield adapter


def reading(handle: Handle, app_id: str = "app") -> Reading:
    return Reading("in", app_id, handle)


async def test_events_come(kind: InputKind, tmp_path: Path) -> None:
    """With the bytes that the source has, each once."""
    got: list[BindingEvent] = []

    async def handle(event: BindingEvent) -> bytes:
        got.append(event)
        return b""

    def all_there() -> None:
        assert len(got) >= 2

    async with kind.serve(tmp_path) as served, opened(kind, served) as adapter:
        async with adapter.reading(reading(handle)):
            await served.emit(b"\x00one")
            await served.emit(b"two")
            await eventually(all_there)
        if served.data:
            assert sorted(served.read(event.data) for event in got) == [b"\x00one", b"two"]


async def test_what_was_not_taken(kind: InputKind, tmp_path: Path) -> None:
    """It comes again where the source can do that, and others are not kept from coming."""
    got: list[BindingEvent] = []

    async def handle(event: BindingEvent) -> bytes:
        got.append(event)
        if len(got) == 1:
            raise BindingError("not taken")
        return b""

    def there() -> None:
        assert len(got) >= 2

    async with (
        kind.serve(tmp_path) as served,
        opened(kind, served) as adapter,
        adapter.reading(reading(handle)),
    ):
        await served.emit(b"one")
        await eventually(there)
        if served.again and served.data:
            assert served.read(got[1].data) == b"one"


async def test_leaving_waits_for_what_is_handled(kind: InputKind, tmp_path: Path) -> None:
    """And takes nothing further."""
    entered, begun, release = asyncio.Event(), asyncio.Event(), asyncio.Event()
    done: list[BindingEvent] = []

    async def handle(event: BindingEvent) -> bytes:
        begun.set()
        await release.wait()
        done.append(event)
        return b""

    async def read(adapter: InputBinding) -> None:
        async with adapter.reading(reading(handle)):
            entered.set()
            await begun.wait()

    async with kind.serve(tmp_path) as served, opened(kind, served) as adapter, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(read(adapter))
        await entered.wait()  # A new reader of some sources begins with what comes after it.
        await served.emit(b"one")
        await begun.wait()
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
        await task
        count = len(done)
        assert count >= 1
        await served.emit(b"late")
        assert len(done) == count


async def test_cancelled_it_gives_up(kind: InputKind, tmp_path: Path) -> None:
    """What is being handled, too."""
    entered, begun, given_up = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(event: BindingEvent) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        return b""

    async def read(adapter: InputBinding) -> None:
        async with adapter.reading(reading(handle)):
            entered.set()
            await asyncio.Event().wait()

    async with kind.serve(tmp_path) as served, opened(kind, served) as adapter, asyncio.TaskGroup() as tasks:
        task = tasks.create_task(read(adapter))
        await entered.wait()  # A new reader of some sources begins with what comes after it.
        await served.emit(b"one")
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert given_up.is_set()
