"""The map of workflows (docstring of `mesh.workflows`) has every module once, and modules import downwards alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from tests.meta.sources import Module, modules

ELSEWHERE = ("gateway/routes", "mesh/blocks")  # Parts whose modules are those of a package that have to do with it.


@dataclass(frozen=True)
class _Place:
    """Where a module stands: its line, and the part that it belongs to if that stands beside others."""

    line: int
    beside: str | None


def _map() -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    package, beside = "", None
    text = ast.get_docstring(modules()["mesh.workflows"].tree) or ""
    for number, line in enumerate(text.partition("::\n")[2].splitlines()):
        indent, words = len(line) - len(line.lstrip()), line.split()
        if indent == 4:
            beside = words[1] if words[0] == "|" else None
            package = words[0].replace("/", ".") if words[0] in ELSEWHERE else "mesh.workflows"
        elif indent == 6:
            name = f"{package}.{words[0]}"
            assert name not in places, f"{name} stands in the map twice"
            places[name] = _Place(number, beside)
    return places


def _imported(module: Module) -> Iterator[str]:
    """Give the modules that one imports, where it is run or for types alone."""
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_stands_in_the_map() -> None:
    there = {
        name
        for name in modules()
        if name.startswith(("mesh.workflows.", "mesh.blocks.workflow", "gateway.routes.workflow"))
    }
    assert there == set(_map())


def test_modules_import_downwards_alone() -> None:
    places, wrong = _map(), []
    for name, place in places.items():
        for other in set(_imported(modules()[name])) & set(places):
            below = places[other]
            if below.line <= place.line:
                wrong.append(f"{name} imports {other}, which does not stand below it")
            elif place.beside is not None and below.beside not in (None, place.beside):
                wrong.append(f"{name} imports {other}, whose part stands beside its own")
    assert not wrong
