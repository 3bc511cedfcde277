"""What every output binding promises (``mesh/blocks/binding_contract.py``): see the table in ``tests/support``."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from mesh.blocks.binding_contract import INVOKE, STREAM, BindingError, Invoke
from mesh.flow import Body, Flow
from mesh.node.runtime import Runtime
from mesh.operation import Context, Operation
from mesh.resources.component import Component
from tests.support.bindings import OUTPUTS, OutputKind, ServedOutput, call
from tests.support.nodes import MemoryMesh, ask, component, node, unique

pytestmark = pytest.mark.parametrize("kind", OUTPUTS.values(), ids=OUTPUTS)


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """A node's start reads what is installed, once, before anything runs; the suite's detector would refuse it."""


def bound(kind: OutputKind, served: ServedOutput, **more: str) -> Component:
    made: Component = component("out", kind.type, placement="backbone", **served.settings, **more)
    return replace(made, init_timeout=60.0)  # A vendor's library takes long to load while the machine is busy.


async def test_calls(kind: OutputKind, tmp_path: Path) -> None:
    """Each gives what is expected, asked where the component is, and from elsewhere."""
    mesh, namespace = MemoryMesh(), unique("outputs")
    for place in ("here", "elsewhere"):
        (tmp_path / place).mkdir()
        async with (
            kind.serve(tmp_path / place) as served,
            node("memory:", namespace, bound(kind, served), app_id="host", registry=mesh) as here,
            node("memory:", namespace, app_id="asker", registry=mesh) as elsewhere,
        ):
            for asked, check in served.calls:
                found = await ask(here if place == "here" else elsewhere, INVOKE, "out", asked)
                assert check(found), (asked, found)


async def test_failures(kind: OutputKind, tmp_path: Path) -> None:
    """What is refused is an error of bindings, and so is an operation that there is not, which names the others."""
    async with kind.serve(tmp_path) as served, node("memory:", unique("outputs"), bound(kind, served)) as here:
        with pytest.raises(BindingError):
            await ask(here, INVOKE, "out", served.refused)
        with pytest.raises(BindingError, match=r"does not support operation dance\. supported operations:\w+"):
            await ask(here, INVOKE, "out", call("dance"))


async def test_told(kind: OutputKind, tmp_path: Path) -> None:
    """Metadata tell that it is one."""
    async with kind.serve(tmp_path) as served, node("memory:", unique("outputs"), bound(kind, served)) as here:
        assert "OUTPUT_BINDING" in here.description.components[0].capabilities


async def _streamed(asker: Runtime, operation: str, metadata: Mapping[str, str], body: Body | None) -> bytes:
    asked = Operation(STREAM, "out", Invoke(operation, b"", dict(metadata)), Context(asker.caller), body=body)
    async with aclosing(cast("Flow", await asker.run(asked))) as flow:
        return b"" if flow.source is None else b"".join([part async for part in flow.source])


async def test_streams(kind: OutputKind, tmp_path: Path) -> None:
    """What is written in parts is read in parts, as it was; what breaks off is not there, and changes nothing."""
    part = os.urandom(1_000_000)

    async def parts(count: int, then: Exception | None = None) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield part
        if then is not None:
            raise then

    async with kind.serve(tmp_path) as served, node("memory:", unique("outputs"), bound(kind, served)) as here:
        if not served.streams:
            pytest.skip("it has none")
        with pytest.raises(ValueError, match="it broke"):
            await _streamed(here, "create", served.streams, Body(parts(9, ValueError("it broke"))))
        with pytest.raises(BindingError):
            await _streamed(here, "get", served.streams, None)
        for count in (17, 1, 0):
            await _streamed(here, "create", served.streams, Body(parts(count)))
            assert await _streamed(here, "get", served.streams, None) == part * count
        with pytest.raises(ValueError, match="it broke"):
            await _streamed(here, "create", served.streams, Body(parts(9, ValueError("it broke"))))
        assert await _streamed(here, "get", served.streams, None) == b""
