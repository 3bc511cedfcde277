"""Where a library's private members are used, the library's version has an upper bound: they change without notice."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.meta.sources import PACKAGES, ROOT, Module, modules


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@cache
def _imported(module: Module) -> set[str]:
    """Give the full names of the modules that one imports from."""
    found = set()
    for node in module.nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    return found


@cache
def _defined(module: Module) -> set[str]:
    """Give the names that a module's own classes and functions have."""
    found = set()
    for node in module.nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store())
            ):
                found.add(name)
    return found


def _used(module: Module) -> Iterator[tuple[str, bool]]:
    """Give the attributes that a module names, and whether it asks a base class for them."""
    for node in module.nodes:
        match node:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                yield node.attr, True
            case ast.Attribute():
                yield node.attr, False
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str() as name), *_]):
                yield name, False


def private_of_others(module: Module) -> set[str]:
    """Give the private members that a module uses, and that no module beside it or imported by it defines."""
    own = _defined(module)
    used = {
        (name, inherited) for name, inherited in _used(module) if _is_private(name) and (inherited or name not in own)
    }
    if not used:
        return set()
    imported = tuple(_imported(module))
    near = [
        other
        for other in modules().values()
        if other.path.parent == module.path.parent or any(name.startswith(other.name) for name in imported)
    ]
    ours = set().union(*map(_defined, near))
    return {name for name, inherited in used if inherited or name not in ours}


@cache
def _private_names(package: str) -> set[str]:
    """Give the private names in the source of a package that is installed; none where it is none of Python."""
    found = find_spec(package)
    folders = [*(found.submodule_search_locations or ())] if found is not None else []
    texts = (path.read_text("utf-8", "replace") for folder in folders for path in Path(folder).rglob("*.py"))
    return {name for text in texts for name in re.findall(r"\b_\w+", text)}


def libraries(module: Module, names: set[str]) -> set[str]:
    """Give the distributions that a module imports from, and that have members of such names."""
    imported = tuple(_imported(module))
    packages = {name.partition(".")[0] for name in imported} - {*PACKAGES} - sys.stdlib_module_names
    having = {package for package in packages if names & _private_names(package)}
    return {
        name.lower()
        for package in having
        for name in _distributions()[package]
        if len(_distributions()[package]) == 1 or _begins(imported, name)
    }


def _begins(imported: Iterable[str], distribution: str) -> bool:
    """Tell whether a distribution, of several that share a package, is imported: ``azure-core`` is ``azure.core``."""
    return any(f"{name}.".startswith(f"{distribution.lower().replace('-', '.')}.") for name in imported)


@cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return packages_distributions()


@cache
def _declared() -> dict[str, list[str]]:
    """Give all that is said of each library's version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, list[str]] = {}
    for line in [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]:
        found.setdefault(re.split(r"[\[<>=;~! ]", line, maxsplit=1)[0].lower(), []).append(line)
    return found


@pytest.mark.costly
def test_libraries_whose_private_members_are_used_have_an_upper_bound() -> None:
    unbounded = {
        f"{module.name} uses {sorted(used)}: {line}"
        for module in modules().values()
        if (used := private_of_others(module))
        for library in libraries(module, used)
        for line in _declared().get(library, ())  # What comes with another library is bounded by that.
        if "<" not in line
    }
    assert not unbounded


def test_private_use_is_found() -> None:
    """What is known to be there is found, and whose it is."""
    overrides = modules()["brokers.nats._overrides"]
    found = private_of_others(overrides)
    assert {"_pongs", "_process_pong", "_io_writer"} <= found
    assert libraries(overrides, found) == {"nats-py"}
    assert private_of_others(modules()["brokers.redis._wire"])
