"""What every output binding promises (``mesh/blocks/binding_contract.py``): see the table in ``tests/support``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.blocks.binding_contract import BindingError
from mesh.blocks.bindings import INVOKE
from mesh.resources.component import Component
from tests.support.bindings import OUTPUTS, OutputKind, ServedOutput, call
from tests.support.nodes import MemoryMesh, ask, component, node, unique

pytestmark = pytest.mark.parametrize("kind", OUTPUTS.values(), ids=OUTPUTS)


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """A node's start reads what is installed, once, before anything runs; the suite's detector would refuse it."""


def bound(kind: OutputKind, served: ServedOutput, **more: str) -> Component:
    return component("out", kind.type, placement="backbone", **served.settings, **more)


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
